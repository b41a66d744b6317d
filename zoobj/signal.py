"""Values -> losses: failed scores, groups on the same examples, ties, paired statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, ScoreError, is_score

OnError = Literal["drop", "raise", "floor"]
Verdict = Literal["improved", "not shown", "worse"]
RESAMPLES = 10_000
RESAMPLES_OF_SETS = 1_000  # a set-level value is computed anew for each


@dataclass(frozen=True)
class Outcome:
    """What the model scored on a batch at one offset.

    Attributes:
        batch: the scored examples.
        scores: one for each, None where it could not be scored; None for a set-level objective.
        value: the objective's number over those that could, NaN if none could.
        error: what went wrong, where something did.
    """

    batch: Batch
    scores: list[Score] | None
    value: float
    error: str | None = None

    @property
    def failed(self) -> int:
        """How many examples could not be scored."""
        if self.scores is None:
            return 0 if is_score(self.value) else len(self.batch)
        return sum(not is_score(score) for score in self.scores)


def judge(objective: Objective, batch: Batch, on_error: OnError = "drop") -> Outcome:
    """Apply the objective to a scored batch, and the policy to what can't be scored.

    Args:
        objective: what to apply.
        batch: its ``needs`` filled.
        on_error: ``drop`` leaves failed examples out, ``floor`` gives them the lowest (for errors
            the highest) value of ``bounds``, ``raise`` stops.

    Raises:
        UserError: with ``raise``, on an exception, a wrong length, None or NaN.
    """
    try:
        if objective.decomposable:
            scores: list[Score] | None = _checked(objective, batch)
            value = 0.0
        else:
            scores, value = None, float(objective.value(batch))
    except (Exception, SystemExit) as error:  # a scorer may be a program that ends itself
        known = isinstance(error, (ScoreError, UserError))
        text = str(error) if known else f"objective {objective.name!r}: {_describe(error)}"
        if on_error == "raise":
            raise UserError(text) from error
        scores = [None] * len(batch) if objective.decomposable else None
        return _settled(objective, Outcome(batch, scores, math.nan, text), on_error)
    return _settled(objective, Outcome(batch, scores, value), on_error)


def _checked(objective: Objective, batch: Batch) -> list[Score]:
    scores = list(objective.score(batch))
    if len(scores) != len(batch):
        raise ScoreError(
            f"objective {objective.name!r} returned {len(scores)} scores for {len(batch)} "
            "examples: return one for each, None where there is none"
        )
    return [float(score) if is_score(score) else None for score in scores]


def _settled(objective: Objective, outcome: Outcome, on_error: OnError) -> Outcome:
    batch, scores, error, failed = outcome.batch, outcome.scores, outcome.error, outcome.failed
    if scores is None and not failed:
        return outcome
    if failed and on_error == "raise":
        raise UserError(
            f"objective {objective.name!r} could not score {failed} of {len(batch)} examples: "
            "mend it, or choose --on_error drop"
        )
    if failed and on_error == "floor":
        worst = floor(objective)
        if scores is None:
            return Outcome(batch, None, math.nan if worst is None else worst, error)
        scores = [worst if score is None else score for score in scores]
    value = objective.value(batch, scores) if scores is not None else math.nan
    return Outcome(batch, scores, value, error)


def floor(objective: Objective) -> float | None:
    """The worst value within the bounds, None where there is no limit on that side."""
    return objective.bounds[0 if objective.higher_is_better else 1]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


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
    size = len(outcomes[0].batch)
    columns = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    if len(columns) < len(outcomes):
        ok = all(is_score(outcome.value) for outcome in outcomes)
        values = [outcome.value if ok else math.nan for outcome in outcomes]
        n = size if ok else 0
        return Group(values, n, size - n, _changed([outcome.batch for outcome in outcomes]))
    rows = list(zip(*columns, strict=True))
    keep = [i for i, row in enumerate(rows) if all(map(is_score, row))]
    flips = sum(any(score != rows[i][0] for score in rows[i]) for i in keep)
    values = [_value_over(objective, outcome, keep) for outcome in outcomes]
    return Group(values, len(keep), size - len(keep), flips)


@dataclass(frozen=True)
class Pair:
    """A group of two.

    Attributes:
        plus, minus: their values; NaN if n is 0.
        n, failed, flips: see ``Group``.
    """

    plus: float
    minus: float
    n: int
    failed: int
    flips: int

    @property
    def tie(self) -> bool:
        """Equal values."""
        return self.plus == self.minus


def compare(objective: Objective, plus: Outcome, minus: Outcome) -> Pair:
    """Pair the outcomes of two offsets on the same examples."""
    group = together(objective, [plus, minus])
    high, low = group.values
    return Pair(high, low, group.n, group.failed, group.flips)


def _value_over(objective: Objective, outcome: Outcome, keep: Sequence[int]) -> float:
    """The value over some of the examples, from their scores."""
    if not keep or outcome.scores is None:
        return math.nan
    return objective.value(outcome.batch.select(keep), [outcome.scores[i] for i in keep])


def _changed(batches: Sequence[Batch]) -> int:
    """How many outputs differ between scorings of the same examples."""
    for column in ("predictions", "completions", "reference_logprob"):
        outputs = [getattr(batch, column) for batch in batches]
        if None not in outputs:
            return sum(any(x != row[0] for x in row) for row in zip(*outputs, strict=True))
    return 0


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
        n = len(before.batch)
        differences = [
            judge(objective, after.batch.select(pick)).value
            - judge(objective, before.batch.select(pick)).value
            for pick in rng.integers(n, size=(RESAMPLES_OF_SETS, n)).tolist()
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
