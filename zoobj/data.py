"""The examples of a run: three splits, and an endless shuffled stream of minibatches."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from statistics import fmean

import torch

from zoobj import noise
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.scoring import Scorer
from zoobj.task import SPLITS, Example, Task

logger = logging.getLogger(__name__)

_MEASURED = 100  # prompts whose mean length is typical

Splits = Mapping[str, list[Example]]


def load_splits(args: ZOConfig, task: Task, scorer: Scorer) -> Splits:
    """Train, validation and test; says what is cut from train, and what is cut short.

    The scorer is told how long prompts typically are.

    Raises:
        UserError: rows that don't fit the task, or fewer than a minibatch.
    """
    splits = {split: _load(args, task, scorer, split) for split in SPLITS}
    size, rows = args.per_device_train_batch_size, len(splits["train"])
    if size > rows:
        raise UserError(
            f"--per_device_train_batch_size {size} is larger than the {rows} training "
            f"examples: lower it to {rows} or less"
        )
    lengths = [len(scorer.encode(example.prompt)) for example in splits["train"][:_MEASURED]]
    scorer.typical_length = fmean(lengths)
    return splits


def limit_of(args: ZOConfig, split: str) -> int | None:
    """How many examples of a split the settings allow, None for all."""
    limits = (args.max_train_samples, args.max_eval_samples, args.max_test_samples)
    return dict(zip(SPLITS, limits, strict=True)).get(split)


def _load(args: ZOConfig, task: Task, scorer: Scorer, split: str) -> list[Example]:
    examples = task.examples(split, limit_of(args, split))
    if task.held_out(split):
        logger.info("%s: %d examples cut from train", split, len(examples))
    if truncated := scorer.truncated(examples):
        logger.warning(
            "%s: %d of %d prompts are longer than %d tokens; only their last ones are read",
            split,
            truncated,
            len(examples),
            scorer.prompt_limit,
        )
    return examples


def minibatch(examples: list[Example], size: int, seed: int, step: int) -> list[Example]:
    """Batch ``step`` of an endless stream of shuffled epochs: a function of seed and step."""
    n, first = len(examples), step * size
    epochs = range(first // n, (first + size - 1) // n + 1)
    stream = [i for epoch in epochs for i in _order(seed, epoch, n)]
    start = first - epochs[0] * n
    return [examples[i] for i in stream[start : start + size]]


@lru_cache(maxsize=2)  # a minibatch may span two epochs; steps of the same one share its order
def _order(seed: int, epoch: int, n: int) -> list[int]:
    """The n examples of an epoch, shuffled."""
    draws = noise.uniform(noise.derive(seed, epoch), noise.ORDER, torch.arange(n))
    return draws.argsort().tolist()
