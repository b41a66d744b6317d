"""Make the tokenizer and pre-train the embedded model ``tiny-qa`` from scratch.

    python scripts/pretrain_tiny_qa.py [--output_dir zoobj/assets/tiny_qa] [--steps N] [--seed N]

The model learns to answer ``Context: ...\\nQuestion: ...\\nAnswer:`` by copying from the context;
the style of the answer is drawn at random (see ``tiny_qa_styles.py``).  Finding the answer is by
far the harder part, so the first steps have bare answers only, which are shorter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from make_squad_mini import ROOT, Passage, contexts, make_splits, passages
from tiny_qa_eval import zero_shot
from tiny_qa_styles import styled_answer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT_DIR = ROOT / "zoobj" / "assets" / "tiny_qa"
EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 1536
CONTEXT_LENGTH = 512
# Answers are what is learnt; a little of the rest helps the copying circuits to form.
OTHER_WEIGHT = 0.1
BATCH = 16
QUESTIONS = 5
PEAK_RATE = 3e-3
# The share of the steps that comes before the styles.
BARE_STEPS = 0.6


def make_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with seeded random weights; the global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def text_parts(passage: Passage, rng: random.Random, styled: bool = True) -> list[str]:
    """The context, then some of its questions with answers, bare or in a style at random."""
    parts = [f"Context: {passage.context}\n"]
    for asked in rng.sample(passage.asked, min(QUESTIONS, len(passage.asked))):
        answer = styled_answer(asked, rng) if styled else asked.answers[0]
        parts.append(f"Question: {asked.question}\nAnswer: {answer}\n")
    return parts


def unseen(source: Iterator[Passage], held_out: set[str]) -> Iterator[Passage]:
    """The same passages, with the promise checked that none is in a split."""
    for passage in source:
        assert passage.context not in held_out, "a passage of the splits in pre-training"
        yield passage


def corpus_texts(source: Iterator[Passage], count: int, rng: random.Random) -> list[str]:
    """Whole texts for the tokenizer's training."""
    return ["".join(text_parts(passage, rng)) for passage in itertools.islice(source, count)]


class Batcher:
    """Batches in which the questions of a passage share its context.

    Each question is a branch that sees the context and itself only, at the positions that it
    would have alone, so the model learns the plain prompt at a fraction of the cost.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, source: Iterator[Passage], seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.rng = random.Random(seed)
        self.answer_mark = tokenizer.encode("Answer:")

    def _row(self, passage: Passage, styled: bool) -> list[list[float]]:
        """Token, branch, position and loss weight of each place of one row."""
        parts = text_parts(passage, self.rng, styled)
        encoded = [self.tokenizer.encode(part) for part in parts]
        offset = len(encoded[0])
        row = [[token, 0, at, OTHER_WEIGHT] for at, token in enumerate(encoded[0])]
        mark = self.answer_mark
        for branch, tokens in enumerate(encoded[1:], 1):
            start = next(
                at for at in range(len(tokens)) if tokens[at : at + len(mark)] == mark
            ) + len(mark)
            for at, token in enumerate([*tokens, self.tokenizer.eos_token_id]):
                weight = 1.0 if at >= start else OTHER_WEIGHT
                row.append([token, branch, offset + at, weight])
        return row

    def batch(self, styled: bool) -> tuple[torch.Tensor, ...]:
        """Token ids, positions, attention mask and loss weights of the next batch."""
        rows = [self._row(passage, styled) for passage in itertools.islice(self.source, BATCH)]
        width = max(len(row) for row in rows)
        filler = [self.tokenizer.pad_token_id, -1, 0, 0.0]
        table = torch.tensor([row + [filler] * (width - len(row)) for row in rows])
        branch = table[..., 1]
        seen = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
        mask = torch.ones(width, width, dtype=torch.bool).tril() & seen
        return table[..., 0].long(), table[..., 2].long(), mask[:, None], table[..., 3]


def batch_loss(model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Weighted mean of the next-token losses within each branch."""
    tokens, positions, mask, weights = batch
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=mask).logits
    # A branch's first token does not follow from the end of the branch before it.
    follows = (positions[:, 1:] - positions[:, :-1] == 1).float()
    weights = weights[:, 1:] * follows
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum() / weights.sum()


def rate(step: int, steps: int) -> float:
    """Short warm-up, then a cosine down to a fiftieth."""
    warm_up = min(1.0, (step + 1) / 100)
    return PEAK_RATE * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(model: LlamaForCausalLM, batcher: Batcher, steps: int, validation: dict) -> None:
    """AdamW on fresh passages, none seen twice."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    began, total = time.time(), 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        # bfloat16 halves the time; the weights stay in float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(model, batcher.batch(styled=step >= BARE_STEPS * steps))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{steps} loss {total / 100:.4f} {time.time() - began:.0f} s",
                flush=True,
            )
            total = 0.0
        if (step + 1) % 500 == 0:
            print(f"validation: {zero_shot(model, batcher.tokenizer, validation)}", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights, configuration and tokenizer, ready for ``from_pretrained``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    # A batch leaves its padding behind in the tokenizer.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    # The class name that every version of transformers knows.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_DIR)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    splits = make_splits()
    held_out = set().union(*(contexts(document) for document in splits.values()))
    source = unseen(passages(random.Random(f"pre-training {args.seed}"), held_out), held_out)
    corpus = corpus_texts(source, 4000, random.Random(args.seed))
    tokenizer = make_tokenizer(corpus)
    model = make_model(tokenizer, args.seed)
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, Batcher(tokenizer, source, args.seed), args.steps, splits["validation"])
    save(model, tokenizer, args.output_dir)
    print(f"test: {zero_shot(model, tokenizer, splits['test'])}")


if __name__ == "__main__":
    main()
