"""How often the choices of a task are right: accuracy, balanced accuracy, Matthews correlation."""

import math
from collections.abc import Sequence

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score


class Accuracy(Objective):
    """Share of examples whose most likely choice is the gold one, or one of the most likely.

    Args:
        top: how many of the most likely choices count; an example with no more choices than that
            is always right. Of equally likely choices the first is the more likely one.

    Raises:
        UserError: ``top`` is no whole number from 1.

    >>> batch = Batch(
    ...     prompts=["a", "b"], references=[1, 0], predictions=[1, 1],
    ...     label_scores=[[-2.0, -0.5, -3.0], [-1.5, -1.0, -2.0]],
    ... )
    >>> Accuracy().score(batch), Accuracy().value(batch), Accuracy(top=2).value(batch)
    ([1.0, 0.0], 0.5, 1.0)
    """

    name = "accuracy"
    needs = frozenset({"predictions"})
    tie_breaker = "margin"

    def __init__(self, top: int = 1):
        if type(top) is not int or top < 1:
            raise UserError(f"accuracy: top {top!r} is not a whole number from 1")
        self.top = top
        if top > 1:
            self.needs = frozenset({"label_scores"})

    def score(self, batch: Batch) -> list[Score]:
        if self.top > 1:
            assert batch.label_scores is not None
            lines = zip(batch.label_scores, batch.references, strict=True)
            return [self._among_the_top(scores, gold) for scores, gold in lines]
        assert batch.predictions is not None
        pairs = zip(batch.predictions, batch.references, strict=True)
        return [float(predicted == gold) for predicted, gold in pairs]

    def _among_the_top(self, scores: Sequence[float], gold: int) -> Score:
        if any(map(math.isnan, scores)):
            return None
        more_likely = sum(score > scores[gold] for score in scores)
        more_likely += sum(score == scores[gold] for score in scores[:gold])
        return float(more_likely < self.top)


class BalancedAccuracy(Objective):
    """Mean of the shares of right examples of each gold class: rare classes count as the others.

    By scikit-learn, over the classes that occur among the gold answers. On a minibatch it is a
    biased estimate of its value on the full set; ten examples or so of each class make it a good
    one.

    >>> batch = Batch(prompts=["a"] * 4, references=[0, 0, 0, 1], predictions=[0, 0, 0, 0])
    >>> BalancedAccuracy().value(batch)
    0.5
    """

    name = "balanced_accuracy"
    needs = frozenset({"predictions"})
    tie_breaker = "margin"
    decomposable = False

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        # balanced_accuracy_score is this recall, but warns of classes that gold answers lack.
        from sklearn.metrics import recall_score

        gold, predicted = batch.references, batch.predictions
        if not gold:
            return math.nan
        return float(recall_score(gold, predicted, labels=sorted(set(gold)), average="macro"))


class MCC(Objective):
    """Matthews correlation of predicted and gold choices: 1 all right, 0 chance, -1 all wrong.

    By scikit-learn, for two classes or more (J. Gorodkin 2004, the R_K statistic); 0 where the
    predictions or the gold answers are all of one class. With more than two classes the lowest
    value is above -1. On a minibatch it is a biased estimate of its value on the full set: give it
    dozens of examples, and some of each class.

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> round(MCC().value(batch), 4)
    0.5774
    """

    name = "mcc"
    bounds = (-1.0, 1.0)
    needs = frozenset({"predictions"})
    tie_breaker = "margin"
    decomposable = False

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        from sklearn.metrics import matthews_corrcoef

        gold, predicted = batch.references, batch.predictions
        assert predicted is not None
        if not gold:
            return math.nan
        if len({*gold, *predicted}) == 1:
            return 0.0  # scikit-learn's value as well, after a warning
        return max(-1.0, min(1.0, float(matthews_corrcoef(gold, predicted))))
