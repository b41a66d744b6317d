"""The contract of an objective: scored examples in, a number people report out.

A *decomposable* objective is the mean of per-example scores and defines ``score``; a *set-level*
one (macro-F1, AUC, corpus BLEU) exists only for a whole set and defines ``value``. A score of None,
NaN or infinity means "could not be scored" and never counts as a number.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeGuard

from zoobj.errors import UserError
from zoobj.registry import build, call

COLUMNS = ("completions", "predictions", "label_scores", "reference_logprob")
Score = float | None


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
    """

    prompts: list[str]
    references: list[Any]
    rows: dict[str, list[Any]] = field(default_factory=dict)
    completions: list[str] | None = None
    predictions: list[int] | None = None
    label_scores: list[list[float]] | None = None
    reference_logprob: list[float] | None = None

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


class Objective:
    """Base class of objectives. Override ``score`` (decomposable) or ``value`` (set-level).

    Attributes:
        name: as it appears in logs and results.
        higher_is_better: False for errors and losses; the engine flips the sign, once.
        bounds: (lowest, highest) possible value, None where there is no limit.
        needs: the columns of ``Batch`` that scoring has to fill.
        decomposable: the value is the mean of per-example scores.
        deterministic: equal examples get equal scores, so that these may be kept (--reward_cache).
        on_error, timeout: the failure policy and the seconds for a call, where they are this
            objective's own; None: the run's.

    >>> class Brevity(Objective):
    ...     name, bounds = "brevity", (None, 0.0)
    ...     def score(self, batch):
    ...         return [-float(len(text.split())) for text in batch.completions]
    >>> Brevity().value(Batch(prompts=["", ""], references=[[], []], completions=["a b", "a"]))
    -1.5
    """

    name: str = ""
    higher_is_better: bool = True
    bounds: tuple[float | None, float | None] = (0.0, 1.0)
    needs: frozenset[str] = frozenset({"completions"})
    decomposable: bool = True
    deterministic: bool = True
    on_error: Literal["drop", "raise", "floor"] | None = None
    timeout: float | None = None

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def is_score(score: Score) -> TypeGuard[float]:
    """Whether this is a number (and not "could not be scored")."""
    return score is not None and math.isfinite(score)


def as_objective(thing: "str | Objective | type[Objective] | Callable[..., Any]") -> Objective:
    """An Objective from what a user has: a spec, a class, an instance or a plain function.

    A function has TRL's signature, ``f(prompts, completions, <columns>, **kwargs) -> list``, or is
    set-level, ``f(predictions, references) -> float``; it becomes the objective ``reward``.

    Raises:
        UserError: it is none of these, or lacks part of the contract.
    """
    made = build("objective", thing) if isinstance(thing, str) else thing
    if inspect.isclass(made) and issubclass(made, Objective):
        made = call(made, f"objective {made.__name__}")
    if not isinstance(made, Objective):
        if not callable(made) or inspect.isclass(made):
            raise UserError(
                f"{thing!r} is no objective: give a name, an Objective or a function of "
                "prompts and completions"
            )
        made = build("objective", "reward", fn=made)
    return _checked(made)


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
