"""Files of other runs are not taken for a run's own; an interrupted walk knows where it is."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed
import pytest

from zoobj import UserError, Walk, ZOConfig, ZOTrainer
from zoobj.environment import checksum
from zoobj.interrupts import Interrupted
from zoobj.models import load_model
from zoobj.replay import read_log, walk_after


def settings(out: Path, **more: Any) -> ZOConfig:
    told: dict[str, Any] = {
        "output_dir": str(out),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "max_train_samples": 64,
        "max_eval_samples": 4,
        "max_test_samples": 6,
        "max_new_tokens": 4,
        "learning_rate": 3e-3,
    }
    return ZOConfig(**{**told, **more})


def resume(out: Path, **more: Any) -> ZOTrainer:
    return ZOTrainer(args=ZOConfig(output_dir=str(out), resume_from_checkpoint=True, **more))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; others of another objective and of another seed; a branch of the first."""
    folder = tmp_path_factory.mktemp("runs")
    ZOTrainer(args=settings(folder / "run")).train()
    ZOTrainer(args=settings(folder / "objective", objective="loglikelihood")).train()
    ZOTrainer(args=settings(folder / "seed", seed=9, eps=0.01, max_test_samples=5)).train()
    told = {"branch_from": f"{folder / 'run'}@3", "objective": "exact_match"}
    ZOTrainer(args=ZOConfig(output_dir=str(folder / "branch"), **told)).train()
    return folder


@pytest.fixture
def begun(runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run that was cut off after 4 steps."""

    def of(name: str) -> Path:
        out = tmp_path / "copy"
        shutil.copytree(runs / name, out)
        for file in ("result.json", "model.safetensors"):
            (out / file).unlink()
        keep(out, 4)
        return out

    return of


def keep(out: Path, steps: int, log: Path | None = None) -> None:
    """Put the first lines of a log in the folder."""
    lines = (log or out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:steps]))


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("name", ["metrics.jsonl", "outcomes.jsonl", "pending.jsonl"])
@pytest.mark.parametrize("other", ["objective", "seed"])
def test_scores_of_another_run_are_not_taken(
    runs: Path, begun: Callable[[str], Path], other: str, name: str, steps: int
) -> None:
    """Before the first step all logs are alike; still each run has scores of its own."""
    out = begun("run")
    keep(out, steps)
    shutil.rmtree(out / "checkpoint-3")
    source = runs / other / name
    if name == "pending.jsonl":
        source = source.with_name("outcomes.jsonl")
        (out / name).write_text(source.read_text().replace("/test", "/0"))
    else:
        shutil.copy(source, out / name)
    resume(out).train()
    found, whole = killed.left(out), killed.left(runs / "run")
    assert [found[key] for key in ("log", "weights", "result")] == [
        whole[key] for key in ("log", "weights", "result")
    ]


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [
        ("run", "log.jsonl", "branch"),
        ("branch", "log.jsonl", "run"),
        ("branch", "log.jsonl", "seed"),
        ("seed", "config.yaml", "branch"),
        ("run", "config.yaml", "seed"),
    ],
)
def test_files_of_two_runs_are_refused(
    runs: Path, begun: Callable[[str], Path], name: str, file: str, other: str
) -> None:
    out = begun(name)
    shutil.copy(runs / other / file, out / file)
    before = {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()}
    with pytest.raises(UserError):
        resume(out).train()
    assert before == {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()}


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_a_branch_s_log_cut_short_is_taken_from_its_parent_again(
    runs: Path, begun: Callable[[str], Path], steps: int
) -> None:
    out = begun("branch")
    keep(out, steps)
    resume(out).train()
    assert killed.left(out) == killed.left(runs / "branch")


def test_a_bent_parent_is_refused(begun: Callable[[str], Path]) -> None:
    out = begun("branch")
    config = (out / "config.yaml").read_text()
    for step in ("2", "x", "-1"):
        (out / "config.yaml").write_text(config.replace("    step: 3", f"    step: {step}"))
        with pytest.raises(UserError, match=r"config\.yaml"):
            resume(out).train()


def saved_as_told(out: Path) -> bool:
    """The saved weights are those of the step that the result names."""
    best = json.loads((out / "result.json").read_text())["best_step"]
    model, _ = load_model("tiny-qa")
    walk_after(model, read_log(out)[0][:best], settings(out))
    saved, _ = load_model(str(out))
    return checksum(model.named_parameters()) == checksum(saved.named_parameters())


@pytest.mark.parametrize("at", range(2, 12, 2))
def test_an_interrupt_while_the_weights_walk(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At a commit of a step, of the walk back to the best one, or of a replay."""
    out, commit, made = tmp_path / "run", Walk.commit, 0

    def interrupted(self: Walk, *args: Any) -> None:
        nonlocal made
        made += 1
        if made == at:
            os.kill(os.getpid(), signal.SIGINT)
        commit(self, *args)

    trainer = ZOTrainer(args=settings(out))
    with monkeypatch.context() as patched:
        patched.setattr(Walk, "commit", interrupted)
        try:
            trainer.train()
        except Interrupted:
            assert saved_as_told(out)
    if not (out / "report.html").is_file():
        trainer.train(resume_from_checkpoint=True)
    assert killed.left(out) == killed.left(runs / "run")
    shutil.rmtree(out)
    shutil.copytree(runs / "run", out)
    keep(out, 5)
    shutil.rmtree(out / "checkpoint-3")
    (out / "result.json").unlink()
    made, again = at - 3, resume(out)
    with monkeypatch.context() as patched:
        patched.setattr(Walk, "commit", interrupted)
        try:
            again.train()
        except Interrupted:
            assert saved_as_told(out)


def test_a_finished_run_keeps_its_result(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs / "run", out)
    before = (out / "result.json").read_text()

    class Stop:
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    args = ZOConfig(output_dir=str(out), resume_from_checkpoint=True)
    with pytest.raises(Interrupted):
        ZOTrainer(args=args, callbacks=[Stop]).train()
    assert (out / "result.json").read_text() == before


@pytest.mark.parametrize(("size", "evals", "steps"), [(2, 40, 7), (8, 70, 5)])
def test_a_branch_s_budget_counts_what_its_line_has_spent(
    runs: Path, tmp_path: Path, size: int, evals: int, steps: int
) -> None:
    """3 steps of 2 x 4 were paid for."""
    told = {"branch_from": f"{runs / 'run'}@3", "max_steps": None, "max_evals": evals}
    args = ZOConfig(output_dir=str(tmp_path / "b"), per_device_train_batch_size=size, **told)
    result = ZOTrainer(args=args).train()
    assert (result.steps, result.stop_reason) == (steps, "max_evals")
    assert result.evals <= evals


def test_a_checkpoint_of_the_folder_is_a_base_that_stays(runs: Path) -> None:
    base = runs / "run" / "checkpoint-3"
    args = settings(runs / "run", model_name_or_path=str(base), overwrite_output_dir=True)
    with pytest.raises(UserError, match="holds the base model"):
        ZOTrainer(args=args).train()
    assert (base / "model.safetensors").is_file()


def test_from_log_stands_where_a_branch_began(runs: Path, begun: Callable[[str], Path]) -> None:
    """Also where that branch has begun already, and is taken up again."""
    out = begun("branch")
    keep(out, 3)
    args = ZOConfig(output_dir=str(out), resume_from_checkpoint="auto")
    trainer = ZOTrainer.from_log(str(runs / "run"), until=3, args=args)
    model, _ = load_model(str(runs / "run" / "checkpoint-3"))
    assert checksum(trainer.model.named_parameters()) == checksum(model.named_parameters())
    trainer.train()
    assert killed.left(out) == killed.left(runs / "branch")
