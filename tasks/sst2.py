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
        return int(row["label"])

    def choices(self, row: Row) -> list[str]:
        return ["terrible", "great"]

    def group(self, row: Row) -> Hashable:
        return row["sentence"].strip()

    def read(self, path: Path) -> list[Row]:
        if path.suffix != ".tsv":
            return read_rows(path)
        # Sentences hold stray quotes: a line is split at its last tab, and nothing is unquoted.
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and lines[0].split("\t") == ["sentence", "label"]:
            lines = lines[1:]
        rows = []
        for number, line in enumerate(lines, 1):
            sentence, tab, label = line.rpartition("\t")
            if not tab:
                raise UserError(f"{path}: line {number} has no tab: sentence, tab, label is needed")
            rows.append({"sentence": sentence, "label": label.strip()})
        return rows
