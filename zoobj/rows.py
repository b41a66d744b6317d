"""Rows of a data set: from local files, or from the hub."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoobj.errors import UserError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json (list, or object with "data"), .jsonl, .csv, .tsv or .parquet file.

    Raises:
        UserError: another ending, or content that can't be read.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": lambda path: _read_table(path, ","),
        ".tsv": lambda path: _read_table(path, "\t"),
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown ending {path.suffix!r}; use {', '.join(readers)}")
    try:
        rows = readers[path.suffix](path)
    except (ValueError, OSError, RecursionError, Warning) as error:
        raise UserError(f"{path} can't be read as {path.suffix}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: a list of objects, one a row, is needed")
    return rows


def _read_json(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and "data" not in content:
        raise ValueError("the object has no list 'data'")
    return content["data"] if isinstance(content, dict) else content


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    # Not splitlines(), which also cuts at line separators inside a text.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _read_table(path: Path, sep: str) -> Any:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        # Empty cells and words such as "NA" stay text: in language data they are words.
        table = pd.read_csv(path, sep=sep, keep_default_na=False, index_col=False)
    return table.to_dict("records")


def _read_parquet(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()  # pandas would make arrays of lists


def read_hub(path: str | None, name: str | None, split: str) -> list[dict[str, Any]]:
    """Rows of a split of a data set on the hub.

    Raises:
        UserError: there is none, or it can't be loaded.
    """
    import datasets

    if path is None:
        raise UserError("this task has no data set of its own: give --train_file and --test_file")
    try:
        return datasets.load_dataset(path, name, split=split).to_list()
    except Exception as error:  # whatever data set scripts, builders and HTTP clients raise
        raise UserError(
            f"data set {path!r} can't be loaded from the hub: {error}; without a network give "
            "--train_file and --test_file"
        ) from error
