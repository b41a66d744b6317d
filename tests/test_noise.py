"""zoobj.noise against published vectors, a slow twin, and what chance looks like."""

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from philox import block, key_of
from philox import sign as twin_sign
from philox import uniform as twin_uniform
from torch import Tensor

from zoobj import noise

TABLE = noise.sign_table()
WORDS = st.integers(0, 2**32 - 1)
SEEDS = st.integers(0, 2**64 - 1)
BLOCKS = st.integers(0, 2**57)  # a tensor of 2^64 elements has this many


def signs(seed: int, blocks: list[int], stream: int) -> Tensor:
    numbers = torch.tensor(blocks, dtype=torch.int64)
    return noise.signs(seed, numbers, torch.full_like(numbers, stream), TABLE)


# From the known-answer file of the Random123 distribution, "philox4x32 10".
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    words = [int(word, 16) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    answer = [int(word, 16) for word in expected.split()]

    a, b, c, d = (torch.tensor([word]) for word in words)
    assert [int(x) for x in noise.philox((a, b, c, d), high << 32 | low)] == answer
    assert list(block((words[0], words[1], words[2], words[3]), (low, high))) == answer


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), SEEDS)
def test_block_function_agrees_with_the_twin(
    counters: list[tuple[int, int, int, int]], seed: int
) -> None:
    a, b, c, d = torch.tensor(counters).unbind(1)
    got = torch.stack(noise.philox((a, b, c, d), seed), dim=1)
    assert got.tolist() == [list(block(counter, key_of(seed))) for counter in counters]


@given(SEEDS, st.lists(BLOCKS, min_size=1, max_size=3), WORDS)
def test_signs_are_the_bits_that_the_docstring_names(
    seed: int, blocks: list[int], stream: int
) -> None:
    expected = [[twin_sign(seed, stream, b * 128 + i) for i in range(128)] for b in blocks]
    assert signs(seed, blocks, stream).tolist() == expected


def test_signs_of_each_block_may_belong_to_another_tensor() -> None:
    both = noise.signs(5, torch.tensor([3, 3]), torch.tensor([10, 11]), TABLE)
    assert torch.equal(both[0], signs(5, [3], 10)[0])
    assert torch.equal(both[1], signs(5, [3], 11)[0])


def test_blocks_beyond_32_bits_do_not_repeat_the_first_ones() -> None:
    assert not torch.equal(signs(1, [0], 0), signs(1, [2**32], 0))


def test_both_halves_of_the_seed_count() -> None:
    assert not torch.equal(signs(1, [0], 0), signs(1 + 2**32, [0], 0))


def test_sign_table_lists_the_bits_of_a_byte_lowest_first() -> None:
    assert TABLE.shape == (256, 8)
    assert TABLE[0b0000_0101].tolist() == [1, -1, 1, -1, -1, -1, -1, -1]


# Chance. With n signs the mean of any set, and the correlation of any two sets, has a standard
# deviation of 1/sqrt(n); five of them are never passed by honest noise, and the seeds are fixed.


def test_signs_are_balanced() -> None:
    z = signs(42, list(range(8192)), 7).flatten()
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    by_position = z.view(-1, 128).mean(0)  # a bad bit would show in its column
    assert float(by_position.abs().max()) < 5 / math.sqrt(8192)


@pytest.mark.parametrize(
    ("seed", "first", "stream"),
    [(43, 0, 7), (42 + 2**32, 0, 7), (42, 0, 8), (42, 4096, 7)],
    ids=["next seed", "high half of the seed", "next tensor", "further on"],
)
def test_signs_are_independent(seed: int, first: int, stream: int) -> None:
    a = signs(42, list(range(4096)), 7).flatten()
    b = signs(seed, list(range(first, first + 4096)), stream).flatten()
    assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("lag", [1, 2, 8, 32, 64, 128])
def test_neighbours_are_independent(lag: int) -> None:
    z = signs(42, list(range(4096)), 7).flatten()
    assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(z.numel() - lag)


@given(SEEDS, st.sampled_from([noise.ROUNDING, noise.SAMPLING, noise.ORDER]), BLOCKS, WORDS)
def test_uniform_agrees_with_the_twin_and_stays_inside_the_interval(
    seed: int, use: int, index: int, stream: int
) -> None:
    value = float(noise.uniform(seed, use, torch.tensor(index), stream))
    assert 0.0 < value < 1.0
    assert value == twin_uniform(seed, use, index, stream)


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_uniform_excludes_both_ends(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "philox", lambda counter, seed: [torch.full_like(counter[0], word)])
    value = noise.uniform(0, noise.SAMPLING, torch.zeros(1, dtype=torch.int64))
    assert value.dtype is torch.float64
    assert 0.0 < float(value) < 1.0


def test_uniform_is_uniform_and_its_uses_are_independent() -> None:
    index = torch.arange(65536)
    a, b = (noise.uniform(3, use, index) for use in (noise.ROUNDING, noise.SAMPLING))
    tolerance = 5 / math.sqrt(index.numel())
    assert abs(float(a.mean()) - 1 / 2) < tolerance * math.sqrt(1 / 12)
    assert abs(float(a.var()) - 1 / 12) < tolerance * math.sqrt(1 / 180)
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < tolerance


def test_uniform_takes_any_shape_and_a_stream_for_each_index() -> None:
    index = torch.arange(6).view(2, 3)
    streams = torch.tensor([4, 5, 6])
    got = noise.uniform(9, noise.ORDER, index, streams)
    expected = [
        [twin_uniform(9, noise.ORDER, row * 3 + column, 4 + column) for column in range(3)]
        for row in range(2)
    ]
    assert got.tolist() == expected


def test_stream_id_is_fixed_by_the_name() -> None:
    # The first four bytes of SHA-256("abc") are ba 78 16 bf (FIPS 180-2, appendix B.1).
    assert noise.stream_id("abc") == 0xBF1678BA
    assert noise.stream_id("abd") != noise.stream_id("abc")


def test_derived_seeds_differ_and_are_exact_in_json() -> None:
    paths = [(1, 23), (12, 3), (1, 2, 3), (123,), (123, 0), (0, 123), (-123,)]
    paths += [(s, step, k) for s in range(10) for step in range(10) for k in range(10)]
    seeds = {noise.derive(*path) for path in paths}
    assert len(seeds) == len(set(paths))
    assert all(int(float(seed)) == seed and 0 <= seed < 2**53 for seed in seeds)


def test_derive_is_stable() -> None:
    # The first eight bytes of SHA-256("1,2"), little endian, less eleven bits.
    digest = hashlib.sha256(b"1,2").digest()
    assert noise.derive(1, 2) == int.from_bytes(digest[:8], "little") >> 11
