"""One pass over all tuned weights: every piece is read, moved along all directions and written.

Large tensors are handled in runs of whole rows (noise.ROW), by a compiled kernel where there is
one. Small tensors and what is left of large ones share groups, so that the noise of many is made
by few calls. Neither changes a bit: an element's noise depends on its tensor and index alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoobj import compiled, kernels, noise
from zoobj.grid import Grid
from zoobj.kernels import Kernel

PIECE = 1 << 18  # weights of a piece: what stays in a core's cache, and bounds the memory
_LARGE_PIECE = {"cpu": 1 << 20, "cuda": 1 << 24}  # where a compiled kernel needs no temporaries
_LARGE_TENSOR = 1 << 16  # weights; smaller tensors are grouped
_LANES = (4, 2, 1)  # directions added at once, so that few kernels need compiling
_EAGER_LANES = (64, 16, *_LANES)  # a replay of many steps is half as long again without these


class Decay(NamedTuple):
    """Decoupled weight decay: theta <- theta - rate (theta - anchor), before the move.

    Attributes:
        rate: from 0 to 1; commonly learning rate times weight decay.
        seed: its rounding draws from it; another one at each step.
    """

    rate: float
    seed: int


class Lane(NamedTuple):
    """A direction in a pass, and how far each tensor goes along it, in ``travel``'s units."""

    seed: int
    there: list[int]
    here: list[int]
    due: list[int]

    def moves(self) -> bool:
        """Whether any weight changes."""
        return any(self.due) or self.there != self.here

    def leaves(self) -> bool:
        """Whether weights go further away along it."""
        return sum(map(abs, self.there)) > sum(map(abs, self.here))


@dataclass(frozen=True)
class _Span:
    """Consecutive elements of one tensor: a run of whole rows, [n, 4, 32], or a part of a group.

    Attributes:
        tensor: its number.
        at: [2] int64, the first row and the tensor's stream.
        place: where a group's noise, flattened, has them.
    """

    tensor: int
    weight: Tensor
    companion: kernels.Companion
    scale: Tensor
    at: Tensor
    place: slice
    anchor: Tensor | None

    def goal(self) -> Tensor | None:
        """The anchor as compiled kernels take it."""
        if self.anchor is None:
            return None
        return self.anchor.to(self.weight.device, torch.float32).contiguous()


@dataclass(frozen=True)
class _Group:
    """Spans of small tensors on one device, and for each row of noise: number, stream, tensor."""

    spans: list[_Span]
    row: Tensor
    stream: Tensor
    owner: Tensor


class _Batch:
    """Some lanes as the tensors that kernels take."""

    def __init__(self, lanes: Sequence[Lane], gaussian: bool, sparse: bool):
        columns = [[lane.there for lane in lanes], [lane.here for lane in lanes]]
        columns.append([lane.due for lane in lanes])
        amounts = torch.tensor(columns, dtype=torch.int64)  # [3, lanes, tensors]
        due = bool(amounts[2].any())
        if not gaussian:
            amounts = (amounts[0] - amounts[1] + amounts[2]).unsqueeze(0)
        kind = "gaussian" if gaussian else "rademacher"
        self.kernel = Kernel(torch.float32, kind, len(lanes), gaussian and due, sparse)
        self.moves: list[bool] = amounts.ne(0).any(0).any(0).tolist()
        self.keys = torch.tensor([noise.key_of(lane.seed) for lane in lanes])
        self.amounts = amounts

    def to(self, device: torch.device) -> "_Batch":
        self.keys, self.amounts = self.keys.to(device), self.amounts.to(device)
        return self


class Passes:
    """Makes passes over a list of tensors.

    Args:
        grids: the tensors.
        gaussian: Gaussian noise instead of +/-1.
        density, mask_seed: share of the weights that move, and what chooses them.
        compile: use compiled kernels.
        wait: for the compiler.
    """

    def __init__(
        self,
        grids: Sequence[Grid],
        gaussian: bool,
        density: float,
        mask_seed: int,
        compile: bool,
        wait: bool,
    ):
        self._gaussian, self._sparse = gaussian, density < 1
        self._compile, self._wait = compile, wait
        devices = {grid.flat.device for grid in grids}
        mask = torch.tensor([*noise.key_of(mask_seed), round(density * 2**32)])
        self._constants = {d: (mask.to(d), noise.normal_table(d)) for d in devices}
        large = _LARGE_PIECE if compile and not gaussian and not self._sparse else {}
        runs = (run for number, grid in enumerate(grids) for run in _runs(number, grid, large))
        self._pieces: list[_Span | _Group] = [*runs, *_groups(grids)]

    def travel(self, lanes: Sequence[Lane], decay: Decay | None = None) -> None:
        """Move all weights along all lanes; with decay, leave the offset, shrink, then go on.

        Units are quanta, for Gaussian noise 2^-FRACTION_BITS of them.
        """
        stages = [list(lanes)]
        if decay is not None:
            none = [0] * len(lanes[0].here) if lanes else []
            back = [lane._replace(there=none, due=none) for lane in lanes]
            forth = [lane._replace(here=none) for lane in lanes]
            stages = [back, forth]
        batches = [self._batches(stage) for stage in stages]
        with torch.no_grad():
            for piece in self._pieces:
                for number, stage in enumerate(batches):
                    if number and decay is not None:
                        self._shrink(piece, decay)
                    for batch in stage:
                        self._move(piece, batch)

    def radius(self, seed: int, members: frozenset[int]) -> float:
        """sqrt(weights) / length of a Gaussian direction, over the weights of these tensors."""
        square, count = 0, 0
        for piece in self._pieces:
            spans = [s for s in _spans(piece) if s.tensor in members]
            if not spans:
                continue
            z, moves = self._noise(seed, piece)
            for span in spans:  # sums of integers: the same in any order
                chosen = moves.view(-1)[span.place]
                square += int((z.view(-1)[span.place].square() * chosen).sum())
                count += int(chosen.sum())
        return math.sqrt(count / square) * 2**noise.NORMAL_BITS if square else 1.0

    def direction(self, seed: int, unit: float, into: Mapping[int, Tensor]) -> None:
        """Write unit times the whole numbers of the noise into these tensors: [numel] each."""
        for piece in self._pieces:
            spans = [s for s in _spans(piece) if s.tensor in into]
            if not spans:
                continue
            z, moves = self._noise(seed, piece)
            z = (z * moves * unit).view(-1)  # exact in float32, but for the unit of a sphere
            for span in spans:
                start = int(span.at[0]) * noise.ROW
                into[span.tensor][start : start + span.weight.numel()] = z[span.place]

    def _noise(self, seed: int, piece: _Span | _Group) -> tuple[Tensor, Tensor]:
        """The whole numbers that are a piece's noise, and which weights move: [n, 4, 32] each."""
        row, stream = _rows(piece)
        mask, table = self._constants[row.device]
        key = noise.key_of(seed)
        if self._gaussian:
            z = noise.normals(key, row, stream, table)
        else:
            z = noise.signs(key, row, stream)
        if self._sparse:
            return z, kernels.chosen(mask, row, stream)
        return z, torch.ones_like(z, dtype=torch.bool)

    def _batches(self, lanes: Sequence[Lane]) -> list[_Batch]:
        lanes = [lane for lane in lanes if lane.moves()]
        made, first = [], 0
        sizes = _LANES if self._compile else _EAGER_LANES
        while first < len(lanes):
            count = next(n for n in sizes if n <= len(lanes) - first)
            made.append(_Batch(lanes[first : first + count], self._gaussian, self._sparse))
            first += count
        return made

    def _move(self, piece: _Span | _Group, batch: _Batch) -> None:
        if isinstance(piece, _Span):
            if batch.moves[piece.tensor]:
                batch.to(piece.weight.device)
                amounts = batch.amounts[..., piece.tensor].contiguous()
                self._run(piece, batch.kernel, batch.keys, amounts)
        elif any(batch.moves[span.tensor] for span in piece.spans):
            batch.to(piece.row.device)
            amounts = batch.amounts[..., piece.owner][..., None, None]
            rows = (piece.row, piece.stream, batch.keys, amounts)
            moved = kernels.travel(batch.kernel, *rows, *self._constants[piece.row.device])
            for span in piece.spans:
                there = moved.view(-1)[span.place]
                kernels.settle(span.weight, span.companion, span.scale, there)

    def _shrink(self, piece: _Span | _Group, decay: Decay) -> None:
        rate = torch.tensor([[round(decay.rate * 2**kernels.RATE_BITS)]])
        keys = torch.tensor([noise.key_of(decay.seed)])
        if isinstance(piece, _Span):
            device = piece.weight.device
            anchored = piece.anchor is not None
            kernel = Kernel(torch.float32, "decay", sparse=self._sparse, anchored=anchored)
            self._run(piece, kernel, keys.to(device), rate.to(device))
            return
        rate = rate.to(piece.row.device)
        dice = noise.words(noise.key_of(decay.seed), noise.DECAY, piece.row, piece.stream)
        rates = rate[0, 0].expand_as(dice)
        if self._sparse:
            mask = self._constants[piece.row.device][0]
            rates = rates * kernels.chosen(mask, piece.row, piece.stream)
        for span in piece.spans:
            some, there = dice.view(-1)[span.place], rates.reshape(-1)[span.place]
            kernels.shrink(span.weight, span.companion, span.scale, there, some, span.goal())

    def _run(self, span: _Span, kernel: Kernel, keys: Tensor, amounts: Tensor) -> None:
        """A run of whole rows: by the compiled kernel, if there is one."""
        device = span.weight.device
        kernel = kernel._replace(dtype=span.weight.dtype)
        rest = (span.scale, span.at, keys, amounts, *self._constants[device])
        goal = span.goal() if kernel.anchored else None
        call = compiled.fetch(kernel, device, self._wait) if self._compile else None
        if call is None:
            kernels.run(kernel, span.weight, span.companion, *rest, anchor=goal)
        else:
            call(compiled.arguments(kernel, span.weight, span.companion, goal, *rest))


def _span(number: int, grid: Grid, start: int, stop: int, place: slice) -> _Span:
    def part(flat: Tensor) -> Tensor:
        return flat[start:stop] if place.stop else flat[start:stop].view(-1, 4, 32)

    at = torch.tensor([start // noise.ROW, grid.stream], device=grid.flat.device)
    companion = grid.companion and (part(grid.companion[0]), part(grid.companion[1]))
    anchor = None if grid.anchor is None else part(grid.anchor)
    return _Span(number, part(grid.flat), companion, grid.scale, at, place, anchor)


def _spans(piece: _Span | _Group) -> list[_Span]:
    return piece.spans if isinstance(piece, _Group) else [piece]


def _rows(piece: _Span | _Group) -> tuple[Tensor, Tensor]:
    if isinstance(piece, _Group):
        return piece.row, piece.stream
    row = piece.at[0] + torch.arange(piece.weight.shape[0], device=piece.weight.device)
    return row, piece.at[1].expand_as(row)


def _whole(grid: Grid) -> int:
    """How many elements of a tensor are handled in runs of whole rows."""
    numel = grid.flat.numel()
    return numel // noise.ROW * noise.ROW if numel >= _LARGE_TENSOR else 0


def _runs(number: int, grid: Grid, large: dict[str, int]) -> Iterator[_Span]:
    whole, size = _whole(grid), large.get(grid.flat.device.type, PIECE)
    for start in range(0, whole, size):
        yield _span(number, grid, start, min(whole, start + size), slice(None))


def _groups(grids: Sequence[Grid]) -> Iterator[_Group]:
    """What runs leave over, by device, about PIECE elements of noise together."""
    batches: dict[torch.device, list[tuple[int, int, int]]] = {}
    for number, grid in enumerate(grids):
        for start in range(_whole(grid), grid.flat.numel(), PIECE):
            batch = batches.setdefault(grid.flat.device, [])
            batch.append((number, start, min(grid.flat.numel(), start + PIECE)))
            if sum(stop - start + noise.ROW for _, start, stop in batch) > PIECE:
                yield _group(grids, batch)
                del batches[grid.flat.device]
    for batch in batches.values():
        yield _group(grids, batch)


def _group(grids: Sequence[Grid], parts: Sequence[tuple[int, int, int]]) -> _Group:
    spans, rows, streams, owners = [], [], [], []
    first = 0
    for number, start, stop in parts:
        device = grids[number].flat.device
        place = slice(first, first + stop - start)
        spans.append(_span(number, grids[number], start, stop, place))
        row = torch.arange(start // noise.ROW, -(-stop // noise.ROW), device=device)
        rows.append(row)
        streams.append(torch.full_like(row, grids[number].stream))
        owners.append(torch.full_like(row, number))
        first += row.numel() * noise.ROW
    return _Group(spans, torch.cat(rows), torch.cat(streams), torch.cat(owners))
