"""zoobj.optim: the torch optimizer against its equations, and its promises to whoever scores."""

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from zoobj import UserError
from zoobj.noise import derive, noise
from zoobj.optim import ZOSGD


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def cnn(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small convolutional net with what is awkward: 4-d and 0-d parameters, and buffers."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    net.register_parameter("temperature", Parameter(torch.tensor(1.0)))
    generator = torch.Generator().manual_seed(0)
    for param in net.parameters():
        if param.dim() > 1:
            param.data.copy_(
                torch.randn(param.shape, generator=generator) / param[0].numel() ** 0.5
            )
        elif param.dim() == 1:
            param.data.fill_(float(param is net[1].weight))
    return net.to(dtype).eval()


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 8 x 8 pictures of a horizontal bar, a vertical bar or neither."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    places = torch.randint(0, 8, (count,), generator=generator)
    for picture, label, place in zip(pictures, labels, places, strict=True):
        if label == 0:
            picture[0, place] += 1
        elif label == 1:
            picture[0, :, place] += 1
    return pictures, labels


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator)
    return x, (x[:, 0] - 2 * x[:, 1] > 0.3).long()


def accuracy(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> float:
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def test_one_step_follows_equation_1() -> None:
    weight = Parameter(torch.tensor([0.5, -0.25, 1.0]))
    opt = ZOSGD([("w", weight)], lr=0.01, eps=0.125, normalize=False, seed=5)
    before = weight.detach().clone()
    target = torch.tensor([1.0, 2.0, 3.0])
    loss = opt.step(lambda: ((weight - target) ** 2).sum())
    z = noise("rademacher", derive(5, 0, 0), "w", 0, 3)
    sides = [float(((before + s * 0.125 * z - target) ** 2).sum()) for s in (1, -1)]
    expected = before - 0.01 * (sides[0] - sides[1]) / (2 * 0.125) * z
    assert torch.allclose(weight, expected, atol=2**-22)
    assert loss == pytest.approx(sum(sides) / 2)


def test_directions_are_averaged() -> None:
    weight = Parameter(torch.zeros(6))
    opt = ZOSGD([("w", weight)], lr=0.5, eps=0.25, directions=3, normalize=False, seed=1)
    slope = torch.arange(6.0) / 8
    opt.step(lambda: weight @ slope)
    z = torch.stack([noise("rademacher", derive(1, 0, k), "w", 0, 6) for k in range(3)])
    expected = -0.5 / 3 * ((z @ slope).unsqueeze(1) * z).sum(0)
    assert torch.allclose(weight, expected, atol=1e-6)


def test_normalised_steps_have_the_size_of_lr_in_any_units() -> None:
    results = []
    for unit in (1.0, 1e6):
        weight = Parameter(torch.zeros(50))
        opt = ZOSGD([weight], lr=1e-3, eps=1e-2)
        opt.step(lambda: unit * weight.sum())  # noqa: B023
        assert torch.allclose(weight.abs(), torch.tensor(1e-3), atol=1e-6)
        for _ in range(20):
            opt.step(lambda: unit * weight.sum())  # noqa: B023
        results.append(weight.detach().clone())
    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_maximize_is_the_same_with_the_sign_turned() -> None:
    a, b = Parameter(torch.ones(9)), Parameter(torch.ones(9))
    down, up = ZOSGD([a], lr=0.01), ZOSGD([b], lr=0.01, maximize=True)
    for _ in range(5):
        loss = down.step(lambda: (a**2).sum())
        score = up.step(lambda: -(b**2).sum())
        assert score == -loss
    assert torch.equal(a, b)


def test_groups_have_their_own_lr_eps_and_decay() -> None:
    body, head = Parameter(torch.full((40,), 0.5)), Parameter(torch.full((40,), 0.5))
    still = Parameter(torch.full((40,), 0.5))
    groups = [
        {"params": [body], "lr": 1e-3},
        {"params": [head], "lr": 1e-2, "eps": 0.5},
        {"params": [still], "lr": 0.1, "weight_decay": 0.5, "eps": 1e-8},
    ]
    opt = ZOSGD(groups, lr=7.0, eps=1e-2)
    spread = []

    def closure() -> float:
        spread.append((float((body - 0.5).abs().max()), float((head - 0.5).abs().max())))
        return float(body.sum() + head.sum())

    opt.step(closure)
    assert spread[0] == pytest.approx((1e-2, 0.5), abs=1e-6)
    assert torch.allclose((body - 0.5).abs(), torch.tensor(1e-3), atol=1e-6)
    assert torch.allclose((head - 0.5).abs(), torch.tensor(1e-2), atol=1e-6)
    assert torch.allclose((still - 0.475).abs(), torch.tensor(0.1), atol=1e-6)


def test_decay_can_pull_to_an_anchor() -> None:
    net = nn.Linear(8, 8)
    base = {name: p.detach().clone() + 0.25 for name, p in net.named_parameters()}
    opt = ZOSGD(net.named_parameters(), lr=0.1, eps=1e-3, weight_decay=5.0, anchor=base)
    # Twice the weights' own scale: the decay alone, since every pair ties.
    for _ in range(20):
        opt.step(lambda: 1.0)
    assert opt.ties == 20
    for name, param in net.named_parameters():
        assert torch.allclose(param, base[name], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moment", [0, 1])
def test_an_exception_in_the_closure_leaves_no_trace(dtype: torch.dtype, moment: int) -> None:
    net = cnn(dtype)
    opt = ZOSGD(net.parameters(), lr=0.01, eps=0.01, directions=2)
    pictures = bars(8, 0)[0].to(dtype)
    opt.step(lambda: net(pictures).float().square().mean())
    before, calls = weights(net), 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise RuntimeError("no answer")
        return 1.0

    with pytest.raises(RuntimeError, match=r"no answer"):
        opt.step(closure)
    assert same(weights(net), before)

    def interrupted() -> None:
        with opt.ask():
            assert not same(weights(net), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(weights(net), before)


def test_scores_already_paid_for_are_kept_when_the_closure_fails() -> None:
    weight = Parameter(torch.zeros(5))
    opt = ZOSGD([weight], lr=0.01, directions=2)
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError("scorer is down")
        return float(weight.sum())

    with pytest.raises(TimeoutError):
        opt.step(closure)
    opt.step(closure)
    assert (calls, opt.steps) == (5, 1)  # two before, the one that failed, and the two missing


def test_ask_and_tell_make_the_same_step_as_a_closure() -> None:
    a, b = cnn(), cnn()
    pictures, labels = bars(64, 1)
    closed = ZOSGD(a.named_parameters(), lr=0.01, eps=0.01, directions=2)
    open_ = ZOSGD(b.named_parameters(), lr=0.01, eps=0.01, directions=2)

    def loss(net: nn.Module) -> float:
        return float(nn.functional.cross_entropy(net(pictures), labels))

    for _ in range(3):
        closed.step(lambda: loss(a))
        told = []
        for _ in range(4):
            at_theta = weights(b)
            with open_.ask() as trial:
                told.append((trial, loss(b)))
            assert same(weights(b), at_theta)
        moved = [open_.tell(trial, value) for trial, value in reversed(told)]  # in any order
        assert moved == [False, False, False, True]
        assert same(weights(a), weights(b))
    assert open_.steps == 3


def test_ask_goes_round_what_has_not_been_told() -> None:
    opt = ZOSGD([Parameter(torch.zeros(3))], directions=2)

    def ask() -> int:
        with opt.ask() as trial:
            return trial.index

    assert [ask() for _ in range(5)] == [0, 1, 2, 3, 0]
    with opt.ask() as trial:
        assert trial.index == 1
        with pytest.raises(RuntimeError, match=r"leave its block first"), opt.ask():
            pass
        opt.tell(trial, 1.0)
        with pytest.raises(ValueError, match=r"not waiting for a score"):
            opt.tell(trial, 1.0)
    assert [ask() for _ in range(3)] == [2, 3, 0]


def test_a_step_told_within_the_block_is_whole_after_it() -> None:
    weight = Parameter(torch.zeros(64))
    opt = ZOSGD([weight], lr=1e-3, eps=0.5)
    for _ in range(2):
        with opt.ask() as trial:
            opt.tell(trial, float(weight.sum()))
    assert torch.allclose(weight.abs(), torch.tensor(1e-3), atol=1e-6)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, torch.tensor(math.nan)])
def test_what_could_not_be_scored_moves_nothing(bad: object) -> None:
    weight = Parameter(torch.ones(5))
    opt = ZOSGD([weight], lr=0.1, weight_decay=0.1)
    values = iter([1.0, bad])
    assert opt.step(lambda: next(values)) == 1.0
    assert (opt.failed, opt.ties, opt.steps) == (1, 0, 1)
    assert torch.equal(weight, torch.ones(5))
    assert math.isnan(opt.step(lambda: None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(dtype: torch.dtype) -> None:
    def fresh() -> tuple[Parameter, ZOSGD]:
        weight = Parameter(torch.linspace(-0.9, 0.97, 30).to(dtype))
        return weight, ZOSGD([("w", weight)], lr=0.01, directions=2, seed=3)

    def run(weight: Parameter, opt: ZOSGD, steps: int) -> None:
        for _ in range(steps):
            opt.step(lambda: (weight.detach().double() ** 3).sum())

    whole, opt = fresh()
    run(whole, opt, 4)
    with opt.ask() as trial:
        opt.tell(
            trial, float((whole.detach().double() ** 3).sum())
        )  # one of four scores is in, and in the state
    state = pickle.loads(pickle.dumps(opt.state_dict()))
    resumed = fresh()[0]
    resumed.data.copy_(whole.data)
    other = ZOSGD([("w", resumed)], lr=99.0, directions=2)
    other.load_state_dict(state)
    run(whole, opt, 3)
    run(resumed, other, 3)
    assert torch.equal(whole, resumed)
    assert other.steps == 7
    with pytest.raises(ValueError, match=r"2 directions"):
        ZOSGD([resumed]).load_state_dict(state)


def test_torch_schedulers_drive_lr(recwarn: pytest.WarningsRecorder) -> None:
    weight = Parameter(torch.zeros(8))
    opt = ZOSGD([weight], lr=1e-2, eps=0.1, normalize=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    sizes = []
    for _ in range(3):
        before = weight.detach().clone()
        for _ in range(2):
            with opt.ask() as trial:
                value = float(weight[0])
            opt.tell(trial, value)
        schedule.step()
        sizes.append(float((weight.detach() - before).abs().max()))
    assert sizes == pytest.approx([1e-2, 5e-3, 2.5e-3], rel=1e-3)
    assert not recwarn.list


def test_a_logistic_regression_learns_its_accuracy() -> None:
    train, test = moons(400, 0), moons(1000, 1)
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    opt = ZOSGD(model.parameters(), lr=0.03, eps=0.2, maximize=True)
    for _ in range(150):
        opt.step(lambda: accuracy(model, train))
    assert accuracy(model, test) > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolutional_net_learns_its_loss(dtype: torch.dtype) -> None:
    net = cnn(dtype)
    pictures, labels = bars(128, 0)
    opt = ZOSGD(net.parameters(), lr=0.01, eps=0.05, directions=4)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(net(pictures.to(dtype)).float(), labels)

    for _ in range(400):
        opt.step(loss)
    fresh = bars(400, 1)
    assert accuracy(net, (fresh[0].to(dtype), fresh[1])) > 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_may_grow_from_nothing(dtype: torch.dtype) -> None:
    """Far beyond the range that the grid of a zero tensor has at the start."""
    weight = Parameter(torch.zeros(40, dtype=dtype))
    opt = ZOSGD([weight], lr=0.25, eps=2.0, directions=4)
    for _ in range(400):
        opt.step(lambda: (weight.detach().double() - 30).square().sum())
    assert float((weight.detach().double() - 30).abs().mean()) < 3


def test_growth_ends_where_the_dtype_ends() -> None:
    weight = Parameter(torch.zeros(3, dtype=torch.float16))
    opt = ZOSGD([weight], eps=1e5)
    with pytest.raises(UserError, match=r"0\.0 would grow beyond what torch\.float16 holds"):
        opt.step(lambda: 0.0)
    assert torch.equal(weight, torch.zeros_like(weight))


def test_bad_settings_are_refused() -> None:
    weight = Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"eps 0\.0: above 0"):
        ZOSGD([weight], eps=0.0)
    with pytest.raises(ValueError, match=r"lr -1\.0: 0 or more"):
        ZOSGD([weight], lr=-1.0)
    with pytest.raises(ValueError, match=r"directions 0: at least 1"):
        ZOSGD([weight], directions=0)
    with pytest.raises(UserError, match=r"noise 'pink': choose rademacher, gaussian, sphere"):
        ZOSGD([weight], noise="pink")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"anchor of parameter 0\.0 \[3\]: the base has no such"):
        ZOSGD([weight], anchor={})
    with pytest.raises(TypeError, match=r"needs a closure"):
        ZOSGD([weight]).step()
