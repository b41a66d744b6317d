"""One-point: a single evaluation a direction, compared with the step before.

Y. Zhang, Y. Zhou, K. Ji, M. Zavlanos, "A new one-point residual-feedback oracle for black-box
learning and control", arXiv 2006.10820; for language models S. Malladi et al., arXiv 2305.17333,
Table 11. On the minibatch B_t,

    g     = [L(theta_t + eps z_t; B_t) - L(theta_t-1 + eps z_t-1; B_t-1)] / eps    (1)
    theta <- theta - lr g z_t                                      (2)

Over q directions g_k z_k is averaged, and what (1) subtracts is the mean of the last step's losses.
Normalised, the differences are divided by their running size, as in ``zo-sgd``.

What is compared was scored on two minibatches: examples that failed can't be left out of both
sides, and the difference of the minibatches is in g, as is the last step's direction. So an
evaluation costs half of what it does in ``zo-sgd`` and says far less.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.estimators.base import Estimator
from zoobj.noise import derive
from zoobj.signal import RunningScale
from zoobj.walk import Move, Offset


class OnePoint(Estimator):
    """One-point residual feedback: 1 evaluation a direction, and much more variance."""

    name = "one-point"

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.evaluations = self.directions
        self.scale = RunningScale()
        self.before: float | None = None  # mean of the losses of the step before
        self.seeds: list[int] = []

    def offsets(self, step: int) -> list[Offset]:
        self.seeds = [derive(self.seed, step, k) for k in range(self.directions)]
        return [{seed: self.eps} for seed in self.seeds]

    def groups(self, count: int) -> list[Sequence[int]]:
        return [[number] for number in range(count)]

    def move(self, losses: Sequence[float]) -> Move:
        known = [(s, x) for s, x in zip(self.seeds, losses, strict=True) if not math.isnan(x)]
        if not known:
            return []
        before, self.before = self.before, math.fsum(loss for _, loss in known) / len(known)
        if before is None:  # the first step has nothing to compare with
            return []
        told = [(seed, self._amount(loss - before)) for seed, loss in known]
        return [(seed, -self.learning_rate * amount) for seed, amount in told if amount]

    def _amount(self, difference: float) -> float:
        if self.normalize:
            return self.scale.normalise(difference) / math.sqrt(self.directions)
        return difference / self.eps / self.directions  # (1)

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "square": self.scale.square, "weight": self.scale.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]
        self.scale.square, self.scale.weight = state["square"], state["weight"]
