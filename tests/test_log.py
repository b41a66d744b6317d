"""Sealed lines: what was written is read back, and nothing else is taken for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoobj import UserError
from zoobj.files import StorageError, append_text, remove_folder, replace_folder, replace_text
from zoobj.journal import Journal
from zoobj.log import ORIGIN, Log, opened, sealed
from zoobj.objective import Batch
from zoobj.outcome import Outcome
from zoobj.task import Example

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BODIES = st.lists(
    st.dictionaries(st.text(max_size=6), VALUES, max_size=3), min_size=1, max_size=5
).map(
    lambda found: [{"step": i, **{f"x{k}": v for k, v in b.items()}} for i, b in enumerate(found)]
)
SECONDS = st.floats(0, 1e6).map(lambda x: round(x, 4))


def written(path: Path, bodies: list[dict[str, Any]], seconds: float = 0.25) -> Log:
    path.unlink(missing_ok=True)
    log = Log(path, steps=True)
    for body in bodies:
        log.append(body, {"seconds": seconds, "seconds_in_walk": 0.0})
    return log


def bodies_of(log: Log) -> list[dict[str, Any]]:
    extra = {"hash", "seconds", "seconds_in_walk"}
    return [{key: value for key, value in line.items() if key not in extra} for line in log.lines]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log.jsonl"


@given(bodies=BODIES, seconds=SECONDS)
def test_lines_are_read_back(path: Path, bodies: list[dict[str, Any]], seconds: float) -> None:
    log = written(path, bodies, seconds)
    again = Log(path, steps=True)
    assert again.lines == log.lines
    assert bodies_of(again) == bodies
    assert again.hash == log.lines[-1]["hash"]
    assert again.text(1) == path.read_text().splitlines(keepends=True)[0]
    assert all(json.loads(line) for line in path.read_text().split("\n")[:-1])


@given(bodies=BODIES, data=st.data())
def test_no_change_of_a_byte_is_taken_for_the_log(
    path: Path, bodies: list[dict[str, Any]], data: st.DataObject
) -> None:
    """It is refused by line, or it is a shorter log, or only timings differ."""
    written(path, bodies)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(["change", "drop", "add", "cut"]))
    rest = {"change": content[at + 1 :], "drop": content[at + 1 :], "add": content[at:], "cut": b""}
    new = b"" if kind in ("drop", "cut") else bytes([byte])
    path.write_bytes(content[:at] + new + rest[kind])
    line = content[:at].count(b"\n") + 1
    refusals = [f"line {n} is damaged" for n in (line, line + 1)]
    found, said = [], refusals[0]
    try:
        found = bodies_of(Log(path, steps=True))
    except UserError as error:
        said = str(error)
    assert any(refusal in said for refusal in refusals)
    assert found == bodies[: len(found)]


def test_the_hash_does_not_depend_on_time(path: Path) -> None:
    assert written(path, [{"step": 0}], 1.0).hash == written(path, [{"step": 0}], 2.0).hash


def test_a_line_out_of_order_is_refused_though_it_is_sealed(path: Path) -> None:
    log = written(path, [{"step": 0}])
    line = sealed({"step": 2}, log.hash, {"seconds": 1.0, "seconds_in_walk": 1.0})
    append_text(path, line + "\n")
    with pytest.raises(UserError, match="line 2 is damaged or altered"):
        Log(path, steps=True)


def test_after_a_line_that_was_cut_short_the_log_goes_on(path: Path) -> None:
    written(path, [{"step": 0}, {"step": 1}])
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    log = Log(path, steps=True)
    assert len(log.lines) == 1
    assert path.read_bytes() == content[:-7]  # reading changes nothing
    log.append({"step": 1}, {"seconds": 0.25, "seconds_in_walk": 0.0})
    assert path.read_bytes() == content


def test_numbers_that_json_lacks_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        sealed({"value": float("nan")}, ORIGIN, {})
    assert opened(b"{}", ORIGIN) is None


# Scores that were paid for ---------------------------------------------------------------------

EXAMPLES = [Example(i, f"prompt {i}", [f"answer {i}"], {"id": i}) for i in range(3)]


def outcome(**more: Any) -> Outcome:
    told: dict[str, Any] = {"scores": [1.0, None, 0.25], "value": 0.625, **more}
    columns: dict[str, Any] = {
        "completions": ["a", "\u2028b\n", ""],
        "label_scores": [[-0.1, float("-inf")]] * 3,
    }
    prompts, references = [e.prompt for e in EXAMPLES], [e.reference for e in EXAMPLES]
    return Outcome(Batch(prompts, references, {"id": [0, 1, 2]}, **columns), **told)


def test_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "pending.jsonl"
    journal = Journal(file)
    journal.put("a/0", outcome(), note=7)
    journal.put("a/1", outcome(scores=None, value=float("nan")))
    again = Journal(file)
    assert again.get("a/0", EXAMPLES) == outcome()
    assert again.note("a/0") == 7
    assert again.note("b") is None
    unscored = again.get("a/1", EXAMPLES)
    assert unscored is not None
    assert unscored.value != unscored.value
    assert unscored.failed == 3
    assert again.get("a/2", EXAMPLES) is None


def test_a_failure_is_asked_for_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "pending.jsonl")
    journal.put("a/0", outcome(error="the service is down"))
    assert journal.get("a/0", EXAMPLES) is None


def test_damaged_outcomes_are_as_good_as_absent(tmp_path: Path) -> None:
    file = tmp_path / "pending.jsonl"
    for key in ("a/0", "a/1"):
        Journal(file).put(key, outcome())
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0.25", b"0.75", 1)[:-9])
    journal = Journal(file)
    assert [journal.get(key, EXAMPLES) for key in ("a/0", "a/1")] == [None, None]
    journal.put("a/2", outcome())
    assert Journal(file).get("a/2", EXAMPLES) == outcome()
    journal.clear()
    assert not file.exists()


# Files that are whole or not there --------------------------------------------------------------


def test_a_folder_that_could_not_be_filled_is_not_there(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint-1"
    replace_folder(place, lambda folder: replace_text(folder / "a", "old"))

    def fill(folder: Path) -> None:
        replace_text(folder / "a", "new")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device: free some space"):
        replace_folder(place, fill)
    assert (place / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    remove_folder(place)
    assert not any(tmp_path.iterdir())


def test_errors_that_come_by_way_of_rust_are_storage_too(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")

    with pytest.raises(StorageError, match="os error 28"):
        replace_folder(tmp_path / "a", fill)

    def wrong(folder: Path) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        replace_folder(tmp_path / "a", wrong)


def test_text_goes_to_files_as_a_whole(tmp_path: Path) -> None:
    replace_text(tmp_path / "a", "one\n")
    append_text(tmp_path / "a", "two\n")
    assert (tmp_path / "a").read_text() == "one\ntwo\n"
    with pytest.raises(StorageError, match="No such file or directory"):
        replace_text(tmp_path / "none" / "a", "text")
