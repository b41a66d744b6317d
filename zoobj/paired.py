"""How sure the difference of a pair is: its standard error, over the examples both sides share.

For a mean of scores it is that of the mean difference. A set-level value has no scores: there it is
the jackknife's over examples, both sides leaving out the same ones (B. Efron, R. Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 11): with n examples, D the difference of the values
and D_(i) that without example i,

    se^2 = (n - 1) / n sum_i (D_(i) - mean D_(i))^2         (1)

Examples with equal outcomes on both sides have equal D_(i), so each kind is left out once: for a
task of choices few calls give (1) exactly. Where there are more than 32 kinds, examples are left
out in 32 groups (the delete-a-group jackknife), n in (1) being their number.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np

from zoobj.objective import Batch

_GROUPS = 32


def mean_error(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard error of the mean of a - b over examples; NaN for fewer than two."""
    differences = [a - b for a, b in pairs]
    if len(differences) < 2:
        return math.nan
    return float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def set_error(difference: Callable[[Sequence[int]], float], kinds: Sequence[int]) -> float:
    """Standard error of the difference of two set-level values; NaN if unknown.

    Args:
        difference: over the examples at these positions, NaN where there is none; called once for
            each kind of example, 32 times at most.
        kinds: of the examples; those of a kind are alike on both sides. See ``kinds_of``.
    """
    n = len(kinds)
    left_out: list[tuple[Sequence[int], int]]
    if len(set(kinds)) > _GROUPS:
        left_out = [(range(first, n, _GROUPS), 1) for first in range(_GROUPS)]
    else:
        left_out = [([kinds.index(kind)], count) for kind, count in Counter(kinds).items()]
    if n < 2:
        return math.nan
    without = np.array([difference(sorted({*range(n)} - {*out})) for out, _ in left_out])
    counts = np.array([count for _, count in left_out])
    spread = without - np.average(without, weights=counts)
    n = int(counts.sum())
    return math.sqrt((n - 1) / n * float(counts @ spread**2))  # (1)


def kinds_of(batches: Sequence[Batch], needs: Collection[str]) -> list[int]:
    """A number for each example: equal ones where references and all outputs are equal.

    Args:
        batches: the same examples, in the same order, as scored at several offsets.
        needs: the columns that count.
    """
    columns = [batches[0].references]
    columns += [getattr(batch, name) for batch in batches for name in sorted(needs)]
    numbers: dict[str, int] = {}
    return [numbers.setdefault(repr(row), len(numbers)) for row in zip(*columns, strict=True)]
