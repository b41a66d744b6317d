"""The whole loop on the embedded model: the score moves, the log repeats it, nothing is lost."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from zoobj import UserError, Walk, ZOConfig, ZOTrainer
from zoobj.data import minibatch
from zoobj.evaluation import evaluate
from zoobj.interrupts import Interrupted
from zoobj.models import load_model
from zoobj.objectives import TokenF1
from zoobj.result import Result
from zoobj.task import SPLITS

KEYS = (
    "objective split n before after difference ci95 verdict method steps evals seconds "
    "seconds_in_walk tie_rate flip_rate snr wasted labels peak_memory_bytes "
    "inference_peak_memory_bytes best_step stop_reason"
).split()
STEP_KEYS = {
    *("step", "move", "values", "n", "failed", "flips", "tie", "eps", "learning_rate", "evals"),
    *("seconds", "seconds_in_walk", "checksum", "state", "hash", "signal"),
}


def small(output_dir: Path, **more: Any) -> ZOConfig:
    """Settings of a run of a few seconds."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 8,
        "max_eval_samples": 16,
        "max_test_samples": 24,
        "max_new_tokens": 8,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[str]:
    """The log without its timings, as bytes would compare."""
    kept = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(path)]
    return [json.dumps(line) for line in kept]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_model(str(folder))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One finished run that several tests look at."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, ZOTrainer(objective=TokenF1(), args=small(folder)).train()


def test_the_run_folder_holds_what_is_documented(done: tuple[Path, Result]) -> None:
    folder, result = done
    written = json.loads((folder / "result.json").read_text())
    assert list(written) == KEYS
    assert written["before"] == result.before
    assert written["evals"] == 4 * 2 * 8
    assert written["n"] == 24
    assert written["seconds_in_walk"] < written["seconds"]
    for name in ("config.yaml", "README.md", "model.safetensors", "metrics.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    steps = lines(folder / "log.jsonl")
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert [set(line) - STEP_KEYS for line in steps] == [{"run"}, set(), set(), set()]
    assert [line["checksum"] is not None for line in steps] == [True, False, True, False]


def test_eval_of_the_saved_model_repeats_the_result(done: tuple[Path, Result]) -> None:
    folder, result = done
    settings = ZOConfig(model_name_or_path=str(folder), max_new_tokens=8)
    again = evaluate(settings, split="test", limit=24)
    assert again["value"] == pytest.approx(result.after, abs=1e-6)


def test_evaluate_scores_as_many_as_the_settings_say(tmp_path: Path) -> None:
    trainer = ZOTrainer(objective=TokenF1(), args=small(tmp_path / "run", max_train_samples=9))
    assert {split: len(trainer.evaluate(split).batch) for split in SPLITS} == {
        "train": 9,
        "validation": 16,
        "test": 24,
    }
    assert len(trainer.evaluate("test", 5).batch) == 5


def test_the_log_alone_gives_the_saved_weights(done: tuple[Path, Result]) -> None:
    folder, _ = done
    model, _ = load_model("tiny-qa")
    walk = Walk(model.named_parameters())
    validations = [e for e in lines(folder / "metrics.jsonl") if e["split"] == "validation"]
    best = max(validations, key=lambda e: (e["value"], -e["step"]))["step"]
    for line in lines(folder / "log.jsonl")[:best]:
        walk.commit([(seed, coefficient) for seed, coefficient in line["move"]])
    walk.goto({})
    saved = weights(folder)
    for name, param in model.named_parameters():
        assert torch.equal(param, saved[name]), name


def test_same_seed_same_bytes(done: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = done
    torch.rand(7)  # whatever the global state, it plays no part
    ZOTrainer(objective=TokenF1(), args=small(tmp_path / "b")).train()
    assert untimed(tmp_path / "b" / "log.jsonl") == untimed(folder / "log.jsonl")
    first, second = weights(folder), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_seed_other_run(done: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = done
    ZOTrainer(args=small(tmp_path / "c", seed=4, max_steps=1)).train()
    assert untimed(tmp_path / "c" / "log.jsonl")[0] != untimed(folder / "log.jsonl")[0]


class StopAt:
    """A callback that sends a signal after so many steps, as a user or a scheduler would."""

    def __init__(self, step: int, number: int = signal.SIGINT):
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_continues_to_the_same_end(
    done: tuple[Path, Result], tmp_path: Path, number: int
) -> None:
    folder, result = done
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="step 3 of 4"):
        ZOTrainer(args=small(out), callbacks=[StopAt(3, number)]).train()
    assert len(lines(out / "log.jsonl")) == 3
    assert weights(out)
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "mo')  # a line that a crash cut short
    resumed = ZOTrainer(args=small(out, resume_from_checkpoint=True)).train()
    assert untimed(out / "log.jsonl") == untimed(folder / "log.jsonl")
    assert resumed.after == result.after
    first, second = weights(folder), weights(out)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resume_refuses_other_settings(done: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        ZOTrainer(args=small(tmp_path / "r"), callbacks=[StopAt(1)]).train()
    with pytest.raises(UserError, match=r"eps was 0\.005 .* now 0\.01"):
        ZOTrainer(args=small(tmp_path / "r", eps=0.01, resume_from_checkpoint=True)).train()


def test_a_folder_with_content_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        ZOTrainer(args=small(tmp_path)).train()
    ZOTrainer(args=small(tmp_path, overwrite_output_dir=True, max_steps=1)).train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_tuning_raises_the_score(tmp_path: Path) -> None:
    """The point of it all, short enough for every run: 40 steps, test split of 100."""
    settings = small(
        tmp_path / "run",
        max_steps=40,
        eval_steps=10,
        per_device_train_batch_size=32,
        max_eval_samples=None,
        max_test_samples=100,
        max_new_tokens=None,
        learning_rate=3e-3,
    )
    result = ZOTrainer(args=settings).train()
    assert result.difference > 0.1
    assert result.ci95[0] > 0
    assert result.verdict == "improved"


def test_a_reward_function_with_failures(tmp_path: Path) -> None:
    def brevity(completions: list[str], **kwargs: Any) -> list[float | None]:
        return [None if "the" in c.lower().split() else -len(c) / 100 for c in completions]

    ZOTrainer(objective=brevity, args=small(tmp_path / "run")).train()
    steps = lines(tmp_path / "run" / "log.jsonl")
    assert all(line["n"] + line["failed"] == 8 for line in steps)
    assert any(line["failed"] for line in steps)


def raising(after: int) -> Any:
    """A reward that works for a while."""
    calls = iter(range(10_000))

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        if next(calls) >= after:
            raise RuntimeError("the service is down")
        return [float(len(c)) for c in completions]

    return reward


def test_on_error_raise_stops_with_the_work_saved(tmp_path: Path) -> None:
    settings = small(tmp_path / "run", on_error="raise")
    with pytest.raises(UserError, match=r"'reward' raised RuntimeError: the service.*saved"):
        ZOTrainer(objective=raising(after=6), args=settings).train()
    assert lines(tmp_path / "run" / "log.jsonl")
    assert weights(tmp_path / "run")


def test_on_error_drop_loses_the_step_and_goes_on(tmp_path: Path) -> None:
    settings = small(tmp_path / "run", max_steps=6, eval_steps=100, learning_rate=1e-3)
    ZOTrainer(objective=raising(after=6), args=settings).train()
    failed = [line for line in lines(tmp_path / "run" / "log.jsonl") if not line["n"]]
    assert failed
    assert all(line["move"] == [] and line["values"] == [None, None] for line in failed)
    assert not any(line["tie"] for line in failed)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # The base is best, since nothing else could be measured; it is not asked about again.
    assert (result["best_step"], result["difference"]) == (0, 0.0)
    assert result["verdict"] == "not shown"


def test_a_hopeless_reward_stops_the_run(tmp_path: Path) -> None:
    settings = small(tmp_path / "run", max_steps=30, eval_steps=100)
    with pytest.raises(UserError, match=r"nothing could be scored in 10 steps in a row.*service"):
        ZOTrainer(objective=raising(after=3), args=settings).train()
    assert len(lines(tmp_path / "run" / "log.jsonl")) == 10


def test_a_reward_that_fails_now_and_then_is_no_broken_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def shaky(prompts, completions, **kwargs):\n"
        "    if hash(sum(map(ord, prompts[0]))) % 4 == 0: raise RuntimeError('busy')\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    settings = small(tmp_path / "run", max_steps=2, reward_workers=1)
    ZOTrainer(objective=f"{file}:shaky", args=settings).train()
    assert any(line["failed"] for line in lines(tmp_path / "run" / "log.jsonl"))
    assert any("busy" in message for message in caplog.messages)


def test_a_broken_reward_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the service is down"):
        ZOTrainer(objective=raising(after=0), args=small(tmp_path / "run")).train()
    assert not (tmp_path / "run").exists()


def test_floor_needs_a_worst_value(tmp_path: Path) -> None:
    settings = small(tmp_path / "run", on_error="floor")
    with pytest.raises(UserError, match="no worst value"):
        ZOTrainer(objective=raising(after=99), args=settings).train()


def test_rows_and_a_model_object_instead_of_names(tmp_path: Path) -> None:
    model, tokenizer = load_model("tiny-qa")
    rows = [
        {"sentence": f"film {i} is {'fine' if i % 2 else 'poor'}", "label": i % 2}
        for i in range(12)
    ]
    trainer = ZOTrainer(
        model=model,
        processing_class=tokenizer,
        task="sst2",
        objective="f1",
        args=small(tmp_path / "run", max_new_tokens=None, per_device_train_batch_size=6),
        train_dataset=rows,
        eval_dataset=rows,
        test_dataset=rows,
    )
    result = trainer.train()
    assert result.objective == "f1"
    assert 0 <= result.after <= 1
    with pytest.raises(UserError, match="processing_class"):
        ZOTrainer(model=model)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model, tokenizer = load_model("tiny-qa")
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.detach().clone()
    args = small(tmp_path / "run", max_steps=2, eval_steps=2)
    ZOTrainer(model=model, processing_class=tokenizer, args=args).train()
    assert torch.equal(model.model.embed_tokens.weight, before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_saves_what_was_measured(tmp_path: Path, dtype: str) -> None:
    result = ZOTrainer(args=small(tmp_path / "run", dtype=dtype)).train()
    settings = ZOConfig(model_name_or_path=str(tmp_path / "run"), max_new_tokens=8)
    assert evaluate(settings, "test", 24)["value"] == pytest.approx(result.after, abs=1e-6)


def test_sampling_scores_both_sides_with_the_same_noise(tmp_path: Path) -> None:
    """At an eps far too small to change anything, sampled pairs must tie."""
    args = small(tmp_path / "run", do_sample=True, temperature=1.3, eps=1e-9, max_steps=2)
    ZOTrainer(args=args).train()
    assert all(line["flips"] == 0 for line in lines(tmp_path / "run" / "log.jsonl"))


def test_minibatches_are_shuffled_epochs(tmp_path: Path) -> None:
    trainer = ZOTrainer(args=small(tmp_path / "run"))
    examples = trainer.task.examples("train", limit=20)
    stream = [e.index for step in range(5) for e in minibatch(examples, 8, 3, step)]
    assert sorted(stream[:20]) == sorted(stream[20:]) == list(range(20))
    assert stream[:20] != stream[20:]
    assert [e.index for e in minibatch(examples, 8, 3, 3)] == stream[24:32]
