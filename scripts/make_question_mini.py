"""Write the data set ``question_mini``: questions, and which of six unequal classes they are of.

    python scripts/make_question_mini.py [--output_dir tasks/data/question_mini] [--seed 2025]

The questions are those of squad_mini's scenes, so that ``tiny-qa`` knows their words. The same seed
always gives the same bytes. No question is in two splits.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from make_squad_mini import ROOT, passages

DEFAULT_DIR = ROOT / "tasks" / "data" / "question_mini"
DEFAULT_SEED = 2025
SIZES = {"train": 900, "validation": 150, "test": 300}
# The kinds of squad_mini's questions, and the class of each; shares of the classes in every split.
CLASSES = {
    **dict.fromkeys(("what", "colour", "name"), "thing"),
    "who": "person",
    "where": "place",
    "when": "time",
    "day": "time",
    "many": "number",
    "why": "reason",
}
SHARES = {"thing": 36, "person": 28, "place": 16, "time": 10, "number": 6, "reason": 4}


def make_splits(seed: int = DEFAULT_SEED) -> dict[str, list[dict[str, str]]]:
    """Rows of each split, shuffled; each class has its share of each."""
    rng = random.Random(seed)
    wanted = {
        (name, label): size * share // 100
        for name, size in SIZES.items()
        for label, share in SHARES.items()
    }
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in SIZES}
    seen: set[str] = set()
    for passage in passages(rng):
        asked = rng.choice(passage.asked)
        label = CLASSES[asked.kind]
        room = [name for name in SIZES if wanted[name, label]]
        if asked.question in seen or not room:
            continue
        seen.add(asked.question)
        name = rng.choice(room)
        wanted[name, label] -= 1
        rows[name].append({"question": asked.question, "label": label})
        if not any(wanted.values()):
            break
    for split in rows.values():
        rng.shuffle(split)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in make_splits(args.seed).items():
        path = Path(args.output_dir) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} questions")


if __name__ == "__main__":
    main()
