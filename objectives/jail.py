"""The inside of the sandbox: a watcher that starts the code locked in and sees to its end.

``sandbox.run`` starts this file as a program, with nothing but the standard library. The watcher
forks; the child gives up what it can (``lock.py``) and becomes the code's own Python; the watcher
bounds its time, memory and disk, then kills whatever descends from it: as a subreaper it is the
parent of those that left the group and the session.
"""

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LINUX = sys.platform == "linux"
POLL = 0.05  # seconds between looks at memory and disk
DEPTH = 32  # of folders below the code's directory
PDEATHSIG, SUBREAPER = 1, 36  # prctl(2)


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Run the code in ``order["directory"]``; what became of it, or ``{"error": why}``."""
    if LINUX:
        libc = ctypes.CDLL(None)
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
        libc.prctl(PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # on the way out, the code is ended
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        _become(order, tell)
    try:
        os.close(tell)
        with os.fdopen(told) as pipe:  # it ends where the code's Python begins
            said = {key: value for line in pipe for key, value in json.loads(line).items()}
        return said if "error" in said else said | _watch(child, order)
    finally:
        _end(child)


def _watch(child: int, order: dict[str, Any]) -> dict[str, Any]:
    """Wait for the code, or for a limit that it passes."""
    start = time.monotonic()
    pause, looked = 0.001, start
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if pid:
            return {"status": os.waitstatus_to_exitcode(status), "seconds": now - start}
        over = "time" if now - start > order["seconds"] else None
        if now - looked > POLL and not over:
            looked = now
            if sum(size for _, _, size in _family().values()) > order["memory"]:
                over = "memory"
            elif _size(order["directory"], order["disk"]) > order["disk"]:
                over = "disk"
        if over:
            return {"status": -signal.SIGKILL, "killed": over, "seconds": now - start}
        time.sleep(pause)
        pause = min(2 * pause, POLL / 4)


def _end(child: int) -> None:
    """Kill the code and all that descends from it, wherever it went, and wait until it is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending as it is
    if not LINUX:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    while True:
        living = [pid for pid, (_, state, _) in _family().items() if state not in "ZX"]
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if living:  # the dead stay unburied, so that they count as processes and no more are made
            time.sleep(0.001)
            continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # orphans become our children: none left means none anywhere
            return


def _family() -> dict[int, tuple[int, str, int]]:
    """All descendants: process id -> (parent, state, bytes resident)."""
    table = {}
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            table[int(name)] = (int(fields[1]), fields[0], int(fields[21]) * resource.getpagesize())
    ours: set[int] = set()
    found = {os.getpid()}
    while found:
        found = {pid for pid, (parent, _, _) in table.items() if parent in found}
        ours |= found
    return {pid: table[pid] for pid in ours}


def _size(directory: str, limit: int) -> int:
    """Bytes on disk below a directory, a block for each file; what is too deep is too much."""
    total, depth = 0, directory.count("/") + DEPTH
    for path, folders, files in os.walk(directory):
        for name in (*folders, *files):
            try:
                total += 4096 + 512 * os.lstat(os.path.join(path, name)).st_blocks
            except OSError:
                continue
        if path.count("/") > depth:
            return limit + 1
        if total > limit:
            break
    return total


def _become(order: dict[str, Any], tell: int) -> NoReturn:
    """Lock this process in, then let it be the code's Python; what was missing goes to the pipe."""
    try:
        os.setsid()
        os.dup2(os.open(order["stdin"], os.O_RDONLY), 0)
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_APPEND), number)
        os.chdir(order["directory"])
        lock = runpy.run_path(str(Path(__file__).with_name("lock.py")))
        missing = lock["lock_in"](order)
        if missing and not order["weak"]:
            raise OSError(f"this system lacks {', '.join(missing)}")
        os.write(tell, json.dumps({"missing": missing}).encode() + b"\n")
        # Sets of texts have the same order in every run: so that scores have the same value.
        arguments = [sys.executable, "-s", "-S", "-B", "main.py"]
        os.execve(sys.executable, arguments, {"PYTHONHASHSEED": "0"})
    except BaseException as error:
        os.write(tell, json.dumps({"error": str(error)}).encode() + b"\n")
    finally:
        os._exit(1)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201  (its one reader is sandbox.run)
