"""Which labels a model gives: a model that always gives the same one has collapsed.

With unbalanced classes a collapsed model has a fair accuracy, so the number alone does not show it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from zoobj.objective import Batch

logger = logging.getLogger(__name__)

_NEARLY_ALL, _GOLD = 0.95, 0.9  # shares of the most frequent label


def labels(batches: Sequence[Batch]) -> dict[str, Any]:
    """What a line of the log says of predicted labels: ``{"labels": figures}``; nothing of texts.

    The figures, of the predictions and (``gold_``) of the references: ``top``, the share of the
    most frequent label, and ``distinct``, how many labels there are.

    >>> batch = Batch(prompts=["?"] * 4, references=[0, 1, 2, 1], predictions=[1, 1, 1, 2])
    >>> labels([batch])
    {'labels': {'top': 0.75, 'distinct': 2, 'gold_top': 0.5, 'gold_distinct': 3}}
    """
    predicted = Counter(label for batch in batches for label in batch.predictions or ())
    if not predicted:
        return {}
    gold = Counter(label for batch in batches for label in batch.references)
    return {
        "labels": {
            "top": _top(predicted),
            "distinct": len(predicted),
            "gold_top": _top(gold),
            "gold_distinct": len(gold),
        }
    }


def collapsed(line: dict[str, Any]) -> bool:
    """Whether 95 % of the predictions are one label, though less than 90 % of the gold ones are."""
    told = line.get("labels")
    return told is not None and told["top"] >= _NEARLY_ALL and told["gold_top"] < _GOLD


def warn_of_collapse(line: dict[str, Any], before: Iterable[dict[str, Any]]) -> None:
    """Once in a run, by its first validation where nearly all predictions are one label.

    Args:
        line: of the metrics.
        before: the lines before it.
    """
    earlier = (e for e in before if e["split"] == "validation" and collapsed(e))
    if line["split"] == "validation" and collapsed(line) and not any(earlier):
        logger.warning(
            "collapse at step %d: %s; objective f1 or balanced_accuracy does not reward that",
            line["step"],
            described(line["labels"]),
        )


def described(told: dict[str, Any]) -> str:
    """The figures in words.

    >>> described({"top": 0.75, "distinct": 2, "gold_top": 0.5, "gold_distinct": 3})
    '75.0% of predictions are one label, of gold at most 50.0%; 2 labels are predicted, 3 are gold'
    """
    return (
        f"{told['top']:.1%} of predictions are one label, of gold at most {told['gold_top']:.1%}; "
        f"{told['distinct']} labels are predicted, {told['gold_distinct']} are gold"
    )


def _top(counts: Counter[Any]) -> float:
    return max(counts.values()) / counts.total()
