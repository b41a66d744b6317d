"""What other people's metrics take and return: shared by the adapters to them."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from zoobj.errors import did_you_mean
from zoobj.objective import Batch, Score, ScoreError


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Where a library is called: without its warnings, of classes that a batch lacks and the like.

    Raises:
        ScoreError: it raised something.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except Exception as error:
        raise ScoreError(f"{what} raised {type(error).__name__}: {error}") from error


def squad_predictions(completions: Sequence[str]) -> list[dict[str, Any]]:
    """Completions as metrics of SQuAD want them, an example's id being its place."""
    return [{"id": str(i), "prediction_text": text} for i, text in enumerate(completions)]


def squad_references(references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Accepted answers as metrics of SQuAD want them; none is an unanswerable question.

    Where an answer stands in its passage is of no matter to the score, so it is 0.
    """
    return [
        {"id": str(i), "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}
        for i, texts in enumerate(references)
    ]


def first_answers(references: Sequence[Any], what: str) -> list[str]:
    """The first accepted answer of each example, for metrics that compare with one.

    Raises:
        ScoreError: an example has none.
    """
    for answers in references:
        if not isinstance(answers, (list, tuple)) or not answers:
            raise ScoreError(
                f"{what} compares with one accepted text, and a reference is {answers!r}: it is "
                "for tasks that generate text"
            )
    return [answers[0] for answers in references]


def likelihoods(batch: Batch) -> np.ndarray:
    """``label_scores`` as an array, [B, C].

    Raises:
        ScoreError: examples have different numbers of choices.
    """
    assert batch.label_scores is not None
    counts = sorted({len(line) for line in batch.label_scores})
    if len(counts) > 1:
        raise ScoreError(
            f"examples have {counts[0]} and {counts[-1]} choices: likelihoods of classes can't be "
            "had of different numbers of choices; take a metric of predictions, such as accuracy"
        )
    return np.array(batch.label_scores, dtype=float)


def probabilities(batch: Batch) -> np.ndarray:
    """Of the choices: the softmax of ``label_scores``, [B, C], or of the second one, [B], if C = 2.

    Raises:
        ScoreError: examples have different numbers of choices.

    >>> probabilities(Batch(prompts=["?"], references=[1], label_scores=[[-3.0, -3.0]]))
    array([0.5])
    """
    scores = likelihoods(batch)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-math.inf))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[:, 1] if shares.shape[1] == 2 else shares


def number_of(result: Any, key: str | None, what: str) -> float:
    """The number in a metric's result; of a dict the one under the key, else the first there is.

    None is NaN: could not be scored.

    Raises:
        ScoreError: there is no such key, or no number.

    >>> number_of({"exact_match": [1, 0], "f1": 0.75}, None, "squad")
    0.75
    """
    if isinstance(result, dict):
        if key is not None and key not in result:
            raise ScoreError(f"{what} has no {key!r} in its result{did_you_mean(key, result)}")
        found = list(result.values()) if key is None else [result[key]]
    elif key is not None:
        raise ScoreError(f"{what} returned no dict, so there is no {key!r} in it: leave it out")
    else:
        found = [result]
    for value in found:
        with suppress(TypeError, ValueError, RuntimeError):
            number = as_number(value)
            return math.nan if number is None else number
    raise ScoreError(
        f"{what} returned {str(result)[:60]!r}, and one number is needed: name a key of the "
        "result, or set its average"
    )


def as_number(value: Any) -> Score:
    """A number of any library, or the one in an array or tensor of one element.

    None, and one that is larger than any float, are None: could not be scored.

    Raises:
        TypeError, ValueError, RuntimeError: it is no number, such as a text with one in it.
    """
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, (str, bytes)):
        raise TypeError
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text
