"""Scores where they tell something: pairs that are decided stop early, minibatches that tie grow.

Racing (O. Maron, A. Moore, "Hoeffding races", NIPS 1993): a minibatch is scored in up to four
parts. After each but the last, a pair whose difference is d, with the paired standard error se of
the examples so far, is decided and scored no further if

    |d| > z se                                                     (1)

The rule looks up to four times, each time with a chance to be wrong. At z = 2.36 all looks together
decide a pair without any difference 5 times in 100 (S. Pocock, "Group sequential methods in the
design and analysis of clinical trials", Biometrika 64, 1977, Table 1), as one look at 1.96 would;
parts have four examples or more, so that se means something.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.objective import Batch, Objective
from zoobj.outcome import Outcome, judge
from zoobj.signal import Pair

_LOOKS, _LEAST = 4, 4


def looks(size: int) -> list[int]:
    """How many examples of a minibatch have been scored at each look, the last being all.

    >>> looks(64), looks(8), looks(3)
    ([16, 32, 48, 64], [4, 8], [3])
    """
    apart = max(_LEAST, math.ceil(size / _LOOKS))
    return [*range(apart, size, apart), size]


def decided(pair: Pair, z: float) -> bool:
    """Equation (1); a pair without a value or a standard error is not decided."""
    return abs(pair.plus - pair.minus) > z * pair.error


def followed(objective: Objective, first: Outcome, batch: Batch, rest: Outcome) -> Outcome:
    """The outcome of a batch from those of its first examples and of the rest.

    Args:
        objective: a decomposable one.
        first, rest: what it said of them.
        batch: all examples.
    """
    if first.scores is None or rest.scores is None:  # of a set-level one that is scored beside
        return judge(objective, batch)
    scores = [*first.scores, *rest.scores]
    parts, beside = (
        {name: followed(of[name], part, batch, after[name]) for name, part in before.items()}
        for of, before, after in (
            (objective.parts, first.parts, rest.parts),
            (objective.beside, first.beside, rest.beside),
        )
    )
    error = first.error or rest.error
    return Outcome(batch, scores, objective.value(batch, scores), error, parts, beside)


class BatchGrowth:
    """How many minibatches make up a step's: twice as many after a step in which most pairs tied.

    After any other step half as many, and at least one.

    Args:
        most: of them.
    """

    def __init__(self, most: int):
        self.most, self.times = most, 1

    def update(self, pairs: Sequence[Pair]) -> None:
        """Take in the pairs of a step."""
        most_tied = 2 * sum(pair.tie for pair in pairs) > len(pairs)
        self.times = min(self.most, 2 * self.times) if most_tied else max(1, self.times // 2)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on; JSON values."""
        return {"times": self.times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.times = state["times"]
