"""What a run's figures depend on beside its settings: versions, commit, machine, weights."""

import ctypes
import hashlib
import resource
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

_M_ARENA_MAX = -8  # of mallopt(3)
_PACKAGES = ("zoobj", "torch", "transformers", "datasets", "tokenizers", "numpy", "scikit-learn")


def checksum(params: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the bytes of all tensors, by name, as 16 hex digits."""
    return checksum_in_order(sorted(params, key=lambda pair: pair[0]))


def checksum_in_order(params: Iterable[tuple[str, Tensor]]) -> str:
    """The same of tensors that come sorted by name, and need not all be in memory."""
    digest = hashlib.sha256()
    for name, param in params:
        digest.update(name.encode())
        data = param.detach().contiguous().view(-1).view(torch.uint8).cpu()
        digest.update(data.numpy().data)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an uninstalled clone
            from zoobj import __version__

            found[package] = __version__ if package == "zoobj" else "absent"
    return found


def git_commit() -> str | None:
    """The commit of the checkout that zoobj runs from, None if it is installed."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def share_memory() -> None:
    """Let all threads take memory from one place, where each finds what others have freed.

    glibc gives them a place each: 100 MB of 1,200 for a model of 135M weights on two cores.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)


def release_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps what it may need again, in pieces that fit batches of other lengths less and less:
    some 10 MB more at each step of a model of 135M weights.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's or Python's own, on a GPU or a CPU."""
    known = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or "can't allocate memory" in str(error)
