"""The course of the learning rate, beside transformers' own schedulers."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from zoobj import ZOConfig, ZOTrainer
from zoobj.errors import UserError
from zoobj.schedule import PARTS, LearningRate, make_schedule
from zoobj.stopping import ENDLESS

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("constant_with_warmup", {}),
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 8, "min_lr_ratio": 0.05}),
]


def small(out: Path, **more: Any) -> ZOConfig:
    sizes = {"per_device_train_batch_size": 4, "max_eval_samples": 4, "max_test_samples": 4}
    told = {"tune": "full", "max_new_tokens": 4, "disable_tqdm": True, **sizes, **more}
    return ZOConfig(output_dir=str(out), **told)


@pytest.mark.parametrize(("kind", "more"), KINDS, ids=lambda value: str(value))
@pytest.mark.parametrize("warmup", [0, 5, 0.2])
def test_step_by_step_as_in_transformers(kind: str, more: dict[str, Any], warmup: float) -> None:
    count, rate = 30, 0.02
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    told = TrainingArguments(warmup_steps=warmup)
    scheduler = get_scheduler(kind, optimizer, told.get_warmup_steps(count), count, more or None)
    named = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": more}
    ours = make_schedule(ZOConfig(learning_rate=rate, warmup_steps=warmup, **named), count)
    for step in range(count):
        assert rate * ours(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_learning_rate_for_each_step(kind: str) -> None:
    args = ZOConfig(lr_scheduler_type=kind, learning_rate=1.0)
    run, rate = SimpleNamespace(evals=0, seconds=0.0), LearningRate(args, 4)
    rates = [rate(step, run) for step in range(4)]  # type: ignore[arg-type]
    expected = {
        "constant": [1.0] * 4,
        "linear": [1.0, 0.75, 0.5, 0.25],
        "cosine": [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)],
    }
    assert rates == pytest.approx(expected[kind])


@pytest.mark.parametrize(
    ("told", "steps", "spent", "rate"),
    [
        ({"max_evals": 100, "race": 2.0}, ENDLESS, {"evals": 25}, 0.75),
        ({"max_evals": 100, "grow_batch": 2}, 4, {"evals": 25}, 0.25),  # step 3 of 4 is further
        ({"max_evals": 100}, 4, {"evals": 25}, 0.25),  # all steps cost the same
        ({"max_seconds": 8.0}, ENDLESS, {"seconds": 2.0}, 0.75),
        ({"max_seconds": 8.0}, ENDLESS, {"seconds": 9.0}, 0.0),
        ({"max_seconds": 8.0, "max_steps": 4}, 4, {"seconds": 2.0}, 0.25),
    ],
)
def test_it_goes_by_the_budget(
    told: dict[str, Any], steps: int, spent: dict[str, float], rate: float
) -> None:
    run: Any = SimpleNamespace(**{"evals": 0, "seconds": 0.0, **spent})
    assert LearningRate(ZOConfig(learning_rate=1.0, **told), steps)(3, run) == pytest.approx(rate)


def test_runs_log_it_and_resume_it(tmp_path: Path) -> None:
    told: dict[str, Any] = {"lr_scheduler_type": "cosine", "warmup_steps": 2.0, "max_steps": 6}
    ZOTrainer(args=small(tmp_path / "a", **told)).train()
    whole = ZOTrainer(args=small(tmp_path / "a", resume_from_checkpoint=True, **told))
    whole.train()
    rates = [line["learning_rate"] for line in whole.run.steps]
    schedule = make_schedule(whole.args, 6)
    assert rates == [whole.args.learning_rate * schedule(step) for step in range(6)]
    assert rates[0] == 0.0 < rates[1] < rates[2] > rates[3]
    assert whole.run.steps[0]["move"] == [] or not any(c for _, c in whole.run.steps[0]["move"])


def test_a_budget_of_seconds_is_a_thousand_parts(tmp_path: Path) -> None:
    args = small(tmp_path / "run", max_seconds=1000.0, lr_scheduler_type="constant_with_warmup")
    args.warmup_steps = 0.5
    schedule = make_schedule(args, PARTS)
    assert [schedule(at) for at in (0, 250.0, 500, 900)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"lr_scheduler_kwargs": {"cycles": 2}}, r"'cycles': not of linear: it takes none"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pwer": 2}},
            r"'pwer': not of polynomial: it takes lr_end, power",
        ),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, r"lr_end"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, r"constant_with_warmup"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"num_decay_steps|num_stable_steps"),
    ],
)
def test_what_a_scheduler_does_not_take(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    args = small(tmp_path / "run", max_steps=3, **told)
    with pytest.raises(UserError, match=message):
        ZOTrainer(args=args).train()
    assert not (tmp_path / "run").exists()
