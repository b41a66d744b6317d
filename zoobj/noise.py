"""Noise as a pure function of (seed, stream, index): Philox4x32-10, a counter-based generator.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
doi:10.1145/2063384.2063405. One call of the block function turns a 64-bit key (the seed) and a
128-bit counter into four 32-bit words. Because nothing is carried from one call to the next, any
piece of a tensor can be made anywhere, in any order, with the same bits.

The default noise is +/-1 (Bernoulli SPSA; Spall 1992): element i of tensor t reads one bit, bit
i % 32 of word (i // 32) % 4 of the block at counter (i // 128, t), so a block serves 128 weights.
"""

import hashlib

import torch
from torch import Tensor

BITS_PER_BLOCK = 128

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Counter word 3 keeps the uses of one seed apart: they never read the same block.
SIGNS, ROUNDING, SAMPLING, ORDER = range(4)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> list[Tensor]:
    """The Philox4x32-10 block function.

    Args:
        counter: four int64 tensors of one shape, each holding 32-bit words.
        seed: the 64-bit key, low word first.

    Returns:
        Four int64 tensors of that shape, holding words in [0, 2^32).
    """
    x0, x1, x2, x3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product fits 64 bits; int64 wraps, and the mask undoes the sign.
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((p1 >> 32) & _MASK) ^ x1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ x3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [x0, x1, x2, x3]


def sign_table(device: torch.device | str = "cpu") -> Tensor:
    """[256, 8]: the eight signs that the bits of a byte stand for, lowest bit first."""
    byte = torch.arange(256, device=device).unsqueeze(1)
    bits = (byte >> torch.arange(8, device=device)) & 1
    return (2 * bits - 1).to(torch.float32)


def signs(seed: int, block: Tensor, stream: Tensor, table: Tensor) -> Tensor:
    """+/-1 noise for whole blocks.

    Args:
        seed: the direction.
        block: [n] int64, number of each block within its tensor (element index // 128).
        stream: [n] int64, id of the tensor each block belongs to.
        table: ``sign_table`` on the same device.

    Returns:
        [n, 128] float32 of -1 and +1.
    """
    counter = (block & _MASK, block >> 32, stream, torch.full_like(block, SIGNS))
    words = torch.stack(philox(counter, seed), dim=1)
    shifts = torch.arange(0, 32, 8, device=block.device)
    octets = (words.unsqueeze(2) >> shifts) & 0xFF  # [n, 4, 4], the same on every endianness
    return table[octets.flatten()].view(-1, BITS_PER_BLOCK)


def uniform(seed: int, use: int, index: Tensor, stream: Tensor | int = 0) -> Tensor:
    """float64 uniforms in the open interval (0, 1), one for each index.

    Args:
        seed: the key.
        use: ROUNDING, SAMPLING or ORDER.
        index: int64 of any shape, non-negative.
        stream: int64 broadcastable to index, or a number below 2^32.
    """
    stream = torch.as_tensor(stream, device=index.device).expand_as(index)
    counter = (index & _MASK, index >> 32, stream, torch.full_like(index, use))
    return (philox(counter, seed)[0].to(torch.float64) + 0.5) / 2**32


def stream_id(name: str) -> int:
    """A tensor's 32-bit id, from its name: renumbering or splitting a model doesn't change it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def derive(seed: int, *path: int) -> int:
    """A new 53-bit seed (exact in JSON) from a seed and a path such as (step, direction)."""
    text = ",".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 11
