"""The cache with room holds what transformers' own holds."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, made, prompts
from transformers.cache_utils import DynamicLayer

from zoobj.scoring.growing_cache import GrowingLayer, growing_cache

EVENTS = st.lists(
    st.one_of(st.integers(1, 5), st.lists(st.integers(0, 2), min_size=1, max_size=3)), max_size=12
)


@given(events=EVENTS, room=st.integers(0, 6))
def test_it_holds_what_the_dynamic_one_holds(events: list[Any], room: int) -> None:
    """Tokens are appended, rows are picked; keys and values may differ in width."""
    draw, rows = torch.Generator().manual_seed(0), 3
    ours, theirs = GrowingLayer(room), DynamicLayer()
    for event in events:
        if isinstance(event, int):
            keys = torch.randn(rows, 2, event, 4, generator=draw)
            values = torch.randn(rows, 2, event, 6, generator=draw)
            found, wanted = ours.update(keys, values), theirs.update(keys, values)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        else:
            chosen = torch.tensor([row % rows for row in event])
            for layer in (ours, theirs):
                layer.reorder_cache(chosen)
            rows = len(event) if theirs.get_seq_length() else rows
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_tokens_that_fit_move_nothing() -> None:
    layer, token = GrowingLayer(room=4), torch.ones(2, 1, 1, 3)
    keys, _ = layer.update(torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 5, 3))
    for _ in range(4):
        grown, _ = layer.update(token, token)
        assert grown.data_ptr() == keys.data_ptr()
    grown, _ = layer.update(token, token)
    assert grown.data_ptr() != keys.data_ptr()
    assert grown[0, 0, :, 0].tolist() == [0.0] * 5 + [1.0] * 5


@pytest.mark.parametrize("family", [n for n, (k, _) in FAMILIES.items() if "CausalLM" in k])
def test_a_model_says_the_same_with_it(family: str) -> None:
    model = made(family)
    if not model._supports_default_dynamic_cache():
        pytest.skip("transformers gives it a cache of another kind")
    ids = torch.tensor(prompts([6, 6, 6]))
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    plain = model.generate(ids, **asked)
    assert torch.equal(plain, model.generate(ids, past_key_values=growing_cache(model, 8), **asked))
