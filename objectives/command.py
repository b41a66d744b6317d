"""Scores from a program: examples in on stdin, scores out on stdout."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Score, ScoreError
from zoobj.objectives.external import External, as_json
from zoobj.objectives.program import Died, Program

NO_SCORE = ("none", "nan", "inf", "-inf")  # as languages print them
PATIENCE = 5  # deaths in a row, at different examples, after which a batch is given up
LULL = 0.05  # seconds after a batch without ids, in which a line too many would come
LONGER = 10  # times as long it is from then on, where one came later


class Command(External):
    """Scores from a program that stays alive, ``command:python score.py``.

    It reads lines of JSON on stdin, ``{"id": 7, "prompt": "...", "completion": "...",
    "reference": ..., "row": {column: value}}``, and for each writes a line on stdout: a number,
    ``null``, or ``{"score": number, "id": 7}``, where the id is optional, and makes sure that
    scores are those of their examples. Lines have to be flushed (Python's are); whatever else it
    has to say belongs on stderr.

    A row at which it dies twice, at which it is silent for ``timeout`` seconds, or gives no score,
    scores None; it is started again for the next one. When it prints a line too many, all rows of
    the batch that have no id score None. After such a batch that line is waited for as long as the
    slowest row took, and 50 ms; ten times that, where one came later all the same. The log says
    why.

    Args:
        program: program and arguments, quoted as in a shell; there is no shell.
        timeout: seconds for a row.
        name, higher_is_better, low, high: see ``External``.

    Raises:
        UserError: no such program.

    >>> objective = Command("sed -u 's/.*/0.5/'")
    >>> objective.score(Batch(prompts=["?"], references=[["a"]], completions=["b"]))
    [0.5]
    """

    def __init__(
        self,
        program: str,
        timeout: float = 60.0,
        name: str = "command",
        higher_is_better: bool = True,
        low: float | None = None,
        high: float | None = None,
    ):
        super().__init__(name, higher_is_better, low, high)
        if not timeout > 0:
            raise UserError(f"command: timeout {timeout}: above 0")
        self.program, self.seconds = program, timeout
        self._asked, self._lull = 0, LULL
        self._programs: dict[int, Program] = {}  # by process: a fork has one of its own
        # So that scores of another program are not taken from a cache.
        self.code = [_digest(file) for file in self._running().argv if os.path.isfile(file)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_programs": {}, "_asked": 0, "_lull": LULL, "_told": set()}

    def score(self, batch: Batch) -> list[Score]:
        program = self._running()
        scores: list[Score] = []
        doubtful: list[int] = []  # those without an id
        deaths, slowest = 0, 0.0
        with program.lock:
            if self._keep_step(program, scores, doubtful):  # too late for its own batch
                self._lull = min(LONGER * self._lull, self.seconds)
            for number, line in self._lines(batch):
                start = time.monotonic()
                score, known, died = self._tried(program, number, line)
                deaths = deaths + 1 if died else 0
                if not known:
                    doubtful.append(len(scores))
                    if scores:  # so late a line too many may come; the first waits for a start
                        slowest = max(slowest, time.monotonic() - start)
                scores.append(score)
                if deaths == PATIENCE:
                    break
                self._keep_step(program, scores, doubtful)
            self._keep_step(program, scores, doubtful, self._lull + slowest if doubtful else 0.0)
        return scores + [None] * (len(batch) - len(scores))

    def _running(self) -> Program:
        pid = os.getpid()
        if pid not in self._programs:
            self._programs[pid] = Program(self.program)
        return self._programs[pid]

    def _lines(self, batch: Batch) -> Iterator[tuple[int, str]]:
        columns = as_json(batch)
        for i in range(len(batch)):
            self._asked += 1
            line = {
                "id": self._asked,
                "prompt": columns["prompts"][i],
                "completion": columns["completions"][i],
                "reference": columns["references"][i],
                "row": {name: column[i] for name, column in columns["rows"].items()},
            }
            yield self._asked, json.dumps(line)

    def _tried(self, program: Program, number: int, line: str) -> tuple[Score, bool, bool]:
        """The score of a row, whether it is certainly that row's, and whether the program died."""
        try:
            return (*self._one(program, number, line), False)
        except ScoreError as error:
            died = isinstance(error, Died)
            kind = "died" if died else str(error).partition(":")[0]
            self._tell(kind, f"{self.program!r}: {error}")
            return None, True, died

    def _one(self, program: Program, number: int, line: str) -> tuple[Score, bool]:
        """The score of a row, and whether it is certainly that row's."""
        try:
            answer = program.ask(line, self.seconds)
        except Died:  # of an earlier row, perhaps
            answer = program.ask(line, self.seconds)
        if answer.strip().lower() in NO_SCORE:
            return None, False
        try:
            said = json.loads(answer)
            known = isinstance(said, dict) and "id" in said
            if known and said["id"] != number:
                raise ValueError
            score = said["score"] if isinstance(said, dict) else said
        except (ValueError, KeyError, RecursionError):
            program.end()  # who knows whose line the next one would be
            raise ScoreError(
                f"no score for a row: it printed {answer[:60]!r}, but stdout is for scores, one a "
                "row; messages belong on stderr"
            ) from None
        return self._checked(score, repr(self.program)), known

    def _keep_step(
        self, program: Program, scores: list[Score], doubtful: list[int], seconds: float = 0.0
    ) -> bool:
        """Where it printed a line too many, nobody knows which were scores of which rows."""
        surplus = program.surplus(seconds)
        if surplus:
            self._tell(
                "surplus",
                f"{self.program!r} printed {surplus[:60]!r} unasked: print one line a row",
            )
            for i in doubtful:
                scores[i] = None
            program.end()
        return bool(surplus)


def _digest(path: str) -> str:
    """What tells a file from others: its size, and the hash of its first MiB if it can be read."""
    begin = b""
    with contextlib.suppress(PermissionError), open(path, "rb") as file:
        begin = file.read(1 << 20)
    return f"{os.path.getsize(path)}-{hashlib.sha256(begin).hexdigest()}"
