"""Accuracy of a task of choices."""

from zoobj.objective import Batch, Objective, Score


class Accuracy(Objective):
    """Share of examples whose most likely choice is the gold one.

    >>> batch = Batch(prompts=["a", "b"], references=[1, 0], predictions=[1, 1])
    >>> Accuracy().score(batch), Accuracy().value(batch)
    ([1.0, 0.0], 0.5)
    """

    name = "accuracy"
    needs = frozenset({"predictions"})

    def score(self, batch: Batch) -> list[Score]:
        assert batch.predictions is not None
        pairs = zip(batch.predictions, batch.references, strict=True)
        return [float(predicted == gold) for predicted, gold in pairs]
