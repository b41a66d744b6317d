"""The course of the learning rate: transformers' schedulers, over whatever budget a run has.

A scheduler is a function of the step and of how many there will be. Where the budget is in steps,
or in scored examples of which each step costs as many, these are steps; else the budget is taken as
a thousand parts, and the scheduler goes by how many of them are used up.
"""

import math
from collections.abc import Callable
from inspect import signature

from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.run import RunFolder
from zoobj.stopping import ENDLESS, uneven

PARTS = 1000  # of a budget that is not in steps


class LearningRate:
    """The learning rate of each step of a run.

    Args:
        args: the settings.
        max_steps: that the budget buys; see ``stopping.budget``.

    Raises:
        UserError: see ``make_schedule``.
    """

    def __init__(self, args: ZOConfig, max_steps: int):
        self.args, self.max_steps = args, max_steps
        self.by_evals = args.max_evals is not None and uneven(args)
        self.by_seconds = args.max_seconds is not None and max_steps == ENDLESS
        in_parts = self.by_evals or self.by_seconds
        self.share = make_schedule(args, PARTS if in_parts else max_steps)

    def __call__(self, step: int, run: RunFolder) -> float:
        """That of a step, given what the run has spent before it."""
        args, at = self.args, float(step)
        if self.by_evals:
            assert args.max_evals is not None
            at = PARTS * min(1.0, max(step / self.max_steps, run.evals / args.max_evals))
        elif self.by_seconds:
            assert args.max_seconds is not None
            at = PARTS * min(1.0, run.seconds / args.max_seconds)
        return args.learning_rate * self.share(at)


def make_schedule(args: ZOConfig, count: int) -> Callable[[float], float]:
    """From a step, 0 to ``count``, to the share of ``learning_rate`` that it goes with.

    ``--warmup_steps`` below 1 is a share of them, rounded up, as in transformers; at step 0 of a
    warm-up the share is 0: such a step only measures.

    Args:
        args: ``lr_scheduler_type`` with its ``lr_scheduler_kwargs``, and ``warmup_steps``.
        count: steps, or parts.

    Raises:
        UserError: the scheduler does not take these.

    >>> schedule = make_schedule(ZOConfig(lr_scheduler_type="cosine", warmup_steps=2), 10)
    >>> [round(schedule(step), 3) for step in range(0, 11, 2)]
    [0.0, 1.0, 0.854, 0.5, 0.146, 0]
    """
    import torch
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

    kind, told = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    warmup = args.warmup_steps
    if kind == "constant" and warmup:
        raise UserError(f"warmup_steps {warmup:g}: for lr_scheduler_type constant_with_warmup")
    takes = [
        name
        for name in signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters
        if name not in ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    ]
    if unknown := [name for name in told if name not in takes]:
        known = f"it takes {', '.join(takes)}" if takes else "it takes none"
        raise UserError(f"lr_scheduler_kwargs {unknown[0]!r}: not of {kind}: {known}")
    weight = torch.nn.Parameter(torch.zeros(0))
    try:
        scheduler = get_scheduler(
            kind,
            torch.optim.SGD([weight], lr=args.learning_rate),
            num_warmup_steps=math.ceil(warmup * count if warmup < 1 else warmup),
            num_training_steps=count,
            scheduler_specific_kwargs=told,
        )
        share: Callable[[float], float] = scheduler.lr_lambdas[0]
        share(count)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"lr_scheduler_kwargs {told}: {kind} says: {error}") from error
    return share
