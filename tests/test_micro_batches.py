"""A step's evaluation may span micro-batches: what comes of it is what one big batch gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from zoobj import ZOConfig, ZOTrainer

SIZES = (1, 3, 64)
SMALL = {
    "max_steps": 1,
    "eval_steps": 1,
    "directions": 2,
    "per_device_train_batch_size": 8,
    "max_train_samples": 32,
    "max_eval_samples": 4,
    "max_test_samples": 4,
    "max_new_tokens": 4,
    "disable_tqdm": True,
}


class Passes:
    """How many sequences each forward pass of a step had."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_prediction_step(self, *told: Any, examples: int, phase: str, **kwargs: Any) -> None:
        self.sizes += [examples] if phase == "train" else []


def after_a_step(out: Path, size: int, **more: Any) -> tuple[dict[str, Any], Any, list[int]]:
    """The step's line, what is tuned after it, and the sizes of its forward passes."""
    told = ZOConfig(**{**SMALL, **more}, per_device_eval_batch_size=size, output_dir=str(out))
    passes = Passes()
    trainer = ZOTrainer(args=told, callbacks=[passes])
    trainer.train()
    trainer.track.to(1, trainer.run)
    tuned = {name: p.detach().clone() for name, p in trainer.tuned.named_parameters()}
    return trainer.run.steps[0], tuned, passes.sizes


def in_all_sizes(tmp_path: Path, **more: Any) -> list[tuple[dict[str, Any], Any]]:
    """Line and weights, in micro-batches of each size; they are the sizes that were asked for."""
    found, counts = [], []
    for size in SIZES:
        line, tuned, sizes = after_a_step(tmp_path / str(size), size, **more)
        found.append((line, tuned))
        counts.append(len(sizes))
        assert max(sizes) <= size
    assert counts[0] > 2 * counts[1] > 2 * counts[2]
    return found


runs = pytest.mark.usefixtures("no_statistics")


@runs
@pytest.mark.parametrize("tune", ["full", "steer"])
@pytest.mark.parametrize(
    ("task", "objective"), [("squad_mini", "token_f1"), ("question_mini", "accuracy")]
)
def test_of_discrete_scores_the_step_is_the_same_bits(
    task: str, objective: str, tune: str, tmp_path: Path
) -> None:
    """Logits differ by rounding; but for two tokens or labels that tie within it, no score does."""
    told = {"task": task, "objective": objective, "tune": tune, "tie_breaker": "none"}
    more = {"directions": 3, "per_device_train_batch_size": 16}  # enough for some to differ
    (line, tuned), *others = in_all_sizes(tmp_path, **told, **more)
    assert line["move"]
    for other, weights in others:
        assert other["move"] == line["move"]
        assert other["values"] == line["values"]
        assert all(torch.equal(weights[name], param) for name, param in tuned.items())


@runs
@pytest.mark.parametrize(
    "more",
    [
        {"tune": "full"},
        {"tune": "full", "normalize": False, "learning_rate": 1e-4},
        {"tune": "full", "task": "question_mini"},
        {"tune": "steer"},
        {"tune": "steer", "task": "question_mini"},
        {"tune": "steer", "task": "question_mini", "objective": "accuracy"},  # with margins
        {"method": "forward-grad"},
        {"method": "fo-sgd", "directions": 1},
        {"method": "lomo", "directions": 1},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_of_likelihoods_it_is_the_same_to_rounding(more: dict[str, Any], tmp_path: Path) -> None:
    (line, tuned), *others = in_all_sizes(tmp_path, **{"objective": "loglikelihood", **more})
    for other, weights in others:
        assert other["values"] == pytest.approx(line["values"], rel=1e-5)
        assert [seed for seed, _ in other["move"]] == [seed for seed, _ in line["move"]]
        ours, theirs = ([c for _, c in x["move"]] for x in (line, other))
        assert theirs == pytest.approx(ours, abs=1e-4 * max(map(abs, ours), default=0.0))
        for name, param in tuned.items():
            assert torch.allclose(weights[name], param, rtol=0, atol=1e-6), name
