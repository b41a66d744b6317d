"""zoobj.noise against published vectors, a slow twin, and what chance looks like."""

import hashlib
import math

import philox
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoobj import noise

WORDS = st.integers(0, 2**32 - 1)
SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**48 - 1)
ROWS = st.integers(0, 2**43 - 1)  # 32 blocks of words a row
BLOCKS = st.integers(0, 2**48 - 1)
USES = [noise.ROUNDING, noise.SAMPLING, noise.ORDER]


def signs(seed: int, rows: list[int], stream: int) -> Tensor:
    """[n, 128] +/-1 noise of some rows of a tensor."""
    row = torch.tensor(rows, dtype=torch.int64)
    made = noise.signs(noise.key_of(seed), row, torch.full_like(row, stream))
    return made.view(-1, noise.ROW)


def words(seed: int, use: int, rows: list[int], stream: int) -> Tensor:
    row = torch.tensor(rows, dtype=torch.int64)
    return noise.words(noise.key_of(seed), use, row, torch.full_like(row, stream)).view(-1, 128)


def normals(seed: int, rows: list[int], stream: int) -> Tensor:
    row = torch.tensor(rows, dtype=torch.int64)
    stream_of_row = torch.full_like(row, stream)
    made = noise.normals(noise.key_of(seed), row, stream_of_row, noise.normal_table())
    return made.view(-1, noise.ROW)


def elements(rows: list[int]) -> list[list[int]]:
    return [[row * 128 + i for i in range(128)] for row in rows]


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
    given_words = [int(word, 16) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    answer = [int(word, 16) for word in expected.split()]

    a, b, c, d = (torch.tensor([word]) for word in given_words)
    assert [int(x) for x in noise.philox((a, b, c, d), (low, high))] == answer
    tensors = torch.tensor(low), torch.tensor(high)  # as kernels pass them
    assert [int(x) for x in noise.philox((a, b, c, d), tensors)] == answer
    first, second, third, fourth = given_words
    assert list(philox.block((first, second, third, fourth), (low, high))) == answer


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=5), SEEDS)
def test_block_function_agrees_with_the_twin(
    counters: list[tuple[int, int, int, int]], seed: int
) -> None:
    a, b, c, d = torch.tensor(counters).unbind(1)
    got = torch.stack(noise.philox((a, b, c, d), noise.key_of(seed)), dim=1)
    expected = [list(philox.block(counter, philox.key_of(seed))) for counter in counters]
    assert got.tolist() == expected


@given(SEEDS, st.lists(BLOCKS, min_size=1, max_size=3), STREAMS)
def test_signs_are_the_bits_that_the_docstring_names(
    seed: int, rows: list[int], stream: int
) -> None:
    made = signs(seed, rows, stream)
    assert made.dtype is torch.int32
    expected = [[philox.sign(seed, stream, i) for i in row] for row in elements(rows)]
    assert made.tolist() == expected


@given(SEEDS, st.lists(ROWS, min_size=1, max_size=2), STREAMS, st.sampled_from([1, 5, 6]))
def test_words_are_those_that_the_docstring_names(
    seed: int, rows: list[int], stream: int, use: int
) -> None:
    expected = [[philox.word(seed, use, stream, i) for i in row] for row in elements(rows)]
    assert words(seed, use, rows, stream).tolist() == expected


@given(SEEDS, st.lists(ROWS, min_size=1, max_size=2), STREAMS)
def test_normals_are_sums_of_two_quantiles(seed: int, rows: list[int], stream: int) -> None:
    expected = [[philox.normal(seed, stream, i) for i in row] for row in elements(rows)]
    assert normals(seed, rows, stream).tolist() == expected


def test_normal_table_holds_the_quantiles_that_the_standard_library_finds() -> None:
    table = noise.normal_table()
    assert table.dtype is torch.int32
    assert table.tolist() == philox.quantiles()
    assert torch.equal(table, -table.flip(0))


def test_no_normal_is_larger_than_the_range_check_takes_for_granted() -> None:
    assert 2 * int(noise.normal_table().abs().max()) <= noise.LARGEST_NORMAL * 2**20 == 6 * 2**20


def test_rows_may_belong_to_different_tensors() -> None:
    row, stream = torch.tensor([3, 3]), torch.tensor([10, 11 + 2**40])
    both = noise.signs(noise.key_of(5), row, stream).view(2, -1)
    assert torch.equal(both[:1], signs(5, [3], 10))
    assert torch.equal(both[1:], signs(5, [3], 11 + 2**40))
    both = noise.normals(noise.key_of(5), row, stream, noise.normal_table()).view(2, -1)
    assert torch.equal(both[:1], normals(5, [3], 10))
    assert torch.equal(both[1:], normals(5, [3], 11 + 2**40))


def test_rows_beyond_32_bits_do_not_repeat_the_first_ones() -> None:
    assert not torch.equal(signs(1, [0], 0), signs(1, [2**32], 0))
    assert not torch.equal(words(1, 1, [0], 0), words(1, 1, [2**27], 0))


def test_high_bits_of_a_row_and_of_a_stream_do_not_meet() -> None:
    assert not torch.equal(signs(1, [2**32], 0), signs(1, [0], 2**32))


def test_both_halves_of_the_seed_and_of_the_stream_count() -> None:
    assert not torch.equal(signs(1, [0], 0), signs(1 + 2**32, [0], 0))
    assert not torch.equal(signs(1, [0], 1), signs(1, [0], 1 + 2**32))


def test_uses_of_a_seed_are_apart() -> None:
    uses = (noise.SIGNS, noise.ROUNDING, noise.SAMPLING, noise.ORDER)
    uses += (noise.NORMALS, noise.MASK, noise.DECAY)
    made = {tuple(words(1, use, [0], 0).flatten().tolist()) for use in uses}
    assert len(made) == len(uses)


# Any shard ----------------------------------------------------------------------------------------

KINDS = ["rademacher", "gaussian"]
WHOLE = {kind: noise.noise(kind, 11, "shard", 0, 1100) for kind in KINDS}


@given(st.sampled_from(KINDS), st.integers(0, 1100), st.integers(0, 1100))
def test_any_shard_is_a_slice_of_the_whole(kind: str, a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    shard = noise.noise(kind, 11, "shard", start, stop)
    assert shard.dtype is torch.float32
    assert torch.equal(shard, WHOLE[kind][start:stop])


@given(SEEDS, st.integers(0, 2**45), st.integers(1, 5))
def test_a_shard_far_inside_a_tensor_agrees_with_the_twin(
    seed: int, start: int, count: int
) -> None:
    stream, where = noise.stream_id("far"), range(start, start + count)
    z = noise.noise("rademacher", seed, "far", start, start + count)
    assert z.tolist() == [philox.sign(seed, stream, i) for i in where]
    z = noise.noise("gaussian", seed, "far", start, start + count)
    assert z.tolist() == [philox.normal(seed, stream, i) / 2**20 for i in where]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_shapes_never_get_equal_noise(kind: str) -> None:
    names = [f"layers.{i}.{part}" for i in range(20) for part in ("weight", "bias")]
    made = {tuple(noise.noise(kind, seed, n, 0, 128).tolist()) for n in names for seed in range(5)}
    assert len(made) == len(names) * 5


# Chance. With n signs the mean of any set, and the correlation of any two sets, has a standard
# deviation of 1/sqrt(n); five of them are never passed by honest noise, and the seeds are fixed.
# The same holds for normals.

MADE = {"signs": signs, "normals": normals}
both_kinds = pytest.mark.parametrize("kind", list(MADE))


def chance(kind: str, seed: int, first: int, stream: int) -> Tensor:
    """2^19 elements."""
    rows = list(range(first, first + 4096))
    return MADE[kind](seed, rows, stream).flatten().double() / (1 if kind == "signs" else 2**20)


def test_signs_are_balanced() -> None:
    z = signs(42, list(range(8192)), 7).double().flatten()
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    by_position = z.view(-1, 128).mean(0)  # a bad bit would show in its column
    assert float(by_position.abs().max()) < 5 / math.sqrt(8192)


def test_normals_have_the_moments_and_the_distribution_of_normals() -> None:
    z = chance("normals", 42, 0, 7)
    count = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(count)
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float((z**3).mean())) < 5 * math.sqrt(15 / count)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / count)
    assert float(z.abs().max()) <= noise.LARGEST_NORMAL
    by_position = z.view(-1, 128).mean(0)
    assert float(by_position.abs().max()) < 5 / math.sqrt(count / 128)
    # Kolmogorov-Smirnov: sqrt(n) times the distance passes 2.5 with a probability of 7e-6.
    below = torch.special.ndtr(z.sort().values)
    steps = torch.arange(count, dtype=torch.float64) / count
    distance = max(float((below - steps).max()), float((steps + 1 / count - below).max()))
    assert distance * math.sqrt(count) < 2.5


def test_the_exact_variance_and_kurtosis_of_normals_are_those_of_the_table() -> None:
    """All pairs of quantiles are as likely, so no sampling is needed."""
    half = [x / 2**20 for x in philox.quantiles()]
    second = math.fsum(x * x for x in half) / len(half)
    fourth = math.fsum(x**4 for x in half) / len(half)
    assert math.fsum(half) == 0
    assert 2 * second == pytest.approx(1, abs=1e-4)
    assert (2 * fourth + 6 * second**2) / (2 * second) ** 2 == pytest.approx(3, abs=2e-3)


@both_kinds
@pytest.mark.parametrize(
    ("seed", "first", "stream"),
    [
        (43, 0, 7),
        (42 + 2**32, 0, 7),
        (42, 0, 8),
        (42, 0, 7 + 2**32),
        (42, 0, 7 + 2**47),
        (42, 4096, 7),
    ],
    ids=[
        "next seed",
        "high half of the seed",
        "next tensor",
        "high part of the tensor's id",
        "its highest bit",
        "further on",
    ],
)
def test_noise_is_independent(kind: str, seed: int, first: int, stream: int) -> None:
    a, b = chance(kind, 42, 0, 7), chance(kind, seed, first, stream)
    assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())
    if kind == "normals":  # nor do their sizes tell of each other
        sizes = torch.corrcoef(torch.stack([a.square(), b.square()]))
        assert abs(float(sizes[0, 1])) < 5 / math.sqrt(a.numel())


@both_kinds
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 32, 64, 128])
def test_neighbours_are_independent(kind: str, lag: int) -> None:
    z = chance(kind, 42, 0, 7)
    assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(z.numel() - lag)


def test_normals_and_the_words_that_round_them_are_independent() -> None:
    rows = list(range(4096))
    z = normals(42, rows, 7).flatten().double() / 2**20
    dice = words(42, noise.ROUNDING, rows, 7).flatten().double() / 2**32
    correlation = torch.corrcoef(torch.stack([z, dice]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(z.numel())


# Uniforms -----------------------------------------------------------------------------------------


@given(SEEDS, st.sampled_from(USES), BLOCKS, STREAMS)
def test_uniform_agrees_with_the_twin_and_stays_inside_the_interval(
    seed: int, use: int, index: int, stream: int
) -> None:
    value = float(noise.uniform(seed, use, torch.tensor(index), stream))
    assert 0.0 < value < 1.0
    assert value == philox.uniform(seed, use, index, stream)


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_uniform_excludes_both_ends(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "philox", lambda counter, key: [torch.full_like(counter[0], word)])
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
        [philox.uniform(9, noise.ORDER, row * 3 + column, 4 + column) for column in range(3)]
        for row in range(2)
    ]
    assert got.tolist() == expected


# Names and seeds ----------------------------------------------------------------------------------


def test_stream_id_is_fixed_by_the_name() -> None:
    # The first six bytes of SHA-256("abc") are ba 78 16 bf 8f 01 (FIPS 180-2, appendix B.1).
    assert noise.stream_id("abc") == 0x018FBF1678BA
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


def test_noise_does_not_depend_on_the_default_dtype() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        shard = noise.noise("gaussian", 11, "shard", 0, 1100)
    finally:
        torch.set_default_dtype(before)
    assert shard.dtype is torch.float32
    assert torch.equal(shard, WHOLE["gaussian"])
