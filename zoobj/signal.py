"""Values -> losses: failed scores, pairs on the same examples, ties, paired statistics."""

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
    return settled(objective, measured(objective, batch), on_error)


def measured(objective: Objective, batch: Batch) -> Outcome:
    """What the objective says of a batch, as it is: the value of scores is not settled yet."""
    try:
        if objective.decomposable:
            return Outcome(batch, _checked(objective, batch), math.nan)
        return Outcome(batch, None, float(objective.value(batch)))
    except (Exception, SystemExit) as error:  # a scorer may be a program that ends itself
        known = isinstance(error, (ScoreError, UserError))
        text = str(error) if known else f"objective {objective.name!r}: {_describe(error)}"
        return Outcome(
            batch, [None] * len(batch) if objective.decomposable else None, math.nan, text
        )


def _checked(objective: Objective, batch: Batch) -> list[Score]:
    scores = list(objective.score(batch))
    if len(scores) != len(batch):
        raise ScoreError(
            f"objective {objective.name!r} returned {len(scores)} scores for {len(batch)} "
            "examples: return one for each, None where there is none"
        )
    return [float(score) if is_score(score) else None for score in scores]


def settled(objective: Objective, outcome: Outcome, on_error: OnError) -> Outcome:
    """A measured outcome with its value, under the policy for what could not be scored.

    Raises:
        UserError: see ``judge``.
    """
    batch, scores, error, failed = outcome.batch, outcome.scores, outcome.error, outcome.failed
    if error is not None and on_error == "raise":
        raise UserError(error)
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
class Pair:
    """Two offsets scored on the same examples; those that failed on either side are left out.

    Attributes:
        plus, minus: the values of the two sides over the same n examples; NaN if n is 0.
        n: examples that count.
        failed: examples that don't.
        flips: examples whose score (for a set-level objective: output) differs.
    """

    plus: float
    minus: float
    n: int
    failed: int
    flips: int

    @property
    def tie(self) -> bool:
        """Equal values: the pair says nothing. A pair without a value is no tie, but a failure."""
        return self.plus == self.minus


def compare(objective: Objective, plus: Outcome, minus: Outcome) -> Pair:
    """Pair the outcomes of two offsets on the same examples."""
    if plus.scores is None or minus.scores is None:
        ok = is_score(plus.value) and is_score(minus.value)
        n = len(plus.batch) if ok else 0
        sides = (plus.value, minus.value) if ok else (math.nan, math.nan)
        return Pair(*sides, n, len(plus.batch) - n, _changed(plus.batch, minus.batch))
    pairs = zip(plus.scores, minus.scores, strict=True)
    keep = [i for i, pair in enumerate(pairs) if all(map(is_score, pair))]
    flips = sum(plus.scores[i] != minus.scores[i] for i in keep)
    high, low = (_value_over(objective, side, keep) for side in (plus, minus))
    return Pair(high, low, len(keep), len(plus.batch) - len(keep), flips)


def _value_over(objective: Objective, outcome: Outcome, keep: Sequence[int]) -> float:
    """The value over some of the examples, from their scores."""
    if not keep or outcome.scores is None:
        return math.nan
    return objective.value(outcome.batch.select(keep), [outcome.scores[i] for i in keep])


def _changed(plus: Batch, minus: Batch) -> int:
    """How many outputs differ between two scorings of the same examples."""
    for column in ("predictions", "completions", "reference_logprob"):
        a, b = getattr(plus, column), getattr(minus, column)
        if a is not None:
            return sum(x != y for x, y in zip(a, b, strict=True))
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
        square = difference * difference
        if square == 0 or square == math.inf:
            return 0.0
        self.square = self.decay * self.square + (1 - self.decay) * square
        self.weight = self.decay * self.weight + (1 - self.decay)
        return difference / math.sqrt(self.square / self.weight)


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
