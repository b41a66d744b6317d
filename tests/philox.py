"""The generator of zoobj.noise written once more, in plain integers and one block at a time."""

from functools import lru_cache

WORD = 2**32


@lru_cache(maxsize=4096)
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


def sign(seed: int, stream: int, index: int) -> int:
    """Element ``index`` of the noise of tensor ``stream``: bit i % 32 of word (i // 32) % 4."""
    number = index // 128
    words = block((number % WORD, number // WORD, stream, 0), key_of(seed))
    return 1 if words[index // 32 % 4] >> index % 32 & 1 else -1


def uniform(seed: int, use: int, index: int, stream: int) -> float:
    words = block((index % WORD, index // WORD, stream, use), key_of(seed))
    return (words[0] + 0.5) / WORD
