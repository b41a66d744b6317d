"""Any Python function as an objective."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zoobj.errors import UserError
from zoobj.objective import Batch, Bounds, Objective, Score, ScoreError
from zoobj.objectives.adapting import as_number, short
from zoobj.registry import find


class Reward(Objective):
    """A reward function with TRL's signature, or a set-level ``f(predictions, references)``.

    * ``f(prompts, completions, <data set columns>, **kwargs) -> list[float | None]``: arguments are
      given by name, as far as the function takes them; it may be a coroutine function. None says
      that an example could not be scored.
    * ``f(predictions, references) -> float | dict`` (parameters of exactly these names, as in
      evaluate and scikit-learn style): one number for the whole set; of a dict the first value.
      Predictions are label ids in a task of choices, completions in one of generation.

    In a task of choices, completions are the texts of the predicted choices. ``completion_ids``, if
    a function names it, are their tokens, without special ones.

    TRL gives prompts and completions as texts or, of conversational data, as lists of messages. A
    function can't be asked which it is made for, so it is told: with ``conversational`` a prompt
    is ``[{"role": "user", "content": ...}]`` and a completion the assistant's message, likewise. In
    a spec: ``reward:rewards.py:function:conversational=true``.

    Args:
        fn: the function, ``path/file.py:function`` or ``package.module:function``.
        name: in logs and results; by default the function's own name.
        higher_is_better: False for an error to be minimised.
        bounds: (lowest, highest) value, None where unknown; needed for ``on_error=floor``.
        conversational: prompts and completions are lists of messages.

    Raises:
        UserError: no such function, or one with parameters that can't be filled.

    >>> def brevity(completions, **kwargs):
    ...     return [-float(len(text.split())) for text in completions]
    >>> Reward(brevity).score(Batch(prompts=["?"], references=[[]], completions=["two words"]))
    [-2.0]
    """

    def __init__(
        self,
        fn: str | Callable[..., Any],
        name: str | None = None,
        higher_is_better: bool = True,
        bounds: Bounds = (None, None),
        conversational: bool = False,
    ):
        self.fn, self.where = _function(fn)
        self.name = name or str(getattr(self.fn, "__name__", type(self.fn).__name__))
        self.higher_is_better, self.bounds = higher_is_better, tuple(bounds)  # type: ignore[assignment]
        self.conversational = conversational
        try:
            parameters = inspect.signature(self.fn).parameters
        except ValueError as error:  # some of those written in C
            raise UserError(f"{self.where} can't be used: {error}: wrap it") from None
        self.takes = set(parameters)
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.decomposable = not {"predictions", "references"} <= self.takes
        self.needs = _needs(self.takes)

    def score(self, batch: Batch) -> list[Score]:
        result = self._call(batch)
        try:
            if isinstance(result, (str, bytes, Mapping, Set)):  # of other things than scores
                raise TypeError
            scores = list(result)
        except TypeError:
            raise ScoreError(
                f"{self.where} returned {short(result)}: return a list with a score for each of "
                "the completions"
            ) from None
        if len(scores) != len(batch):
            raise ScoreError(
                f"{self.where} returned {len(scores)} scores for {len(batch)} completions: return "
                "one for each, None where there is none"
            )
        return [self._number(score) for score in scores]

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        if self.decomposable:
            return super().value(batch, scores)
        result = self._call(batch)
        if isinstance(result, dict):
            if not result:
                raise ScoreError(f"{self.where} returned an empty dict: return {{'name': value}}")
            result = next(iter(result.values()))
        number = self._number(result)
        return float("nan") if number is None else number

    def _number(self, score: Any) -> Score:
        try:
            return as_number(score)
        except (TypeError, ValueError, RuntimeError):
            raise ScoreError(
                f"{self.where} returned {short(score)} as a score: return numbers or None"
            ) from None

    def _call(self, batch: Batch) -> Any:
        arguments = self._arguments(batch)
        try:
            result = self.fn(**arguments)
            return _wait_for(result) if inspect.isawaitable(result) else result
        except Exception as error:
            raise ScoreError(
                f"{self.where} raised {type(error).__name__}: {error}; mend the function"
            ) from error

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        given: dict[str, Any] = dict(batch.rows)
        given |= {"prompts": batch.prompts, "references": batch.references}
        given["completions"] = batch.completions
        if self.conversational:
            given["prompts"] = _messages("user", batch.prompts)
            if batch.completions is not None:
                given["completions"] = _messages("assistant", batch.completions)
        given["completion_ids"] = batch.completion_ids
        given["label_scores"] = batch.label_scores
        given["reference_logprob"] = batch.reference_logprob
        generated = batch.predictions is None
        given["predictions"] = batch.completions if generated else batch.predictions
        given = {name: column for name, column in given.items() if column is not None}
        missing = [
            p.name
            for p in inspect.signature(self.fn).parameters.values()
            if p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            and p.name not in given
        ]
        if missing:
            raise ScoreError(
                f"{self.where} takes {missing[0]!r}, which is not there: it may take "
                f"{', '.join(sorted(given))} and **kwargs"
            )
        return given if self.takes_all else {k: v for k, v in given.items() if k in self.takes}


def _needs(takes: set[str]) -> frozenset[str]:
    """Scored columns a function asks for by name; completions unless it asks for others only."""
    asked = takes & {"completions", "completion_ids", "label_scores", "reference_logprob"}
    return frozenset(asked or {"completions"})


def _function(fn: str | Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    if isinstance(fn, str):
        found = find("objective", fn)
        thing, where = found.thing, found.where
        path, _, name = where.rpartition(":")
        where = f"{path}, function {name!r}"
        if inspect.isclass(thing) or not callable(thing):
            raise UserError(f"{where} is not a function: a reward is f(prompts, completions, ...)")
        return thing, where
    if not callable(fn):
        raise UserError(f"{fn!r} is not a function: a reward is f(prompts, completions, ...)")
    name = getattr(fn, "__name__", type(fn).__name__)
    file = getattr(getattr(fn, "__code__", None), "co_filename", None)
    return fn, f"{Path(file).name if file else 'reward'}, function {name!r}"


def _messages(role: str, texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": text}] for text in texts]


def _wait_for(awaitable: Awaitable[Any]) -> Any:
    """The result of a coroutine; in a thread of its own, since a notebook has a loop running."""

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, wait()).result()
