"""The pass over a piece of weights, in torch ops: one definition, run eagerly or compiled.

A tensor's weights are integers n times a power-of-two quantum q, |n| < 2^24, which float32 holds
exactly. In 16 bits the weight is w = round(n q), and a companion of 16 more bits, n - w / q, keeps
what the rounding took away. So a pass is integer arithmetic: no rounding, the same bits anywhere.

With P(c) = c z / q rounded to the nearest integer and S(c) rounded up or down at random, a pass
adds to every weight, for every direction z,

    P(there) - P(here) + S(due)                                    (1)

which goes from one offset to another and makes the commits that are due. Both kinds of rounding
are odd in c, so that (1) can be taken back. For z of +/-1 they are the same for all weights of a
tensor and are made beforehand: (1) is then a whole number of quanta times z.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoobj import noise

FRACTION_BITS = 16
"""Gaussian coefficients are integers in units of 2^-FRACTION_BITS quanta."""
RATE_BITS = 36
"""Decay rates are integers in units of 2^-RATE_BITS."""

Companion = tuple[Tensor, Tensor] | None
"""Beside 16-bit weights, int8 low and high bytes of (exact value - weight) / q; else None."""

_SHIFT = noise.NORMAL_BITS + FRACTION_BITS


class Kernel(NamedTuple):
    """What a pass does to a piece. Each combination is compiled once.

    Attributes:
        dtype: of the weights.
        noise: "rademacher" or "gaussian"; "decay" adds no noise, but shrinks.
        lanes: directions added at once.
        due: with commits (gaussian only; for +/-1 they are no extra work).
        sparse: only a random part of the weights moves.
        anchored: decay towards an anchor instead of 0.
    """

    dtype: torch.dtype
    noise: str
    lanes: int = 0
    due: bool = False
    sparse: bool = False
    anchored: bool = False


def travel(
    kernel: Kernel,
    row: Tensor,
    stream: Tensor,
    keys: Tensor,
    amounts: Tensor,
    mask: Tensor,
    table: Tensor,
) -> Tensor:
    """How many quanta each weight moves: (1), summed over directions.

    Args:
        row, stream: [n] int64, where the weights are; see ``noise.signs``.
        keys: [lanes, 2] int64, words of the directions' seeds.
        amounts: int64, [1, lanes] or [1, lanes, n, 1, 1] for +/-1, the sum of there, -here and due
            in quanta; [3, ...] for Gaussian noise: there, here, due in 2^-FRACTION_BITS quanta.
        mask: [3] int64, words of the mask's seed and the threshold: weights whose word lies below
            it move. Read if ``kernel.sparse``.
        table: ``noise.normal_table``. Read if the noise is Gaussian.

    Returns:
        [n, 4, 32] int32.
    """
    total = None
    for lane in range(kernel.lanes):
        key = keys[lane, 0], keys[lane, 1]
        if kernel.noise == "rademacher":
            moved = noise.signs(key, row, stream).mul_(amounts[0, lane].to(torch.int32))
        else:
            z = noise.normals(key, row, stream, table)
            moved = _nearest(z, amounts[0, lane]) - _nearest(z, amounts[1, lane])
            if kernel.due:
                dice = noise.words(key, noise.ROUNDING, row, stream)
                moved = moved + _stochastic(z, amounts[2, lane], dice, _SHIFT)
            moved = moved.to(torch.int32)
        total = moved if total is None else total.add_(moved)
    assert total is not None
    if kernel.sparse:
        total = total.mul_(chosen(mask, row, stream))
    return total


def chosen(mask: Tensor, row: Tensor, stream: Tensor) -> Tensor:
    """[n, 4, 32] bool: the weights that ever move; arguments as for ``travel``."""
    return noise.words((mask[0], mask[1]), noise.MASK, row, stream) < mask[2]


def _nearest(z: Tensor, amount: Tensor) -> Tensor:
    """z amount / 2^SHIFT to the nearest integer, odd in amount."""
    return amount.sign() * ((z * amount.abs() + (1 << (_SHIFT - 1))) >> _SHIFT)


def _stochastic(z: Tensor, amount: Tensor, dice: Tensor, shift: int) -> Tensor:
    """z amount / 2^shift rounded up or down at random, odd in amount; dice in [0, 2^32)."""
    up = dice << (shift - 32)
    return amount.sign() * ((z * amount.abs() + up) >> shift)


def settle(weight: Tensor, companion: Companion, quantum: Tensor, moved: Tensor) -> None:
    """Move weights by whole numbers of quanta, in place.

    Args:
        weight: float32, bfloat16 or float16.
        companion: what 16-bit weights lack of their exact value.
        quantum: [2] float32, q and 1/q.
        moved: int32.
    """
    store(weight, companion, quantum, moved.add_(position(weight, companion, quantum)))


def position(weight: Tensor, companion: Companion, quantum: Tensor) -> Tensor:
    """int32: the exact value of weights, in quanta."""
    shown = weight.to(torch.float32).mul(quantum[1]).to(torch.int32)
    if companion is None:
        return shown
    low, high = companion
    return shown.add_(low).add_(high.to(torch.int32), alpha=256)


def store(weight: Tensor, companion: Companion, quantum: Tensor, exact: Tensor) -> None:
    """Write the exact value (int32, in quanta) into weights and companion."""
    shown = exact.to(torch.float32).mul_(quantum[0])
    if companion is not None:
        low, high = companion
        shown = _rounded(shown, weight.dtype)
        lacking = exact - position(shown, None, quantum)
        upper = (lacking + 128) >> 8
        high.copy_(upper)
        low.copy_(lacking - upper * 256)
    weight.copy_(shown)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 rounded to the bits of bfloat16 or float16, ties to even.

    By hand, since compilers drop a cast there and back. Multiples of 2^-24, as these are, need no
    care for float16's subnormal numbers.
    """
    dropped = 16 if dtype is torch.bfloat16 else 13
    bits = x.view(torch.int32)
    half = (1 << (dropped - 1)) - 1
    return ((bits + half + ((bits >> dropped) & 1)) >> dropped << dropped).view(torch.float32)


def shrink(
    weight: Tensor,
    companion: Companion,
    quantum: Tensor,
    rate: Tensor,
    dice: Tensor,
    anchor: Tensor | None,
) -> None:
    """Decay in place: w <- w - rate (w - anchor), rounded at random to quanta.

    Args:
        weight, companion, quantum: as for ``settle``.
        rate: int64, 0-d or for each weight, in units of 2^-RATE_BITS, from 0 to 1.
        dice: int64 random words in [0, 2^32), one for each weight.
        anchor: where to; rounded to quanta here. None: towards 0.
    """
    exact = position(weight, companion, quantum)
    gap = exact.to(torch.int64)
    if anchor is not None:
        goal = (anchor.to(torch.float32) * quantum[1]).round().to(torch.int64)
        gap = gap - goal
    step = gap.sign() * _stochastic(gap.abs(), rate, dice, RATE_BITS)
    store(weight, companion, quantum, exact - step.to(torch.int32))


def run(
    kernel: Kernel,
    weight: Tensor,
    companion: Companion,
    quantum: Tensor,
    at: Tensor,
    keys: Tensor,
    amounts: Tensor,
    mask: Tensor,
    table: Tensor,
    anchor: Tensor | None = None,
) -> None:
    """A pass over consecutive whole rows of one tensor, in place: what is compiled.

    Args:
        weight, companion, anchor: [n, 4, 32].
        at: [2] int64, number of the first row and the tensor's stream.
        amounts: as for ``travel``, one number a lane; for decay [1, 1], the rate.
        keys: as for ``travel``; for decay [1, 2], of the seed that its rounding draws from.
    """
    row = at[0] + torch.arange(weight.shape[0], device=weight.device)
    stream = at[1].expand_as(row)
    if kernel.noise == "decay":
        dice = noise.words((keys[0, 0], keys[0, 1]), noise.DECAY, row, stream)
        rate = amounts[0, 0]
        if kernel.sparse:
            rate = rate * chosen(mask, row, stream)
        shrink(weight, companion, quantum, rate, dice, anchor)
    else:
        moved = travel(kernel, row, stream, keys, amounts, mask, table)
        settle(weight, companion, quantum, moved)
