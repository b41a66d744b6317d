"""Worker processes that score examples side by side; one that hangs or dies costs one call.

Each is an interpreter of its own that knows the objective and nothing of the model. A call that
takes longer than its timeout ends by killing its worker, with all that the scorer has started; the
next call gets a new one.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Timer
from time import perf_counter
from typing import Any, Literal

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.registry import imported_files
from zoobj.worker import pack

_START = "import sys; sys.path[:] = sys.argv[1:]; from zoobj.worker import main; main()"

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the first retry; it doubles with each

Failure = Literal["raised", "timeout", "died"]


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    Attributes:
        scores: one for each example, None for a set-level objective or where all failed.
        value: of a set-level objective.
        error: what went wrong, where something did; ``failure`` says in which way.
        seconds: that it took, of several tries the last.
        retries: tries before the one that this came of.
    """

    scores: list[Score] | None
    value: float
    error: str | None
    failure: Failure | None
    seconds: float
    retries: int = 0


def persistent(call: Callable[[], Reply], retries: int, wait: Callable[[float], object]) -> Reply:
    """What comes of a call, made again after 0.5, 1, 2, ... seconds where it fails.

    A scorer that says None or NaN has not failed: that is its word.

    Args:
        call: the call.
        retries: most tries after the first.
        wait: for so many seconds.
    """
    reply = call()
    for tried in range(retries):
        if reply.failure is None:
            break
        wait(min(PAUSE * 2.0**tried, LONGEST_PAUSE))
        reply = replace(call(), retries=tried + 1)
    return reply


class Workers:
    """A pool of processes that apply an objective; they start with the first calls.

    Args:
        objective: what they apply.
        count: how many.
        timeout: seconds for one call, None for no limit.
        retries: how often a call that failed is made again.
        memory: GiB of address space that each may have, None for no limit.

    Raises:
        UserError: the objective can't be sent to another process.
    """

    def __init__(
        self,
        objective: Objective,
        count: int,
        timeout: float | None = None,
        retries: int = 0,
        memory: float | None = None,
    ):
        if memory is not None and os.name != "posix":
            raise UserError("--reward_memory: this system has no such limit: leave it out")
        try:
            packed = pack(objective)
        except Exception as error:
            raise UserError(
                f"objective {objective.name!r} can't be sent to a worker process "
                f"({type(error).__name__}: {error}): leave out what it holds by __getstate__, or "
                "--reward_workers 0 and no --reward_timeout"
            ) from error
        # A pickle names the modules that it needs; those of files are not found by name.
        files = [file for name, file in imported_files().items() if name.encode() in packed]
        told = {"objective": packed, "files": files, "memory": memory}
        self._name, self._timeout, self._retries = objective.name, timeout, retries
        self._closed = Event()
        self._all = [_Worker(objective.name, pickle.dumps(told)) for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)  # each waits for a worker

    def submit(self, batch: Batch) -> "Future[Reply]":
        """Score a batch in one call, as soon as a worker is free."""
        return self._threads.submit(
            persistent, lambda: self._call(batch), self._retries, self._closed.wait
        )

    def close(self) -> None:
        """End all workers, whatever they do."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.kill()

    def _call(self, batch: Batch) -> Reply:
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise UserError(f"objective {self._name!r}: its workers have been closed")
            return worker.call(batch, self._timeout)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started anew where it has ended."""

    def __init__(self, name: str, told: bytes):
        self._name, self._told = name, told
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, batch: Batch, timeout: float | None) -> Reply:
        if self._process is None or self._process.poll() is not None:
            self._start()
        start, late = perf_counter(), False

        def end() -> None:
            nonlocal late
            late = True
            self.kill()

        timer = Timer(timeout, end) if timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            scores, value, error, seconds = self._ask(pickle.dumps(batch))
            return Reply(scores, value, error, "raised" if error else None, seconds)
        except (EOFError, OSError, pickle.UnpicklingError):
            seconds, code = perf_counter() - start, self._code()  # once it is gone for good
            how = f"took more than {timeout:g} s" if late else f"ended its process {code}"
            error = f"objective {self._name!r} {how}; mend it, or see --reward_timeout"
            return Reply(None, float("nan"), error, "timeout" if late else "died", seconds)
        finally:
            if timer is not None:
                timer.cancel()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; a kill takes the scorer's children too
        )
        try:
            error = self._ask(self._told)
        except (EOFError, OSError, pickle.UnpicklingError):
            error = f"it ended {self._code()}; has it too little memory?"
        if error is not None:
            self.kill()
            raise UserError(
                f"objective {self._name!r} does not start in a worker process: {error}; define it "
                "in a file or package, or --reward_workers 0"
            )

    def _ask(self, message: bytes) -> Any:
        """What the process answers; see ``worker.main``."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(message)
        process.stdin.flush()
        return pickle.load(process.stdout)

    def _code(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def kill(self) -> None:
        """End the process and all that it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass
        process.wait()
