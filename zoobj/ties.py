"""What ties: a second objective, asked only where the first one says nothing.

A metric in steps says nothing of most examples: they score the same at both offsets. A tie-breaker
is asked about these alone. It has a method of its own, of the same kind, seeds and settings; what
that one hears of a pair is the second objective

    over all examples, where the values of the metric tie                              (1)
    over the examples that score the same, a share of all, where they don't            (2)

and the step is both moves together, the second held to less than the first wherever the metric
decides: with a_s the metric's coefficient of direction s, and b_s the tie-breaker's,

    b_s                                   where a_s = 0
    a_s                                   where b_s = 0
    2 (a_s + b_s), |b_s| <= 0.9 |a_s|     where both speak                             (3)

so that no pair that the metric decides is ever reversed. Two say more than one, so a step by both
may be longer (docs/signal.md has the experiments). A weighted sum of objectives is another thing:
there one can outvote the other.

(2) is for methods that compare losses within a pair only, since each pair is heard over other
examples; the rest hear (1).
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from zoobj.errors import UserError
from zoobj.estimators.base import Estimator
from zoobj.objective import Objective, as_objective, is_score
from zoobj.outcome import Outcome
from zoobj.run import RunFolder
from zoobj.service import Service
from zoobj.signal import loss, same_in_both, together
from zoobj.task import Example
from zoobj.walk import Move

SHARE, BOTH = 0.9, 2.0  # (3)


def second_objective(told: Any, objective: Objective, allowed: bool) -> Objective | None:
    """The tie-breaker that a setting or an argument names, if any.

    Args:
        told: what ``as_objective`` takes; "auto" for the objective's own, "none" or None for none.
        objective: the first one.
        allowed: whether the method has a use for one, without which "auto" is none.

    Raises:
        UserError: it names none.
    """
    if isinstance(told, str) and told == "auto":
        told = objective.tie_breaker if allowed else None
    try:
        return None if told in (None, "none") else as_objective(told)
    except UserError as error:
        raise UserError(f"tie_breaker {told!r}: {error}") from None


class TieBreaker:
    """Says where to go by what ties.

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
        move: Move,
    ) -> tuple[Move, dict[str, Any]]:
        """What the ties of a step come to.

        Args:
            run: keeps scores until the step is done, so that none is asked for twice.
            step: its number.
            examples: of the step; outcomes may be of the first of them only.
            main: the run's method, which asked for the offsets.
            outcomes: of the offsets; their batches hold what this objective needs.
            values: of the metric, at the same offsets.
            move: what the metric says.

        Returns:
            The move beside that one, and what the log has of it: ``pairs`` that tied, how many of
            them were ``decided``, ``examples`` that tied in the other pairs, the mean ``value`` of
            what was asked about (None if nothing was), ``state``.
        """
        method = self.method
        method.eps, method.learning_rate = main.eps, main.learning_rate
        method.offsets(step)  # it draws the directions of this step
        said, asked = [math.nan] * len(values), []
        pairs = decided = others = 0
        for group in main.groups(len(values)):
            tied, keep = _ties(main, group, outcomes, values)
            if len(tied) < 2 or not keep:
                continue
            judged = [self._judged(run, step, n, keep, examples, outcomes[n]) for n in tied]
            found = together(self.objective, judged).values
            asked += found
            if values[tied[0]] == values[tied[1]]:
                pairs += len(found) - 1
                decided += sum(abs(value - found[0]) > 0 for value in found[1:])
            else:
                others += len(keep)
            share = len(keep) / len(outcomes[tied[0]].batch)
            for number, value in zip(tied, found, strict=True):
                said[number] = share * value
        own = method.move([loss(self.objective, value) for value in said])
        known = list(filter(is_score, asked))
        return _beside(move, own), {
            "pairs": pairs,
            "decided": decided,
            "examples": others,
            "value": fmean(known) if known else None,
            "state": method.state_dict(),
        }

    def _judged(
        self,
        run: RunFolder,
        step: int,
        number: int,
        keep: Sequence[int],
        examples: Sequence[Example],
        outcome: Outcome,
    ) -> Outcome:
        """What this objective says of some examples at an offset; asked once only."""
        key, asked = f"{run.key(step)}/tie_breaker/{number}", [examples[i] for i in keep]
        found = run.pending.get(key, asked)
        if found is None:
            found = self.service.judge(outcome.batch.select(keep))
            run.pending.put(key, found)
        return found


def _ties(
    main: Estimator, group: Sequence[int], outcomes: Sequence[Outcome], values: Sequence[float]
) -> tuple[Sequence[int], list[int]]:
    """Offsets that the metric can't tell apart, and on which examples: (1), else (2)."""
    first = group[0]
    tied = [number for number in group if values[number] == values[first]]
    if len(tied) > 1:
        return tied, list(range(len(outcomes[first].batch)))
    known = all(is_score(values[number]) for number in group)
    if len(group) != 2 or "race" not in main.allows or not known:
        return [], []
    return group, same_in_both(*(outcomes[number] for number in group))


def _beside(move: Move, own: Move) -> Move:
    """What makes of the metric's move the step (3), given the tie-breaker's own."""
    said, more = _summed(move), _summed(own)
    for seed, amount in more.items():
        if amount and (first := said.get(seed, 0.0)):
            limit = SHARE * abs(first)
            more[seed] = BOTH * (first + min(max(amount, -limit), limit)) - first
    return list(more.items())


def _summed(move: Move) -> dict[int, float]:
    """The coefficient of each seed."""
    total: dict[int, float] = {}
    for seed, amount in move:
        total[seed] = total.get(seed, 0.0) + amount
    return total
