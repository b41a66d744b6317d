"""Tied pairs: a second objective, asked only where the first one says nothing.

A tie-breaker never changes what the metric decides. It has a method of its own, of the same kind
with the same seeds, which hears its losses at pairs that tied and NaN ("nothing is known") at all
others, and divides by a running size of its own differences. The step is both moves together:

    theta <- theta + move(metric) + 1/2 move(tie-breaker, where the metric ties)      (1)

A pair that the metric decides has the coefficient that it would have without (1), to the bit. A
weighted sum of objectives is another thing: there one can outvote the other.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from zoobj.errors import UserError
from zoobj.estimators.base import Estimator
from zoobj.objective import Objective, as_objective, is_score
from zoobj.run import RunFolder
from zoobj.service import Service
from zoobj.signal import Outcome, loss, together
from zoobj.task import Example
from zoobj.walk import Move

WEIGHT = 0.5  # of its move; docs/signal.md has the experiment


def second_objective(told: Any) -> Objective | None:
    """The objective that a setting or an argument names, if any.

    Raises:
        UserError: it names none.
    """
    try:
        return None if told is None else as_objective(told)
    except UserError as error:
        raise UserError(f"tie_breaker {told!r}: {error}") from None


class TieBreaker:
    """Says where to go by the pairs that tie.

    Args:
        objective: that is asked.
        service: scores by it.
        method: as the run's own, for this one alone.
    """

    def __init__(self, objective: Objective, service: Service, method: Estimator):
        self.objective, self.service, self.method = objective, service, method

    def __call__(
        self,
        run: RunFolder,
        step: int,
        examples: Sequence[Example],
        main: Estimator,
        outcomes: Sequence[Outcome],
        values: Sequence[float],
    ) -> tuple[Move, dict[str, Any]]:
        """What the tied pairs of a step come to.

        Args:
            run: keeps scores until the step is done, so that none is asked for twice.
            step: its number.
            examples: of the step; outcomes may be of the first of them only.
            main: the run's method, which asked for the offsets.
            outcomes: of the offsets; their batches hold what this objective needs.
            values: of the metric, at the same offsets.

        Returns:
            The move, and what the log has of it: ``pairs`` that tied, how many of them were
            ``decided``, the mean ``value`` of their offsets (None if there is none), ``state``.
        """
        method = self.method
        method.eps, method.learning_rate = main.eps, WEIGHT * main.learning_rate
        method.offsets(step)  # it draws the directions of this step
        said = [math.nan] * len(values)
        pairs = decided = 0
        for group in main.groups(len(values)):
            tied = [number for number in group if values[number] == values[group[0]]]
            if len(tied) < 2:
                continue
            keys = [f"{run.key(step)}/tie_breaker/{number}" for number in tied]
            judged = [
                self._judged(run, key, examples, outcomes[number])
                for key, number in zip(keys, tied, strict=True)
            ]
            first, *others = together(self.objective, judged).values
            for number, value in zip(tied, (first, *others), strict=True):
                said[number] = value
            pairs += len(others)
            decided += sum(abs(other - first) > 0 for other in others)
        move = method.move([loss(self.objective, value) for value in said])
        known = list(filter(is_score, said))
        return move, {
            "pairs": pairs,
            "decided": decided,
            "value": fmean(known) if known else None,
            "state": method.state_dict(),
        }

    def _judged(
        self, run: RunFolder, key: str, examples: Sequence[Example], outcome: Outcome
    ) -> Outcome:
        """What this objective says of an offset; asked once only."""
        found = run.pending.get(key, examples[: len(outcome.batch)])
        if found is None:
            found = self.service.judge(outcome.batch)
            run.pending.put(key, found)
        return found
