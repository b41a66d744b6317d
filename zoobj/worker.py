"""The process that scores for ``zoobj.workers``: reads a batch, writes its scores, over and over.

It starts from nothing but ``sys.path``: no fork of a process that holds a model, no import of the
user's main script. It ends with the process that started it, also in the middle of a call.
"""

import os
import pickle
import threading
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import IO, Any

from zoobj.objective import Batch, Objective
from zoobj.outcome import measured
from zoobj.registry import import_file


def pack(objective: Objective) -> bytes:
    """The objective as bytes for another process; what is defined in a script goes along.

    >>> class Length(Objective):
    ...     name = "length"
    ...     def score(self, batch):
    ...         return [float(len(text)) for text in batch.completions]
    >>> batch = Batch(prompts=["?"], references=[[]], completions=["four"])
    >>> unpack(pack(Length())).score(batch)
    [4.0]
    """
    import dill

    packed: bytes = dill.dumps(objective, recurse=True)
    return packed


def unpack(packed: bytes) -> Objective:
    """The objective that was packed."""
    import dill

    objective: Objective = dill.loads(packed)
    return objective


def main() -> None:
    """Serve over stdin and stdout until stdin is closed."""
    requests, replies = _streams()
    try:
        objective, error = _begun(pickle.load(requests)), None
    except BaseException as problem:
        objective, error = None, f"{type(problem).__name__}: {problem}"
    _reply(replies, error)
    if objective is None:
        return
    inbox: SimpleQueue[Batch] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, inbox), daemon=True).start()
    while True:
        batch = inbox.get()
        start = perf_counter()
        outcome = measured(objective, batch)
        seconds = perf_counter() - start
        _reply(replies, (outcome.scores, outcome.value, outcome.error, seconds))


def _streams() -> tuple[IO[bytes], IO[bytes]]:
    """Copies of stdin and stdout that no scorer knows: what it prints goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    if hasattr(os, "register_at_fork"):  # else a child would hold them open when this has ended
        for stream in (requests, replies):
            os.register_at_fork(after_in_child=partial(os.dup2, nothing, stream.fileno()))
    return requests, replies


def _begun(told: dict[str, Any]) -> Objective:
    """What to score with, from the first message."""
    if told["memory"] is not None:
        import resource  # not on Windows

        limit = int(told["memory"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for file in told["files"]:
        import_file(file)  # under the name it has over there
    return unpack(told["objective"])


def _read(requests: IO[bytes], inbox: "SimpleQueue[Batch]") -> None:
    """Pass batches on; where nobody is left to ask, end at once, with all that a scorer started."""
    try:
        while True:
            inbox.put(pickle.load(requests))
    except (EOFError, OSError, pickle.UnpicklingError):
        if hasattr(os, "killpg"):
            os.killpg(os.getpid(), 9)
        os._exit(0)


def _reply(replies: IO[bytes], content: Any) -> None:
    replies.write(pickle.dumps(content))
    replies.flush()
