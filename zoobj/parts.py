"""What the parts of a combination came to, for the log: ``rewards`` of a step or an evaluation."""

import statistics
from collections.abc import Sequence
from typing import Any

from zoobj.objective import Objective, is_score
from zoobj.outcome import Outcome


def rewards(objective: Objective, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a line of the log says of each part: ``{"rewards": {name: figures}}``; else nothing.

    The figures are mean, std, min and max over the scores of all outcomes (of a set-level part over
    its values, without std), the share of examples that failed, and the part's terms: ``weight`` is
    the one that is applied, negative where lower is better. None stands for "nothing was scored".
    """
    names = [*objective.parts, *objective.beside]
    if not names:
        return {}
    told = {}
    for name in names:
        group = "parts" if name in objective.parts else "beside"
        part = [getattr(outcome, group)[name] for outcome in outcomes]
        told[name] = {**_figures(part), **objective.terms.get(name, {})}
    return {"rewards": told}


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    by_example = all(outcome.scores is not None for outcome in outcomes)
    scores = [outcome.scores or [] if by_example else [outcome.value] for outcome in outcomes]
    known = [score for some in scores for score in some if is_score(score)]
    figures = {
        "mean": statistics.fmean(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "failed": sum(outcome.failed for outcome in outcomes)
        / max(1, sum(len(outcome.batch) for outcome in outcomes)),
    }
    return {**figures, "std": statistics.pstdev(known)} if known and by_example else figures
