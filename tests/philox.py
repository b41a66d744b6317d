"""The noise of zoobj.noise written once more, in plain integers and one element at a time."""

import math
from functools import lru_cache
from statistics import NormalDist

WORD = 2**32


@lru_cache(maxsize=65536)
def block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10, from the equations of Salmon et al. 2011, section 3.3."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            right // WORD ^ b ^ low,
            right % WORD,
            left // WORD ^ d ^ high,
            left % WORD,
        )
        low, high = (low + 0x9E3779B9) % WORD, (high + 0xBB67AE85) % WORD
    return a, b, c, d


def key_of(seed: int) -> tuple[int, int]:
    return seed % WORD, seed // WORD % WORD


def numbered(seed: int, use: int, stream: int, number: int) -> tuple[int, int, int, int]:
    """Block ``number`` of tensor ``stream``, whose high 16 bits sit in the second counter word."""
    high = number // WORD + (stream // WORD) * 2**16
    return block((number % WORD, high, stream % WORD, use), key_of(seed))


def sign(seed: int, stream: int, index: int) -> int:
    """Element ``index`` of the noise of tensor ``stream``: bit i % 32 of word (i // 32) % 4."""
    words = numbered(seed, 0, stream, index // 128)
    return 1 if words[index // 32 % 4] >> index % 32 & 1 else -1


def word(seed: int, use: int, stream: int, index: int) -> int:
    """What element ``index`` draws: word i % 4 of block i // 4."""
    return numbered(seed, use, stream, index // 4)[index % 4]


@lru_cache
def quantiles() -> list[int]:
    """Of N(0, 1/2), in units of 2^-20; none is beyond 3."""
    exact = (NormalDist().inv_cdf((i + 0.5) / 65536) * math.sqrt(0.5) for i in range(65536))
    return [round(max(-3.0, min(3.0, x)) * 2**20) for x in exact]


def normal(seed: int, stream: int, index: int) -> int:
    """Gaussian noise in units of 2^-20: two quantiles, one for each half of a word."""
    drawn = word(seed, 4, stream, index)
    return quantiles()[drawn // 65536] + quantiles()[drawn % 65536]


def uniform(seed: int, use: int, index: int, stream: int) -> float:
    return (numbered(seed, use, stream, index)[0] + 0.5) / WORD
