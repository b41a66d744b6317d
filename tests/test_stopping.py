"""Why runs end: every rule in a real run, alone and together; a resumed run ends as it would."""

import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoobj import Batch, Objective, UserError, ZOConfig, ZOTrainer
from zoobj.interrupts import Interrupted
from zoobj.stopping import RULES, stop_reason

pytestmark = pytest.mark.usefixtures("no_statistics")


def small(output_dir: Path, **more: Any) -> ZOConfig:
    """Settings of a run of less than a second."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 6,
        "eval_steps": 2,
        "lr_scheduler_type": "constant",  # so that a run does not depend on its budget
        "per_device_train_batch_size": 4,
        "max_train_samples": 32,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "max_new_tokens": 2,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(path)]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def ended(folder: Path) -> tuple[str, int]:
    return result(folder)["stop_reason"], result(folder)["steps"]


class At:
    """A callback that does something after a step."""

    def __init__(self, step: int, action: Any):
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action(control)


def interrupt(number: int = signal.SIGINT) -> Any:
    return lambda control: signal.raise_signal(number)


class Scripted(Objective):
    """Validation (and test) values by a script over steps; training scores lengths."""

    name, needs = "scripted", frozenset({"completions"})
    higher_is_better: bool
    values: list[float]
    trainer: Any = None

    def score(self, batch: Batch) -> list[float | None]:
        if self.trainer is None or self.trainer._phase in ("", "train"):
            return [float(len(text)) for text in batch.completions or ()]
        return [self.values[len(self.trainer.run.steps)]] * len(batch)


def scripted(values: list[float], args: ZOConfig, higher: bool = True) -> ZOTrainer:
    objective = Scripted()
    objective.higher_is_better, objective.values = higher, values
    trainer = ZOTrainer(objective=objective, args=args)
    objective.trainer = trainer
    return trainer


# Every rule in a real run -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason", "steps"),
    [
        ({"max_steps": 3}, "max_steps", 3),
        ({"max_evals": 3 * 8 + 5}, "max_evals", 3),
        ({"max_evals": 3 * 8, "max_steps": 2}, "max_steps", 2),
        ({"target_value": 0.0}, "target_value", 0),
        ({"max_seconds": 1e-6}, "max_seconds", 0),
        ({"max_seconds": 1e-6, "target_value": 0.0}, "target_value", 0),
        ({"max_reward_calls": 11, "target_value": 9.0}, "max_reward_calls", 3),
    ],
)
def test_what_ends_a_run_is_named(
    tmp_path: Path, settings: dict[str, Any], reason: str, steps: int
) -> None:
    told = ZOTrainer(args=small(tmp_path / "run", **settings)).train()
    assert ended(tmp_path / "run") == (reason, steps)
    assert (told.stop_reason, told.steps) == (reason, steps)
    assert len(lines(tmp_path / "run" / "log.jsonl") if steps else []) == steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_named(tmp_path: Path, number: signal.Signals) -> None:
    trainer = ZOTrainer(args=small(tmp_path / "run"), callbacks=[At(2, interrupt(number))])
    with pytest.raises(Interrupted, match=number.name):
        trainer.train()
    assert ended(tmp_path / "run") == (number.name, 2)
    assert result(tmp_path / "run")["after"] is None


def test_a_callback_is_named(tmp_path: Path) -> None:
    def stop(control: Any) -> None:
        control.should_training_stop = True

    ZOTrainer(args=small(tmp_path / "run"), callbacks=[At(3, stop)]).train()
    assert ended(tmp_path / "run") == ("callback", 3)


def test_an_error_is_named(tmp_path: Path) -> None:
    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        if next(calls) > 5:
            raise RuntimeError("the service is down")
        return [float(len(text)) for text in completions]

    calls = itertools.count()
    with pytest.raises(UserError, match="the service is down"):
        ZOTrainer(objective=reward, args=small(tmp_path / "run", on_error="raise")).train()
    assert ended(tmp_path / "run")[0] == "error"


def test_a_stop_file_ends_the_run_and_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "run" / "STOP"
    trainer = ZOTrainer(
        args=small(tmp_path / "run"), callbacks=[At(3, lambda control: file.touch())]
    )
    trainer.train()
    assert ended(tmp_path / "run") == ("stop_file", 3)
    assert not file.exists()
    ZOTrainer(args=small(tmp_path / "run", resume_from_checkpoint=True)).train()
    assert ended(tmp_path / "run") == ("max_steps", 6)  # it is used up


def test_a_stop_file_that_comes_too_late_does_not_end_the_next_session(tmp_path: Path) -> None:
    file = tmp_path / "run" / "STOP"
    late = At(4, lambda control: file.touch())
    ZOTrainer(args=small(tmp_path / "run", max_steps=4), callbacks=[late]).train()
    assert ended(tmp_path / "run") == ("max_steps", 4)
    ZOTrainer(args=small(tmp_path / "run", resume_from_checkpoint=True)).train()
    assert ended(tmp_path / "run") == ("max_steps", 6)


# Values of validations ------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_target_value_in_the_better_direction(tmp_path: Path, higher: bool) -> None:
    values = [0.1, 9.0, 0.3, 9.0, 0.5, 9.0, 0.7]
    values = values if higher else [-value for value in values]
    target = 0.5 if higher else -0.5
    scripted(values, small(tmp_path / "run", target_value=target), higher).train()
    assert ended(tmp_path / "run") == ("target_value", 4)


@pytest.mark.parametrize("higher", [True, False])
def test_early_stopping_in_the_better_direction(tmp_path: Path, higher: bool) -> None:
    values = [0.5, 0, 0.6, 0, 0.65, 0, 0.66, 0, 0.9]
    values = values if higher else [1 - value for value in values]
    args = small(
        tmp_path / "run",
        max_steps=8,
        early_stopping_patience=2,
        early_stopping_threshold=0.08,
    )
    scripted(values, args, higher).train()
    assert ended(tmp_path / "run") == ("early_stopping", 6)
    assert result(tmp_path / "run")["best_step"] == 6


def folder(path: Path, values: list[float | None], every: int, start: int = 0) -> Any:
    """As much of a run folder as rules look at; validations in an order of their own."""
    evaluations = [
        {"step": start + every * i, "split": "validation", "value": value, "seconds": 0.0}
        for i, value in enumerate(values)
    ]
    evaluations.append({"step": 0, "split": "test", "value": 1e9, "seconds": 0.0})
    return SimpleNamespace(
        path=path, evaluations=evaluations[::-1], start=start, seconds=0.0, calls=0
    )


def slow_early_stopping(values: list[float], patience: int, threshold: float) -> bool:
    """None of the last ``patience`` values is more than the threshold above the best before.

    The best before is the last value that counted as better, or the first of all.
    """
    counted = [True]
    for i in range(1, len(values)):
        best = [values[j] for j in range(i) if counted[j]][-1]
        counted.append(values[i] > best + threshold)
    return len(values) > patience and not any(counted[-patience:])


VALUES = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=12)


@given(
    values=VALUES,
    patience=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.25, 0.5]),
    higher=st.booleans(),
    gaps=st.sets(st.integers(0, 11)),
)
def test_early_stopping_against_the_slow_reference(
    values: list[float], patience: int, threshold: float, higher: bool, gaps: set[int]
) -> None:
    """Quarters are exact, so the threshold itself never counts; a lost validation is left out."""
    objective = Scripted()
    objective.higher_is_better = higher
    args = small(Path("x"), early_stopping_patience=patience, early_stopping_threshold=threshold)
    told: list[float | None] = [None if i in gaps else v for i, v in enumerate(values)]
    kept = [value for value in told if value is not None]
    signed = kept if higher else [-value for value in kept]
    reason = stop_reason(args, folder(Path("x"), told, args.eval_steps), objective, 2)
    expected = slow_early_stopping(signed, patience, threshold)
    assert reason == ("early_stopping" if expected else None)


@given(values=VALUES, target=st.integers(-4, 4).map(lambda n: n / 4), higher=st.booleans())
def test_target_value_against_the_last_value(
    values: list[float], target: float, higher: bool
) -> None:
    objective = Scripted()
    objective.higher_is_better = higher
    args = small(Path("x"), target_value=target)
    reason = stop_reason(args, folder(Path("x"), values, args.eval_steps), objective, 2)
    reached = values[-1] >= target if higher else values[-1] <= target
    assert reason == ("target_value" if reached else None)


def test_the_first_rule_that_holds_is_named(tmp_path: Path) -> None:
    """All hold; taking each away shows the next."""
    held: dict[str, dict[str, Any]] = {
        "target_value": {"target_value": 0.0},
        "early_stopping": {"early_stopping_patience": 1},
        "max_evals": {"max_evals": 16, "race": 2.0},
        "max_reward_calls": {"max_reward_calls": 1},
        "max_seconds": {"max_seconds": 1.0},
        "stop_file": {},
    }
    assert list(held) == list(RULES)
    (tmp_path / "STOP").touch()
    run = folder(tmp_path, [1.0, 0.5], 2)
    run.seconds, run.calls, run.evals, run.steps = 2.0, 9, 9, [{}]
    objective = Scripted()
    objective.higher_is_better = True
    for i, rule in enumerate(RULES):
        settings = {k: v for name in list(RULES)[i:] for k, v in held[name].items()}
        assert stop_reason(small(tmp_path, **settings), run, objective, 2) == rule
    assert stop_reason(small(tmp_path), run, objective, 2) is None
    assert not (tmp_path / "STOP").exists()


# What is spent --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [10, 11, 12, 13])
def test_max_reward_calls_is_never_exceeded_before_the_final_score(
    tmp_path: Path, limit: int
) -> None:
    """The try-out, test and validations count too; the last validation is not one too many."""
    calls: list[int] = []
    at: list[int] = []

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        calls.append(len(completions))
        return [-float(len(text)) for text in completions]

    class Saved:
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at.append(len(calls))

    settings = small(tmp_path / "run", max_steps=50, max_reward_calls=limit)
    ZOTrainer(objective=reward, args=settings, callbacks=[Saved()]).train()
    assert ended(tmp_path / "run")[0] == "max_reward_calls"
    assert at[-1] <= limit  # the best weights are saved before the final score on test
    assert at[-1] > limit - 3  # and no step is given away
    assert len(calls) <= at[-1] + 1


def test_too_few_reward_calls_are_refused(tmp_path: Path) -> None:
    """Try-out, test, validation, a pair, validation: six."""
    with pytest.raises(UserError, match="--max_reward_calls 5 buys no step"):
        ZOTrainer(args=small(tmp_path / "run", max_reward_calls=5)).train()
    assert not (tmp_path / "run").exists()
    ZOTrainer(args=small(tmp_path / "run", max_reward_calls=6)).train()
    assert ended(tmp_path / "run") == ("max_reward_calls", 1)


def test_max_reward_calls_counts_earlier_sessions(tmp_path: Path) -> None:
    args = small(tmp_path / "a", max_steps=50, max_reward_calls=16)
    ZOTrainer(args=args).train()
    stopped = small(tmp_path / "b", max_steps=50, max_reward_calls=16)
    with pytest.raises(Interrupted):
        ZOTrainer(args=stopped, callbacks=[At(1, interrupt())]).train()
    ZOTrainer(args=stopped.model_copy(update={"resume_from_checkpoint": True})).train()
    assert ended(tmp_path / "a") == ended(tmp_path / "b")
    assert untimed(tmp_path / "a" / "log.jsonl") == untimed(tmp_path / "b" / "log.jsonl")


def test_max_seconds_counts_earlier_sessions(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        ZOTrainer(args=small(out), callbacks=[At(3, interrupt())]).train()
    steps = lines(out / "log.jsonl") + lines(out / "metrics.jsonl")
    spent = sum(line["seconds"] for line in steps)
    assert spent > 0
    again = small(out, resume_from_checkpoint=True, max_seconds=spent * 0.999)
    ZOTrainer(args=again).train()
    assert ended(out) == ("max_seconds", 3)
    ZOTrainer(args=small(out, resume_from_checkpoint=True, max_seconds=spent + 1000)).train()
    assert ended(out) == ("max_steps", 6)


# Resumed runs ---------------------------------------------------------------------------------

RESUMED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "target_value": ({"target_value": 0.5}, [0.1, 9, 0.2, 9, 0.6, 9, 0.7, 9, 0.8]),
    "early_stopping": ({"early_stopping_patience": 2}, [0.5, 0.9, 0.4, 0.9, 0.3, 0.9, 0.8, 0, 0]),
    "max_reward_calls": ({"max_reward_calls": 16}, [0.5] * 9),
}


@pytest.fixture(scope="module", params=RESUMED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A rule and the run that it ended, without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings, values = RESUMED[request.param]
    scripted(values, small(folder, max_steps=8, **settings)).train()
    assert ended(folder)[0] == request.param
    return request.param, folder


@pytest.mark.parametrize(
    ("how", "step"), [("SIGINT", 3), ("stop_file", 3), ("max_steps", 2), ("max_steps", 3)]
)
def test_a_resumed_run_stops_where_an_uninterrupted_one_did(
    whole: tuple[str, Path], tmp_path: Path, how: str, step: int
) -> None:
    """However the first session ended, on a step that is validated anyway or between two."""
    rule, folder = whole
    if rule == "max_reward_calls" and step == 3 and how != "SIGINT":
        return  # the validation at the end of the first session was a call
    (settings, values), out = RESUMED[rule], tmp_path / "run"
    first = scripted(values, small(out, max_steps=step if how == "max_steps" else 8, **settings))
    if how == "SIGINT":
        first.callbacks.callbacks.append(At(step, interrupt()))
        with pytest.raises(Interrupted):
            first.train()
    else:
        if how == "stop_file":
            first.callbacks.callbacks.append(At(step, lambda control: (out / "STOP").touch()))
        assert first.train().stop_reason == how
    scripted(values, small(out, max_steps=8, resume_from_checkpoint=True, **settings)).train()
    assert ended(out) == ended(folder)
    assert untimed(out / "log.jsonl") == untimed(folder / "log.jsonl")


def test_a_run_that_a_rule_has_ended_stays_ended(tmp_path: Path) -> None:
    _, values = RESUMED["early_stopping"]
    args = small(tmp_path / "run", max_steps=8, early_stopping_patience=2)
    first = scripted(values, args).train()
    again = args.model_copy(update={"resume_from_checkpoint": True})
    second = scripted(values, again).train()
    assert replace(second, peak_memory_bytes=first.peak_memory_bytes) == first
