"""Forward-Grad: the exact derivative along a direction, without a backward pass.

A. Baydin, B. Pearlmutter, D. Syme, F. Wood, P. Torr, "Gradients without backpropagation", arXiv
2202.08587, equation (2) and Algorithm 1:

    g     = sum_i dL/dtheta_i z_i                                  (1)
    theta <- theta - lr g z                                        (2)

with (1) from one forward pass in which each number carries its tangent (forward-mode AD, a
Jacobian-vector product), so that L has to be differentiable. z is +/-1 where the paper draws
normals; since E[z z^T] is the identity for both, E[g z] is the gradient. Over q directions g z is
averaged. By default the step is normalised as in ``zo-sgd``,

    theta <- theta - lr / sqrt(q) sum_k [g_k / rms(g)] z_k         (3)

It is the limit of ``zo-sgd`` for small eps: what rounding and curvature add to a difference of two
losses is not there, the variance of a random direction is.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from zoobj.estimators.base import Estimator
from zoobj.noise import derive
from zoobj.signal import RunningScale
from zoobj.walk import Move, Offset


class ForwardGrad(Estimator):
    """Forward gradient: a forward pass with tangents a direction; memory of about two models."""

    name = "forward-grad"
    derivative: ClassVar[bool] = True

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.evaluations = self.directions
        self.scale = RunningScale()
        self.seeds: list[int] = []

    def offsets(self, step: int) -> list[Offset]:
        self.seeds = [derive(self.seed, step, k) for k in range(self.directions)]
        return [{seed: 1.0} for seed in self.seeds]

    def groups(self, count: int) -> list[Sequence[int]]:
        return [[number] for number in range(count)]

    def move(self, losses: Sequence[float]) -> Move:
        told = zip(self.seeds, losses, strict=True)
        amounts = [(seed, self._amount(slope)) for seed, slope in told if math.isfinite(slope)]
        return [(seed, -self.learning_rate * amount) for seed, amount in amounts if amount]

    def _amount(self, slope: float) -> float:
        if self.normalize:
            return self.scale.normalise(slope) / math.sqrt(self.directions)  # (3)
        return slope / self.directions  # (2)

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.scale.square, "weight": self.scale.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale.square, self.scale.weight = state["square"], state["weight"]
