"""Somebody else's objective: checked by the command; a package, built and installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoobj.check import check_objective
from zoobj.config import ZOConfig
from zoobj.errors import UserError

ROOT = Path(__file__).parents[1]

REWARDS = """
def fine(completions, answers, **kwargs):
    return [float(len(text)) for text in completions]

def short(completions, **kwargs):
    return [1.0]

def crowd(completions, **kwargs):
    return [len(text) / max(map(len, completions), default=1) if text else 0.0
            for text in completions]

def accuracy(predictions, references):
    return sum(p == r for p, r in zip(predictions, references)) / len(references)

def raises(completions, **kwargs):
    raise RuntimeError("the service is down")

def priced(completions, price):
    return [0.0 for text in completions]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path / "rewards.py"


@pytest.mark.parametrize("name", ["fine", "accuracy"])
def test_a_sound_objective(rewards: Path, name: str) -> None:
    lines = list(check_objective(f"{rewards}:{name}", ZOConfig()))
    assert len(lines) > 8
    assert all(line.startswith("ok: ") for line in lines)


@pytest.mark.parametrize("spec", ["token_f1", "f1", "loglikelihood"])
def test_our_own(spec: str) -> None:
    assert list(check_objective(spec, ZOConfig()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 scores for 4"),
        ("crowd", "examples do not see each other: no .a score depends on the others"),
        ("raises", "the service is down"),
        ("priced", "takes 'price', which is not there"),
    ],
)
def test_what_is_wrong_is_said(rewards: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(check_objective(f"{rewards}:{name}", ZOConfig()))


def command(*arguments: str | Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
        check=False,
    )


def test_the_command(rewards: Path) -> None:
    sound = command("zoobj", "validate", "objective", f"{rewards}:fine")
    assert sound.returncode == 0, sound.stderr
    assert "ok: within bounds" in sound.stdout
    broken = command("zoobj", "validate", "objective", f"{rewards}:short")
    assert broken.returncode == 2
    assert len(broken.stderr.splitlines()) == 1
    assert "say which" in command("zoobj", "validate", "objective").stderr


@pytest.mark.slow
def test_the_package_is_built_installed_and_found(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", site)
    installed = command("pip", "install", *flags, source)
    assert installed.returncode == 0, installed.stderr
    listed = command("zoobj", "ls", "objectives", path=site)
    assert "[zoobj_mentions:Mentions]" in listed.stdout, listed.stderr
    tested = command("pytest", "-q", "-p", "no:cacheprovider", source / "tests", path=site)
    assert tested.returncode == 0, tested.stdout
