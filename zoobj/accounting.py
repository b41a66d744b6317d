"""How much the pairs of a run said: what the line of a step counts, and what that sums up to."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zoobj.signal import Pair


def counted(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the log keeps of a step's pairs, beside their values; JSON numbers.

    ``pairs``, of them ``ties`` and ``lost`` (nothing could be scored); examples that flipped
    ``up`` and ``down``, or whose output ``changed``; the ``squares`` of the differences and of
    their standard errors, ``noise``, summed over the pairs of which both are known.
    """
    known = [pair for pair in pairs if math.isfinite(pair.plus - pair.minus + pair.error)]
    return {
        "pairs": len(pairs),
        "ties": sum(pair.tie for pair in pairs),
        "lost": sum(not pair.n for pair in pairs),
        "up": sum(pair.up for pair in pairs),
        "down": sum(pair.down for pair in pairs),
        "changed": sum(pair.changed for pair in pairs),
        "squares": math.fsum((pair.plus - pair.minus) ** 2 for pair in known),
        "noise": math.fsum(pair.error**2 for pair in known),
    }


@dataclass(frozen=True)
class Signal:
    """How much signal some steps had.

    Attributes:
        tie_rate: share of steps whose values all tie, so that the metric moved nothing.
        flip_rate: share of examples whose score differs between the sides of their pair.
        snr: signal-to-noise ratio of a pair's difference. A difference is what the direction does
            to the score plus the chance of which examples were drawn; of its mean square the mean
            squared standard error is the latter's part: snr^2 = max(0, mean d^2 / mean se^2 - 1).
            NaN where no standard error is known.
        wasted: share of pairs that said nothing, since they tie or could not be scored.
    """

    tie_rate: float
    flip_rate: float
    snr: float
    wasted: float


def signal(lines: Iterable[dict[str, Any]]) -> Signal:
    """What the lines of a log come to; zeros where there are none."""
    steps = list(lines)
    counts = [line.get("signal", {}) for line in steps]  # older logs have none
    total = {
        name: math.fsum(count.get(name, 0) for count in counts)
        for name in ("pairs", "ties", "lost", "squares", "noise")
    }
    noise = total["noise"]
    return Signal(
        tie_rate=sum(line["tie"] for line in steps) / max(1, len(steps)),
        flip_rate=sum(line["flips"] for line in steps) / max(1, sum(line["n"] for line in steps)),
        snr=math.sqrt(max(0.0, total["squares"] / noise - 1)) if noise else math.nan,
        wasted=(total["ties"] + total["lost"]) / max(1, total["pairs"]),
    )
