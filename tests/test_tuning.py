"""--tune: runs of an overlay, from the command line to the saved model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoobj import ZOConfig, ZOTrainer
from zoobj.assemble import first_eps
from zoobj.cli import main
from zoobj.config import with_defaults
from zoobj.errors import UserError
from zoobj.evaluation import evaluate
from zoobj.interrupts import Interrupted
from zoobj.models import load_model
from zoobj.outcome import Outcome
from zoobj.overlay import Overlay, overlay_of
from zoobj.stopping import ENDLESS

KINDS = ("steer", "scale", "lora", "prompt")


def small(out: Path, **more: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "tune": "steer",
        "directions": 2,
        "per_device_train_batch_size": 4,
        "max_train_samples": 32,
        "max_eval_samples": 6,
        "max_test_samples": 8,
        "max_new_tokens": 8,
        "max_steps": 3,
        "eval_steps": 2,
        "learning_rate": 0.1,
        "seed": 1,
    }
    return ZOConfig(**{**settings, **more})


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of each kind."""
    made: dict[str, tuple[Path, Any, ZOTrainer]] = {}

    def of(kind: str) -> tuple[Path, Any, ZOTrainer]:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / "run"
            trainer = ZOTrainer(args=small(out, tune=kind))
            made[kind] = (out, trainer.train(), trainer)
        return made[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_scores_as_the_result_says(runs: Any, kind: str) -> None:
    out, result, _ = runs(kind)
    again = evaluate(ZOConfig(model_name_or_path=str(out), max_new_tokens=8), "test", 8)
    assert again["value"] == pytest.approx(result.after, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_before_is_the_base_s(runs: Any, kind: str) -> None:
    """Also where new tokens change it before they are tuned."""
    _, result, _ = runs(kind)
    base = evaluate(ZOConfig(max_new_tokens=8), "test", 8)
    assert result.before == pytest.approx(base["value"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_never_written(runs: Any, kind: str) -> None:
    _, _, trainer = runs(kind)
    base = load_model("tiny-qa")[0].state_dict()
    assert all(torch.equal(value, base[name]) for name, value in trainer.model.state_dict().items())
    assert overlay_of(trainer.model) is trainer.tuned


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_as_many_values_as_members(runs: Any, kind: str) -> None:
    out, result, _ = runs(kind)
    for line in lines(out):
        assert len(line["values"]) == 4
        assert len(line["move"]) <= 2
    assert result.evals == 3 * 4 * 4
    run = lines(out)[0]["run"]
    assert run["overlay"]["kind"] == kind
    assert all(unit > 0 for unit in run["overlay"]["units"].values())
    assert run["settings"]["directions"] == 2


def test_one_at_a_time_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference twin: each member's tunables set in turn, and scored alone."""
    ZOTrainer(args=small(tmp_path / "batch")).train()

    def alone(self: Any, members: Any, examples: Any, needs: Any, seed: int = 0) -> Any:
        overlay = overlay_of(self.model)
        kept, batches = overlay.snapshot(), []
        for member in [*members, kept]:
            for param, value in zip(overlay.parameters(), member, strict=True):
                param.data.copy_(value)
            batches.append(self(examples, needs, seed))
        return batches[:-1]

    monkeypatch.setattr("zoobj.scoring.Scorer.population", alone)
    ZOTrainer(args=small(tmp_path / "alone")).train()
    first, second = lines(tmp_path / "batch"), lines(tmp_path / "alone")
    for one, other in zip(first, second, strict=True):
        assert one["values"] == pytest.approx(other["values"], abs=1e-6)
        assert [seed for seed, _ in one["move"]] == [seed for seed, _ in other["move"]]


def test_all_members_are_scored_in_the_same_batches(tmp_path: Path) -> None:
    sizes: list[int] = []
    trainer = ZOTrainer(args=small(tmp_path / "run", max_steps=1, per_device_eval_batch_size=16))
    embeddings = trainer.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    trainer.train()
    assert 16 in sizes  # 4 members on 4 prompts
    assert max(sizes) == 32  # where the units are measured


def test_a_kill_loses_no_score(tmp_path: Path) -> None:
    """Rewards are asked for member by member: those that came are not asked for again."""
    calls: list[int] = []

    def slow(completions: list[str], **kwargs: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 8:  # try-out, test and validation before: the fifth call of a step
            raise KeyboardInterrupt
        return [float(len(text)) for text in completions]

    settings = {"max_steps": 2, "eval_steps": 50, "directions": 3}
    with pytest.raises(Interrupted):
        ZOTrainer(objective=slow, args=small(tmp_path / "run", **settings)).train()
    again = ZOTrainer(
        objective=slow, args=small(tmp_path / "run", **settings, resume_from_checkpoint=True)
    )
    again.train()
    whole: list[int] = []

    def counted(completions: list[str], **kwargs: Any) -> list[float]:
        whole.append(1)
        return [float(len(text)) for text in completions]

    counted.__name__ = "slow"
    ZOTrainer(objective=counted, args=small(tmp_path / "whole", **settings)).train()
    assert len(calls) == len(whole) + 1  # the one that was cut off
    moves = [line["move"] for line in lines(tmp_path / "run")]
    assert moves == [line["move"] for line in lines(tmp_path / "whole")]


def test_resume_takes_the_units_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, constant = tmp_path / "run", {"lr_scheduler_type": "constant"}
    ZOTrainer(args=small(tmp_path / "whole", **constant)).train()
    ZOTrainer(args=small(out, max_steps=2, **constant)).train()
    monkeypatch.setattr(Overlay, "measure", None)  # it is not measured again
    again = ZOConfig(output_dir=str(out), resume_from_checkpoint=True, max_steps=3)
    trainer = ZOTrainer(args=again)
    trainer.train()
    assert [line["move"] for line in lines(out)] == [
        line["move"] for line in lines(tmp_path / "whole")
    ]
    assert trainer.tuned.facts == lines(out)[0]["run"]["overlay"]


def test_branches_and_from_log(runs: Any, tmp_path: Path) -> None:
    parent, _, _ = runs("lora")
    branch = ZOConfig(output_dir=str(tmp_path / "branch"))
    trainer = ZOTrainer.from_log(str(parent), until=2, args=branch)
    assert trainer.tuned.units == lines(parent)[0]["run"]["overlay"]["units"]
    out = tmp_path / "replayed"
    assert main(["replay", "--log", str(parent), "--until", "2", "--output", str(out)]) == 0
    saved = load_file(out / "overlay.safetensors")
    for name, param in trainer.tuned.named_parameters():
        assert torch.equal(param, saved[name])
    trainer.args.max_steps = 4
    assert trainer.train().steps == 4
    other = ZOConfig(output_dir=str(tmp_path / "c"), branch_from=str(parent), tune="steer")
    with pytest.raises(UserError, match="a branch tunes what its parent does"):
        ZOTrainer(args=other.model_copy(update={"max_steps": 9})).train()


def test_defaults_depend_on_what_is_tuned() -> None:
    full, steer = ZOConfig(), ZOConfig(tune="steer")
    assert (full.directions, steer.directions) == (1, 8)
    assert first_eps(full) != first_eps(steer)
    assert ZOConfig(tune="steer", eps=0.3).eps == 0.3
    assert with_defaults(full.model_copy(update={"tune": "lora"})).directions == 8
    assert with_defaults(full.model_copy(update={"tune": "lora", "eps": 7.0})).eps == 7.0
    assert "eps" not in steer.model_fields_set


def test_auto_chooses_and_says_why(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "zoobj")
    trainer = ZOTrainer(args=ZOConfig(output_dir=str(tmp_path / "run"), tune="auto"))
    assert isinstance(trainer.tuned, Overlay) and trainer.args.tune == "steer"
    assert trainer.args.directions == 8
    assert "--tune auto: steer (" in caplog.text


def test_seconds_alone_are_a_budget(tmp_path: Path) -> None:
    """No end of steps; the learning rate falls with the time."""
    args = small(tmp_path / "run", max_seconds=1.5)
    args = ZOConfig(**{k: v for k, v in args.model_dump().items() if k != "max_steps"})
    trainer = ZOTrainer(args=args)
    result = trainer.train()
    assert trainer.max_steps == ENDLESS
    assert result.stop_reason == "max_seconds"
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= 0.1
    assert rates[-1] < rates[0]


def test_choices(tmp_path: Path) -> None:
    rows = [
        {"sentence": f"it was {word} {i}", "label": int(word == "fine")}
        for i in range(20)
        for word in ("fine", "bad")
    ]
    args = small(tmp_path / "run", task="sst2", objective="accuracy", max_new_tokens=None)
    seen: list[Outcome] = []

    class Look:
        def on_step_end(self, *args: Any, samples: Any = None, **kwargs: Any) -> None:
            seen.extend(samples)

    sets = {"train_dataset": rows, "eval_dataset": rows[:8], "test_dataset": rows[8:16]}
    ZOTrainer(args=args, callbacks=[Look()], **sets).train()
    assert len(seen) == 3 * 4
    assert all(len(outcome.batch.label_scores or []) == 4 for outcome in seen)
