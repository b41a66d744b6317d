"""Scores on disk: nothing is paid for twice, and damage costs the damaged lines only."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoobj.objective import Batch, Objective, Score, as_objective
from zoobj.score_cache import ScoreCache, example_key, identity
from zoobj.service import Service


class Counted(Objective):
    """Counts the examples that it is asked about."""

    name, bounds = "counted", (0.0, None)
    asked = 0

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def score(self, batch: Batch) -> list[Score]:
        type(self).asked += len(batch)
        return [self.factor * len(text) if text else None for text in batch.completions or []]


class Drawn(Counted):
    deterministic = False


def texts(*completions: str, **rows: list[Any]) -> Batch:
    n = len(completions)
    return Batch(["?"] * n, [["mill"]] * n, rows=rows, completions=list(completions))


BATCH = texts("a", "bcd", "", "mill \U0001f600")


def asked(objective: Objective, folder: Path, batch: Batch = BATCH) -> tuple[int, list[Score]]:
    before = type(objective).asked  # type: ignore[attr-defined]
    scores = Service(objective, cache=str(folder)).judge(batch).scores
    assert scores is not None
    return type(objective).asked - before, scores  # type: ignore[attr-defined]


def test_a_second_run_asks_for_nothing_but_what_failed(tmp_path: Path) -> None:
    count, first = asked(Counted(), tmp_path)
    assert count == 4
    count, second = asked(Counted(), tmp_path)
    assert (count, second) == (1, first)  # the empty completion has no score
    assert asked(Counted(), tmp_path, texts("a", "bcd"))[0] == 0


def test_other_arguments_rows_or_completions_are_other_scores(tmp_path: Path) -> None:
    asked(Counted(), tmp_path)
    assert asked(Counted(2.0), tmp_path) == (4, [2.0, 6.0, None, 12.0])
    assert asked(Counted(), tmp_path, texts("a", price=[3]))[0] == 1
    assert asked(Counted(), tmp_path, texts("ab"))[0] == 1


def test_what_is_drawn_is_never_kept(tmp_path: Path) -> None:
    for _ in range(2):
        assert asked(Drawn(), tmp_path / "cache")[0] == 4
    assert not (tmp_path / "cache").exists()


def test_a_file_cut_at_any_byte_or_damaged_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    asked(Counted(), tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    keys = [example_key(BATCH, i) for i in range(4)]
    right = [1.0, 3.0, None, 6.0]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = [ScoreCache(str(tmp_path), Counted()).get(key) for key in keys]
        lines = whole[:cut].count(b"\n") + (whole[cut : cut + 1] == b"\n")
        assert sum(score is not None for score in found) == lines
        assert all(score in (None, known) for score, known in zip(found, right, strict=True))
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = [ScoreCache(str(tmp_path), Counted()).get(key) for key in keys]
        assert all(score in (None, known) for score, known in zip(found, right, strict=True))
        assert sum(score is not None for score in found) >= 1
    path.write_bytes(whole[:-5])
    assert asked(Counted(), tmp_path)[0] == 2  # the one that was cut off, and the empty one
    assert asked(Counted(), tmp_path)[0] == 1


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from zoobj.score_cache import ScoreCache; from zoobj.objective import "
        "as_objective; cache = ScoreCache(sys.argv[1], as_objective('token_f1'))\n"
        "for i in range(40): cache.put({f'{sys.argv[2]}-{i}': float(i)})"
    )
    root = str(Path(__file__).parents[1])
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=root)
        for name in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    cache = ScoreCache(str(tmp_path), as_objective("token_f1"))
    assert all(cache.get(f"{name}-{i}") == i for name in "ab" for i in range(40))


def test_the_code_of_a_function_is_part_of_its_name(tmp_path: Path) -> None:
    told = []
    for number in range(2):
        file = tmp_path / f"{number}" / "rewards.py"
        file.parent.mkdir()
        file.write_text(f"def f(completions):\n    return [{number}.0] * len(completions)\n")
        told.append(identity(as_objective(f"{file}:f")))
    assert told[0] != told[1]


def test_scores_of_a_program_are_known_by_its_file(tmp_path: Path) -> None:
    program, spec = tmp_path / "score.py", f"command:{sys.executable} {tmp_path / 'score.py'}"
    program.write_text("import sys\nfor line in sys.stdin: print(0.5)\n")
    cache, batch = str(tmp_path / "cache"), texts("a", "b")
    first = Service(as_objective(spec), cache=cache)
    used = identity(first.objective)
    assert first.judge(batch).scores == [0.5, 0.5]
    assert identity(first.objective) == used  # though it runs now
    again = Service(as_objective(spec), cache=cache)
    assert (again.judge(batch).scores, again.figures.from_cache) == ([0.5, 0.5], 2)
    program.write_text("import sys\nfor line in sys.stdin: print(0.25)\n")
    assert Service(as_objective(spec), cache=cache).judge(batch).scores == [0.25, 0.25]


@pytest.mark.parametrize("spec", ["token_f1", "exact_match", "command:cat", "sentence_bleu"])
def test_identity_is_the_same_in_another_process(spec: str) -> None:
    code = "import sys, json; from zoobj.score_cache import identity; from zoobj.objective import "
    code += "as_objective; print(json.dumps(identity(as_objective(sys.argv[1]))))"
    root = str(Path(__file__).parents[1])
    said = [
        subprocess.run([sys.executable, "-c", code, spec], cwd=root, capture_output=True).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1] != b""
