"""ZO-SGD: simultaneous perturbation, two points a step for each of q directions.

J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 37 (1992); for language models S. Malladi et al., "Fine-tuning language
models with just forward passes" (MeZO), arXiv 2305.17333, Algorithm 1:

    g     = [L(theta + eps z) - L(theta - eps z)] / (2 eps)        (1)
    theta <- theta - lr g z                                        (2)

with L on the same minibatch at both points, and z of +/-1 (Spall's Bernoulli directions) where
MeZO draws normals. Over q directions g z is averaged (n-SPSA, Definition 1 there). By default the
step is normalised: with d_k = L(theta + eps z_k) - L(theta - eps z_k) and rms(d) their running root
mean square,

    theta <- theta - lr / sqrt(q) sum_k [d_k / rms(d)] z_k         (3)

so that lr is the change of each weight in a typical step, and carries over between objectives of
different units and between values of eps and q.

One-sided (``--one_sided``), all directions share their other point: d_k = L(theta + eps z_k) -
L(theta), over eps in (1), for q + 1 evaluations instead of 2 q, as in FZOO (Dang et al. 2025, arXiv
2506.09034). The objective's curvature does not cancel then.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from zoobj.estimators.base import Estimator, pairs
from zoobj.noise import derive
from zoobj.signal import RunningScale
from zoobj.walk import Move, Offset


class ZOSGD(Estimator):
    """Two-point SPSA (MeZO, n-SPSA); 2 evaluations a direction, no memory beyond inference."""

    name = "zo-sgd"
    takes: ClassVar[tuple[str, ...]] = ("normalize", "one_sided")
    allows: ClassVar[tuple[str, ...]] = ("tie_breaker", "race", "grow_batch")

    def __init__(self, one_sided: bool = False, **settings: Any):
        super().__init__(**settings)
        self.one_sided = one_sided
        self.evaluations = self.directions + 1 if one_sided else 2 * self.directions
        self.scale = RunningScale()
        self.seeds: list[int] = []

    def offsets(self, step: int) -> list[Offset]:
        several = range(1, self.directions)
        self.seeds = [derive(self.seed, step), *(derive(self.seed, step, k) for k in several)]
        if self.one_sided:
            return [{}, *({seed: self.eps} for seed in self.seeds)]
        return pairs(self.seeds, self.eps)

    def groups(self, count: int) -> list[Sequence[int]]:
        return [range(count)] if self.one_sided else super().groups(count)

    def move(self, losses: Sequence[float]) -> Move:
        return [(s, -self.learning_rate * amount) for s, amount in self.estimate(losses) if amount]

    def estimate(self, losses: Sequence[float]) -> list[tuple[int, float]]:
        """The gradient as a sum of directions, in units of lr; those that failed are left out."""
        if self.one_sided:
            differences = [loss - losses[0] for loss in losses[1:]]
        else:
            sides = zip(losses[::2], losses[1::2], strict=True)
            differences = [plus - minus for plus, minus in sides]
        told = zip(self.seeds, differences, strict=True)
        return [(seed, self._amount(d)) for seed, d in told if not math.isnan(d)]

    def _amount(self, difference: float) -> float:
        if self.normalize:
            return self.scale.normalise(difference) / math.sqrt(self.directions)  # (3)
        apart = self.eps if self.one_sided else 2 * self.eps
        return difference / apart / self.directions  # (1)

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.scale.square, "weight": self.scale.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale.square, self.scale.weight = state["square"], state["weight"]
