"""Greedy or sampled text, batched, the same however it is batched.

Decoding is transformers' ``generate``. Sampling is greedy decoding of logits/T + Gumbel noise (the
Gumbel-max trick), the noise a pure function of (seed, example, position, token): no global random
state is touched, and two models scored with the same seed differ only where their logits do
(common random numbers).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoobj import noise
from zoobj.scoring.batching import buckets, left_pad
from zoobj.scoring.growing_cache import growing_cache
from zoobj.scoring.population import Population, among, once, spread

_LEAVE = 1 / 4  # of a batch has ended: it is worth making it smaller


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature: above 0; 1 is the model's own distribution.
        top_p: in (0, 1]; only the most likely tokens that make up this mass are drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    batch_size: int,
    typical: float | None = None,
    sampling: Sampling | None = None,
    keys: Sequence[int] | None = None,
    seed: int = 0,
    population: Population | None = None,
    between: Callable[[int], None] = lambda examples: None,
) -> list[str]:
    """Complete prompts; texts end before the first stop string and are stripped of white space.

    Args:
        model, tokenizer: as prepared by ``models.prepare``.
        prompts: token ids.
        max_new_tokens: most tokens of a completion.
        stop: strings that end it, beside the model's own eos tokens.
        batch_size: prompts of similar length that are decoded together.
        typical: length of a prompt; see ``buckets``.
        sampling: None is greedy.
        keys: identity of each prompt for the sampling noise; by default its position.
        seed: of that noise.
        population: under which of several members of an overlay each prompt is completed.
        between: called after each batch with its size.
    """
    completions = [""] * len(prompts)
    keys = range(len(prompts)) if keys is None else keys
    for bucket in buckets([len(p) for p in prompts], batch_size, typical):
        ids, mask = left_pad([prompts[i] for i in bucket], tokenizer.pad_token_id, model.device)
        who = [population.who[i] if population else 0 for i in bucket]
        noise_of = partial(_processors, sampling, [keys[i] for i in bucket], seed, ids.shape[1])
        config = _config(model, tokenizer, ids.shape[1] + max_new_tokens)
        ended = Ended(tokenizer, stop, config.eos_token_id, ids.shape[1])
        rows = _decode(model, ids, mask, config, ended, noise_of, population, who)
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        for i, text in zip(bucket, texts, strict=True):
            completions[i] = cut(text, stop)
        between(len(bucket))
    return completions


def cut(text: str, stop: Sequence[str]) -> str:
    r"""Text before the first stop string, stripped.

    >>> cut(" in the mill\nQuestion:", ["\n", "."])
    'in the mill'
    """
    # A completion may begin with the stop string (a newline first): then it is empty, as said.
    for string in stop:
        text = text.partition(string)[0]
    return text.strip()


def _decode(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    config: Any,
    ended: "Ended",
    noise_of: Callable[[Sequence[int]], Any],
    population: Population | None,
    who: Sequence[int],
) -> list[list[int]]:
    """The new tokens of each row of a batch.

    In rounds: rows that have ended leave the batch, so that the others go on faster. (Most answers
    are short, and in a large batch there is always one that is not.)
    """
    width, left = ids.shape[1], list(range(len(ids)))
    new: list[list[int]] = [[] for _ in left]
    room = config.max_length - width
    cache = _prefilled(model, population, who, ids, mask, room)
    resumable = "past_key_values" in signature(model.forward).parameters  # not Mamba's: run again
    if cache is None and resumable and _takes_growing(model):
        cache = growing_cache(model, room)
    while left:
        with _own_settings_aside(model), among(population, [who[row] for row in left]):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=config,
                logits_processor=noise_of(left),
                stopping_criteria=[ended],
            )
        over = ended.of(output.sequences) | (output.sequences.shape[1] >= config.max_length)
        for row, tokens in zip(left, output.sequences[:, width:].tolist(), strict=True):
            new[row] = _before_eos(tokens, config.eos_token_id)
        going = (~over).nonzero().flatten()
        left = [left[place] for place in going.tolist()]
        ids = output.sequences[going]
        mask = F.pad(mask[going], (0, ids.shape[1] - mask.shape[1]), value=1)
        cache = output.past_key_values if resumable else None
        if left and cache is not None:
            cache.reorder_cache(going)  # the rows named, in this order; no more are left
    return new


def _takes_growing(model: Any) -> bool:
    """Whether transformers would give it a cache of that kind."""
    return bool(getattr(model, "_supports_default_dynamic_cache", lambda: False)())


@torch.no_grad()
def _prefilled(
    model: Any,
    population: Population | None,
    who: Sequence[int],
    ids: Tensor,
    mask: Tensor,
    room: int,
) -> Any:
    """The cache of all but the last token; layers that all members share run once a prompt.

    None where nothing is shared: ``generate`` fills a cache of its own then.
    """
    if population is None or not population.shares or ids.shape[1] < 2:
        return None
    # With the mask: a prompt may begin with the token that pads another.
    run, source = once([tuple(row) for row in torch.cat([ids, mask], dim=1).tolist()])
    if len(run) == len(source):
        return None
    first = [source.index(number) for number in range(len(run))]
    shown = mask[first, :-1]
    cache = growing_cache(model, room)
    with among(population, who, source):
        model(
            input_ids=ids[first, :-1],
            attention_mask=shown,
            position_ids=(shown.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    spread(cache, population.overlay.shared_layers, source)
    return cache


def _config(model: Any, tokenizer: Any, max_length: int) -> Any:
    """A plain greedy configuration; only the model's eos tokens are taken from its own."""
    from transformers import GenerationConfig

    own = model.generation_config
    eos = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        max_length=max_length,
        do_sample=False,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """``generate`` fills what a configuration leaves open from the model's own: a repetition
    penalty, say, as chat models ship one, which would punish the padding's tokens too.
    """
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _ends(eos: int | Sequence[int] | None) -> set[int]:
    return {eos} if isinstance(eos, int) else set(eos or ())


def _before_eos(tokens: list[int], eos: int | Sequence[int] | None) -> list[int]:
    """The tokens before the first eos, which need not be one that decoding skips."""
    ends = _ends(eos)
    return list(takewhile(lambda token: token not in ends, tokens))


class Ended:
    """Which completions hold an eos token or a stop string; what the prompt ends with is no part.

    (transformers' own criterion also matches over the end of the prompt.) As a stopping criterion
    it ends the round for all rows once a good part of them has ended.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], eos: Any, width: int):
        self.tokenizer, self.stop, self.width = tokenizer, stop, width
        self.eos = torch.tensor(sorted(_ends(eos)))

    def of(self, input_ids: Tensor) -> Tensor:
        """[B] bool."""
        new = input_ids[:, self.width :]
        ended = torch.isin(new, self.eos.to(new.device)).any(dim=1)
        if self.stop:
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            found = [any(string in text for string in self.stop) for text in texts]
            ended |= torch.tensor(found, device=new.device)
        return ended

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """[B] bool: which rows generate no further in this round."""
        ended = self.of(input_ids)
        return ended | (ended.sum() >= _LEAVE * len(ended))


def _processors(
    sampling: Sampling | None, keys: Sequence[int], seed: int, width: int, rows: Sequence[int]
) -> Any:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if sampling is None:
        return None
    steps: list[Any] = []
    if sampling.temperature != 1.0:
        steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    steps.append(GumbelNoise([keys[row] for row in rows], seed, width))
    return LogitsProcessorList(steps)


class GumbelNoise:
    """Adds Gumbel(0, 1) noise, so that the arg max is a draw from softmax(scores)."""

    def __init__(self, keys: Sequence[int], seed: int, width: int):
        self.keys, self.seed, self.width = keys, seed, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, V] for the next position; tokens of probability 0 stay at minus infinity."""
        position, (_, vocabulary) = input_ids.shape[1] - self.width, scores.shape
        token = torch.arange(vocabulary, device=scores.device)
        keys = torch.tensor(self.keys, device=scores.device)
        index = (position * vocabulary + token).expand(scores.shape)
        u = noise.uniform(self.seed, noise.SAMPLING, index, keys.unsqueeze(1))
        return scores.double() - torch.log(-torch.log(u))
