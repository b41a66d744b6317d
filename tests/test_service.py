"""Scoring in worker processes: side by side, and what hangs or dies costs one example."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import killed
import pytest

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, as_objective
from zoobj.outcome import judge
from zoobj.service import Service

REWARDS = """
import asyncio, os, signal, time

def length(completions, **kwargs):
    return [float(len(text)) for text in completions]

async def slow(completions, **kwargs):
    await asyncio.sleep(0.2 if completions[0] != "warm" else 0)
    return [float(len(text)) for text in completions]

def moody(completions, **kwargs):
    for text in completions:
        print(text)  # must not get among the replies
        if text == "hang":
            os.system("sleep 60 &")
            time.sleep(60)
        if text == "exit":
            os._exit(3)
        if text == "orphan":
            if os.fork():
                os._exit(3)
            time.sleep(30)
            os._exit(0)
        if text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "memory":
            bytearray(1 << 40)
        if text == "raise":
            raise RuntimeError("the service is down")
        if text == "none":
            return [None]
    return [float(len(text)) for text in completions]

def accuracy(predictions, references):
    if predictions[0] == "hang":
        time.sleep(60)
    return sum(p in r for p, r in zip(predictions, references)) / len(references)
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Any:
    """Objectives of a file, by name."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return lambda name: as_objective(f"{tmp_path / 'rewards.py'}:{name}")


def texts(*completions: str) -> Batch:
    n = len(completions)
    return Batch(prompts=["?"] * n, references=[["mill"]] * n, completions=list(completions))


def test_by_default_it_is_judge_in_this_process(rewards: Any) -> None:
    batch = texts("a", "bc", "")
    service = Service(rewards("length"))
    assert service.judge(batch) == judge(rewards("length"), batch)
    assert service._workers is None
    broken = Service(rewards("moody")).judge(texts("a", "raise"))
    assert broken == judge(rewards("moody"), texts("a", "raise"))


def test_slow_rewards_run_side_by_side(rewards: Any) -> None:
    with closing(Service(rewards("slow"), workers=8)) as service:
        service.judge(texts(*["warm"] * 64))  # the pool starts once
        start = time.perf_counter()
        outcome = service.judge(texts(*["x" * i for i in range(64)]))
        assert time.perf_counter() - start < 2.5
    assert outcome.scores == [float(i) for i in range(64)]


def test_calls_that_hang_or_die_cost_their_own_example_only(rewards: Any) -> None:
    bad = {3: "hang", 20: "hang", 40: "hang", 50: "exit", 51: "kill", 52: "raise", 53: "none"}
    batch = texts(*[bad.get(i, "x" * i) for i in range(64)])
    with closing(Service(rewards("moody"), workers=4, timeout=1.5)) as service:
        outcome = service.judge(batch)
        again = service.judge(texts("one", "three"))
    assert outcome.scores == [None if i in bad else float(i) for i in range(64)]
    assert outcome.failed == 7
    assert outcome.error is not None
    assert again.scores == [3.0, 5.0]
    report = service.report()
    assert report["failed"] == {"none": 1, "raised": 1, "timeout": 3, "died": 2}
    assert any("took more than 1.5 s" in error for error in report["errors"])
    assert any("exit code 3" in error for error in report["errors"])
    assert any("SIGKILL" in error for error in report["errors"])
    assert [row["completion"] for row in report["slowest"][:3]] == ["hang"] * 3
    assert report["seconds"]["p50"] < report["seconds"]["max"]


def test_a_worker_that_was_killed_is_gone_before_the_next_call(rewards: Any) -> None:
    with closing(Service(rewards("moody"), workers=1, timeout=1)) as service:
        assert service.judge(texts(*["hang", "good"] * 4)).scores == [None, 4.0] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_dead_scorer_keeps_nobody_waiting(rewards: Any) -> None:
    start = time.perf_counter()
    with closing(Service(rewards("moody"), workers=1)) as service:
        assert service.judge(texts("orphan", "good")).scores == [None, 4.0]
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("workers", [0, 1])
def test_calls_are_made_again(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try counts; None is the scorer's word, and is not asked about again."""
    monkeypatch.setattr("zoobj.workers.PAUSE", 0.01)
    (tmp_path / "rewards.py").write_text(
        "import os\n"
        "def shaky(completions, **kwargs):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "        calls.write(completions[0][0])\n"
        "    count = open(calls.name).read().count(completions[0][0])\n"
        "    if completions[0] in ('once', 'ever') and (count < 2 or completions[0] == 'ever'):\n"
        "        raise RuntimeError('busy')\n"
        "    return [None if text == 'none' else 1.0 for text in completions]\n"
    )
    objective = as_objective(f"{tmp_path / 'rewards.py'}:shaky")
    with closing(Service(objective, workers=workers, retries=2)) as service:
        for text, scores, calls in (("once", [1.0], 2), ("none", [None], 1), ("ever", [None], 3)):
            assert service.judge(texts(text)).scores == scores
            assert (tmp_path / "calls").read_text().count(text[0]) == calls
        report = service.report()
    assert report["retries"] == 3
    assert report["failed"] == {"none": 1, "raised": 1, "timeout": 0, "died": 0}


def test_a_call_that_is_late_or_dies_is_made_again(tmp_path: Path) -> None:
    """In another worker, after a pause."""
    (tmp_path / "rewards.py").write_text(
        "import os, time\n"
        "def first(completions, **kwargs):\n"
        f"    mark = os.path.join({str(tmp_path)!r}, completions[0])\n"
        "    if os.path.exists(mark):\n"
        "        return [1.0]\n"
        "    open(mark, 'w').close()\n"
        "    time.sleep(60) if completions[0] == 'hang' else os._exit(3)\n"
    )
    objective = as_objective(f"{tmp_path / 'rewards.py'}:first")
    with closing(Service(objective, workers=2, timeout=1.5, retries=1)) as service:
        outcome = service.judge(texts("hang", "exit"))
    assert (outcome.scores, outcome.error) == ([1.0, 1.0], None)
    assert service.report()["retries"] == 2


def test_memory_is_limited(rewards: Any) -> None:
    with closing(Service(rewards("moody"), memory=4)) as service:
        outcome = service.judge(texts("fine", "memory", "good"))
    assert outcome.scores == [4.0, None, 4.0]
    assert "MemoryError" in (outcome.error or "")


def test_a_set_level_objective_is_one_call(rewards: Any) -> None:
    with closing(Service(rewards("accuracy"), timeout=1.5)) as service:
        assert service.judge(texts("mill", "no")).value == 0.5
        late = service.judge(texts("hang", "no"))
    assert math.isnan(late.value)
    assert late.failed == 2


def test_functions_without_a_file_go_along() -> None:
    offset = 2.0

    def scored(completions: list[str], **kwargs: Any) -> list[float]:
        return [len(text) + offset for text in completions]

    with closing(Service(as_objective(scored), workers=1)) as service:
        assert service.judge(texts("a", "")).scores == [3.0, 2.0]


def test_what_can_t_be_sent_is_refused() -> None:
    class Held(Objective):
        name = "held"

        def __init__(self) -> None:
            self.stream = (i for i in range(3))

        def score(self, batch: Batch) -> list[float | None]:
            return [0.0] * len(batch)

    with pytest.raises(UserError, match="'held' can't be sent to a worker process"):
        Service(Held(), workers=1).judge(texts("a"))


def test_scoring_goes_on_while_the_next_batch_is_made(rewards: Any) -> None:
    def batches() -> Iterator[Batch]:
        for number in range(4):
            time.sleep(0.3)  # the model generates
            yield texts(*["x" * number] * 2)

    with closing(Service(rewards("slow"), workers=2)) as service:
        service.judge(texts("warm", "warm"))
        start = time.perf_counter()
        values = [outcome.value for outcome in service.each(batches())]
        assert time.perf_counter() - start < 4 * 0.3 + 0.2 + 0.35  # one after another: 2.0
    assert values == [0.0, 1.0, 2.0, 3.0]


def test_an_objective_s_own_policy_goes_first(rewards: Any) -> None:
    objective = rewards("moody")
    objective.on_error, objective.timeout = "raise", 1.0
    service = Service(objective, on_error="drop")
    assert (service.timeout, service.count) == (1.0, 1)
    with closing(service), pytest.raises(UserError, match="the service is down"):
        service.judge(texts("fine", "raise"))


def test_a_share_of_failures_is_too_many(rewards: Any) -> None:
    service = Service(rewards("moody"), workers=1, max_failed=0.5)
    with closing(service):
        assert service.judge(texts("raise", "fine")).failed == 1
        with pytest.raises(UserError, match=r"2 of 3 examples, more than --max_failed 0.5"):
            service.judge(texts("raise", "none", "fine"))


def test_a_run_pauses_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """The service of the reward goes down after some calls, and comes back."""
    down = tmp_path / "down"
    (tmp_path / "service.py").write_text(
        "import os\n"
        "def far(completions, **kwargs):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "        calls.write('.')\n"
        f"    if os.path.exists({str(down)!r}) and os.path.getsize(calls.name) > 40:\n"
        "        raise RuntimeError('the service is down')\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    more = ["--objective", tmp_path / "service.py:far", "--max_failed", "0.2"]
    more += ["--reward_workers", "1"]
    assert killed.run(*killed.train(tmp_path / "whole", *more)) == 0
    (tmp_path / "calls").unlink()
    down.touch()
    assert killed.run(*killed.train(tmp_path / "run", *more)) == 2
    said = killed.printed(tmp_path / "run").splitlines()[-1]
    assert "more than --max_failed 0.2 allows" in said
    assert "--resume_from_checkpoint" in said
    figures = json.loads((tmp_path / "run" / "scoring.json").read_text())
    assert figures["failed"]["raised"] > 0
    down.unlink()
    assert killed.run(*killed.resumed(tmp_path / "run")) == 0
    assert killed.left(tmp_path / "run") == killed.left(tmp_path / "whole")


# Combinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_combination_is_scored_part_by_part(workers: int, rewards: Any) -> None:
    """As ``judge`` does it; what hangs costs its own example, what is beside costs nothing."""
    whole = as_objective([rewards("length"), {"name": rewards("accuracy"), "weight": 2}])
    asked = texts("a", "bcd", "", "xy")
    expected = judge(whole, asked)
    with closing(Service(whole, workers=workers)) as service:
        found = service.judge(asked)
        assert found.value == expected.value
        assert {name: part.scores for name, part in found.parts.items()} == {
            name: part.scores for name, part in expected.parts.items()
        }
        assert {name: told["examples"] for name, told in service.report()["parts"].items()} == {
            "length": 4,
            "accuracy": 4,
        }


def test_a_part_that_hangs_costs_one_example(rewards: Any) -> None:
    moody = {"name": rewards("moody"), "weight": 0}
    asked = texts("a", "hang", "exit")
    with closing(Service(as_objective([rewards("length"), moody]), timeout=0.5)) as service:
        found = service.judge(asked)
    assert found.scores == [1.0, 4.0, 4.0]
    assert found.beside["moody"].scores == [1.0, None, None]
    with closing(
        Service(as_objective([rewards("length"), rewards("moody")]), timeout=0.5)
    ) as service:
        assert service.judge(asked).scores == [2.0, None, None]


def test_too_many_failures_of_a_part_are_too_many(rewards: Any) -> None:
    whole = as_objective([rewards("length"), rewards("moody")])
    with closing(Service(whole, workers=1, max_failed=0.4)) as service:
        assert service.judge(texts("a", "b", "none")).failed == 1
        with pytest.raises(UserError, match="more than --max_failed"):
            service.judge(texts("a", "none", "none"))
