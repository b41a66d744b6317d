"""zoobj.walk against a twin that allocates everything, and the promises of its docstring."""

import contextlib
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import philox
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from twin import Twin, same_bits

from zoobj import grid, kernels, noise, passes
from zoobj.errors import UserError
from zoobj.passes import Decay, Lane
from zoobj.walk import Move, Noise, Offset, Walk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NOISES: list[Noise] = ["rademacher", "gaussian", "sphere"]
SHAPES = [(), (0,), (1,), (3, 0, 2), (5,), (127,), (128,), (129,), (3, 50), (2, 3, 50)]
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["fp32", "bf16", "fp16"])
every_noise = pytest.mark.parametrize("kind", NOISES)

Params = list[tuple[str, Parameter]]


def made(shape: tuple[int, ...], seed: int = 0, spread: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * spread


def named(*tensors: Tensor) -> Params:
    return [(f"tensor{number}", Parameter(tensor)) for number, tensor in enumerate(tensors)]


def mixed(size: int = 300) -> Params:
    """Some weights of each dtype, with both signs of zero."""
    some = [made((size,), number).to(dtype) for number, dtype in enumerate(FLOATS)]
    some.append(torch.tensor([0.0, -0.0, 1e-9, -1e-9]))
    some.append(torch.tensor([0.0, -0.0, 1e-9, -1e-9]).bfloat16())
    return named(*some, made((3, size), 4, 5.0))


def copies(params: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    return [tensor.detach().clone() for _, tensor in params]


def companions(walk: Walk) -> list[Tensor]:
    return [part.clone() for g in walk._grids if g.companion for part in g.companion]


def exact(walk: Walk) -> list[Tensor]:
    """All weights in quanta, companions included."""
    return [
        kernels.position(g.flat, g.companion, g.scale).view(g.param.shape).long()
        for g in sorted(walk._grids, key=lambda g: g.name)
    ]


def same(params: Sequence[tuple[str, Tensor]], expected: list[Tensor]) -> bool:
    return all(same_bits(t, e) for (_, t), e in zip(params, expected, strict=True))


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(same_bits(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sizes in rows, so that small tensors too are handled in several runs and groups."""

    def set_sizes(piece: int, large: int) -> None:
        monkeypatch.setattr(passes, "PIECE", piece * noise.ROW)
        monkeypatch.setattr(passes, "_LARGE_PIECE", {"cpu": 2 * piece * noise.ROW})
        monkeypatch.setattr(passes, "_LARGE_TENSOR", large * noise.ROW)
        monkeypatch.setattr(grid, "_STRETCH", 100)

    return set_sizes


# The twin -----------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**64 - 1) | st.sampled_from([1, 2, 3])  # often one that came before
SCALES = st.floats(-0.01, 0.01) | st.sampled_from([0.0, 1e-3, -1e-3, 1e-9])
MOVES = st.lists(st.tuples(SEEDS, SCALES), max_size=3)
DECAYS = st.none() | st.builds(Decay, st.sampled_from([0.0, 1e-6, 0.01, 0.5, 1.0]), SEEDS)
GOTO = st.tuples(st.just("goto"), st.dictionaries(SEEDS, SCALES, max_size=3), st.none())
COMMIT = st.tuples(st.just("commit"), MOVES, DECAYS)
TENSORS = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from(FLOATS), st.sampled_from([1e-4, 1, 30])),
    min_size=1,
    max_size=4,
)
OPTIONS = st.fixed_dictionaries(
    {"noise": st.sampled_from(NOISES)},
    optional={
        "tune": st.just(["*.[01]", "*.0"]),
        "blocks": st.sampled_from([["*.0", "*"], ["layers*", "*0", "*"]]),
        "density": st.sampled_from([0.01, 0.5, 0.999]),
        "mask_seed": SEEDS,
    },
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=TENSORS,
    options=OPTIONS,
    anchored=st.booleans(),
    steps=st.lists(GOTO | COMMIT, max_size=5),
    piece=st.integers(1, 3),
    large=st.integers(1, 3),
)
def test_any_walk_agrees_with_the_twin_to_the_bit(
    tensors: list[tuple[tuple[int, ...], torch.dtype, float]],
    options: dict[str, Any],
    anchored: bool,
    steps: list[tuple[str, Any, Decay | None]],
    piece: int,
    large: int,
    small_pieces: Callable[[int, int], None],
) -> None:
    small_pieces(piece, large)
    params = [
        (f"layers.{number}", Parameter(made(shape, number, spread).to(dtype)))
        for number, (shape, dtype, spread) in enumerate(tensors)
    ]
    if anchored:
        goals = {name: made(tuple(p.shape), 9, 0.05).to(p.dtype) for name, p in params}
        options = {**options, "anchor": goals}
    twin, subject = Twin(params, **options), Walk(params, **options)
    tuned = [(name, p) for name, p in params if name in twin.names]

    def agree(offset: Offset) -> bool:
        return same(tuned, twin.at(offset)) and equal(exact(subject), twin.exact(offset))

    assert agree({})
    for verb, argument, decay in steps:
        if verb == "commit":
            subject.commit(list(argument), decay)
            twin.commit(list(argument), decay)
        else:
            subject.goto(dict(argument))
            assert agree(argument)
    subject.goto({})
    assert agree({})


@every_noise
def test_many_directions_at_once_agree_with_the_twin(kind: Noise) -> None:
    params = named(made((150,)), made((40,), 1).bfloat16())
    twin, subject = Twin(params, kind), Walk(params, kind)
    move = [(seed, 1e-3 / (seed + 1)) for seed in range(11)]
    offset = {seed: -2e-4 * seed for seed in range(5, 14)}
    for subject_or_twin in (subject, twin):
        subject_or_twin.commit([*move, move[3], move[7]])
    subject.goto(offset)
    assert same(params, twin.at(offset))
    subject.goto({3: 0.001})
    assert same(params, twin.at({3: 0.001}))


# Exactness ----------------------------------------------------------------------------------------


@every_dtype
@every_noise
def test_hundreds_of_evaluations_leave_no_trace(dtype: torch.dtype, kind: Noise) -> None:
    zeros = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    params = named(made((7, 33)).to(dtype), made((200,), 1, 5.0).to(dtype), zeros.to(dtype))
    subject = Walk(params, kind)
    before, beside = copies(params), companions(subject)
    for seed in range(150):
        subject.goto({seed: 1e-3})
        subject.goto({seed: -1e-3})
    assert not same(params, before)
    subject.goto({})
    assert same(params, before)
    assert equal(companions(subject), beside)


@every_dtype
@every_noise
def test_a_commit_is_taken_back_exactly_in_any_order(dtype: torch.dtype, kind: Noise) -> None:
    params = named(made((300,)).to(dtype))
    subject = Walk(params, kind)
    before, beside = copies(params), companions(subject)
    move = [(seed % 15, 1.234e-4 * (seed - 10)) for seed in range(20)]  # some seeds come twice
    subject.commit(move)
    subject.goto({})
    assert not same(params, before)
    for seed, coefficient in reversed(move):
        subject.goto({99: 0.01})
        subject.commit([(seed, -coefficient)])
    subject.goto({})
    assert same(params, before)
    assert equal(companions(subject), beside)


@every_noise
@pytest.mark.parametrize("decays", [False, True], ids=["no decay", "decay"])
def test_a_replay_of_the_commits_gives_the_weights_of_the_run(kind: Noise, decays: bool) -> None:
    run, replay = mixed(), mixed()
    subject, other = Walk(run, kind), Walk(replay, kind)
    moves: list[tuple[Move, Decay | None]] = []
    for step in range(40):
        subject.goto({step: 1e-3})
        subject.goto({step: -1e-3})
        decay = Decay(1e-3, 1000 + step) if decays and step % 3 == 0 else None
        moves.append(([(step, 1e-5 * (step - 20)), (step // 2, 3e-6)], decay))
        subject.commit(*moves[-1])
    subject.goto({})
    for move, decay in moves:
        other.commit(move, decay)
    other.goto({})
    assert same(replay, copies(run))
    assert equal(companions(other), companions(subject))


@every_noise
def test_no_walk_leaves_a_negative_zero(kind: Noise) -> None:
    params = mixed()
    subject = Walk(params, kind)
    for offset in ({}, {1: 1e-7}, {}):  # the smallest steps there are, and back
        subject.goto(offset)
        for _, param in params:
            assert not bool(param.detach()[param.detach() == 0].signbit().any())


@every_dtype
def test_batches_of_directions_stay_in_range_in_between(dtype: torch.dtype) -> None:
    """Both offsets are in range, but weights that go to one before they leave the other aren't."""
    params = named((made((500,)).clamp(-1, 1) / 4).to(dtype))
    subject = Walk(params)
    before, beside = copies(params), companions(subject)
    subject.goto({1: 0.0123, 2: 0.0123, 3: 0.0123, 4: 0.0123, 5: 0.6123})
    subject.goto({1: 0.6123, 2: 0.0246, 3: 0.0246, 4: 0.0246, 5: 0.0123})
    subject.goto({})
    assert same(params, before)
    assert equal(companions(subject), beside)


def test_a_commit_waits_for_the_next_goto() -> None:
    params = named(torch.zeros(128))
    subject = Walk(params)
    subject.commit([(5, 0.5)])
    assert same(params, [torch.zeros(128)])
    subject.goto({5: 0.25})
    assert set(params[0][1].abs().tolist()) == {0.75}


def test_a_sphere_has_the_length_that_signs_have() -> None:
    params = named(torch.zeros(300), torch.zeros(7, 40))
    Walk(params, "sphere").goto({1: 0.01})
    square = sum(float(p.detach().double().square().sum()) for _, p in params)
    assert math.sqrt(square) == pytest.approx(0.01 * math.sqrt(580), rel=1e-5)


def test_directions_are_those_that_noise_shows() -> None:
    for kind in ("rademacher", "gaussian"):
        params = named(torch.zeros(300))
        Walk(params, kind).goto({12: 2.0**-10})
        z = noise.noise(kind, 12, "tensor0", 0, 300) * 2.0**-10
        assert torch.allclose(params[0][1], z, rtol=0, atol=2.0**-24)


# Passes -------------------------------------------------------------------------------------------


def counted(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., Any]
) -> list[Any]:
    """What ``note`` makes of the arguments of every call."""
    function, seen = getattr(owner, name), []

    def call(*args: Any, **options: Any) -> Any:
        seen.append(note(*args, **options))
        return function(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return seen


@every_noise
def test_a_two_point_step_takes_two_passes(kind: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(self: Any, lanes: list[Lane], decay: Decay | None = None) -> list[int]:
        return sorted(lane.seed for lane in lanes if lane.moves())

    subject = Walk(mixed(), kind)
    seen = counted(monkeypatch, passes.Passes, "travel", moving)
    for step in range(3):  # to +eps together with what the last step owes, and to -eps
        seen.clear()
        subject.goto({step: 1e-3})
        subject.goto({step: -1e-3})
        subject.commit([(step, 1e-4)])
        # The restore, the update and the next +eps are one pass over two directions.
        assert seen == [[step - 1, step] if step else [0], [step]]


@every_noise
def test_a_pass_writes_every_piece_once_however_many_the_directions(
    kind: Noise, monkeypatch: pytest.MonkeyPatch, small_pieces: Callable[[int, int], None]
) -> None:
    small_pieces(2, 3)
    params = named(made((1000,)), made((129,)), made((5,)).bfloat16())
    subject = Walk(params, kind)
    sizes = counted(monkeypatch, kernels, "settle", lambda weight, *rest: weight.numel())
    subject.goto({1: 0.01, 2: 0.01, 3: -0.01, 4: 0.02})
    assert sum(sizes) == subject.numel == 1134


def test_standing_still_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Walk(named(made((300,))))
    subject.goto({1: 1e-3})
    monkeypatch.setattr(noise, "signs", None)
    subject.goto({1: 1e-3})
    subject.commit([(2, 1e-3), (2, -1e-3)])
    subject.goto({1: 1e-3, 3: 0.0})


def test_a_direction_makes_no_noise_for_large_tensors_that_it_leaves_alone(
    monkeypatch: pytest.MonkeyPatch, small_pieces: Callable[[int, int], None]
) -> None:
    small_pieces(1, 1)
    subject = Walk([("a", Parameter(made((256,)))), ("b", Parameter(made((256,))))], blocks="ab")
    streams = counted(monkeypatch, noise, "signs", lambda key, row, stream: set(stream.tolist()))
    subject.goto({4: 1e-3})
    assert set.union(*streams) == {noise.stream_id("a")}


def test_seconds_grow_with_every_pass() -> None:
    subject = Walk(named(made((300,))))
    assert subject.seconds == 0.0
    subject.goto({1: 0.5})
    assert subject.seconds > 0.0


# Same bits ----------------------------------------------------------------------------------------


def walked(kind: Noise, **options: Any) -> list[Tensor]:
    """Weights after some of everything."""

    def regular(shape: tuple[int, ...], factor: int) -> Tensor:
        many = torch.arange(math.prod(shape)).add(5).mul(factor).remainder(10007)
        return many.sub(5003).double().div(20000).view(shape)

    shapes = [(1000,), (3,), (129, 5), (), (700,)]
    params = named(*(regular(s, 7919 + n).to(FLOATS[n % 3]) for n, s in enumerate(shapes)))
    anchor = {name: regular(tuple(p.shape), 6007) for name, p in params}
    subject = Walk(params, kind, anchor=anchor, **options)
    subject.goto({9: 0.003})
    subject.commit([(1, 1e-3), (2, -2e-3), (1, 1e-6)])
    subject.commit([(4, 1e-3)], Decay(0.01, 5))
    subject.goto({3: 0.01})
    return [*copies(params), *companions(subject)]


@every_noise
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_pieces_do_not_change_the_bits(
    kind: Noise, density: float, small_pieces: Callable[[int, int], None]
) -> None:
    expected = walked(kind, density=density)
    for piece, large in ((1, 1), (3, 2), (2, 6), (7, 1000)):
        small_pieces(piece, large)
        assert equal(walked(kind, density=density), expected)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@every_noise
def test_threads_do_not_change_the_bits(kind: Noise, threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2):
        threads(count)
        params = named(made((200, 350)))
        subject = Walk(params, kind)
        subject.commit([(1, 1e-3)], Decay(0.01, 5))
        subject.goto({2: 0.01, 3: -0.01})
        results.append(copies(params))
    assert equal(*results)


HASHED = """
import hashlib, torch
from zoobj.passes import Decay
from zoobj.walk import Walk

digest = hashlib.sha256()
for kind, dtype in (("rademacher", torch.float32), ("sphere", torch.bfloat16)):
    values = torch.arange(70_000).mul(7919).remainder(10007).sub(5003).double() / 5003
    weight = torch.nn.Parameter(values.to(dtype))
    walk = Walk([("weight", weight)], kind)
    walk.commit([(1, 1e-3)], Decay(0.01, 5))
    walk.goto({3: 0.01})
    digest.update(weight.detach().view(torch.uint8).numpy().tobytes())
print(torch.get_num_threads(), digest.hexdigest())
"""


def test_another_process_with_other_threads_makes_the_same_bits() -> None:
    printed = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", HASHED]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout.split())
    assert [words[0] for words in printed] == ["1", "2"]
    assert printed[0][1] == printed[1][1]


def test_the_bits_stay_what_they_were() -> None:
    """A log of seeds and coefficients is worth something only as long as this doesn't change."""
    digests = {}
    for kind in NOISES:
        digest = hashlib.sha256()
        for weights in walked(kind):
            digest.update(weights.view(-1).view(torch.uint8).numpy().tobytes())
        digests[kind] = digest.hexdigest()[:16]
    assert digests == BITS


BITS = {
    "rademacher": "87d738ab16ba547c",
    "gaussian": "3335e4eba12a9ee7",
    "sphere": "47e04d74f91ccca6",
}


def test_noise_belongs_to_the_name_and_not_to_the_position() -> None:
    a, b = Parameter(torch.zeros(200)), Parameter(torch.zeros(200))
    Walk([("other", Parameter(torch.zeros(77))), ("same", a)]).goto({4: 0.5})
    Walk([("same", b)]).goto({4: 0.5})
    assert torch.equal(a, b)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_does_not_change_the_bits(default: torch.dtype) -> None:
    expected = walked("gaussian")
    before = torch.get_default_dtype()
    params = named(made((300,)), made((300,), 1).bfloat16())
    twins = named(made((300,)), made((300,), 1).bfloat16())
    Walk(twins, "sphere").goto({1: 0.01})
    try:
        torch.set_default_dtype(default)
        Walk(params, "sphere").goto({1: 0.01})
    finally:
        torch.set_default_dtype(before)
    assert same(params, copies(twins))
    assert equal(walked("gaussian"), expected)


# In place -----------------------------------------------------------------------------------------


@every_dtype
@every_noise
def test_weights_stay_where_they_are(dtype: torch.dtype, kind: Noise) -> None:
    param = Parameter(made((300,)).to(dtype))
    address = param.data_ptr()
    subject = Walk([("weight", param)], kind)
    subject.commit([(2, 1e-3)], Decay(0.1, 3))
    subject.goto({1: 0.01})
    assert param.data_ptr() == address
    assert param.dtype is dtype
    assert param.requires_grad
    assert param.is_leaf
    assert param.grad is None


def test_no_global_random_state_is_touched() -> None:
    def states() -> tuple[str, object, bytes]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        torch_state = torch.random.get_rng_state().numpy().tobytes()
        return repr(numpy_state), random.getstate(), torch_state

    before = states()
    for kind in NOISES:
        subject = Walk(named(made((300,)).bfloat16()), kind, density=0.5)
        subject.commit([(1, 1e-3)], Decay(0.1, 3))
        subject.goto({2: 0.01})
    assert states() == before


class Allocations(TorchDispatchMode):
    """The most elements of a tensor that an operation made, rather than wrote or looked at."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self.known:
                self.most = max(self.most, made.numel())
        return result


@every_noise
def test_nothing_of_parameter_size_is_allocated(
    kind: Noise, small_pieces: Callable[[int, int], None]
) -> None:
    small_pieces(4, 8)
    params = named(made((10, 512)), made((5, 1024)).bfloat16(), *[made((30,))] * 20)
    anchor = {name: made(tuple(p.shape), 3) for name, p in params}
    noise.normal_table(torch.device("cpu"))  # once in a process, and the same for any model
    known: list[Tensor] = [*(p for _, p in params), *anchor.values()]
    known.append(noise.normal_table(torch.device("cpu")))
    with Allocations(known) as building:
        subject = Walk(params, kind, density=0.9, anchor=anchor)
    assert building.most == 5 * 1024  # the bytes beside 16-bit weights, and nothing else
    known += [part for g in subject._grids for part in g.companion or ()]
    with Allocations(known) as moving:
        subject.goto({1: 0.001})
        subject.commit([(seed, 1e-4) for seed in range(3)])
        subject.commit([(1, 1e-4)], Decay(0.1, 3))
        subject.goto({2: 0.001})
    assert 4 * 128 <= moving.most <= 3 * 4 * 128


def test_float32_weights_need_no_memory_of_their_size(
    small_pieces: Callable[[int, int], None],
) -> None:
    small_pieces(4, 8)
    params = named(made((100, 512)))
    known = [params[0][1], noise.normal_table(torch.device("cpu"))]
    with Allocations(known) as seen:
        subject = Walk(params)
        subject.goto({1: 0.001})
    assert seen.most <= 3 * 4 * 128


def test_tied_weights_move_once() -> None:
    tied = Parameter(torch.zeros(128))
    other = Parameter(tied.detach().view(2, 64))  # another parameter on the same memory
    subject = Walk([("embedding", tied), ("head", tied), ("mixer", other)])
    subject.goto({1: 0.5})
    assert subject.numel == 128
    assert set(tied.abs().tolist()) == {0.5}
    assert torch.equal(tied * 2, noise.noise("rademacher", 1, "embedding", 0, 128))


def test_tied_16_bit_weights_have_one_companion() -> None:
    tied = Parameter(made((300,)).bfloat16())
    alone = Parameter(made((300,)).bfloat16())
    subject = Walk([("head", tied), ("embedding", Parameter(tied.detach()))])
    other = Walk([("head", alone)])
    for walk in (subject, other):
        walk.commit([(1, 1e-5), (2, 1e-3)])
        walk.goto({3: 0.01})
    assert same_bits(tied, alone)


def test_neighbours_in_one_buffer_are_not_tied() -> None:
    buffer = torch.zeros(300)
    params = [("a", Parameter(buffer[:100])), ("b", Parameter(buffer[100:]))]
    subject = Walk(params)
    assert subject.numel == 300
    subject.goto({1: 0.5})
    assert torch.equal(buffer[100:] * 2, noise.noise("rademacher", 1, "b", 0, 200))


@pytest.mark.parametrize(
    "places", [[(0, 100), (50, 150)], [(0, 200), (50, 60)], [(50, 60), (50, 70)]]
)
def test_weights_that_overlap_in_part_are_an_error(places: list[tuple[int, int]]) -> None:
    buffer = torch.zeros(300)
    params = [(f"w{n}", Parameter(buffer[a:b])) for n, (a, b) in enumerate(places)]
    params.append(("apart", Parameter(buffer[250:])))
    with pytest.raises(UserError, match=r"^parameters w[01] and w[01] overlap in memory: freeze"):
        Walk(params)


def test_only_the_overlapping_weights_are_named() -> None:
    buffer = torch.zeros(300)
    places = {"a": (0, 100), "b": (50, 90), "c": (100, 200)}
    with pytest.raises(UserError, match=r"parameters a and b overlap"):
        Walk([(name, Parameter(buffer[slice(*p)])) for name, p in places.items()])


def test_frozen_weights_are_left_alone() -> None:
    weights = made((300,)) / 3  # not on any grid of quanta
    frozen = Parameter(weights.clone(), requires_grad=False)
    subject = Walk([("frozen", frozen), ("free", Parameter(torch.zeros(5)))])
    subject.goto({1: 0.5})
    assert subject.numel == 5
    assert torch.equal(frozen, weights)


def test_weights_of_no_element_and_of_no_dimension_are_welcome() -> None:
    params = named(torch.zeros(0), torch.zeros(3, 0), torch.tensor(1.0), torch.zeros(0).half())
    subject = Walk(params, "gaussian")
    assert subject.numel == 1
    subject.commit([(1, 0.01)], Decay(0.5, 1))
    subject.goto({2: 0.1})
    assert float(params[2][1].detach()) != 1.0


@every_noise
def test_nothing_but_weights_of_no_element_is_walked_too(kind: Noise) -> None:
    subject = Walk(named(torch.zeros(0)), kind)
    subject.commit([(1, 0.01)])
    subject.goto({2: 0.01})


# Subsets ------------------------------------------------------------------------------------------


def test_tune_chooses_tensors_by_name() -> None:
    names = ["layers.0.mlp.up", "layers.0.attention.q", "layers.1.mlp.up", "mlp"]
    weights = made((100,)) / 3
    params = [(name, Parameter(weights.clone())) for name in names]
    subject = Walk(params, tune=["*.mlp.*", "ml?"])
    subject.goto({1: 0.5})
    assert subject.numel == 300
    assert [torch.equal(p, weights) for _, p in params] == [False, True, False, False]


def test_tune_looks_at_trainable_weights_only() -> None:
    params = named(torch.zeros(5), torch.zeros(5))
    params[0][1].requires_grad_(False)
    with pytest.raises(UserError, match=r"no trainable parameter is called 'tensor0'.*tensor1"):
        Walk(params, tune=["tensor0"])


def test_a_pattern_without_a_match_is_an_error() -> None:
    params = named(torch.zeros(5))
    with pytest.raises(UserError, match=r"called 'mlp\*'; there are tensor0, \.\.\."):
        Walk(params, tune=["tensor*", "mlp*"])
    with pytest.raises(UserError, match=r"block 'mlp\*': no tuned parameter has such a name"):
        Walk(params, blocks=["tensor*", "mlp*"])


def test_a_direction_moves_the_block_that_its_seed_names() -> None:
    params = [(name, Parameter(torch.zeros(10))) for name in ("a", "b", "c", "rest")]
    subject = Walk(params, blocks=["a", "b", "[ac]"])
    moved = []
    for seed in range(6):
        subject.goto({seed: 0.5})
        moved.append("".join(name for name, p in params if bool(p.any())))
    assert moved == ["a", "b", "ac"] * 2


@every_noise
def test_a_sparse_walk_moves_the_stated_share_of_the_weights(kind: Noise) -> None:
    params = named(torch.ones(100_000), torch.ones(5000).bfloat16())
    subject = Walk(params, kind, density=0.2, mask_seed=3)
    moved = torch.zeros(105_000, dtype=torch.bool)
    for seed in range(3):
        subject.commit([(seed, 0.02)], Decay(0.1, seed))
        subject.goto({seed + 10: 0.01})
        moved |= torch.cat([(p.detach().float() != 1) for _, p in params])
    share = float(moved.float().mean())
    assert abs(share - 0.2) < 5 * math.sqrt(0.2 * 0.8 / moved.numel())


@every_noise
def test_weights_outside_the_mask_never_move_nor_decay(kind: Noise) -> None:
    params = named(made((3000,)))
    subject = Walk(params, kind, density=0.1, mask_seed=8)
    before = copies(params)[0]
    stream = noise.stream_id("tensor0")
    outside = torch.tensor([philox.word(8, noise.MASK, stream, i) / 2**32 for i in range(3000)])
    outside = outside >= 0.1
    for seed in range(5):
        subject.commit([(seed, 0.01)], Decay(0.1, seed))
        subject.goto({seed: 0.01})
    param = params[0][1].detach()
    assert torch.equal(param[outside], before[outside])
    assert float((param == before)[~outside].float().mean()) < 0.1


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan, 2.0**-33])
def test_a_density_that_is_no_share_is_an_error(density: float) -> None:
    with pytest.raises(UserError, match=r"density .*: a share of the weights, above 0 and up to 1"):
        Walk(named(torch.zeros(5)), density=density)


# Decay --------------------------------------------------------------------------------------------


@every_dtype
def test_decay_shrinks_by_the_rate_on_average(dtype: torch.dtype) -> None:
    params = named(made((5000,)).to(dtype))
    subject = Walk(params)
    before = exact(subject)[0]
    for step in range(100):
        subject.commit([], Decay(1e-6, step))  # a quanta or two a step: rounded at random
    subject.goto({})
    after = exact(subject)[0].double()
    slope = float((after * before).sum() / before.double().square().sum())
    # Each of 5000 roundings a step has at most a variance of 1/4.
    deviation = math.sqrt(100 / 4) / math.sqrt(float(before.double().square().sum()))
    assert abs(slope - (1 - 1e-6) ** 100) < 5 * deviation


def test_decay_comes_before_the_move_and_takes_no_account_of_the_offset() -> None:
    params = named(torch.ones(100))
    subject = Walk(params)
    subject.goto({7: 0.25})
    subject.commit([(1, 0.125)], Decay(0.5, 3))
    subject.goto({})
    z = noise.noise("rademacher", 1, "tensor0", 0, 100)
    assert torch.equal(params[0][1], 0.5 + 0.125 * z)


def test_a_decay_of_all_leaves_the_anchor() -> None:
    base = {"tensor0": made((300,), 5), "tensor1": made((300,), 6).bfloat16()}
    params = named(made((300,)), made((300,), 1).bfloat16())
    subject = Walk(params, anchor=base)
    subject.commit([], Decay(1.0, 3))
    subject.goto({1: 0.01})
    subject.goto({})
    on_grid = [(name, Parameter(tensor.clone())) for name, tensor in base.items()]
    Walk(on_grid)
    assert same(params, copies(on_grid))


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan, math.inf])
def test_a_decay_that_is_no_share_is_refused_with_nothing_changed(rate: float) -> None:
    params = named(made((300,)))
    subject = Walk(params)
    before = copies(params)
    with pytest.raises(ValueError, match=r"decay rate"):
        subject.commit([(1, 0.01)], Decay(rate, 3))
    subject.goto({})
    assert same(params, before)


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        ({}, r"anchor of parameter tensor0 \[5\]: the base has no such tensor"),
        ({"tensor0": torch.zeros(6)}, r"tensor0 \[5\]: the base has shape \[6\]"),
        ({"tensor0": torch.full((5,), 1e3)}, r"tensor0: the base's weights are far larger"),
        ({"tensor0": torch.full((5,), math.nan)}, r"tensor0: the base's weights are far larger"),
    ],
    ids=["missing", "shape", "large", "nan"],
)
def test_an_anchor_must_fit(anchor: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Walk(named(torch.zeros(5)), anchor=anchor)


def test_the_tuned_weights_themselves_are_no_anchor() -> None:
    module = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"anchor of parameter weight: .*clone"):
        Walk(module.named_parameters(), anchor=module.state_dict())


def test_an_anchor_that_requires_gradients_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Walk(named(torch.zeros(5)), anchor={"tensor0": Parameter(torch.ones(5) / 8)})


def test_a_pull_towards_a_large_anchor_counts_as_reach() -> None:
    params = named(torch.zeros(300))
    subject = Walk(params, anchor={"tensor0": made((300,)).clamp(-0.49, 0.49)})
    for _ in range(8):  # so often that the weights are measured
        for sign in (1, -1):
            subject.commit([(1, sign * 0.09)])
            subject.goto({})
    subject.commit([(1, 0.49)], Decay(1.0, 3))
    subject.goto({})
    before = copies(params)
    with contextlib.suppress(UserError):
        subject.goto({2: 0.3111})
    subject.goto({})
    assert same(params, before)


# The grid -----------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("spread", [1e-3, 0.1, 7.0])
def test_snapping_hardly_changes_the_weights(dtype: torch.dtype, spread: float) -> None:
    weights = made((1000,), spread=spread).to(dtype)
    param = Parameter(weights.clone())
    Walk([("weight", param)])
    largest = max(float(weights.abs().max()), 0.25)
    change = (param.detach().double() - weights.double()).abs()
    assert float(change.max()) <= 2 ** (-22 if dtype is torch.float32 else -21) * largest
    if dtype is torch.bfloat16:  # few enough bits that the larger weights are on the grid already
        large = weights.abs() > 0.01 * largest
        assert torch.equal(param[large], weights[large])


@every_dtype
def test_a_walk_made_anew_finds_the_weights_on_its_grid(dtype: torch.dtype) -> None:
    params = named(made((1000,)).to(dtype))
    Walk(params)
    before = copies(params)
    Walk(params)
    assert same(params, before)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_small_coefficients_average_out(kind: Noise) -> None:
    """0.3 of a quantum along the noise: whole quanta, right in the mean."""
    count, quantum = 64, 2.0**-24
    params = [(f"w{i}", Parameter(torch.zeros(4))) for i in range(count)]
    subject = Walk(params, kind)
    steps, expected = [], []
    for seed in range(40):
        before = copies(params)
        subject.commit([(seed, 0.3 * quantum)])
        subject.goto({})
        for (name, w), old in zip(params, before, strict=True):
            steps.append((w.detach() - old) / quantum)
            expected.append(noise.noise(kind, seed, name, 0, 4))
    step, z = torch.cat(steps).double(), torch.cat(expected).double()
    assert torch.equal(step, step.round())
    draws = step.view(-1, 4)[:, 0] if kind == "rademacher" else step  # one draw for each tensor
    sample = z.view(-1, 4)[:, 0] if kind == "rademacher" else z
    error = draws - 0.3 * sample
    assert abs(float((error * sample).mean())) < 5 * math.sqrt(0.25 / error.numel())
    assert abs(float(error.mean())) < 5 * math.sqrt(0.25 / error.numel())
    if kind == "rademacher":
        assert set((step * z).unique().tolist()) == {0.0, 1.0}


@every_dtype
def test_growth_beyond_the_exact_range_is_refused_with_nothing_changed(dtype: torch.dtype) -> None:
    params = named(made((300,), spread=50).to(dtype), made((300,), 1).to(dtype))
    subject = Walk(params)
    subject.goto({1: 0.3})
    before, beside = copies(params), companions(subject)
    with pytest.raises(UserError, match=r"parameter tensor1 have grown beyond .* learning rate"):
        subject.commit([(1, 2.0), (2, 0.01)])
    assert same(params, before)
    subject.goto({1: 0.3})
    assert same(params, before)
    assert equal(companions(subject), beside)


def test_steps_that_cancel_are_not_taken_for_growth() -> None:
    params = named(made((300,)))
    subject = Walk(params, "gaussian")
    before = copies(params)
    for step in range(40):  # 40 * 6 * 0.02 is much more than the range
        subject.commit([(1, 0.02 * (-1) ** step)])
        subject.goto({})
    assert same(params, before)


def test_growth_by_many_small_steps_is_noticed() -> None:
    params = named(made((300,)))
    subject = Walk(params)
    steps = 0
    with contextlib.suppress(UserError):
        while steps < 100:
            subject.commit([(1, 0.02)])
            steps += 1
    assert 25 < steps < 100
    subject.goto({})
    assert 0.9 < float(params[0][1].detach().abs().max()) <= 2.0


@every_noise
def test_many_commits_at_once_are_not_taken_for_growth(kind: Noise) -> None:
    """As when a run is replayed, or walked back: their sum is much more than their effect."""
    run, replay = named(made((300,)).bfloat16()), named(made((300,)).bfloat16())
    subject, other = Walk(run, kind), Walk(replay, kind)
    for seed in range(200):
        subject.commit([(seed, 0.01)])
        subject.goto({})
        other.commit([(seed, 0.01)])
    other.goto({})
    assert same(replay, copies(run))
    assert equal(companions(other), companions(subject))


@pytest.mark.parametrize("offset", [{1: 5.0, 2: -5.0}, {1: 10.0}])
@every_noise
def test_an_offset_that_could_not_be_taken_back_is_refused(offset: Offset, kind: Noise) -> None:
    params = [("large", Parameter(made((300,), spread=50.0))), ("small", Parameter(made((300,))))]
    subject = Walk(params, kind)
    before = copies(params)
    with pytest.raises(UserError, match=r"an offset of 10 is too far for parameter .*eps"):
        subject.goto(offset)
    assert same(params, before)
    subject.goto({})
    assert same(params, before)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
@every_noise
def test_scales_that_are_no_numbers_are_refused_with_nothing_changed(
    scale: float, kind: Noise
) -> None:
    params = named(made((300,)))
    subject = Walk(params, kind)
    before = copies(params)
    with pytest.raises(ValueError, match=r"along seed 2 is not finite"):
        subject.goto({1: 0.01, 2: scale})
    with pytest.raises(ValueError, match=r"along seed 2 is not finite"):
        subject.commit([(1, 0.01), (2, scale)])
    subject.goto({})
    assert same(params, before)


# A coarser grid -----------------------------------------------------------------------------------


@every_dtype
@every_noise
def test_weights_may_grow_by_a_coarser_grid(dtype: torch.dtype, kind: Noise) -> None:
    params = named(made((300,)).to(dtype), made((300,), 1).to(dtype))
    subject = Walk(params, kind, grow=True)
    plain = [p.double() for p in copies(params)]
    quantum, shape = subject._grids[0].quantum, "gaussian" if kind == "sphere" else kind
    for seed in range(20):
        subject.commit([(seed, 0.25)])
        for number, (name, _) in enumerate(params):
            z = noise.noise(shape, seed, name, 0, 300)
            plain[number] += 0.25 * z
    subject.goto({})
    coarse = subject._grids[0].quantum
    assert coarse >= 2 * quantum
    for g, expected in zip(subject._grids, plain, strict=True):
        weights = kernels.position(g.flat, g.companion, g.scale).double() * g.quantum
        scale = 1.0 if kind != "sphere" else float(weights.norm() / expected.norm())
        tolerance = 25 * coarse if kind != "sphere" else 0.5
        assert float((weights - expected * scale).abs().max()) < tolerance
    before, beside = copies(params), companions(subject)
    for seed in range(20):
        subject.goto({seed: 1e-3})
    subject.goto({})
    assert same(params, before)  # exact again, on the coarser grid
    assert equal(companions(subject), beside)


def test_an_offset_may_ask_for_a_coarser_grid() -> None:
    params = named(made((300,)))
    subject = Walk(params, grow=True)
    subject.goto({1: 0.001})
    subject.commit([(2, 0.001)])
    subject.goto({3: 5.0})
    assert float(params[0][1].detach().abs().min()) > 4.0
    subject.goto({})
    before = copies(params)
    subject.goto({3: 5.0})
    subject.goto({})
    assert same(params, before)
    expected = made((300,)) + 0.001 * noise.noise("rademacher", 2, "tensor0", 0, 300)
    assert torch.allclose(before[0], expected, rtol=0, atol=2 * subject._grids[0].quantum)


def test_a_coarser_grid_rounds_ties_to_even() -> None:
    param = Parameter(torch.arange(-6, 7) * 2.0**-24)
    subject = Walk([("weight", param)], grow=True)
    subject._grids[0].coarsen()
    assert (param * 2**23).tolist() == [-3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3]


@every_dtype
def test_a_dtype_that_ends_is_an_end_of_growth(dtype: torch.dtype) -> None:
    """No grid makes room for weights that their dtype can't hold."""
    largest = torch.finfo(dtype).max
    params = named(torch.full((300,), largest / 2, dtype=dtype))
    subject = Walk(params, grow=True)
    before = copies(params)
    with pytest.raises(UserError, match=r"tensor0 would grow beyond what torch\.\w+ holds: lower"):
        subject.goto({1: 0.75 * largest})
    with pytest.raises(UserError, match=r"tensor0 would grow beyond what torch\.\w+ holds: lower"):
        subject.commit([(1, 0.75 * largest)])
    subject.goto({})
    assert same(params, before)


# State --------------------------------------------------------------------------------------------


@every_noise
def test_state_and_weights_restore_a_walk(kind: Noise) -> None:
    params = mixed()
    subject = Walk(params, kind, grow=True)
    for seed in range(6):
        subject.commit([(seed, 0.1), (seed + 10, 1e-6)])  # far enough for a coarser grid
    subject.goto({3: 1e-3})
    state = subject.state_dict()
    restored = [
        (name, Parameter(weights))
        for (name, _), weights in zip(params, copies(params), strict=True)
    ]
    other = Walk(restored, kind, grow=True)
    other.goto({5: 1e-3})
    for (_, param), weights in zip(restored, copies(params), strict=True):
        param.data.copy_(weights)
    other.load_state_dict(state)
    assert same(restored, copies(params))
    for walk in (subject, other):
        walk.commit([(7, 1e-5)])
        walk.goto({8: 1e-3})
    assert same(restored, copies(params))
    assert equal(companions(other), companions(subject))


def test_state_of_other_weights_is_an_error() -> None:
    subject = Walk(named(torch.zeros(5), torch.zeros(5).bfloat16()))
    others = [named(torch.zeros(5)), named(torch.zeros(5), torch.zeros(5))]
    for params in others:
        with pytest.raises(UserError, match=r"the state does not fit parameter tensor1"):
            subject.load_state_dict(Walk(params).state_dict())


# Errors -------------------------------------------------------------------------------------------


def strange() -> list[tuple[list[tuple[str, Tensor]], str]]:
    meta = torch.ones(2, device="meta")
    return [
        ([], r"nothing to tune"),
        ([("w", Parameter(torch.ones(2), requires_grad=False))], r"nothing to tune"),
        ([("fine.w", Parameter(torch.ones(2).double()))], r"fine\.w .*float64.*float32"),
        ([("c.w", Parameter(torch.ones(2) + 0j))], r"c\.w has dtype torch\.complex64: .*dequant"),
        ([("f8.w", Parameter(torch.ones(2).to(torch.float8_e4m3fn)))], r"f8\.w .*float8_e4m3fn: "),
        ([("turned.w", Parameter(torch.ones(3, 2).t()))], r"turned\.w is not contiguous"),
        ([("steps.w", Parameter(torch.ones(6)[::2]))], r"steps\.w is not contiguous"),
        ([("meta.w", Parameter(meta))], r"meta\.w is on the meta device: load its weights"),
        ([("nan.w", Parameter(torch.tensor([1.0, math.nan])))], r"nan\.w holds NaN"),
        ([("inf.w", Parameter(torch.tensor([-math.inf]).half()))], r"inf\.w holds NaN or inf"),
        (
            [("w", Parameter(torch.zeros(2))), ("w", Parameter(torch.zeros(3)))],
            r"two parameters are called w",
        ),
    ]


@pytest.mark.parametrize(("params", "message"), strange())
def test_errors_name_the_tensor_and_the_remedy(
    params: list[tuple[str, Tensor]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Walk(params)


def test_an_error_leaves_all_weights_as_they_were() -> None:
    weights = made((300,)) / 3
    good, bad = Parameter(weights.clone()), Parameter(torch.tensor([math.nan]))
    with pytest.raises(UserError, match=r"bad holds NaN"):
        Walk([("good", good), ("bad", bad)])
    assert torch.equal(good, weights)


def test_unknown_noise_is_an_error() -> None:
    with pytest.raises(UserError, match=r"noise 'cauchy': choose rademacher, gaussian, sphere"):
        Walk(named(torch.zeros(5)), "cauchy")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["assignment", "cast"])
def test_weights_whose_data_was_replaced_are_refused(how: str) -> None:
    module = torch.nn.Linear(30, 30)
    subject = Walk(module.named_parameters())
    subject.goto({1: 0.01})
    if how == "cast":
        module.bfloat16()
    else:
        module.weight.data = module.weight.detach().clone()
    before = copies([*module.named_parameters()])
    with pytest.raises(UserError, match=r"the data of parameter weight was replaced"):
        subject.goto({})
    assert same([*module.named_parameters()], before)


# Interrupts ---------------------------------------------------------------------------------------


def test_an_interrupt_in_a_pass_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch, small_pieces: Callable[[int, int], None]
) -> None:
    small_pieces(1, 1)
    params, twins = named(made((1000,))), named(made((1000,)))
    subject, undisturbed = Walk(params), Walk(twins)
    settle, calls = kernels.settle, []

    def interrupted(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        settle(*args)

    undisturbed.commit([(2, 0.01)])
    undisturbed.goto({1: 0.01})
    subject.commit([(2, 0.01)])
    monkeypatch.setattr(kernels, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        subject.goto({1: 0.01})
    assert len(calls) == len(twins[0][1]) // 128 + 1
    assert same(params, copies(twins))  # at the target,
    subject.goto({})  # and the walk knows that it is
    undisturbed.goto({})
    assert same(params, copies(twins))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Small steps --------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_small_steps_of_16_bit_weights_do_not_vanish(dtype: torch.dtype, kind: Noise) -> None:
    """200 updates of rms 1e-6, where neighbours are mostly 1e-4 (bf16) or 1e-5 (fp16) apart."""
    params = named(made((20_000,), spread=0.02).to(dtype))
    subject = Walk(params, kind)
    (weights,) = subject._grids
    shown, held = weights.flat.double(), exact(subject)[0].double()
    plain = shown.clone()
    intended = torch.zeros(20_000, dtype=torch.float64)
    generator = random.Random(5)
    for seed in range(200):
        coefficient = generator.gauss(0.0, 1e-6)
        subject.commit([(seed, coefficient)])
        step = coefficient * noise.noise(kind, seed, "tensor0", 0, 20_000).double()
        intended += step
        plain = (plain + step).to(dtype).double()  # what adding in 16 bits gives
    subject.goto({})
    held = exact(subject)[0].double() - held
    shown, plain = weights.flat.double() - shown, plain - shown
    # Measured, bf16 and fp16: held 0.999 and 0.999, shown 0.57 and 0.97, plain 0.15 and 0.45.
    assert cosine(held, intended) >= 0.99
    assert cosine(shown, intended) > (0.5 if dtype is torch.bfloat16 else 0.9)
    assert cosine(shown, intended) > cosine(plain, intended) + 0.3


# SPSA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_two_points_estimate_the_gradient_of_a_quadratic(kind: Noise) -> None:
    """f = w.Aw / 2; E g = Aw, and the variance of g_i has a closed form."""
    size, seeds, eps = 8, 1500, 2.0**-7
    root = made((size, size), 3, 1.0).double()
    matrix = root + root.T
    param = Parameter(made((size,), 4, 0.2))
    subject = Walk([("w", param)], kind)
    gradient = matrix @ param.detach().double()

    def loss() -> float:
        w = param.detach().double()
        return float(w @ matrix @ w) / 2

    estimates = []
    for seed in range(seeds):
        subject.goto({seed: eps})
        plus = loss()
        subject.goto({seed: -eps})
        z = noise.noise(kind, seed, "w", 0, size).double()
        estimates.append((plus - loss()) / (2 * eps) * z)
    g = torch.stack(estimates)

    square = gradient.square()
    variance = square.sum() + (square if kind == "gaussian" else -square)
    deviation = (variance / seeds).sqrt()
    assert bool(((g.mean(0) - gradient).abs() < 5 * deviation).all())
    centred = (g - gradient).square()
    deviation = centred.std(0) / math.sqrt(seeds)
    assert bool(((centred.mean(0) - variance).abs() < 5 * deviation).all())
