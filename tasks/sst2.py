"""SST-2: is a sentence of a film review positive?"""

from collections.abc import Hashable
from pathlib import Path

from zoobj.errors import UserError
from zoobj.task import Row, Task, read_rows


class SST2(Task):
    r"""SST-2 from the hub (nyu-mll/glue), or local files with the columns sentence and label (0 =
    negative, 1 = positive); a .tsv without a header, sentence then label, is read as such.

    The hub's test split has no labels: its validation split is our test split, and validation is
    cut from train. Prompt: ``Review: ...\nThe movie was``; label words: terrible, great.
    """

    name = "sst2"
    output = "choices"
    objective = "accuracy"
    dataset_path, dataset_name = "nyu-mll/glue", "sst2"
    hub_splits = {"train": "train", "test": "validation"}  # noqa: RUF012
    columns = ("sentence", "label")

    def prompt(self, row: Row) -> str:
        return f"Review: {row['sentence'].strip()}\nThe movie was"

    def reference(self, row: Row) -> int:
        label = float(row["label"])
        if not label.is_integer():  # the Treebank's own labels are shares of votes
            raise ValueError(f"label {row['label']!r} is neither 0 nor 1")
        return int(label)

    def choices(self, row: Row) -> list[str]:
        return ["terrible", "great"]

    def group(self, row: Row) -> Hashable:
        return row["sentence"].strip()

    def read(self, path: Path) -> list[Row]:
        if path.suffix != ".tsv":
            return read_rows(path)
        # Sentences hold stray quotes: a line is split at its last tab, and nothing is unquoted.
        # (str.splitlines would also split at characters within a sentence, such as U+2028.)
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from error
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or (number == 1 and line.split("\t") == ["sentence", "label"]):
                continue
            sentence, tab, label = line.rpartition("\t")
            if not tab:
                raise UserError(f"{path}: line {number} has no tab: sentence, tab, label is needed")
            rows.append({"sentence": sentence, "label": label.strip()})
        return rows
