"""zoobj.task: splits, checks, few-shot prompts and files, with small tasks of the tests' own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoobj.errors import UserError
from zoobj.task import SPLITS, Row, Task, read_rows


class Capital(Task):
    """A task of generation."""

    name = "capital"
    columns = ("question", "answer")

    def prompt(self, row: Row) -> str:
        return f"Q: {row['question']}\nA:"

    def reference(self, row: Row) -> list[str]:
        return [row["answer"]]


class Mood(Task):
    """A task of choices."""

    name = "mood"
    output = "choices"
    columns = ("text",)

    def prompt(self, row: Row) -> str:
        return str(row["text"])

    def reference(self, row: Row) -> int:
        label: int = row["label"]
        return label

    def choices(self, row: Row) -> list[str]:
        return list(row.get("choices", ["bad", "good"]))


class Grouped(Capital):
    def group(self, row: Row) -> str:
        return str(row["passage"])


def rows(count: int = 2000) -> list[Row]:
    return [
        {"question": f"question {i}", "answer": f"answer {i}", "passage": i // 5}
        for i in range(count)
    ]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


# Splits ---------------------------------------------------------------------------------------


def test_splits_that_a_source_lacks_are_cut_from_train() -> None:
    task = Capital(train_file=rows())
    split = {name: task.rows(name) for name in SPLITS}
    together = [row["question"] for name in SPLITS for row in split[name]]
    assert sorted(together) == sorted(row["question"] for row in rows())
    for name in ("validation", "test"):  # 10 % of 2000, and a standard deviation of 13
        assert 200 - 67 < len(split[name]) < 200 + 67
        assert task.held_out(name)
    assert not task.held_out("train")


def test_a_group_stands_on_one_side_only() -> None:
    task = Grouped(train_file=rows())
    passages = [{row["passage"] for row in task.rows(name)} for name in SPLITS]
    assert all(passages)
    assert not passages[0] & passages[1]
    assert not passages[0] & passages[2]
    assert not passages[1] & passages[2]


def test_equal_rows_stand_on_one_side_only() -> None:
    task = Capital(train_file=rows(300) * 2)
    assert len(task.rows("test")) == 2 * len(Capital(train_file=rows(300)).rows("test"))


@given(st.permutations(range(60)))
def test_splits_do_not_depend_on_the_order_of_the_rows(order: list[int]) -> None:
    source = rows(60)
    shuffled = Capital(train_file=[source[i] for i in order])
    ordered = Capital(train_file=source)
    for split in SPLITS:
        expected = {row["question"] for row in ordered.rows(split)}
        assert {row["question"] for row in shuffled.rows(split)} == expected


def test_splits_do_not_depend_on_the_order_of_the_columns() -> None:
    turned = [dict(reversed(row.items())) for row in rows(300)]
    assert Capital(train_file=turned).rows("test") == Capital(train_file=rows(300)).rows("test")


def test_splits_are_the_same_in_every_version() -> None:
    """A change here would make runs and evaluations of older versions disagree."""
    task = Capital(train_file=rows(60))
    assert [row["question"] for row in task.rows("test")] == [
        "question 5",
        "question 16",
        "question 26",
        "question 57",
    ]


def test_only_what_is_missing_is_cut() -> None:
    task = Capital(train_file=rows(300), test_file=rows(7))
    cut = Capital(train_file=rows(300))
    assert task.rows("test") == rows(7)
    assert not task.held_out("test")
    assert task.rows("validation") == cut.rows("validation")
    assert len(task.rows("train")) == 300 - len(task.rows("validation"))


def test_a_source_with_all_splits_is_left_as_it_is() -> None:
    task = Capital(train_file=rows(300), validation_file=rows(3), test_file=rows(4))
    assert [len(task.rows(split)) for split in SPLITS] == [300, 3, 4]


def test_nothing_can_be_cut_where_there_is_no_train() -> None:
    message = refused(lambda: Capital(test_file=rows(5)).rows("validation"))
    assert message == "task capital: no rows for split 'validation': give --validation_file"


def test_an_unknown_split_has_a_suggestion() -> None:
    message = refused(lambda: Capital(train_file=rows(5)).rows("tset"))
    assert message == "unknown split 'tset'; did you mean 'test'?"


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split(split: str) -> None:
    task = Capital(train_file=[], validation_file=[], test_file=[])
    assert f"split {split!r} is empty" in refused(lambda: task.examples(split))


def test_a_task_without_a_source_says_what_to_give() -> None:
    assert "give --train_file and --test_file" in refused(lambda: Capital().examples("train"))


# Examples -------------------------------------------------------------------------------------


def test_an_example_has_all_that_scoring_needs() -> None:
    (example,) = Capital(test_file=rows(1)).examples("test")
    assert example.index == 0
    assert example.prompt == "Q: question 0\nA:"
    assert example.reference == ["answer 0"]
    assert example.choices is None
    assert example.row == rows(1)[0]


def test_an_example_of_choices() -> None:
    row = {"text": "fine", "label": 1, "choices": ["no", "so-so", "yes"]}
    (example,) = Mood(test_file=[row]).examples("test")
    assert example.choices == ["no", "so-so", "yes"]
    assert example.reference == 1


def test_limit_takes_the_first() -> None:
    task = Capital(test_file=rows(9))
    assert [e.index for e in task.examples("test", limit=4)] == [0, 1, 2, 3]
    assert len(task.examples("test", limit=100)) == 9


def test_few_shot_examples_stand_first_and_leave_train() -> None:
    task = Capital(train_file=rows(9), validation_file=rows(2), test_file=rows(2), num_fewshot=2)
    shots = "Q: question 0\nA: answer 0\n\nQ: question 1\nA: answer 1\n\n"
    train = task.examples("train")
    assert [e.row["question"] for e in train] == [f"question {i}" for i in range(2, 9)]
    assert train[0].prompt == f"{shots}Q: question 2\nA:"
    assert task.examples("test")[0].prompt == f"{shots}Q: question 0\nA:"
    assert len(task.examples("test")) == 2


def test_few_shot_answers_of_choices_are_their_words() -> None:
    task = Mood(
        train_file=[{"text": "fine", "label": 1}, {"text": "meh", "label": 0}],
        test_file=[{"text": "well", "label": 0}],
        validation_file=[],
        num_fewshot=2,
    )
    assert task.examples("test")[0].prompt == "fine good\n\nmeh bad\n\nwell"


def test_few_shot_examples_are_never_held_out_rows() -> None:
    task = Capital(train_file=rows(300), num_fewshot=20)
    shown = task.examples("test")[0].prompt
    assert shown.count("\n\n") == 20
    assert not any(f"{row['question']}\n" in shown for row in task.rows("validation"))


def test_more_few_shot_examples_than_rows() -> None:
    task = Capital(train_file=rows(2), validation_file=[], test_file=rows(2), num_fewshot=3)
    assert refused(lambda: task.examples("test")) == "num_fewshot 3: train has only 2 rows"


def test_a_broken_few_shot_row_is_named() -> None:
    source: list[Row] = [{"text": "fine", "label": 1}, {"text": "meh"}]
    task = Mood(train_file=source, validation_file=[], test_file=source[:1], num_fewshot=2)
    message = refused(lambda: task.examples("test"))
    assert "split 'train': row 2 doesn't fit: KeyError: 'label'" in message


def test_max_new_tokens_can_be_set() -> None:
    assert Capital().max_new_tokens == Task.max_new_tokens
    assert Capital(max_new_tokens=3).max_new_tokens == 3


def test_fingerprint_tells_examples_apart() -> None:
    task = Capital(test_file=rows(9))
    examples = task.examples("test")
    assert task.fingerprint(examples) == task.fingerprint(
        Capital(test_file=rows(9)).examples("test")
    )
    assert task.fingerprint(examples) != task.fingerprint(examples[:8])
    assert task.fingerprint(examples) != task.fingerprint(examples[::-1])
    assert len(task.fingerprint([])) == 16


# Rows that don't fit --------------------------------------------------------------------------


@pytest.mark.parametrize("row", [{"question": "q"}, {"question": "q", "answer": None}])
def test_a_missing_column_is_named_with_its_row(row: Row) -> None:
    message = refused(lambda: Capital(test_file=[*rows(2), row]).examples("test"))
    assert "task capital, split 'test': row 3 has no 'answer'" in message


def test_a_missing_column_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"question": "q", "anwser": "a"}]))
    message = refused(lambda: Capital(test_file=path).examples("test"))
    assert f"{path}: row 1 has no 'answer'; it has question, anwser" in message


def test_rows_are_numbered_as_in_the_source_and_not_as_in_the_split() -> None:
    source = rows(200)
    last = Capital(train_file=source).rows("train")[-1]

    class Picky(Capital):
        def reference(self, row: Row) -> list[str]:
            return [] if row == last else [row["answer"]]

    task = Picky(train_file=source, num_fewshot=2)
    number = source.index(last) + 1
    assert number > len(task.rows("train"))  # the two ways to count disagree
    message = refused(lambda: task.examples("train"))
    assert f"row {number} has no reference answer" in message


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ([], "has no reference answer"),
        (["", "  "], "has no reference answer"),
        ("Paris", "has reference 'Paris', which is not a list of accepted texts"),
        ([7], "has reference [7], which is not a list of accepted texts"),
        (3, "has reference 3, which is not a list of accepted texts"),
        (None, "has reference None, which is not a list of accepted texts"),
    ],
)
def test_references_that_are_no_texts(
    reference: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Capital, "reference", lambda self, row: reference)
    message = refused(lambda: Capital(test_file=rows(1)).examples("test"))
    assert message == f"task capital, split 'test': row 1 {problem}: mend or drop the row"


@pytest.mark.parametrize("label", [2, -1, "1", 1.0, True, None])
def test_labels_that_are_no_choice(label: Any) -> None:
    message = refused(lambda: Mood(test_file=[{"text": "x", "label": label}]).examples("test"))
    assert f"row 1 has label {label!r}: a whole number from 0 to 1 is needed" in message


@pytest.mark.parametrize("choices", [[], ["one"], ["same", "same"], ["a", ""]])
def test_choices_that_cannot_be_told_apart(choices: list[str]) -> None:
    row = {"text": "x", "label": 0, "choices": choices}
    message = refused(lambda: Mood(test_file=[row]).examples("test"))
    assert f"row 1 has choices {choices!r}" in message


def test_an_empty_prompt() -> None:
    message = refused(lambda: Mood(test_file=[{"text": " ", "label": 0}]).examples("test"))
    assert "row 1 has an empty prompt" in message


def test_an_exception_in_a_task_names_the_row() -> None:
    source: list[Row] = [{"text": "x", "label": 0}, {"text": "y"}]
    message = refused(lambda: Mood(test_file=source).examples("test"))
    assert "split 'test': row 2 doesn't fit: KeyError: 'label'; it has text" in message


# Files ----------------------------------------------------------------------------------------

TABLE: list[Row] = [{"text": "NA", "label": 1}, {"text": "a, \u201cb\u201d\u2028c", "label": 0}]
WRITERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda p: p.write_text(json.dumps(TABLE), encoding="utf-8"),
    ".jsonl": lambda p: p.write_text(
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE), encoding="utf-8"
    ),
    ".csv": lambda p: pd.DataFrame(TABLE).to_csv(p, index=False),
    ".tsv": lambda p: pd.DataFrame(TABLE).to_csv(p, index=False, sep="\t"),
    ".parquet": lambda p: pd.DataFrame(TABLE).to_parquet(p),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_rows_come_back_from_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ending}"
    WRITERS[ending](path)
    assert read_rows(path) == TABLE
    assert all(type(row["label"]) is int for row in read_rows(path))
    assert [e.reference for e in Mood(test_file=str(path)).examples("test")] == [1, 0]


def test_json_may_hold_its_rows_under_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": TABLE}))
    assert read_rows(path) == TABLE


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_words_such_as_na_stay_text_and_empty_cells_empty(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_text(
        "a,b\nNA,null\nNone,\nnan,n/a\n".replace(",", "," if ending == ".csv" else "\t")
    )
    values = [value for row in read_rows(path) for value in row.values()]
    assert values == ["NA", "null", "None", "", "nan", "n/a"]


def test_lists_in_parquet_are_lists(tmp_path: Path) -> None:
    table: list[Row] = [{"answers": ["x", "y"], "nested": {"text": ["z"]}}]
    path = tmp_path / "rows.parquet"
    pd.DataFrame(table).to_parquet(path)
    assert read_rows(path) == table
    assert type(read_rows(path)[0]["answers"]) is list


def test_a_file_missing_is_named_with_its_flag() -> None:
    message = refused(lambda: Capital(validation_file="gone.json").rows("validation"))
    assert message == "--validation_file gone.json: no such file"


def test_an_unknown_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_text("")
    assert "unknown ending '.xlsx'; use .json, .jsonl, .csv" in refused(lambda: read_rows(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.json", '[{"text": "x"}'),
        ("cut.jsonl", '{"text": "x"}\n{"text": '),
        ("data.json", '{"rows": []}'),
        ("empty.csv", ""),
        ("ragged.csv", "a,b\n1,2\n3,4,5\n"),
        ("wider.csv", "a,b\n1,2,3\n4,5,6\n"),
        ("noise.parquet", "no parquet"),
        ("text.json", '["x"]'),
        ("number.json", "3"),
        ("words.jsonl", '"x"\n'),
    ],
)
def test_malformed_files_are_named(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert str(path) in refused(lambda: read_rows(path))


def test_a_malformed_line_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n\n{"text": \n')
    assert "line 3" in refused(lambda: read_rows(path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path} can't be read as .json" in refused(lambda: read_rows(path))
