"""Compiled kernels: the definition in kernels.py, compiled once on a machine and kept.

For CPUs, in a process of its own (ahead of time, by AOTInductor; 15 s or so), while the first
passes run eagerly: nobody waits. What it leaves in the cache loads in milliseconds and takes
1 MB, where torch.compile inside the run would take 3 s and 60 MB or more even with a full cache.
For GPUs, torch.compile in the process.

A kernel is used only after it has given the bits of the eager path on a sample. Where there is no
compiler, or with TORCH_COMPILE_DISABLE=1, the eager path does all the work.
"""

import hashlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoobj import kernels, noise
from zoobj.kernels import Kernel

logger = logging.getLogger(__name__)

Run = Callable[[list[Tensor]], Any]
"""Takes the tensors that ``arguments`` lists."""

_runs: dict[tuple[Kernel, str], Run | None] = {}  # None: can't be had
_builds: dict[Kernel, subprocess.Popen[bytes]] = {}


def arguments(
    kernel: Kernel,
    weight: Tensor,
    companion: kernels.Companion,
    anchor: Tensor | None,
    *rest: Tensor,
) -> list[Tensor]:
    """The arguments of ``kernels.run`` that this kernel reads, in a flat list."""
    pieces = [weight, *(companion or ())]
    return [*pieces, anchor, *rest] if kernel.anchored and anchor is not None else [*pieces, *rest]


def _call(kernel: Kernel, *tensors: Tensor) -> None:
    """``kernels.run`` on what ``arguments`` made."""
    queue = list(tensors)
    weight = queue.pop(0)
    companion = None
    if weight.dtype is not torch.float32:
        companion = queue.pop(0), queue.pop(0)
    anchor = queue.pop(0) if kernel.anchored else None
    quantum, at, keys, amounts, mask, table = queue
    kernels.run(kernel, weight, companion, quantum, at, keys, amounts, mask, table, anchor)


def fetch(kernel: Kernel, device: torch.device, wait: bool = False) -> Run | None:
    """The compiled kernel, or None while there is none.

    Args:
        kernel: what it should do.
        device: where.
        wait: for the compiler, if need be.
    """
    place = (kernel, device.type)
    if place not in _runs:
        if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
            _runs[place] = None
        elif device.type == "cpu":
            try:
                _fetch_ahead_of_time(kernel, wait)
            except OSError as error:
                logger.info("no place for compiled kernels, passes are slower: %s", error)
                _runs[place] = None
        else:
            compiled = torch.compile(partial(_call, kernel), dynamic=True, fullgraph=True)
            _runs[place] = _checked(kernel, lambda tensors: compiled(*tensors), device)
    return _runs.get(place)


def _fetch_ahead_of_time(kernel: Kernel, wait: bool) -> None:
    """Load the kernel if it is in the cache; else see to it that it is being made."""
    path = cache_path(kernel)
    if not path.exists():
        busy = any(build.poll() is None for build in _builds.values())
        if kernel not in _builds and (wait or not busy):  # one at a time is load enough
            _builds[kernel] = _start(kernel, path)
        if kernel not in _builds or (not wait and _builds[kernel].poll() is None):
            return
        _builds[kernel].wait()
    if path.exists():
        try:
            run = _load(path)
        except Exception as error:  # a damaged file, no room to unpack it
            logger.info("no compiled kernel, passes are slower; see %s: %s", path, error)
            _runs[kernel, "cpu"] = None
            return
        _runs[kernel, "cpu"] = _checked(kernel, run, torch.device("cpu"))
    else:
        logger.info("no compiled kernel, passes are slower; see %s", path.with_suffix(".log"))
        _runs[kernel, "cpu"] = None


def _start(kernel: Kernel, path: Path) -> subprocess.Popen[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "zoobj.compiled", _name(kernel), str(path)]
    with path.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the run
        )


def _load(path: Path) -> Run:
    try:  # the loader alone: the public function imports the whole compiler, 100 MB
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).boxed_run
    except (AttributeError, TypeError):
        package = torch._inductor.aoti_load_package(str(path))
        return lambda tensors: package(*tensors)


def _checked(kernel: Kernel, run: Run, device: torch.device) -> Run | None:
    """The kernel, if it gives the bits of the eager path; never one that doesn't."""
    for rows in (1, 37):
        sample, twin = (sample_arguments(kernel, rows, device) for _ in range(2))
        _call(kernel, *twin)
        try:
            run(list(sample))
        except Exception as error:  # compilers fail in many ways; none of them is the user's
            logger.info("no compiled kernel, passes are slower: %s", error)
            return None
        if not all(torch.equal(a, b) for a, b in zip(sample, twin, strict=True)):
            logger.warning("a compiled kernel gave other bits and is not used: %s", _name(kernel))
            return None
    return run


def sample_arguments(kernel: Kernel, rows: int, device: torch.device) -> list[Tensor]:
    """Some weights and a move for ``arguments``; the same every time."""
    shape = (rows, 4, 32)
    exact = torch.arange(rows * noise.ROW).mul(7919 * 11).remainder(2**22) - 2**21
    quantum = torch.tensor([2.0**-22, 2.0**22], dtype=torch.float32)
    weight = torch.zeros(shape, dtype=kernel.dtype)
    halves = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape, dtype=torch.int8)
    companion = None if kernel.dtype is torch.float32 else halves
    kernels.store(weight, companion, quantum, exact.view(shape).to(torch.int32))
    width = max(1, kernel.lanes)
    columns = 3 if kernel.noise == "gaussian" else 1
    amounts = torch.arange(1, columns * width + 1).view(columns, width) * 1001
    anchor = weight.flip(0).to(torch.float32) if kernel.anchored else None
    rest = [
        quantum,
        torch.tensor([3, noise.stream_id("sample")]),
        torch.tensor([noise.key_of(noise.derive(lane)) for lane in range(width)]),
        amounts << {"rademacher": 0, "gaussian": kernels.FRACTION_BITS, "decay": 20}[kernel.noise],
        torch.tensor([*noise.key_of(noise.derive(-1)), 2**31]),
        noise.normal_table(),
    ]
    return [x.to(device) for x in arguments(kernel, weight, companion, anchor, *rest)]


# The cache --------------------------------------------------------------------------------------


def cache_path(kernel: Kernel) -> Path:
    """Where a kernel is kept: apart for each torch, processor and version of the definition."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "zoobj" / "kernels" / _machine() / f"{_name(kernel)}.pt2"


@lru_cache
def _machine() -> str:
    """A short name for all that compiled code depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    sources = [Path(str(module.__file__)).read_bytes() for module in (kernels, noise)]
    parts = [torch.__version__, platform.platform(), features, *map(repr, sources)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _name(kernel: Kernel) -> str:
    return "-".join([str(kernel.dtype).removeprefix("torch."), *map(str, map(_plain, kernel[1:]))])


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _parse(name: str) -> Kernel:
    dtype, kind, lanes, *flags = name.split("-")
    return Kernel(getattr(torch, dtype), kind, int(lanes), *(flag == "1" for flag in flags))


class _Module(torch.nn.Module):
    def __init__(self, kernel: Kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, *tensors: Tensor) -> tuple[()]:
        _call(self.kernel, *tensors)
        return ()


def build(kernel: Kernel, path: Path) -> None:
    """Compile a kernel for this CPU into a file; whole or not at all."""
    sample = tuple(sample_arguments(kernel, 64, torch.device("cpu")))
    rows = torch.export.Dim("rows", min=2, max=2**40)
    dynamic = tuple({0: rows} if x.dim() == 3 else None for x in sample)
    program = torch.export.export(_Module(kernel), sample, dynamic_shapes={"tensors": dynamic})
    draft = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(draft), inductor_configs={"cpp.dynamic_threads": True}
        )
        draft.replace(path)
        path.with_suffix(".log").unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)  # the run goes first
    build(_parse(sys.argv[1]), Path(sys.argv[2]))
