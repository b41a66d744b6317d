"""The contract of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from zoobj.walk import Move, Offset


class Estimator(ABC):
    """Says which offsets to score at a step, and how their losses move the weights.

    It holds no tensor of parameter size; what it remembers are a few scalars and seeds, which the
    run writes to its log.

    Args:
        seed: of the run; directions are derived from it and from the step.
        eps: how far an offset lies from theta.
        learning_rate: how far a step goes. The trainer sets both before each step.
        directions: that a step scores, for methods that average over several.
        normalize: divide differences by their running size, so that ``learning_rate`` is the
            change of a weight in a typical step, whatever the objective's units.

    Attributes:
        takes: settings of ``ZOConfig`` that the method is made with beside those above.
        allows: settings that change how its offsets are scored, where that leaves the method what
            it is. ``tie_breaker``: all offsets are in one round, and a NaN at one that is not the
            first of its group takes that one comparison away. ``race``: losses are compared within
            a group only, so that each may be over another number of examples. ``grow_batch``: so
            may the losses of two steps.
        evaluations: offsets that a step scores in all its rounds, a number of the class or of the
            object; a step that ends early scores fewer.
        derivative: its offsets are directions, and what it is told of them are not losses there but
            the derivatives of the training loss along them, at theta.
        batches: how many minibatches each offset is scored on, for the steps of a cycle.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("normalize",)
    allows: ClassVar[tuple[str, ...]] = ()
    derivative: ClassVar[bool] = False
    evaluations: int
    batches: Sequence[int] = (1,)

    def __init__(
        self,
        *,
        seed: int,
        eps: float,
        learning_rate: float,
        directions: int = 1,
        normalize: bool = True,
    ) -> None:
        self.seed, self.eps, self.learning_rate = seed, eps, learning_rate
        self.directions, self.normalize = directions, normalize

    @abstractmethod
    def offsets(self, step: int) -> list[Offset]:
        """The offsets to score at this step, in order; by default +/- pairs, side by side."""

    def more(self, losses: Sequence[float]) -> list[Offset]:
        """A further round of this step's offsets, given the losses so far; none: that was all."""
        return []

    def groups(self, count: int) -> list[Sequence[int]]:
        """Which of the ``count`` offsets of the last round are compared with each other.

        An example that fails at one of a group is left out of all its losses. Each offset is in
        one group.
        """
        return [range(first, first + 2) for first in range(0, count, 2)]

    @abstractmethod
    def move(self, losses: Sequence[float]) -> Move:
        """What the losses of the offsets just asked for say; empty if they say nothing.

        Args:
            losses: in the order of all rounds, lower is better; NaN where none could be had.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside the settings; JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        if state:
            raise ValueError(f"{self.name} keeps no state, but was given {sorted(state)}")


def pairs(seeds: Sequence[int], eps: float) -> list[Offset]:
    """theta + eps z and theta - eps z for each direction in turn."""
    return [{seed: side} for seed in seeds for side in (eps, -eps)]
