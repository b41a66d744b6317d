"""Metrics and scorers of scikit-learn."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Bounds, Objective, Score
from zoobj.objectives.adapting import calling, number_of, probabilities

_GOLD, _PREDICTED = ("y_true", "y1", "labels_true"), ("y_pred", "y2", "labels_pred")


class Sklearn(Objective):
    """A function of ``sklearn.metrics`` or a scorer, by name, on a task of choices. Set-level.

    ``sklearn:f1_score:average=macro`` is a function, ``sklearn:neg_log_loss`` a scorer. It is given
    the gold label ids, and the predicted ones or the probabilities of the choices (the softmax of
    their log-probabilities) as it asks for them; of two choices the probability of the second. Of a
    scorer higher is better; of a function lower, if its name ends in ``_error`` or ``_loss``.
    Its warnings about classes that a minibatch lacks are left out.

    Args:
        metric: the name, or a scorer of ``sklearn.metrics.make_scorer``.
        name: in logs and results; by default the same.
        higher_is_better: instead of what the name says.
        bounds: (lowest, highest) value; nobody tells, so unknown by default.
        options: what the function takes besides, such as ``average="macro"``.

    Raises:
        UserError: no such metric, or one without such options.

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> Sklearn("balanced_accuracy_score").value(batch)
    0.75
    """

    decomposable = False

    def __init__(
        self,
        metric: Any,
        name: str | None = None,
        higher_is_better: bool | None = None,
        bounds: Bounds = (None, None),
        **options: Any,
    ):
        scorer = _found(metric) if isinstance(metric, str) else metric
        self.fn: Callable[..., Any] = getattr(scorer, "_score_func", scorer)
        self.sign = getattr(scorer, "_sign", 1)
        own = metric if isinstance(metric, str) else getattr(self.fn, "__name__", repr(self.fn))
        self.name = name or str(own)
        self.options = {**getattr(scorer, "_kwargs", {}), **options}
        self.takes = inspect.signature(self.fn).parameters
        for option in options:
            if option not in self.takes:
                raise UserError(
                    f"sklearn:{self.name} takes no {option!r}{did_you_mean(option, self.takes)}"
                )
        is_error = scorer is self.fn and self.name.endswith(("_error", "_loss"))
        self.higher_is_better = not is_error if higher_is_better is None else higher_is_better
        self.bounds = tuple(bounds)  # type: ignore[assignment]
        self.on_probabilities = _wants_probabilities(scorer)
        self.needs = frozenset({"label_scores" if self.on_probabilities else "predictions"})
        if self.fn.__module__.endswith("._classification") and not self.on_probabilities:
            self.tie_breaker = "margin"  # unlike a score of clusters, it rises with right labels

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        what, options = f"sklearn:{self.name}", dict(self.options)
        output: Any = batch.predictions
        if self.on_probabilities:
            output = probabilities(batch)
            if "labels" in self.takes:  # classes that the batch may lack
                options.setdefault("labels", list(range(len((batch.label_scores or [[]])[0]))))
        with calling(what):
            result = self.fn(np.array(batch.references), np.array(output), **options)
        return self.sign * number_of(result, None, what)


def _found(name: str) -> Any:
    """The scorer of this name, else the function."""
    from sklearn import metrics

    scorers = metrics.get_scorer_names()
    if name in scorers:
        return metrics.get_scorer(name)
    functions = [known for known in metrics.__all__ if {*_GOLD} & {*_parameters(known)}]
    if name not in functions:
        names = {*scorers, *functions}
        raise UserError(f"sklearn: no metric or scorer {name!r}{did_you_mean(name, names)}")
    return getattr(metrics, name)


def _parameters(name: str) -> Sequence[str]:
    from sklearn import metrics

    thing = getattr(metrics, name)
    return list(inspect.signature(thing).parameters) if inspect.isfunction(thing) else []


def _wants_probabilities(scorer: Any) -> bool:
    """As a scorer says; of a function as a scorer made of it says, else its argument's name."""
    from sklearn import metrics

    if hasattr(scorer, "_score_func"):
        return scorer._response_method != "predict"
    made = (metrics.get_scorer(name) for name in metrics.get_scorer_names())
    methods = [each._response_method for each in made if each._score_func is scorer]
    if methods:
        return methods[0] != "predict"
    return list(inspect.signature(scorer).parameters)[1] not in _PREDICTED
