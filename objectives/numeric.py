"""Answers of sums: the number at the end, or an expression of the same value."""

import re
import threading
from decimal import Decimal
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.extras import NeedsExtra
from zoobj.objectives.references import answers

# "5-3" and "(2)-1" have no negative number, "1,234.5" is one, and "3,4" are two.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_MARK = "####"


class NumericMatch(Objective):
    r"""1 if the last number of the completion is that of an accepted answer, else 0.

    The rule of GSM8K (Cobbe et al. 2021, arXiv 2110.14168), whose answers end in "#### 72": where
    a text of the references has that mark, its number is the one after it, else its last. Commas
    between thousands and "$" don't count, and 72 is 72.0. An example whose accepted answers hold
    no number can't be scored.

    Args:
        strict: in completions as well only the number right after "####" counts, and one without
            the mark scores 0.

    >>> batch = Batch(
    ...     prompts=["?"] * 2, references=[["24 * 3 = 72\n#### 72"], ["1,000"]],
    ...     completions=["It costs $72.", "1000 of them, or 999"],
    ... )
    >>> NumericMatch().score(batch)
    [1.0, 0.0]
    """

    name = "numeric_match"

    def __init__(self, strict: bool = False):
        self.strict = strict

    def score(self, batch: Batch) -> list[Score]:
        return [self._match(completion, texts) for completion, texts in answers(batch)]

    def _match(self, completion: str, references: list[str]) -> Score:
        found = [_after_the_mark(t) if _MARK in t else last_number(t) for t in references]
        gold = [number for number in found if number is not None]
        if not gold:
            return None
        said = _after_the_mark(completion) if self.strict else last_number(completion)
        return float(said in gold)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, exactly; None where there is none.

    >>> last_number("from -$1,200.50 to 3-2")
    Decimal('2')
    """
    found = _NUMBER.findall(_plain(text))
    return Decimal(found[-1].replace(",", "")) if found else None


def _after_the_mark(text: str) -> Decimal | None:
    """The number right after the first mark."""
    found = _NUMBER.match(_plain(text).partition(_MARK)[2].lstrip())
    return Decimal(found[0].replace(",", "")) if found else None


def _plain(text: str) -> str:
    return text.replace("$", "").replace("\N{MINUS SIGN}", "-")


class MathMatch(NeedsExtra):
    r"""1 if the completion's last expression equals an accepted answer as mathematics, else 0.

    By math-verify, which reads LaTeX ("$...$", "\boxed{...}") and plain numbers and compares by
    value: 1/2 is 0.5 is "\frac{2}{4}". A text without such marks is LaTeX as a whole where it is a
    reference; where it is a completion, only if it holds a backslash or no number. The text of an
    accepted answer itself is always right. An example none of whose accepted answers can be read
    can't be scored.

    Args:
        seconds: for reading an expression, and for comparing two; what takes longer is no match.
            Outside the main thread there is no such limit: use ``--reward_timeout`` there.

    Raises:
        UserError: seconds is no whole number from 1, or math-verify is not installed.

    >>> batch = Batch(
    ...     prompts=["?"] * 2, references=[[r"\frac{1}{2}"]] * 2,
    ...     completions=["Half, so $0.5$.", r"\boxed{2}"],
    ... )
    >>> MathMatch().score(batch)
    [1.0, 0.0]
    """

    name = "math_match"
    package, extra = "math_verify", "math"

    def __init__(self, seconds: int = 5):
        super().__init__()
        if type(seconds) is not int or seconds < 1:
            raise UserError(f"math_match: seconds {seconds!r} is not a whole number from 1")
        self.seconds = seconds

    def score(self, batch: Batch) -> list[Score]:
        # math-verify keeps time by a signal, which only the main thread can wait for.
        main = threading.current_thread() is threading.main_thread()
        limit = self.seconds if main else None
        return [_equal(completion, texts, limit) for completion, texts in answers(batch)]


def _equal(completion: str, references: list[str], limit: int | None) -> Score:
    from math_verify import verify

    if completion.strip() in (text.strip() for text in references):
        return 1.0
    gold = [_read(text, limit, whole=True) for text in references]
    if not any(gold):
        return None
    said = _read(completion, limit, whole="\\" in completion)
    return float(any(verify(g, said, timeout_seconds=limit) for g in gold))


def _read(text: str, limit: int | None, whole: bool) -> list[Any]:
    """What the text may mean, an empty list where it can't be read.

    Args:
        text: with or without marks of LaTeX.
        limit: seconds, None for no limit.
        whole: without marks, it is tried as LaTeX first, then for numbers; else the other way.
    """
    from math_verify import parse

    marked = any(mark in text for mark in ("$", "\\boxed", "\\(", "\\["))
    ways = [text] if marked else [f"${text}$", text] if whole else [text, f"${text}$"]
    readings = (parse(way, parsing_timeout=limit) for way in ways)
    return next((reading for reading in readings if reading), [])
