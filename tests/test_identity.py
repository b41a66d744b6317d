"""A run is continued as itself: other settings, data, base, code or log are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zoobj import UserError, ZOConfig, ZOTrainer
from zoobj.models import load_model

ROWS = [
    {"id": str(i), "title": "t", "context": f"The cat {i} sat.", "question": f"Who sat, {i}?"}
    | {"answers": {"text": [f"cat {i}"], "answer_start": [4]}}
    for i in range(40)
]


@pytest.fixture
def begun(tmp_path: Path) -> dict[str, Any]:
    """A run of rows, a reward file and a saved base, stopped after 3 of 4 steps."""
    model, tokenizer = load_model("tiny-qa")
    for place in (model, tokenizer):
        place.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "reward.py").write_text(
        "def brief(completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"
    )
    told: dict[str, Any] = {
        "model_name_or_path": str(tmp_path / "base"),
        "task": "squad",
        "train_file": str(tmp_path / "rows.json"),
        "validation_file": str(tmp_path / "rows.json"),
        "test_file": str(tmp_path / "rows.json"),
        "objective": f"{tmp_path / 'reward.py'}:brief",
        "output_dir": str(tmp_path / "run"),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 4,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "max_new_tokens": 3,
    }

    class Stop:
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        ZOTrainer(args=ZOConfig(**told), callbacks=[Stop]).train()
    return told


def resume(told: dict[str, Any], **more: Any) -> ZOTrainer:
    """All settings left open, but for these."""
    return ZOTrainer(
        args=ZOConfig(output_dir=told["output_dir"], resume_from_checkpoint=True, **more)
    )


def refused(told: dict[str, Any], message: str, **more: Any) -> None:
    folder = Path(told["output_dir"])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message):
        resume(told, **more).train()
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_settings_left_open_are_the_run_s(begun: dict[str, Any]) -> None:
    trainer = resume(begun)
    assert trainer.args.max_new_tokens == 3
    assert trainer.train().steps == 4


def test_a_path_names_the_run(begun: dict[str, Any], tmp_path: Path) -> None:
    args = ZOConfig(resume_from_checkpoint=begun["output_dir"])
    assert ZOTrainer(args=args).train().steps == 4
    elsewhere = {"output_dir": str(tmp_path / "b"), "resume_from_checkpoint": begun["output_dir"]}
    with pytest.raises(UserError, match="to go on elsewhere, --branch_from"):
        ZOTrainer(args=ZOConfig(**elsewhere))


def test_resuming_by_train_s_argument(begun: dict[str, Any]) -> None:
    trainer = ZOTrainer(args=ZOConfig(**begun))
    with pytest.raises(UserError, match="not empty"):
        trainer.train()
    assert trainer.train(resume_from_checkpoint=True).steps == 4
    trainer = ZOTrainer(args=ZOConfig(**{**begun, "max_new_tokens": 4}))
    with pytest.raises(UserError, match="max_new_tokens was 3"):
        trainer.train(resume_from_checkpoint=begun["output_dir"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eps", 0.01),
        ("seed", 1),
        ("noise", "gaussian"),
        ("method", "zo_sgd"),
        ("lr_scheduler_type", "constant"),
        ("per_device_train_batch_size", 5),
        ("eval_steps", 1),
        ("max_eval_samples", 5),
        ("density", 0.5),
    ],
)
def test_another_setting_is_refused(begun: dict[str, Any], key: str, value: Any) -> None:
    if key == "method":
        value = f"{Path(__file__).parent / 'heavy_ball.py'}:HeavyBall"
    refused(begun, rf"--resume_from_checkpoint: {key} was .*, now .*--branch_from", **{key: value})


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_other_data_are_refused(begun: dict[str, Any], tmp_path: Path, split: str) -> None:
    changed = [{**row, "question": row["question"].replace("Who", "What")} for row in ROWS]
    (tmp_path / "other.json").write_text(json.dumps(changed))
    message = f"the {split} data of .* have changed"
    refused(begun, message, **{f"{split}_file": str(tmp_path / "other.json")})


def test_data_may_be_moved(begun: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.json").rename(tmp_path / "moved.json")
    files = {f"{split}_file": str(tmp_path / "moved.json") for split in ("train", "test")}
    resume(begun, **files, validation_file=str(tmp_path / "moved.json")).train()


def test_another_base_is_refused_and_a_moved_one_is_not(
    begun: dict[str, Any], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.rename(tmp_path / "moved")
    model, tokenizer = load_model(str(tmp_path / "moved"))
    with torch.no_grad():
        model.model.norm.weight[3] += 2**-20
    for place in (model, tokenizer):
        place.save_pretrained(base)
    refused(begun, "is not the base of the run: its weights have checksum")
    resume(begun, model_name_or_path=str(tmp_path / "moved")).train()


def test_a_changed_reward_file_is_refused(begun: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "reward.py").open("a") as file:
        file.write("# mended\n")
    refused(begun, "the file of objective .* has changed since .*--branch_from")


def test_a_bent_log_is_refused(begun: dict[str, Any]) -> None:
    log = Path(begun["output_dir"]) / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"evals":16', '"evals":15')
    log.write_text("".join(lines))
    refused(begun, r"log\.jsonl: line 2 is damaged or altered")


def test_bent_settings_are_told_from_the_log(begun: dict[str, Any]) -> None:
    config = Path(begun["output_dir"]) / "config.yaml"
    config.write_text(config.read_text().replace("eps: 0.005", "eps: 0.05"))
    refused(begun, r"eps was 0\.005 .* now 0\.05")


@pytest.mark.parametrize("text", ["", "eps: [", "eps: 0.1\n", "environment: 3\neps: 0.005\n"])
def test_a_config_that_is_none_is_refused(begun: dict[str, Any], text: str) -> None:
    (Path(begun["output_dir"]) / "config.yaml").write_text(text)
    refused(begun, r"config\.yaml")


def test_a_log_of_another_format_is_refused(begun: dict[str, Any]) -> None:
    from zoobj.log import ORIGIN, sealed

    log = Path(begun["output_dir"]) / "log.jsonl"
    line = json.loads(log.read_text().splitlines()[0])
    names = list(line)
    body = {name: line[name] for name in names[: names.index("hash")]}
    body["run"]["format"] = 2
    timings = {"seconds": 1.0, "seconds_in_walk": 0.1}
    log.write_text(sealed(body, ORIGIN, timings) + "\n")
    refused(begun, "has format 2; this zoobj reads 1")
    with pytest.raises(UserError, match="in format 1"):
        ZOTrainer.from_log(str(log))


def test_memory_that_runs_out_leaves_a_run_to_resume(
    begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoobj.scoring import Scorer

    def full(self: Scorer, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Scorer, "__call__", full)
        with pytest.raises(UserError, match=r"lower max_prompt_length; at step 3 of 4"):
            resume(begun).train()
    assert resume(begun, per_device_eval_batch_size=2).train().steps == 4


def test_the_base_model_is_not_overwritten(begun: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    before = {p: p.read_bytes() for p in base.iterdir()}
    told = {**begun, "output_dir": str(base), "overwrite_output_dir": True}
    with pytest.raises(UserError, match="holds the base model"):
        ZOTrainer(args=ZOConfig(**told)).train()
    assert before == {p: p.read_bytes() for p in base.iterdir()}
