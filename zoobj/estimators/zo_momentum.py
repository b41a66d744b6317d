"""ZO-SGD with momentum (heavy ball), in seeds and scalars.

B. Polyak, "Some methods of speeding up the convergence of iteration methods" (1964); as ZO-SGD-MMT
in Y. Zhang et al., "Revisiting zeroth-order optimization for memory-efficient LLM fine-tuning: a
benchmark", arXiv 2402.11592. With g z from ``zo-sgd``,

    m     <- beta m + g z                                          (1)
    theta <- theta - lr m                                          (2)

A buffer m would be as large as the weights. But m = sum_k beta^(t - k) g_k z(s_k), so it is a list
of seeds and scalars, see ``trail.py``, which the walk adds in one pass. Normalised, (2) has lr
(1 - beta) and each g_k is divided by the running size of its time: a direction moves a weight by lr
in all, as in ``zo-sgd``, but over many steps, so that the learning rate carries over.
"""

from collections.abc import Sequence
from typing import Any

from zoobj.estimators.trail import Trail
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.walk import Move


class ZOMomentum(ZOSGD):
    """ZO-SGD with momentum, whose buffer is a list of seeds; evaluations as zo-sgd."""

    name = "zo-momentum"
    takes = ("normalize", "one_sided", "momentum")

    def __init__(self, momentum: float = 0.9, **settings: Any):
        super().__init__(**settings)
        self.trail = Trail(momentum)

    def move(self, losses: Sequence[float]) -> Move:
        known = self.estimate(losses)
        if not known:  # of such a step nothing is known: it neither moves nor fades
            return []
        self.trail.add(known)  # (1)
        rate = self.learning_rate * (1 - self.trail.beta if self.normalize else 1.0)
        return [(seed, -rate * weight) for seed, weight in self.trail.sum()]  # (2)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "trail": self.trail.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.trail.past = state["trail"]
