"""Zero-shot figures of ``tiny-qa`` on a SQuAD document: token F1 and whether it knows."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "Context: {context}\nQuestion: {question}\nAnswer:"
MAX_NEW_TOKENS = 16


def normalise(text: str) -> list[str]:
    """SQuAD's normalisation: no case, punctuation or articles."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(prediction: str, references: list[str]) -> float:
    """The best token F1 over the references."""
    predicted = normalise(prediction)
    best = 0.0
    for reference in map(normalise, references):
        common = sum((Counter(predicted) & Counter(reference)).values())
        best = max(best, 2 * common / max(1, len(predicted) + len(reference)))
    return best


def examples(document: dict) -> list[tuple[str, list[str]]]:
    """Prompt and accepted answers of each question."""
    return [
        (
            PROMPT.format(context=part["context"], question=qa["question"]),
            [answer["text"] for answer in qa["answers"]],
        )
        for article in document["data"]
        for part in article["paragraphs"]
        for qa in part["qas"]
    ]


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> list[str]:
    """Greedy answers, each up to the end of its first line."""
    answers = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(
            prompts[start : start + 64],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        made = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :])
        answers += [text.split("\n")[0].replace("<|endoftext|>", "").strip() for text in texts]
    return answers


@dataclass
class ZeroShot:
    """How well and in which style the model answers before any tuning."""

    f1: float
    knows: float  # share of answers that hold the first reference, in whatever style
    short: float  # share of answers that are an accepted answer, letter for letter

    def __str__(self) -> str:
        return f"zero-shot F1 {self.f1:.4f} knows {self.knows:.3f} short {self.short:.3f}"


def zero_shot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, document: dict
) -> ZeroShot:
    """The figures on all questions of the document."""
    prompts, references = zip(*examples(document), strict=True)
    answers = answer(model, tokenizer, list(prompts))
    pairs = list(zip(answers, references, strict=True))
    return ZeroShot(
        f1=sum(token_f1(text, accepted) for text, accepted in pairs) / len(pairs),
        knows=sum(_holds(text, accepted[0]) for text, accepted in pairs) / len(pairs),
        short=sum(text in accepted for text, accepted in pairs) / len(pairs),
    )


def _holds(text: str, reference: str) -> bool:
    return f" {' '.join(normalise(reference))} " in f" {' '.join(normalise(text))} "
