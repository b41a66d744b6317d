"""transformers' TrainerCallback protocol: what callbacks and trackers are told, and may ask for.

Of a combination each figure of each part (see zoobj.parts) is logged as rewards/PART/FIGURE, of a
task of choices those of predicted labels (zoobj.labels) as labels/FIGURE, in evaluations with eval_
or test_ before it; of --tie_breaker (zoobj.ties) pairs, decided, examples and value as
tie_breaker/FIGURE. Names of what is logged otherwise, as TRL has them where it has any; trackers
put train/ before them, and eval/ and test/ instead of eval_ and test_:

    reward                  mean of the values of the step's offsets
    rewards/NAME/mean       the same, by the objective's name
    frac_reward_zero_std    share of the step's pairs that tie
    flip_rate               share of its examples whose score differs between the sides
    tie_rate                share of all steps so far that tied
    learning_rate, eps, failed, evals, step_time, epoch
    eval_NAME, test_NAME    the objective on validation and test; also _runtime, _samples
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers.trainer_callback import TrainerControl, TrainerState

from zoobj.config import ZOConfig
from zoobj.errors import UserError, did_you_mean
from zoobj.log import Line
from zoobj.objective import Objective


class Callbacks:
    """Tells callbacks what happens; any object with some of TrainerCallback's methods is one.

    Args:
        callbacks: instances or classes.
        args: the run's settings; ``report_to`` adds trackers.

    Attributes:
        state: transformers' TrainerState.
        control: transformers' TrainerControl, by which callbacks ask for things.

    Raises:
        UserError: a tracker that is unknown or not installed.
    """

    def __init__(self, callbacks: Sequence[Any], args: ZOConfig):
        made = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        self.callbacks = [*made, *_trackers(args)]
        self.state, self.control = TrainerState(), TrainerControl()
        self.belong_to(args, None)
        self.context: dict[str, Any] = {}  # model, processing_class: what every event comes with

    def belong_to(self, args: ZOConfig, objective: Objective | None) -> None:
        """Say whose run it is, which is what callbacks get as arguments."""
        self._settings, self._objective, self._args = args, objective, None

    def tell(self, event: str, **more: Any) -> None:
        """Call the method of this name of every callback that has it."""
        if not self.callbacks:
            return  # on every forward pass there is nobody to tell
        if self._args is None:
            self._args = training_arguments(self._settings, self._objective)
        for callback in self.callbacks:
            handler = getattr(callback, event, None)
            if handler is not None:
                handler(self._args, self.state, self.control, **self.context, **more)

    def log(self, logs: dict[str, Any]) -> None:
        """Report figures; those that don't exist are left out."""
        known = {name: value for name, value in logs.items() if value is not None}
        self.state.log_history.append({**known, "step": self.state.global_step})
        self.tell("on_log", logs=known)

    def evaluated(self, line: Line) -> None:
        """Report a line of the metrics."""
        prefix = {"validation": "eval"}.get(line["split"], line["split"])
        metrics = {
            f"{prefix}_{line['objective']}": line["value"],
            f"{prefix}_samples": line["n"],
            f"{prefix}_runtime": line["seconds"],
            "epoch": self.state.epoch,
            **{f"{prefix}_{name}": value for name, value in _more(line).items()},
        }
        self.log(metrics)
        self.tell("on_evaluate", metrics=metrics)


def step_logs(line: Line, objective: str, pairs: Sequence[Any], tie_rate: float) -> dict[str, Any]:
    """What is reported of a step, from its line of the log."""
    values = [value for value in line["values"] if value is not None]
    reward = sum(values) / len(values) if values else None
    return {
        "reward": reward,
        f"rewards/{objective}/mean": reward,
        **_more(line),
        "frac_reward_zero_std": sum(pair.tie for pair in pairs) / max(1, len(pairs)),
        "flip_rate": line["flips"] / max(1, line["n"]),
        "tie_rate": tie_rate,
        "failed": line["failed"],
        "learning_rate": line["learning_rate"],
        "eps": line["eps"],
        "evals": line["evals"],
        "step_time": line["seconds"],
    }


def _more(line: Line) -> dict[str, Any]:
    """Figures of a combination's parts, of predicted labels, of the tie-breaker."""
    told = {f"rewards/{name}": figures for name, figures in line.get("rewards", {}).items()}
    told |= {group: line.get(group, {}) for group in ("labels", "tie_breaker")}
    return {
        f"{group}/{figure}": value
        for group, figures in told.items()
        for figure, value in figures.items()
        if figure != "state"
    }


def training_arguments(args: ZOConfig, objective: Objective | None = None) -> Any:
    """The settings as callbacks expect them: transformers' TrainingArguments, with ours added.

    It is filled without its ``__init__``, which would set up devices and processes.
    """
    from transformers import TrainingArguments

    class Arguments(TrainingArguments):
        def __init__(self) -> None:  # fields keep their defaults
            for field in dataclasses.fields(TrainingArguments):
                default = field.default
                if field.default_factory is not dataclasses.MISSING:
                    default = field.default_factory()
                object.__setattr__(self, field.name, default)

        def to_dict(self) -> dict[str, Any]:
            return args.model_dump()

        def to_sanitized_dict(self) -> dict[str, Any]:
            plain = (bool, int, float, str)
            return {k: v if isinstance(v, plain) else str(v) for k, v in args.model_dump().items()}

    made = Arguments()
    for name, value in args.model_dump().items():
        object.__setattr__(made, name, value)
    # What transformers' own callbacks, such as EarlyStoppingCallback, want to know.
    more: dict[str, Any] = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "load_best_model_at_end": True,
    }
    if objective is not None:
        best = f"eval_{objective.name}"
        more |= {"metric_for_best_model": best, "greater_is_better": objective.higher_is_better}
    alone = {"distributed_state": None, "_n_gpu": int(torch.cuda.is_available())}  # one process
    for name, value in {**more, **alone, "save_steps": args.save_steps or 0}.items():
        object.__setattr__(made, name, value)
    return made


def _trackers(args: ZOConfig) -> list[Any]:
    names = [name.strip() for name in args.report_to.split(",") if name.strip() not in ("", "none")]
    if not names:
        return []
    from transformers.integrations import integration_utils

    if "wandb" in names:  # its callback looks for the project nowhere else
        os.environ.setdefault("WANDB_PROJECT", args.project)
    made = []
    for name in names:
        known = integration_utils.INTEGRATION_TO_CALLBACK
        if name not in known:
            raise UserError(f"report_to {name!r}: no such tracker{did_you_mean(name, known)}")
        try:
            made.append(known[name]())
        except (RuntimeError, ImportError) as error:
            raise UserError(f"report_to {name!r}: {error}: pip install {name}") from error
    return made
