"""Uploading: what goes to the hub and what does not, and that a failure there costs no run.

The hub is a folder: HfApi's methods with its own choice of files (``ignore_patterns``).
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from zoobj import UserError, ZOConfig, ZOTrainer
from zoobj.models import load_model


def small(output_dir: Path, **more: Any) -> ZOConfig:
    """Settings of a run of a second, with an upload at its end."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "push_to_hub": True,
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 2,
        "eval_steps": 2,
        "per_device_train_batch_size": 4,
        "max_train_samples": 32,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "max_new_tokens": 4,
    }
    return ZOConfig(**{**settings, **more})


class Hub:
    """As much of HfApi as an upload needs; repositories are folders."""

    def __init__(self, root: Path):
        self.root = root
        self.created: list[dict[str, Any]] = []
        self.error: BaseException | None = None  # of the upload
        self.token: BaseException | None = None

    def whoami(self) -> dict[str, str]:
        if self.token is not None:
            raise self.token
        return {"name": "me"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        (self.root / full).mkdir(parents=True, exist_ok=exist_ok)
        self.created.append({"id": full, "private": private})
        return SimpleNamespace(repo_id=full)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], commit_message: str
    ) -> None:
        if self.error is not None:
            raise self.error
        paths = [p.relative_to(folder_path) for p in folder_path.rglob("*") if p.is_file()]
        for name in filter_repo_objects(map(str, paths), ignore_patterns=ignore_patterns):
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, target)
        assert commit_message

    def files(self, repo: str) -> set[str]:
        return {str(p.relative_to(self.root / repo)) for p in (self.root / repo).rglob("*.*")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("zoobj.hub._api", lambda: made)
    return made


UPLOADED = {
    *("README.md", "config.json", "config.yaml", "generation_config.json", "log.jsonl"),
    *("metrics.jsonl", "model.safetensors", "report.html", "result.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}


def test_the_run_is_uploaded_without_its_scaffolding(tmp_path: Path, hub: Hub) -> None:
    out = tmp_path / "tuned"

    class Leave:
        """What a killed session, or a reader of the folder, may have left there."""

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for name in (".model/model.safetensors", ".x.tmp/config.json", "pending.jsonl"):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text("left over")
            (out / "result.json.tmp").write_text("{")

    args = small(out, save_steps=1, report_to="tensorboard")
    result = ZOTrainer(args=args, callbacks=[Leave()]).train()
    assert (out / "checkpoint-1" / "model.safetensors").is_file()
    assert (out / ".lock").is_file()
    assert list(out.glob("runs/*/events*"))
    assert hub.files("me/tuned") == UPLOADED
    assert hub.created == [{"id": "me/tuned", "private": False}]
    there = hub.root / "me" / "tuned"
    assert json.loads((there / "result.json").read_text())["after"] == result.after
    assert (there / "README.md").read_text().startswith("---\nbase_model: tiny-qa")
    for name in UPLOADED:
        assert (there / name).read_bytes() == (out / name).read_bytes(), name
    load_model(str(there))


def test_where_to_and_whether_private(tmp_path: Path, hub: Hub) -> None:
    args = small(tmp_path / "run", hub_model_id="us/tuned-qa", hub_private_repo=True)
    ZOTrainer(args=args).train()
    assert hub.created == [{"id": "us/tuned-qa", "private": True}]
    assert hub.files("us/tuned-qa") == UPLOADED


def test_nothing_is_uploaded_unless_asked_for(tmp_path: Path, hub: Hub) -> None:
    hub.token = RuntimeError("asked")
    ZOTrainer(args=small(tmp_path / "run", push_to_hub=False)).train()
    assert hub.created == []


@pytest.mark.parametrize("error", [OSError("Token is required"), RuntimeError("")])
def test_who_is_not_logged_in_is_told_before_anything_is_done(
    tmp_path: Path, hub: Hub, error: Exception
) -> None:
    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        raise AssertionError("scored")

    hub.token = error
    trainer = ZOTrainer(objective=reward, args=small(tmp_path / "run", on_error="raise"))
    with pytest.raises(UserError, match=r"--push_to_hub: .+: log in with 'hf auth login'"):
        trainer.train()
    assert not (tmp_path / "run").exists()
    assert hub.created == []


@pytest.mark.parametrize("error", [OSError("413: too large\nmore"), KeyboardInterrupt()])
def test_a_failed_upload_leaves_the_run_complete(
    tmp_path: Path, hub: Hub, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, same = tmp_path / "run", tmp_path / "same"
    hub.error = error
    with pytest.raises(UserError) as raised:
        ZOTrainer(args=small(out)).train()
    message = str(raised.value)
    assert (str(error).partition("\n")[0] or "KeyboardInterrupt") in message
    assert f"the run is complete in {out}" in message
    assert f"'hf upload run {out}'" in message
    ZOTrainer(args=small(same, push_to_hub=False)).train()
    whole, cut = (json.loads((f / "result.json").read_text()) for f in (same, out))
    for key in ("before", "after", "verdict", "steps", "best_step", "stop_reason"):
        assert cut[key] == whole[key], key
    assert {p.name for p in out.iterdir()} == {p.name for p in same.iterdir()}

    def never(*args: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("zoobj.service.Service.judge", never)
    hub.error = None  # going on with the finished run uploads it, and scores nothing
    ZOTrainer(args=small(out, resume_from_checkpoint=True)).train()
    assert hub.files("me/run") == UPLOADED
    assert json.loads((hub.root / "me/run/result.json").read_text())["after"] == whole["after"]
