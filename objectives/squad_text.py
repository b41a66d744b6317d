"""How SQuAD compares answers: case, punctuation, articles and white space don't count.

Rules of the official evaluation of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250), section 6.1
of the paper; the code is ours.
"""

import re
import string
from collections.abc import Callable, Iterable

from zoobj.objective import Batch, ScoreError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces.

    >>> normalize("The  Old Mill, by the river.")
    'old mill by river'
    """
    text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def best_over_references(batch: Batch, compare: Callable[[str, str], float]) -> list[float]:
    """For each completion its best score over the accepted answers."""
    assert batch.completions is not None
    pairs = zip(batch.completions, batch.references, strict=True)
    return [
        max(compare(completion, text) for text in _texts(references))
        for completion, references in pairs
    ]


def _texts(references: Iterable[str]) -> list[str]:
    if isinstance(references, (str, int)):
        raise ScoreError(
            f"reference {references!r} is not a list of accepted texts: this objective is for "
            "tasks that generate text"
        )
    return list(references)
