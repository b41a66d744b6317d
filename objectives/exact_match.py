"""Exact match of generated answers."""

from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.squad_text import best_over_references, normalize


class ExactMatch(Objective):
    """1 if the completion equals an accepted answer after SQuAD's normalisation, else 0.

    >>> batch = Batch(prompts=["?"], references=[["old mill"]], completions=["The old mill."])
    >>> ExactMatch().score(batch)
    [1.0]
    """

    name = "exact_match"

    def score(self, batch: Batch) -> list[Score]:
        return list(best_over_references(batch, _equal))


def _equal(completion: str, reference: str) -> float:
    return float(normalize(completion) == normalize(reference))
