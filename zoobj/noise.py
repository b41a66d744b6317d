"""Noise as a pure function of (seed, tensor, element): Philox4x32-10, a counter-based generator.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
doi:10.1145/2063384.2063405. One call of the block function turns a 64-bit key (the seed) and a
128-bit counter into four 32-bit words. Because nothing is carried from one call to the next, any
piece of a tensor can be made anywhere, in any order, with the same bits.

Noise comes in rows of 128 elements; row r of a tensor holds its elements [128 r, 128 r + 128).

- **signs**, +/-1 (Bernoulli SPSA; Spall 1992): element i reads bit i % 32 of word (i // 32) % 4 of
  block i // 128, so that a block serves 128 elements.
- **normals**: element i reads word i % 4 of block i // 4; each of its 16-bit halves picks one of
  65,536 quantiles of N(0, 1/2), and their sum is the value.
- **words**, for rounding and masks: the same word, as it is.

All of it is integer arithmetic: the same bits on every device, eager or compiled.
"""

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

ROW = 128
"""Elements of a row: those that one block of signs serves."""
NORMAL_BITS = 20
"""Normals are integers in units of 2^-NORMAL_BITS."""
LARGEST_NORMAL = 6
"""No normal is larger in magnitude."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# The last counter word keeps the uses of one seed apart: they never read the same block.
SIGNS, ROUNDING, SAMPLING, ORDER, NORMALS, MASK, DECAY = range(7)

Key = tuple[Tensor | int, Tensor | int]
"""The two 32-bit words of a seed, low word first: numbers or 0-d int64 tensors."""


def key_of(seed: int) -> tuple[int, int]:
    """The words of a 64-bit seed."""
    return seed & _MASK, (seed >> 32) & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, ...]:
    """The Philox4x32-10 block function.

    Args:
        counter: four int64 tensors of one shape, each holding 32-bit words.
        key: ``key_of`` the seed.

    Returns:
        Four int64 tensors of that shape, holding words in [0, 2^32).
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # x M overflows int64, which compilers may take never to happen. x (M - 2^32) does not: its
        # low word is the same, its high word lacks x.
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((p1 >> 32) + x2) ^ x1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) + x0) ^ x3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return x0, x1, x2, x3


def blocks(key: Key, use: int, index: Tensor, stream: Tensor) -> tuple[Tensor, ...]:
    """The four words of numbered blocks of a tensor.

    Args:
        key: ``key_of`` the seed.
        use: what the words are for.
        index: int64, number of each block within its tensor, below 2^48.
        stream: int64 of the same shape, ``stream_id`` of the tensor.
    """
    high = (index >> 32) | ((stream >> 32) << 16)
    return philox((index & _MASK, high, stream & _MASK, torch.full_like(index, use)), key)


def signs(key: Key, row: Tensor, stream: Tensor) -> Tensor:
    """+/-1 noise.

    Args:
        key: ``key_of`` the seed, which is the direction.
        row: [n] int64, numbers of the rows.
        stream: [n] int64, ``stream_id`` of the tensor that each row belongs to.

    Returns:
        [n, 4, 32] int32 of -1 and +1.
    """
    word = torch.stack(blocks(key, SIGNS, row, stream), dim=1).to(torch.int32)
    shifts = torch.arange(32, dtype=torch.int32, device=row.device)
    return (word.unsqueeze(2) >> shifts).bitwise_and_(1).mul_(2).sub_(1)


def words(key: Key, use: int, row: Tensor, stream: Tensor) -> Tensor:
    """[n, 4, 32] int64, a word in [0, 2^32) for every element; arguments as for ``signs``."""
    quads = ROW // 4
    index = row.unsqueeze(1) * quads + torch.arange(quads, device=row.device)
    made = blocks(key, use, index, stream.unsqueeze(1).expand_as(index))
    return torch.stack(made, dim=2).view(-1, 4, 32)


def normals(key: Key, row: Tensor, stream: Tensor, table: Tensor) -> Tensor:
    """Gaussian noise of mean 0 and variance 1, up to 6 in magnitude.

    Args:
        key, row, stream: as for ``signs``.
        table: ``normal_table`` on the same device.

    Returns:
        [n, 4, 32] int64, in units of 2^-20.
    """
    word = words(key, NORMALS, row, stream)
    return (table[word >> 16] + table[word & 0xFFFF]).to(torch.int64)


@lru_cache
def normal_table(device: torch.device | str = "cpu") -> Tensor:
    """[65536] int32: quantiles of N(0, 1/2) at (i + 1/2) / 65536, in units of 2^-20.

    The outermost two, which are 3.06, are taken as 3.
    """
    probability = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    most = LARGEST_NORMAL / 2
    quantile = (torch.special.ndtri(probability) * math.sqrt(0.5)).clamp(-most, most)
    return (quantile * 2**NORMAL_BITS).round().to(torch.int32).to(device)


def noise(kind: str, seed: int, name: str, start: int, stop: int) -> Tensor:
    """Elements [start, stop) of the noise of a tensor: any shard, with the bits of the whole.

    Args:
        kind: "rademacher" (+/-1) or "gaussian".
        seed: the direction.
        name: of the tensor.

    Returns:
        [stop - start] float32; exact, since these numbers have at most 24 bits.

    >>> noise("rademacher", 7, "layer.weight", 126, 131)
    tensor([ 1., -1., -1.,  1., -1.])
    """
    if kind not in ("rademacher", "gaussian"):
        raise ValueError(f"noise {kind!r}: rademacher or gaussian")
    row = torch.arange(start // ROW, -(-stop // ROW))
    stream = torch.full_like(row, stream_id(name))
    if kind == "rademacher":
        z = signs(key_of(seed), row, stream).to(torch.float32)
    else:
        z = normals(key_of(seed), row, stream, normal_table()).to(torch.float32) / 2**NORMAL_BITS
    first = start // ROW * ROW
    return z.view(-1)[start - first : stop - first]


def uniform(seed: int, use: int, index: Tensor, stream: Tensor | int = 0) -> Tensor:
    """float64 uniforms in the open interval (0, 1), one for each index.

    Args:
        seed: the key.
        use: ROUNDING, SAMPLING or ORDER.
        index: int64 of any shape, in [0, 2^48).
        stream: int64 broadcastable to index, or a number below 2^48.
    """
    stream = torch.as_tensor(stream, device=index.device).expand_as(index)
    word = blocks(key_of(seed), use, index, stream)[0]
    return (word.to(torch.float64) + 0.5) / 2**32


def stream_id(name: str) -> int:
    """A tensor's 48-bit id, from its name: renumbering or splitting a model doesn't change it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


def derive(seed: int, *path: int) -> int:
    """A new 53-bit seed (exact in JSON) from a seed and a path such as (step, direction)."""
    text = ",".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 11
