"""Walk: the weights at theta + sum(scale * z(seed)), in place and exact.

``goto`` takes the weights from the present offset to another in one pass that adds only the
difference; ``commit`` is folded into the next ``goto``. So a two-point step costs two passes: to
+eps, and to -eps; the restore, the update and the next +eps are one.

**Exact.** All weights are whole numbers of quanta (grid.py), and all passes are integer arithmetic
(kernels.py): any number of moves can be taken back, in any order, to the same bits. The scale of
``goto`` is rounded to the nearest quantum, a coefficient of ``commit`` up or down at random, with
the expected value unchanged (seeded, so that replays agree and small steps don't vanish): one draw
for each tensor with +/-1 noise, one for each weight with Gaussian noise.
"""

import fnmatch
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zoobj import kernels
from zoobj.errors import UserError
from zoobj.grid import ROOM, Grid, grids, moor
from zoobj.interrupts import deferred
from zoobj.noise import LARGEST_NORMAL, NORMAL_BITS, ROUNDING
from zoobj.noise import uniform as uniform_noise
from zoobj.passes import Decay, Lane, Passes

Move = list[tuple[int, float]]
"""A step of any method: theta <- theta + sum(coefficient * z(seed))."""
Offset = Mapping[int, float]
"""Where to score: theta + sum(scale * z(seed)), as {seed: scale}."""
Noise = Literal["rademacher", "gaussian", "sphere"]

_WORTH_COMPILING = 1 << 23  # weights; fewer are moved eagerly in a few hundredths of a second


class Walk:
    """Moves a set of named tensors along seeded directions.

    Args:
        params: (name, tensor) pairs, such as ``model.named_parameters()``. Tensors that don't
            require gradients are left alone; ones that share their memory (tied) move once.
        noise: "rademacher" (+/-1), "gaussian", or "sphere": Gaussian directions scaled to the
            length sqrt(number of weights), which costs one more pass over the noise a direction.
        tune: patterns of names, as in ``*.mlp.*``; other tensors are left alone.
        blocks: patterns of names; a direction moves only the tensors of one of them, the one with
            number seed % len(blocks). Or how many runs of consecutive tensors to make blocks of.
        density: share of the weights that ever move, chosen once at random by ``mask_seed``.
        anchor: weights that decay pulls towards, by name, instead of 0.
        room: weights that are all smaller than this may grow as if they were so large.
        grow: let weights grow beyond four times the largest at the start, by a coarser grid; moves
            made before that can no longer be taken back exactly. Otherwise an error.
        compile: with compiled kernels; True waits for them, None takes them when they are there
            and asks for them if there are enough weights for it to pay.

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

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        noise: Noise = "rademacher",
        tune: Sequence[str] = (),
        blocks: Sequence[str] | int = (),
        density: float = 1.0,
        mask_seed: int = 0,
        anchor: Mapping[str, Tensor] | None = None,
        room: float = ROOM,
        grow: bool = False,
        compile: bool | None = None,
    ):
        if not 2**-32 <= density <= 1:
            raise UserError(f"density {density}: a share of the weights, above 0 and up to 1")
        if noise not in get_args(Noise):
            raise UserError(f"noise {noise!r}: choose {', '.join(get_args(Noise))}")
        self.noise, self._grow = noise, grow
        self._grids = grids(params, tune, room)
        self._members = _members(self._grids, blocks)
        if anchor is not None:
            moor(self._grids, anchor)
        if compile is None:
            compile, wait = self.numel >= _WORTH_COMPILING, False
        else:
            wait = compile
        plain = noise == "rademacher"
        self._passes = Passes(self._grids, not plain, density, mask_seed, compile, wait)
        self._fine = 1.0 if plain else 2.0**kernels.FRACTION_BITS  # units in a quantum
        self._farthest = 1.0 if plain else LARGEST_NORMAL / self._fine  # quanta that one goes
        self._streams = torch.tensor([grid.stream for grid in self._grids])
        self._radii: dict[int, float] = {}
        self._at: dict[int, list[int]] = {}  # seed -> units of each tensor, where we are
        self._due: list[tuple[int, list[int]]] = []  # the same for commits no pass has made yet
        self._decay: Decay | None = None  # due as well, before those
        self.seconds = 0.0

    @property
    def numel(self) -> int:
        """How many weights are tuned."""
        return sum(grid.flat.numel() for grid in self._grids)

    @property
    def names(self) -> list[str]:
        """Of the tuned tensors."""
        return [grid.name for grid in self._grids]

    def goto(self, offset: Offset) -> None:
        """Take the weights to theta + offset, commits included; ``goto({})`` is theta.

        Raises:
            UserError: the offset is so far that taking it back would not be exact.
        """
        start = time.perf_counter()
        target = self._within(
            lambda: {seed: self._units(seed, scale) for seed, scale in offset.items()},
            f"an offset of {sum(map(abs, offset.values())):g} is too far for parameter {{}}, whose "
            "weights are much smaller: lower eps",
        )
        self._settle(target)
        self.seconds += time.perf_counter() - start

    def commit(self, move: Iterable[tuple[int, float]], decay: Decay | None = None) -> None:
        """theta <- theta + sum(coefficient * z(seed)); the weights follow at the next ``goto``.

        Without decay, ``commit(-move)`` takes ``commit(move)`` back exactly.

        Args:
            move: the seeds and coefficients.
            decay: shrinks theta first; this can't be taken back.

        Raises:
            UserError: weights would outgrow the range of exact sums; the move is not made.
        """
        if decay is not None and not 0 <= decay.rate <= 1:
            raise ValueError(f"a decay rate of {decay.rate} is not from 0 to 1")
        move = list(move)
        lanes = self._within(
            lambda: dict(enumerate(self._units(s, c, self._draws(s)) for s, c in move)),
            "weights of parameter {} have grown beyond the range of exact moves, four times the "
            "largest at the start: lower the learning rate",
        )
        if decay is not None:
            if self._due or self._decay:
                self._settle(self._at)  # these come before
            self._decay = decay
        for grid, far in zip(self._grids, self._quanta([*lanes.values()]), strict=True):
            grid.reach += far
        self._due += [(seed, lanes[number]) for number, (seed, _) in enumerate(move)]

    def direction(self, seed: int) -> dict[str, Tensor]:
        """z(seed) itself, in memory, for what differentiates along it.

        Returns:
            For each tensor that it moves, by name, one of its shape, device and dtype; 0 where the
            density leaves a weight alone. Normals have as many digits as the dtype.
        """
        start = time.perf_counter()
        members = self._members[seed % len(self._members)]
        unit = 1.0 if self.noise == "rademacher" else 2.0**-NORMAL_BITS
        if self.noise == "sphere":
            unit *= self._passes.radius(seed, members)
        into = {number: torch.empty_like(self._grids[number].flat) for number in sorted(members)}
        self._passes.direction(seed, unit, into)
        self.seconds += time.perf_counter() - start
        return {self._grids[n].name: z.view(self._grids[n].param.shape) for n, z in into.items()}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What theta is beside the weights themselves, by tensor; goes to theta.

        The quantum, and for 16-bit weights [2, numel] int8, the rest that they can't show.
        """
        self.goto({})
        return {
            grid.name: {
                "quantum": grid.quantum,
                "rest": None if grid.companion is None else torch.stack(grid.companion),
            }
            for grid in self._grids
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the weights as they are now for the theta whose ``state_dict`` this is.

        Raises:
            UserError: the state is of other tensors.
        """
        mine = {grid.name: grid.companion is not None for grid in self._grids}
        theirs = {name: entry["rest"] is not None for name, entry in state.items()}
        if mine != theirs:
            name = next(n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n))
            raise UserError(f"the state does not fit parameter {name}: other names or dtypes")
        self._at, self._due, self._decay = {}, [], None
        for grid in self._grids:
            grid.snap(state[grid.name]["quantum"])
            if grid.companion is not None:
                for part, saved in zip(grid.companion, state[grid.name]["rest"], strict=True):
                    part.copy_(saved)

    def _settle(self, target: dict[int, list[int]]) -> None:
        """Make the pass to this offset, with all that is due."""
        for grid in self._grids:
            grid.check_place()
        with deferred():  # a pass is whole or not at all
            self._passes.travel(self._lanes(target), self._decay)
            self._at, self._due, self._decay = target, [], None
        self._radii = {seed: r for seed, r in self._radii.items() if seed in target}

    def _lanes(self, target: dict[int, list[int]]) -> list[Lane]:
        """The directions that the next pass adds, with what is due along each."""
        none = [0] * len(self._grids)
        lanes = {
            seed: Lane(seed, target.get(seed, none), self._at.get(seed, none), none)
            for seed in {**self._at, **target}
        }
        more = []
        for seed, units in self._due:
            lane = lanes.get(seed, Lane(seed, none, none, none))
            if self.noise == "rademacher":  # commits along one direction add up
                units = [a + b for a, b in zip(lane.due, units, strict=True)]
            elif any(lane.due):  # their roundings don't
                more.append(lane)
                lane = Lane(seed, none, none, none)
            lanes[seed] = lane._replace(due=units)
        # Lanes go in batches: those that come closer first, so that sums stay in range in between.
        return [*more, *sorted(lanes.values(), key=Lane.leaves)]

    # How far ----------------------------------------------------------------------------------

    def _units(self, seed: int, scale: float, draws: Sequence[float] | None = None) -> list[int]:
        """A scale in units for each tensor; 0 for those that the direction leaves alone.

        Rounded to the nearest, or by draws from [0, 1) up or down at random; odd in the scale.
        """
        if not math.isfinite(scale):
            raise ValueError(f"a scale of {scale} along seed {seed} is not finite")
        members = self._members[seed % len(self._members)]
        if self.noise == "sphere" and scale:
            scale *= self._radius(seed, members)
        sign, size = (-1 if scale < 0 else 1), abs(scale) * self._fine
        draws = draws or [0.5] * len(self._grids)
        return [
            sign * math.floor(size / grid.quantum + draw) if number in members else 0
            for number, (grid, draw) in enumerate(zip(self._grids, draws, strict=True))
        ]

    def _draws(self, seed: int) -> list[float]:
        """One uniform number for each tensor."""
        zeros = torch.zeros_like(self._streams)
        return uniform_noise(seed, ROUNDING, zeros, self._streams).tolist()

    def _radius(self, seed: int, members: frozenset[int]) -> float:
        """What takes a Gaussian direction to the length sqrt(weights that it moves)."""
        if seed not in self._radii:
            self._radii[seed] = self._passes.radius(seed, members)
        return self._radii[seed]

    def _quanta(self, lanes: Sequence[Sequence[int]]) -> list[int]:
        """The most that so many units along each lane move a weight of each tensor."""
        return [
            sum(math.ceil(abs(lane[number]) * self._farthest) for lane in lanes)
            for number in range(len(self._grids))
        ]

    def _within(
        self, lanes: Callable[[], dict[int, list[int]]], message: str
    ) -> dict[int, list[int]]:
        """Lanes that keep all weights in the range where sums are exact; or widen the range."""
        while True:
            units = lanes()
            grid = self._too_far([*units.values()])
            if grid is None:
                return units
            if self._due or self._decay:  # sums of commits overestimate a random walk
                self._settle(self._at)
                continue
            if not self._grow:
                raise UserError(message.format(grid.name))
            self._settle({})
            grid.coarsen()  # and look again

    def _too_far(self, lanes: Sequence[Sequence[int]]) -> Grid | None:
        """A tensor whose weights would outgrow the range in which all sums are exact."""
        for number, far in enumerate(self._quanta(lanes)):
            grid = self._grids[number]
            if grid.reach + far > grid.limit:
                # The sum of all steps overestimates a random walk: look at the weights.
                away = [*self._at.values(), *(units for _, units in self._due)]
                grid.reach = grid.measure() + self._quanta(away)[number]
                if grid.reach + far > grid.limit:
                    return grid
        return None


def _members(all_grids: Sequence[Grid], blocks: Sequence[str] | int) -> list[frozenset[int]]:
    """The numbers of the tensors in each block; without blocks, all in one."""
    if isinstance(blocks, int):
        count = len(all_grids)
        if blocks > count:
            raise UserError(f"blocks {blocks}: there are {count} tuned tensors: {count} at most")
        cuts = [number * count // blocks for number in range(blocks + 1)]
        return [frozenset(range(first, end)) for first, end in pairwise(cuts)]
    members = []
    for pattern in blocks or ["*"]:
        found = [n for n, g in enumerate(all_grids) if fnmatch.fnmatchcase(g.name, pattern)]
        if not found:
            raise UserError(f"block {pattern!r}: no tuned parameter has such a name")
        members.append(frozenset(found))
    return members
