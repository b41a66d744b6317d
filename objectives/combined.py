"""Several objectives as one: weighted sums, limits, and what is only logged."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Objective, Score, as_objective, is_score

_KEYS = ("name", "weight", "at_most", "at_least", "penalty")


@dataclass(frozen=True)
class Part:
    """An objective in a sum.

    Attributes:
        objective: the objective.
        weight: what its value is multiplied by; negative where lower is better.
        at_most, at_least: limits on its value, infinite where there are none.
        penalty: price of a violation of 1.
    """

    objective: Objective
    weight: float
    at_most: float = math.inf
    at_least: float = -math.inf
    penalty: float = 1.0

    @property
    def limited(self) -> bool:
        """Whether it has a limit."""
        return math.isfinite(self.at_most) or math.isfinite(self.at_least)

    def violation(self, value: float) -> float:
        """How far a value is outside the limits, times the penalty."""
        return self.penalty * max(0.0, value - self.at_most, self.at_least - value)


class Sum(Objective):
    """A weighted sum of objectives, some of which may have limits that their values have to keep.

    Higher is better: an objective where lower is better counts negatively, by the same weight, and
    a negative weight for it is refused. Weight 0 means "logged only". With w the weights after that
    change of sign, v the values of the parts on the same examples, and for those with limits

        violation = sum of penalty * max(0, v - at_most, at_least - v)

    the value is ``sum(w * v) - violation``; if ``lexicographic``, it is ``sum(w * v)`` where the
    violation is 0, else the lowest possible sum minus the violation, so that what keeps the limits
    always beats what doesn't, and of two that don't the lesser violation wins.

    Limits are on values, such as a mean over the examples; in training over those of a minibatch.
    So a sum with limits is set-level, and so is one with a set-level part; any other is the mean of
    per-example sums. An example that a part could not score counts as not scored, except where that
    part is logged only. Names of parts that share one get a number: length, length_2.

    Args:
        parts: what ``as_objective`` takes, or mappings with the keys ``name`` (the same),
            ``weight`` (default 1, with a limit 0), ``at_most``, ``at_least``, ``penalty`` (default
            1). Sums among them are taken apart.
        normalise: divide each weight by the width of the part's bounds.
        lexicographic: limits come before the sum.
        name: in logs and results; by default the formula.

    Raises:
        UserError: no part counts, an unknown key, a figure that makes no sense, or bounds that are
            needed and unknown.

    >>> class Words(Objective):
    ...     name, higher_is_better, bounds = "words", False, (0.0, None)
    ...     def score(self, batch):
    ...         return [float(len(text.split())) for text in batch.completions]
    >>> batch = Batch(prompts=["?"] * 2, references=[["a b"]] * 2, completions=["a b", "c d e f"])
    >>> total = as_objective("exact_match") + 0.125 * Words()
    >>> total.name, total.score(batch)
    ('exact_match-0.125*words', [0.75, -0.5])
    >>> Sum(["exact_match", {"name": Words(), "at_most": 2, "penalty": 0.25}]).value(batch)
    0.25
    """

    name = "sum"

    def __init__(
        self,
        parts: Sequence[Any],
        normalise: bool = False,
        lexicographic: bool = False,
        name: str | None = None,
    ):
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence):
            raise UserError(f"sum: a list of parts is needed, as in [token_f1, f1], not {parts!r}")
        made = [part for told in parts for part in _taken_apart(_part(told))]
        made = [_normalised(part) for part in made] if normalise else made
        self._all = dict(zip(_names(made), made, strict=True))
        self._parts = {name: p for name, p in self._all.items() if p.weight or p.limited}
        if not self._parts:
            raise UserError("sum: nothing counts: give a part a weight that is not 0, or a limit")
        self.parts = {name: part.objective for name, part in self._parts.items()}
        others = {name: p for name, p in self._all.items() if name not in self._parts}
        self.beside = {name: part.objective for name, part in others.items()}
        self.terms = {name: _terms(part) for name, part in self._all.items()}
        self.name = name or _formula(self._parts)
        self.lexicographic = lexicographic
        self.limited = any(part.limited for part in self._parts.values())
        self.decomposable = not self.limited and all(p.decomposable for p in self.parts.values())
        self.needs = frozenset[str]().union(*(p.objective.needs for p in made))
        agreed = {part.objective.tie_breaker for part in self._parts.values()}
        if len(agreed) == 1 and all(p.weight > 0 and not p.limited for p in self._parts.values()):
            (self.tie_breaker,) = agreed
        self._lowest, highest = _bounds(self._parts.values())
        if lexicographic and self.limited and self._lowest == -math.inf:
            raise UserError(
                f"sum {self.name}: lexicographic needs a lowest sum, and a part has no bound on "
                "its worse side: set its bounds, or use a penalty"
            )
        worst = sum(_worst_violation(part) for part in self._parts.values())
        bounds = (self._lowest - worst, highest)
        self.bounds = tuple(b if math.isfinite(b) else None for b in bounds)  # type: ignore[assignment]

    def score(self, batch: Batch) -> list[Score]:
        columns = [part.score(batch) for part in self.parts.values()]
        rows = zip(*columns, strict=True)
        return [self.combine(dict(zip(self.parts, row, strict=True))) for row in rows]

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        if self.decomposable:
            return super().value(batch, scores)
        total = self.combine({name: part.value(batch) for name, part in self.parts.items()})
        return math.nan if total is None else total

    def combine(self, numbers: Mapping[str, Score]) -> Score:
        known = [(self._parts[name], score) for name, score in numbers.items() if is_score(score)]
        if len(known) < len(numbers):
            return None
        total = math.fsum(part.weight * number for part, number in known)
        violation = math.fsum(part.violation(number) for part, number in known)
        return (self._lowest if self.lexicographic and violation else total) - violation


def _part(told: Any) -> Part:
    """A part as it was told, its sign changed where lower is better."""
    if not isinstance(told, Mapping):
        told = {"name": told}
    for key in told:
        if key not in _KEYS:
            raise UserError(f"sum: unknown key {key!r} of a part{did_you_mean(str(key), _KEYS)}")
    if "name" not in told:
        raise UserError(f"sum: the part {dict(told)!r} has no name: say which objective it is")
    objective = as_objective(told["name"])
    figures = {key: _figure(objective, key, told[key]) for key in _KEYS[1:] if key in told}
    weight = figures.pop("weight", 0.0 if {"at_most", "at_least"} & {*figures} else 1.0)
    if weight < 0 and not objective.higher_is_better:
        raise UserError(
            f"sum: weight {weight:g} of {objective.name}: lower is better there, so that it counts "
            f"negatively already: give {-weight:g}, or add it instead of subtracting"
        )
    sign = 1.0 if objective.higher_is_better else -1.0
    part = Part(objective, sign * weight if weight else 0.0, **figures)  # not -0.0
    if part.at_least > part.at_most:
        raise UserError(
            f"sum: {objective.name} can't be at_least {part.at_least:g} and at_most "
            f"{part.at_most:g}: swap them"
        )
    if part.penalty <= 0:
        raise UserError(f"sum: penalty {part.penalty:g} of {objective.name} has to be above 0")
    return part


def _figure(objective: Objective, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"sum: {key} {value!r} of {objective.name} is no number")
    return float(value)


def _taken_apart(part: Part) -> list[Part]:
    """The parts of a sum in a sum, unless limits hold it together."""
    inner = part.objective
    if not isinstance(inner, Sum) or part.limited:
        return [part]
    if inner.limited and (inner.lexicographic or part.weight <= 0):
        return [part]
    return [
        replace(one, weight=part.weight * one.weight, penalty=part.weight * one.penalty)
        for one in inner._all.values()
    ]


def _normalised(part: Part) -> Part:
    low, high = part.objective.bounds
    if not part.weight:
        return part
    if low is None or high is None:
        raise UserError(
            f"sum: normalise divides by the width of the bounds, and {part.objective.name} has "
            f"{part.objective.bounds}: set its bounds, or choose its weight yourself"
        )
    return replace(part, weight=part.weight / (high - low))


def _names(parts: Sequence[Part]) -> list[str]:
    """Of the parts, each once: the second length is length_2."""
    names: list[str] = []
    for part in parts:
        name, number = part.objective.name, 2
        while name in names:
            name, number = f"{part.objective.name}_{number}", number + 1
        names.append(name)
    return names


def _ends(objective: Objective) -> tuple[float, float]:
    """Its bounds, infinite where there is no limit."""
    low, high = objective.bounds
    return -math.inf if low is None else low, math.inf if high is None else high


def _bounds(parts: Iterable[Part]) -> tuple[float, float]:
    """Of the weighted sum, limits aside."""
    ends = [
        sorted(part.weight * end for end in _ends(part.objective)) for part in parts if part.weight
    ]
    return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)


def _worst_violation(part: Part) -> float:
    low, high = _ends(part.objective)
    over = high - part.at_most if math.isfinite(part.at_most) else 0.0
    under = part.at_least - low if math.isfinite(part.at_least) else 0.0
    return part.penalty * max(0.0, over, under)


def _formula(parts: Mapping[str, Part]) -> str:
    """The sum as it is reckoned, then its limits."""
    terms = [
        f"{part.weight:+g}*{name}".replace("1*", "", abs(part.weight) == 1)
        for name, part in parts.items()
        if part.weight
    ]
    limits = [
        f"{name}{sign}{limit:g}"
        for name, part in parts.items()
        for sign, limit in (("<=", part.at_most), (">=", part.at_least))
        if math.isfinite(limit)
    ]
    return ",".join(filter(None, ["".join(terms).removeprefix("+"), *limits]))


def _terms(part: Part) -> dict[str, float]:
    limits = {"at_most": part.at_most, "at_least": part.at_least}
    told = {key: limit for key, limit in limits.items() if math.isfinite(limit)}
    return {"weight": part.weight, **told, **({"penalty": part.penalty} if told else {})}
