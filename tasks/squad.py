"""Extractive question answering in SQuAD's format."""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.task import Row, Task, read_rows


class Squad(Task):
    r"""SQuAD from the hub (rajpurkar/squad, rajpurkar/squad_v2), or local files: SQuAD's own JSON,
    or rows with the columns context, question, answers (``{"text": [...]}``).

    The hub's validation split, which has several answers a question, is our test split; validation
    is cut from train by passage. Prompt (MeZO's): ``Title: ...\nContext: ...\nQuestion:
    ...\nAnswer:``, the title where there is one.

    Args:
        context: "passage", or "oracle_sentence": only the sentences that hold the answer, and no
            title, an easier and much shorter task, for models and machines that are small.
        version: 1.1, or 2.0, where a question may have no answer.
        no_answer: the gold text of such a question: what prompts with examples show, what
            log-likelihoods are of, and what is right to say, as is nothing.
        settings: of every Task.
    """

    name = "squad"
    objective = "token_f1"
    dataset_path = "rajpurkar/squad"
    hub_splits = {"train": "train", "test": "validation"}  # noqa: RUF012
    columns = ("context", "question", "answers")

    def __init__(
        self,
        context: str = "passage",
        version: float | str = "1.1",
        no_answer: str = "unanswerable",
        **settings: Any,
    ):
        super().__init__(**settings)
        if context not in _CONTEXTS:
            hint = did_you_mean(str(context), _CONTEXTS)
            raise UserError(f"task {self.name}: unknown context {context!r}{hint}")
        if str(version) not in ("1.1", "2.0"):
            raise UserError(f"task {self.name}: unknown version {version!r}; take 1.1 or 2.0")
        self.shown = _CONTEXTS[context]
        self.unanswered: list[str] = []
        if str(version) == "2.0":
            if context != "passage":
                raise UserError(
                    f"task {self.name}: context {context!r} is where the answer is, and version "
                    "2.0 has questions without one: leave context out"
                )
            if not isinstance(no_answer, str) or not no_answer.strip() or "," in no_answer:
                raise UserError(f"task {self.name}: no_answer {no_answer!r}: give it a plain word")
            self.dataset_path, self.unanswered = "rajpurkar/squad_v2", [no_answer]
            self.objective = f"token_f1:version=2.0,no_answer={no_answer}"

    def prompt(self, row: Row) -> str:
        titled = row.get("title") and self.shown is whole_passage
        title = f"Title: {row['title']}\n" if titled else ""
        return f"{title}{question({**row, 'context': self.shown(row)})}"

    def reference(self, row: Row) -> list[str]:
        texts = list(dict.fromkeys(row["answers"]["text"]))  # annotators often agree: once each
        return texts or list(self.unanswered)

    def group(self, row: Row) -> Hashable:
        return row["context"]

    def read(self, path: Path) -> list[Row]:
        """Rows of SQuAD's nested JSON, or of any file with its columns."""
        if path.suffix != ".json":
            return read_rows(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} can't be read as JSON: {error}") from error
        articles = content.get("data") if isinstance(content, dict) else None
        listed = isinstance(articles, list) and bool(articles) and isinstance(articles[0], dict)
        if articles and listed and "paragraphs" in articles[0]:
            return _flatten(articles, path)
        return read_rows(path)


def question(row: Row) -> str:
    """Passage and question, up to where the answer begins."""
    return f"Context: {row['context'].strip()}\nQuestion: {row['question'].strip()}\nAnswer:"


def whole_passage(row: Row) -> str:
    """All of the passage."""
    context: str = row["context"]
    return context


def oracle_sentence(row: Row) -> str:
    """The sentences of the passage that the first answer lies in.

    >>> oracle_sentence({"context": "It rained. Ann left. Bo stayed.",
    ...                  "answers": {"text": ["Ann"], "answer_start": [11]}})
    'Ann left.'
    """
    context, answer = row["context"], row["answers"]["text"][0]
    start = (row["answers"].get("answer_start") or [-1])[0]
    if context[start : start + len(answer)] != answer:
        start = context.find(answer)
    if start < 0:
        raise ValueError(f"the passage does not hold the answer {answer!r}")
    borders = [0, *(match.end() for match in re.finditer(r"[.!?]\s+", context)), len(context)]
    first = max(border for border in borders if border <= start)
    last = min(border for border in borders if border >= start + len(answer))
    return str(context[first:last]).strip()


_CONTEXTS = {"passage": whole_passage, "oracle_sentence": oracle_sentence}


def _flatten(articles: list[dict[str, Any]], path: Path) -> list[Row]:
    """One row a question, with the columns of the hub's version."""
    try:
        return [
            {
                "id": str(qa.get("id", "")),
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {
                    "text": [answer["text"] for answer in qa["answers"]],
                    "answer_start": [answer.get("answer_start", -1) for answer in qa["answers"]],
                },
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not in SQuAD 1.1's format: {type(error).__name__}: {error}; needed are "
            "data[].paragraphs[].{context, qas[].{question, answers[].text}}"
        ) from error
