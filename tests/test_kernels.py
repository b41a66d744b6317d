"""Compiled kernels: the bits of the eager path, or none at all."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from zoobj import compiled, kernels, noise
from zoobj.kernels import Kernel
from zoobj.passes import Decay
from zoobj.walk import Noise, Walk

CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PLAIN = Kernel(F32, "rademacher", 1)

# Compiling takes 15 s or so each; together they use every part of the definition.
OTHERS = [
    Kernel(F32, "rademacher", 4),
    Kernel(BF16, "rademacher", 2),
    Kernel(F32, "gaussian", 2, due=True),
    Kernel(F16, "gaussian", 1, sparse=True),
    Kernel(F32, "decay"),
    Kernel(BF16, "decay", anchored=True),
    Kernel(F16, "decay", sparse=True),
]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is known, and none is being made."""
    monkeypatch.setattr(compiled, "_runs", {})
    monkeypatch.setattr(compiled, "_builds", {})
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all tests share: what one has compiled, others load."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shelf))
    return shelf


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_subprocess(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def unaligned(tensor: Tensor) -> Tensor:
    """A copy that begins one element into its memory, as parameters in one buffer do."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


def random_arguments(kernel: Kernel, rows: int, seed: int) -> list[Tensor]:
    """Any weights, seeds and amounts of the range that walks use."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    bits = 22 if kernel.dtype is F32 else 21
    quantum = torch.tensor([2.0**-bits, 2.0**bits])
    exact = numbers(-(2**bits), 2**bits + 1, rows, 4, 32)
    exact[:, :, ::7] >>= 14  # small ones too
    weight = torch.zeros(rows, 4, 32, dtype=kernel.dtype)
    low, high = (torch.zeros(rows, 4, 32, dtype=torch.int8) for _ in range(2))
    companion = None if kernel.dtype is F32 else (low, high)
    kernels.store(weight, companion, quantum, exact.to(torch.int32))
    anchor = None
    if kernel.anchored:
        anchor = torch.rand(rows, 4, 32, generator=generator).sub(0.5)
    width = max(1, kernel.lanes)
    if kernel.noise == "decay":
        amounts = numbers(0, 2**kernels.RATE_BITS + 1, 1, 1)
    elif kernel.noise == "gaussian":
        amounts = numbers(-(2**34), 2**34, 3, width)
    else:
        amounts = numbers(-(2**20), 2**20, 1, width)
    rest = [
        quantum,
        numbers(0, 2**43, 2),
        numbers(0, 2**32, width, 2),
        amounts,
        torch.cat([numbers(0, 2**32, 2), numbers(2**29, 2**32, 1)]),
        noise.normal_table(),
    ]
    companion = companion and (unaligned(companion[0]), unaligned(companion[1]))
    return compiled.arguments(kernel, unaligned(weight), companion, anchor, *rest)


def agrees(run: Callable[[list[Tensor]], Any], kernel: Kernel) -> bool:
    for seed, rows in enumerate((1, 2, 3, 31, 512, 1025)):
        mine, eager = (random_arguments(kernel, rows, seed) for _ in range(2))
        before = [x.clone() for x in mine]
        compiled._call(kernel, *eager)
        run(list(mine))
        changed = 1 if kernel.dtype is F32 else 3  # weights and companion; nothing else
        if torch.equal(mine[0], before[0]):
            return False
        if not all(
            torch.equal(a, b) for a, b in zip(mine[changed:], before[changed:], strict=True)
        ):
            return False
        for a, b in zip(mine[:changed], eager[:changed], strict=True):
            if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                return False
    return True


# With a compiler ----------------------------------------------------------------------------------


@needs_compiler
def test_a_compiled_kernel_gives_the_bits_of_the_eager_path(cache: Path) -> None:
    run = compiled.fetch(PLAIN, CPU, wait=True)
    assert run is not None, compiled.cache_path(PLAIN).with_suffix(".log").read_text()
    assert agrees(run, PLAIN)
    path = compiled.cache_path(PLAIN)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no log, no drafts


@needs_compiler
def test_a_kernel_is_compiled_once_and_then_found(
    cache: Path, no_subprocess: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled.cache_path(PLAIN).exists():
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert compiled.fetch(PLAIN, CPU, wait=True) is not None
        compiled._runs.clear()
        compiled._builds.clear()
    run = compiled.fetch(PLAIN, CPU)
    assert run is not None
    assert compiled.fetch(PLAIN, CPU) is run


@needs_compiler
def test_a_walk_takes_the_compiled_kernel_and_keeps_its_bits(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled.fetch(PLAIN, CPU, wait=True) is not None
    eager, fast = (Parameter(torch.linspace(-1, 1, 70_001)) for _ in range(2))
    slow, subject = Walk([("w", eager)], compile=False), Walk([("w", fast)], compile=True)
    calls = []
    inner = compiled._runs[PLAIN, "cpu"]
    assert inner is not None

    def counted(tensors: list[Tensor]) -> None:
        calls.append(tensors[0].shape)
        inner(tensors)

    compiled._runs[PLAIN, "cpu"] = counted
    for walk in (slow, subject):
        for seed in range(5):
            walk.goto({seed: 1e-3})
            walk.goto({seed: -1e-3})
            walk.commit([(seed, 1e-5)])
            walk.goto({})
    assert torch.equal(eager, fast)
    assert set(calls) == {(546, 4, 32)}  # the whole rows of 70,001 weights
    assert len(calls) == 15


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kernel", OTHERS, ids=compiled._name)
def test_other_compiled_kernels_give_the_bits_of_the_eager_path(
    kernel: Kernel, cache: Path
) -> None:
    run = compiled.fetch(kernel, CPU, wait=True)
    assert run is not None, compiled.cache_path(kernel).with_suffix(".log").read_text()
    assert agrees(run, kernel)


WALK = """
import sys, torch
from zoobj import compiled, kernels
from zoobj.walk import Walk
weight = torch.nn.Parameter(torch.linspace(-1, 1, 300_000))
walk = Walk([("w", weight)], compile=True)
walk.commit([(1, 1e-3)])
walk.goto({1: 1e-3})
assert list(compiled._runs.values()) != [None]
print(torch.get_num_threads(), hash(weight.detach().numpy().tobytes()))
"""


@needs_compiler
@pytest.mark.slow
def test_threads_do_not_change_the_bits_of_a_compiled_kernel(cache: Path) -> None:
    printed = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", WALK]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout.split())
    assert [words[0] for words in printed] == ["1", "2"]
    assert printed[0][1] == printed[1][1]


# Without ------------------------------------------------------------------------------------------


def cached(monkeypatch: pytest.MonkeyPatch, run: compiled.Run) -> None:
    """As if this were what the cache holds."""
    path = compiled.cache_path(PLAIN)
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(compiled, "_load", lambda path: run)


def test_a_kernel_that_gives_other_bits_is_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(tensors: list[Tensor]) -> None:
        compiled._call(PLAIN, *tensors)
        tensors[0].view(-1)[-1] += 2.0**-22  # by one quantum, in one weight

    cached(monkeypatch, wrong)
    with caplog.at_level(logging.WARNING):
        assert compiled.fetch(PLAIN, CPU) is None
    assert "gave other bits and is not used: float32-rademacher-1-0-0-0" in caplog.text


def test_a_kernel_that_gives_the_same_bits_is_taken(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(monkeypatch, lambda t: compiled._call(PLAIN, *t))
    assert compiled.fetch(PLAIN, CPU) is not None


def test_a_kernel_that_fails_is_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(tensors: list[Tensor]) -> None:
        raise RuntimeError("no such instruction")

    cached(monkeypatch, fails)
    with caplog.at_level(logging.INFO):
        assert compiled.fetch(PLAIN, CPU) is None
    assert "passes are slower: no such instruction" in caplog.text


def test_a_damaged_file_is_no_kernel(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = compiled.cache_path(PLAIN)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK, but no archive")
    with caplog.at_level(logging.INFO):
        assert compiled.fetch(PLAIN, CPU) is None
    assert "no compiled kernel, passes are slower" in caplog.text
    assert str(path) in caplog.text


def eager_goes_on(log: str) -> None:
    """A walk that waits for compiled kernels, and gets none."""
    weights = [Parameter(torch.linspace(-1, 1, 70_001)) for _ in range(2)]
    for weight, compile in zip(weights, (True, False), strict=True):
        Walk([("w", weight)], compile=compile).goto({1: 1e-3})
    assert torch.equal(*weights)
    assert compiled._runs == {(PLAIN, "cpu"): None}
    assert not compiled.cache_path(PLAIN).exists()
    assert log in compiled.cache_path(PLAIN).with_suffix(".log").read_text()


def test_where_compiling_fails_the_eager_path_goes_on(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false") or "/bin/false")
    with caplog.at_level(logging.INFO):
        eager_goes_on("")
    log = compiled.cache_path(PLAIN).with_suffix(".log")
    assert f"no compiled kernel, passes are slower; see {log}" in caplog.text


@pytest.mark.slow
def test_without_a_compiler_the_log_tells(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    eager_goes_on("/nonexistent/g++")


def test_torch_compile_disable_is_heeded(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, no_subprocess: None
) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert compiled.fetch(PLAIN, CPU, wait=True) is None
    assert not list(empty_cache.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(
    empty_cache: Path, no_subprocess: None, caplog: pytest.LogCaptureFixture
) -> None:
    (empty_cache / "zoobj").write_text("a file where a folder should be")
    with caplog.at_level(logging.INFO):
        assert compiled.fetch(PLAIN, CPU, wait=True) is None
    assert "no place for compiled kernels" in caplog.text


class Busy:
    """A compiler at work."""

    def __init__(self, *args: Any, **options: Any):
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int | None:
        return self.code


def test_nobody_waits_for_the_compiler_and_it_makes_one_kernel_at_a_time(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Busy] = []

    def start(*args: Any, **options: Any) -> Busy:
        started.append(Busy())
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    for _ in range(3):
        for kernel in (PLAIN, *OTHERS):
            assert compiled.fetch(kernel, CPU) is None
    assert list(compiled._builds) == [PLAIN]
    started[0].code = 1  # it failed: that kernel is given up, the next one begun
    assert compiled.fetch(PLAIN, CPU) is None
    assert compiled._runs == {(PLAIN, "cpu"): None}
    assert compiled.fetch(OTHERS[0], CPU) is None
    assert list(compiled._builds) == [PLAIN, OTHERS[0]]


def test_small_models_ask_for_no_kernel(empty_cache: Path, no_subprocess: None) -> None:
    walk = Walk([("w", Parameter(torch.zeros(70_000)))])
    walk.goto({1: 0.01})
    assert compiled._runs == {}
    small = Walk([("w", Parameter(torch.zeros(1000)))], compile=True)
    small.commit([(1, 0.01)], Decay(0.1, 1))
    small.goto({2: 0.01})
    assert compiled._runs == {}


def test_ctrl_c_is_for_the_run_and_not_for_the_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **given: options.append(given))
    compiled._start(PLAIN, empty_cache / "kernel.pt2")
    assert [given["start_new_session"] for given in options] == [True]


@pytest.mark.parametrize("kernel", [PLAIN, *OTHERS, Kernel(BF16, "gaussian", 2, True, True, True)])
def test_names_of_kernels_tell_all_about_them(kernel: Kernel) -> None:
    name = compiled._name(kernel)
    assert compiled._parse(name) == kernel
    assert "/" not in name


def test_names_of_kernels_differ() -> None:
    assert len({compiled._name(kernel) for kernel in (PLAIN, *OTHERS)}) == 1 + len(OTHERS)
    assert compiled._name(Kernel(BF16, "gaussian", 1, due=True)) == "bfloat16-gaussian-1-1-0-0"


def test_the_cache_is_where_it_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.cache_path(PLAIN).parts[: len(tmp_path.parts) + 2] == (
        *tmp_path.parts,
        "zoobj",
        "kernels",
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled.cache_path(PLAIN).is_relative_to(tmp_path / ".cache" / "zoobj" / "kernels")


def test_samples_are_the_same_every_time() -> None:
    for kernel in (PLAIN, *OTHERS):
        one, other = (compiled.sample_arguments(kernel, 5, CPU) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kernel", [PLAIN, *OTHERS], ids=compiled._name)
def test_samples_move_enough_to_tell_kernels_apart(kernel: Kernel) -> None:
    sample = compiled.sample_arguments(kernel, 37, CPU)
    count = 1 if kernel.dtype is F32 else 3
    before = [x.clone() for x in sample[:count]]
    compiled._call(kernel, *sample)
    moved = torch.stack([a != b for a, b in zip(sample, before, strict=False)]).any(0)
    assert float(moved.float().mean()) > (0.4 if kernel.sparse else 0.8)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("anchored", [False, True], ids=["to zero", "anchored"])
def test_passes_hand_over_what_kernels_were_compiled_for(
    dtype: torch.dtype,
    kind: Noise,
    density: float,
    anchored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled code doesn't look at dtypes: it would read other numbers."""
    made: list[Kernel] = []

    def fetch(kernel: Kernel, device: torch.device, wait: bool) -> compiled.Run:
        def run(tensors: list[Tensor]) -> None:
            sample = compiled.sample_arguments(kernel, tensors[0].shape[0], device)
            for mine, its in zip(tensors, sample, strict=True):
                assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
                assert mine.is_contiguous()
            compiled._call(kernel, *tensors)

        made.append(kernel)
        return run

    monkeypatch.setattr(compiled, "fetch", fetch)
    weights = [Parameter(torch.linspace(-1, 1, 70_001).to(dtype)) for _ in range(2)]
    goal = torch.linspace(0.5, -0.5, 2 * 70_001).to(dtype)[::2]  # not contiguous
    anchor = {"w": goal} if anchored else None
    for weight, compile in zip(weights, (True, False), strict=True):
        walk = Walk([("w", weight)], kind, density=density, anchor=anchor, compile=compile)
        walk.goto({1: 0.01, 2: 0.01, 3: 0.01})
        walk.commit([(1, 0.01), (2, 0.01), (1, 0.02)], Decay(0.1, 4))
        walk.goto(dict.fromkeys(range(5), 0.001))
    assert torch.equal(*weights)
    assert {kernel.lanes for kernel in made} == {0, 1, 2, 4}
    assert {kernel.dtype for kernel in made} == {dtype}


# The definition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("power", [-23, -20, -12, 0])
def test_rounding_by_hand_is_that_of_the_dtype(dtype: torch.dtype, power: int) -> None:
    if dtype is F16 and power == 0:
        power = -8  # 2^23 quanta are 32768
    generator = torch.Generator().manual_seed(1)
    exact = torch.randint(-(2**23), 2**23 + 1, (200_000,), generator=generator)
    exact = torch.cat([exact, exact >> 12, torch.arange(-5000, 5000)]).float() * 2.0**power
    assert torch.equal(kernels._rounded(exact, dtype), exact.to(dtype).float())


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["fp32", "bf16", "fp16"])
def test_what_is_stored_is_read_back(dtype: torch.dtype) -> None:
    bits = 24 if dtype is F32 else 23
    generator = torch.Generator().manual_seed(1)
    exact = torch.randint(-(2**bits), 2**bits + 1, (200_000,), generator=generator)
    ends = torch.tensor([2**bits, -(2**bits), 2**bits - 1, 1 - 2**bits])
    exact = torch.cat([exact, torch.arange(-5000, 5000), ends]).to(torch.int32)
    quantum = torch.tensor([2.0**-20, 2.0**20])
    weight = torch.zeros(exact.shape, dtype=dtype)
    low, high = (torch.zeros(exact.shape, dtype=torch.int8) for _ in range(2))
    companion = None if dtype is F32 else (low, high)
    kernels.store(weight, companion, quantum, exact)
    assert torch.equal(kernels.position(weight, companion, quantum), exact)
    assert torch.equal(weight, (exact.double() * 2.0**-20).to(dtype))


def test_the_largest_products_fit_64_bits() -> None:
    """The range check keeps |amount| z within 2^24 quanta; 2^63 would be a thousand times that."""
    most = 2**40 // 6
    amount = torch.tensor([[most], [-most]])
    z = torch.tensor([6 * 2**20, -6 * 2**20, 1, 0])
    dice = torch.full((4,), 2**32 - 1)
    for rounded in (
        kernels._nearest(z, amount),
        kernels._stochastic(z, amount, dice, kernels._SHIFT),
    ):
        exact = z.double() * amount.double() / 2**36
        assert float((rounded.double() - exact).abs().max()) <= 1
        assert torch.equal(rounded[0], -rounded[1])
