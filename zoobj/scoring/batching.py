"""Length buckets and left padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_SLACK = 1.25


def buckets(
    lengths: Sequence[int], batch_size: int, typical: float | None = None
) -> Iterator[list[int]]:
    """Positions in batches of neighbours in length, longest first: what doesn't fit, fails early.

    A batch has at most ``batch_size`` rows, and at most 1.25 times as many tokens, padding counted,
    as so many rows of ``typical`` length (by default the average of these): so a few long rows
    don't decide on the memory for keys and values, nor are many short ones padded to their length.

    >>> list(buckets([3, 9, 4], batch_size=2))
    [[1], [2, 0]]
    >>> list(buckets([9, 9, 9, 9], batch_size=4, typical=4.5))
    [[0, 1], [2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    tokens = _SLACK * batch_size * (typical or sum(lengths) / max(1, len(lengths)))
    while order:
        rows = max(1, min(batch_size, int(tokens // max(1, lengths[order[0]]))))
        yield order[:rows]
        del order[:rows]


def left_pad(sequences: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, T] int64, padded on the left."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(s)) + list(s) for s in sequences]
    mask = [[0] * (width - len(s)) + [1] * len(s) for s in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
