"""Likelihood of the gold answer: the differentiable yardsticks."""

import math
from collections.abc import Sequence

from zoobj.objective import Batch, Objective, Score


class LogLikelihood(Objective):
    """log p(gold answer | prompt) in nats, the negative of the usual cross-entropy loss.

    For choices it is the log-probability of the gold candidate; for generation that of the first
    accepted answer.

    >>> LogLikelihood().value(Batch(prompts=["?"], references=[0], reference_logprob=[-0.5]))
    -0.5
    """

    name = "loglikelihood"
    bounds = (None, 0.0)
    needs = frozenset({"reference_logprob"})

    def score(self, batch: Batch) -> list[Score]:
        assert batch.reference_logprob is not None
        return list(batch.reference_logprob)


class Margin(Objective):
    """Log-likelihood of the gold choice minus that of the best other one, in nats.

    Above 0 where the example is right. It moves with every change of the model, where accuracy is
    flat; but a few examples with large margins can outweigh many that are wrong.

    >>> batch = Batch(prompts=["?"], references=[1], label_scores=[[-2.0, -0.5, -3.0]])
    >>> Margin().score(batch)
    [1.5]
    """

    name = "margin"
    bounds = (None, None)
    needs = frozenset({"label_scores"})

    def score(self, batch: Batch) -> list[Score]:
        assert batch.label_scores is not None
        lines = zip(batch.label_scores, batch.references, strict=True)
        return [_margin(scores, gold) for scores, gold in lines]


def _margin(scores: Sequence[float], gold: int) -> Score:
    others = [score for label, score in enumerate(scores) if label != gold]
    return None if any(map(math.isnan, scores)) else scores[gold] - max(others)
