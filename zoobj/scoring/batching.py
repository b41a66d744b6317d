"""Length buckets and left padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def buckets(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions in batches of neighbours in length, longest first: what doesn't fit, fails early.

    >>> list(buckets([3, 9, 4], batch_size=2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def left_pad(sequences: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, T] int64, padded on the left."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(s)) + list(s) for s in sequences]
    mask = [[0] * (width - len(s)) + [1] * len(s) for s in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
