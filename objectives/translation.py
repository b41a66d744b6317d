"""What translations are measured by: BLEU, chrF and TER, by sacrebleu.

Each comes for a whole set, as papers report it, and as the mean over examples (``sentence_...``),
which is another number. All take several accepted answers as sacrebleu does, and are scaled so
that 1 is what it calls 100.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Score
from zoobj.objectives.extras import NeedsExtra
from zoobj.objectives.references import answers

TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # those that need no package or download


class SacreBLEU(NeedsExtra):
    """Base of all: a metric of sacrebleu's, over the set or of each example.

    Attributes:
        metric: one of ``sacrebleu.metrics``.
    """

    package, extra = "sacrebleu", "text"
    metric: Any

    def score(self, batch: Batch) -> list[Score]:
        return [
            _scaled(self.metric.sentence_score(completion, references))
            for completion, references in answers(batch)
        ]

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        if self.decomposable:
            return super().value(batch, scores)
        parts = [_counts(self.metric, text, tuple(gold)) for text, gold in answers(batch)]
        return _scaled(self.metric._aggregate_and_compute(parts)) if parts else math.nan


@lru_cache(maxsize=2**16)
def _counts(metric: Any, completion: str, references: tuple[str, ...]) -> list[Any]:
    """What an example adds to the sums that a corpus score is made of.

    As ``corpus_score`` counts, but kept: an interval takes the values of a thousand resamples.
    """
    (counts,) = metric._extract_corpus_statistics([completion], [[text] for text in references])
    return counts


def _scaled(score: Any) -> float:
    """1 for sacrebleu's 100, which comes out as 100.00000000000004."""
    return round(score.score / 100, 12)


class BLEU(SacreBLEU):
    """BLEU of the whole set: word n-grams shared with the answers, n from 1 to 4.

    Papineni et al. 2002, with sacrebleu's tokens and smoothing, from 0 to 1. A set in which no
    completion has four words scores 0: for short answers take ``sentence_bleu`` or ``chrf``. On a
    minibatch it is a biased estimate of its value on the full set; a hundred sentences make it a
    good one.

    Args:
        tokenize: how words are found: "13a" (Western languages), "intl", "zh", "char" or "none".
        lowercase: case doesn't count.

    Raises:
        UserError: another tokenizer, or sacrebleu is not installed.

    >>> batch = Batch(
    ...     prompts=["?"], references=[["the mill by the old river"]],
    ...     completions=["the mill by the river"],
    ... )
    >>> round(BLEU().value(batch), 4)
    0.5789
    """

    name = "bleu"
    decomposable = False

    def __init__(self, tokenize: str = "13a", lowercase: bool = False):
        super().__init__()
        if tokenize not in TOKENIZERS:
            hint = did_you_mean(str(tokenize), TOKENIZERS)
            raise UserError(f"{self.name}: unknown tokenize {tokenize!r}{hint}")
        from sacrebleu.metrics.bleu import BLEU as Metric

        # An example on its own is judged by the n-grams it has room for. force: no warnings.
        self.metric = Metric(
            tokenize=tokenize, lowercase=lowercase, effective_order=self.decomposable, force=True
        )


class SentenceBLEU(BLEU):
    """BLEU of each example, smoothed, by the n-grams that the completion has room for.

    Arguments and scale are those of ``bleu``; the mean over examples is not the BLEU of the set.

    >>> batch = Batch(prompts=["?"], references=[["old mill", "a mill"]], completions=["old mill"])
    >>> SentenceBLEU().score(batch)
    [1.0]
    """

    name = "sentence_bleu"
    decomposable = True


class ChrF(SacreBLEU):
    """chrF of the whole set: F2 of the characters' n-grams shared with the best answer.

    M. Popovic 2015, from 0 to 1. It needs no words and so suits any script. On a minibatch it is a
    slightly biased estimate of its value on the full set; a few dozen sentences make it a good one.

    Args:
        word_order: up to which order words' n-grams count as well; 2 is chrF++.
        lowercase: case doesn't count.

    Raises:
        UserError: a negative order, or sacrebleu is not installed.

    >>> batch = Batch(prompts=["?"], references=[["old mill"]], completions=["old mills"])
    >>> round(ChrF().value(batch), 4)
    0.9515
    """

    name = "chrf"
    decomposable = False

    def __init__(self, word_order: int = 0, lowercase: bool = False):
        super().__init__()
        if type(word_order) is not int or word_order < 0:
            raise UserError(f"{self.name}: word_order {word_order!r} is not a whole number from 0")
        from sacrebleu.metrics.chrf import CHRF as Metric

        self.metric = Metric(word_order=word_order, lowercase=lowercase)


class SentenceChrF(ChrF):
    """chrF of each example: F2 of the characters' n-grams shared with the best answer.

    Arguments and scale are those of ``chrf``; the mean over examples is not the chrF of the set.

    >>> batch = Batch(prompts=["?"], references=[["old mill"]], completions=["old mills"])
    >>> round(SentenceChrF().score(batch)[0], 4)
    0.9515
    """

    name = "sentence_chrf"
    decomposable = True


class TER(SacreBLEU):
    """Translation edit rate of the whole set: edits to the nearest answer, per word of an answer.

    Snover et al. 2006: words inserted, deleted, replaced, or moved in blocks. Lower is better: 0
    is a perfect match, and a long completion scores above 1. On a minibatch it is a slightly biased
    estimate of its value on the full set; a few dozen sentences make it a good one.

    Args:
        normalized: punctuation is split from words.
        case_sensitive: case counts.

    Raises:
        UserError: sacrebleu is not installed.

    >>> batch = Batch(prompts=["?"], references=[["the old mill"]], completions=["the mill there"])
    >>> round(TER().value(batch), 4)
    0.6667
    """

    name = "ter"
    higher_is_better, bounds, decomposable = False, (0.0, None), False

    def __init__(self, normalized: bool = False, case_sensitive: bool = False):
        super().__init__()
        from sacrebleu.metrics.ter import TER as Metric

        self.metric = Metric(normalized=normalized, case_sensitive=case_sensitive)


class SentenceTER(TER):
    """Translation edit rate of each example: edits to the nearest answer, per word of an answer.

    Arguments and scale are those of ``ter``; the mean over examples is not the rate of the set.

    >>> batch = Batch(prompts=["?"], references=[["the old mill"]], completions=["the mill there"])
    >>> round(SentenceTER().score(batch)[0], 4)
    0.6667
    """

    name = "sentence_ter"
    decomposable = True
