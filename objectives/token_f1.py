"""Token F1 of generated answers: SQuAD's F1."""

from collections import Counter

from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.squad_text import best_over_references, normalize


class TokenF1(Objective):
    """Harmonic mean of word precision and recall against the best accepted answer.

    Words are those of SQuAD's normalisation, counted with their multiplicity. When either side
    has no words left, the score is 1 if both have none, else 0.

    >>> batch = Batch(
    ...     prompts=["?"], references=[["old mill", "mill"]], completions=["in the old mill"]
    ... )
    >>> TokenF1().score(batch)
    [0.8]
    """

    name = "token_f1"

    def score(self, batch: Batch) -> list[Score]:
        return list(best_over_references(batch, token_f1))


def token_f1(completion: str, reference: str) -> float:
    """F1 between the words of two texts.

    >>> token_f1("in the old mill", "the old mill")
    0.8
    """
    predicted, gold = normalize(completion).split(), normalize(reference).split()
    if not predicted or not gold:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    # 2PR / (P + R) with P = common / len(predicted) and R = common / len(gold)
    return 2 * common / (len(predicted) + len(gold))
