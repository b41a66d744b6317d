"""What a run has written."""

import json
from pathlib import Path
from typing import Any


def untimed(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's log, without what no two runs have in common."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
