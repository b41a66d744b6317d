"""ZO-Adam, in seeds and scalars: the second moment is one number.

D. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980; with zeroth-order
gradients X. Chen et al., "ZO-AdaMM", arXiv 1910.06513, and Y. Zhang et al., arXiv 2402.11592. With
the estimate G = 1/q sum_k g_k z_k of ``zo-sgd`` and t counted from 1,

    m     <- beta1 m + (1 - beta1) G                               (1)
    v     <- beta2 v + (1 - beta2) G^2, weight by weight           (2)
    theta <- theta - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)    (3)

m is a list of seeds and scalars, see ``trail.py``. With one direction of +/-1 noise, G_i^2 = g^2
for every weight, so that v is one scalar and (3) is Adam itself. With several directions, or other
noise, G_i^2 differs between weights by chance alone: here v is then its mean over the weights,

    v     <- beta2 v + (1 - beta2) / q^2 sum_k g_k^2               (4)

which a weight's own v, a mean of about 1 / (1 - beta2) such numbers, is close to: its square root
within 3 % in the long run (standard deviation, beta2 = 0.999). A dense v would be of parameter size
and make (3) no sum of directions; no run has it.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.estimators.trail import Trail
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.walk import Move


class ZOAdam(ZOSGD):
    """Adam on two-point estimates: m a list of seeds, v one scalar; evaluations as zo-sgd."""

    name = "zo-adam"
    takes = ("one_sided", "adam_beta1", "adam_beta2", "adam_epsilon")

    def __init__(
        self,
        adam_beta1: float = 0.9,
        adam_beta2: float = 0.999,
        adam_epsilon: float = 1e-8,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.normalize = False  # v does that
        self.beta2, self.epsilon = adam_beta2, adam_epsilon
        self.trail, self.second, self.steps = Trail(adam_beta1), 0.0, 0

    def move(self, losses: Sequence[float]) -> Move:
        known = self.estimate(losses)
        if not known:  # of such a step nothing is known: it neither moves nor fades
            return []
        beta1, square = self.trail.beta, sum(g * g for _, g in known)
        self.steps += 1
        self.trail.add(known)
        self.second = self.beta2 * self.second + (1 - self.beta2) * square  # (4)
        size = math.sqrt(self.second / (1 - self.beta2**self.steps)) + self.epsilon
        rate = self.learning_rate * (1 - beta1) / (1 - beta1**self.steps) / size  # (1), (3)
        return [(seed, -rate * weight) for seed, weight in self.trail.sum()]

    def state_dict(self) -> dict[str, Any]:
        return {"trail": self.trail.past, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trail.past, self.second = state["trail"], state["second"]
        self.steps = state["steps"]
