"""Write the data set ``squad_mini``: invented passages and questions in SQuAD v1.1 JSON format.

    python scripts/make_squad_mini.py [--output_dir tasks/data/squad_mini] [--seed 2024]

The same seed always gives the same bytes.  ``pretrain_tiny_qa.py`` draws its texts from
`passages` too, with other seeds, and leaves out every context that is in one of the splits.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from squad_mini_text import Fact, Question, Slots, read_scenes

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DIR = ROOT / "tasks" / "data" / "squad_mini"
DEFAULT_SEED = 2024
# Passages and questions of each split.
SIZES = {"train": (400, 800), "validation": (50, 100), "test": (150, 300)}


@dataclass
class Asked:
    """A question about a passage: its accepted answers, and what a longer answer is made of."""

    kind: str
    question: str
    answers: list[str]  # the first is the reference
    phrase: str  # the first answer with its preposition, where it has one
    statement: str


@dataclass
class Passage:
    """A short text and everything that can be asked about it, each in one wording."""

    title: str
    context: str
    asked: list[Asked]


def _accepted(answer: str, also: str | None) -> list[str]:
    """The answer, then a second accepted form if there is one."""
    for lead in ("the ", "to "):
        if also is None and answer.startswith(lead):
            also = answer.removeprefix(lead)
    return [answer] if also is None else [answer, also]


def _ask(question: Question, slots: Slots) -> Asked:
    answer = slots.fill("{%s}" % question.slot)
    also = slots.fill(question.also) if question.also else None
    return Asked(
        kind=question.kind,
        question=slots.fill(slots.rng.choice(question.wordings)),
        answers=_accepted(answer, also),
        phrase=slots.fill("{@%s}" % question.slot),
        statement=slots.fill(question.statement),
    )


def position(answer: str, context: str) -> int:
    """Where the answer stands in the context as whole words; -1 if it does not."""
    match = re.search(rf"\b{re.escape(answer)}\b", context)
    return match.start() if match else -1


def make_passage(title: str, facts: list[Fact], rng: random.Random) -> Passage:
    """The scene's opening fact and two or three of the others, in any order."""
    slots = Slots(rng)
    chosen = [facts[0], *rng.sample(facts[1:], min(len(facts) - 1, rng.choice((2, 2, 3))))]
    context = " ".join(slots.fill(rng.choice(fact.sentences)) for fact in chosen)
    asked = []
    for question in (question for fact in chosen for question in fact.questions):
        item = _ask(question, slots)
        # Not every wording of a sentence holds every slot or the longer accepted form.
        item.answers = [text for text in item.answers if position(text, context) >= 0]
        if slots.fill("{%s}" % question.slot) in item.answers:
            asked.append(item)
    return Passage(title, context, asked)


def passages(rng: random.Random, avoid: set[str] = frozenset()) -> Iterator[Passage]:
    """Passages without end, no context twice and none that is in ``avoid``."""
    scenes = list(read_scenes().items())
    seen = set(avoid)
    while True:
        title, facts = rng.choice(scenes)
        passage = make_passage(title, facts, rng)
        if passage.context not in seen:
            seen.add(passage.context)
            yield passage


def question_counts(passage_count: int, question_count: int, rng: random.Random) -> list[int]:
    """Between one and three questions for each passage, with the given sum."""
    counts = [2] * passage_count
    excess = question_count - 2 * passage_count
    if abs(excess) > passage_count:
        raise ValueError(f"{question_count} questions do not fit {passage_count} passages")
    for _ in range(passage_count // 3):
        counts[rng.randrange(passage_count)] = rng.choice((1, 3))
    while (gap := question_count - sum(counts)) != 0:
        index = rng.randrange(passage_count)
        counts[index] = min(3, max(1, counts[index] + (1 if gap > 0 else -1)))
    return counts


def _entry(identifier: str, asked: Asked, context: str) -> dict:
    answers = [{"text": text, "answer_start": position(text, context)} for text in asked.answers]
    for answer in answers:
        start = answer["answer_start"]
        assert context[start : start + len(answer["text"])] == answer["text"]
    return {"id": identifier, "question": asked.question, "answers": answers}


def make_split(name: str, source: Iterator[Passage], rng: random.Random) -> dict:
    """One split as a SQuAD document; passages of the same scene share an article."""
    articles: dict[str, list[dict]] = {}
    for number, count in enumerate(question_counts(*SIZES[name], rng)):
        passage = next(source)
        picked = rng.sample(passage.asked, count)
        entries = [
            _entry(f"{name}-{number:04d}-{index}", asked, passage.context)
            for index, asked in enumerate(picked)
        ]
        articles.setdefault(passage.title, []).append({"context": passage.context, "qas": entries})
    data = [{"title": title, "paragraphs": articles[title]} for title in sorted(articles)]
    return {"version": "squad_mini-1.0", "data": data}


def contexts(document: dict) -> set[str]:
    """The contexts of a SQuAD document."""
    return {part["context"] for article in document["data"] for part in article["paragraphs"]}


def make_splits(seed: int = DEFAULT_SEED) -> dict[str, dict]:
    """All splits; no passage is in two of them."""
    rng = random.Random(seed)
    source = passages(rng)
    documents = {name: make_split(name, source, rng) for name in SIZES}
    union = set().union(*(contexts(document) for document in documents.values()))
    assert len(union) == sum(count for count, _ in SIZES.values()), "a passage is shared"
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, document in make_splits(args.seed).items():
        path = args.output_dir / f"{name}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        questions = sum(len(p["qas"]) for a in document["data"] for p in a["paragraphs"])
        print(
            f"{path}: {len(contexts(document))} passages, {questions} questions, "
            f"{path.stat().st_size / 1000:.0f} kB"
        )


if __name__ == "__main__":
    main()
