"""Metrics of torchmetrics."""

import copy
import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Bounds, Objective, Score
from zoobj.objectives.adapting import (
    calling,
    first_answers,
    number_of,
    probabilities,
    squad_predictions,
    squad_references,
)

# Bases of the metrics that take probabilities only.
_ON_PROBABILITIES = ("PrecisionRecallCurve", "CalibrationError", "HingeLoss")


class TorchMetric(Objective):
    """A metric of torchmetrics, of classification or text. Set-level.

    ``torchmetrics:classification.MulticlassF1Score:num_classes=3`` on the command line; in Python a
    Metric object, which is copied, so that what it has gathered stays its own. It starts afresh on
    each set. Metrics of classification are given label ids of a task of choices, or probabilities
    of them (the softmax of their log-probabilities; of two choices of the second) where they are
    curves or have a ``top_k`` above 1. Those of ``torchmetrics.text`` are given completions and
    accepted answers, only the first where they compare with one.

    Args:
        metric: a Metric, or its name below ``torchmetrics``.
        key: of the result, where that is a dict; by default its first number.
        name: in logs and results; by default the class's and the key.
        higher_is_better: instead of what the metric says of itself.
        bounds: (lowest, highest) value, unknown by default.
        options: what the class takes, such as ``num_classes=3``.

    Raises:
        UserError: no such metric, options that don't fit it, or torchmetrics is not installed.

    >>> batch = Batch(prompts=["a"] * 4, references=[1, 1, 0, 0], predictions=[1, 0, 0, 0])
    >>> TorchMetric("classification.BinaryAccuracy").value(batch)
    0.75
    """

    decomposable = False

    def __init__(
        self,
        metric: Any,
        key: str | None = None,
        name: str | None = None,
        higher_is_better: bool | None = None,
        bounds: Bounds = (None, None),
        **options: Any,
    ):
        self.metric = _made(metric, options) if isinstance(metric, str) else copy.deepcopy(metric)
        kinds = type(self.metric).__mro__
        own = kinds[0].__name__
        self.name = name or (own if key is None else f"{own}_{key}")
        self.key, self.bounds = key, tuple(bounds)  # type: ignore[assignment]
        if higher_is_better is None:
            higher_is_better = getattr(self.metric, "higher_is_better", None) is not False
        self.higher_is_better = higher_is_better
        self.on_text = any(kind.__module__.startswith("torchmetrics.text") for kind in kinds)
        self.on_probabilities = (getattr(self.metric, "top_k", None) or 1) > 1 or any(
            name in kind.__name__ for kind in kinds for name in _ON_PROBABILITIES
        )
        needs = "label_scores" if self.on_probabilities else "predictions"
        self.needs = frozenset({"completions" if self.on_text else needs})

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        import torch

        what = f"torchmetrics {self.name!r}"
        predictions, references = self._texts(batch, what) if self.on_text else self._ids(batch)
        with calling(what), torch.no_grad():
            self.metric.reset()
            self.metric.update(predictions, references)
            result = self.metric.compute()
        self.metric.reset()
        return number_of(result, self.key, what)

    def _ids(self, batch: Batch) -> tuple[Any, Any]:
        import torch

        output: Any = probabilities(batch) if self.on_probabilities else batch.predictions
        place = getattr(self.metric, "device", None)
        references = torch.as_tensor(batch.references, device=place)
        return torch.as_tensor(output, device=place), references

    def _texts(self, batch: Batch, what: str) -> tuple[Any, Any]:
        completions = list(batch.completions or [])
        annotation = str(type(self.metric).update.__annotations__.get("target", ""))
        wanted = re.sub(r"\w+\.", "", annotation)  # of what there is no better sign
        if "dict[" in wanted:
            return squad_predictions(completions), squad_references(batch.references)
        if re.search(r"(Sequence|list)\[(Union\[str, )?(Sequence|list)\[", wanted):
            return completions, [list(answers) for answers in batch.references]
        return completions, first_answers(batch.references, what)


def _made(path: str, options: dict[str, Any]) -> Any:
    try:
        import torchmetrics
    except ImportError as error:
        raise UserError(
            f"torchmetrics:{path} needs torchmetrics ({error}): pip install 'zoobj[torchmetrics]'"
        ) from None
    *modules, name = path.split(".")
    try:
        place = reduce(getattr, modules, torchmetrics)
    except AttributeError as error:
        raise UserError(f"torchmetrics:{path}: {error}") from None
    names = [n for n, thing in vars(place).items() if isinstance(thing, type)]
    if name not in names:
        raise UserError(f"torchmetrics:{path}: there is no {name!r}{did_you_mean(name, names)}")
    try:
        return getattr(place, name)(**options)
    except Exception as error:  # torchmetrics checks its arguments in its own ways
        raise UserError(f"torchmetrics:{path}: {type(error).__name__}: {error}") from error
