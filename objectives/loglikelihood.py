"""Log-likelihood of the gold answer: the differentiable yardstick."""

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
