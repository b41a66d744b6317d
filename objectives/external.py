"""What scorers outside of this process have in common: what they are told and what they may say."""

import logging
import math
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.adapting import short

logger = logging.getLogger(__name__)


class External(Objective):
    """Base of objectives whose scores come from another program.

    Args:
        name: in logs and results.
        higher_is_better: False for an error to be minimised.
        low, high: the range of the scores, where there is one; one outside of it is no score.

    Raises:
        UserError: low is not below high.
    """

    def __init__(
        self,
        name: str,
        higher_is_better: bool = True,
        low: float | None = None,
        high: float | None = None,
    ):
        if low is not None and high is not None and not low < high:
            raise UserError(f"{name}: low {low} is not below high {high}: give the range of scores")
        self.name, self.higher_is_better, self.bounds = name, higher_is_better, (low, high)
        self._told: set[str] = set()

    def _checked(self, said: Any, who: str) -> Score:
        """What came back for an example as a score; what is none is told, and None."""
        if said is None:
            return None
        number = math.nan
        if isinstance(said, (int, float)) and not isinstance(said, bool):
            try:
                number = float(said)
            except OverflowError:
                number = math.inf
        low, high = self.bounds
        if not math.isfinite(number):
            self._tell("score", f"{who} gave {short(said)} as a score: give a number or null")
            return None
        if (low is not None and number < low) or (high is not None and number > high):
            self._tell("range", f"{who} gave {number}, which is not from {low} to {high}")
            return None
        return number

    def _tell(self, kind: str, problem: str) -> None:
        """Log the first problem of its kind; its examples score None, which the run counts."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("objective %r: %s; such examples score None", self.name, problem)


def as_json(batch: Batch) -> dict[str, Any]:
    """The columns as JSON has them: ``prompts``, ``completions``, ``references``, ``rows``.

    NaN and infinity become null; arrays and numbers of numpy lists and numbers; what JSON has no
    word for, its text.

    >>> as_json(Batch(prompts=["?"], references=[["a"]], completions=["b"], rows={"id": [7]}))
    {'prompts': ['?'], 'completions': ['b'], 'references': [['a']], 'rows': {'id': [7]}}
    """
    return {
        "prompts": batch.prompts,
        "completions": batch.completions,
        "references": _plain(batch.references),
        "rows": _plain(batch.rows),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
