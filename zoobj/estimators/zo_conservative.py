"""ZO-SGD-Cons: a step is made only if it lowers the loss; back and forth are both tried.

Y. Zhang et al., "Revisiting zeroth-order optimization for memory-efficient LLM fine-tuning: a
benchmark", arXiv 2402.11592. With g z from ``zo-sgd``,

    theta <- argmin of L over {theta, theta - lr g z, theta + lr g z}    (1)

on the same minibatch. The three are a second round of offsets, once g is known; examples that fail
at one of them are left out of all three. Of equal losses theta's wins. A step whose pairs all tie
ends with its first round: it has no direction to try.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.walk import Move, Offset

_TRIED = (0.0, 1.0, -1.0)  # times the step of zo-sgd; the earlier of equals is taken


class ZOConservative(ZOSGD):
    """ZO-SGD that keeps the best of staying, the step and its opposite; 3 evaluations more."""

    name = "zo-conservative"
    allows = ("grow_batch",)

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.first = self.evaluations  # offsets of the first round
        self.evaluations += len(_TRIED)
        self.step: Move = []  # what zo-sgd would do, once it is known

    def offsets(self, step: int) -> list[Offset]:
        self.step = []
        return super().offsets(step)

    def more(self, losses: Sequence[float]) -> list[Offset]:
        if len(losses) > self.first:
            return []
        self.step = super().move(losses)
        return [dict(_times(sign, self.step)) for sign in _TRIED] if self.step else []

    def groups(self, count: int) -> list[Sequence[int]]:
        return [range(count)] if self.step else super().groups(count)

    def move(self, losses: Sequence[float]) -> Move:
        tried = dict(zip(_TRIED, losses[self.first :], strict=False))
        if not tried or any(map(math.isnan, tried.values())):
            return []
        return _times(min(_TRIED, key=tried.__getitem__), self.step)  # (1)


def _times(sign: float, move: Move) -> Move:
    return [(seed, sign * coefficient) for seed, coefficient in move if sign]
