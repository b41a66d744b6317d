"""Token F1 of generated answers: SQuAD's F1."""

from collections import Counter

from zoobj.objectives.squad_text import SquadObjective, normalize


class TokenF1(SquadObjective):
    """Harmonic mean of word precision and recall against the best accepted answer.

    Words are those of SQuAD's normalisation, counted with their multiplicity. When either side
    has no words left, the score is 1 if both have none, else 0.

    Args:
        version: 1.1, or 2.0, where a question may have no answer: its accepted answers are none,
            or texts without a word, and only a completion without a word is right.
        no_answer: a text that says so too, such as "unanswerable", in completions and references.

    >>> from zoobj import Batch
    >>> batch = Batch(
    ...     prompts=["?"], references=[["old mill", "mill"]], completions=["in the old mill"]
    ... )
    >>> TokenF1().score(batch)
    [0.8]
    >>> unanswerable = Batch(prompts=["?"] * 2, references=[[], []], completions=["", "a mill"])
    >>> TokenF1(version=2.0).score(unanswerable)
    [1.0, 0.0]
    """

    name = "token_f1"

    def compare(self, completion: str, reference: str) -> float:
        return token_f1(completion, reference)


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
