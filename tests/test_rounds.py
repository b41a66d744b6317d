"""Rows that have ended leave the batch; batches that don't fit are halved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import VOCABULARY
from hypothesis import given
from hypothesis import strategies as st
from tiny import EOS, FAMILIES, FIRST, PAD, made, prompts

from zoobj.scoring.batching import buckets
from zoobj.scoring.generation import Sampling, generate

NEW = 12


class Letters:
    """A tokenizer whose every token is a letter of its own."""

    pad_token_id, eos_token_id = PAD, EOS

    def batch_decode(self, rows: Any, skip_special_tokens: bool) -> list[str]:
        rows = rows.tolist() if isinstance(rows, torch.Tensor) else rows
        return ["".join(letter(t) for t in row if t >= FIRST) for row in rows]


def letter(token: int) -> str:
    return chr(0x4E00 + token)


def ready(model: Any) -> Any:
    model.generation_config.eos_token_id = EOS
    return model


def texts(model: Any, rows: Sequence[list[int]], stop: Sequence[str], **options: Any) -> list[str]:
    told = {"max_new_tokens": NEW, "stop": stop, "batch_size": 64, **options}
    return generate(model, Letters(), rows, **told)


@contextmanager
def sizes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of each forward pass."""
    seen: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    yield seen
    hook.remove()


def generative() -> list[str]:
    return [name for name, (kind, _) in FAMILIES.items() if "CausalLM" in kind or "LMHead" in kind]


def stops(model: Any, rows: Sequence[list[int]], **options: Any) -> list[str]:
    """Letters at which some rows end soon and others late or never."""
    plain = texts(model, rows, (), **options)
    return [plain[0][1:2] or "?", plain[1][4:5] or "?", plain[2][2:3] or "?"]


@pytest.mark.parametrize("family", generative())
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.5)])
def test_texts_are_those_of_each_row_alone(family: str, sampling: Sampling | None) -> None:
    """Sliding windows and learned positions as well."""
    model = ready(made(family))
    rows = prompts([9, 3, 14, 9, 5, 20, 1, 9])
    options: dict[str, Any] = {"sampling": sampling, "seed": 4}
    stop = stops(model, rows, **options)
    alone = [texts(model, [row], stop, keys=[k], **options)[0] for k, row in enumerate(rows)]
    with sizes(model) as seen:
        assert texts(model, rows, stop, **options) == alone
    assert len(set(map(len, alone))) > 1
    assert [tokens for _, tokens in seen[1:]] == [1] * (len(seen) - 1)  # nothing is run twice
    assert sorted({count for count, _ in seen}, reverse=True)[0] == len(rows)


HYBRID: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": EOS,
}
STATES: dict[str, Any] = {
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=4,
            num_hidden_layers=2,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
    ),
    "convolutions": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(**HYBRID, layer_types=["conv", "full_attention", "conv"])
    ),
}


@pytest.mark.parametrize("name", list(STATES))
def test_models_with_states_of_their_own(name: str) -> None:
    """Prompts of one length: padding is these models' own affair."""
    with torch.random.fork_rng(devices=[]):
        model = ready(STATES[name]().eval())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:
                param.normal_(0.0, 0.3, generator=generator)
    rows = prompts([6] * 8)
    stop = stops(model, rows)
    alone = [texts(model, [row], stop)[0] for row in rows]
    assert texts(model, rows, stop) == alone
    assert len(set(map(len, alone))) > 1


def test_rows_that_ended_leave_the_batch() -> None:
    model = ready(made("llama"))
    rows = prompts([7] * 16, seed=3)
    plain = texts(model, rows, ())
    stop = sorted({text[1] for text in plain[:8]})  # ends half of them with the second letter
    with sizes(model) as seen:
        got = texts(model, rows, stop)
    for text, short in zip(plain, got, strict=True):
        assert short == text[: min((text.find(s) for s in stop if s in text), default=NEW)]
    assert seen[0] == (16, 7)
    assert [count for count, _ in seen] == sorted((count for count, _ in seen), reverse=True)
    needed = sum(min(len(text) + 1, NEW) for text in got)
    assert needed <= sum(count for count, _ in seen) <= needed / 0.7


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 99))
def test_any_lengths_in_any_batches(lengths: list[int], batch_size: int, seed: int) -> None:
    rows = prompts(lengths, seed)
    stop = [letter(FIRST + seed % 40), letter(FIRST + 7)]
    alone = [texts(LLAMA, [row], stop)[0] for row in rows]
    assert texts(LLAMA, rows, stop, batch_size=batch_size) == alone


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 70))
def test_batches_hold_all_and_are_bounded(lengths: list[int], batch_size: int) -> None:
    found = list(buckets(lengths, batch_size))
    assert sorted(i for bucket in found for i in bucket) == list(range(len(lengths)))
    average = sum(lengths) / max(1, len(lengths))
    for bucket in found:
        assert len(bucket) <= batch_size
        assert len(bucket) == 1 or len(bucket) * lengths[bucket[0]] <= 1.25 * batch_size * average
    order = [lengths[i] for bucket in found for i in bucket]
    assert order == sorted(order, reverse=True)
    if len(set(lengths)) == 1:
        assert len(found) == -(-len(lengths) // batch_size)


LLAMA = ready(made("llama"))
