"""Run code that nobody has read: in a process of its own, with little to reach and little to waste.

It is no wall against someone who looks for a way out: the kernel is shared, and a hole in it is a
hole here. Against that, put the whole run into a container or a virtual machine.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import ScoreError

logger = logging.getLogger(__name__)

MIB = 1 << 20
PATIENCE = 30.0  # seconds beyond the time limit after which the watcher itself is given up


class SandboxError(ScoreError):
    """The sandbox could not be set up, which says nothing about the code."""


@dataclass(frozen=True)
class Limits:
    """What the code may use, all of its processes together unless said otherwise.

    Attributes:
        seconds: wall-clock time; CPU time of each process is one second more.
        memory: bytes resident, looked at every 50 ms; also the address space of each process.
        disk: bytes in its directory, looked at every 50 ms.
        file: bytes of a file, of stdout and of stderr; what is written beyond fails.
        processes: processes and threads beside the first.
    """

    seconds: float = 10.0
    memory: int = 512 * MIB
    disk: int = 64 * MIB
    file: int = 8 * MIB
    processes: int = 16


@dataclass(frozen=True)
class Completed:
    """What became of the code.

    Attributes:
        status: exit status; -N where signal N ended it.
        stdout, stderr: what it wrote, as UTF-8, strange bytes replaced.
        killed: the limit that it passed: "time", "memory" or "disk"; None if none of these.
        seconds: wall-clock time.
    """

    status: int
    stdout: str
    stderr: str
    killed: str | None
    seconds: float


def run(code: str, stdin: str = "", limits: Limits | None = None, weak: bool = False) -> Completed:
    """Run a Python program in the sandbox; when this returns, nothing of it runs any more.

    It starts in an empty directory, the only place where it can write, with an empty environment
    (but for ``PYTHONHASHSEED=0``) and the standard library, no packages.

    Args:
        code: the program.
        stdin: what it can read.
        limits: what it may use.
        weak: run it even where the system can't keep it from files, network and processes of
            others; a warning says what is missing.

    Raises:
        SandboxError: it could not be set up, or not without ``weak``.

    >>> run("print(input()[::-1])", "desserts").stdout.strip()
    'stressed'
    >>> run("while True: pass", limits=Limits(seconds=0.5)).killed
    'time'
    """
    limits = limits or Limits()
    place = Path(tempfile.mkdtemp(prefix="zoobj-"))
    try:
        place.chmod(0o711)  # the code has another user's rights, and needs to get to its directory
        inside = place / "inside"
        inside.mkdir(mode=0o700)
        files = {"stdin": stdin, "stdout": "", "stderr": "", "inside/main.py": code}
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8", errors="replace")
        order = {name: str(place / name) for name in ("stdin", "stdout", "stderr")}
        said = _watched({**order, "directory": str(inside), "weak": weak, **asdict(limits)})
        if missing := said.get("missing"):
            _warn(", ".join(missing))
        out, err = (_read(place / name, limits.file) for name in ("stdout", "stderr"))
        return Completed(said["status"], out, err, said.get("killed"), said["seconds"])
    except OSError as error:
        raise SandboxError(f"the sandbox could not be set up: {error}") from error
    finally:
        _remove(place)


@cache
def check(weak: bool) -> None:
    """Try the sandbox, once.

    Raises:
        UserError: it does not work here.
    """
    try:
        run("", weak=weak)
    except SandboxError as error:
        raise UserError(
            f"{error}; run inside a container or a virtual machine that nothing is lost with, and "
            "say weak=true"
        ) from None


def _watched(order: dict[str, Any]) -> dict[str, Any]:
    """Start the watcher and hear what became of the code."""
    if sys.platform == "win32":
        raise SandboxError("the sandbox needs Linux (or, with weak=true, macOS)")
    python = getattr(sys, "_base_executable", sys.executable)  # a venv may lie where none can read
    watcher = subprocess.Popen(
        [python, "-I", "-S", str(Path(__file__).with_name("jail.py")), json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        out, err = watcher.communicate(timeout=order["seconds"] + PATIENCE)
        said: dict[str, Any] = json.loads(out)
    except (ValueError, subprocess.TimeoutExpired):
        last = "" if watcher.poll() is None else err.strip().rpartition("\n")[2]
        raise SandboxError(f"the sandbox broke down: {last or 'no answer in time'}") from None
    finally:
        watcher.terminate()  # where it still runs, it ends the code first
        watcher.communicate()
    if "error" in said:
        raise SandboxError(f"the sandbox could not be set up: {said['error']}")
    return said


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        return file.read(limit).decode(errors="replace")


def _remove(place: Path) -> None:
    try:
        for path, names, _ in os.walk(place):  # it may have shut some, even to itself
            for folder in (os.path.join(path, name) for name in names):
                if not os.path.islink(folder):
                    os.chmod(folder, 0o700)
        shutil.rmtree(place)
    except (OSError, RecursionError) as error:
        logger.warning("sandbox: %s is left behind: %s", place, error)


@cache
def _warn(missing: str) -> None:
    logger.warning("sandbox: this system lacks %s; generated code runs all the same", missing)
