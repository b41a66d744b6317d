"""A program that is kept running and answers lines with lines."""

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import IO

from zoobj.errors import UserError
from zoobj.objective import ScoreError

LONGEST_LINE = 1 << 16
LAST_WORDS = 2000  # bytes of stderr that a message may quote from
GRACE = 1.0  # seconds to end by itself once its input has ended


class Died(ScoreError):
    """The program ended instead of answering."""


class Program:
    """A program started at the first line, in a session of its own, without a shell.

    It is ended with this object, at the latest with Python; with it the processes of its group.
    Ctrl-C does not reach it. Where something goes wrong it is killed, and the next line starts it
    anew.

    Args:
        command: program and arguments, quoted as in a shell.

    Raises:
        UserError: no such program.

    >>> program = Program("cat")
    >>> program.ask("hello", timeout=10)
    'hello'
    >>> program.end()
    """

    def __init__(self, command: str):
        if sys.platform == "win32":
            raise UserError("command: programs as scorers need Linux or macOS; use http")
        try:
            self.argv = shlex.split(str(command or ""))
        except ValueError as error:
            raise UserError(f"command {command!r}: {error}: mend the quotes") from None
        if not self.argv or not shutil.which(self.argv[0]):
            name = self.argv[0] if self.argv else ""
            raise UserError(
                f"command {command!r}: no program {name!r}: give one on PATH or a path to one that "
                "may be executed"
            )
        self.lock = threading.Lock()  # one line at a time
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., Program] | None = None
        self._said = self._complained = b""

    def ask(self, line: str, timeout: float) -> str:
        """Its answer to a line, without the end of the line.

        Raises:
            Died: it ended.
            ScoreError: no answer within ``timeout`` seconds, or one that does not end.
        """
        if self._process is None:
            self._start()
        try:
            return self._exchange(line.encode() + b"\n", time.monotonic() + timeout)
        except TimeoutError:
            said = f"no line came in {timeout:g} s: print and flush one for each that is read"
            raise ScoreError(self._given_up(said)) from None
        except (EOFError, BrokenPipeError):
            raise Died(self._given_up("it ended")) from None
        except BaseException:  # Ctrl-C: the answer that is due would be taken for the next one's
            self.end(grace=0)
            raise

    def surplus(self, seconds: float) -> str:
        """What it printed unasked so far, or prints within so many seconds."""
        until = time.monotonic() + seconds
        with contextlib.suppress(EOFError):
            while self._process is not None and not self._said:
                self._transfer(b"", until)
                if time.monotonic() >= until:
                    break
        return self._said.decode(errors="replace")

    def end(self, grace: float = GRACE) -> None:
        """End it, and what it started; ``grace`` seconds are its own after its input has ended."""
        if self._process is not None and self._finalizer is not None:
            self._finalizer.detach()
            _end(self._process, os.getpid(), grace)
        self._process, self._said = None, b""

    def _start(self) -> None:
        self._said = self._complained = b""
        try:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},  # else Python keeps lines to itself
                start_new_session=True,
            )
        except OSError as error:
            raise ScoreError(f"it can't be started: {error}") from None
        for pipe in _pipes(process):
            os.set_blocking(pipe.fileno(), False)
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process, os.getpid())

    def _exchange(self, data: bytes, until: float) -> str:
        """Write, read until there is a line."""
        while b"\n" not in self._said:
            if time.monotonic() > until:
                raise TimeoutError
            if len(self._said) > LONGEST_LINE:
                raise ScoreError(f"it printed {LONGEST_LINE} bytes and no end of the line")
            data = self._transfer(data, until)
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace")

    def _transfer(self, data: bytes, until: float) -> bytes:
        """Wait until its pipes can be read, or written, and do so; what is left to be written."""
        assert self._process is not None
        stdin, stdout, stderr = _pipes(self._process)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not stderr.closed:
                selector.register(stderr, selectors.EVENT_READ)
            if data:
                selector.register(stdin, selectors.EVENT_WRITE)
            ready = {key.fileobj for key, _ in selector.select(max(0.0, until - time.monotonic()))}
        if stderr in ready:
            self._listen()
        if stdout in ready:
            piece = stdout.read(LONGEST_LINE)
            if piece == b"":
                raise EOFError
            self._said += piece or b""
        if stdin in ready:
            data = data[stdin.write(data) or 0 :]
        return data

    def _listen(self) -> None:
        """Take in what it writes on stderr, the last of it."""
        assert self._process is not None
        stderr = _pipes(self._process)[2]
        while not stderr.closed and (piece := stderr.read(LONGEST_LINE)) is not None:
            self._complained = (self._complained + piece)[-LAST_WORDS:]
            if not piece:
                stderr.close()

    def _given_up(self, problem: str) -> str:
        """Kill it; the problem, with its status and its last words."""
        assert self._process is not None
        if problem == "it ended":
            with contextlib.suppress(subprocess.TimeoutExpired):
                problem += f" with status {self._process.wait(GRACE)}"
        self._listen()
        self.end(grace=0)
        words = self._complained.decode(errors="replace").strip().splitlines()[-3:]
        return f"{problem}; on stderr: {' | '.join(words)}" if words else problem


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def _end(process: "subprocess.Popen[bytes]", owner: int, grace: float = GRACE) -> None:
    if os.getpid() != owner:  # in a fork: it is the parent's
        return
    pipes = _pipes(process)
    pipes[0].close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in pipes[1:]:
        pipe.close()
