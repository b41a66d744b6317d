"""Ctrl-C and SIGTERM, kept away from the moments that must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was interrupted and saved; the message says where and how to go on."""


class Interrupts:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt, but not inside ``held()``.

    A pass over the weights, or a step's commit and its log line, are whole or not at all.
    """

    def __init__(self) -> None:
        self.name = "SIGINT"  # of the last signal
        self._pending = False
        self._holding = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put off an interrupt until the end of the block."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1
        if self._pending and not self._holding:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if self._holding:
            self._pending = True
        else:
            raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Put off SIGINT and SIGTERM, where Python code handles them, until the end of the block.

    What is under way is then whole or not at all, whoever handles the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    caught: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    handlers = {n: signal.signal(n, lambda number, frame: caught.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for missed in caught:
            signal.raise_signal(missed)
