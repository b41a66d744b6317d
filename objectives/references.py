"""Completions and their accepted answers: every objective of texts takes the best over them."""

from collections.abc import Callable, Iterator

from zoobj.objective import Batch, ScoreError


def answers(batch: Batch, may_be_none: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Each completion with its accepted answers.

    Args:
        batch: with completions.
        may_be_none: an empty list is a reference, too.

    Raises:
        ScoreError: a reference is no list of texts, or an empty one.

    >>> batch = Batch(prompts=["?"], references=[["mill", "a mill"]], completions=["the mill"])
    >>> list(answers(batch))
    [('the mill', ['mill', 'a mill'])]
    """
    assert batch.completions is not None
    for completion, references in zip(batch.completions, batch.references, strict=True):
        if isinstance(references, (str, int)):
            raise ScoreError(
                f"reference {references!r} is not a list of accepted texts: this objective is for "
                "tasks that generate text"
            )
        if not references and not may_be_none:
            raise ScoreError("an example has no accepted answer: give it one, or leave it out")
        yield completion, list(references)


def best_over_references(batch: Batch, compare: Callable[[str, str], float]) -> list[float]:
    """For each completion its highest ``compare(completion, text)`` over the accepted answers."""
    return [
        max(compare(completion, text) for text in texts) for completion, texts in answers(batch)
    ]
