"""A decaying sum of directions, as seeds and scalars instead of a buffer of parameter size."""

import math
from collections.abc import Sequence
from typing import Any

_NEGLIGIBLE = 0.01  # weight, beside 1 for the newest, at which a step is forgotten


class Trail:
    """sum_k beta^(t - k) g_k z(s_k) over the last K steps, the first with beta^K <= 1 %.

    What is forgotten is beta^K of the sum of all weights: 1 % at the most. K is 44 for beta = 0.9
    and 459 for 0.99; so many times the directions of a step are in each move.

    Args:
        beta: above 0, below 1.

    Attributes:
        kept: K.
    """

    def __init__(self, beta: float):
        self.beta = beta
        self.kept = max(1, math.ceil(math.log(_NEGLIGIBLE) / math.log(beta)))
        self.past: list[list[list[Any]]] = []  # of each step, the newest last: [seed, g], ...

    def add(self, directions: Sequence[tuple[int, float]]) -> None:
        """A step's own: what was there before shrinks by beta."""
        self.past = [*self.past, [[seed, g] for seed, g in directions]][-self.kept :]

    def sum(self) -> list[tuple[int, float]]:
        """The seeds and their weights now, the newest first; those of 0 are left out."""
        return [
            (seed, g * self.beta**age)
            for age, directions in enumerate(reversed(self.past))
            for seed, g in directions
            if g
        ]
