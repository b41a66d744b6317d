"""A step by gradients: forward, backward, move. What ``Probe`` is for methods that only score.

A gradient is no function of a seed, so such a step is not in the log as a move: it can be done
again from the weights before it, but neither be replayed without data nor taken back. A run that
has such steps keeps its best weights on disk; see ``Track``.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from zoobj.accounting import counted
from zoobj.assemble import is_first_order, make_first_order, make_method
from zoobj.config import DIFFERENTIABLE, ZOConfig
from zoobj.data import minibatch
from zoobj.environment import out_of_memory
from zoobj.errors import UserError
from zoobj.estimators.base import Estimator
from zoobj.estimators.first_order import Fused
from zoobj.files import jsonable
from zoobj.log import Line
from zoobj.objective import Objective
from zoobj.parameters import base_anchor, moved
from zoobj.probe import Probe, Probed, decayed
from zoobj.run import RunFolder
from zoobj.scoring import Scorer
from zoobj.scoring.differentiable import (
    checkpointable,
    derivative,
    micro_batches,
    training_losses,
)
from zoobj.service import Service
from zoobj.task import Example
from zoobj.ties import TieBreaker
from zoobj.track import Track
from zoobj.walk import Offset


class GradientStep:
    """Moves weights by the gradient of the mean negative log-likelihood of gold answers.

    Args:
        args: the settings.
        objective: what is measured; its gradient, or that of ``args.surrogate``, is used.
        track, scorer: of the model.
        examples: of the train split.

    Attributes:
        params: what it moves, by name.
        method: how.

    Raises:
        UserError: an objective without a gradient, or nothing to move.
    """

    def __init__(
        self,
        args: ZOConfig,
        objective: Objective,
        track: Track,
        scorer: Scorer,
        examples: list[Example],
    ):
        if args.fo_layers is None:
            check_differentiable(args, objective)
        self.args, self.objective = args, objective
        self.track, self.scorer, self.examples = track, scorer, examples
        self.params = moved(args, scorer.model)
        goals = base_anchor(args, self.params)
        anchor = None if goals is None else {self.params[name]: goals[name] for name in goals}
        self.method = make_first_order(args, self.params.values(), anchor)
        self.method.fitting = scorer.fitting

    def __call__(self, run: RunFolder, step: int, digest: str | None) -> Probed:
        """Move, and say so; what it says is not in the log yet: see ``Probe``."""
        rate, size = self.method.learning_rate, self.args.per_device_train_batch_size
        told = self.move(step, rate)
        line = _line(step, digest, self.objective, told["loss"], size, rate)
        line |= {"evals": run.evals + size, "gradient": told}
        return Probed(line, [], [], [])

    def move(self, step: int, learning_rate: float) -> Line:
        """Move by the gradient on the minibatch of a step.

        Returns:
            For the log: the ``loss`` before, in nats, the ``learning_rate``, and the ``batch_size``
            of the micro-batches, on which the rounding depends.
        """
        size = self.args.per_device_train_batch_size
        examples = minibatch(self.examples, size, self.args.seed, step)
        self.method.learning_rate = learning_rate
        self.track.at = None  # until the step is complete
        try:
            with self._alone():
                loss = self.method.step(lambda: self._losses(examples))
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(self.method, Fused) and out_of_memory(error)):
                raise
            rows = min(size, self.scorer.batch_size)
            less = f"--per_device_eval_batch_size {rows // 2}, or " if rows > 1 else ""
            raise UserError(
                f"out of memory: {self.method.name} moves weights while it goes backward, and "
                f"can't try again with less: {less}a run with --method fo-sgd"
            ) from error
        batch_size = self.scorer.batch_size
        return {"loss": loss, "learning_rate": learning_rate, "batch_size": batch_size}

    def repeat(self, step: int, told: Line) -> None:
        """Move as the log says that it was done: in the same micro-batches, to the same bits."""
        now, self.scorer.batch_size = self.scorer.batch_size, told["batch_size"]
        self.move(step, told["learning_rate"])
        self.scorer.batch_size = min(now, self.scorer.batch_size)

    def resume(self, line: Line) -> None:
        """Nothing: what the method remembers came with the weights."""

    def _losses(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        checkpointing = self.args.gradient_checkpointing or self._in_one_graph(examples)
        for loss in training_losses(self.scorer, examples, checkpointing):
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"the loss is {loss.item()}: lower the learning rate, or set max_grad_norm"
                )
            yield loss

    def _in_one_graph(self, examples: Sequence[Example]) -> bool:
        """Whether the activations of several micro-batches would be alive together, which take more
        than a fused method saves.
        """
        several = isinstance(self.method, Fused) and micro_batches(self.scorer, examples) > 1
        return several and bool(checkpointable(self.scorer.model))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the block, only what is moved needs gradients: below it there is no graph."""
        mine = {id(param) for param in self.params.values()}
        others = [
            p for p in self.scorer.model.parameters() if p.requires_grad and id(p) not in mine
        ]
        for param in others:
            param.requires_grad_(False)
        try:
            yield
        finally:
            for param in others:
                param.requires_grad_(True)


class ForwardStep:
    """A step of a method that is told derivatives along directions, where others are told scores.

    It is a move like theirs. Nothing in it is paid for, so one that was cut off is done once more.

    Args:
        args, objective, track, scorer, examples: as for ``GradientStep``.
        method: says which directions, and what the derivatives along them mean.

    Raises:
        UserError: an objective without a gradient.
    """

    def __init__(
        self,
        args: ZOConfig,
        objective: Objective,
        method: Estimator,
        track: Track,
        scorer: Scorer,
        examples: list[Example],
    ):
        check_differentiable(args, objective)
        self.args, self.objective, self.method = args, objective, method
        self.track, self.scorer, self.examples = track, scorer, examples

    def __call__(self, run: RunFolder, step: int, digest: str | None) -> Probed:
        """Differentiate at the weights as they are; the move waits to be made: see ``Probe``."""
        method, size = self.method, self.args.per_device_train_batch_size
        examples = minibatch(self.examples, size, self.args.seed, step)
        self.track.walk.goto({})
        told = [self._along(offset, examples) for offset in method.offsets(step)]
        slopes = [slope for _, slope in told]
        line = _line(step, digest, self.objective, told[0][0], size, method.learning_rate)
        line |= {
            "move": method.move(slopes),
            "derivatives": jsonable(slopes),
            "evals": run.evals + len(told) * size,
            "state": method.state_dict(),
            **decayed(self.args, step, method.learning_rate),
        }
        return Probed(line, [], [], [])

    def resume(self, line: Line) -> None:
        """Take up where the step of this line left off."""
        self.method.load_state_dict(line["state"])

    def _along(self, offset: Offset, examples: Sequence[Example]) -> tuple[float, float]:
        """The loss, and its derivative along a direction."""
        ((seed, scale),) = offset.items()
        direction = self.track.walk.direction(seed)
        losses = partial(training_losses, self.scorer, examples)
        loss, slope = self.scorer.fitting(lambda: derivative(self.scorer.model, losses, direction))
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss}: lower the learning rate")
        return loss, scale * slope


class Hybrid:
    """A step of a method that scores, and one by gradients: each moves its own layers.

    Args:
        probe: of the method, whose walk has the rest of the model.
        gradient: of the last layers.
    """

    def __init__(self, probe: Probe | ForwardStep, gradient: GradientStep):
        self.probe, self.gradient = probe, gradient
        self.method, self.args = probe.method, probe.args

    def __call__(self, run: RunFolder, step: int, digest: str | None) -> Probed:
        """Both measure at the weights before the step."""
        probed = self.probe(run, step, digest)
        self.gradient.track.walk.goto({})
        # The course of the learning rate is the same for both.
        rate = self.args.fo_learning_rate * self.method.learning_rate / self.args.learning_rate
        probed.line["gradient"] = self.gradient.move(step, rate)
        probed.line["evals"] += self.args.per_device_train_batch_size
        return probed

    def resume(self, line: Line) -> None:
        """Take up where the step of this line left off."""
        self.probe.resume(line)


def make_step(
    args: ZOConfig,
    objective: Objective,
    track: Track,
    scorer: Scorer,
    service: Service,
    examples: list[Example],
    ties: TieBreaker | None = None,
) -> Probe | ForwardStep | GradientStep | Hybrid:
    """What makes the steps of a run, from a step's number to the line of the log."""
    by_gradients = is_first_order(args)
    if by_gradients or args.fo_layers is not None:
        track.gradient = GradientStep(args, objective, track, scorer, examples)
    if by_gradients:
        assert track.gradient is not None
        return track.gradient
    method = make_method(args)
    probe: Probe | ForwardStep
    if method.derivative:
        probe = ForwardStep(args, objective, method, track, scorer, examples)
    else:
        probe = Probe(args, objective, method, track, scorer, service, examples, ties)
    return probe if track.gradient is None else Hybrid(probe, track.gradient)


def _line(
    step: int, digest: str | None, objective: Objective, loss: float, size: int, rate: float
) -> Line:
    """What the log says of a step that scores nothing, as if it did, but for its evaluations."""
    return {
        "step": step,
        "move": [],
        "values": [-loss] if objective.name == DIFFERENTIABLE else [],
        "n": size,
        "failed": 0,
        "flips": 0,
        "tie": False,
        "eps": 0.0,
        "learning_rate": rate,
        "checksum": digest,
        "signal": counted([]),
        "state": {},
    }


def check_differentiable(args: ZOConfig, objective: Objective) -> None:
    """Refuse a first-order method under an objective that has no gradient.

    Raises:
        UserError: what to use instead.
    """
    if objective.name != DIFFERENTIABLE and args.surrogate is None:
        raise UserError(
            f"method {args.method!r} needs a gradient, and objective {objective.name!r} has none: "
            f"--objective {DIFFERENTIABLE}, a zo- method, or --surrogate {DIFFERENTIABLE} to train "
            "on that and be measured by this"
        )
