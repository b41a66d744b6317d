"""AdaLomo: LOMO with an adaptive step for each weight, its second moment factored.

K. Lv et al., "AdaLomo: low-memory optimization with adaptive learning rate", arXiv 2310.10195
(2023), Algorithm 1. For a matrix with gradient G, its rows' and columns' mean squares stand for the
second moment of each weight (N. Shazeer, M. Stern, Adafactor, arXiv 1804.04235, Algorithm 4), with
the decay b_t = 1 - t^-0.8 of the latter's section 7.2:

    r <- b_t r + (1 - b_t) mean_columns(G^2),  c <- b_t c + (1 - b_t) mean_rows(G^2)   (1)
    v = r c / mean(r)                                                                 (2)
    u = G / sqrt(v);  u <- u / max(1, RMS(u) / 1)                                     (3)
    theta <- theta - lr max(1e-3, RMS(theta)) u                                       (4)

For what is no matrix v is kept whole. Memory: that of LOMO, and a row and a column for each matrix.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from zoobj.estimators.first_order import Fused

_TINY, _SMALLEST, _DECAY = 1e-30, 1e-3, -0.8


class AdaLomo(Fused):
    """LOMO with factored adaptive steps (Adafactor's); differentiable objectives only."""

    name = "adalomo"

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.moments: dict[Parameter, tuple[Tensor, ...]] = {}
        self.steps = 0

    def begin(self) -> None:
        self.steps += 1

    def update(self, param: Parameter, grad: Tensor) -> Tensor:
        grad = grad.float()
        u = grad / self._second_moment(param, grad.square() + _TINY).sqrt()
        u /= max(1.0, _rms(u))  # (3)
        u *= max(_SMALLEST, _rms(param.float()))  # (4)
        return u.to(param.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        kept = [(number, self.moments.get(param, ())) for number, param in enumerate(self.params)]
        moments = {f"{number}.{k}": x for number, two in kept for k, x in enumerate(two)}
        return {"steps": torch.tensor(self.steps), **moments}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for number, param in enumerate(self.params):
            found = (state.get(f"{number}.{k}") for k in range(2))
            if two := tuple(x.to(param.device) for x in found if x is not None):
                self.moments[param] = two

    def _second_moment(self, param: Parameter, square: Tensor) -> Tensor:
        """v, after this step's squares."""
        beta = 1.0 - self.steps**_DECAY
        if square.ndim < 2:
            (v,) = self._moving(param, beta, square)
            return v
        r, c = self._moving(param, beta, square.mean(-1), square.mean(-2))  # (1)
        return (r / r.mean(-1, keepdim=True)).unsqueeze(-1) * c.unsqueeze(-2)  # (2)

    def _moving(self, param: Parameter, beta: float, *now: Tensor) -> tuple[Tensor, ...]:
        earlier = self.moments.get(param, tuple(torch.zeros_like(x) for x in now))
        pairs = zip(earlier, now, strict=True)
        self.moments[param] = tuple(old.lerp_(new, 1.0 - beta) for old, new in pairs)
        return self.moments[param]


def _rms(x: Tensor) -> float:
    return float(x.norm()) / max(1, x.numel()) ** 0.5
