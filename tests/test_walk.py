"""zoobj.walk against a twin that allocates everything, and the promises of its docstring."""

import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from philox import sign, uniform
from torch import Tensor
from torch.nn import Parameter

from zoobj import noise, walk
from zoobj.errors import UserError
from zoobj.walk import Move, Walk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (1,), (3, 0, 2), (5,), (127,), (128,), (129,), (3, 50), (2, 3, 100)]
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["fp32", "bf16", "fp16"])


def made(shape: tuple[int, ...], seed: int = 0, spread: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * spread


def named(*tensors: Tensor) -> list[tuple[str, Tensor]]:
    return [(f"tensor{number}", tensor) for number, tensor in enumerate(tensors)]


def copies(tensors: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    return [tensor.detach().clone() for _, tensor in tensors]


def same(tensors: Sequence[tuple[str, Tensor]], expected: list[Tensor]) -> bool:
    return all(torch.equal(t, e) for (_, t), e in zip(tensors, expected, strict=True))


class Twin:
    """The walk in float64: it holds theta, makes all noise at once and adds up every offset."""

    def __init__(self, params: list[tuple[str, Tensor]]):
        self.streams = [noise.stream_id(name) for name, _ in params]
        self.shapes = [tuple(param.shape) for _, param in params]
        self.dtypes = [param.dtype for _, param in params]
        flat = [param.detach().double().flatten().numpy() for _, param in params]
        self.quanta = [self._quantum(values) for values in flat]
        self.theta = [np.rint(v / q) * q for v, q in zip(flat, self.quanta, strict=True)]

    @staticmethod
    def _quantum(values: np.ndarray) -> float:
        """The smallest power of two q with 4 max|w| <= 2^24 q; a range of 0.25 at the least."""
        largest = max(0.25, float(np.abs(values).max(initial=0.0)))
        quantum = 1.0
        while 4 * largest <= 2**24 * quantum / 2:
            quantum /= 2
        while 4 * largest > 2**24 * quantum:
            quantum *= 2
        return quantum

    def _noise(self, seed: int, tensor: int) -> np.ndarray:
        size = self.theta[tensor].size
        return np.array([sign(seed, self.streams[tensor], i) for i in range(size)], dtype=float)

    def commit(self, moves: Move) -> None:
        for seed, coefficient in moves:
            for t, quantum in enumerate(self.quanta):
                draw = uniform(seed, noise.ROUNDING, 0, self.streams[t])
                steps = math.floor(abs(coefficient) / quantum + draw)
                self.theta[t] += math.copysign(steps, coefficient) * quantum * self._noise(seed, t)

    def at(self, offset: dict[int, float]) -> list[Tensor]:
        weights = []
        for t, (theta, quantum) in enumerate(zip(self.theta, self.quanta, strict=True)):
            values = theta.copy()
            for seed, scale in offset.items():
                values += round(scale / quantum) * quantum * self._noise(seed, t)
            weights.append(torch.from_numpy(values).to(self.dtypes[t]).view(self.shapes[t]))
        return weights


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_size(blocks: int) -> None:
        monkeypatch.setattr(walk, "CHUNK", blocks * noise.BITS_PER_BLOCK)

    return set_size


SEEDS = st.integers(0, 2**64 - 1) | st.sampled_from([1, 2, 3])  # often one that came before
SCALES = st.floats(-0.05, 0.05) | st.sampled_from([0.0, 1e-3, -1e-3, 1e-9])
GOTO = st.tuples(st.just("goto"), st.dictionaries(SEEDS, SCALES, max_size=3))
COMMIT = st.tuples(st.just("commit"), st.lists(st.tuples(SEEDS, SCALES), max_size=3))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(SHAPES), st.sampled_from(FLOATS), st.sampled_from([1e-4, 1, 30])),
        min_size=1,
        max_size=4,
    ),
    steps=st.lists(GOTO | COMMIT, max_size=6),
    chunk=st.integers(1, 4),
)
def test_any_walk_agrees_with_the_twin_to_the_bit(
    tensors: list[tuple[tuple[int, ...], torch.dtype, float]],
    steps: list[tuple[str, dict[int, float] | Move]],
    chunk: int,
    small_chunks: Callable[[int], None],
) -> None:
    small_chunks(chunk)
    params = named(
        *(
            Parameter(made(shape, seed, spread).to(dtype))
            for seed, (shape, dtype, spread) in enumerate(tensors)
        )
    )
    twin, subject = Twin(params), Walk(params)
    assert same(params, twin.at({}))
    for verb, argument in steps:
        if verb == "commit":
            subject.commit(list(argument))  # type: ignore[arg-type]
            twin.commit(list(argument))  # type: ignore[arg-type]
        else:
            subject.goto(dict(argument))
            assert same(params, twin.at(dict(argument)))
    subject.goto({})
    assert same(params, twin.at({}))
    assert subject.exact()


@every_dtype
def test_hundreds_of_evaluations_leave_no_trace(dtype: torch.dtype) -> None:
    params = named(Parameter(made((7, 33)).to(dtype)), Parameter(made((200,), 1, 5.0).to(dtype)))
    subject = Walk(params)
    before = copies(params)
    for seed in range(150):
        subject.goto({seed: 1e-3})
        subject.goto({seed: -1e-3})
    assert not same(params, before)
    subject.goto({})
    assert same(params, before)


@every_dtype
def test_a_commit_is_taken_back_exactly_in_any_order(dtype: torch.dtype) -> None:
    params = named(Parameter(made((300,)).to(dtype)))
    subject = Walk(params)
    before = copies(params)
    move = [(seed, 1.234e-3 * (seed - 10)) for seed in range(20)]
    subject.commit(move)
    subject.goto({})
    assert not same(params, before)
    for seed, coefficient in reversed(move):
        subject.goto({99: 0.01})
        subject.commit([(seed, -coefficient)])
    subject.goto({})
    assert same(params, before)


def test_a_commit_waits_for_the_next_goto() -> None:
    params = named(Parameter(torch.zeros(128)))
    subject = Walk(params)
    subject.commit([(5, 0.5)])
    assert same(params, [torch.zeros(128)])
    subject.goto({5: 0.25})
    assert set(params[0][1].abs().tolist()) == {0.75}


def test_a_two_point_step_takes_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Walk(named(Parameter(made((300,)))))
    passes: list[int] = []
    monkeypatch.setattr(noise, "signs", _counted(noise.signs, passes))
    for step in range(3):  # to +eps together with what the last step owes, and to -eps
        passes.clear()
        subject.goto({step: 1e-3})
        subject.goto({step: -1e-3})
        subject.commit([(step, 1e-4)])
        # The restore, the update and the next +eps are one pass over two directions.
        assert passes == ([step, step] if step == 0 else [step - 1, step, step])


def _counted(function: Callable[..., Tensor], seen: list[int]) -> Callable[..., Tensor]:
    def counted(seed: int, *rest: Tensor) -> Tensor:
        seen.append(seed)
        return function(seed, *rest)

    return counted


def test_standing_still_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Walk(named(Parameter(made((300,)))))
    subject.goto({1: 1e-3})
    monkeypatch.setattr(noise, "signs", None)
    subject.goto({1: 1e-3})
    subject.commit([(2, 1e-3), (2, -1e-3)])
    subject.goto({1: 1e-3, 3: 0.0})


@every_dtype
def test_chunks_do_not_change_the_bits(
    dtype: torch.dtype, small_chunks: Callable[[int], None]
) -> None:
    shapes = [(1000,), (3,), (129, 5), ()]
    results = []
    for blocks in (1, 3, 7, 8192):
        small_chunks(blocks)
        params = named(*(Parameter(made(shape, 1).to(dtype)) for shape in shapes))
        subject = Walk(params)
        subject.commit([(1, 1e-3), (2, -2e-3)])
        subject.goto({3: 0.01})
        results.append(copies(params))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_do_not_change_the_bits(threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2):
        threads(count)
        params = named(Parameter(made((400, 500))))
        subject = Walk(params)
        subject.commit([(1, 1e-3)])
        subject.goto({2: 0.01, 3: -0.01})
        results.append(copies(params)[0])
    assert torch.equal(*results)


def test_noise_belongs_to_the_name_and_not_to_the_position() -> None:
    a, b = Parameter(torch.zeros(200)), Parameter(torch.zeros(200))
    Walk([("other", Parameter(torch.zeros(77))), ("same", a)]).goto({4: 0.5})
    Walk([("same", b)]).goto({4: 0.5})
    assert torch.equal(a, b)


@every_dtype
def test_weights_stay_where_they_are(dtype: torch.dtype) -> None:
    param = Parameter(made((300,)).to(dtype))
    address = param.data_ptr()
    subject = Walk([("weight", param)])
    subject.goto({1: 0.01})
    assert param.data_ptr() == address
    assert param.dtype is dtype
    assert param.requires_grad
    assert param.grad is None


def test_no_global_random_state_is_touched() -> None:
    def states() -> tuple[str, object, bytes]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        torch_state = torch.random.get_rng_state().numpy().tobytes()
        return repr(numpy_state), random.getstate(), torch_state

    before = states()
    subject = Walk(named(Parameter(made((300,)))))
    subject.commit([(1, 1e-3)])
    subject.goto({2: 0.01})
    assert states() == before


def test_tied_weights_move_once() -> None:
    tied = Parameter(torch.zeros(128))
    subject = Walk([("embedding", tied), ("head", tied)])
    subject.goto({1: 0.5})
    assert subject.numel == 128
    assert set(tied.abs().tolist()) == {0.5}


def test_frozen_weights_are_left_alone() -> None:
    weights = made((300,)) / 3  # not on any grid of quanta
    frozen = Parameter(weights.clone(), requires_grad=False)
    subject = Walk([("frozen", frozen), ("free", Parameter(torch.zeros(5)))])
    subject.goto({1: 0.5})
    assert subject.numel == 5
    assert torch.equal(frozen, weights)


@every_dtype
@pytest.mark.parametrize("spread", [1e-3, 0.1, 7.0])
def test_snapping_hardly_changes_the_weights(dtype: torch.dtype, spread: float) -> None:
    weights = made((1000,), spread=spread).to(dtype)
    param = Parameter(weights.clone())
    Walk([("weight", param)])
    largest = float(weights.abs().max())
    # Half a quantum, and the quantum is less than 2^-21 of the largest weight (or of 0.25).
    assert float((param.detach() - weights).abs().max()) <= 2**-22 * max(largest, 0.25)
    if dtype is torch.bfloat16:  # few enough bits that the larger weights are on the grid already
        large = weights.abs() > 0.01 * max(largest, 0.25)
        assert torch.equal(param[large], weights[large])


def test_small_coefficients_average_out() -> None:
    """0.3 of a quantum moves a weight in 30 % of the cases (a standard deviation of 0.9 %)."""
    params = [(f"w{i}", Parameter(torch.zeros(1))) for i in range(64)]
    quantum = 2.0**-24
    moved = []
    subject = Walk(params)
    for seed in range(40):
        before = copies(params)
        subject.commit([(seed, 0.3 * quantum)])
        subject.goto({})
        moved += [
            float((w.detach() - old) / quantum) * sign(seed, noise.stream_id(name), 0)
            for (name, w), old in zip(params, before, strict=True)
        ]
    assert set(moved) == {0.0, 1.0}
    assert abs(sum(moved) / len(moved) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / len(moved))


def test_exact_tells_when_weights_have_outgrown_their_range() -> None:
    subject = Walk(named(Parameter(made((300,)))))
    subject.goto({1: 0.5})
    assert subject.exact()
    subject.commit([(1, 2.0)])
    subject.goto({})
    assert not subject.exact()


def test_an_offset_that_could_not_be_taken_back_is_refused() -> None:
    params = [("large", Parameter(made((300,), spread=50.0))), ("small", Parameter(made((300,))))]
    subject = Walk(params)
    before = copies(params)
    with pytest.raises(UserError, match=r"an offset of 10 is too far for parameter small.*eps"):
        subject.goto({1: 5.0, 2: -5.0})
    subject.goto({})
    assert same(params, before)


def test_seconds_grow_with_every_pass() -> None:
    subject = Walk(named(Parameter(made((300,)))))
    assert subject.seconds == 0.0
    subject.goto({1: 0.5})
    assert subject.seconds > 0.0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "nothing to tune"),
        ([("w", Parameter(torch.ones(2), requires_grad=False))], "nothing to tune"),
        ([("fine.w", Parameter(torch.ones(2).double()))], r"fine\.w .*float64.*float32"),
        (
            [("c.w", Parameter(torch.ones(2) + 0j))],
            r"c\.w has dtype torch\.complex64: .*dequantised",
        ),
        ([("f8.w", Parameter(torch.ones(2).to(torch.float8_e4m3fn)))], r"f8\.w .*float8_e4m3fn: "),
        ([("turned.w", Parameter(torch.ones(3, 2).t()))], r"turned\.w is not contiguous"),
        ([("nan.w", Parameter(torch.tensor([1.0, math.nan])))], r"nan\.w holds NaN"),
        ([("inf.w", Parameter(torch.tensor([-math.inf]).half()))], r"inf\.w holds NaN or inf"),
    ],
)
def test_errors_name_the_tensor_and_the_remedy(
    params: list[tuple[str, Tensor]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Walk(params)
