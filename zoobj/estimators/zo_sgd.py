"""ZO-SGD: simultaneous perturbation, two points a step.

J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 37 (1992); for language models S. Malladi et al., "Fine-tuning language
models with just forward passes" (MeZO), arXiv 2305.17333, Algorithm 1:

    g     = [L(theta + eps z) - L(theta - eps z)] / (2 eps)        (1)
    theta <- theta - lr g z                                        (2)

with L on the same minibatch at both points, and z of +/-1 (Spall's Bernoulli directions) where
MeZO draws normals. By default (2) is normalised: with d = L(theta + eps z) - L(theta - eps z) and
rms(d) its running root mean square,

    theta <- theta - lr [d / rms(d)] z                             (3)

so that lr is the change of each weight in a typical step, and carries over between objectives of
different units and between values of eps.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.estimators.base import Estimator
from zoobj.noise import derive
from zoobj.signal import RunningScale
from zoobj.walk import Move, Offset


class ZOSGD(Estimator):
    """Two-point SPSA in place (MeZO); 2 evaluations a step, no memory beyond inference."""

    name = "zo-sgd"
    evaluations = 2

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.scale = RunningScale()
        self.direction = 0

    def offsets(self, step: int) -> list[Offset]:
        self.direction = derive(self.seed, step)
        return [{self.direction: self.eps}, {self.direction: -self.eps}]

    def move(self, losses: Sequence[float]) -> Move:
        plus, minus = losses
        difference = plus - minus
        if math.isnan(difference) or difference == 0:
            return []
        if self.normalize:
            return [(self.direction, -self.learning_rate * self.scale.normalise(difference))]  # (3)
        gradient = difference / (2 * self.eps)  # (1)
        return [(self.direction, -self.learning_rate * gradient)]  # (2)

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.scale.square, "weight": self.scale.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale.square, self.scale.weight = state["square"], state["weight"]
