"""Exact match of generated answers."""

from zoobj.objectives.squad_text import SquadObjective, normalize


class ExactMatch(SquadObjective):
    """1 if the completion equals an accepted answer after SQuAD's normalisation, else 0.

    Args:
        version: 1.1, or 2.0, where a question may have no answer: its accepted answers are none,
            or texts without a word, and only a completion without a word is right.
        no_answer: a text that says so too, such as "unanswerable", in completions and references.

    >>> from zoobj import Batch
    >>> batch = Batch(prompts=["?"], references=[["old mill"]], completions=["The old mill."])
    >>> ExactMatch().score(batch)
    [1.0]
    """

    name = "exact_match"

    def compare(self, completion: str, reference: str) -> float:
        return float(normalize(completion) == normalize(reference))
