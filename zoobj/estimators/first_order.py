"""The contract of a first-order method: a reference with gradients, for differentiable objectives.

    theta <- theta - lr u(grad L(theta; batch))

where u is the method's. A step is a forward and a backward pass; there is no Move, since a gradient
is no function of a seed: such a run can't be replayed from its log.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

Loss = Callable[[], Tensor]
"""A scalar to be minimised, computed anew with its graph."""


class FirstOrder(ABC):
    """Moves the weights by the gradient of a loss.

    Args:
        params: what is tuned; those that need no gradient are left out.
        learning_rate: of the next step; may be set before each.
        max_grad_norm: gradients are scaled down to this norm, over all weights together.
        max_grad_value: then each of their elements is cut off at +/- this.
    """

    name: ClassVar[str]

    def __init__(
        self,
        params: Iterable[Parameter],
        learning_rate: float,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
    ):
        self.params = [param for param in params if param.requires_grad]
        self.learning_rate = learning_rate
        self.max_grad_norm, self.max_grad_value = max_grad_norm, max_grad_value

    @abstractmethod
    def step(self, loss: Loss) -> float:
        """Move once; returns the loss before it. Leaves no gradient behind."""


class WithOptimizer(FirstOrder):
    """A method of torch's: all gradients are there at once, then its optimizer steps."""

    optimizer: torch.optim.Optimizer

    def step(self, loss: Loss) -> float:
        value = loss()
        value.backward()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        if self.max_grad_value is not None:
            torch.nn.utils.clip_grad_value_(self.params, self.max_grad_value)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(value.detach())


class Fused(FirstOrder):
    """A method that moves each weight as soon as its gradient is there, and drops the gradient.

    The hook is torch's ``register_post_accumulate_grad_hook``: it is called once in a backward
    pass for each parameter, however often that is used. So at no time is there more than about
    one parameter's gradient. The norm of all gradients is known at the end of a pass only, so that
    ``max_grad_norm`` takes a pass of its own before: twice the time.
    """

    def step(self, loss: Loss) -> float:
        self.begin()
        scale = self._scale(loss) if self.max_grad_norm is not None else 1.0
        value = loss()
        with self._each(lambda param, grad: self._apply(param, grad.mul_(scale))):
            value.backward()
        return float(value.detach())

    def begin(self) -> None:
        """Called before each step."""

    @abstractmethod
    def update(self, param: Parameter, grad: Tensor) -> Tensor:
        """u, of the parameter's shape; ``grad`` may be overwritten."""

    @torch.no_grad()
    def _apply(self, param: Parameter, grad: Tensor) -> None:
        if self.max_grad_value is not None:
            grad.clamp_(-self.max_grad_value, self.max_grad_value)
        param.add_(self.update(param, grad), alpha=-self.learning_rate)

    def _scale(self, loss: Loss) -> float:
        """What brings the norm of all gradients down to the largest allowed; as torch clips."""
        assert self.max_grad_norm is not None
        squares: list[float] = []
        with self._each(lambda param, grad: squares.append(float(grad.double().square().sum()))):
            loss().backward()
        return min(1.0, self.max_grad_norm / (math.sqrt(math.fsum(squares)) + 1e-6))

    @contextmanager
    def _each(self, act: Callable[[Parameter, Tensor], None]) -> Iterator[None]:
        """Within the block, each gradient is handed over once it is complete, and freed."""

        def hook(param: Tensor) -> None:
            grad = param.grad
            assert isinstance(param, Parameter)
            assert grad is not None
            param.grad = None
            act(param, grad)

        handles: list[RemovableHandle] = []
        try:
            for param in self.params:
                handles.append(param.register_post_accumulate_grad_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()
