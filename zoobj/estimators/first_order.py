"""The contract of a first-order method: a reference with gradients, for differentiable objectives.

    theta <- theta - lr w (theta - anchor) - lr u(grad L(theta; batch))

where u is the method's, and w its decoupled weight decay. A step is a forward and a backward pass;
there is no Move, since a gradient is no function of a seed: such a run can't be replayed from its
log.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

Loss = Callable[[], Tensor | Iterable[Tensor]]
"""A scalar to be minimised, computed anew with its graph; or micro-batches' shares of it."""


class FirstOrder(ABC):
    """Moves the weights by the gradient of a loss.

    Args:
        params: what is tuned; those that need no gradient are left out.
        learning_rate: of the next step; may be set before each.
        max_grad_norm: gradients are scaled down to this norm, over all weights together.
        max_grad_value: then each of their elements is cut off at +/- this.
        weight_decay: w.
        anchor: where decay pulls each of the params, if not to 0.

    Attributes:
        takes: settings of ``ZOConfig`` that the method is made with beside those above.
        evaluations, batches: as an Estimator's: an example that goes forward and backward counts as
            one that is scored.
        fitting: runs a pass over the micro-batches, which moves nothing yet; the trainer has it run
            again, in smaller ones, where memory runs out.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    evaluations: ClassVar[int] = 1
    batches: ClassVar[Sequence[int]] = (1,)

    def __init__(
        self,
        params: Iterable[Parameter],
        learning_rate: float,
        max_grad_norm: float | None = None,
        max_grad_value: float | None = None,
        weight_decay: float = 0.0,
        anchor: Mapping[Parameter, Tensor] | None = None,
    ):
        self.params = [param for param in params if param.requires_grad]
        self.learning_rate = learning_rate
        self.max_grad_norm, self.max_grad_value = max_grad_norm, max_grad_value
        self.weight_decay, self.anchor = weight_decay, anchor
        self.fitting: Callable[[Callable[[], float]], float] = lambda gather: gather()

    @abstractmethod
    def step(self, loss: Loss) -> float:
        """Move once; returns the loss before it. Leaves no gradient behind."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next step depends on beside weights and settings, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up where ``state_dict`` left off."""
        if state:
            raise ValueError(f"{self.name} keeps no state, but was given {sorted(state)}")

    @torch.no_grad()
    def _decay(self, param: Parameter) -> None:
        rate = self.learning_rate * self.weight_decay
        if rate and self.anchor is None:
            param.mul_(1.0 - rate)
        elif rate and self.anchor is not None:
            param.lerp_(self.anchor[param].to(param.device, param.dtype), rate)


class WithOptimizer(FirstOrder):
    """A method of torch's: all gradients are there at once, then its optimizer steps."""

    optimizer: torch.optim.Optimizer

    def step(self, loss: Loss) -> float:
        try:
            value = self.fitting(lambda: self._gather(loss))
            self._clip()
            for param in self.params:
                self._decay(param)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return value

    def _gather(self, loss: Loss) -> float:
        """Add up all gradients; what a pass that was cut short has left is dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part in _parts(loss()):
            part.backward()
            value += float(part.detach())
        return value

    def _clip(self) -> None:
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        if self.max_grad_value is not None:
            torch.nn.utils.clip_grad_value_(self.params, self.max_grad_value)

    def state_dict(self) -> dict[str, Tensor]:
        kept = self.optimizer.state_dict()["state"].items()
        return {f"{number}.{name}": x for number, state in kept for name, x in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, _, name = key.partition(".")
            kept.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})


class Fused(FirstOrder):
    """A method that moves each weight as soon as its gradient is there, and drops the gradient.

    The hook is torch's ``register_post_accumulate_grad_hook``: it is called once in a backward
    pass for each parameter, however often that is used. So at no time is there more than about
    one parameter's gradient. The norm of all gradients is known at the end of a pass only, so that
    ``max_grad_norm`` takes a pass of its own before: twice the time. For the same reason all
    micro-batches are in one graph (so the trainer checkpoints its layers: else their activations
    would be alive together); and where memory runs out some weights have moved, so that a step
    can't be tried again.
    """

    def step(self, loss: Loss) -> float:
        self.begin()
        scale = self._scale(loss) if self.max_grad_norm is not None else 1.0
        value = _whole(loss())
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
        change = self.update(param, grad)
        self._decay(param)
        param.add_(change, alpha=-self.learning_rate)

    def _scale(self, loss: Loss) -> float:
        """What brings the norm of all gradients down to the largest allowed; as torch clips."""
        assert self.max_grad_norm is not None
        squares: list[float] = []
        with self._each(lambda param, grad: squares.append(float(grad.double().square().sum()))):
            _whole(loss()).backward()
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


def _parts(loss: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [loss] if isinstance(loss, Tensor) else loss


def _whole(loss: Tensor | Iterable[Tensor]) -> Tensor:
    first, *others = _parts(loss)
    return sum(others, start=first)
