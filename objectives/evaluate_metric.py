"""Metrics of the library evaluate, and whatever has a ``compute`` as theirs."""

from collections.abc import Sequence
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Bounds, Objective, Score
from zoobj.objectives.adapting import (
    calling,
    first_answers,
    number_of,
    squad_predictions,
    squad_references,
)


class Evaluate(Objective):
    """A metric with ``compute(predictions=..., references=...)``, such as a module of evaluate.

    ``evaluate:squad:f1`` on the command line: the metric, then the key of its result. Set-level.
    The metric's ``features`` say what it is given: label ids of a task of choices, or completions;
    accepted answers, only the first of them where it compares with one, or both as dicts with ids
    where it wants SQuAD's (``squad``, ``squad_v2``). Without features: label ids if there are any,
    else completions, and references as the task has them.

    Args:
        metric: a name on the hub, a local script or its folder, either with ``:key``; or an object.
        key: of the result, where that is a dict; by default its first number.
        name: in logs and results; by default the metric's and the key.
        higher_is_better: False for errors.
        bounds: (lowest, highest) value; nobody tells, so unknown by default.
        options: what ``compute`` takes besides, such as ``average="macro"``.

    Raises:
        UserError: it can't be loaded, or has no ``compute``.

    >>> class Share:
    ...     def compute(self, predictions, references):
    ...         right = sum(p == r for p, r in zip(predictions, references))
    ...         return {"n": len(references), "share": right / len(references)}
    >>> batch = Batch(prompts=["?"] * 2, references=[1, 0], predictions=[1, 1])
    >>> Evaluate(Share(), key="share").value(batch)
    0.5
    """

    decomposable = False

    def __init__(
        self,
        metric: Any,
        key: str | None = None,
        name: str | None = None,
        higher_is_better: bool = True,
        bounds: Bounds = (None, None),
        **options: Any,
    ):
        if isinstance(metric, str):
            path, _, last = metric.rpartition(":")
            path, own_key = (path, last) if path and last.isidentifier() else (metric, None)
            metric, key = _loaded(path), key or own_key
        if not callable(getattr(metric, "compute", None)):
            raise UserError(
                f"evaluate: {metric!r} has no compute(predictions=, references=): give a metric"
            )
        own = str(getattr(metric, "name", getattr(metric, "__name__", type(metric).__name__)))
        self.metric, self.key, self.options = metric, key, options
        self.name = name or (own if key in (None, own) else f"{own}_{key}")
        self.higher_is_better, self.bounds = higher_is_better, tuple(bounds)  # type: ignore[assignment]
        self._prediction, self._reference = _kinds(getattr(metric, "features", None))
        self.needs = frozenset({"predictions" if self._prediction == "number" else "completions"})

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        what = f"evaluate metric {self.name!r}"
        inputs = {
            "predictions": self._predictions(batch),
            "references": self._references(batch, what),
        }
        if hasattr(self.metric, "writer"):  # evaluate keeps what a call that failed took in
            self.metric.writer = None
        with calling(what):
            result = self.metric.compute(**inputs, **self.options)
        return number_of(result, self.key, what)

    def _predictions(self, batch: Batch) -> list[Any]:
        if isinstance(self._prediction, dict):
            extra = {"no_answer_probability": 0.0} if len(self._prediction) > 2 else {}
            return [{**told, **extra} for told in squad_predictions(batch.completions or [])]
        ids = self._prediction == "number" or (
            self._prediction is None and batch.predictions is not None
        )
        return list((batch.predictions if ids else batch.completions) or [])

    def _references(self, batch: Batch, what: str) -> list[Any]:
        if isinstance(self._reference, dict):
            return squad_references(batch.references)
        if self._reference == "text":
            return first_answers(batch.references, what)
        return list(batch.references)


def _loaded(path: str) -> Any:
    import evaluate

    try:
        # The seed, for metrics that draw: else it is that of numpy's global state.
        return evaluate.load(path, keep_in_memory=True, seed=0)
    except Exception as error:  # whatever scripts and HTTP clients raise
        raise UserError(
            f"evaluate: metric {path!r} can't be loaded: {type(error).__name__}: {error}; without "
            "a network give a local script or its folder"
        ) from error


def _kinds(features: Any) -> tuple[Any, Any]:
    """What predictions and references are to be: "number", "text", "list", a dict's fields or None.

    Of several ways to give them the one with lists of references is taken.
    """
    ways = features if isinstance(features, list) else [features] if features else []
    kinds = [(_kind(way.get("predictions")), _kind(way.get("references"))) for way in ways]
    return next((kind for kind in kinds if kind[1] == "list"), kinds[0] if kinds else (None, None))


def _kind(feature: Any) -> Any:
    if feature is None or isinstance(feature, dict):
        return feature
    if hasattr(feature, "feature"):
        return "list"
    return "text" if "string" in str(getattr(feature, "dtype", "")) else "number"
