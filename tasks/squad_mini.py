"""The embedded task: short invented passages in SQuAD's format, no network needed."""

from pathlib import Path
from typing import Any

from zoobj.task import SPLITS, Row
from zoobj.tasks.squad import Squad, question

_DATA = Path(__file__).parent / "data" / "squad_mini"


class SquadMini(Squad):
    """Questions on short invented passages, made by this project; the default of ``zoobj train``.

    Made for the embedded model tiny-qa, whose zero-shot answers are right but long-winded. Prompt:
    squad's, without the title.
    """

    name = "squad_mini"

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.files = {**{split: _DATA / f"{split}.json" for split in SPLITS}, **self.files}

    def prompt(self, row: Row) -> str:
        return question({**row, "context": self.shown(row)})
