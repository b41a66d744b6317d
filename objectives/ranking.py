"""How well likelihoods rank the choices of a task: area under the ROC curve, average precision."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.adapting import likelihoods


class OneAgainstTheRest(Objective):
    """Base of the two: how well the log-odds of a class rank the examples that belong to it.

    Args:
        pos_label: id of the positive class where there are two choices. With more, the value is
            the mean over the classes that occur, each against the rest.
    """

    needs = frozenset({"label_scores"})
    decomposable = False

    def __init__(self, pos_label: int = 1):
        if pos_label not in (0, 1):
            raise UserError(f"{self.name}: pos_label {pos_label!r} is neither 0 nor 1")
        self.pos_label = int(pos_label)

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        gold, likely = np.array(batch.references), likelihoods(batch)
        present = [self.pos_label] if likely.shape[-1] == 2 else sorted(set(batch.references))
        if len(set(batch.references)) < 2:
            return math.nan  # nothing to tell apart
        odds = log_odds(likely)
        if np.isnan(odds).any():
            return math.nan
        # As ranks, since log-odds may be infinite; equal ones differ by the rounding of their sums.
        ranks = [np.unique(odds[:, c].round(9), return_inverse=True)[1] for c in present]
        areas = [self.area(gold == c, rank) for c, rank in zip(present, ranks, strict=True)]
        return min(1.0, float(np.mean(areas)))

    def area(self, positive: Any, ranks: Any) -> float:
        """The area under the curve for one class, from 0 to 1."""
        raise NotImplementedError


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Log of p / (1 - p) for each of the choices, [B, C], from log-likelihoods of any scale.

    They rank like probabilities among the choices, but don't run together near 0 and 1.

    >>> log_odds(np.log([[0.2, 0.6]])).round(3)
    array([[-1.099,  1.099]])
    """
    from scipy.special import logsumexp

    with np.errstate(invalid="ignore"):  # a row of minus infinities has no odds: NaN
        scores = scores - scores.max(axis=1, keepdims=True)
        others = [np.delete(scores, c, axis=1) for c in range(scores.shape[1])]
        return scores - np.stack([logsumexp(rest, axis=1) for rest in others], axis=1)


class ROCAUC(OneAgainstTheRest):
    """Area under the ROC curve: how often a positive example is ranked above a negative one.

    By scikit-learn, over the whole set; examples are ranked by the log-odds of a class among the
    choices, ties count half. NaN (could not be scored) where all examples are of one class. It
    needs no threshold, so it moves where accuracy stands still. On a minibatch of ten examples or
    more of each class the bias is small.

    Args:
        pos_label: id of the positive class where there are two choices. With more, the value is
            the mean over the classes that occur, each against the rest.

    >>> batch = Batch(
    ...     prompts=["a"] * 3, references=[1, 0, 1],
    ...     label_scores=[[-3.0, -0.5], [-1.0, -2.0], [-0.5, -2.5]],
    ... )
    >>> ROCAUC().value(batch)
    0.5
    """

    name = "roc_auc"

    def area(self, positive: Any, ranks: Any) -> float:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(positive, ranks))


class AveragePrecision(OneAgainstTheRest):
    """Area under the precision-recall curve, as average precision.

    By scikit-learn, over the whole set; examples are ranked by the log-odds of a class among the
    choices. NaN (could not be scored) where all examples are of one class. On a minibatch it is
    biased, upwards for rare classes: dozens of examples of each class make it a good estimate.

    Args:
        pos_label: id of the positive class where there are two choices. With more, the value is
            the mean over the classes that occur, each against the rest.

    >>> batch = Batch(
    ...     prompts=["a"] * 3, references=[1, 0, 1],
    ...     label_scores=[[-3.0, -0.5], [-1.0, -2.0], [-0.5, -2.5]],
    ... )
    >>> round(AveragePrecision().value(batch), 4)
    0.8333
    """

    name = "average_precision"

    def area(self, positive: Any, ranks: Any) -> float:
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(positive, ranks))
