"""From a base and a log to weights: the live run's bits at any step, averages, branches."""

import json
import random
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from safetensors.torch import load_file

from zoobj import UserError, ZOConfig, ZOTrainer
from zoobj.cli import main
from zoobj.environment import checksum
from zoobj.models import load_model
from zoobj.replay import average, read_log, retrace

STEPS = 12


def settings(folder: Path, **more: Any) -> ZOConfig:
    told: dict[str, Any] = {
        "output_dir": str(folder),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": STEPS,
        "eval_steps": 4,
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "max_train_samples": 64,
        "max_eval_samples": 4,
        "max_test_samples": 6,
        "max_new_tokens": 4,
        "learning_rate": 3e-3,
        "seed": 5,
    }
    return ZOConfig(**{**told, **more})


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"noise": "gaussian"},
    "some weights": {"tune_layers": "*mlp*,*norm*", "density": 0.3},
    "bfloat16": {"dtype": "bfloat16"},
    "steer": {"tune": "steer", "directions": 2},
    "scale": {"tune": "scale", "tune_layers": "1:,*.0.*"},
    "lora": {"tune": "lora", "lora_r": 2, "noise": "gaussian"},
    "prompt": {"tune": "prompt", "num_virtual_tokens": 3},
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Finished runs with a checkpoint at every step: what the live weights were."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("live") / "run"
            ZOTrainer(args=settings(made[kind], **KINDS[kind])).train()
        return made[kind]

    return of


def weights(folder: Path) -> dict[str, torch.Tensor]:
    overlay = folder / "overlay.safetensors"
    return load_file(overlay if overlay.is_file() else folder / "model.safetensors")


def same(folder: Path, other: Path) -> bool:
    first, second = weights(folder), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_the_live_run_s(live: Any, tmp_path: Path, kind: str) -> None:
    run = live(kind)
    for step in (1, 5, STEPS):
        out = tmp_path / str(step)
        arguments = ["replay", "--log", f"{run}/log.jsonl", "--until", str(step)]
        assert main([*arguments, "--output", str(out)]) == 0
        assert same(out, run / f"checkpoint-{step}")
    load_model(str(out))


def test_undo_and_the_whole_log(live: Any, tmp_path: Path, capsys: Any) -> None:
    run = live("default")
    base = ["--model_name_or_path", "tiny-qa"]
    assert main(["replay", *base, "--log", str(run), "--output", str(tmp_path / "all")]) == 0
    assert f"tiny-qa after {STEPS} steps" in capsys.readouterr().out
    assert same(tmp_path / "all", run / f"checkpoint-{STEPS}")
    undo = ["replay", "--log", str(run), "--until", "-3", "--output", str(tmp_path / "undone")]
    assert main(undo) == 0
    assert same(tmp_path / "undone", run / f"checkpoint-{STEPS - 3}")


def test_the_final_model_is_the_best_step_s(live: Any) -> None:
    run = live("default")
    best = json.loads((run / "result.json").read_text())["best_step"]
    if best:
        assert same(run, run / f"checkpoint-{best}")
    said = (run / "README.md").read_text()
    assert f"--until {best}" in said
    assert json.loads((run / "log.jsonl").open().readline())["run"]["base_checksum"] in said


def test_another_base_is_refused(live: Any, tmp_path: Path, capsys: Any) -> None:
    run = live("default")
    other = run / "checkpoint-3"
    arguments = ["replay", "--log", str(run), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--model_name_or_path", str(other)]) == 2
    assert "is not the base of the run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_the_logged_ones_are_refused(live: Any) -> None:
    """As where another version of zoobj had other noise: the checksum in the log tells."""
    steps, _ = read_log(live("default"))
    seed, coefficient = steps[0]["move"][0]
    steps[0]["move"] = [[seed + 1, coefficient]]
    with pytest.raises(UserError, match="replayed weights at step 8 have checksum"):
        retrace(load_model("tiny-qa")[0], steps)


@pytest.mark.parametrize("last", [1, 2, 5, STEPS])
def test_an_average_is_the_mean_of_the_weights(live: Any, last: int) -> None:
    """Against the slow, obvious way: replay each step, add up, divide."""
    run = live("default")
    model, _ = load_model("tiny-qa")
    average(model, [read_log(run)[0]], last)
    found = [weights(run / f"checkpoint-{s}") for s in range(STEPS - last + 1, STEPS + 1)]
    quantum = 2.0**-22  # of weights up to 1; each of the moves is rounded once
    for name, parameter in model.named_parameters():
        if name in found[0]:
            mean = torch.stack([w[name] for w in found]).double().mean(0)
            assert (parameter.double() - mean).abs().max() <= STEPS * quantum, name


def test_the_mean_of_two_runs(live: Any, tmp_path: Path) -> None:
    first, second = live("default"), tmp_path / "second"
    ZOTrainer(args=settings(second, seed=6)).train()
    arguments = ["replay", "--log", str(first), "--log", str(second)]
    assert main([*arguments, "--output", str(tmp_path / "mean")]) == 0
    found = weights(tmp_path / "mean")
    ends = [weights(folder / f"checkpoint-{STEPS}") for folder in (first, second)]
    for name, tensor in found.items():
        mean = (ends[0][name].double() + ends[1][name].double()) / 2
        assert (tensor.double() - mean).abs().max() <= 2 * STEPS * 2.0**-22


def test_runs_that_walk_differently_have_no_mean(live: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be averaged"):
        average(
            load_model("tiny-qa")[0], [read_log(live(kind))[0] for kind in ("default", "gaussian")]
        )


# Branches -------------------------------------------------------------------------------------


def branch(live: Any, folder: Path, **more: Any) -> ZOTrainer:
    """From step 5 of the default run, whose settings it takes over."""
    told = {"output_dir": str(folder), "branch_from": f"{live('default')}@5", **more}
    return ZOTrainer(args=ZOConfig(**told))


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "exact_match"},
        {"method": f"{Path(__file__).parent / 'heavy_ball.py'}:HeavyBall"},
        {"noise": "gaussian", "seed": 9},
    ],
    ids=str,
)
def test_a_branch_begins_at_the_step_and_replays(
    live: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    run, out = live("default"), tmp_path / "branch"
    result = branch(live, out, save_steps=1, **change).train()
    assert result.steps == STEPS
    old, new = ((f / "log.jsonl").read_bytes().splitlines() for f in (run, out))
    assert new[:5] == old[:5]
    line = json.loads(new[5])
    parent = line["run"]["parent"]
    assert parent == {"run": str(run), "step": 5, "hash": json.loads(old[4])["hash"]}
    assert set(change.items()) <= set(line["run"]["settings"].items())
    assert line["run"]["settings"]["learning_rate"] == 3e-3  # taken over
    assert line["evals"] == 6 * 8
    for step in (5, 8, STEPS):
        model, _ = load_model("tiny-qa")
        retrace(model, read_log(out, step)[0])
        there = out / f"checkpoint-{step}" if step > 5 else run / "checkpoint-5"
        assert checksum(model.named_parameters()) == checksum(
            load_model(str(there))[0].named_parameters()
        )


def test_a_branch_is_resumed_without_its_parent(live: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    branch(live, whole, objective="exact_match").train()

    class Stop:
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                raise RuntimeError("power cut")

    told = {"output_dir": str(cut), "branch_from": f"{live('default')}@5"}
    with pytest.raises(RuntimeError, match="power cut"):
        ZOTrainer(args=ZOConfig(**told, objective="exact_match"), callbacks=[Stop]).train()
    config = cut / "config.yaml"
    config.write_text(config.read_text().replace(str(live("default")), "/gone"))
    again = {"output_dir": str(cut), "resume_from_checkpoint": True}
    with pytest.raises(UserError, match="branched off /gone@5, not"):
        ZOTrainer(args=ZOConfig(**again, branch_from=f"{live('default')}@6"))
    ZOTrainer(args=ZOConfig(**again)).train()
    assert killed.left(cut) == killed.left(whole)


def test_branches_of_branches(live: Any, tmp_path: Path) -> None:
    first = branch(live, tmp_path / "a", objective="exact_match")
    first.train()
    told = {"output_dir": str(tmp_path / "b"), "branch_from": f"{tmp_path / 'a'}@7"}
    ZOTrainer(args=ZOConfig(**told, objective="token_f1", noise="gaussian", max_steps=9)).train()
    lines = read_log(tmp_path / "b")[0]
    assert [line["step"] for line in lines if "run" in line] == [0, 5, 7]
    assert len(lines) == 9


def test_a_branch_that_is_no_other_run_has_the_other_s_end(live: Any, tmp_path: Path) -> None:
    """Same settings from step 0: the parent's very moves, since a step depends on nothing else."""
    told = {"output_dir": str(tmp_path / "again"), "branch_from": f"{live('default')}@0"}
    ZOTrainer(args=ZOConfig(**told)).train()
    moves = [
        [line["move"] for line in read_log(f)[0]] for f in (live("default"), tmp_path / "again")
    ]
    assert moves[0] == moves[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{run}@99", "has 12 steps"),
        ("{run}@x", "a step is needed after @"),
        ("{run}@12", "max_steps ends the run at step 12"),
        ("{run}x@1", "no such file"),
    ],
)
def test_a_branch_from_nowhere_is_refused(
    live: Any, tmp_path: Path, spec: str, message: str
) -> None:
    told = {"output_dir": str(tmp_path / "b"), "branch_from": spec.format(run=live("default"))}
    with pytest.raises(UserError, match=message):
        ZOTrainer(args=ZOConfig(**told)).train()
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="an --output_dir of its own"):
        ZOTrainer(args=ZOConfig(output_dir=str(live("default")), branch_from=str(live("default"))))


def test_from_log_stands_at_the_step_and_branches_off_there(live: Any, tmp_path: Path) -> None:
    run = live("default")
    args = ZOConfig(output_dir=str(tmp_path / "on"))
    trainer = ZOTrainer.from_log(str(run), until=7, args=args)
    saved = weights(run / "checkpoint-7")
    for name, parameter in trainer.model.named_parameters():
        if name in saved:
            assert torch.equal(parameter, saved[name]), name
    assert trainer.evaluate("validation", 4).value >= 0
    result = trainer.train()
    assert result.steps == STEPS
    assert (tmp_path / "on" / "log.jsonl").read_bytes().splitlines()[:7] == (
        run / "log.jsonl"
    ).read_bytes().splitlines()[:7]


def test_a_thousand_steps_are_a_small_file() -> None:
    """Bytes of a line with the longest numbers that a two-point step has, times 1000."""
    from zoobj.log import ORIGIN, sealed

    draw = random.Random(0)
    line = {
        "step": 999,
        "move": [[2**53 - 1, -draw.random() * 1e-3]],
        "values": [draw.random(), draw.random()],
        "n": 64,
        "failed": 0,
        "flips": 64,
        "tie": False,
        "eps": 0.005,
        "learning_rate": draw.random() * 1e-3,
        "evals": 128_000,
        "checksum": "0123456789abcdef",
        "state": {"square": draw.random() * 1e-4, "weight": draw.random()},
    }
    assert len(sealed(line, ORIGIN, {"seconds": 1.2345, "seconds_in_walk": 0.1234})) < 395
