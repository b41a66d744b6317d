"""What a batch scored at one offset, and the policy for what can't be scored.

No numpy here: worker processes import this, and start sooner without it.
"""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, ScoreError, is_score

OnError = Literal["drop", "raise", "floor"]


@dataclass(frozen=True)
class Outcome:
    """What the model scored on a batch at one offset.

    Attributes:
        batch: the scored examples.
        scores: one for each, None where it could not be scored; None for a set-level objective.
        value: the objective's number over those that could, NaN if none could.
        error: what went wrong, where something did that counts.
        parts, beside: the outcomes of a combination's, by name.
    """

    batch: Batch
    scores: list[Score] | None
    value: float
    error: str | None = None
    parts: Mapping[str, "Outcome"] = field(default_factory=dict)
    beside: Mapping[str, "Outcome"] = field(default_factory=dict)

    @property
    def known(self) -> list[int]:
        """Positions of the examples that could be scored; of a combination, by each part."""
        if self.scores is not None:
            return [i for i, score in enumerate(self.scores) if is_score(score)]
        everyone = range(len(self.batch)) if is_score(self.value) else range(0)
        return sorted(set(everyone).intersection(*(part.known for part in self.parts.values())))

    @property
    def failed(self) -> int:
        """How many examples could not be scored."""
        return len(self.batch) - len(self.known)

    @property
    def errors(self) -> list[str]:
        """What went wrong, also with what is only logged."""
        found = [self.error, *(part.error for part in self.beside.values())]
        return [error for error in found if error is not None]


def judge(objective: Objective, batch: Batch, on_error: OnError = "drop") -> Outcome:
    """Apply the objective to a scored batch, and the policy to what can't be scored.

    Args:
        objective: what to apply.
        batch: its ``needs`` filled.
        on_error: ``drop`` leaves failed examples out, ``floor`` gives them the lowest (for errors
            the highest) value of ``bounds``, ``raise`` stops.

    Raises:
        UserError: with ``raise``, on an exception, a wrong length, None or NaN.
    """
    if objective.parts:
        parts = {name: judge(part, batch, on_error) for name, part in objective.parts.items()}
        beside = {name: judge(part, batch) for name, part in objective.beside.items()}
        return combined(objective, batch, parts, beside)
    return settled(objective, measured(objective, batch), on_error)


def measured(objective: Objective, batch: Batch) -> Outcome:
    """What the objective says of a batch, as it is: the value of scores is not settled yet."""
    try:
        if objective.decomposable:
            return Outcome(batch, _checked(objective, batch), math.nan)
        return Outcome(batch, None, float(objective.value(batch)))
    except (Exception, SystemExit) as error:  # a scorer may be a program that ends itself
        known = isinstance(error, (ScoreError, UserError))
        text = str(error) if known else f"objective {objective.name!r}: {_describe(error)}"
        return Outcome(
            batch, [None] * len(batch) if objective.decomposable else None, math.nan, text
        )


def combined(
    objective: Objective, batch: Batch, parts: Mapping[str, Outcome], beside: Mapping[str, Outcome]
) -> Outcome:
    """The outcome of a combination from those of its parts, to which the policy was applied."""
    error = next((part.error for part in parts.values() if part.error), None)
    if not objective.decomposable:
        total = objective.combine({name: part.value for name, part in parts.items()})
        return Outcome(batch, None, math.nan if total is None else total, error, parts, beside)
    rows = zip(*(part.scores or () for part in parts.values()), strict=True)
    scores = [objective.combine(dict(zip(parts, row, strict=True))) for row in rows]
    return Outcome(batch, scores, objective.value(batch, scores), error, parts, beside)


def _checked(objective: Objective, batch: Batch) -> list[Score]:
    said = objective.score(batch)
    if isinstance(said, (str, bytes, Mapping, Set)):
        raise ScoreError(
            f"objective {objective.name!r} returned a {type(said).__name__}: return a list with a "
            "score for each example"
        )
    scores = list(said)
    if len(scores) != len(batch):
        raise ScoreError(
            f"objective {objective.name!r} returned {len(scores)} scores for {len(batch)} "
            "examples: return one for each, None where there is none"
        )
    return [float(score) if is_score(score) else None for score in scores]


def settled(objective: Objective, outcome: Outcome, on_error: OnError) -> Outcome:
    """A measured outcome with its value, under the policy for what could not be scored.

    Raises:
        UserError: see ``judge``.
    """
    batch, scores, error, failed = outcome.batch, outcome.scores, outcome.error, outcome.failed
    if error is not None and on_error == "raise":
        raise UserError(error)
    if scores is None and not failed:
        return outcome
    if failed and on_error == "raise":
        raise UserError(
            f"objective {objective.name!r} could not score {failed} of {len(batch)} examples: "
            "mend it, or choose --on_error drop"
        )
    if failed and on_error == "floor":
        worst = floor(objective)
        if scores is None:
            return Outcome(batch, None, math.nan if worst is None else worst, error)
        scores = [worst if score is None else score for score in scores]
    value = objective.value(batch, scores) if scores is not None else math.nan
    return Outcome(batch, scores, value, error)


def floor(objective: Objective) -> float | None:
    """The worst value within the bounds, None where there is no limit on that side."""
    return objective.bounds[0 if objective.higher_is_better else 1]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
