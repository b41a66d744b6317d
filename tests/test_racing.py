"""--race and --grow_batch: what stops early was decided, what ties grows; no score is lost."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import untimed
from small import Interrupting

from zoobj import Batch, Objective, UserError, ZOConfig, ZOTrainer, as_objective
from zoobj.assemble import make_method
from zoobj.interrupts import Interrupted
from zoobj.objective import Score
from zoobj.objectives import F1, Accuracy
from zoobj.outcome import judge
from zoobj.racing import BatchGrowth, decided, followed, looks
from zoobj.signal import Pair, compare
from zoobj.stopping import budget

# The rule -------------------------------------------------------------------------------------


@given(st.integers(1, 1000))
def test_looks_end_with_all_examples(size: int) -> None:
    found = looks(size)
    assert len(found) <= 4
    assert found == sorted(set(found))
    assert found[-1] == size
    assert all(b - a >= 4 for a, b in zip([0, *found], found[:-1], strict=False))


class Normal(Objective):
    """Scores are what the batch holds."""

    name, needs, bounds = "normal", frozenset[str](), (None, None)

    def score(self, batch: Batch) -> list[Score]:
        return list(batch.rows["score"])


def side(scores: Any) -> Any:
    n = len(scores)
    rows = {"score": [float(score) for score in scores]}
    return judge(Normal(), Batch(prompts=["?"] * n, references=[0] * n, rows=rows))


@pytest.mark.parametrize(("z", "error"), [(2.36, 0.05), (1.96, 0.126)])
def test_four_looks_are_wrong_as_often_as_pocock_says(z: float, error: float) -> None:
    """Pairs without any difference; 12.6 % at 1.96: Armitage, McPherson, Rowe 1969, Table 2."""
    rng, size, wrong, trials = np.random.default_rng(1), 240, 0, 2000
    for _ in range(trials):
        differences = rng.normal(size=size)
        for seen in looks(size):
            part = differences[:seen]
            se = float(part.std(ddof=1)) / math.sqrt(seen)
            if decided(Pair(float(part.mean()), 0.0, seen, 0, 0, error=se), z):
                wrong += 1
                break
    assert wrong / trials == pytest.approx(error, abs=0.016)  # three standard errors of 5 %


def test_a_pair_of_which_nothing_is_known_is_not_decided() -> None:
    for pair in (
        Pair(math.nan, math.nan, 0, 4, 0),
        Pair(1.0, 0.0, 1, 0, 1),
        Pair(0.5, 0.5, 4, 0, 0),
    ):
        assert not decided(pair, 2.0)
    assert decided(compare(Normal(), side([1] * 4), side([0] * 4), errors=True), 2.0)
    assert not decided(compare(Normal(), side([0] * 4), side([0] * 4), errors=True), 2.0)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=2, max_size=12), st.data())
def test_parts_of_a_batch_add_up(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    """Of a sum too, with something set-level beside it."""
    gold, said = (list(column) for column in zip(*rows, strict=True))
    whole = Batch(
        prompts=["?"] * len(rows),
        references=gold,
        predictions=said,
        rows={"number": list(range(len(rows)))},
    )
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = whole.select(range(cut)), whole.select(range(cut, len(rows)))
    assert parts[0].followed_by(parts[1]) == whole
    for objective in (Accuracy(), as_objective([Accuracy(), {"name": F1(), "weight": 0}])):
        first, rest = (judge(objective, part) for part in parts)
        assert followed(objective, first, whole, rest) == judge(objective, whole)


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=30), st.integers(1, 9))
def test_a_batch_grows_while_most_pairs_tie(steps: list[list[bool]], most: int) -> None:
    growth, expected = BatchGrowth(most), 1
    for ties in steps:
        growth.update([Pair(0.5, 0.5 if tie else 0.25, 4, 0, 0) for tie in ties])
        expected = expected * 2 if sum(ties) > len(ties) / 2 else expected // 2
        expected = min(max(expected, 1), most)
        assert growth.times == expected
    resumed = BatchGrowth(most)
    resumed.load_state_dict(json.loads(json.dumps(growth.state_dict())))
    assert resumed.times == growth.times


# Runs -----------------------------------------------------------------------------------------


def small(output_dir: Path, **more: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "steer",
        "task": "question_mini",
        "eps": 0.3,
        "directions": 3,
        "per_device_train_batch_size": 16,
        "max_steps": 4,
        "eval_steps": 4,
        "max_train_samples": 128,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


runs = pytest.mark.usefixtures("no_statistics")


@runs
@pytest.mark.parametrize(
    ("objective", "tune"), [("accuracy", "steer"), ("f1", "steer"), ("loglikelihood", "full")]
)
def test_a_race_that_nothing_wins_is_the_run_without(
    tmp_path: Path, objective: str, tune: str
) -> None:
    """In parts or at once, the same scores: one by one, of a set, by log-probabilities."""
    own = {"steer": {"max_steps": 2}, "full": {"eps": 5e-3, "directions": 1, "max_steps": 2}}[tune]
    for name, race in (("raced", 1e9), ("plain", None)):
        args = small(tmp_path / name, objective=objective, tune=tune, race=race, **own)
        ZOTrainer(args=args).train()
    for line, other in zip(untimed(tmp_path / "raced"), untimed(tmp_path / "plain"), strict=True):
        assert line["values"] == pytest.approx(other["values"], rel=1e-6)
        assert [seed for seed, _ in line["move"]] == [seed for seed, _ in other["move"]]
        assert line["n"] == other["n"]
        assert line["evals"] == other["evals"]
        assert line["calls"] == 4 * len(line["values"])


def worse(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Which of the labels is predicted: most examples agree on which side is higher."""
    return [float(len(text)) for text in completions]


@runs
def test_what_is_decided_is_scored_no_further(tmp_path: Path) -> None:
    trainer = ZOTrainer(objective=worse, args=small(tmp_path / "run", race=1.0, max_steps=2))
    seen: list[int] = []
    scored = trainer.scorer.population
    trainer.scorer.population = lambda members, examples, *rest: (  # type: ignore[method-assign]
        seen.append(len(members) * len(examples)) or scored(members, examples, *rest)
    )
    result = trainer.train()
    lines = untimed(tmp_path / "run")
    assert result.evals == sum(seen) < 2 * 6 * 16
    assert trainer.run.calls == 1 + len(trainer.run.evaluations) + sum(x["calls"] for x in lines)
    for line in lines:
        assert 6 * 4 <= 2 * line["n"] <= 6 * 16


@runs
@pytest.mark.parametrize(
    ("at", "more"), [(4, {"tune": "full", "eps": 5e-3}), (11, {"grow_batch": 2})]
)
def test_a_race_that_is_cut_off_ends_as_it_would_have(
    tmp_path: Path, at: int, more: dict[str, Any]
) -> None:
    """Within a step, at whatever look; no score is asked for twice."""
    told = {"race": 1.5, "tie_breaker": "margin", "max_steps": 2, "directions": 2, **more}
    told |= {"per_device_train_batch_size": 8}
    whole, cut, rest = (Interrupting(call, levels=7) for call in (-1, at, -1))
    ZOTrainer(objective=whole, args=small(tmp_path / "whole", **told)).train()
    with pytest.raises(Interrupted):
        ZOTrainer(objective=cut, args=small(tmp_path / "run", **told)).train()
    again = ZOConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    ZOTrainer(objective=rest, args=again).train()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    assert cut.calls + rest.calls - 1 == whole.calls


@runs
@pytest.mark.parametrize("more", [{"race": 1.0}, {"grow_batch": 2}])
def test_a_budget_is_in_scored_examples(tmp_path: Path, more: dict[str, Any]) -> None:
    """Steps differ in what they cost; the learning rate falls with what is spent."""
    more = {"directions": 1, "max_steps": None, **more}
    args = small(tmp_path / "run", max_evals=160, **more)
    result = ZOTrainer(objective=worse, args=args).train()
    lines = untimed(tmp_path / "run")
    assert result.stop_reason == "max_evals"
    most = 2 * 16 * lines[-1].get("growth", {"times": 1})["times"]
    assert 160 - most < result.evals <= 160
    spent = [0, *(line["evals"] for line in lines)]
    for line, before in zip(lines, spent, strict=False):
        assert line["learning_rate"] == pytest.approx(0.065 * (1 - before / 160))
    with pytest.raises(UserError, match="--max_evals 31 buys no step"):
        budget(small(tmp_path / "other", max_evals=31, **more))


@runs
def test_minibatches_grow_where_all_ties(tmp_path: Path) -> None:
    def nothing(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.5] * len(completions)

    args = small(tmp_path / "run", grow_batch=4, directions=1, per_device_train_batch_size=4)
    ZOTrainer(objective=nothing, args=args).train()
    assert [line["n"] for line in untimed(tmp_path / "run")] == [4, 8, 16, 16]
    with pytest.raises(UserError, match="lower per_device_train_batch_size or grow_batch"):
        ZOTrainer(args=small(tmp_path / "other", grow_batch=9)).train()


@pytest.mark.parametrize("method", ["zo-conservative", "one-point", "zo-svrg", "population"])
def test_methods_that_compare_across_pairs_do_not_race(method: str) -> None:
    with pytest.raises(UserError, match=f"--race 2.0: method '{method}' has no use for it"):
        make_method(ZOConfig(method=method, race=2.0))
