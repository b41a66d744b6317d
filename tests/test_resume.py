"""A run that was killed, cut off or starved of disk continues to the very same end."""

import itertools
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import killed
import pytest

METHODS = {
    "zo-sgd": [],
    "zo-sgd, plain": ["--normalize", "false", "--learning_rate", "1e-5"],
    "with state": ["--method", f"{killed.HERE / 'heavy_ball.py'}:HeavyBall"],
    "with checkpoints": ["--save_steps", "2", "--save_total_limit", "1"],
    "steer, checkpoints": ["--tune", "steer", "--directions", "2", "--save_steps", "2"],
    "bfloat16, checkpoints": ["--dtype", "bfloat16", "--save_steps", "1"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run of each kind, and how long it took; made when it is asked for."""
    made: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            assert killed.run(*killed.train(out, *METHODS[kind])) == 0, killed.printed(out)
            made[kind] = killed.left(out)
        return made[kind]

    return of


def kill_and_resume(out: Path, kind: str, draw: random.Random, longest: float) -> int:
    """Kill a run again and again until it gets to its end; how many times."""
    arguments = killed.train(out, *METHODS[kind])
    for kills in itertools.count():
        seconds = draw.uniform(0, longest * 1.1**kills)  # on a slow machine too it ends
        code = killed.killed_after(seconds, *arguments)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, killed.printed(out)
        begun = (out / "config.yaml").is_file()
        arguments = killed.resumed(out) if begun else killed.train(out, *METHODS[kind])
    raise AssertionError


@pytest.mark.parametrize("kind", METHODS)
def test_killed_at_random_moments(tmp_path: Path, whole: Any, kind: str) -> None:
    draw, kills = random.Random(kind), 0
    for number in itertools.count():
        kills += kill_and_resume(tmp_path / str(number), kind, draw, 1.0)
        assert killed.left(tmp_path / str(number)) == whole(kind)
        if kills > 6:
            break
    assert kills > 6


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path, whole: Any) -> None:
    draw, kills = random.Random(200), 0
    for number, kind in enumerate(itertools.cycle(METHODS)):
        kills += kill_and_resume(tmp_path / str(number), kind, draw, 1.0)
        assert killed.left(tmp_path / str(number)) == whole(kind)
        if kills >= 200:
            break


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_at_random_moments(tmp_path: Path, whole: Any, number: int) -> None:
    draw, stops = random.Random(number), 0
    for trial in range(8):
        out = tmp_path / str(trial)
        code = killed.killed_after(
            draw.uniform(0, 0.4), *killed.train(out), number=number, there=out / "config.yaml"
        )
        assert code in (0, 130, -signal.SIGTERM), killed.printed(out)
        if code == 130 and (out / "config.yaml").is_file():
            stops += 1
            said = killed.printed(out).splitlines()[-1]
            assert said.startswith(f"zoobj: interrupted by {signal.Signals(number).name} at step")
            assert not said.endswith("saved there") or (out / "model.safetensors").is_file()
        if code:
            begun = (out / "config.yaml").is_file()
            assert killed.run(*(killed.resumed(out) if begun else killed.train(out))) == 0
        assert killed.left(out) == whole("zo-sgd")
    assert stops >= 2


def test_scores_that_came_back_are_not_asked_for_again(tmp_path: Path, whole: Any) -> None:
    """A slow reward that counts its calls: a kill costs the call under way, and no other."""
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "def slow(completions, **kwargs):\n"
        "    time.sleep(0.1)\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "        calls.write('.')\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    arguments = ["--objective", tmp_path / "slow.py:slow"]
    assert killed.run(*killed.train(tmp_path / "whole", *arguments)) == 0
    needed = len((tmp_path / "calls").read_text())
    draw, kills, resumed = random.Random(7), 0, 0
    (tmp_path / "calls").unlink()
    command = killed.train(tmp_path / "run", *arguments)
    while killed.killed_after(draw.uniform(0.3, 1.1) * 1.1**kills, *command) != 0:
        kills += 1
        if (tmp_path / "run" / "config.yaml").is_file():
            command = killed.resumed(tmp_path / "run")
            resumed += 1
    assert resumed >= 1
    preflights = kills - resumed
    assert len((tmp_path / "calls").read_text()) <= needed + kills + preflights
    assert killed.left(tmp_path / "run") == killed.left(tmp_path / "whole")


@pytest.mark.parametrize("size", [2400, 2600, 2900, 3500, 20_000])
def test_a_file_that_cannot_grow(tmp_path: Path, whole: Any, size: int) -> None:
    """The system takes no byte beyond a size: of the log, or of the model at the end."""
    out = tmp_path / "run"

    assert killed.run(*killed.train(out), size=size) == 2
    said = killed.printed(out).splitlines()[-1]
    assert "File too large" in said
    assert "--resume_from_checkpoint" in said
    assert not list(out.glob("*.tmp")), "half a file is left"
    assert killed.run(*killed.resumed(out)) == 0, killed.printed(out)
    assert killed.left(out) == whole("zo-sgd")


@pytest.mark.parametrize("megabytes", [1, 5, 9])
def test_a_full_disk(tmp_path: Path, whole: Any, megabytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        out, kind = disk / "run", "with checkpoints"
        assert killed.run(*killed.train(out, *METHODS[kind])) == 2
        assert "No space left on device" in killed.printed(out).splitlines()[-1]
        grow = ["mount", "-o", "remount,size=64m", str(disk)]
        assert subprocess.run(grow, capture_output=True).returncode == 0
        assert killed.run(*killed.resumed(out)) == 0, killed.printed(out)
        assert killed.left(out) == whole(kind)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path, whole: Any) -> None:
    out = tmp_path / "run"
    slow = ["--max_test_samples", "60"]  # so that there is time
    first = killed.start(*killed.train(out, *slow))
    while not (out / "config.yaml").is_file():
        assert first.is_alive(), killed.printed(out)
        time.sleep(0.01)
    assert killed.run(*killed.resumed(out)) == 2
    assert "another process is writing there" in killed.printed(out)
    first.kill()
    first.join()
    assert killed.run(*killed.resumed(out)) == 0, killed.printed(out)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A log after one of the things that happen to files."""
    lines = content.splitlines(keepends=True)
    i, j = sorted(draw.choices(range(len(lines)), k=2))
    at = draw.randrange(len(content))
    flipped = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    swapped = lines[:i] + lines[i + 1 : j + 1] + lines[i : i + 1] + lines[j + 1 :]
    number = draw.choice(re.findall(rb"\d+\.\d+", content) or [b"0"])
    return draw.choice(
        [
            content[:at],
            flipped,
            flipped,
            b"".join(swapped),
            b"".join(lines[:i] + lines[i + 1 :]),
            b"".join(lines[: i + 1] + lines[i:]),
            content[:at] + bytes(20) + content[at + 20 :],
            content.replace(number, b"0.125"),
            content + content[:at],
        ]
    )


DAMAGES = {
    "log.jsonl": 100,
    "metrics.jsonl": 12,
    "outcomes.jsonl": 6,
    "pending.jsonl": 6,
    "checkpoint-3/model.safetensors": 4,
    "checkpoint-3/zoobj.json": 4,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_mended_or_refused(tmp_path: Path, whole: Any, name: str) -> None:
    """The right end, or for what can't be made again a clear line."""
    out, draw = tmp_path / "run", random.Random(name)
    fresh = tmp_path / "fresh"
    command = killed.train(fresh, "--save_steps", "3")
    there = fresh / "checkpoint-3"
    while not there.is_dir() or not (fresh / "pending.jsonl").is_file():
        shutil.rmtree(fresh, ignore_errors=True)
        killed.killed_after(draw.uniform(0, 0.1), *command, there=there)
    sound = (fresh / name).read_bytes()
    refused = 0
    for _ in range(DAMAGES[name]):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(fresh, out)
        (out / name).write_bytes(damaged(sound, draw))
        before = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
        code = killed.run(*killed.resumed(out))
        if code == 2:
            refused += 1
            said = killed.printed(out).splitlines()[-1]
            assert re.search(rf"{name}: line \d+ is damaged or altered", said), said
            assert before == {path: path.read_bytes() for path in out.rglob("*.jsonl")}
        else:
            assert code == 0, killed.printed(out)
            assert killed.left(out) == whole("zo-sgd")
    assert refused if name in ("log.jsonl", "metrics.jsonl") else not refused
