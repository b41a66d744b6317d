"""zoobj.paired and zoobj.accounting: how sure a difference is, and how much a run's pairs said."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoobj.accounting import counted, signal
from zoobj.objective import Batch, Objective
from zoobj.objectives import F1, Accuracy
from zoobj.outcome import Outcome, judge
from zoobj.paired import kinds_of, mean_error, set_error
from zoobj.signal import Pair, compare

labels = st.integers(0, 2)


def batch_of(references: list[int], predictions: list[int]) -> Batch:
    return Batch(prompts=["?"] * len(references), references=references, predictions=predictions)


def fast_jackknife(
    value: Callable[[Batch], float], plus: Batch, minus: Batch, needs: Collection[str]
) -> float:
    def difference(keep: Sequence[int]) -> float:
        return value(plus.select(keep)) - value(minus.select(keep))

    return set_error(difference, kinds_of([plus, minus], needs))


def slow_jackknife(value: Callable[[Batch], float], plus: Batch, minus: Batch) -> float:
    """Every example left out in turn."""
    n = len(plus)
    without = []
    for out in range(n):
        keep = [i for i in range(n) if i != out]
        without.append(value(plus.select(keep)) - value(minus.select(keep)))
    return math.sqrt((n - 1) / n * sum((d - sum(without) / n) ** 2 for d in without))


class SetAccuracy(Accuracy):
    """Accuracy as if it had no scores."""

    decomposable = False

    def value(self, batch: Batch, scores: Any = None) -> float:
        return float(np.mean([float(x) for x in self.score(batch) if x is not None]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(labels, labels, labels), min_size=2, max_size=20))
def test_the_jackknife_is_that_over_every_example(rows: list[tuple[int, int, int]]) -> None:
    gold, a, b = (list(column) for column in zip(*rows, strict=True))
    plus, minus = batch_of(gold, a), batch_of(gold, b)
    objective = F1()
    found = fast_jackknife(objective.value, plus, minus, objective.needs)
    if len(set(rows)) <= 32:
        assert found == pytest.approx(slow_jackknife(objective.value, plus, minus), abs=1e-12)


@given(st.lists(st.tuples(labels, labels, labels), min_size=2, max_size=30))
def test_of_a_mean_both_ways_agree(rows: list[tuple[int, int, int]]) -> None:
    """(n - 1) / n sum (D_(i) - mean)^2 of a mean is s^2 / n, exactly."""
    gold, a, b = (list(column) for column in zip(*rows, strict=True))
    plus, minus = batch_of(gold, a), batch_of(gold, b)
    scores = [Accuracy().score(side) for side in (plus, minus)]
    pairs = [(x, y) for x, y in zip(*scores, strict=True) if x is not None and y is not None]
    expected = mean_error(pairs)
    if len(set(rows)) <= 32:
        found = fast_jackknife(SetAccuracy().value, plus, minus, {"predictions"})
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("objective", [F1(), F1(average="micro"), SetAccuracy(), Accuracy()])
def test_it_is_what_a_brute_force_bootstrap_finds(objective: Objective) -> None:
    rng = np.random.default_rng(1)
    n = 200
    gold = rng.choice(3, n, p=[0.5, 0.3, 0.2]).tolist()
    sides = []
    for right in (0.75, 0.6):
        kept = rng.random(n) < right
        sides.append(np.where(kept, gold, rng.integers(0, 3, n)).tolist())
    plus, minus = (batch_of(gold, side) for side in sides)
    outcomes = (judge(objective, plus), judge(objective, minus))
    error = compare(objective, *outcomes, errors=True).error
    picks = rng.integers(n, size=(600, n)).tolist()
    resampled = [
        objective.value(plus.select(pick)) - objective.value(minus.select(pick)) for pick in picks
    ]
    assert error == pytest.approx(float(np.std(resampled)), rel=0.12)


def test_many_kinds_are_left_out_in_groups() -> None:
    """Distinct texts: at most 64 calls, and near the jackknife over all of them."""
    rng = np.random.default_rng(2)
    n, calls = 160, [0]
    hits = rng.random((2, n)) < np.array([[0.7], [0.5]])

    def value(batch: Batch) -> float:
        calls[0] += 1
        assert batch.completions is not None
        return float(np.mean([text.startswith("yes") for text in batch.completions]))

    sides = [
        Batch(
            prompts=["?"] * n,
            references=[[""]] * n,
            completions=[f"{'yes' if hit else 'no'} {i}" for i, hit in enumerate(row)],
        )
        for row in hits
    ]
    found = fast_jackknife(value, *sides, {"completions"})
    assert calls[0] == 64
    assert found == pytest.approx(slow_jackknife(value, *sides), rel=0.3)


def test_one_example_has_no_error() -> None:
    assert math.isnan(mean_error([(1.0, 0.0)]))
    one = batch_of([1], [1])
    assert math.isnan(fast_jackknife(F1().value, one, one, {"predictions"}))


def test_a_subset_that_can_not_be_scored_has_no_error() -> None:
    class Picky(SetAccuracy):
        def value(self, batch: Batch, scores: Any = None) -> float:
            if len(batch) < 3:
                raise ValueError("too few")
            return super().value(batch)

    plus, minus = batch_of([0, 1, 2], [0, 1, 1]), batch_of([0, 1, 2], [0, 0, 1])
    pair = compare(Picky(), judge(Picky(), plus), judge(Picky(), minus), errors=True)
    assert pair.plus - pair.minus == pytest.approx(1 / 3)
    assert math.isnan(pair.error)


# What a pair counts ---------------------------------------------------------------------------


@given(st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=20))
def test_flips_go_up_or_down(rows: list[tuple[int, int, int]]) -> None:
    gold, a, b = (list(column) for column in zip(*rows, strict=True))
    sides = [judge(Accuracy(), batch_of(gold, side)) for side in (a, b)]
    pair = compare(Accuracy(), *sides)
    assert pair.up == sum(x == g and y != g for g, x, y in rows)
    assert pair.down == sum(x != g and y == g for g, x, y in rows)
    assert pair.flips == pair.up + pair.down <= pair.changed == sum(x != y for _, x, y in rows)
    assert pair.plus - pair.minus == pytest.approx((pair.up - pair.down) / len(rows))
    whole = compare(F1(), *(judge(F1(), outcome.batch) for outcome in sides))
    assert (whole.up, whole.down, whole.flips) == (pair.up, pair.down, pair.changed)


def test_completions_that_change_count_where_both_could_be_scored() -> None:
    batches = [
        Batch(prompts=["?"] * 3, references=[["x"]] * 3, completions=texts)
        for texts in (["a", "b", "c"], ["a", "d", "e"])
    ]
    sides = [Outcome(batches[0], [1.0, 0.0, None], 0.5), Outcome(batches[1], [1.0, 0.0, 1.0], 0.5)]
    pair = compare(Objective(), *sides)
    assert (pair.n, pair.failed, pair.changed, pair.flips) == (2, 1, 1, 0)


# A run's accounts -----------------------------------------------------------------------------


def line(pairs: list[Pair]) -> dict[str, Any]:
    return {
        "signal": counted(pairs),
        "tie": all(pair.tie for pair in pairs),
        "flips": sum(pair.flips for pair in pairs),
        "n": sum(pair.n for pair in pairs),
    }


def test_the_accounts_of_a_run() -> None:
    steps = [
        line([Pair(0.5, 0.25, 8, 0, 2, 2, 0, 3, 0.1), Pair(0.5, 0.5, 8, 0, 2, 1, 1, 4, 0.1)]),
        line([Pair(math.nan, math.nan, 0, 8, 0)]),
        line([Pair(0.5, 0.5, 8, 0, 0, 0, 0, 0, 0.0)]),
    ]
    assert steps[0]["signal"] == {
        "pairs": 2,
        "ties": 1,
        "lost": 0,
        "up": 3,
        "down": 1,
        "changed": 7,
        "squares": 0.0625,
        "noise": pytest.approx(0.02),
    }
    told = signal(steps)
    assert told.tie_rate == pytest.approx(1 / 3)
    assert told.flip_rate == pytest.approx(4 / 24)
    assert told.wasted == pytest.approx(3 / 4)
    assert told.snr == pytest.approx(math.sqrt(0.0625 / 0.02 - 1))


def test_the_accounts_of_nothing() -> None:
    told = signal([])
    assert (told.tie_rate, told.flip_rate, told.wasted) == (0, 0, 0)
    assert math.isnan(told.snr)


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_ratio_is_that_of_effect_and_chance(effect: float) -> None:
    """Pairs whose sides differ by a known effect: snr = sd of the effects over their error."""
    rng = np.random.default_rng(3)
    pairs = []
    for number in range(400):
        shift = effect * (1 if number % 2 else -1)
        scores = [(rng.random(64) < p).astype(float).tolist() for p in (0.5 + shift, 0.5 - shift)]
        empty = Batch(prompts=["?"] * 64, references=[[]] * 64, completions=[""] * 64)
        sides = [Outcome(empty, side, float(np.mean(side))) for side in scores]
        pairs.append(compare(Objective(), *sides, errors=True))
    expected = 2 * effect / math.sqrt(2 * (0.25 - effect**2) / 64)
    assert signal([line(pairs)]).snr == pytest.approx(expected, abs=0.35)
