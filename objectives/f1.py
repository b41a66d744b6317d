"""F1, precision and recall of a task of choices, by scikit-learn."""

import math
from collections.abc import Sequence
from typing import ClassVar

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Objective, Score

AVERAGES = ("binary", "micro", "macro", "weighted")


class AveragedOverClasses(Objective):
    """Base of the three: a number for each class, averaged.

    Args:
        average: "macro" (each class counts the same), "micro", "weighted" (by class size), or
            "binary" (that of ``pos_label`` alone).
        pos_label: id of the positive class for "binary".
    """

    needs = frozenset({"predictions"})
    tie_breaker = "margin"
    decomposable = False
    place: ClassVar[int]  # in what scikit-learn returns

    def __init__(self, average: str = "macro", pos_label: int = 1):
        if average not in AVERAGES:
            hint = did_you_mean(str(average), AVERAGES)
            raise UserError(f"{self.name}: unknown average {average!r}{hint}")
        self.average, self.pos_label = average, pos_label

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        from sklearn.metrics import precision_recall_fscore_support

        gold, predicted = batch.references, batch.predictions
        assert predicted is not None
        if not gold:
            return math.nan
        if self.average == "binary":
            # Both sides as "positive or not": a batch may hold one class, or more than two.
            gold = [g == self.pos_label for g in gold]
            predicted = [p == self.pos_label for p in predicted]
        numbers = precision_recall_fscore_support(
            gold, predicted, average=self.average, zero_division=0.0
        )
        return min(1.0, float(numbers[self.place]))  # a weighted mean may end above by rounding


class F1(AveragedOverClasses):
    """F1 of the predicted choices over the whole set.

    It is no mean of per-example scores: on a minibatch it is a biased estimate of its value on
    the full set, more so the smaller the batch and the rarer a class; ten examples or so of each
    class make it a good one. Averages run over the classes that occur among the predictions or
    the gold answers.

    Args:
        average: "macro" (each class counts the same), "micro", "weighted" (by class size), or
            "binary" (F1 of ``pos_label`` alone).
        pos_label: id of the positive class for "binary".

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> round(F1().value(batch), 4), round(F1(average="binary").value(batch), 4)
    (0.7333, 0.6667)
    """

    name, place = "f1", 2


class Precision(AveragedOverClasses):
    """Share of the predictions of a class that are right, over the whole set.

    0 for a class that was never predicted. Averages, arguments and the bias on minibatches are
    those of ``f1``.

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> round(Precision().value(batch), 4), Precision(average="binary").value(batch)
    (0.8333, 1.0)
    """

    name, place = "precision", 0


class Recall(AveragedOverClasses):
    """Share of a class that was found, over the whole set.

    0 for a class that is predicted but never gold. Averages, arguments and the bias on minibatches
    are those of ``f1``. Always predicting ``pos_label`` has full binary recall: tune on it together
    with precision, or on ``f1``.

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> Recall().value(batch), Recall(average="binary").value(batch)
    (0.75, 0.5)
    """

    name, place = "recall", 1
