"""Scoring without training: ``zoobj eval`` and ``zoobj validate``."""

import logging
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoobj.assemble import hears_ties, make_model, make_scorer, make_service, make_task
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.files import write_json
from zoobj.models import warn_of_emulation
from zoobj.objective import Batch, Objective, as_objective, is_score
from zoobj.outcome import Outcome, judge
from zoobj.parts import rewards
from zoobj.registry import find
from zoobj.scoring import as_batch, check_needs
from zoobj.task import SPLITS, Example, Task
from zoobj.ties import second_objective

logger = logging.getLogger(__name__)


class Evaluation(dict[str, Any]):
    """The keys of ``zoobj eval --output``; prints as one line."""

    def __str__(self) -> str:
        error = "" if self["stderr"] is None else f" +/- {self['stderr']:.4f}"
        failed = f", {self['failed']} could not be scored" if self["failed"] else ""
        value = "-" if self["value"] is None else f"{self['value']:.4f}"
        return (
            f"{self['objective']} of {self['model']} on {self['n']} {self['split']} examples of "
            f"{self['task']}: {value}{error}{failed}"
        )


def evaluate(
    args: ZOConfig, split: str = "test", limit: int | None = None, output: str | None = None
) -> Evaluation:
    """Score a model on a split, by the code that measures ``result.json``.

    Raises:
        UserError: for bad input, or where nothing could be scored.
    """
    if output is not None and not Path(output).expanduser().absolute().parent.is_dir():
        raise UserError(f"--output {output}: no such folder")
    if output is not None and Path(output).expanduser().is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    task = make_task(args)
    objective = as_objective(args.objective or task.objective)
    examples = task.examples(split, limit)
    model, tokenizer = make_model(args)
    scorer = make_scorer(args, model, tokenizer, task)
    warn_of_emulation(model)
    with closing(make_service(args, objective)) as service:
        outcome = service.judge(scorer(examples, objective.needs))
    if not is_score(outcome.value):
        raise UserError(outcome.error or f"objective {objective.name!r} could score no example")
    for error in outcome.errors:
        logger.warning("%s: %s", split, error)
    result = Evaluation(
        model=args.model_name_or_path,
        task=task.name,
        objective=objective.name,
        split=split,
        n=len(examples) - outcome.failed,
        failed=outcome.failed,
        truncated=scorer.truncated(examples),
        value=outcome.value,
        stderr=_standard_error(outcome),
        **rewards(objective, [outcome]),
    )
    if output is not None:
        write_json(Path(output).expanduser(), dict(result))
    return result


def _standard_error(outcome: Outcome) -> float | None:
    """Standard error of a mean of scores; None for a set-level value."""
    scores = [s for s in outcome.scores or [] if is_score(s)]
    return float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else None


def validate(args: ZOConfig) -> Iterator[str]:
    """Check the names of a config, its data, and that the gold answers score full marks.

    Yields:
        A line for each thing that holds.

    Raises:
        UserError: for the first that doesn't.
    """
    task = make_task(args)
    objective = as_objective(args.objective or task.objective)
    second = second_objective(args.tie_breaker, objective, hears_ties(args))
    found = find("method", args.method)
    for split in SPLITS:
        examples = task.examples(split)
        yield f"{task.name}, {split}: {len(examples)} examples, e.g. {examples[0].prompt[-60:]!r}"
        yield _check_gold(task, objective, examples)
    if second is not None:
        check_needs(task, second.needs)
        yield f"tie_breaker {second.name}"
    yield f"method {args.method} is {found.where}"


def _check_gold(task: Task, objective: Objective, examples: list[Example]) -> str:
    """Full marks for gold, where it is known what that means."""
    check_needs(task, objective.needs)
    if {"completion_ids", "label_scores", "reference_logprob"} & set(objective.needs):
        return f"{objective.name}: needs a model; not checked without one"
    batch = gold_batch(task, examples)
    outcome = judge(objective, batch)
    if outcome.error is not None:
        raise UserError(outcome.error)
    best = objective.bounds[1 if objective.higher_is_better else 0]
    if best is None or objective.parts:  # gold may be the best in each, or break a limit
        why = "no upper bound" if best is None else "a combination"
        return f"{objective.name} of the gold answers: {outcome.value:.4f} ({why})"
    if outcome.value != best:
        others = replace(batch, references=[*batch.references[1:], *batch.references[:1]])
        blind = judge(objective, others).value == outcome.value
        if blind and not objective.higher_is_better:  # a length, say, of which gold has some
            return f"{objective.name} of the gold answers: {outcome.value:.4f} (it looks at none)"
        raise UserError(
            f"task {task.name}: the gold answers score {outcome.value:.4f} on {objective.name}, "
            f"not {best}{_culprit(outcome, best, examples)}"
        )
    return f"{objective.name} of the gold answers: {outcome.value:.4f}, full marks"


def gold_batch(task: Task, examples: list[Example]) -> Batch:
    """The batch of a model that always gives the gold answer."""
    choices = task.output == "choices"
    return as_batch(
        examples,
        completions=[task.gold(e.row) for e in examples],
        predictions=[e.reference for e in examples] if choices else None,
    )


def _culprit(outcome: Outcome, best: float, examples: list[Example]) -> str:
    wrong = (i for i, score in enumerate(outcome.scores or []) if score != best)
    first = next(wrong, None)
    return "" if first is None else f"; row {first + 1}: reference {examples[first].reference!r}"
