"""Real runs with every default: units of a reward play no part, unbalanced classes learn."""

import json
from pathlib import Path
from typing import Any

import pytest

from zoobj import Batch, Objective, ZOConfig, ZOTrainer
from zoobj.objective import Score
from zoobj.objectives import TokenF1
from zoobj.outcome import Outcome
from zoobj.signal import together

pytestmark = pytest.mark.usefixtures("no_statistics")


class Scaled(Objective):
    """Token F1 in another unit."""

    name, bounds = "scaled", (0.0, None)

    def __init__(self, unit: float):
        self.unit, self.score_one = unit, TokenF1().score

    def score(self, batch: Batch) -> list[Score]:
        return [None if score is None else self.unit * score for score in self.score_one(batch)]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["auto", "full"])
def test_a_reward_in_another_unit_is_the_same_run(tmp_path: Path, tune: str) -> None:
    """Times 1, 100 and 0.01: the same moves, up to rounding, and the same eps."""
    logs = []
    for unit in (1.0, 100.0, 0.01):
        args = ZOConfig(
            output_dir=str(tmp_path / str(unit)),
            tune=tune,
            max_steps=8,
            max_eval_samples=16,
            max_test_samples=16,
            disable_tqdm=True,
        )
        result = ZOTrainer(objective=Scaled(unit), args=args).train()
        logs.append((unit, result, untimed(tmp_path / str(unit))))
    (_, first, lines), *others = logs
    assert sum(len(line["move"]) for line in lines) >= 8
    assert any(line["flips"] for line in lines)
    for unit, result, found in others:
        assert result.before == pytest.approx(unit * first.before)
        assert result.after == pytest.approx(unit * first.after)
        for line, other in zip(lines, found, strict=True):
            assert [seed for seed, _ in other["move"]] == [seed for seed, _ in line["move"]]
            mine, theirs = ([c for _, c in one["move"]] for one in (line, other))
            assert theirs == pytest.approx(mine, rel=1e-6)
            assert other["values"] == pytest.approx([unit * value for value in line["values"]])
            for key in ("flips", "tie", "eps", "learning_rate", "evals"):
                assert other[key] == line[key], key


def outcome(scores: list[float]) -> Outcome:
    n = len(scores)
    batch = Batch(prompts=["?"] * n, references=[[]] * n, completions=[""] * n)
    return Outcome(batch, [*scores], sum(scores) / n)


@pytest.mark.parametrize("unit", [1.0, 100.0, 0.01, 1e-200])
def test_what_only_rounding_tells_apart_ties(unit: float) -> None:
    """0.1 + 0.2 and 0.3, 2/3 + 1/3 and 1: as a run's first difference it would be a full step."""
    for scores in (([0.1, 0.2], [0.3, 0.0]), ([2 / 3, 1 / 3], [1.0, 0.0])):
        group = together(Objective(), [outcome([unit * s for s in some]) for some in scores])
        assert group.tie
        assert group.flips == 2
    real = together(Objective(), [outcome([unit]), outcome([unit * (1 + 1e-9)])])
    assert not real.tie


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["accuracy", "f1"])
@pytest.mark.parametrize("seed", [1, 2])
def test_unbalanced_classes_improve_without_collapse(
    tmp_path: Path, objective: str, seed: int
) -> None:
    """Six classes, the largest 36 %: both metrics rise on held-out questions, on all labels."""
    args = ZOConfig(
        output_dir=str(tmp_path / "run"),
        task="question_mini",
        objective=objective,
        max_evals=3200,
        eval_steps=25,
        max_eval_samples=100,
        seed=seed,
        disable_tqdm=True,
    )
    result = ZOTrainer(args=args).train()
    assert result.after > result.before + 0.05
    assert result.labels is not None
    assert result.labels["top"] < 0.8
    assert result.labels["distinct"] >= 4
