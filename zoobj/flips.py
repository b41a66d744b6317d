"""eps steered by how many examples flip.

At too small an eps most pairs of a step function tie, and at too large a one the model is broken on
both sides. What lies between is known from the pairs themselves: f, the share of examples whose
score differs between the sides, and c, the share whose output differs. With a target t,

    log eps <- log eps + gain (t - f)          where c < 0.95, or f > t     (1)
    log eps <- log eps - gain (t - f)          else                         (2)

(2) is the far side of the hill: if nearly all outputs differ and yet few scores do, both sides
have lost them, as garbage scores 0 twice. eps stays within a factor of 8 of where it began. This is
a stochastic approximation (H. Robbins, S. Monro, Annals of Mathematical Statistics 22, 1951) of
constant gain, since what flips changes as the model learns.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoobj.signal import Pair

TARGET, WITH_TIES = 0.4, 0.2  # where a tie-breaker speaks of the rest, less has to flip
_GAIN, _BOUND, _ALL = 0.5, 8.0, 0.95


class FlipControl:
    """Steers eps towards a share of examples that flip.

    Args:
        eps: where it begins.
        target: the share of examples, above 0 and below 1.
    """

    def __init__(self, eps: float, target: float = TARGET):
        self.eps, self.target = eps, target
        self._low, self._high = eps / _BOUND, eps * _BOUND

    def update(self, pairs: Sequence[Pair]) -> None:
        """Take in the pairs of a step; one whose examples all failed says nothing."""
        n = sum(pair.n for pair in pairs)
        if not n:
            return
        flipped = sum(pair.flips for pair in pairs) / n
        changed = sum(pair.changed for pair in pairs) / n
        missing = self.target - flipped
        broken = changed >= _ALL and missing > 0
        eps = self.eps * math.exp(_GAIN * (-missing if broken else missing))  # (1), (2)
        self.eps = min(max(eps, self._low), self._high)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on; JSON values."""
        return {"eps": self.eps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.eps = state["eps"]
