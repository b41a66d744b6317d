"""What the README shows, works."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from zoobj import as_objective
from zoobj.cli import _parser
from zoobj.objective import Batch
from zoobj.registry import catalogue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = next(block for block in BLOCKS if "ZOTrainer" in block)
    exec(shown.replace("max_evals=4000", "max_evals=128, max_test_samples=8"), {})
    assert "token_f1 on 8 test examples" in capsys.readouterr().out
    assert (tmp_path / "out" / "result.json").is_file()


def test_the_reward_example_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(next(block for block in BLOCKS if "def brief" in block))
    objective = as_objective("rewards.py:brief")
    batch = Batch(
        prompts=["?", "?"],
        references=[["mill"], ["mill"]],
        rows={"answers": [{"text": ["mill"]}, {"text": ["mill"]}]},
        completions=["mill", "no"],
    )
    assert objective.score(batch) == [pytest.approx(0.95), 0.0]


def test_the_optimizer_example_learns() -> None:
    shown = next(block for block in BLOCKS if "ZOSGD" in block)
    seeded = shown.replace("(500, 2)", "(500, 2, generator=torch.Generator().manual_seed(0))")
    seeded = seeded.replace("opt =", "[p.data.zero_() for p in model.parameters()]\nopt =")
    names: dict[str, Any] = {}
    exec(seeded, names)
    model, x, y = names["model"], names["x"], names["y"]
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("page", ["README.md", "docs/runs.md", "docs/walk.md", "docs/methods.md"])
def test_every_flag_is_one_of_the_command_s(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    flags = set(re.findall(r"--([a-z][a-z0-9_]+)", text)) - {"index"}  # pip's --index-url
    assert flags
    verbs = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    known = {flag for verb in verbs.choices.values() for flag in verb._option_string_actions}
    assert {f"--{flag}" for flag in flags} <= known


@pytest.mark.parametrize("kind", ["objective", "task", "method"])
def test_the_tables_name_all_there_is(kind: str) -> None:
    by_other_means = {"reward", "yaml"}  # a function's path, a file's name
    for name in set(catalogue(kind)) - by_other_means:
        assert f"`{name}`" in README, name
