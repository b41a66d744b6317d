"""F1 of answers that are numbers, spans or several spans: DROP's F1."""

import re
from typing import NamedTuple

import numpy as np

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.references import best_over_references
from zoobj.objectives.squad_text import ARTICLES, PUNCTUATION


class Bag(NamedTuple):
    """The different words of a span, and which of them are numbers."""

    words: frozenset[str]
    numbers: frozenset[str]


class DropF1(Objective):
    """Word F1 of the best one-to-one alignment of spans, against the best accepted answer.

    Rules of the official evaluation of DROP (Dua et al. 2019, arXiv 1903.00161, section 5); the
    code is ours. Words are split at spaces and hyphens and normalised like SQuAD's; numbers are
    compared as numbers ("4" is "4.0"), and a span with a number that shares none with its
    counterpart scores 0. Words of a span count once. A span without a counterpart scores 0. The
    score of an example is rounded to two decimals, as the official one is.

    Args:
        separator: between the spans of a text that has several, in completions and references.

    >>> batch = Batch(
    ...     prompts=["?"] * 2, references=[["4 yards"], ["Smith; Jones"]],
    ...     completions=["4.0 yards", "Jones; old Smith; Brown"],
    ... )
    >>> DropF1().score(batch)  # the second: (2/3 + 1 + 0) / 3
    [1.0, 0.56]
    """

    name = "drop_f1"

    def __init__(self, separator: str = ";"):
        if not isinstance(separator, str) or not separator:
            raise UserError(f"drop_f1: separator {separator!r} is not a text, such as ';'")
        self.separator = separator

    def score(self, batch: Batch) -> list[Score]:
        return list(best_over_references(batch, self._compare))

    def _compare(self, completion: str, reference: str) -> float:
        f1 = aligned_f1(self._bags(completion), self._bags(reference))
        return float(np.round(f1, 2))  # as the official script: Python's round differs at halves

    def _bags(self, text: str) -> list[Bag]:
        spans = [span for span in text.split(self.separator) if span.strip()]
        return [bag_of(span) for span in spans or [""]]


def aligned_f1(predicted: list[Bag], gold: list[Bag]) -> float:
    """Mean F1 over the spans of the longer side, under the assignment with the highest sum."""
    from scipy.optimize import linear_sum_assignment

    f1 = np.array([[bag_f1(p, g) for p in predicted] for g in gold])
    best = f1[linear_sum_assignment(f1, maximize=True)]
    return float(best.sum()) / max(len(predicted), len(gold))


def bag_f1(predicted: Bag, gold: Bag) -> float:
    """F1 of two sets of words; 0 where the gold one has numbers and the other none of them."""
    if gold.numbers and not gold.numbers & predicted.numbers:
        return 0.0
    if not predicted.words or not gold.words:
        return float(predicted.words == gold.words)
    common = len(predicted.words & gold.words)
    precision, recall = common / len(predicted.words), common / len(gold.words)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def bag_of(span: str) -> Bag:
    """The words of a span after DROP's normalisation.

    >>> sorted(bag_of("The 4-yard run, 1,000 m").words)
    ['1000.0', '4.0', 'm', 'run', 'yard']
    """
    words = [word for token in re.split("[ -]", span) for word in _normalized(token).split()]
    return Bag(frozenset(words), frozenset(filter(_is_number, words)))


def _normalized(token: str) -> str:
    """Lower case, no article; a number as Python writes it, anything else without punctuation."""
    token = token.lower()
    token = token if _is_number(token) else token.translate(PUNCTUATION)
    return ARTICLES.sub(" ", str(float(token)) if _is_number(token) else token)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
