"""Walk: the weights at theta + sum(scale * z(seed)), in place and exact.

``goto`` takes the weights from the present offset to another in one pass that adds only the
difference; ``commit`` is folded into the next ``goto``. So a two-point step costs two passes: to
+eps, and to -eps; the restore, the update and the next +eps are one.

**Exact.** Every tensor gets a power-of-two quantum q with 4 max|w| <= 2^24 q, is snapped once to
multiples of q (an error of at most 2^-22 of its largest weight, or of 0.25 where that is larger),
and from then on moves by multiples of q only. All these numbers are float32 integers times q, so
every addition is exact: any number of moves can be taken back, in any order, to the same bits. A
scale of ``goto`` is rounded to the nearest multiple of q; a coefficient of ``commit`` up or down at
random, with the expected value unchanged (seeded, so that replays agree and small steps don't
vanish).

Weights in bfloat16 or float16 have too few bits for this. Their float32 truth is kept beside them
(4 more bytes a weight) and rounded into them after each move.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoobj import noise
from zoobj.errors import UserError

Move = list[tuple[int, float]]
"""A step of any method: theta <- theta + sum(coefficient * z(seed))."""
Offset = Mapping[int, float]
"""Where to score: theta + sum(scale * z(seed)), as {seed: scale}."""

CHUNK = 1 << 20  # weights per piece of noise: bounds the memory of a pass
_PRECISION = 24  # significant bits of float32
_HEADROOM = 4.0  # weights may grow this much before additions stop being exact
_SMALLEST_RANGE = 0.25  # for tensors of tiny weights, so that an eps fits their range too


@dataclass(frozen=True)
class _Tensor:
    """One tuned tensor: the parameter, its float32 truth as a flat view, its quantum, its id."""

    name: str
    param: Tensor
    truth: Tensor
    quantum: float
    stream: int


class Walk:
    """Moves a set of named tensors along seeded +/-1 directions.

    Args:
        params: (name, tensor) pairs, such as ``model.named_parameters()``. Tensors that don't
            require gradients are left alone; one that appears twice (tied) is moved once.

    Attributes:
        seconds: wall-clock time spent in passes so far.

    Raises:
        UserError: nothing to tune, or a tensor that can't be walked, named.

    >>> weight = torch.nn.Parameter(torch.tensor([0.5, -0.25, 0.125]))
    >>> walk = Walk([("weight", weight)])
    >>> before = weight.detach().clone()
    >>> walk.goto({7: 1e-2}); walk.goto({7: -1e-2}); walk.goto({})
    >>> torch.equal(weight, before)
    True
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]]):
        self._tensors = [_prepare(name, param) for name, param in _distinct(params)]
        if not self._tensors:
            raise UserError("nothing to tune: no parameter requires gradients")
        self._chunks = list(_chunks(self._tensors))
        self._zeros = [0] * len(self._tensors)
        self._tables = {t.truth.device: noise.sign_table(t.truth.device) for t in self._tensors}
        self._at: dict[int, list[int]] = {}  # seed -> quanta of each tensor, where we are
        self._due: dict[int, list[int]] = {}  # the same for commits that no pass has made yet
        self.seconds = 0.0

    @property
    def numel(self) -> int:
        """How many weights are tuned."""
        return sum(t.truth.numel() for t in self._tensors)

    def goto(self, offset: Offset) -> None:
        """Take the weights to theta + offset, commits included; ``goto({})`` is theta."""
        start = time.perf_counter()
        target = {seed: self._nearest(scale) for seed, scale in offset.items()}
        self._check_range(target, offset)
        deltas: dict[int, list[int]] = {}
        for seed in {**self._at, **target, **self._due}:
            parts = (quanta.get(seed, self._zeros) for quanta in (target, self._at, self._due))
            delta = [there - here + due for there, here, due in zip(*parts, strict=True)]
            if any(delta):
                deltas[seed] = delta
        self._add(deltas)
        self._at, self._due = target, {}
        self.seconds += time.perf_counter() - start

    def commit(self, move: Iterable[tuple[int, float]]) -> None:
        """theta <- theta + sum(coefficient * z(seed)); the weights follow at the next ``goto``.

        ``commit(-move)`` takes ``commit(move)`` back exactly.
        """
        for seed, quanta in [(seed, self._stochastic(seed, c)) for seed, c in move]:
            due = self._due.get(seed, self._zeros)
            self._due[seed] = [a + b for a, b in zip(due, quanta, strict=True)]

    def exact(self) -> bool:
        """Whether all weights are still within the range where additions are exact."""
        return all(_largest(t.truth) < 2**_PRECISION * t.quantum for t in self._tensors)

    def _check_range(self, target: Mapping[int, list[int]], offset: Offset) -> None:
        """Refuse an offset so large that taking it back would not be exact."""
        for tensor, quanta in zip(self._tensors, zip(*target.values(), strict=True), strict=False):
            if sum(map(abs, quanta)) > 2 ** (_PRECISION - 1):
                raise UserError(
                    f"an offset of {sum(map(abs, offset.values())):g} is too far for parameter "
                    f"{tensor.name}, whose weights are much smaller: lower eps"
                )

    def _nearest(self, scale: float) -> list[int]:
        if not math.isfinite(scale):
            raise ValueError(f"an offset of {scale} is not finite")
        return [round(scale / t.quantum) for t in self._tensors]

    def _stochastic(self, seed: int, coefficient: float) -> list[int]:
        """Multiples of each quantum whose expected value is the coefficient, odd in its sign."""
        if not math.isfinite(coefficient):
            raise ValueError(f"a move of {coefficient} along seed {seed} is not finite")
        streams = torch.tensor([t.stream for t in self._tensors])
        draws = noise.uniform(seed, noise.ROUNDING, torch.zeros_like(streams), streams).tolist()
        sign = -1 if coefficient < 0 else 1
        return [
            sign * math.floor(abs(coefficient) / t.quantum + draw)
            for t, draw in zip(self._tensors, draws, strict=True)
        ]

    @torch.no_grad()
    def _add(self, deltas: dict[int, list[int]]) -> None:
        """One pass: every chunk is read, moved along all directions and written once."""
        if not deltas:
            return
        for chunk in self._chunks:
            block, stream = self._counters(chunk)
            for seed, quanta in deltas.items():
                z = noise.signs(seed, block, stream, self._tables[block.device])
                for span in chunk:
                    if quanta[span.tensor]:
                        tensor = self._tensors[span.tensor]
                        step = quanta[span.tensor] * tensor.quantum
                        flat = z[span.row :].view(-1)[: span.stop - span.start]
                        tensor.truth[span.start : span.stop].add_(flat, alpha=step)
            for span in chunk:
                param, truth = self._tensors[span.tensor].param, self._tensors[span.tensor].truth
                if param.dtype is not torch.float32:
                    param.view(-1)[span.start : span.stop].copy_(truth[span.start : span.stop])

    def _counters(self, chunk: list["_Span"]) -> tuple[Tensor, Tensor]:
        """Block numbers and tensor ids of a chunk; made afresh, since all of them take memory."""
        device = self._tensors[chunk[0].tensor].truth.device
        per_block = noise.BITS_PER_BLOCK
        blocks = [
            torch.arange(span.start // per_block, -(-span.stop // per_block), device=device)
            for span in chunk
        ]
        streams = [
            torch.full_like(block, self._tensors[span.tensor].stream)
            for block, span in zip(blocks, chunk, strict=True)
        ]
        return torch.cat(blocks), torch.cat(streams)


class _Span(NamedTuple):
    """Elements [start, stop) of a tensor, and the first row of noise that serves them."""

    tensor: int
    start: int
    stop: int
    row: int


def _chunks(tensors: Sequence[_Tensor]) -> Iterator[list[_Span]]:
    """Pieces of up to CHUNK weights on one device; small tensors share one, to save calls."""
    size = CHUNK // noise.BITS_PER_BLOCK
    chunk: list[_Span] = []
    used = 0
    for number, tensor in enumerate(tensors):
        numel, first = tensor.truth.numel(), 0
        blocks = -(-numel // noise.BITS_PER_BLOCK)
        while first < blocks:
            elsewhere = chunk and tensors[chunk[0].tensor].truth.device != tensor.truth.device
            if used == size or elsewhere:
                yield chunk
                chunk, used = [], 0
            count = min(blocks - first, size - used)
            start = first * noise.BITS_PER_BLOCK
            stop = min(numel, start + count * noise.BITS_PER_BLOCK)
            chunk.append(_Span(number, start, stop, used))
            first, used = first + count, used + count
    if chunk:
        yield chunk


def _largest(tensor: Tensor) -> float:
    """max|x|, NaN if there is one; unlike ``abs().max()`` it makes no copy."""
    return max(abs(float(x)) for x in tensor.aminmax()) if tensor.numel() else 0.0


def _distinct(params: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, param in params:
        if param.requires_grad and id(param) not in seen:
            seen.add(id(param))
            yield name, param


@torch.no_grad()
def _prepare(name: str, param: Tensor) -> _Tensor:
    """Check one tensor, and snap it to its grid."""
    if param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(
            f"parameter {name} has dtype {param.dtype}: load the model in float32, bfloat16 or "
            "float16 (a quantised one dequantised), or freeze it with requires_grad_(False)"
        )
    if not param.is_contiguous():
        raise UserError(f"parameter {name} is not contiguous: call .contiguous() on its data")
    largest = _largest(param)
    if not math.isfinite(largest):
        raise UserError(f"parameter {name} holds NaN or infinity: the checkpoint is damaged")
    truth = param.data.view(-1) if param.dtype is torch.float32 else param.data.view(-1).float()
    exponent = math.ceil(math.log2(max(largest, _SMALLEST_RANGE) * _HEADROOM))
    quantum = 2.0 ** (exponent - _PRECISION)
    truth.div_(quantum).round_().mul_(quantum)
    if param.dtype is not torch.float32:
        param.data.view(-1).copy_(truth)
    return _Tensor(name, param, truth, quantum, noise.stream_id(name))
