"""Between the engine and whoever scores: workers, timeouts, the cache, what failed and how long.

With the default settings it is ``outcome.judge`` in this process. With workers each example of a
decomposable objective is a call of its own, and a batch is scored while the model generates the
next one; results come in the order of the batches, so the log does not depend on any of this.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import nan
from time import perf_counter, sleep
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score, is_score
from zoobj.outcome import OnError, Outcome, combined, measured, settled
from zoobj.score_cache import ScoreCache, example_key
from zoobj.score_times import Figures
from zoobj.workers import Failure, Reply, Workers, persistent


@dataclass
class _Asked:
    """A batch whose scores are on their way.

    Attributes:
        batch: of n examples.
        keys: of its examples in the cache, where there is one.
        scores: those the cache knows, n of them.
        calls: which examples each call is about, and what comes of it.
        parts: of a combination, what is asked of each part and of what is scored beside them.
    """

    batch: Batch
    keys: list[str | None]
    scores: list[Score]
    calls: "list[tuple[list[int], Future[Reply]]]"
    parts: "dict[str, _Asked]" = field(default_factory=dict)

    def done(self) -> bool:
        parts = all(part.done() for part in self.parts.values())
        return parts and all(future.done() for _, future in self.calls)


class Service:
    """Scores batches for the engine.

    What an objective says of itself (``on_error``, ``timeout``) goes before what is given here. A
    combination has a service for each of its parts.

    Args:
        objective: what to score by.
        on_error: see ``outcome.judge``.
        workers: processes that score; 0: this process, unless a timeout or limit asks for one.
        timeout: seconds for one call.
        retries: how often a call that raised, took too long or died is made again.
        memory: GiB of address space for each worker.
        cache: folder of scores known from earlier; only for deterministic, decomposable objectives.
        max_failed: share of a batch that may fail; more is an error, before anything is made of it.
    """

    def __init__(
        self,
        objective: Objective,
        on_error: OnError = "drop",
        workers: int = 0,
        timeout: float | None = None,
        retries: int = 0,
        memory: float | None = None,
        cache: str | None = None,
        max_failed: float | None = None,
    ):
        self.objective, self.max_failed = objective, max_failed
        self.retries, self.memory = retries, memory
        self.on_error: OnError = objective.on_error or on_error
        self.timeout = timeout if objective.timeout is None else objective.timeout
        self.count = max(workers, int(not (self.timeout is None and memory is None)))
        cached = cache is not None and objective.decomposable and objective.deterministic
        self.cache = ScoreCache(cache, objective) if cached and cache is not None else None
        self.figures = Figures(objective.name)
        self._workers: Workers | None = None
        told = (self.on_error, workers, timeout, retries, memory, cache)
        everything = {**objective.parts, **objective.beside}
        self.parts = {name: Service(part, *told) for name, part in everything.items()}

    def judge(self, batch: Batch, on_error: OnError | None = None) -> Outcome:
        """The outcome of one batch.

        Args:
            batch: the objective's ``needs`` filled.
            on_error: another policy than the service's; then ``max_failed`` does not count.

        Raises:
            UserError: see ``outcome.judge``; too many failed; the workers don't start.
        """
        return next(self._each([batch], on_error))

    def each(self, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """The outcomes of batches, in order; workers score one while the next is made."""
        return self._each(batches, None)

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        for part in self.parts.values():
            part.close()
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _each(self, batches: Iterable[Batch], on_error: OnError | None) -> Iterator[Outcome]:
        waiting: deque[_Asked] = deque()
        try:
            for batch in batches:
                waiting.append(self._ask(batch))
                while waiting and waiting[0].done():
                    yield self._answered(waiting.popleft(), on_error)
            while waiting:
                yield self._answered(waiting.popleft(), on_error)
        finally:
            if waiting:  # interrupted: nobody wants the answers any more
                self.close()

    def _ask(self, batch: Batch) -> _Asked:
        """Look up what is known, and call the objective for the rest."""
        if self.parts:
            return _Asked(
                batch, [], [], [], {n: part._ask(batch) for n, part in self.parts.items()}
            )
        n = len(batch)
        keys = [None if self.cache is None else example_key(batch, i) for i in range(n)]
        scores = [None if self.cache is None else self.cache.get(key) for key in keys]
        rest = [i for i in range(n) if scores[i] is None]
        self.figures.from_cache += n - len(rest)
        alone = self.count and self.objective.decomposable
        asked = [[i] for i in rest] if alone else [rest] if rest or not n else []
        parts = [batch if len(places) == n else batch.select(places) for places in asked]
        calls = list(zip(asked, map(self._call, parts), strict=True))
        return _Asked(batch, keys, scores, calls)

    def _call(self, part: Batch) -> "Future[Reply]":
        if self.count:
            if self._workers is None:
                self._workers = Workers(
                    self.objective, self.count, self.timeout, self.retries, self.memory
                )
            return self._workers.submit(part)
        done: Future[Reply] = Future()
        done.set_result(persistent(lambda: self._here(part), self.retries, sleep))
        return done

    def _here(self, part: Batch) -> Reply:
        """A call in this process."""
        start = perf_counter()
        said = measured(self.objective, part)
        seconds = perf_counter() - start
        failed: Failure | None = "raised" if said.error else None
        return Reply(said.scores, said.value, said.error, failed, seconds)

    def _answered(self, asked: _Asked, on_error: OnError | None) -> Outcome:
        """The outcome of a batch from its calls."""
        if self.parts:
            return self._combined(asked, on_error)
        scores, value, error, fresh = asked.scores, nan, None, {}
        for places, future in asked.calls:
            reply = future.result()
            value, error = reply.value, error or reply.error
            for i, score in zip(places, reply.scores or [], strict=False):
                scores[i] = score
                if is_score(score) and (key := asked.keys[i]) is not None:
                    fresh[key] = score
            self.figures.add(asked.batch.select(places), reply)
        if self.cache is not None:
            self.cache.put(fresh)
        whole = Outcome(asked.batch, scores if self.objective.decomposable else None, value, error)
        if on_error is None:
            self._check_share(whole)
        return settled(self.objective, whole, on_error or self.on_error)

    def _combined(self, asked: _Asked, on_error: OnError | None) -> Outcome:
        """The outcome of a combination; what is scored beside never stops anything."""
        parts, beside = (
            {name: self.parts[name]._answered(asked.parts[name], policy) for name in group}
            for group, policy in ((self.objective.parts, on_error), (self.objective.beside, "drop"))
        )
        whole = combined(self.objective, asked.batch, parts, beside)
        if on_error is None:
            self._check_share(whole)
        return whole

    def _check_share(self, outcome: Outcome) -> None:
        failed, n = outcome.failed, len(outcome.batch)
        if self.max_failed is not None and failed > self.max_failed * n:
            raise UserError(
                f"objective {self.objective.name!r} could not score {failed} of {n} examples, more "
                f"than --max_failed {self.max_failed:g} allows: mend it, then resume "
                f"({outcome.error or 'every such score was None or NaN'})"
            )

    def report(self) -> dict[str, Any]:
        """How long scoring took and what failed, for ``scoring.json``."""
        if self.parts:
            return {"parts": {name: part.report() for name, part in self.parts.items()}}
        return {"workers": self.count, "timeout": self.timeout, **self.figures.summary()}
