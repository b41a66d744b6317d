"""zoobj.walk written once more, as plainly as can be: Python integers, one weight at a time.

The twin holds theta in quanta, makes all noise anew whenever it is needed and adds every offset
to theta, so that it has nothing to take back.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import philox
import torch
from torch import Tensor

from zoobj.noise import DECAY, MASK, ROUNDING, stream_id
from zoobj.passes import Decay
from zoobj.walk import Move, Offset

HALF = 2**35  # of what normals in 2^-20 and coefficients in 2^-16 quanta are divided by


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Of one dtype, shape and content, the signs of zeros included."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    alike = a.dtype is b.dtype and a.shape == b.shape
    return alike and torch.equal(a.detach().view(integers), b.detach().view(integers))


class Twin:
    def __init__(
        self,
        params: Sequence[tuple[str, Tensor]],
        noise: str = "rademacher",
        tune: Sequence[str] = (),
        blocks: Sequence[str] = (),
        density: float = 1.0,
        mask_seed: int = 0,
        anchor: Mapping[str, Tensor] | None = None,
    ):
        chosen = [
            (name, param.detach().clone())
            for name, param in params
            if not tune or any(fnmatchcase(name, pattern) for pattern in tune)
        ]
        self.noise, self.blocks = noise, list(blocks) or ["*"]
        self.names = [name for name, _ in chosen]
        self.streams = [stream_id(name) for name in self.names]
        self.shapes = [param.shape for _, param in chosen]
        self.dtypes = [param.dtype for _, param in chosen]
        values = [param.double().flatten().tolist() for _, param in chosen]
        self.quanta = [self._quantum(v, d) for v, d in zip(values, self.dtypes, strict=True)]
        self.theta = [self._in_quanta(v, q) for v, q in zip(values, self.quanta, strict=True)]
        self.anchor = [[0] * len(theta) for theta in self.theta]
        if anchor is not None:
            goals = [anchor[name].double().flatten().tolist() for name in self.names]
            pairs = zip(goals, self.quanta, strict=True)
            self.anchor = [self._in_quanta(goal, quantum) for goal, quantum in pairs]
        threshold = round(density * 2**32)
        self.moves = [
            [philox.word(mask_seed, MASK, stream, i) < threshold for i in range(len(theta))]
            for stream, theta in zip(self.streams, self.theta, strict=True)
        ]

    @staticmethod
    def _quantum(values: list[float], dtype: torch.dtype) -> float:
        """The smallest power of two q with 4 max|w| <= 2^bits q; a range of 0.25 at the least."""
        most = 4 * max(0.25, *(abs(v) for v in values), 0.0)
        bits = 24 if dtype is torch.float32 else 23
        quantum = 2.0**100
        while most <= 2**bits * quantum / 2:
            quantum /= 2
        return quantum

    @staticmethod
    def _in_quanta(values: list[float], quantum: float) -> list[int]:
        return [round(v / quantum) for v in values]  # ties to even

    def _block(self, seed: int) -> list[int]:
        """The tensors that a direction moves."""
        pattern = self.blocks[seed % len(self.blocks)]
        return [t for t, name in enumerate(self.names) if fnmatchcase(name, pattern)]

    def _normal(self, seed: int, tensor: int, i: int) -> int:
        return philox.normal(seed, self.streams[tensor], i)

    def _radius(self, seed: int) -> float:
        """sqrt(n) / |z| over the n weights that the direction moves."""
        squares = [
            self._normal(seed, t, i) ** 2
            for t in self._block(seed)
            for i, moves in enumerate(self.moves[t])
            if moves
        ]
        return math.sqrt(len(squares) / sum(squares)) * 2**20 if sum(squares) else 1.0

    def steps(self, seed: int, scale: float, commit: bool) -> list[list[int]]:
        """How many quanta each weight moves by scale * z(seed)."""
        steps = [[0] * len(theta) for theta in self.theta]
        size, fine = abs(scale), 1 if self.noise == "rademacher" else 2**16
        if self.noise == "sphere" and scale:
            size *= self._radius(seed)
        for t in self._block(seed):
            stream = self.streams[t]
            draw = philox.uniform(seed, ROUNDING, 0, stream) if commit else 0.5
            units = math.floor(size * fine / self.quanta[t] + draw)
            for i, moves in enumerate(self.moves[t]):
                if not moves:
                    continue
                if self.noise == "rademacher":
                    quanta = units * philox.sign(seed, stream, i)
                else:
                    dice = philox.word(seed, ROUNDING, stream, i) * 16 if commit else HALF
                    quanta = (self._normal(seed, t, i) * units + dice) // 2**36
                steps[t][i] = -quanta if scale < 0 else quanta
        return steps

    def commit(self, move: Move, decay: Decay | None = None) -> None:
        if decay is not None:
            self._decay(decay)
        for seed, coefficient in move:
            for theta, steps in zip(
                self.theta, self.steps(seed, coefficient, commit=True), strict=True
            ):
                theta[:] = [n + step for n, step in zip(theta, steps, strict=True)]

    def _decay(self, decay: Decay) -> None:
        rate = round(decay.rate * 2**36)
        for t, theta in enumerate(self.theta):
            for i, moves in enumerate(self.moves[t]):
                if moves:
                    gap = theta[i] - self.anchor[t][i]
                    dice = philox.word(decay.seed, DECAY, self.streams[t], i) * 16
                    step = (abs(gap) * rate + dice) // 2**36
                    theta[i] -= step if gap > 0 else -step

    def exact(self, offset: Offset) -> list[Tensor]:
        """The weights at an offset, in quanta."""
        away = [list(theta) for theta in self.theta]
        for seed, scale in offset.items():
            for values, steps in zip(away, self.steps(seed, scale, commit=False), strict=True):
                values[:] = [n + step for n, step in zip(values, steps, strict=True)]
        return [
            torch.tensor(v, dtype=torch.int64).view(s)
            for v, s in zip(away, self.shapes, strict=True)
        ]

    def at(self, offset: Offset) -> list[Tensor]:
        """The weights at an offset, as parameters show them."""
        return [
            (n.double() * quantum).to(dtype)
            for n, quantum, dtype in zip(self.exact(offset), self.quanta, self.dtypes, strict=True)
        ]
