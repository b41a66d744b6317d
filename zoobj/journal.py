"""Scores that were paid for, kept until they are used: an interrupted step asks for none twice."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoobj.files import append_text, jsonable
from zoobj.log import ORIGIN, opened, sealed
from zoobj.objective import COLUMNS, Batch
from zoobj.outcome import Outcome
from zoobj.scoring import as_batch
from zoobj.task import Example


class Journal:
    """Outcomes by key, in a file of sealed lines; one that is damaged is as good as absent.

    A key holds the hash of the log at that moment, so that an outcome is never taken for that of
    other weights.

    Args:
        path: the file; made by the first outcome.
    """

    def __init__(self, path: Path):
        self.path = path
        content = path.read_bytes() if path.is_file() else b""
        lines = (opened(text, ORIGIN) for text in content.split(b"\n"))
        self._records = {line["key"]: line for line in lines if line is not None}
        self._ragged = not content.endswith(b"\n")  # a crash cut the last line short

    def get(self, key: str, examples: Sequence[Example]) -> Outcome | None:
        """The outcome of these examples, if it is here."""
        record = self._records.get(key)
        if record is None:
            return None
        return _restored(record, as_batch(examples, **json.loads(record["columns"])))

    def note(self, key: str) -> Any:
        """What was put beside an outcome."""
        return self._records.get(key, {}).get("note")

    def put(self, key: str, outcome: Outcome, note: Any = None) -> None:
        """Keep an outcome; one that could not be had is no outcome, and is asked for again."""
        if outcome.error is not None:
            return
        filled = {name: getattr(outcome.batch, name) for name in COLUMNS}
        record = {
            "key": key,
            "columns": json.dumps(filled),  # as text, since log-probabilities may be infinite
            **_kept(outcome),
            "note": note,
        }
        line = sealed(record, ORIGIN, {}) + "\n"
        append_text(self.path, "\n" + line if self._ragged else line)
        self._ragged = False
        self._records[key] = record

    def clear(self) -> None:
        """Forget all: they are in the log now."""
        self.path.unlink(missing_ok=True)
        self._records.clear()


def _kept(outcome: Outcome) -> dict[str, Any]:
    """What was paid for, without the batch, which the parts of a combination share."""
    kept: dict[str, Any] = {"scores": outcome.scores, "value": jsonable(outcome.value)}
    groups = {"parts": outcome.parts, "beside": outcome.beside}
    for group, parts in groups.items():
        if parts:
            kept[group] = {name: _kept(part) for name, part in parts.items()}
    return kept


def _restored(kept: dict[str, Any], batch: Batch) -> Outcome:
    parts, beside = (
        {name: _restored(part, batch) for name, part in kept.get(group, {}).items()}
        for group in ("parts", "beside")
    )
    value = math.nan if kept["value"] is None else kept["value"]
    return Outcome(batch, kept["scores"], value, parts=parts, beside=beside)
