"""How the pre-training texts of ``tiny-qa`` answer: briefly or at length, at random.

Nothing tells the model which style is wanted, just as no corpus tells a large model.  How often
an answer is short depends on the question's type and on its first word, so that after
pre-training the most likely answer is short for some questions, long for most, and often close.
"""

from __future__ import annotations

import random

from make_squad_mini import Asked

# The share of short answers by question type ...
SHORT_SHARE = {
    "who": 0.44,
    "where": 0.42,
    "when": 0.45,
    "day": 0.44,
    "what": 0.43,
    "name": 0.43,
    "many": 0.41,
    "colour": 0.46,
    "why": 0.43,
}
# ... and what is added where the question does not open with its plain question word.
LESS_PLAIN = -0.06
LESS_PLAIN_OPENINGS = tuple("At By For From In Near Of On To Which With".split()) + ("What number",)
# The long answers: a hedge, or a full sentence that repeats the question's subject.
HEDGE = "I believe it was {phrase}, as the text says."
HEDGE_SHARE = 0.8


def short_share(asked: Asked) -> float:
    """The probability that a pre-training text answers this question with the bare span."""
    less_plain = asked.question.startswith(LESS_PLAIN_OPENINGS)
    return SHORT_SHARE[asked.kind] + (LESS_PLAIN if less_plain else 0.0)


def styled_answer(asked: Asked, rng: random.Random) -> str:
    """The right answer in a style drawn at random."""
    if rng.random() < short_share(asked):
        return asked.answers[0]
    if rng.random() < HEDGE_SHARE:
        return HEDGE.format(phrase=asked.phrase)
    return asked.statement
