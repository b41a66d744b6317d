"""The contract of a task: where rows come from, and how a row becomes a prompt and its answer.

A split that a source lacks is cut from ``train`` by a hash of each row's group (a passage, a
sentence), so that the same rows are held out in every run and in ``zoobj eval``, whatever the seed.
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoobj.errors import UserError, did_you_mean
from zoobj.rows import read_hub
from zoobj.rows import read_rows as read_rows

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1  # share of train that stands in for a split the source lacks
Row = dict[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True)
class Example:
    """One row as the model sees it.

    Attributes:
        index: position in its split; identifies the example for sampled decoding.
        prompt: the text before the answer, few-shot examples included.
        reference: a label id (choices) or the accepted texts (generation).
        choices: the candidate continuations of a task of choices.
        row: the data set's own columns, passed on to reward functions.
    """

    index: int
    prompt: str
    reference: Any
    row: Row
    choices: list[str] | None = None


class Task:
    """Base class of tasks. Override ``prompt`` and ``reference``, and ``choices`` for choices.

    Args:
        train_file, validation_file, test_file: local .json, .jsonl, .csv, .tsv or .parquet files,
            or rows; they replace the task's own source.
        num_fewshot: examples shown in every prompt, taken from train and left out of it
            (default: the task's own).
        max_new_tokens: most tokens a completion may have (default: the task's own).

    Attributes:
        output: "generation" (scored on text) or "choices" (scored on the candidates' likelihood).
        objective: name of the objective that people report for this task.
        stop: strings that end a completion.
        length_normalized: choices are compared by log-probability per token, not by its sum.
        dataset_path, dataset_name: id of the data set on the hub, and its configuration.
        hub_splits: our split -> the hub's.
        columns: those that a row must have.
    """

    name: str = ""
    output: Literal["generation", "choices"] = "generation"
    objective: str = "exact_match"
    stop: Sequence[str] = ("\n",)
    max_new_tokens: int = 16
    num_fewshot: int = 0
    length_normalized: bool = False
    dataset_path: str | None = None
    dataset_name: str | None = None
    hub_splits: Mapping[str, str] = {split: split for split in SPLITS}
    columns: Sequence[str] = ()

    def __init__(
        self,
        train_file: str | Path | Rows | None = None,
        validation_file: str | Path | Rows | None = None,
        test_file: str | Path | Rows | None = None,
        num_fewshot: int | None = None,
        max_new_tokens: int | None = None,
    ):
        files = zip(SPLITS, (train_file, validation_file, test_file), strict=True)
        self.files = {split: file for split, file in files if file is not None}
        if num_fewshot is not None:
            self.num_fewshot = num_fewshot
        if max_new_tokens is not None:
            self.max_new_tokens = max_new_tokens
        self._loaded: dict[str, list[Row]] = {}

    # What a task defines ----------------------------------------------------------------------

    def prompt(self, row: Row) -> str:
        """The text the model continues; the answer starts after it with a space."""
        raise NotImplementedError

    def reference(self, row: Row) -> Any:
        """A label id for choices, the list of accepted texts for generation."""
        raise NotImplementedError

    def choices(self, row: Row) -> list[str]:
        """Candidate answers of this row; the same label words for every row, or its own."""
        raise NotImplementedError

    def group(self, row: Row) -> Hashable:
        """Rows of one group never stand on both sides of a split; by default the whole row."""
        return json.dumps(row, sort_keys=True, default=str)

    def read(self, path: Path) -> list[Row]:
        """Rows of a local file."""
        return read_rows(path)

    # What every task can do -------------------------------------------------------------------

    def examples(self, split: str, limit: int | None = None) -> list[Example]:
        """The examples of a split, checked; with ``limit`` the first that many.

        Raises:
            UserError: no such split, an empty one, or a row that doesn't fit, named.
        """
        rows = self.rows(split)
        if split == "train":
            rows = rows[self.num_fewshot :]
        if not rows:
            raise UserError(f"task {self.name}: split {split!r} is empty: give it rows")
        shots = self._shots()
        return [self._example(i, row, split, shots) for i, row in enumerate(rows[:limit])]

    def rows(self, split: str) -> list[Row]:
        """The raw rows of a split, cut from train where the source lacks it."""
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}")
        if split in self._available():
            rows = self._source(split)
            if split != "train":
                return rows
            missing = [s for s in ("validation", "test") if s not in self._available()]
            return [row for row in rows if self._drawn(row) not in missing]
        if "train" not in self._available():
            raise UserError(f"task {self.name}: no rows for split {split!r}: give --{split}_file")
        return [row for row in self._source("train") if self._drawn(row) == split]

    def held_out(self, split: str) -> bool:
        """Whether this split is cut from train."""
        return split not in self._available()

    def _available(self) -> Iterable[str]:
        return self.files or self.hub_splits

    def _drawn(self, row: Row) -> str:
        """validation | test | train, by the hash of the row's group."""
        try:
            digest = hashlib.sha256(str(self.group(row)).encode()).digest()
        except Exception as error:
            place = self._place(row, "train")
            raise UserError(f"{place} doesn't fit: {type(error).__name__}: {error}") from error
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "validation" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"

    def _source(self, split: str) -> list[Row]:
        if split not in self._loaded:
            source = self.files.get(split)
            if isinstance(source, (str, Path)):
                rows = self.read(_existing(Path(source), split))
            elif source is not None:
                rows = [dict(row) for row in source]
            else:
                rows = read_hub(self.dataset_path, self.dataset_name, self.hub_splits[split])
            self._check_columns(rows, split)
            self._loaded[split] = rows
        return self._loaded[split]

    def _check_columns(self, rows: list[Row], split: str) -> None:
        for number, row in enumerate(rows, 1):
            if missing := [column for column in self.columns if row.get(column) is None]:
                raise UserError(
                    f"task {self.name}, {self.where(split)}: row {number} has no "
                    f"{missing[0]!r}; it has {', '.join(map(str, row))}: mend or drop the row"
                )

    def where(self, split: str) -> str:
        """The split's source, for messages."""
        source = self.files.get(split)
        return f"{source}" if isinstance(source, (str, Path)) else f"split {split!r}"

    def _example(self, index: int, row: Row, split: str, shots: str) -> Example:
        try:
            prompt, reference = shots + self.prompt(row), self.reference(row)
            choices = list(self.choices(row)) if self.output == "choices" else None
        except Exception as error:  # whatever a task, or a template in one, raises
            raise UserError(
                f"{self._place(row, split)} doesn't fit: {type(error).__name__}: {error}; it has "
                f"{', '.join(map(str, row))}"
            ) from error
        if problem := _problem(prompt, reference, choices):
            raise UserError(f"{self._place(row, split)} {problem}: mend or drop the row")
        return Example(index, prompt, reference, row, choices)

    def _place(self, row: Row, split: str) -> str:
        """Where a row stands in its source, for messages."""
        source = "train" if self.held_out(split) else split
        rows = enumerate(self._source(source), 1)
        number = next(number for number, other in rows if other is row)
        return f"task {self.name}, {self.where(source)}: row {number}"

    def _shots(self) -> str:
        if not self.num_fewshot:
            return ""
        rows = self.rows("train")[: self.num_fewshot]
        if len(rows) < self.num_fewshot:
            raise UserError(f"num_fewshot {self.num_fewshot}: train has only {len(rows)} rows")
        shots = [self._example(i, row, "train", shots="") for i, row in enumerate(rows)]
        return "".join(f"{shot.prompt} {self.gold(shot.row)}\n\n" for shot in shots)

    def gold(self, row: Row) -> str:
        """The text of the gold answer."""
        reference = self.reference(row)
        return self.choices(row)[reference] if self.output == "choices" else reference[0]

    def fingerprint(self, examples: Iterable[Example]) -> str:
        """SHA-256 of what the model is asked and what counts as right, as 16 hex digits."""
        digest = hashlib.sha256()
        for e in examples:
            digest.update(json.dumps([e.prompt, e.reference, e.choices]).encode())
        return digest.hexdigest()[:16]


def _problem(prompt: str, reference: Any, choices: list[str] | None) -> str | None:
    """What is wrong with an example, or None."""
    if not prompt.strip():
        return "has an empty prompt"
    if choices is None:
        if not isinstance(reference, list) or not all(isinstance(t, str) for t in reference):
            return f"has reference {reference!r}, which is not a list of accepted texts"
        if not any(text.strip() for text in reference):
            return "has no reference answer"
        return None
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
        return f"has choices {choices!r}: two or more different, non-empty texts are needed"
    if type(reference) is not int or not 0 <= reference < len(choices):
        return f"has label {reference!r}: a whole number from 0 to {len(choices) - 1} is needed"
    return None


def _existing(path: Path, split: str) -> Path:
    if not path.expanduser().is_file():
        raise UserError(f"--{split}_file {path}: no such file")
    return path.expanduser()
