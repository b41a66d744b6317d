"""The tensors that a walk moves, each on its own grid of exactly representable values.

A tensor of largest magnitude m gets a power-of-two quantum q with 4 m <= 2^24 q (m is taken as 0.25
where it is smaller, so that an eps fits its range too) and is rounded to multiples of q once: an
error of at most 2^-22 m. From then on its weights are integers n times q, and since |n| stays
within 2^24, which is watched, all of them and all their sums are exact in float32.

16-bit weights show n q rounded; two more bytes a weight keep the rest. Their grid is twice as
coarse, 4 m <= 2^23 q, so that the rest fits.
"""

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from zoobj import kernels, noise
from zoobj.errors import UserError

_BITS = {torch.float32: 24, torch.bfloat16: 23, torch.float16: 23}
_HEADROOM = 4.0  # weights may grow this much before sums stop being exact
ROOM = 0.25
_STRETCH = 1 << 17  # weights handled at once; larger temporaries leave holes in the heap


@dataclass
class Grid:
    """One tuned tensor.

    Attributes:
        param: the parameter; its storage is written in place and never replaced.
        flat: its weights, [numel].
        companion: [numel] each, see ``kernels.Companion``.
        quantum: q; and ``scale``, [2] float32, q and 1/q on the tensor's device.
        limit: no weight may exceed this many quanta.
        reach: no weight does exceed this many, commits that are due included.
        stream: ``noise.stream_id`` of the name.
        anchor: [numel], where decay pulls to, if not to 0; and ``goal``, its largest magnitude.
    """

    name: str
    param: Tensor
    flat: Tensor
    companion: kernels.Companion
    quantum: float
    scale: Tensor
    limit: int
    reach: int
    stream: int
    anchor: Tensor | None = None
    goal: float = 0.0

    def measure(self) -> int:
        """A bound on the weights, as they are and after decay, in quanta; reads the tensor."""
        rounding = 0.0 if self.companion is None else 2.0**-8
        return math.ceil(max(largest(self.flat) * (1 + rounding), self.goal) / self.quantum)

    @torch.no_grad()
    def snap(self, quantum: float) -> None:
        """Round the weights, without their companion, to multiples of a power of two."""
        self._set_quantum(quantum)
        for weight, pair in self._stretches():
            if pair is None:  # the same, without leaving the tensor; -0 becomes 0
                weight.mul_(1 / quantum).round_().mul_(quantum).add_(0.0)
            else:
                exact = weight.to(torch.float32).mul_(1 / quantum).round_().to(torch.int32)
                kernels.store(weight, pair, self.scale, exact)
        self.reach = self.measure()

    @torch.no_grad()
    def coarsen(self) -> None:
        """Double the quantum, and with it the range; odd numbers of quanta are rounded.

        Raises:
            UserError: the range is all that the dtype has.
        """
        if self.limit < 2 ** _BITS[self.flat.dtype]:
            raise UserError(
                f"weights of parameter {self.name} would grow beyond what {self.flat.dtype} holds: "
                "lower eps or the learning rate"
            )
        old = self.scale.clone()
        self._set_quantum(2 * self.quantum)
        for weight, pair in self._stretches():
            exact = kernels.position(weight, pair, old)
            halved = (exact + ((exact >> 1) & 1)) >> 1  # ties to even
            kernels.store(weight, pair, self.scale, halved)
        self.reach = self.measure()

    def _set_quantum(self, quantum: float) -> None:
        self.quantum = quantum
        self.scale.copy_(torch.tensor([quantum, 1 / quantum], dtype=torch.float32))
        dtype = self.flat.dtype
        self.limit = min(2 ** _BITS[dtype], int(torch.finfo(dtype).max / quantum))

    def _stretches(self) -> Iterator[tuple[Tensor, kernels.Companion]]:
        """The weights piece by piece, so that no copy of a whole tensor is made."""
        for start in range(0, self.flat.numel(), _STRETCH):
            piece, pair = slice(start, start + _STRETCH), self.companion
            yield self.flat[piece], pair and (pair[0][piece], pair[1][piece])

    def check_place(self) -> None:
        """Refuse to write where the weights used to be.

        Raises:
            UserError: the parameter's data was replaced.
        """
        if self.param.data_ptr() != self.flat.data_ptr():
            raise UserError(
                f"the data of parameter {self.name} was replaced (by .to(), a cast or an "
                "assignment): make the walk or the optimizer after that"
            )


def grids(
    params: Iterable[tuple[str, Tensor]], tune: Sequence[str] = (), room: float = ROOM
) -> list[Grid]:
    """Check the tensors and put them on their grids, in place.

    Args:
        params: (name, tensor) pairs. Those that don't require gradients are left alone; tensors
            that share their memory (tied) count once, under the first name.
        tune: patterns of names, as in ``*.mlp.*``; others are left alone. Empty: all.
        room: a tensor whose largest weight is smaller gets a grid as if it were so large.

    Raises:
        UserError: nothing to tune, a pattern without a match, or a tensor that can't be walked.
    """
    chosen = [(name, param) for name, param in params if param.requires_grad]
    for pattern in tune:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in chosen):
            names = ", ".join(name for name, _ in chosen[:3])
            raise UserError(f"no trainable parameter is called {pattern!r}; there are {names}, ...")
    if tune:
        chosen = [(n, p) for n, p in chosen if any(fnmatch.fnmatchcase(n, t) for t in tune)]
    if not chosen:
        raise UserError("nothing to tune: no parameter requires gradients")
    for name, param in chosen:
        _check(name, param)
    chosen = _distinct(chosen)
    for name, times in Counter(name for name, _ in chosen).items():
        if times > 1:
            raise UserError(f"two parameters are called {name}: they would get the same noise")
    return [_snap(name, param, room) for name, param in chosen]


def moor(all_grids: Sequence[Grid], anchor: Mapping[str, Tensor]) -> None:
    """Give each tensor the weights that decay pulls it to.

    Raises:
        UserError: a tensor is missing there, of another shape, not finite or too large.
    """
    for grid in all_grids:
        goal = anchor.get(grid.name)
        if goal is None or goal.shape != grid.param.shape:
            found = "has no such tensor" if goal is None else f"has shape {list(goal.shape)}"
            raise UserError(
                f"anchor of parameter {grid.name} {list(grid.param.shape)}: the base {found}"
            )
        goal = goal.detach().reshape(-1)
        if goal.numel() and goal.data_ptr() == grid.flat.data_ptr():
            raise UserError(f"anchor of parameter {grid.name}: it is that parameter; clone it")
        if not largest(goal) / grid.quantum <= grid.limit / 2:
            raise UserError(f"anchor of parameter {grid.name}: the base's weights are far larger")
        grid.anchor, grid.goal = goal, largest(goal)
        grid.reach = max(grid.reach, math.ceil(grid.goal / grid.quantum))


def largest(tensor: Tensor) -> float:
    """max|x|, NaN if there is one; unlike ``abs().max()`` it makes no copy."""
    return max(abs(float(x)) for x in tensor.aminmax()) if tensor.numel() else 0.0


def _check(name: str, param: Tensor) -> None:
    if param.dtype not in _BITS:
        raise UserError(
            f"parameter {name} has dtype {param.dtype}: load the model in float32, bfloat16 or "
            "float16 (a quantised one dequantised), or freeze it with requires_grad_(False)"
        )
    if param.device.type == "meta":
        raise UserError(f"parameter {name} is on the meta device: load its weights first")
    if not param.is_contiguous():
        raise UserError(f"parameter {name} is not contiguous: call .contiguous() on its data")
    if not math.isfinite(largest(param.detach())):
        raise UserError(f"parameter {name} holds NaN or infinity: the checkpoint is damaged")


def _distinct(params: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Each piece of memory once.

    Raises:
        UserError: two tensors share a part of their memory only.
    """
    places: dict[tuple[str, int, int], tuple[str, Tensor]] = {}
    empty = [(name, param) for name, param in params if not param.numel()]
    for name, param in params:
        if param.numel():
            start = param.data_ptr()
            place = (str(param.device), start, start + param.numel() * param.element_size())
            places.setdefault(place, (name, param))
    for one, other in pairwise(sorted(places)):
        if one[0] == other[0] and other[1] < one[2]:
            names = f"{places[one][0]} and {places[other][0]}"
            raise UserError(f"parameters {names} overlap in memory: freeze one")
    return [*places.values(), *empty]


def _snap(name: str, param: Tensor, room: float) -> Grid:
    flat = param.data.view(-1)
    companion = None
    if param.dtype is not torch.float32:
        low, high = (torch.zeros_like(flat, dtype=torch.int8) for _ in range(2))
        companion = low, high
    most = max(largest(flat), room) * _HEADROOM
    quantum = 2.0 ** (math.ceil(math.log2(most)) - _BITS[param.dtype])
    scale = torch.empty(2, dtype=torch.float32, device=flat.device)
    grid = Grid(name, param, flat, companion, quantum, scale, 0, 0, noise.stream_id(name))
    grid.snap(quantum)
    return grid
