"""Population: an evolution strategy of antithetic pairs, whose losses are shaped within each step.

T. Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning",
arXiv 1703.03864 (2017), with mirrored directions and ranks; for language models EGGROLL (Sarkar et
al. 2025, arXiv 2511.16652). A step scores 2 q members, theta +/- eps z_k, on the same examples.
With u = shape(L) over all of them, d_k = u(theta + eps z_k) - u(theta - eps z_k) and rms(d) over
the step,

    theta <- theta - lr / sqrt(q) sum_k [d_k / rms(d)] z_k         (1)

so that lr is the change of each weight in every step that has a signal. Shapes:

    rank    average ranks of L: only the order counts, and members that tie share a rank (2)
    zscore  L itself; (1) then divides by its size within the step, as FZOO does              (3)
    sign    the sign of each pair's difference                                                (4)

Unlike ``zo-sgd``, whose scale remembers earlier steps, a step in which the members hardly differ
moves as far as any other. It keeps no state.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from zoobj.errors import UserError
from zoobj.estimators.base import Estimator, pairs
from zoobj.noise import derive
from zoobj.signal import average_ranks
from zoobj.walk import Move, Offset

Shape = Literal["rank", "zscore", "sign"]


class Population(Estimator):
    """Evolution strategy of antithetic pairs, values shaped within each step."""

    name = "population"
    takes = ("shaping",)
    allows = ("tie_breaker", "grow_batch")

    def __init__(self, shaping: Shape = "rank", **settings: Any):
        super().__init__(**settings)
        if shaping not in get_args(Shape):
            raise UserError(f"shaping {shaping!r}: choose {', '.join(get_args(Shape))}")
        self.shaping, self.evaluations = shaping, 2 * self.directions
        self.seeds: list[int] = []

    def offsets(self, step: int) -> list[Offset]:
        self.seeds = [derive(self.seed, step, k) for k in range(self.directions)]
        return pairs(self.seeds, self.eps)

    def move(self, losses: Sequence[float]) -> Move:
        sides = zip(self.seeds, losses[::2], losses[1::2], strict=True)
        told = [(seed, a, b) for seed, a, b in sides if math.isfinite(a - b)]
        if not told:
            return []
        differences = self._shaped([loss for _, *pair in told for loss in pair])
        size = float(np.sqrt(np.mean(np.square(differences))))
        if not size:
            return []
        share = -self.learning_rate / math.sqrt(self.directions) / size  # (1)
        moves = zip(told, differences, strict=True)
        return [(seed, share * float(d)) for (seed, _, _), d in moves if d]

    def _shaped(self, losses: Sequence[float]) -> Any:
        """d_k of the pairs in turn."""
        values = np.asarray(losses, dtype=float)
        if self.shaping == "rank":
            values = average_ranks(values)  # (2)
        else:
            values = values / (np.abs(values).max() or 1.0)  # squares of any size stay finite
        differences = values[::2] - values[1::2]
        return np.sign(differences) if self.shaping == "sign" else differences  # (4), (3)
