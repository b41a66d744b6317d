"""Runs of first-order methods: the same data, budget, selection, resume and log as all others."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from logs import untimed
from safetensors.torch import load_file
from small import few_steps as args

from zoobj import UserError, ZOTrainer
from zoobj.cli import main
from zoobj.data import minibatch
from zoobj.interrupts import Interrupted
from zoobj.models import load_model
from zoobj.report import _plot
from zoobj.scoring import Scorer
from zoobj.scoring.differentiable import training_loss
from zoobj.stopping import budget
from zoobj.tasks import SquadMini

pytestmark = pytest.mark.usefixtures("no_statistics")

FIRST_ORDER = ["adalomo", "fo-adam", "fo-sgd", "lomo"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_a_run_improves_its_objective(method: str, tmp_path: Path) -> None:
    result = ZOTrainer(args=args(tmp_path / "run", method=method)).train()
    assert (result.method, result.evals, result.steps) == (method, 48, 6)
    assert result.after > result.before + 0.02
    assert result.seconds_in_walk == 0
    told = untimed(tmp_path / "run")
    assert [line["evals"] for line in told] == [8 * n for n in range(1, 7)]
    assert all(line["values"] == [-line["gradient"]["loss"]] for line in told)
    assert all(line["move"] == [] for line in told)


def test_its_steps_are_plain_gradient_descent(tmp_path: Path) -> None:
    """With decoupled weight decay, and a gradient that is gathered from micro-batches."""
    told = args(tmp_path / "run", method="fo-sgd", weight_decay=0.5, per_device_eval_batch_size=3)
    told = told.model_copy(update={"eval_steps": 100, "lr_scheduler_type": "constant"})
    ZOTrainer(args=told).train()
    model, tokenizer = load_model("tiny-qa")
    model.eval()
    tokenizer.padding_side = "left"
    scorer = Scorer(model, tokenizer, SquadMini(max_new_tokens=4))
    examples = SquadMini(max_new_tokens=4).examples("train", 64)
    for step in range(6):
        loss = training_loss(scorer, minibatch(examples, 8, 0, step))
        loss.backward()
        assert untimed(tmp_path / "run")[step]["gradient"]["loss"] == pytest.approx(
            loss.item(), rel=1e-4
        )
        for param in model.parameters():
            param.data -= 0.01 * (0.5 * param.data + param.grad)
            param.grad = None
    found = weights(tmp_path / "run")
    for name, param in model.named_parameters():
        assert torch.allclose(found[name], param, atol=2e-6), name


def test_lomo_is_fo_sgd_step_by_step(tmp_path: Path) -> None:
    for method in ("lomo", "fo-sgd"):
        ZOTrainer(args=args(tmp_path / method, method=method)).train()
    pairs = zip(untimed(tmp_path / "lomo"), untimed(tmp_path / "fo-sgd"), strict=True)
    for one, other in pairs:
        assert one["gradient"]["loss"] == pytest.approx(other["gradient"]["loss"], rel=1e-5)
    a, b = weights(tmp_path / "lomo"), weights(tmp_path / "fo-sgd")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.mark.parametrize("method", ["fo-sgd", "lomo"])
def test_checkpointing_is_the_same_run(method: str, tmp_path: Path) -> None:
    for flag in (True, False):
        told = args(tmp_path / str(flag), method=method, gradient_checkpointing=flag, max_steps=2)
        ZOTrainer(args=told).train()
    a, b = weights(tmp_path / "True"), weights(tmp_path / "False")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_best_on_validation_is_kept(tmp_path: Path) -> None:
    """A rate that ruins the model: what was best is what it began with."""
    base, _ = load_model("tiny-qa")
    told = args(tmp_path / "run", method="fo-sgd", learning_rate=30.0, max_grad_norm=1.0)
    result = ZOTrainer(args=told).train()
    assert result.best_step == 0
    assert result.after == result.before
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], param) for name, param in base.named_parameters())


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    told = args(tmp_path / "run", method="lomo", learning_rate=1e30)
    with pytest.raises(UserError, match=r"the loss is \w+: lower the learning rate"):
        ZOTrainer(args=told).train()
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_adapter_alone_is_moved(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    told = args(tmp_path / "run", method="fo-adam", peft="lora", lora_r=2, learning_rate=1e-2)
    result = ZOTrainer(args=told).train()
    assert result.after > result.before
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_chosen_layers_alone_are_moved(tmp_path: Path) -> None:
    base, _ = load_model("tiny-qa")
    ZOTrainer(args=args(tmp_path / "run", method="lomo", tune_layers="1")).train()
    found = weights(tmp_path / "run")
    moved = {n for n, p in base.named_parameters() if not torch.equal(found[n], p)}
    assert moved
    assert all(".layers.1." in name for name in moved)


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "token_f1"}, "needs a gradient, and objective 'token_f1' has none: --obj"),
        ({"tune": "steer"}, "--tune steer: gradients move the model's own weights"),
        ({"eps": 0.1}, r"--eps 0\.1: method 'fo-sgd' has no use for it: leave it at auto"),
        ({"directions": 4}, "--directions 4: method 'fo-sgd' has no use"),
        ({"one_sided": True}, "--one_sided True: method 'fo-sgd'"),
        ({"adam_beta1": 0.5}, r"--adam_beta1 0\.5: method 'fo-sgd'"),
        ({"method": "zo-sgd", "max_grad_norm": 1.0}, r"--max_grad_norm 1\.0: method 'zo-sgd'"),
        ({"method": "zo-sgd", "surrogate": "loglikelihood"}, "--surrogate loglikelihood: method"),
        ({"method": "zo-sgd", "fo_learning_rate": 1.0}, r"--fo_learning_rate 1\.0: method"),
        ({"tune_layers": "*.nope"}, r"no trainable parameter is called '\*\.nope'"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ZOTrainer(args=args(tmp_path / "run", **{"method": "fo-sgd", **more})).train()
    assert not (tmp_path / "run").exists()


def test_no_log_gives_back_a_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    ZOTrainer(args=args(out, method="lomo", max_steps=2)).train()
    assert main(["log", str(out)]) == 0
    capsys.readouterr()
    assert main(["replay", "--log", str(out), "--output", str(tmp_path / "new")]) == 2
    assert "step 0 was made by a gradient" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="step 0 was made by a gradient"):
        ZOTrainer(args=args(tmp_path / "b", branch_from=f"{out}@1")).train()


def test_a_budget_counts_forward_and_backward_as_one_score(tmp_path: Path) -> None:
    told = args(tmp_path, method="lomo", max_evals=100, max_steps=None)
    assert budget(told) == (12, "max_evals")
    both = args(tmp_path, method="zo-sgd", fo_layers=1, max_evals=100, max_steps=None)
    assert budget(both) == (4, "max_evals")


# Going on -------------------------------------------------------------------------------------

KINDS = {
    "fo-sgd": ["--method", "fo-sgd"],
    "fo-adam, checkpoints": ["--method", "fo-adam", "--save_steps", "1"],
    "adalomo": ["--method", "adalomo", "--save_steps", "4", "--save_total_limit", "1"],
    "lomo": ["--method", "lomo", "--max_grad_norm", "1"],
    "decay": ["--tune", "full", "--weight_decay", "1", "--decay_to_base", "true"],
    "decay, bfloat16": ["--tune", "full", "--weight_decay", "1", "--dtype", "bfloat16"],
    "hybrid": ["--fo_layers", "1", "--weight_decay", "0.1"],
}


QUICK = {"fo-adam, checkpoints", "hybrid"}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    told = ["--objective", "loglikelihood", *KINDS[kind]]
    assert killed.run(*killed.train(tmp_path / "whole", *told)) == 0
    wanted = killed.left(tmp_path / "whole")
    draw, arguments, kills = random.Random(kind), killed.train(tmp_path / "run", *told), 0
    while killed.killed_after(draw.uniform(0.3, 1.0 * 1.2**kills), *arguments) != 0:
        kills += 1
        assert kills < 40, killed.printed(tmp_path / "run")
        if (tmp_path / "run" / "config.yaml").is_file():
            arguments = killed.resumed(tmp_path / "run")
    assert kills > 0
    assert killed.left(tmp_path / "run") == wanted


@pytest.mark.parametrize("more", [{"method": "lomo"}, {"fo_layers": 1}], ids=["lomo", "hybrid"])
def test_stopped_within_a_step_and_continued_by_the_same_trainer(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """Half a gradient step has moved weights that no log knows of."""
    ZOTrainer(args=args(tmp_path / "whole", **more)).train()
    calls = []

    class Stop:
        def on_step_begin(self, *told: Any, **kwargs: Any) -> None:
            if len(calls) == 3:
                method = trainer.track.gradient.method
                whole = method.step

                def half(loss: Any) -> float:
                    method.step = whole
                    for param in method.params:
                        param.data += 1.0
                    signal.raise_signal(signal.SIGINT)
                    return 0.0

                method.step = half
            calls.append(1)

    trainer = ZOTrainer(args=args(tmp_path / "run", **more), callbacks=[Stop()])
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert killed.left(tmp_path / "run") == killed.left(tmp_path / "whole")


def test_the_same_trainer_trains_twice(tmp_path: Path) -> None:
    trainer = ZOTrainer(args=args(tmp_path / "run", method="fo-adam", max_steps=4))
    first = trainer.train()
    trainer.args.overwrite_output_dir = True
    second = trainer.train()
    assert (second.before, second.after) == (first.before, first.after)


# Memory ---------------------------------------------------------------------------------------


class Full:
    """From a step on, memory runs out in the second forward pass of more rows than fit."""

    def __init__(self, at: int, most: int):
        self.at, self.most, self.passes = at, most, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
        if state.global_step == self.at:
            model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: Any, args: Any, kwargs: Any) -> None:
        self.passes += len(kwargs["input_ids"]) > self.most
        if len(kwargs["input_ids"]) > self.most and self.passes % 2 == 0:
            raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize(
    "more",
    [{"method": "fo-adam"}, {"method": "forward-grad"}, {"fo_layers": 1, "tune": "full"}],
    ids=["fo-adam", "forward-grad", "hybrid"],
)
def test_micro_batches_that_do_not_fit_are_halved(more: dict[str, Any], tmp_path: Path) -> None:
    """Gradients of a pass that was cut short are dropped: the run is that with small ones."""

    class Small:
        def on_step_begin(self, args: Any, state: Any, *told: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                trainer.scorer.batch_size = 2

    told = {"per_device_eval_batch_size": 4, "max_steps": 4, "eval_steps": 100, **more}
    full = Full(3, 2)
    ZOTrainer(args=args(tmp_path / "run", **told), callbacks=[full]).train()
    assert full.passes == 2
    trainer = ZOTrainer(args=args(tmp_path / "wanted", **told), callbacks=[Small()])
    trainer.train()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "wanted")
    assert killed.left(tmp_path / "run") == killed.left(tmp_path / "wanted")


class Passes:
    """Counts, within the first step, how often attention runs in the first layer."""

    def __init__(self) -> None:
        self.count = 0
        self.hook: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
        self.hook = model.model.layers[0].self_attn.register_forward_pre_hook(self.add)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.hook.remove()

    def add(self, module: Any, args: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("method", "rows", "times"), [("lomo", 4, 2), ("adalomo", 4, 2), ("lomo", 16, 1)]
)
def test_activations_of_several_micro_batches_are_not_kept(
    method: str, rows: int, times: int, tmp_path: Path
) -> None:
    """They are worked out again, since all are in one graph: else lomo would save nothing."""
    told = {"per_device_eval_batch_size": rows, "max_steps": 1}
    mine, plain = Passes(), Passes()
    for name, seen in ((method, mine), ("fo-sgd", plain)):
        ZOTrainer(args=args(tmp_path / name, method=name, **told), callbacks=[seen]).train()
    assert mine.count == times * plain.count


def test_what_moves_weights_on_the_way_says_what_to_do(tmp_path: Path) -> None:
    told = {"method": "lomo", "per_device_eval_batch_size": 4}
    less: dict[str, Any] = {**told, "per_device_eval_batch_size": 2}
    with pytest.raises(UserError, match=r"again .*: --per_device_eval_batch_size 2, or") as at:
        ZOTrainer(args=args(tmp_path / "run", **told), callbacks=[Full(3, 2)]).train()
    assert "at step 3 of 6: --resume_from_checkpoint" in str(at.value)
    assert "--branch_from" not in str(at.value)
    ZOTrainer(args=args(tmp_path / "run", resume_from_checkpoint=True, **less)).train()
    ZOTrainer(args=args(tmp_path / "wanted", **told)).train()
    a, b = weights(tmp_path / "run"), weights(tmp_path / "wanted")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_steps_done_again_have_the_micro_batches_they_had(tmp_path: Path) -> None:
    """Else they would be rounded otherwise, and not lead to the weights that were logged.

    The rate ruins the model, so that all steps are done again, from the base.
    """

    class Stop:
        def on_step_begin(self, args: Any, state: Any, *told: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                signal.raise_signal(signal.SIGINT)

    told = {"method": "fo-sgd", "learning_rate": 30.0, "max_grad_norm": 1.0, "eval_steps": 4}
    ZOTrainer(args=args(tmp_path / "whole", **told)).train()
    with pytest.raises(Interrupted):
        ZOTrainer(args=args(tmp_path / "run", **told), callbacks=[Stop()]).train()
    again = args(tmp_path / "run", resume_from_checkpoint=True, **told)
    ZOTrainer(args=again.model_copy(update={"per_device_eval_batch_size": 1})).train()
    found, wanted = untimed(tmp_path / "run"), untimed(tmp_path / "whole")
    assert found[:5] == wanted[:5]
    assert [line["gradient"]["batch_size"] for line in found] == [64] * 5 + [1]


# Weight decay, and both kinds of step at once -------------------------------------------------


@pytest.mark.parametrize("to_base", [False, True])
def test_a_log_with_decay_gives_back_its_weights(to_base: bool, tmp_path: Path) -> None:
    told = {"tune": "full", "weight_decay": 2.0, "decay_to_base": to_base}
    ZOTrainer(args=args(tmp_path / "run", learning_rate=3e-3, **told)).train()
    told_lines = untimed(tmp_path / "run")
    rates = [line["decay"][0] for line in told_lines]
    assert rates == pytest.approx([2 * line["learning_rate"] for line in told_lines])
    best = json.loads((tmp_path / "run" / "result.json").read_text())["best_step"]
    out = tmp_path / "new"
    assert (
        main(["replay", "--log", str(tmp_path / "run"), "--until", str(best), "--output", str(out)])
        == 0
    )
    a, b = weights(tmp_path / "run"), weights(out)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_decay_shrinks_towards_its_goal(tmp_path: Path) -> None:
    base, _ = load_model("tiny-qa")

    def away(out: Path) -> tuple[float, float]:
        """From 0, and from the base."""
        pairs = [(weights(out)[name], p.detach()) for name, p in base.named_parameters()]
        from_base = sum(float((a - b).square().sum()) for a, b in pairs)
        return sum(float(a.square().sum()) for a, _ in pairs), from_base

    found = {}
    for name, more in {
        "none": {},
        "zero": {"weight_decay": 50.0},
        "base": {"weight_decay": 50.0, "decay_to_base": True},
    }.items():
        told = args(tmp_path / name, tune="full", eval_steps=100, learning_rate=3e-3, **more)
        ZOTrainer(args=told).train()
        main(["replay", "--log", str(tmp_path / name), "--output", str(tmp_path / f"{name}-end")])
        found[name] = away(tmp_path / f"{name}-end")
    assert found["zero"][0] < 0.8 * found["none"][0]
    assert found["base"][1] < 0.8 * found["none"][1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"decay_to_base": True}, "give that as well"),
        ({"weight_decay": 2000.0}, "--weight_decay 2000: times learning_rate"),
        ({"weight_decay": 0.1, "decay_to_base": True, "tune": "steer"}, "weight_decay alone"),
    ],
)
def test_decay_that_can_not_be_is_refused(
    more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ZOTrainer(args=args(tmp_path, **{"tune": "full", **more}))


def test_a_hybrid_moves_each_part_by_its_own_means(tmp_path: Path) -> None:
    base, _ = load_model("tiny-qa")
    last = f".layers.{base.config.num_hidden_layers - 1}."
    seen: list[set[str]] = []

    class Look:
        def on_step_begin(self, *told: Any, **kwargs: Any) -> None:
            method = trainer.track.gradient.method  # type: ignore[union-attr]
            plain = type(method).step

            def spied(loss: Any) -> float:
                needs = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
                below = []
                layers = trainer.model.model.layers
                handle = layers[-2].register_forward_hook(
                    lambda module, inputs, output: below.append(output)
                )
                value = plain(method, loss)
                handle.remove()
                assert below
                hidden = [x[0] if isinstance(x, tuple) else x for x in below]
                assert not any(x.requires_grad for x in hidden), "a graph below the last layers"
                seen.append(needs)
                return value

            method.step = spied  # type: ignore[method-assign]

    trainer = ZOTrainer(
        args=args(tmp_path / "run", fo_layers=1, objective="token_f1"), callbacks=[Look()]
    )
    trainer.train()
    by_gradients = {name for name, _ in base.named_parameters() if last in name}
    assert seen == [by_gradients] * 6
    assert set(trainer.track.walk.names).isdisjoint(by_gradients)
    assert len(trainer.track.walk.names) + len(by_gradients) == len([*base.parameters()])
    told = untimed(tmp_path / "run")
    assert all(line["move"] for line in told if not line["tie"])
    assert told[-1]["gradient"]["loss"] < told[0]["gradient"]["loss"]
    assert [line["evals"] for line in told] == [24 * n for n in range(1, 7)]


def test_a_surrogate_is_measured_by_the_objective(tmp_path: Path) -> None:
    """As `zoobj compare` runs them; with its report, which has no values to plot."""
    told = args(tmp_path / "run", method="lomo", objective="token_f1", surrogate="loglikelihood")
    result = ZOTrainer(args=told).train()
    assert result.objective == "token_f1"
    assert all(line["values"] == [] for line in untimed(tmp_path / "run"))
    report = _plot(result, untimed(tmp_path / "run"), [])
    assert "<svg" in report
