"""ZO-SGD-Sign: every weight moves by the same amount, in the estimate's direction.

S. Liu et al., "signSGD via zeroth-order oracle", ICLR 2019; for language models Y. Zhang et al.,
arXiv 2402.11592. With g z from ``zo-sgd``,

    theta <- theta - lr sign(g z)                                  (1)

With one direction of +/-1 noise sign(g z) = sign(g) z, which is a Move. (The benchmark's code takes
sign(g) z with Gaussian z, which is not (1); other noise is refused here.) Over q directions each
has its own sign, as (1) is no sum of directions then,

    theta <- theta - lr / sqrt(q) sum_k sign(g_k) z_k              (2)
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.errors import UserError
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.walk import Move


class ZOSign(ZOSGD):
    """Sign of two-point estimates: how much the sides differ plays no part."""

    name = "zo-sign"
    takes = ("one_sided", "noise")

    def __init__(self, noise: str = "rademacher", **settings: Any):
        if noise != "rademacher":
            raise UserError(
                f"--noise {noise}: method 'zo-sign' needs +/-1 noise, whose sign is a direction: "
                "leave it at rademacher"
            )
        super().__init__(**settings)
        self.normalize = False  # there is nothing left to divide

    def move(self, losses: Sequence[float]) -> Move:
        share = self.learning_rate / math.sqrt(self.directions)
        return [(seed, -math.copysign(share, g)) for seed, g in self.estimate(losses) if g]
