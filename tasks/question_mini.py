"""An embedded task of choices: what does a question ask for? Six classes of unequal size."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from zoobj.task import SPLITS, Row, Task

_DATA = Path(__file__).parent / "data" / "question_mini"
_CLASSES = ("thing", "person", "place", "time", "number", "reason")


class QuestionMini(Task):
    r"""What a question asks for: thing, person, place, time, number or reason, of unequal size.

    Made by this project, as squad_mini is, in the manner of TREC (Li & Roth 2002); of 300 test
    questions 108, 84, 48, 30, 18 and 12. Prompt: ``Question: ...\nAnswer: the``.
    """

    name = "question_mini"
    output = "choices"
    objective = "accuracy"
    columns = ("question", "label")

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.files = {**{split: _DATA / f"{split}.jsonl" for split in SPLITS}, **self.files}

    def prompt(self, row: Row) -> str:
        return f"Question: {row['question']}\nAnswer: the"

    def reference(self, row: Row) -> int:
        return _CLASSES.index(row["label"])

    def choices(self, row: Row) -> list[str]:
        return list(_CLASSES)

    def group(self, row: Row) -> Hashable:
        return row["question"]
