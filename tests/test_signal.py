"""zoobj.signal: what can't be scored, pairs and ties, scales, and the paired statistics."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, ScoreError
from zoobj.objectives import F1
from zoobj.outcome import OnError, Outcome, judge
from zoobj.signal import RunningScale, compare, loss, paired_bootstrap, verdict


class Given(Objective):
    """Scores are what the batch holds in the column ``score``."""

    name = "given"
    needs = frozenset()

    def score(self, batch: Batch) -> list[Score]:
        return list(batch.rows["score"])


class Error(Given):
    name = "error"
    higher_is_better = False
    bounds = (0.0, 9.0)


class Whole(Objective):
    """A set-level value: the largest score of the column; NaN where there is none."""

    name = "whole"
    needs = frozenset()
    decomposable = False

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        known = [s for s in batch.rows["score"] if s is not None]
        return max(known) if known else math.nan


class WholeError(Whole):
    higher_is_better = False
    bounds = (0.0, 9.0)


def batch(scores: Sequence[Score]) -> Batch:
    n = len(scores)
    return Batch(prompts=[""] * n, references=[0] * n, rows={"score": list(scores)})


def outcome(scores: Sequence[Score], objective: Objective | None = None) -> Outcome:
    return judge(objective or Given(), batch(scores))


NOT_SCORES = [None, math.nan, math.inf, -math.inf]
scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, *NOT_SCORES]), min_size=1, max_size=12)


def is_known(score: Score) -> bool:
    return score is not None and math.isfinite(score)


# judge ----------------------------------------------------------------------------------------


@given(scores)
def test_drop_is_the_mean_of_what_could_be_scored(given_scores: list[Score]) -> None:
    result = judge(Given(), batch(given_scores), "drop")
    known = [s for s in given_scores if s is not None and math.isfinite(s)]
    assert result.failed == len(given_scores) - len(known)
    assert result.scores == [s if is_known(s) else None for s in given_scores]
    assert result.value == pytest.approx(np.mean(known) if known else math.nan, nan_ok=True)
    assert result.error is None


@given(scores)
def test_floor_gives_failed_examples_the_worst_value(given_scores: list[Score]) -> None:
    for objective, worst in ((Given(), 0.0), (Error(), 9.0)):
        result = judge(objective, batch(given_scores), "floor")
        filled = [s if s is not None and math.isfinite(s) else worst for s in given_scores]
        assert result.scores == filled
        assert result.value == pytest.approx(np.mean(filled))
        assert result.failed == 0


@given(scores)
def test_raise_stops_at_the_first_failure(given_scores: list[Score]) -> None:
    bad = sum(not is_known(s) for s in given_scores)
    if not bad:
        assert judge(Given(), batch(given_scores), "raise") == outcome(given_scores)
        return
    with pytest.raises(UserError, match=f"'given' could not score {bad} of {len(given_scores)} "):
        judge(Given(), batch(given_scores), "raise")


@pytest.mark.parametrize(("objective", "worst"), [(Whole(), 0.0), (WholeError(), 9.0)])
def test_policies_of_a_set_level_value(objective: Objective, worst: float) -> None:
    fine, broken = batch([0.25, 1.0]), batch([None, None])
    policies: tuple[OnError, ...] = ("drop", "floor", "raise")
    assert [judge(objective, fine, policy).value for policy in policies] == [1.0] * 3
    assert judge(objective, fine).scores is None
    assert judge(objective, fine).failed == 0
    assert math.isnan(judge(objective, broken, "drop").value)
    assert judge(objective, broken, "drop").failed == 2
    assert judge(objective, broken, "floor").value == worst
    assert judge(objective, broken, "floor").failed == 0
    with pytest.raises(UserError, match="could not score 2 of 2"):
        judge(objective, broken, "raise")


@pytest.mark.parametrize("objective", [Given(), Whole()])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ScoreError("f raised: mend it"), "f raised: mend it"),
        (KeyError("answer"), "KeyError: 'answer'"),
    ],
)
def test_an_exception_is_a_failure_with_a_reason(
    objective: Objective, error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> float:
        raise error

    method = "score" if objective.decomposable else "value"
    before = getattr(type(objective), method)
    monkeypatch.setattr(
        type(objective), method, lambda self, b, s=None: broken() if s is None else before(self, b)
    )
    if objective.decomposable:
        # The mean of scores that are known doesn't ask the objective again.
        monkeypatch.setattr(Given, "value", Objective.value)
    result = judge(objective, batch([0.5, 0.5]), "drop")
    assert math.isnan(result.value)
    assert result.failed == 2
    assert text in (result.error or "")
    assert objective.name in (result.error or "") or isinstance(error, ScoreError)
    floored = judge(objective, batch([0.5, 0.5]), "floor")
    assert (floored.value, floored.failed) == (0.0, 0)
    assert text in (floored.error or "")
    with pytest.raises(UserError, match=text.partition(":")[0]):
        judge(objective, batch([0.5, 0.5]), "raise")


def test_too_few_scores_are_an_error_and_no_number() -> None:
    short = dataclasses.replace(batch([0.5, 0.5]), rows={"score": [0.5]})
    result = judge(Given(), short)
    assert result.scores == [None, None]
    assert "'given' returned 1 scores for 2 examples" in (result.error or "")


@pytest.mark.parametrize("policy", ["drop", "floor"])
def test_scores_that_are_no_numbers(policy: OnError) -> None:
    result = judge(Given(), batch(["good", 1.0]), policy)  # type: ignore[list-item]
    assert "'given': TypeError" in (result.error or "")


@pytest.mark.parametrize("objective", [Given(), Whole()])
def test_without_bounds_floor_makes_up_no_number(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(objective), "bounds", (None, 1.0))
    result = judge(objective, batch([None]), "floor")
    assert math.isnan(result.value)
    assert result.failed == 1
    assert judge(objective, batch([0.5]), "floor").value == 0.5


# Pairs ----------------------------------------------------------------------------------------

pairs = st.lists(
    st.tuples(*[st.sampled_from([0.0, 0.25, 1.0, None, math.nan])] * 2), min_size=1, max_size=12
)


@given(pairs)
def test_a_failure_leaves_both_sides_of_a_pair(both: list[tuple[Score, Score]]) -> None:
    plus, minus = (outcome([pair[side] for pair in both]) for side in (0, 1))
    pair = compare(Given(), plus, minus)
    kept = [(a, b) for a, b in both if is_known(a) and is_known(b)]
    assert (pair.n, pair.failed) == (len(kept), len(both) - len(kept))
    assert pair.flips == sum(a != b for a, b in kept)
    for side, value in enumerate((pair.plus, pair.minus)):
        expected = math.fsum(p[side] or 0.0 for p in kept) / len(kept) if kept else math.nan
        assert value == pytest.approx(expected, nan_ok=True)
    assert pair.tie == (bool(kept) and pair.plus == pair.minus)


@given(pairs)
def test_a_pair_turned_round(both: list[tuple[Score, Score]]) -> None:
    plus, minus = (outcome([pair[side] for pair in both]) for side in (0, 1))
    one, other = compare(Given(), plus, minus), compare(Given(), minus, plus)
    assert str((one.plus, one.minus)) == str((other.minus, other.plus))  # as text: NaN is NaN
    assert (one.n, one.failed, one.flips, one.tie) == (
        other.n,
        other.failed,
        other.flips,
        other.tie,
    )


def test_a_tie_may_hide_flips() -> None:
    pair = compare(Given(), outcome([1.0, 0.0, 1.0]), outcome([0.0, 1.0, 1.0]))
    assert (pair.tie, pair.flips) == (True, 2)


def test_a_pair_without_a_value_is_no_tie() -> None:
    for objective in (Given(), Whole()):
        pair = compare(objective, outcome([1.0], objective), outcome([None], objective))
        assert (pair.n, pair.failed, pair.tie) == (0, 1, False)
        assert math.isnan(pair.plus)
        assert math.isnan(pair.minus)


@pytest.mark.parametrize(
    ("column", "plus", "minus"),
    [
        ("predictions", [0, 1, 1], [0, 0, 1]),
        ("completions", ["a", "b", "c"], ["a", "B", "c"]),
        ("reference_logprob", [-1.0, -2.0, -3.0], [-1.0, -2.5, -3.0]),
    ],
)
def test_flips_of_a_set_level_objective_are_changed_outputs(
    column: str, plus: list[object], minus: list[object]
) -> None:
    sides = [
        judge(Whole(), dataclasses.replace(batch([0.5, 0.5, 0.5]), **{column: side}))
        for side in (plus, minus)
    ]
    pair = compare(Whole(), *sides)
    assert (pair.flips, pair.tie, pair.n, pair.failed) == (1, True, 3, 0)


# Sign -----------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_less_loss_is_better(a: float, b: float) -> None:
    assume(a < b)
    assert loss(Given(), a) > loss(Given(), b)
    assert loss(Error(), a) < loss(Error(), b)


def test_nothing_but_loss_knows_which_way_is_better() -> None:
    """Values, pairs and intervals are the objective's own, whichever way is better."""
    before, after = [0.0, 0.25, None, 1.0], [0.5, 0.75, 0.5, 1.0]
    results = [
        (
            compare(objective, outcome(after, objective), outcome(before, objective)),
            paired_bootstrap(objective, outcome(before, objective), outcome(after, objective)),
        )
        for objective in (Given(), Error())
    ]
    assert results[0] == results[1]
    assert results[0][1][0] >= 0


# RunningScale ---------------------------------------------------------------------------------

differences = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6)), max_size=30
)


@given(differences, st.floats(0.0, 0.99))
def test_scale_is_the_decaying_root_mean_square(values: list[float], decay: float) -> None:
    scale, seen = RunningScale(decay), []
    for value in values:
        got = scale.normalise(value)
        if value == 0:
            assert got == 0.0
            continue
        seen.append(value)
        weights = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
        rms = math.sqrt(np.average(np.square(seen), weights=weights))
        assert got == pytest.approx(value / rms, rel=1e-9)


@given(differences)
def test_ties_leave_no_trace(values: list[float]) -> None:
    with_ties, without = RunningScale(), RunningScale()
    got = [with_ties.normalise(v) for value in values for v in (value, 0.0, -0.0)]
    assert [g for g in got if g] == [without.normalise(v) for v in values if v]
    assert (with_ties.square, with_ties.weight) == (without.square, without.weight)


@given(differences, st.floats(1e-6, 1e6))
def test_units_do_not_matter(values: list[float], unit: float) -> None:
    one, other = RunningScale(), RunningScale()
    for value in values:
        assert other.normalise(unit * value) == pytest.approx(one.normalise(value), rel=1e-9)


@given(differences, st.floats(0.0, 0.99), st.floats(1e-3, 1e9))
def test_no_difference_is_beyond_the_cap(values: list[float], decay: float, last: float) -> None:
    scale = RunningScale(decay)
    got = [scale.normalise(value) for value in [*values, last, -last]]
    assert max(map(abs, got)) <= (1 + 1e-9) / math.sqrt(1 - decay)


def test_the_cap_is_reached() -> None:
    scale = RunningScale(0.9)
    for _ in range(200):
        scale.normalise(1e-6)
    assert scale.normalise(1.0) == pytest.approx(1 / math.sqrt(0.1), rel=1e-6)


@pytest.mark.parametrize("value", [1e-200, 5e-324, 1e200, -1e300])
def test_differences_beyond_floats_do_no_harm(value: float) -> None:
    scale = RunningScale()
    assert scale.normalise(value) == 0.0
    assert scale.normalise(2.0) == 1.0


# Paired statistics ----------------------------------------------------------------------------


def normal(seed: int, n: int, mean: float) -> tuple[list[Score], list[Score]]:
    """Scores before and after whose differences are normal; the scores themselves vary more."""
    rng = np.random.default_rng(seed)
    before = 10 * rng.normal(size=n)
    return before.tolist(), (before + rng.normal(mean, 1.0, size=n)).tolist()


@pytest.mark.parametrize("n", [30, 200])
def test_interval_agrees_with_scipy(n: int) -> None:
    before, after = normal(1, n, 0.3)
    low, high = paired_bootstrap(Given(), outcome(before), outcome(after))
    deltas = np.subtract(after, before)  # type: ignore[arg-type]
    reference = scipy.stats.bootstrap(
        (deltas,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    # A quantile of 10,000 draws is uncertain by about 3 % of the standard error.
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.04 * width)
    assert high == pytest.approx(reference.high, abs=0.04 * width)
    assert high - low == pytest.approx(2 * 1.96 * deltas.std() / math.sqrt(n), rel=0.06)


def test_pairing_takes_the_examples_own_differences_away() -> None:
    """Differences are ten times smaller than scores: unpaired, nothing would show."""
    before, after = normal(3, 100, 0.5)
    low, high = paired_bootstrap(Given(), outcome(before), outcome(after))
    assert 0 < low < high < 1


def test_intervals_cover_the_truth_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoobj.signal.RESAMPLES", 400)
    covered = 0
    for seed in range(300):
        before, after = normal(seed + 10, 40, 0.2)
        low, high = paired_bootstrap(Given(), outcome(before), outcome(after), seed)
        covered += low <= 0.2 <= high
    # Percentile intervals of 40 examples cover some 93.5 %; 300 trials have an error of 1.4 %.
    assert 0.89 <= covered / 300 <= 0.98


def test_a_seed_is_an_interval() -> None:
    before, after = normal(4, 20, 0.1)
    both = outcome(before), outcome(after)
    assert paired_bootstrap(Given(), *both) == paired_bootstrap(Given(), *both, seed=0)
    assert paired_bootstrap(Given(), *both) != paired_bootstrap(Given(), *both, seed=1)


def test_examples_that_failed_on_either_side_do_not_count() -> None:
    before, after = normal(5, 40, 0.1)
    alone = paired_bootstrap(Given(), outcome(before), outcome(after))
    more = outcome([*before, None, 5.0]), outcome([*after, 1.0, math.nan])
    assert paired_bootstrap(Given(), *more) == alone


def test_nothing_scored_is_no_interval() -> None:
    low, high = paired_bootstrap(Given(), outcome([None, 1.0]), outcome([1.0, None]))
    assert math.isnan(low)
    assert math.isnan(high)
    assert verdict(Given(), (low, high)) == "not shown"


def choices(predictions: Sequence[int], gold: Sequence[int]) -> Outcome:
    n = len(gold)
    made = Batch(prompts=[""] * n, references=list(gold), predictions=list(predictions))
    return judge(F1(average="binary"), made)


def test_interval_of_a_set_level_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoobj.signal.RESAMPLES_OF_SETS", 300)
    rng = np.random.default_rng(6)
    gold = rng.integers(2, size=120)
    before, after = (np.where(rng.random(120) < p, gold, 1 - gold) for p in (0.7, 0.85))
    low, high = paired_bootstrap(
        F1(average="binary"), choices(before.tolist(), gold), choices(after.tolist(), gold)
    )
    picks = np.random.default_rng(7).integers(120, size=(300, 120))
    expected = [
        f1_score(gold[pick], after[pick]) - f1_score(gold[pick], before[pick]) for pick in picks
    ]
    error = np.quantile(expected, [0.025, 0.975])
    # Quantiles of 300 draws each: uncertain by some 15 % of the standard error.
    assert (low, high) == pytest.approx(tuple(error), abs=0.15 * (error[1] - error[0]))


class Fussy(Whole):
    """As rank statistics do: no value for a set in which all scores are equal."""

    name = "fussy"

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        if len(set(batch.rows["score"])) == 1:
            raise ValueError("only one class")
        return float(np.mean(batch.rows["score"]))


def test_a_resample_without_a_value_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 4 has resamples of one score only; the run must not end without its result."""
    monkeypatch.setattr("zoobj.signal.RESAMPLES_OF_SETS", 200)
    sides = [outcome(s, Fussy()) for s in ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0])]
    low, high = paired_bootstrap(Fussy(), *sides)
    assert 0 <= low < high <= 1


@pytest.mark.filterwarnings("error")
def test_a_set_level_value_that_is_never_there() -> None:
    sides = [outcome([None, None], Whole()), outcome([0.5, 1.0], Whole())]
    interval = paired_bootstrap(Whole(), *sides)
    assert all(map(math.isnan, interval))
    assert verdict(Whole(), interval) == "not shown"


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_verdict_is_about_the_better_side_of_zero(a: float, b: float) -> None:
    low, high = sorted((a, b))
    up = "improved" if low > 0 else "worse" if high < 0 else "not shown"
    down = {"improved": "worse", "worse": "improved", "not shown": "not shown"}[up]
    assert verdict(Given(), (low, high)) == up
    assert verdict(Error(), (low, high)) == down
