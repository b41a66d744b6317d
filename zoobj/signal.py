"""Values -> losses: groups on the same examples, ties, paired statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoobj.objective import Batch, Objective, is_score
from zoobj.outcome import Outcome, judge
from zoobj.paired import kinds_of, mean_error, set_error

Verdict = Literal["improved", "not shown", "worse"]
_ROUNDING = 1e-12  # relative; a mean of thousands of scores is off by 1e-13
RESAMPLES = 10_000
RESAMPLES_OF_SETS = 1_000  # a set-level value is computed anew for each


def loss(objective: Objective, value: float) -> float:
    """What the engine minimises. The one place where the sign is flipped."""
    return -value if objective.higher_is_better else value


@dataclass(frozen=True)
class Group:
    """Offsets scored on the same examples; those that failed at one of them are left out of all.

    Attributes:
        values: of the offsets, over the same n examples; NaN if n is 0.
        n: examples that count.
        failed: examples that don't.
        flips: examples whose score (for a set-level objective: output) is not the same everywhere.
    """

    values: list[float]
    n: int
    failed: int
    flips: int

    @property
    def tie(self) -> bool:
        """Equal values: the offsets say nothing. One without values is no tie, but a failure."""
        return len(self.values) > 1 and all(value == self.values[0] for value in self.values)


def together(objective: Objective, outcomes: Sequence[Outcome]) -> Group:
    """Compare the outcomes of several offsets on the same examples."""
    size, known = len(outcomes[0].batch), [set(outcome.known) for outcome in outcomes]
    keep = sorted(set(range(size)).intersection(*known))
    columns = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    if len(columns) < len(outcomes):
        flips = len(_changed([outcome.batch for outcome in outcomes]))
    else:
        flips = sum(any(column[i] != columns[0][i] for column in columns) for i in keep)
    values = [value_over(objective, outcome, keep) for outcome in outcomes]
    values = [values[0] if _alike(value, values[0]) else value for value in values]
    return Group(values, len(keep), size - len(keep), flips)


def _alike(a: float, b: float) -> bool:
    """Whether only rounding tells two values apart: 0.1 + 0.2 and 0.3 are a tie."""
    return abs(a - b) <= _ROUNDING * max(abs(a), abs(b))


@dataclass(frozen=True)
class Pair:
    """Two offsets scored on the same examples, in detail.

    Attributes:
        plus, minus: their values; NaN if n is 0.
        n, failed, flips: see ``Group``.
        up: examples with a higher score at plus (for a set-level objective: right there only).
        down: likewise at minus.
        changed: examples whose output differs.
        error: standard error of plus - minus; NaN where it can't be told or was not asked for.
    """

    plus: float
    minus: float
    n: int
    failed: int
    flips: int
    up: int = 0
    down: int = 0
    changed: int = 0
    error: float = math.nan

    @property
    def tie(self) -> bool:
        """Equal values: the pair says nothing. A pair without a value is no tie, but a failure."""
        return self.plus == self.minus


def compare(objective: Objective, plus: Outcome, minus: Outcome, errors: bool = False) -> Pair:
    """Pair the outcomes of two offsets on the same examples.

    Args:
        objective: that gave them.
        plus, minus: the two sides.
        errors: also take the standard error of the difference; see ``zoobj.paired``.
    """
    group, error = together(objective, [plus, minus]), math.nan
    both = known_in_both(plus, minus)
    changed = [i for i in _changed([plus.batch, minus.batch]) if i in {*both}]
    if plus.scores is not None and minus.scores is not None:
        pairs = [(plus.scores[i] or 0.0, minus.scores[i] or 0.0) for i in both]
        up, down = (sum(s * a > s * b for a, b in pairs) for s in (1, -1))
        error = mean_error(pairs) if errors else math.nan
    else:
        there, here = ({i for i in changed if _right(side.batch, i)} for side in (plus, minus))
        up, down = len(there - here), len(here - there)
        error = _set_error(objective, plus, minus, both) if errors else math.nan
    high, low = group.values
    n, failed, flips = group.n, group.failed, group.flips
    return Pair(high, low, n, failed, flips, up, down, len(changed), error)


def known_in_both(plus: Outcome, minus: Outcome) -> list[int]:
    """Positions of the examples that could be scored on either side."""
    there = {*minus.known}
    return [i for i in plus.known if i in there]


def same_in_both(plus: Outcome, minus: Outcome) -> list[int]:
    """Positions of the examples that score the same on either side; set-level: whose output is."""
    both = known_in_both(plus, minus)
    if plus.scores is None or minus.scores is None:
        changed = {*_changed([plus.batch, minus.batch])}
        return [i for i in both if i not in changed]
    sides = (plus.scores, minus.scores)
    return [i for i in both if _alike(*(scores[i] or 0.0 for scores in sides))]


def _set_error(objective: Objective, plus: Outcome, minus: Outcome, both: list[int]) -> float:
    """Standard error of the difference of set-level values."""

    def difference(keep: Sequence[int]) -> float:
        left = [both[i] for i in keep]
        return value_over(objective, plus, left) - value_over(objective, minus, left)

    kinds: Sequence[int] = range(len(both))  # the scores of parts may depend on anything
    if not objective.parts:
        kinds = kinds_of([plus.batch.select(both), minus.batch.select(both)], objective.needs)
    return set_error(difference, kinds)


def value_over(objective: Objective, outcome: Outcome, keep: Sequence[int]) -> float:
    """The value over some of the examples (repeats allowed), from their scores where there are any.

    A set-level value of less than all of them is computed anew.
    """
    if not keep:
        return math.nan
    if outcome.scores is not None:
        return objective.value(outcome.batch.select(keep), [outcome.scores[i] for i in keep])
    if outcome.parts:
        parts = outcome.parts.items()
        total = objective.combine(
            {name: value_over(objective.parts[name], part, keep) for name, part in parts}
        )
        return math.nan if total is None else total
    if list(keep) == list(range(len(outcome.batch))):
        return outcome.value
    return judge(objective, outcome.batch.select(keep)).value


def _changed(batches: Sequence[Batch]) -> list[int]:
    """The examples whose output differs between scorings."""
    for column in ("predictions", "completions", "reference_logprob"):
        outputs = [getattr(batch, column) for batch in batches]
        if None not in outputs:
            rows = enumerate(zip(*outputs, strict=True))
            return [i for i, row in rows if any(x != row[0] for x in row)]
    return []


def _right(batch: Batch, i: int) -> bool:
    """Whether the output of an example is the gold one, or one of them."""
    gold = batch.references[i]
    if batch.predictions is not None:
        return bool(batch.predictions[i] == gold)
    return batch.completions is not None and batch.completions[i] in (
        gold if isinstance(gold, list) else [gold]
    )


class RunningScale:
    """Root mean square of the differences so far, decaying, ties left out.

    Dividing by it makes the learning rate mean weight movement, whatever the objective's units
    (the idea of FZOO, 2025, which divides by the standard deviation of the losses of one step).
    A difference is never more than 1 / sqrt(1 - decay) times the scale, its own part included.
    """

    def __init__(self, decay: float = 0.9):
        self.decay, self.square, self.weight = decay, 0.0, 0.0

    def normalise(self, difference: float) -> float:
        """The difference over the scale that includes it; 0 stays 0 and leaves no trace.

        So it is with one whose square is 0 or infinite: no sound objective says such a thing.
        """
        return difference / self.size if self.add(difference) else 0.0

    def add(self, difference: float) -> bool:
        """Take a difference into the scale; whether it says anything."""
        square = difference * difference
        if square == 0 or square == math.inf:
            return False
        self.square = self.decay * self.square + (1 - self.decay) * square
        self.weight = self.decay * self.weight + (1 - self.decay)
        return True

    @property
    def size(self) -> float:
        """The scale; 0 before the first difference."""
        return math.sqrt(self.square / self.weight) if self.weight else 0.0


def average_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs, so that a tie is no order.

    >>> average_ranks([0.5, 0.1, 0.5])
    array([1.5, 0. , 1.5])
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last - 1) / 2)[place]


def paired_bootstrap(
    objective: Objective, before: Outcome, after: Outcome, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of value(after) - value(before), over examples scored in both.

    B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. 10,000 resamples
    of the examples (1,000 for a set-level objective, whose value is computed anew for each).
    """
    rng = np.random.default_rng(seed)
    if not (is_score(before.value) and is_score(after.value)):
        return math.nan, math.nan
    if before.scores is None or after.scores is None:
        both = np.array(known_in_both(after, before), dtype=int)
        n = len(both)
        if not n:
            return math.nan, math.nan
        differences = [
            value_over(objective, after, pick) - value_over(objective, before, pick)
            for pick in both[rng.integers(n, size=(RESAMPLES_OF_SETS, n))].tolist()
        ]
    else:
        pairs = zip(before.scores, after.scores, strict=True)
        deltas = np.array([b - a for a, b in pairs if is_score(a) and is_score(b)])
        n = len(deltas)
        if not n:
            return math.nan, math.nan
        differences = [float(deltas[rng.integers(n, size=n)].mean()) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(differences, [0.025, 0.975])
    return float(low), float(high)


def verdict(objective: Objective, interval: Sequence[float]) -> Verdict:
    """Whether the interval of the difference lies on the better side of 0, the worse, or neither.

    >>> from zoobj.objective import Objective
    >>> verdict(Objective(), (0.01, 0.05)), verdict(Objective(), (-0.01, 0.05))
    ('improved', 'not shown')
    """
    low, high = sorted(loss(objective, bound) for bound in interval)
    return "improved" if high < 0 else "worse" if low > 0 else "not shown"
