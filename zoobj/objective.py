"""The contract of an objective: scored examples in, a number people report out.

A *decomposable* objective is the mean of per-example scores and defines ``score``; a *set-level*
one (macro-F1, AUC, corpus BLEU) exists only for a whole set and defines ``value``. A score of None,
NaN or infinity means "could not be scored" and never counts as a number.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeGuard

from zoobj.errors import UserError
from zoobj.registry import build, call

COLUMNS = ("completions", "predictions", "label_scores", "reference_logprob", "completion_ids")
Score = float | None
Bounds = tuple[float | None, float | None]  # lowest and highest, None where there is no limit


class ScoreError(Exception):
    """Scoring failed; the message names the function, the problem and the remedy."""


@dataclass(frozen=True)
class Batch:
    """Scored examples as columns; a column that nothing asked for is None.

    Attributes:
        rows: columns of the data set, each a list of length B.
        prompts: what the model was given, B texts.
        references: the gold answers: a label id for a task of choices, a list of accepted texts
            for a task of generation.
        completions: generated texts, cut at the stop string and stripped; for a task of choices
            the texts of the predicted ones.
        predictions: ids of the most likely choices.
        label_scores: [B][C] log-probabilities of the choices, in nats.
        reference_logprob: log-probability of the gold answer, in nats.
        completion_ids: the tokens of the completions, of the model's tokenizer, without special
            ones.
    """

    prompts: list[str]
    references: list[Any]
    rows: dict[str, list[Any]] = field(default_factory=dict)
    completions: list[str] | None = None
    predictions: list[int] | None = None
    label_scores: list[list[float]] | None = None
    reference_logprob: list[float] | None = None
    completion_ids: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> "Batch":
        """The examples at these positions, in this order (repeats allowed)."""
        picked: dict[str, Any] = {
            f.name: [column[i] for i in indices]
            for f in fields(self)
            if isinstance(column := getattr(self, f.name), list)
        }
        rows = {name: [column[i] for i in indices] for name, column in self.rows.items()}
        return replace(self, rows=rows, **picked)

    def followed_by(self, other: "Batch") -> "Batch":
        """These examples and then those, which have the same columns."""
        both: dict[str, Any] = {
            f.name: [*column, *getattr(other, f.name)]
            for f in fields(self)
            if isinstance(column := getattr(self, f.name), list)
        }
        rows = {name: [*column, *other.rows[name]] for name, column in self.rows.items()}
        return replace(self, rows=rows, **both)


class Objective:
    """Base class of objectives. Override ``score`` (decomposable) or ``value`` (set-level).

    Attributes:
        name: as it appears in logs and results.
        higher_is_better: False for errors and losses; the engine flips the sign, once.
        bounds: (lowest, highest) possible value, None where there is no limit.
        needs: the columns of ``Batch`` that scoring has to fill.
        decomposable: the value is the mean of per-example scores.
        deterministic: equal examples get equal scores, so that these may be kept (--reward_cache).
        tie_breaker: the objective that speaks by default where this one says nothing (zoobj.ties):
            one that agrees with it and moves in smaller steps.
        on_error, timeout: the failure policy and the seconds for a call, where they are this
            objective's own; None: the run's.
        parts: of a combination, what it is made of, by name. The engine scores each of them, once,
            and gives their numbers to ``combine``; an example that one of them could not score
            counts as not scored.
        beside: what is scored along with them and logged, and counts for nothing.
        terms: figures that the log has of each of ``parts`` and ``beside``, such as its weight.

    Objectives can be added, subtracted and multiplied by weights; see ``zoobj.objectives.Sum``.

    >>> class Brevity(Objective):
    ...     name, bounds = "brevity", (None, 0.0)
    ...     def score(self, batch):
    ...         return [-float(len(text.split())) for text in batch.completions]
    >>> Brevity().value(Batch(prompts=["", ""], references=[[], []], completions=["a b", "a"]))
    -1.5
    """

    name: str = ""
    higher_is_better: bool = True
    bounds: Bounds = (0.0, 1.0)
    needs: frozenset[str] = frozenset({"completions"})
    decomposable: bool = True
    deterministic: bool = True
    tie_breaker: str | None = None
    on_error: Literal["drop", "raise", "floor"] | None = None
    timeout: float | None = None
    parts: Mapping[str, "Objective"] = {}
    beside: Mapping[str, "Objective"] = {}
    terms: Mapping[str, Mapping[str, float]] = {}

    def score(self, batch: Batch) -> list[Score]:
        """Per-example scores, one for each of the B examples, in order; None = not scorable."""
        raise NotImplementedError(f"{type(self).__name__} must define score() or value()")

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        """The number for the whole set; NaN when nothing in it could be scored.

        Args:
            batch: the examples.
            scores: their scores where they are known already, so that they aren't paid twice.
        """
        known = [s for s in (self.score(batch) if scores is None else scores) if is_score(s)]
        return math.fsum(known) / len(known) if known else math.nan

    def combine(self, numbers: Mapping[str, Score]) -> Score:
        """One number from those of ``parts``, of an example if it is decomposable, else of a set.

        None where one of them is None or NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} has parts and must define combine()")

    def __add__(self, other: Any) -> "Objective":
        return as_objective([self, other])

    def __mul__(self, weight: float) -> "Objective":
        return as_objective([{"name": self, "weight": weight}])

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return self * -1.0

    def __sub__(self, other: Any) -> "Objective":
        return self + -as_objective(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def is_score(score: Score) -> TypeGuard[float]:
    """Whether this is a number (and not "could not be scored")."""
    return score is not None and math.isfinite(score)


def as_objective(thing: Any) -> Objective:
    """An Objective from what a user has.

    * a spec, an Objective or a class of one;
    * a function: of TRL's signature, ``f(prompts, completions, <columns>, **kwargs) -> list``, or
      set-level, ``f(predictions, references) -> float``; see the objective ``reward``;
    * a metric of torchmetrics, or of evaluate and whatever has ``compute(predictions=,
      references=)`` as theirs; see ``torchmetrics`` and ``evaluate``;
    * a list of these, or of mappings with their weights and limits; see ``sum``.

    Raises:
        UserError: it is none of these, or lacks part of the contract.
    """
    made = build("objective", thing) if isinstance(thing, str) else thing
    if inspect.isclass(made) and issubclass(made, Objective):
        made = call(made, f"objective {made.__name__}")
    return _checked(made if isinstance(made, Objective) else _adapted(made, thing))


def _adapted(thing: Any, told: Any) -> Objective:
    """The adapter for things of this shape, by its registered name; ``told`` is what named it."""
    if isinstance(thing, Mapping):
        options = thing if "parts" in thing else {"parts": [thing]}
        return build("objective", "sum", **{str(key): value for key, value in options.items()})
    if isinstance(thing, Sequence):
        return build("objective", "sum", parts=thing)
    methods = {
        name
        for name in ("reset", "update", "compute", "_score_func", "__call__")
        if not inspect.isclass(thing) and callable(getattr(thing, name, None))
    }
    if {"reset", "update", "compute"} <= methods:
        return build("objective", "torchmetrics", metric=thing)
    if "compute" in methods:
        return build("objective", "evaluate", metric=thing)
    if "_score_func" in methods:
        return build("objective", "sklearn", metric=thing)
    if "__call__" in methods:
        return build("objective", "reward", fn=thing)
    raise UserError(
        f"{told!r} is no objective: give a name, an Objective, a function of prompts and "
        "completions, a metric with compute(), or a list of these"
    )


def _checked(objective: Objective) -> Objective:
    what = f"objective {type(objective).__name__}"
    if not objective.name:
        raise UserError(f"{what} has no name: set the class attribute 'name'")
    if unknown := set(objective.needs) - set(COLUMNS):
        raise UserError(
            f"{what} needs unknown columns {sorted(unknown)}: choose from {', '.join(COLUMNS)}"
        )
    defined = type(objective).score if objective.decomposable else type(objective).value
    if defined in (Objective.score, Objective.value):
        method = "score" if objective.decomposable else "value"
        raise UserError(f"{what} must define {method}() (decomposable={objective.decomposable})")
    return objective
