"""How long scores took, which took longest, and what failed: ``scoring.json``."""

import heapq
from array import array
from collections import Counter
from typing import Any

import numpy as np

from zoobj.objective import Batch, is_score
from zoobj.workers import Reply

_WORST = 10  # calls that are shown
_ERRORS = 5  # messages that are shown
_SHOWN = 200  # characters of a text


class Figures:
    """Gathers calls of an objective; a call is one example where there are workers, else a batch.

    Args:
        name: of the objective.

    Attributes:
        from_cache: examples that needed no call.
    """

    def __init__(self, name: str):
        self.name, self.from_cache, self.examples, self.retries = name, 0, 0, 0
        self._seconds = array("d")
        self._failed: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._worst: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, batch: Batch, reply: Reply) -> None:
        """A call that has ended."""
        self.examples += len(batch)
        self.retries += reply.retries
        self._seconds.append(reply.seconds)
        if reply.failure is not None:
            self._failed[reply.failure] += len(batch)
            self._errors[(reply.error or "")[:_SHOWN]] += 1
        else:
            missing = [s for s in reply.scores or [reply.value] if not is_score(s)]
            self._failed["none"] += len(missing) if reply.scores else len(missing) * len(batch)
        seconds, count = reply.seconds, len(self._seconds)  # the count settles who goes first
        if len(self._worst) < _WORST:
            heapq.heappush(self._worst, (seconds, count, _row(batch, reply)))
        elif seconds > self._worst[0][0]:
            heapq.heapreplace(self._worst, (seconds, count, _row(batch, reply)))

    def summary(self) -> dict[str, Any]:
        """The figures as JSON."""
        times = np.array(self._seconds)
        p50, p95 = np.percentile(times, [50, 95]).tolist() if times.size else (None, None)
        return {
            "objective": self.name,
            "calls": len(times),
            "examples": self.examples,
            "from_cache": self.from_cache,
            "retries": self.retries,
            "seconds": {
                "p50": p50,
                "p95": p95,
                "max": float(times.max()) if times.size else None,
                "sum": float(times.sum()),
            },
            "failed": {kind: self._failed[kind] for kind in ("none", "raised", "timeout", "died")},
            "errors": dict(self._errors.most_common(_ERRORS)),
            "slowest": [row for *_, row in sorted(self._worst, key=lambda worst: -worst[0])],
        }


def _row(batch: Batch, reply: Reply) -> dict[str, Any]:
    """A call for people: its texts, where it was about one example."""
    row: dict[str, Any] = {"seconds": round(reply.seconds, 4), "examples": len(batch)}
    if len(batch) == 1:
        row["prompt"] = batch.prompts[0][-_SHOWN:]
        row["completion"] = (batch.completions or [""])[0][:_SHOWN]
        row["score"] = reply.scores[0] if reply.scores else None
    return row if reply.error is None else {**row, "error": reply.error[:_SHOWN]}
