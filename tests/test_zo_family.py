"""The zeroth-order family against dense twins, by its means, in runs; faults of the originals."""

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
import torch
from dense import BATCH, ROWS, SEED, SIZE, START, logistic, moved, slope, squares
from logs import untimed
from small import Interrupting

from zoobj import UserError, Walk, ZOConfig, ZOTrainer
from zoobj.assemble import make_method, method_class
from zoobj.estimators import CATALOGUE, Estimator
from zoobj.estimators.one_point import OnePoint
from zoobj.estimators.population import Population
from zoobj.estimators.trail import Trail
from zoobj.estimators.zo_adam import ZOAdam
from zoobj.estimators.zo_conservative import ZOConservative
from zoobj.estimators.zo_momentum import ZOMomentum
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.estimators.zo_sign import ZOSign
from zoobj.estimators.zo_svrg import ZOSVRG
from zoobj.interrupts import Interrupted
from zoobj.noise import derive, noise
from zoobj.stopping import budget
from zoobj.testing import taken
from zoobj.walk import Offset

TWINS: list[tuple[Any, Any, float, dict[str, Any]]] = [
    (ZOSGD, dense.SGD, 0.01, {}),
    (ZOSGD, dense.SGD, 0.01, {"q": 3, "normalize": True}),
    (ZOSGD, dense.SGD, 0.01, {"q": 4, "one_sided": True}),
    (ZOSGD, dense.SGD, 0.01, {"q": 4, "one_sided": True, "normalize": True}),
    (ZOSign, dense.Sign, 0.01, {}),
    (ZOMomentum, dense.Momentum, 0.001, {"q": 2}),
    (ZOMomentum, dense.Momentum, 0.01, {"normalize": True}),
    (ZOAdam, dense.Adam, 0.01, {}),
    (ZOAdam, dense.Adam, 0.01, {"one_sided": True}),
    (ZOConservative, dense.Conservative, 0.02, {"q": 2}),
    (ZOConservative, dense.Conservative, 0.01, {"normalize": True}),
    (OnePoint, dense.OnePoint, 1e-4, {"q": 2}),
    (OnePoint, dense.OnePoint, 0.001, {"normalize": True}),
    (ZOSVRG, dense.SVRG, 0.002, {"q": 2}),
    (ZOSVRG, dense.SVRG, 0.002, {"normalize": True}),
    (Population, dense.Population, 0.01, {"q": 4}),
    (Population, dense.Population, 0.01, {"q": 4, "shaping": "zscore"}),
    (Population, dense.Population, 0.01, {"q": 1, "shaping": "sign"}),
]
OWN_SCALE = (ZOSign, ZOAdam, Population)  # have no use for ``normalize``
ALL = [name for name in sorted(CATALOGUE) if issubclass(method_class(name), Estimator)]
SCORED = [name for name in ALL if not method_class(name).derivative]  # at offsets, by the walk


def made(kind: Any, lr: float, eps: float = 0.01, **settings: Any) -> Any:
    """A method; its trail, if it has one, is never cut."""
    told = {"q": "directions"}
    named = {told.get(key, key): value for key, value in settings.items()}
    if kind not in OWN_SCALE:
        named.setdefault("normalize", False)
    method = kind(seed=SEED, eps=eps, learning_rate=lr, **named)
    if hasattr(method, "trail"):
        method.trail.kept = 10**6
    return method


# Twins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [squares, logistic])
@pytest.mark.parametrize(("kind", "twin", "lr", "settings"), TWINS)
def test_a_hundred_steps_are_the_dense_twin_s(
    kind: Any, twin: Any, lr: float, settings: dict[str, Any], loss: Any
) -> None:
    found = dense.path(made(kind, lr, **settings), loss, 100)
    wanted = twin(lr, 0.01, **settings).path(loss, 100)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)
    moves = np.abs(np.diff([START, *wanted], axis=0)).max(1)
    assert (moves > 0).mean() > 0.5  # they do move
    if kind is not OnePoint:
        rows = np.arange(ROWS)
        assert loss(wanted[-1], rows) < loss(START, rows)


@pytest.mark.parametrize(("kind", "twin", "lr", "settings"), TWINS[::3])
def test_and_so_they_are_through_the_walk(
    kind: Any, twin: Any, lr: float, settings: dict[str, Any]
) -> None:
    """In float32, to the walk's rounding."""
    weights = torch.nn.Parameter(torch.tensor(START, dtype=torch.float32))
    walk, method = Walk([("weights", weights)]), made(kind, lr, **settings)

    def here() -> Any:
        return weights.detach().double().numpy()

    for step in range(30):
        rows = dense.batch(step, BATCH * method.batches[step % len(method.batches)])

        def score(number: int, offset: Offset, rows: Any = rows) -> float:
            walk.goto(offset)
            return squares(here(), rows)

        walk.commit(taken(method, step, score)[1])
    walk.goto({})
    wanted = twin(lr, 0.01, **settings).path(squares, 30)[-1]
    np.testing.assert_allclose(here(), wanted, atol=1e-4)


def test_momentum_forgets_what_is_negligible() -> None:
    """The stated bound: 1 % of the sum of all weights."""
    for beta in (0.1, 0.5, 0.9, 0.99):
        trail = Trail(beta)
        for step in range(1000):
            trail.add([(step, 1.0)])
        kept = sum(weight for _, weight in trail.sum())
        assert 0.99 <= kept * (1 - beta) < 1
        assert len(trail.sum()) == trail.kept
        assert beta ** (trail.kept - 1) > 0.01 or trail.kept == 1


def test_adam_s_scalar_is_close_to_a_dense_second_moment() -> None:
    """Four directions: each weight's own root is within 3 % of it, as documented."""
    rng, decay = np.random.default_rng(1), 0.999
    size, steps, q = 200, 8000, 4
    own, scalar = np.zeros(size), 0.0
    for _ in range(steps):
        g = rng.normal(size=q)
        gradient = g @ rng.choice([-1.0, 1.0], size=(q, size)) / q
        own = decay * own + (1 - decay) * gradient**2
        scalar = decay * scalar + (1 - decay) * float((g / q) @ (g / q))
    ratio = np.sqrt(own / scalar)
    assert abs(ratio.mean() - 1) < 0.01
    assert 0.01 < ratio.std() < 0.03


# Means and variances --------------------------------------------------------------------------


def mean_move(method: Any, loss: Any, steps: int) -> tuple[Any, Any]:
    """Of steps at START on all rows, theta staying there; and the root mean square of each part."""
    rows, made = np.arange(ROWS), []
    for step in range(steps):
        _, move = taken(method, step, lambda n, o: loss(moved(START, o.items()), rows))
        made.append(-moved(np.zeros(SIZE), move))
    return np.mean(made, axis=0), np.sqrt(np.mean(np.square(made), axis=0))


@pytest.mark.parametrize("loss", [squares, logistic])
@pytest.mark.parametrize(
    ("kind", "settings", "factor"),
    [
        (ZOSGD, {}, 1.0),
        (ZOSGD, {"q": 3}, 1.0),
        (ZOSGD, {"q": 3, "one_sided": True}, 1.0),
        (ZOMomentum, {}, 10.0),
        (OnePoint, {"eps": 1.0, "q": 2}, 1.0),
    ],
)
def test_the_mean_move_is_the_gradient(
    kind: Any, settings: dict[str, Any], factor: float, loss: Any
) -> None:
    """E[g z] is the gradient: for +/-1 noise exactly of a quadratic, else to order eps^2."""
    steps, told = 1500, settings if loss is squares else {**settings, "eps": 0.01}
    found, size = mean_move(made(kind, 1.0, **told), loss, steps)
    wanted = factor * slope(START, np.arange(ROWS), loss)
    # Momentum's moves are alike within some ten steps: fewer are independent.
    error = size / np.sqrt(steps / (20 if kind is ZOMomentum else 1))
    assert (np.abs(found - wanted) < 4.5 * error).all()
    assert np.linalg.norm(found) > 0.5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("loss", [squares, logistic])
@pytest.mark.parametrize(
    ("shaping", "share"),
    [("zscore", 1.0), ("rank", np.sqrt(3 / np.pi)), ("sign", np.sqrt(2 / np.pi))],
)
def test_the_mean_move_of_a_population_is_along_the_gradient(
    shaping: str, share: float, loss: Any
) -> None:
    """sqrt(q) times how a pair's difference correlates with its shape, as it is close to normal."""
    q = 32
    found, _ = mean_move(made(Population, 1.0, q=q, shaping=shaping), loss, 200)
    gradient = slope(START, np.arange(ROWS), loss)
    along = found @ gradient / np.linalg.norm(gradient)
    assert along == pytest.approx(share * np.sqrt(q), rel=0.05)
    assert along > 0.99 * np.linalg.norm(found)


def estimates(method: Estimator, theta: Any, loss: Any, draws: int) -> Any:
    """What a step after the anchor says of the gradient at theta, over batches and directions."""
    state, found = json.dumps(method.state_dict()), []
    for step in range(1, draws + 1):
        method.load_state_dict(json.loads(state))
        rows = dense.batch(step)
        score = lambda n, o, rows=rows: loss(moved(theta, o.items()), rows)  # noqa: E731
        found.append(-moved(np.zeros(SIZE), taken(method, step, score)[1]))
    return np.array(found)


def spread(estimates: Any) -> float:
    return float(estimates.var(axis=0).sum())


@pytest.mark.parametrize("loss", [squares, logistic])
def test_the_control_variate_lowers_variance_near_the_anchor(loss: Any) -> None:
    rows, far = np.arange(ROWS), {}
    plain = spread(estimates(made(ZOSGD, 1.0), START, loss, 600))
    for lr in (1e-4, 1e-3, 1e-1):
        method = made(ZOSVRG, lr, svrg_interval=10**6, anchor_batches=10)
        _, move = taken(method, 0, lambda n, o: loss(moved(START, o.items()), rows))
        theta = moved(START, move)
        method.learning_rate = 1.0
        found = estimates(method, theta, loss, 600)
        far[lr] = spread(found)
        # Its mean: the estimate at the anchor, and how the gradient has changed since.
        full = moved(np.zeros(SIZE), [(s, g / 0.02) for s, g in method.full])
        wanted = full + slope(theta, rows, loss) - slope(START, rows, loss)
        error = found.std(axis=0) / np.sqrt(600)
        assert (np.abs(found.mean(axis=0) - wanted) < 4.5 * error + 1e-9).all()
    assert far[1e-4] < far[1e-3] < 0.2 * plain
    assert far[1e-3] < far[1e-1]  # it is the nearness that does it


# Faults of the originals ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_anchor_stays_where_it_was(dtype: torch.dtype) -> None:
    weights = torch.nn.Parameter(torch.tensor(START).to(dtype))
    walk, method = Walk([("weights", weights)]), made(ZOSVRG, 0.01, svrg_interval=5)
    middle: list[Any] = []
    seen: list[Any] = []

    def score(number: int, offset: Offset) -> float:
        walk.goto(offset)
        seen.append(weights.detach().double().numpy().copy())
        return squares(seen[-1], np.arange(ROWS))

    for step in range(5):
        walk.goto({})
        middle.append(weights.detach().double().numpy().copy())
        seen.clear()
        offsets, move = taken(method, step, score)
        assert max(map(len, offsets)) <= 2 + 4  # seeds: 2 q + q (interval - 1)
        if step:  # theta +/- eps z, theta~ +/- eps z
            np.testing.assert_allclose((seen[2] + seen[3]) / 2, middle[0], atol=SHOWN[dtype])
            np.testing.assert_allclose((seen[0] + seen[1]) / 2, middle[step], atol=SHOWN[dtype])
            assert np.abs(middle[step] - middle[0]).max() > 10 * SHOWN[dtype]
        walk.commit(move)


SHOWN = {torch.float32: 3e-6, torch.bfloat16: 4e-3}  # rounding of what a parameter shows


def steps_on_a_walk(method: Estimator, walk: Walk, params: Sequence[Any], steps: int) -> None:
    def score(number: int, offset: Offset) -> float:
        walk.goto(offset)
        return sum(float((p.detach() - 0.1).square().sum()) for p in params)

    for step in range(steps):
        walk.commit(taken(method, step, score)[1])
    walk.goto({})


@pytest.mark.parametrize("name", SCORED)
def test_memory_is_seeds_and_scalars(name: str) -> None:
    """Whatever the number of weights: the same few bytes, and no tensor among them."""
    sizes = []
    for size in (1_000, 100_000):
        weights = torch.nn.Parameter(torch.zeros(size))
        method = make_method(ZOConfig(method=name, directions=2, learning_rate=1e-4))
        steps_on_a_walk(method, Walk([("weights", weights)]), [weights], 6)
        assert weights.abs().max() > 0
        sizes.append(len(json.dumps(method.state_dict())))
        assert len(pickle.dumps(method)) < 5_000
    assert abs(sizes[0] - sizes[1]) < 300


@pytest.mark.parametrize("name", SCORED)
def test_passes_are_the_documented_ones(name: str) -> None:
    """One for each offset: restore and update are folded into the next."""
    weights = torch.nn.Parameter(torch.zeros(500))
    method = make_method(ZOConfig(method=name, directions=2))
    walk, passes = Walk([("weights", weights)]), []
    travel = walk._passes.travel
    walk._passes.travel = lambda *told: (passes.append(1), travel(*told))[1]  # type: ignore
    for step in range(4):
        passes.clear()
        offsets, move = taken(method, step, lambda n, o: (walk.goto(o), float(n * 7 % 5))[1])
        walk.commit(move)
        assert len(passes) == len(offsets) == method.evaluations


@pytest.mark.parametrize("name", SCORED)
def test_equal_shapes_have_noise_of_their_own(name: str) -> None:
    params = {key: torch.nn.Parameter(torch.zeros(500)) for key in "abcd"}
    method = make_method(ZOConfig(method=name))
    steps_on_a_walk(method, Walk(params.items(), blocks=2), [*params.values()], 8)
    moves = [param.detach().sign() for param in params.values()]
    for i, one in enumerate(moves):
        assert all(not torch.equal(one, other) for other in moves[:i])


def test_each_direction_moves_one_block_whose_seed_is_its_own() -> None:
    params = {key: torch.nn.Parameter(torch.zeros(300)) for key in "abcde"}
    walk = Walk(params.items(), blocks=3)
    blocks, seen = ["a", "bc", "de"], set()
    for step in range(12):
        seed = derive(SEED, step)
        walk.goto({seed: 0.01})
        there = {key for key, param in params.items() if param.detach().abs().max() > 0}
        assert there == set(blocks[seed % 3])
        seen.add(seed % 3)
        walk.goto({})
    assert seen == {0, 1, 2}
    with pytest.raises(UserError, match="blocks 6: there are 5 tuned tensors"):
        Walk(params.items(), blocks=6)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_the_stated_density_is_the_real_one(density: float) -> None:
    weights = torch.nn.Parameter(torch.zeros(20_000))
    method = make_method(ZOConfig(method="zo-momentum"))
    walk = Walk([("weights", weights)], density=density)
    steps_on_a_walk(method, walk, [weights], 4)
    assert float((weights != 0).float().mean()) == pytest.approx(density, abs=0.015)


def test_a_name_is_its_own_method_and_no_other() -> None:
    moves = {}
    for name in ALL:
        method = make_method(ZOConfig(method=name, directions=2))
        assert type(method) is method_class(name)
        assert type(method).name == name
        told = [
            taken(method, step, lambda n, o, step=step: np.sin(12.9 * step + 78.2 * n))
            for step in range(6)
        ]
        moves[name] = sorted((s, round(c, 12)) for _, move in told for s, c in move)
    assert len({json.dumps(move) for move in moves.values()}) == len(ALL)


# Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"momentum": 0.5},
            r"--momentum 0\.5: method 'zo-sgd' has no use for it: leave it at 0\.9",
        ),
        ({"method": "zo-adam", "normalize": False}, "--normalize False: method 'zo-adam'"),
        ({"method": "population", "one_sided": True}, "--one_sided True: method 'population'"),
        ({"method": "one-point", "svrg_interval": 9}, "--svrg_interval 9: method 'one-point'"),
        ({"method": "zo-sign", "noise": "gaussian"}, "--noise gaussian: method 'zo-sign' needs"),
    ],
)
def test_settings_that_a_method_does_not_use(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_method(ZOConfig(**settings))


def test_settings_reach_their_method() -> None:
    adam = make_method(ZOConfig(method="zo-adam", adam_beta1=0.8, adam_beta2=0.99, one_sided=True))
    assert isinstance(adam, ZOAdam)
    assert (adam.trail.beta, adam.beta2, adam.one_sided) == (0.8, 0.99, True)
    svrg = make_method(ZOConfig(method="zo-svrg", svrg_interval=3, anchor_batches=5))
    assert svrg.batches == (5, 1, 1)


@pytest.mark.parametrize(
    ("method", "max_evals", "steps"),
    [
        ("zo-sgd", 100, 5),
        ("one-point", 100, 10),
        ("zo-conservative", 100, 2),
        ("zo-svrg", 160, 1),  # 4 x 10 x 4 at the anchor, then 3 of 4 x 10
        ("zo-svrg", 199, 1),
        ("zo-svrg", 280, 4),
        ("zo-svrg", 439, 4),
        ("zo-svrg", 440, 5),
        ("zo-svrg", 10**17, 4 * (10**17 // 280)),
    ],
)
def test_budgets_count_every_round_and_batch(
    tmp_path: Path, method: str, max_evals: int, steps: int
) -> None:
    settings = {"per_device_train_batch_size": 10, "max_evals": max_evals}
    args = ZOConfig(method=method, output_dir=str(tmp_path / "run"), **settings)
    assert budget(args) == (steps, "max_evals")


# Runs -----------------------------------------------------------------------------------------


def small(output_dir: Path, method: str, **more: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "method": method,
        "max_steps": 6,
        "eval_steps": 6,
        "per_device_train_batch_size": 4,
        "max_train_samples": 32,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "max_new_tokens": 3,
        "learning_rate": 5e-3,  # as far as eps: where a pair differs, so may a step
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.slow
@pytest.mark.parametrize("method", SCORED)
def test_a_run_that_is_cut_off_ends_as_it_would_have(tmp_path: Path, method: str) -> None:
    """Within a step, in whatever round: what was scored is not asked for again."""
    at = 7 if method == "zo-conservative" else 9  # the try-out is 1, step 0 begins with 4
    whole, cut, rest = Interrupting(), Interrupting(at), Interrupting()
    ZOTrainer(objective=whole, args=small(tmp_path / "whole", method)).train()
    with pytest.raises(Interrupted):
        ZOTrainer(objective=cut, args=small(tmp_path / "run", method)).train()
    args = small(tmp_path / "run", method, resume_from_checkpoint=True)
    ZOTrainer(objective=rest, args=args).train()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    lines, made = untimed(tmp_path / "run"), make_method(args)
    assert any(line["move"] for line in lines)
    assert lines[-1]["evals"] == sum(
        4 * made.batches[step % len(made.batches)] * len(line["values"])
        for step, line in enumerate(lines)
    )
    assert all(len(line["values"]) <= made.evaluations for line in lines)
    assert cut.calls + rest.calls - 1 == whole.calls  # all but the call that was cut off


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize("method", ["one-point", "zo-conservative", "zo-momentum", "zo-svrg"])
def test_an_overlay_is_scored_at_all_that_a_method_asks_for(tmp_path: Path, method: str) -> None:
    args = small(tmp_path / "run", method, tune="steer", directions=2, max_steps=3)
    ZOTrainer(objective=Interrupting(), args=args).train()
    scored = [len(line["values"]) for line in untimed(tmp_path / "run")]
    assert max(scored) == make_method(args).evaluations  # all rounds


def test_an_anchor_that_the_data_can_not_fill_is_refused(tmp_path: Path) -> None:
    args = small(tmp_path / "run", "zo-svrg", anchor_batches=9)
    with pytest.raises(UserError, match="scores 9 minibatches of 4 at once, more than the 32"):
        ZOTrainer(args=args).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize("method", ["zo-svrg", "zo-conservative", "zo-sgd"])
def test_an_example_that_fails_is_dropped_from_all_that_are_compared(
    tmp_path: Path, method: str
) -> None:
    """One of four fails at every second call: its score would be the largest by far."""
    calls = iter(range(10_000))

    def moody(completions: list[str], **kwargs: Any) -> list[float | None]:
        rest = [float(len(text)) for text in completions]
        return [None if next(calls) % 2 else 1e6, *rest[1:]]

    args = small(tmp_path / "run", method, one_sided=method == "zo-sgd", directions=2)
    ZOTrainer(objective=moody, args=args).train()
    for line in untimed(tmp_path / "run"):
        assert line["failed"]
        assert max(value for value in line["values"] if value is not None) < 1e4


@pytest.mark.usefixtures("no_statistics")
def test_blocks_are_replayed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ZOTrainer(objective=Interrupting(), args=small(out, "zo-momentum", blocks=3)).train()
    steps = untimed(out)
    assert steps[0]["run"]["settings"]["blocks"] == 3
    best = json.loads((out / "result.json").read_text())["best_step"]
    back = ZOTrainer.from_log(
        str(out), args=ZOConfig(output_dir=str(tmp_path / "b")), objective=Interrupting()
    )
    model = ZOTrainer(args=small(tmp_path / "c", "zo-sgd")).model
    names = [name for name, _ in model.named_parameters()]
    walk = Walk(model.named_parameters(), blocks=3)
    for line in steps:
        walk.commit([(seed, coefficient) for seed, coefficient in line["move"]])
    walk.goto({})
    assert best in range(7)
    for name, mine, theirs in zip(names, model.parameters(), back.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_noise_of_the_twin_is_the_walk_s() -> None:
    weights = torch.nn.Parameter(torch.zeros(SIZE))
    Walk([("weights", weights)]).goto({7: 0.5})
    assert torch.equal(weights.detach(), 0.5 * noise("rademacher", 7, "weights", 0, SIZE))
    assert copy.copy(dense.direction(7)).tolist() == (2 * weights.detach()).tolist()
