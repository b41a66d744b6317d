"""pass@1 of generated Python: does it pass the tests."""

import logging
import os
import re
import secrets
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, ScoreError
from zoobj.objectives.sandbox import MIB, Limits, SandboxError, check, run

logger = logging.getLogger(__name__)

_ONE = Lock()  # threads that warn at once would all be the first
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)

# What calls itself a pass has come to its last line: leaving early, with whatever status, is none.
# The solution finds neither that line nor the tests in a file.
_PROGRAM = """\
__import__("os").remove("main.py")
names = {{"__name__": "solution"}}
exec(compile({solution}, "solution.py", "exec"), names)
exec(compile({tests}, "tests.py", "exec"), names)
print("\\n" + {word!r}, flush=True)
"""


class PassAt1(Objective):
    """1 if the completion, as a Python program, passes the tests of its row, else 0.

    The probability that one sample is right (Chen et al. 2021, arXiv 2107.03374, section 2.1, with
    k = 1). The tests are statements, run after the completion among its names; an exception is a
    failure. The code is the last block in ``` fences, else the whole completion. It runs in the
    sandbox (``zoobj.objectives.sandbox``): wrong, crashing and slow code scores 0. A row without
    tests, and a sandbox that could not be set up, score None.

    Args:
        column: of the data set, with the tests: a text, or a list of lines as in MBPP;
            ``references`` takes the task's references.
        workers: how many programs run at once; by default as many as there are processors.
        seconds: wall-clock time for a program. On a busy machine it is the machine's, too.
        memory: MiB for a program.
        weak: run it even where the system lacks what the sandbox needs; see ``sandbox.run``.

    Raises:
        UserError: no sandbox on this system, or a setting out of range.

    >>> batch = Batch(
    ...     prompts=["Double a number."] * 2, references=[[], []],
    ...     completions=["def double(x): return 2 * x", "def double(x): return x ** 2"],
    ...     rows={"tests": ["assert double(3) == 6"] * 2},
    ... )
    >>> PassAt1().score(batch)
    [1.0, 0.0]
    """

    name = "pass_at_1"

    def __init__(
        self,
        column: str = "tests",
        workers: int | None = None,
        seconds: float = 10.0,
        memory: int = 512,
        weak: bool = False,
    ):
        self.column, self.weak = column, weak
        self.workers = workers or os.cpu_count() or 1
        for what, value in [("workers", self.workers), ("seconds", seconds), ("memory", memory)]:
            if not value > 0:
                raise UserError(f"pass_at_1: {what} {value}: above 0")
        self.limits = Limits(seconds=seconds, memory=memory * MIB)
        check(weak)

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        columns = {**batch.rows, "references": batch.references}
        if self.column not in columns:
            raise ScoreError(
                f"pass_at_1: no column {self.column!r} with tests: choose one by "
                f"pass_at_1:column=NAME from {', '.join(sorted(columns))}"
            )
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._passes, batch.completions, columns[self.column]))

    def _passes(self, completion: str, tests: Any) -> Score:
        lines = [tests] if isinstance(tests, str) else tests or []
        if not any(str(line).strip() for line in lines):
            _warn(f"a row has no tests in column {self.column!r}")
            return None
        word = secrets.token_hex(16)
        program = _PROGRAM.format(
            solution=ascii(code_in(completion)),
            tests=ascii("\n".join(map(str, lines))),
            word=word,
        )
        try:
            done = run(program, limits=self.limits, weak=self.weak)
        except SandboxError as error:
            _warn(str(error))
            return None
        return float(done.status == 0 and done.stdout.endswith(f"\n{word}\n"))


def code_in(completion: str) -> str:
    r"""The last block in ``` fences, which the end of the text may cut off; else all of it.

    >>> code_in("Here it is:\n```python\nx = 1\n```\nDone.")
    'x = 1\n'
    """
    blocks = _FENCE.findall(completion)
    return textwrap.dedent(blocks[-1]) if blocks else completion


def _warn(problem: str) -> None:
    with _ONE:
        _once(problem)


@cache
def _once(problem: str) -> None:
    logger.warning("pass_at_1: %s; it scores None", problem)
