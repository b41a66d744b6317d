"""Log-likelihood of given continuations: label words, candidates, references."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zoobj.scoring.batching import buckets, left_pad
from zoobj.scoring.population import Population, among, once


@torch.no_grad()
def loglikelihood(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], **told: Any
) -> list[float]:
    """log p(answer | prompt) in nats, summed over the answer's tokens: see ``in_batches``."""
    result = [0.0] * len(prompts)
    for numbers, logprobs in in_batches(model, prompts, answers, **told):
        for number, value in zip(numbers, logprobs.tolist(), strict=True):
            result[number] = value
    return result


def in_batches(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad: int,
    batch_size: int,
    typical: float | None = None,
    population: Population | None = None,
    between: Callable[[int], None] = lambda examples: None,
) -> Iterator[tuple[list[int], Tensor]]:
    """log p(answer | prompt) in nats, one forward pass after another, with a graph where asked for.

    Answers of one token after the same prompt share one row of the forward pass.

    Args:
        model: a causal language model.
        prompts, answers: token ids, at least one each.
        pad: token id for padding, masked.
        batch_size: most rows in a forward pass.
        typical: length of a row; see ``buckets``.
        population: under which of several members of an overlay each prompt is run.
        between: called after each with the number of rows scored.

    Yields:
        The numbers of some answers, and their log-probabilities, [n] float64.
    """
    # What is run, and by whom -> which answers it serves.
    sequences: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        who = population.who[number] if population else 0
        sequences.setdefault((who, (*prompt, *answer[:-1])), []).append(number)
    rows = list(sequences)
    for bucket in buckets([len(tokens) for _, tokens in rows], batch_size, typical):
        served = [sequences[rows[i]] for i in bucket]
        keep = max(len(answers[n]) for numbers in served for n in numbers)
        run, source = [rows[i][1] for i in bucket], None
        if population and population.shares:
            run, source = once(run)
        with among(population, [rows[i][0] for i in bucket], source):
            logprobs = _last_logprobs(model, run, pad, keep)
        found = []
        for line, numbers in enumerate(served):
            for number in numbers:
                tokens = torch.tensor(answers[number], device=logprobs.device)
                window = logprobs[line, -len(tokens) :]
                found.append(window.gather(1, tokens.unsqueeze(1)).double().sum())
        between(len(bucket))
        yield [number for numbers in served for number in numbers], torch.stack(found)


def _last_logprobs(model: Any, rows: Sequence[Sequence[int]], pad: int, keep: int) -> Tensor:
    """[B, keep, V] float32 log-probabilities of the token after each of the last positions."""
    ids, mask = left_pad(rows, pad, model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    inner = model.get_base_model() if hasattr(model, "peft_config") else model  # peft passes on
    accepted = inspect.signature(inner.forward).parameters
    if "position_ids" in accepted:
        # generate() numbers the positions of a left-padded batch by itself; forward() does not.
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = keep
    logits = model(**inputs).logits[:, -keep:]
    return torch.log_softmax(logits.float(), dim=-1)
