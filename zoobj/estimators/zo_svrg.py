"""ZO-SVRG: minibatch estimates, corrected by a better one at an anchor.

R. Johnson, T. Zhang, "Accelerating stochastic gradient descent using predictive variance
reduction", NIPS 2013; zeroth-order S. Liu et al., arXiv 1805.10367; for language models T. Gautam
et al., "Variance-reduced zeroth-order methods for fine-tuning language models" (MeZO-SVRG), arXiv
2404.08080, Algorithm 1. Let d_k(theta; B) = L(theta + eps z_k; B) - L(theta - eps z_k; B). Every
``svrg_interval`` steps theta is the anchor theta~, and 2 q directions are scored there on a batch
A of ``anchor_batches`` minibatches; in the steps between, q new ones at both points on a minibatch
B:

    G     = 1 / (2 q) sum_k d_k(theta~; A) z_k                     (1)
    G'    = G + 1 / q sum_k [d_k(theta; B) - d_k(theta~; B)] z_k   (2)
    theta <- theta - lr / (2 eps) G at the anchor, G' elsewhere    (3)

Normalised, (3) has lr sqrt(2 q) / rms(d), with the running size of the differences at theta, as in
``zo-sgd``: lr is the change of a weight in a typical step.

No weights are copied: theta~ is theta less the moves since, so theta~ +/- eps z is an offset of at
most 2 q + q (svrg_interval - 1) seeds, which the walk reaches in one pass, and G is a list of seeds
and scalars. Each move is rounded to the grid of the weights, so theta~ is met to within so many
quanta (less than 1e-6 of the largest weight each). Without an anchor (a branch, an anchor that
could not be scored) the next step takes one, on a minibatch.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.estimators.base import Estimator, pairs
from zoobj.noise import derive
from zoobj.signal import RunningScale
from zoobj.walk import Move, Offset


class ZOSVRG(Estimator):
    """Variance-reduced ZO-SGD (MeZO-SVRG) with the anchor as seeds; 4 evaluations a direction."""

    name = "zo-svrg"
    takes = ("normalize", "svrg_interval", "anchor_batches")

    def __init__(self, svrg_interval: int = 4, anchor_batches: int = 4, **settings: Any):
        super().__init__(**settings)
        self.interval, self.evaluations = svrg_interval, 4 * self.directions
        self.batches = (anchor_batches, *[1] * (svrg_interval - 1))
        self.scale = RunningScale()
        self.full: list[list[Any]] = []  # G, as [seed, scalar]; empty: there is no anchor
        self.since: dict[int, float] = {}  # theta - theta~
        self.seeds: list[int] = []
        self.anchors = True  # whether this step takes an anchor

    def offsets(self, step: int) -> list[Offset]:
        self.anchors = step % self.interval == 0 or not self.full
        count = 2 * self.directions if self.anchors else self.directions
        self.seeds = [derive(self.seed, step, k) for k in range(count)]
        here = pairs(self.seeds, self.eps)
        if self.anchors:
            return here
        back = {seed: -coefficient for seed, coefficient in self.since.items()}
        return [*here, *({**back, **offset} for offset in here)]

    def groups(self, count: int) -> list[Sequence[int]]:
        if self.anchors:
            return super().groups(count)
        half = count // 2
        return [(k, k + 1, half + k, half + k + 1) for k in range(0, half, 2)]

    def move(self, losses: Sequence[float]) -> Move:
        differences = [a - b for a, b in zip(losses[::2], losses[1::2], strict=True)]
        count = len(self.seeds)
        here, there = differences[:count], differences[count:] or [0.0] * count
        told = [x for x in zip(self.seeds, here, there, strict=True) if not math.isnan(x[1] - x[2])]
        for _, d, _ in told:
            self.scale.add(d)
        new: list[list[Any]] = [[seed, (d - x) / count] for seed, d, x in told]  # (1), (2)
        if self.anchors:
            self.full, self.since, new = new, {}, []
        rate = self._rate() if told else 0.0
        move = [(seed, -rate * g) for seed, g in (*self.full, *new) if rate * g]
        for seed, coefficient in move:
            self.since[seed] = self.since.get(seed, 0.0) + coefficient
        return move

    def _rate(self) -> float:
        """What (3) multiplies by; 0 while nothing differs."""
        if not self.normalize:
            return self.learning_rate / (2 * self.eps)
        size = self.scale.size
        return self.learning_rate * math.sqrt(2 * self.directions) / size if size else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "full": self.full,
            "since": [[seed, coefficient] for seed, coefficient in self.since.items()],
            "square": self.scale.square,
            "weight": self.scale.weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.full, self.since = state["full"], dict(state["since"])
        self.scale.square, self.scale.weight = state["square"], state["weight"]
