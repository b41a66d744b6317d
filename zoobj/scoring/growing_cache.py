"""A key-value cache with room for the tokens to come."""

import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer in memory that has room, so that a new token is written, no more.

    DynamicLayer copies all there is for each token, into pieces that get larger by a token each
    time: memory that holds pieces of all those sizes is a fifth larger at 128 rows of SmolLM2-135M.

    Args:
        room: for so many tokens whenever there is not enough.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self._space: tuple[Tensor, Tensor] | None = None
        self._shown: Tensor | None = None  # the keys as they were left

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._space is None or self._shown is not self.keys or end > self._space[0].shape[-2]:
            self._space = (
                self._moved(self.keys, key_states, begin, end),
                self._moved(self.values, value_states, begin, end),
            )
        keys, values = self._space
        keys[..., begin:end, :], values[..., begin:end, :] = key_states, value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        length = self.get_seq_length()
        if length:
            rows = beam_idx.to(self.keys.device)
            keys, values = (old.index_select(0, rows) for old in (self.keys, self.values))
            self._space = (
                self._moved(keys, keys, length, length),
                self._moved(values, values, length, length),
            )
            self._show(length)

    def _show(self, length: int) -> None:
        """So many tokens are there."""
        assert self._space is not None
        self.keys, self.values = (space[..., :length, :] for space in self._space)
        self._shown = self.keys

    def _moved(self, old: Tensor, like: Tensor, begin: int, end: int) -> Tensor:
        """Memory with room, and what there is already."""
        space = _empty(like, (*like.shape[:-2], end + self.room, like.shape[-1]))
        if begin:
            space[..., :begin, :] = old
        return space


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape, of the kind of another one.

    On a CPU in pages of its own, which the system has back as soon as it is dropped: on malloc's
    heap, what lives as long as a batch leaves holes among the activations.
    """
    count = math.prod(shape)
    if like.device.type != "cpu" or not count:
        return like.new_empty(shape)
    pages = mmap.mmap(-1, count * like.element_size())
    return torch.frombuffer(pages, dtype=like.dtype).view(*shape)


def growing_cache(model: Any, room: int) -> DynamicCache:
    """transformers' own cache for a model, with layers that grow where it has plain ones.

    Args:
        model: a decoder.
        room: tokens that a completion may have.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        GrowingLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
