"""The first-order references beside torch's own optimizers and slow twins, step by step."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from zoobj.estimators.adalomo import AdaLomo
from zoobj.estimators.first_order import FirstOrder
from zoobj.estimators.fo_adam import FOAdam
from zoobj.estimators.fo_sgd import FOSGD
from zoobj.estimators.lomo import LOMO

METHODS = [FOSGD, FOAdam, LOMO, AdaLomo]


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Two layers, the first used twice (tied), one parameter frozen."""
    draw = torch.Generator().manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    module.to(dtype)
    for param in module.parameters():
        param.data = torch.randn(param.shape, generator=draw, dtype=dtype) / 2
    module[2].bias.requires_grad = False
    return module


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 6, generator=draw, dtype=dtype),
            torch.randint(3, (8,), generator=draw),
        )
        for _ in range(count)
    ]


def loss_of(module: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        hidden = module[1](module[0](batch[0]))
        return torch.nn.functional.cross_entropy(module[2](module[0](hidden)), batch[1])

    return loss


def run(method: type[FirstOrder], steps: int = 100, **told: Any) -> list[list[Tensor]]:
    """The weights after each step."""
    module, found = net(), []
    made = method(module.parameters(), learning_rate=0.05, **told)
    for batch in batches(steps):
        made.step(loss_of(module, batch))
        found.append([param.detach().clone() for param in module.parameters()])
        assert all(param.grad is None for param in module.parameters())
    return found


def twin(
    update: Callable[[int, int, Tensor, Tensor], Tensor],
    norm: float | None = None,
    value: float | None = None,
    steps: int = 100,
) -> list[list[Tensor]]:
    """Explicit gradients, torch's own clipping, and a rule update(step, number, weights, grad)."""
    module, found = net(), []
    tuned = [param for param in module.parameters() if param.requires_grad]
    for step, batch in enumerate(batches(steps)):
        grads = torch.autograd.grad(loss_of(module, batch)(), tuned)
        for param, grad in zip(tuned, grads, strict=True):
            param.grad = grad
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(tuned, norm)
        if value is not None:
            torch.nn.utils.clip_grad_value_(tuned, value)
        for number, param in enumerate(tuned):
            assert param.grad is not None
            param.data -= 0.05 * update(step, number, param.data, param.grad)
            param.grad = None
        found.append([param.detach().clone() for param in module.parameters()])
    return found


def close(a: list[list[Tensor]], b: list[list[Tensor]], tolerance: float = 1e-12) -> None:
    for step, (xs, ys) in enumerate(zip(a, b, strict=True)):
        for x, y in zip(xs, ys, strict=True):
            assert torch.allclose(x, y, rtol=0, atol=tolerance), step


CLIPS = [{}, {"max_grad_norm": 0.1}, {"max_grad_value": 0.02}]


@pytest.mark.parametrize("clip", CLIPS, ids=["plain", "norm", "value"])
@pytest.mark.parametrize("method", [FOSGD, LOMO])
def test_gradient_descent_is_its_twin(method: type[FirstOrder], clip: dict[str, float]) -> None:
    norm, value = clip.get("max_grad_norm"), clip.get("max_grad_value")
    close(run(method, **clip), twin(lambda step, number, weights, grad: grad, norm, value))


def test_lomo_is_fo_sgd_step_by_step() -> None:
    close(run(LOMO), run(FOSGD), 1e-15)


def test_adam_is_its_twin() -> None:
    m: dict[int, Tensor] = {}
    v: dict[int, Tensor] = {}

    def update(step: int, number: int, weights: Tensor, grad: Tensor) -> Tensor:
        m[number] = 0.9 * m.get(number, torch.zeros_like(grad)) + 0.1 * grad
        v[number] = 0.999 * v.get(number, torch.zeros_like(grad)) + 0.001 * grad**2
        t = step + 1
        return (m[number] / (1 - 0.9**t)) / ((v[number] / (1 - 0.999**t)).sqrt() + 1e-8)

    close(run(FOAdam), twin(update), 1e-10)


def test_adalomo_is_its_twin() -> None:
    """Dense loops over rows and columns."""
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}

    def update(step: int, number: int, weights: Tensor, grad: Tensor) -> Tensor:
        beta = 1 - (step + 1) ** -0.8
        square = grad.float() ** 2 + 1e-30
        if grad.ndim == 1:
            old = rows.get(number, torch.zeros_like(square))
            rows[number] = v = beta * old + (1 - beta) * square
        else:
            r = torch.stack([row.mean() for row in square])
            c = torch.stack([column.mean() for column in square.T])
            rows[number] = beta * rows.get(number, torch.zeros_like(r)) + (1 - beta) * r
            columns[number] = beta * columns.get(number, torch.zeros_like(c)) + (1 - beta) * c
            v = torch.outer(rows[number], columns[number]) / rows[number].mean()
        u = grad.float() / v.sqrt()
        rms = (u**2).mean().sqrt()
        u = u / max(1.0, float(rms))
        return u.double() * max(1e-3, float((weights.float() ** 2).mean().sqrt()))

    close(run(AdaLomo), twin(update), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stays(method: type[FirstOrder]) -> None:
    before, after = net(), run(method, 3)[-1]
    assert torch.equal(before[2].bias, after[-1])
    assert not torch.equal(before[0].weight, after[0])


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: type[FirstOrder]) -> None:
    module, batch = net(), batches(1)[0]
    made = method(module.parameters(), learning_rate=0.05)
    losses = [made.step(loss_of(module, batch)) for _ in range(100)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("method", [LOMO, AdaLomo])
def test_one_gradient_at_a_time(method: type[FirstOrder]) -> None:
    """Of 20 equal layers, gradients of three at most are alive together."""
    layers = [torch.nn.Linear(50, 50, bias=False) for _ in range(20)]
    module = torch.nn.Sequential(*layers)
    x, alive = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)), []
    made = method(module.parameters(), learning_rate=1e-3)
    plain = made._apply

    def spied(param: Parameter, grad: Tensor) -> None:
        alive.append(sum(p.grad is not None for p in module.parameters()))
        plain(param, grad)

    made._apply = spied
    made.step(lambda: module(x).square().mean())
    assert len(alive) == 20
    assert max(alive) <= 2


def test_a_failing_loss_leaves_no_hook() -> None:
    module = net()
    made = LOMO(module.parameters(), learning_rate=0.1)
    before = copy.deepcopy(module.state_dict())

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        made.step(lambda: Fails.apply(module[0].weight.sum()))
    module[0].weight.sum().backward()
    assert module[0].weight.grad is not None, "the hook would have taken it"
    assert all(torch.equal(module.state_dict()[name], x) for name, x in before.items())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 10.0))
def test_the_norm_is_clipped_as_torch_does(seed: int, norm: float) -> None:
    modules = [net(seed), net(seed)]
    for method, module in zip((LOMO, FOSGD), modules, strict=True):
        method(module.parameters(), learning_rate=0.1, max_grad_norm=norm).step(
            loss_of(module, batches(1)[0])
        )
    for x, y in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(method: type[FirstOrder]) -> None:
    module, batch = net(dtype=torch.bfloat16), batches(1, torch.bfloat16)[0]
    made = method(module.parameters(), learning_rate=0.1)
    losses = [made.step(loss_of(module, batch)) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(param.dtype is torch.bfloat16 for param in module.parameters())
    gc.collect()
