"""F1 of a task of choices, by scikit-learn."""

from collections.abc import Sequence

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Objective, Score

AVERAGES = ("binary", "micro", "macro", "weighted")


class F1(Objective):
    """F1 of the predicted choices over the whole set.

    It is no mean of per-example scores: on a minibatch it is a biased estimate of its value on
    the full set, more so the smaller the batch and the rarer a class. Averages run over the
    classes that occur among the predictions or the gold answers.

    Args:
        average: "macro" (each class counts the same), "micro", "weighted" (by class size), or
            "binary" (F1 of ``pos_label`` alone).
        pos_label: id of the positive class for "binary".

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> round(F1().value(batch), 4), round(F1(average="binary").value(batch), 4)
    (0.7333, 0.6667)
    """

    name = "f1"
    needs = frozenset({"predictions"})
    decomposable = False

    def __init__(self, average: str = "macro", pos_label: int = 1):
        if average not in AVERAGES:
            raise UserError(f"f1: unknown average {average!r}{did_you_mean(average, AVERAGES)}")
        self.average, self.pos_label = average, pos_label

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        from sklearn.metrics import f1_score

        assert batch.predictions is not None
        gold, predicted = batch.references, batch.predictions
        if self.average == "binary":
            # Both sides as "positive or not": a batch may hold one class, or more than two.
            gold = [g == self.pos_label for g in gold]
            predicted = [p == self.pos_label for p in predicted]
            return float(f1_score(gold, predicted, average="binary", zero_division=0.0))
        return float(f1_score(gold, predicted, average=self.average, zero_division=0.0))
