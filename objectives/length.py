"""How long completions are, and how much they repeat themselves: for limits and penalties."""

from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Objective, Score

UNITS = ("words", "characters")


class Length(Objective):
    """How many words or characters a completion has.

    The plain count, for a constraint on the mean or a penalty in a weighted sum. Lower is better,
    so on its own it teaches a model to say nothing.

    Args:
        unit: "words" (whatever white space separates) or "characters" (code points).

    Raises:
        UserError: another unit.

    >>> batch = Batch(prompts=["?"], references=[[]], completions=["by the old mill"])
    >>> Length().score(batch), Length(unit="characters").score(batch)
    ([4.0], [15.0])
    """

    name = "length"
    higher_is_better, bounds = False, (0.0, None)

    def __init__(self, unit: str = "words"):
        self.unit = _checked(self.name, unit)

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        return [float(len(_units(text, self.unit))) for text in batch.completions]


class LengthLimit(Objective):
    """1 where a completion's length is within limits, less the farther it is outside.

    Below ``min`` the score is length / min. Above ``max`` it falls along a line that reaches 0 at
    twice the limit (for a limit of 0 at once).

    Args:
        max: most words or characters, None for any number.
        min: fewest.
        unit: "words" (whatever white space separates) or "characters" (code points).

    Raises:
        UserError: neither limit is given, they cross, or another unit.

    >>> batch = Batch(prompts=["?"] * 2, references=[[]] * 2, completions=["a b", "a b c d e"])
    >>> LengthLimit(max=4).score(batch)
    [1.0, 0.75]
    """

    name = "length_limit"

    def __init__(self, max: int | None = None, min: int = 0, unit: str = "words"):
        if max is None and min == 0:
            raise UserError("length_limit has no limit: give max, min or both, as in 'max=20'")
        for limit in (min, 0 if max is None else max):
            if type(limit) is not int or limit < 0:
                raise UserError(f"length_limit: {limit!r} is not a whole number from 0")
        if max is not None and max < min:
            raise UserError(f"length_limit: max {max} is below min {min}: swap them")
        self.max, self.min, self.unit = max, min, _checked(self.name, unit)

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        return [self._within(len(_units(text, self.unit))) for text in batch.completions]

    def _within(self, length: int) -> float:
        if length < self.min:
            return length / self.min
        if self.max is None or length <= self.max:
            return 1.0
        return max(0.0, 2 - length / self.max) if self.max else 0.0


class Repetition(Objective):
    """Share of a completion's n-grams that occurred in it before.

    1 - different n-grams / n-grams: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319, section
    6.1), but on words. A completion of fewer than n words repeats nothing: 0. Lower is better.

    Args:
        n: length of the n-grams.
        unit: of which they are made, "words" or "characters".

    Raises:
        UserError: n is no whole number from 1, or another unit.

    >>> batch = Batch(prompts=["?"], references=[[]], completions=["the mill the mill the mill"])
    >>> Repetition(n=2).score(batch)  # "the mill" three times, "mill the" twice
    [0.6]
    """

    name = "repetition"
    higher_is_better = False

    def __init__(self, n: int = 3, unit: str = "words"):
        if type(n) is not int or n < 1:
            raise UserError(f"repetition: n {n!r} is not a whole number from 1")
        self.n, self.unit = n, _checked(self.name, unit)

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        return [self._repeated(_units(text, self.unit)) for text in batch.completions]

    def _repeated(self, units: Any) -> float:
        ngrams = [tuple(units[i : i + self.n]) for i in range(len(units) - self.n + 1)]
        return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0


def _checked(name: str, unit: str) -> str:
    if unit not in UNITS:
        raise UserError(f"{name}: unknown unit {unit!r}{did_you_mean(str(unit), UNITS)}")
    return unit


def _units(text: str, unit: str) -> list[str] | str:
    return text.split() if unit == "words" else text
