"""forward-grad: exact derivatives along the walk's own directions, and runs made of them."""

import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import dense
import killed
import numpy as np
import pytest
import tiny
import torch
from dense import BATCH, INPUTS, ROWS, SEED, SIZE, START, TARGETS, direction, logistic, squares
from logs import untimed
from safetensors.torch import load_file
from small import few_steps

from zoobj import UserError, Walk, ZOTrainer
from zoobj.cli import main
from zoobj.comparison import surrogate_of
from zoobj.estimators.forward_grad import ForwardGrad
from zoobj.interrupts import Interrupted
from zoobj.models import prepare
from zoobj.noise import derive, noise
from zoobj.scoring import Scorer
from zoobj.scoring.differentiable import derivative, training_loss, training_losses
from zoobj.stopping import budget
from zoobj.task import Example
from zoobj.tasks import SquadMini
from zoobj.testing import taken

# The walk's directions ------------------------------------------------------------------------


def params() -> dict[str, torch.nn.Parameter]:
    """Of several kinds of pieces: small, and whole rows with a rest."""
    shapes = {"a": (3, 50), "b": (300, 301), "c": (7,)}
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_a_direction_is_the_noise_of_each_tensor(kind: Any) -> None:
    given = params()
    found = Walk(given.items(), noise=kind).direction(5)
    assert list(found) == list(given)
    for name, z in found.items():
        wanted = noise(kind, 5, name, 0, given[name].numel()).view(given[name].shape)
        assert torch.equal(z, wanted)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("more", [{}, {"density": 0.3}, {"blocks": 2}, {"tune": ["b", "c"]}])
def test_it_is_where_the_walk_goes(kind: Any, more: dict[str, Any]) -> None:
    given = params()
    walk = Walk(given.items(), noise=kind, **more)
    for seed in (2, 3):
        found = walk.direction(seed)
        walk.goto({seed: 0.02})
        for name, param in given.items():
            z = found.get(name, torch.zeros_like(param))
            assert torch.allclose(param.detach(), 0.02 * z, atol=1e-6), name
        walk.goto({})


def test_it_has_the_weights_dtype() -> None:
    weights = torch.nn.Parameter(torch.zeros(200, dtype=torch.bfloat16))
    z = Walk([("weights", weights)]).direction(1)["weights"]
    assert z.dtype is torch.bfloat16
    assert set(z.tolist()) == {-1.0, 1.0}


# The derivative -------------------------------------------------------------------------------


def subject(family: str, tokenizer: Any, batch_size: int = 32) -> tuple[Scorer, list[Example]]:
    model = tiny.made(family)
    prepare(model, tokenizer)
    scorer = Scorer(model=model, tokenizer=tokenizer, task=SquadMini(), batch_size=batch_size)
    scorer.prompt_limit = 40
    return scorer, SquadMini().examples("train", 7)


def differentiated(scorer: Scorer, examples: list[Example], along: Any) -> tuple[float, float]:
    return derivative(scorer.model, lambda: training_losses(scorer, examples), along)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3", "qwen3", "neox"])
def test_it_is_the_gradient_times_the_direction(family: str, tokenizer: Any) -> None:
    """Tied embeddings included, which gpt2 and others have."""
    scorer, examples = subject(family, tokenizer)
    walk = Walk(scorer.model.named_parameters())
    for seed in (1, 2):
        along = walk.direction(seed)
        loss, slope = differentiated(scorer, examples, along)
        whole = training_loss(scorer, examples)
        named = dict(scorer.model.named_parameters())
        found = torch.autograd.grad(whole, [named[n] for n in along], allow_unused=True)
        pairs = zip(found, along.values(), strict=True)
        parts = [float((g.double() * z).sum()) for g, z in pairs if g is not None]
        size = float(np.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None)))
        assert loss == pytest.approx(whole.item(), rel=1e-5)
        assert slope == pytest.approx(sum(parts), abs=1e-4 * size)
        assert abs(slope) > 0.01 * size
    assert all(param.grad is None for param in scorer.model.parameters())


def test_it_is_the_limit_of_central_differences(tokenizer: Any) -> None:
    scorer, examples = subject("llama", tokenizer)
    scorer.model.double()  # for the differences, which lose half the digits
    along = {
        name: noise("rademacher", 4, name, 0, param.numel()).double().view(param.shape)
        for name, param in scorer.model.named_parameters()
    }
    _, slope = differentiated(scorer, examples, along)

    def moved(scale: float) -> float:
        with torch.no_grad():
            for name, param in scorer.model.named_parameters():
                param += scale * along[name]
            return training_loss(scorer, examples).item()

    plus, minus = moved(1e-4), moved(-2e-4)
    assert (plus - minus) / 2e-4 == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_micro_batches_are_one_batch(batch_size: int, tokenizer: Any) -> None:
    whole, examples = subject("llama", tokenizer)
    parts, _ = subject("llama", tokenizer, batch_size)
    along = Walk(whole.model.named_parameters()).direction(9)
    assert differentiated(parts, examples, along) == pytest.approx(
        differentiated(whole, examples, along), rel=1e-4
    )


def test_no_graph_is_made_and_the_model_is_left_as_it_was(tokenizer: Any) -> None:
    scorer, examples = subject("llama", tokenizer)
    along = Walk(scorer.model.named_parameters()).direction(1)
    before = {name: (param, param.clone()) for name, param in scorer.model.named_parameters()}
    differentiated(scorer, examples, along)
    for name, param in scorer.model.named_parameters():
        assert param is before[name][0]
        assert torch.equal(*before[name])
        assert torch.autograd.forward_ad.unpack_dual(param.detach()).tangent is None
    assert training_loss(scorer, examples).requires_grad


# Steps ----------------------------------------------------------------------------------------


def slopes(theta: Any, rows: Any, loss: Any) -> Any:
    """What a step is told, in float64, by torch's forward mode."""
    x, y = torch.tensor(INPUTS[rows]), torch.tensor(TARGETS[rows])

    def value(w: torch.Tensor) -> torch.Tensor:
        if loss is squares:
            return (x @ w - y).square().mean() / 2
        return torch.nn.functional.softplus(-y.sign() * (x @ w)).mean()

    def told(number: int, offset: Any) -> float:
        ((seed, scale),) = offset.items()
        along = torch.tensor(scale * direction(seed))
        return float(torch.func.jvp(value, (torch.tensor(theta),), (along,))[1])

    return told


@pytest.mark.parametrize("loss", [squares, logistic])
@pytest.mark.parametrize(("q", "normalize"), [(1, False), (3, False), (1, True), (3, True)])
def test_a_hundred_steps_are_the_dense_twin_s(q: int, normalize: bool, loss: Any) -> None:
    lr = 0.01
    method = ForwardGrad(seed=SEED, eps=0.1, learning_rate=lr, directions=q, normalize=normalize)
    theta, wanted, kept = START, START, []
    for step in range(100):
        rows = dense.batch(step)
        _, move = taken(method, step, slopes(theta, rows, loss))
        theta = dense.moved(theta, move)
        full, change = dense.slope(wanted, rows, loss), np.zeros(SIZE)
        for k in range(q):
            z = direction(derive(SEED, step, k))
            g = full @ z
            kept.append(g)
            ages = np.arange(len(kept))[::-1]
            rms = np.sqrt(np.average(np.square(kept), weights=0.9**ages))
            change += g / rms / np.sqrt(q) * z if normalize else g / q * z
        wanted = wanted - lr * change
        np.testing.assert_allclose(theta, wanted, rtol=1e-8, atol=1e-10)
    rows = np.arange(ROWS)
    assert loss(theta, rows) < loss(START, rows)


@pytest.mark.parametrize("loss", [squares, logistic])
def test_the_mean_move_is_the_gradient(loss: Any) -> None:
    rows, steps = dense.batch(0, 4 * BATCH), 1500
    method = ForwardGrad(seed=SEED, eps=0.1, learning_rate=1.0, directions=2, normalize=False)
    wanted, found = dense.slope(START, rows, loss), []
    for step in range(steps):
        _, move = taken(method, step, lambda n, o: float(wanted @ dense.moved(0.0, o.items())))
        found.append(-dense.moved(np.zeros(SIZE), move))
    error = np.std(found, axis=0) / np.sqrt(steps)
    assert (np.abs(np.mean(found, axis=0) - wanted) < 4.5 * error).all()
    assert np.linalg.norm(np.mean(found, axis=0)) > 0.5 * np.linalg.norm(wanted)


# Runs -----------------------------------------------------------------------------------------

args = partial(few_steps, method="forward-grad")


@pytest.mark.usefixtures("no_statistics")
def test_a_run_improves_its_objective_and_its_log_gives_it_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = ZOTrainer(args=args(out, max_steps=10, directions=2, learning_rate=3e-3)).train()
    assert result.after > result.before + 0.02
    assert (result.evals, result.steps) == (10 * 2 * 8, 10)
    assert result.peak_memory_bytes > 0
    for number, line in enumerate(untimed(out)):
        assert line["evals"] == 16 * (number + 1)
        assert [seed for seed, _ in line["move"]] == [derive(0, number, k) for k in range(2)]
        for (_, coefficient), slope in zip(line["move"], line["derivatives"], strict=True):
            assert coefficient * slope < 0
        assert len(line["values"]) == 1
        assert "gradient" not in line
    new = tmp_path / "new"
    until = ["--until", str(result.best_step), "--output", str(new)]
    assert main(["replay", "--log", str(out), *until]) == 0
    assert result.best_step > 0
    a, b = (load_file(folder / "model.safetensors") for folder in (out, new))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize("more", [{"weight_decay": 0.1}, {"fo_layers": 1}, {}], ids=str)
def test_resumed_is_uninterrupted(more: dict[str, Any], tmp_path: Path) -> None:
    ZOTrainer(args=args(tmp_path / "whole", **more)).train()

    class Stop:
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:  # within a pass: its dual tensors must be gone
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        ZOTrainer(args=args(tmp_path / "run", **more), callbacks=[Stop()]).train()
    ZOTrainer(args=args(tmp_path / "run", resume_from_checkpoint=True, **more)).train()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    assert killed.left(tmp_path / "run") == killed.left(tmp_path / "whole")


@pytest.mark.usefixtures("no_statistics")
def test_another_objective_is_measured_and_the_surrogate_trained_on(tmp_path: Path) -> None:
    told = args(tmp_path / "run", objective="token_f1", surrogate="loglikelihood", max_steps=2)
    result = ZOTrainer(args=told).train()
    assert result.objective == "token_f1"
    assert all(line["values"] == [] and line["move"] for line in untimed(tmp_path / "run"))
    assert surrogate_of("forward-grad", "token_f1") == "loglikelihood"
    assert surrogate_of("forward-grad", "loglikelihood") is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"objective": "token_f1"},
            "method 'forward-grad' needs a gradient, and objective 'token_f1' has none: --obj",
        ),
        ({"tune": "steer"}, "--tune steer: gradients move the model's own weights"),
        ({"eps": 0.1}, r"--eps 0\.1: method 'forward-grad' has no use for it: leave it at auto"),
        ({"one_sided": True}, "--one_sided True: method 'forward-grad'"),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing True: method 'forward-grad'"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ZOTrainer(args=args(tmp_path / "run", **more)).train()
    assert not (tmp_path / "run").exists()


def test_a_budget_counts_each_direction_once(tmp_path: Path) -> None:
    told = args(tmp_path, directions=3, max_evals=100, max_steps=None)
    assert budget(told) == (4, "max_evals")


@pytest.mark.usefixtures("no_statistics")
def test_a_loss_that_is_no_number_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoobj.gradient.derivative", lambda *told: (math.nan, 0.0))
    with pytest.raises(UserError, match="the loss is nan: lower the learning rate"):
        ZOTrainer(args=args(tmp_path / "run")).train()
