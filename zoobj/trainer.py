"""The loop: score a batch at the offsets a method asks for, move, write a line; keep the best."""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers.trainer_callback import TrainerControl, TrainerState

from zoobj import noise
from zoobj.assemble import make_method, make_model, make_scorer, make_task, make_walk, method_class
from zoobj.card import model_card
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.interrupts import Interrupted, Interrupts
from zoobj.objective import as_objective
from zoobj.report import write_report
from zoobj.run import REPORT, Result, RunFolder, check_output_dir, checksum, jsonable, peak_memory
from zoobj.signal import (
    OnError,
    Outcome,
    Pair,
    compare,
    floor,
    judge,
    loss,
    paired_bootstrap,
    verdict,
)
from zoobj.task import SPLITS, Example, Task

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 200
_PREFLIGHT = 4  # examples scored before anything is paid for
_HOPELESS = 10  # steps in a row in which nothing could be scored


class ZOTrainer:
    """Tunes a model on an objective of a task.

    Args:
        model: a name, folder or hub id (then ``args.model_name_or_path``), or a causal language
            model of transformers; every parameter that requires gradients is tuned.
        task: a name, file or Task; by default ``args.task``.
        objective: a name, ``file.py:function``, function or Objective; by default the task's own.
        args: all other settings.
        train_dataset, eval_dataset, test_dataset: rows instead of the task's own train,
            validation and test.
        processing_class: the tokenizer of a model given as an object.
        callbacks: transformers' TrainerCallbacks.

    Raises:
        UserError: for settings that don't fit, before the model is loaded where possible.
    """

    def __init__(
        self,
        model: Any = None,
        task: str | Task | None = None,
        objective: Any = None,
        args: ZOConfig | None = None,
        train_dataset: Iterable[dict[str, Any]] | None = None,
        eval_dataset: Iterable[dict[str, Any]] | None = None,
        test_dataset: Iterable[dict[str, Any]] | None = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] = (),
    ):
        args = args or ZOConfig()
        named = {"model_name_or_path": model, "task": task, "objective": objective}
        told = {key: value for key, value in named.items() if isinstance(value, str)}
        self.args = args.model_copy(update=told)
        self.callbacks = [c() if isinstance(c, type) else c for c in callbacks]
        self.control = TrainerControl()
        datasets = (train_dataset, eval_dataset, test_dataset)
        self.task = make_task(self.args, None if isinstance(task, str) else task, datasets)
        wanted = self.args.objective if objective is None else objective
        self.objective = as_objective(self.task.objective if wanted is None else wanted)
        self._name_objects(task, objective)
        given = None if isinstance(model, str) else model
        if given is None:
            check_output_dir(self.args)  # before the wait for the model
        else:
            self.args.model_name_or_path = given.config.name_or_path or type(given).__name__
        self.model, self.tokenizer = make_model(self.args, given, processing_class)
        self.scorer = make_scorer(self.args, self.model, self.tokenizer, self.task)
        self.scorer.between = self._scored
        self.interrupts = Interrupts()
        self._phase = ""  # what is being scored, for the callbacks
        self._walked = 0  # logged moves that the weights have made

    def _name_objects(self, task: Any, objective: Any) -> None:
        """What came as an object has its name in the settings, not another thing's."""
        if isinstance(task, Task):
            self.args.task = task.name
        if objective is not None and not isinstance(objective, str):
            self.args.objective = self.objective.name
        elif self.args.objective is None:
            self.args.objective = self.task.objective

    # The run ----------------------------------------------------------------------------------

    def train(self) -> Result:
        """Tune, keep the weights that are best on validation, measure before and after on test.

        Raises:
            UserError: for bad input, before any training.
            Interrupted: on Ctrl-C or SIGTERM; the run is saved and can be resumed.
        """
        check_output_dir(self.args)
        self.max_steps = self._budget()
        self.data = {split: self._load(split) for split in SPLITS}
        self._check_data()
        self._preflight()
        self.method = make_method(self.args)
        fingerprints = {split: self.task.fingerprint(self.data[split]) for split in SPLITS}
        self.walk = make_walk(self.args, self.model)
        self.run = RunFolder(self.args, fingerprints)
        with self.interrupts:
            try:
                return self._train()
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted {self._saved()}") from None
            except UserError as error:
                raise UserError(f"{error}; stopped {self._saved()}") from error
            except Exception:
                self.walk.goto({})  # whoever holds the model gets it back at no offset
                raise

    def _train(self) -> Result:
        self._notify("on_train_begin")
        before = self._evaluate("test", step=0)
        inference_memory = peak_memory(self.model.device)
        self._resume()
        for step in range(len(self.run.steps), self.max_steps):
            digest = None
            if step % self.args.eval_steps == 0:
                self._validate(step)
                digest = checksum(self.model.named_parameters())
            self._step(step, digest)
            if self.control.should_training_stop:
                break
        self._validate(len(self.run.steps))
        best = self._save_best()
        after = self._evaluate("test", step=best)
        result = self._result(before, after, inference_memory)
        self.run.write_result(result)
        self.run.write_card(model_card(self.args, result, self.run.evaluations))
        write_report(
            self.run.path / REPORT,
            self.args,
            result,
            self.run.steps,
            self.run.evaluations,
            before,
            after,
        )
        self._notify("on_train_end")
        return result

    def _step(self, step: int, digest: str | None) -> None:
        """Score one minibatch at every offset, move, and write the step down.

        ``digest`` is the checksum of the weights it starts from, where one was taken.
        """
        start, walked = time.perf_counter(), self.walk.seconds
        self.method.learning_rate = self._learning_rate(step)
        examples = self._minibatch(step)
        outcomes = []
        self._phase = "train"
        for offset in self.method.offsets(step):
            self.walk.goto(offset)
            outcomes.append(self._score(examples, seed=noise.derive(self.args.seed, step)))
        sides = zip(outcomes[::2], outcomes[1::2], strict=True)
        pairs = [compare(self.objective, plus, minus) for plus, minus in sides]
        values = [value for pair in pairs for value in (pair.plus, pair.minus)]
        move = self.method.move([loss(self.objective, value) for value in values])
        line = {
            "step": step,
            "move": move,
            "values": jsonable(values),
            "n": sum(pair.n for pair in pairs),
            "failed": sum(pair.failed for pair in pairs),
            "flips": sum(pair.flips for pair in pairs),
            "tie": all(pair.tie for pair in pairs),
            "eps": self.method.eps,
            "learning_rate": self.method.learning_rate,
            "evals": self._evals() + len(outcomes) * len(examples),
            "seconds": round(time.perf_counter() - start, 4),
            "seconds_in_walk": round(self.walk.seconds - walked, 4),
            "checksum": digest,
            "state": self.method.state_dict(),
        }
        with self.interrupts.held():
            self.walk.commit(move)
            self._walked += 1
            self.run.log_step(line)
        self._report(pairs, outcomes)

    def _report(self, pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> None:
        """Tell the callbacks; stop where the objective fails again and again."""
        values = [v for pair in pairs for v in (pair.plus, pair.minus) if not math.isnan(v)]
        value = sum(values) / len(values) if values else None
        self._notify("on_log", logs={"value": value, "tie_rate": self._tie_rate()})
        self._notify("on_step_end")
        lately = self.run.steps[-_HOPELESS:]
        if len(lately) == _HOPELESS and not any(line["n"] for line in lately):
            error = next((o.error for o in outcomes if o.error), "every score was None or NaN")
            raise UserError(f"nothing could be scored in {_HOPELESS} steps in a row: {error}")
        for outcome in outcomes:
            if outcome.error:
                logger.warning("step %d: %s", len(self.run.steps) - 1, outcome.error)

    def _resume(self) -> None:
        """Take up an earlier run, if there was one: its moves, and what the method remembered."""
        if self.run.steps:
            self._walk_to(len(self.run.steps))
            self.method.load_state_dict(self.run.steps[-1]["state"])
            logger.info("resumed at step %d", len(self.run.steps))

    def _walk_to(self, step: int) -> None:
        """Make or take back logged moves, so that the weights are those before this step."""
        for line in self.run.steps[self._walked : step]:
            self.walk.commit([(seed, coefficient) for seed, coefficient in line["move"]])
        for line in self.run.steps[step : self._walked]:
            self.walk.commit([(seed, -coefficient) for seed, coefficient in line["move"]])
        self._walked = step
        self.walk.goto({})

    # Scoring ----------------------------------------------------------------------------------

    def evaluate(self, split: str = "validation", limit: int | None = None) -> Outcome:
        """Score a split with the model as it is."""
        return self._score(self.task.examples(split, limit))

    def _score(self, examples: Sequence[Example], seed: int = 0) -> Outcome:
        batch = self.scorer(examples, self.objective.needs, seed)
        return judge(self.objective, batch, self.args.on_error)

    def _evaluate(self, split: str, step: int) -> Outcome:
        """Score a split at theta; written to the metrics."""
        start = time.perf_counter()
        self.walk.goto({})
        self._phase = split
        outcome = self._score(self.data[split])
        line = {
            "step": step,
            "split": split,
            "objective": self.objective.name,
            "value": jsonable(outcome.value),
            "n": len(outcome.batch) - outcome.failed,
            "failed": outcome.failed,
            "seconds": round(time.perf_counter() - start, 4),
        }
        if self.run.evaluation(step, split) is None:
            self.run.log_evaluation(line)
        self._notify("on_evaluate", metrics=line)
        return outcome

    def _validate(self, step: int) -> None:
        """Score validation before this step; one that is in the metrics isn't paid for again."""
        if self.run.evaluation(step, "validation") is None:
            self._evaluate("validation", step)
        self.walk.goto({})

    # Choosing and saving ----------------------------------------------------------------------

    def _best_step(self) -> int:
        """The step whose weights did best on validation; the earliest of equals."""
        done = [
            (loss(self.objective, line["value"]), line["step"])
            for line in self.run.evaluations
            if line["split"] == "validation"
            and line["value"] is not None
            and line["step"] <= len(self.run.steps)
        ]
        return min(done)[1] if done else len(self.run.steps)

    def _save_best(self) -> int:
        """Walk back to the best weights and save them. Exact, since a move can be taken back."""
        best = self._best_step()
        self._walk_to(best)
        with self.interrupts.held():
            self.run.save_model(self.model, self.tokenizer)
        self._notify("on_save")
        return best

    def _saved(self) -> str:
        """Save what there is, and say where."""
        self._save_best()
        return (
            f"at step {len(self.run.steps)} of {self.max_steps}: saved in {self.run.path}; "
            "--resume_from_checkpoint continues"
        )

    def _result(self, before: Outcome, after: Outcome, inference_memory: int) -> Result:
        both = compare(self.objective, after, before)
        interval = paired_bootstrap(self.objective, before, after)
        return Result(
            objective=self.objective.name,
            split="test",
            n=both.n,
            before=both.minus,
            after=both.plus,
            difference=both.plus - both.minus,
            ci95=interval,
            verdict=verdict(self.objective, interval),
            method=self.args.method,
            steps=len(self.run.steps),
            evals=self._evals(),
            seconds=round(sum(x["seconds"] for x in (*self.run.steps, *self.run.evaluations)), 3),
            seconds_in_walk=round(sum(s["seconds_in_walk"] for s in self.run.steps), 3),
            tie_rate=self._tie_rate(),
            peak_memory_bytes=peak_memory(self.model.device),
            inference_peak_memory_bytes=inference_memory,
        )

    # Small parts ------------------------------------------------------------------------------

    def _budget(self) -> int:
        """Steps that the budget buys."""
        cost = self.args.per_device_train_batch_size * method_class(self.args.method).evaluations
        if self.args.max_steps is None and self.args.max_evals is None:
            return DEFAULT_STEPS
        limits = [] if self.args.max_steps is None else [self.args.max_steps]
        if self.args.max_evals is not None:
            limits.append(self.args.max_evals // cost)
        if not min(limits):
            raise UserError(
                f"--max_evals {self.args.max_evals} buys no step: one scores {cost} examples "
                f"({cost // self.args.per_device_train_batch_size} x "
                f"per_device_train_batch_size {self.args.per_device_train_batch_size})"
            )
        return min(limits)

    def _load(self, split: str) -> list[Example]:
        limits = {
            "train": self.args.max_train_samples,
            "validation": self.args.max_eval_samples,
            "test": self.args.max_test_samples,
        }
        examples = self.task.examples(split, limits[split])
        if self.task.held_out(split):
            logger.info("%s: %d examples cut from train", split, len(examples))
        if truncated := self.scorer.truncated(examples):
            logger.warning(
                "%s: %d of %d prompts are longer than %d tokens; only their last ones are read",
                split,
                truncated,
                len(examples),
                self.scorer.prompt_limit,
            )
        return examples

    def _check_data(self) -> None:
        size, rows = self.args.per_device_train_batch_size, len(self.data["train"])
        if size > rows:
            raise UserError(
                f"--per_device_train_batch_size {size} is larger than the {rows} training "
                f"examples: lower it to {rows} or less"
            )

    def _preflight(self) -> None:
        """A few examples through the whole chain: a broken reward shows before any training."""
        batch = self.scorer(self.data["train"][:_PREFLIGHT], self.objective.needs)
        policy: OnError = "raise" if self.args.on_error == "raise" else "drop"
        outcome = judge(self.objective, batch, policy)
        if outcome.error is not None:
            raise UserError(outcome.error)
        if self.args.on_error == "floor" and floor(self.objective) is None:
            raise UserError(
                f"--on_error floor: objective {self.objective.name!r} has no worst value: set its "
                "'bounds', or choose drop"
            )

    def _minibatch(self, step: int) -> list[Example]:
        """Batch ``step`` of an endless stream of shuffled epochs: a function of seed and step."""
        examples, size = self.data["train"], self.args.per_device_train_batch_size
        n, first = len(examples), step * size
        epochs = range(first // n, (first + size - 1) // n + 1)
        stream = [i for epoch in epochs for i in _order(self.args.seed, epoch, n)]
        start = first - epochs[0] * n
        return [examples[i] for i in stream[start : start + size]]

    def _learning_rate(self, step: int) -> float:
        """The course of the learning rate: at step 0 its full value."""
        share = step / self.max_steps
        factors = {
            "constant": 1.0,
            "linear": 1.0 - share,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * share)),
        }
        return self.args.learning_rate * factors[self.args.lr_scheduler_type]

    def _evals(self) -> int:
        return self.run.steps[-1]["evals"] if self.run.steps else 0

    def _tie_rate(self) -> float:
        return sum(line["tie"] for line in self.run.steps) / max(1, len(self.run.steps))

    def _scored(self, examples: int) -> None:
        self._notify("on_prediction_step", examples=examples, phase=self._phase)

    def _notify(self, event: str, **more: Any) -> None:
        if not self.callbacks:
            return  # on every forward pass there is nobody to tell
        steps = len(self.run.steps) if hasattr(self, "run") else 0
        state = TrainerState(global_step=steps, max_steps=getattr(self, "max_steps", 0))
        for callback in self.callbacks:
            handler = getattr(callback, event, None)
            if handler is not None:
                handler(self.args, state, self.control, model=self.model, **more)


@lru_cache(maxsize=2)  # a minibatch may span two epochs; steps of the same one share its order
def _order(seed: int, epoch: int, n: int) -> list[int]:
    """The n examples of an epoch, shuffled."""
    draws = noise.uniform(noise.derive(seed, epoch), noise.ORDER, torch.arange(n))
    return draws.argsort().tolist()
