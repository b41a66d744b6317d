"""The contract that zoobj relies on, and what is this objective's own."""

from zoobj_mentions import Mentions

from zoobj import Batch
from zoobj.testing import ObjectiveContract

BATCH = Batch(
    prompts=["a", "b", "c"],
    references=[["the old mill"], ["river", "the river"], [""]],
    completions=["an old mill", "by the sea", "nothing"],
)


class TestMentions(ObjectiveContract):
    objective, batch = "mentions", BATCH  # by its name: the entry point is tested too


class TestMentionsOfLongWords(ObjectiveContract):
    objective, batch = Mentions(least=3), BATCH


def test_scores() -> None:
    assert Mentions().score(BATCH) == [2 / 3, 0.5, None]
