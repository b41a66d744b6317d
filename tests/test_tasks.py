"""zoobj.tasks: SQuAD, SST-2, the embedded task and tasks in YAML, from files of every kind."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml

from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.evaluation import gold_batch, validate
from zoobj.objective import Batch, as_objective
from zoobj.registry import build
from zoobj.task import SPLITS, Example, Row, Task
from zoobj.tasks import SST2, Squad, SquadMini, YamlTask

DATA = Path(__file__).parents[2] / "shared" / "data"


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def save(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def full_marks(task: Task, examples: list[Example], objective: str | None = None) -> None:
    made = as_objective(objective or task.objective)
    assert made.value(gold_batch(task, examples)) == made.bounds[1] == 1.0


# SQuAD ----------------------------------------------------------------------------------------


def squad(count: int = 3) -> dict[str, Any]:
    """SQuAD's own JSON: two questions a passage, the second with two answers."""
    paragraphs = [
        {
            "context": f" Passage {i}: the mill, by the river. ",
            "qas": [
                {
                    "id": f"{i}-0",
                    "question": "What? ",
                    "answers": [{"text": "the mill", "answer_start": 12}],
                },
                {
                    "id": f"{i}-1",
                    "question": "Where?",
                    "answers": [
                        {"text": "by the river", "answer_start": 22},
                        {"text": "the river", "answer_start": 25},
                        {"text": "by the river", "answer_start": 22},
                    ],
                },
            ],
        }
        for i in range(count)
    ]
    return {"version": "1.1", "data": [{"title": "Mills", "paragraphs": paragraphs}]}


def flat(count: int = 3) -> list[Row]:
    """The same as rows, with the columns of the hub's version."""
    return [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [a["text"] for a in qa["answers"]],
                "answer_start": [a["answer_start"] for a in qa["answers"]],
            },
        }
        for article in squad(count)["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


SQUAD_FILES: dict[str, Callable[[Path], object]] = {
    "nested.json": lambda p: save(p, squad()),
    "rows.json": lambda p: save(p, flat()),
    "data.json": lambda p: save(p, {"data": flat()}),
    "rows.jsonl": lambda p: save(p, "\n".join(map(json.dumps, flat()))),
    "rows.parquet": lambda p: pd.DataFrame(flat()).to_parquet(p),
}


@pytest.mark.parametrize("name", SQUAD_FILES)
def test_squad_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    SQUAD_FILES[name](tmp_path / name)
    examples = Squad(test_file=tmp_path / name).examples("test")
    assert [e.row["id"] for e in examples] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert examples[0].prompt.endswith(
        "Context: Passage 0: the mill, by the river.\nQuestion: What?\nAnswer:"
    )
    assert examples[1].reference == ["by the river", "the river"]  # each accepted text once
    assert examples[0].choices is None
    for objective in ("token_f1", "exact_match"):
        full_marks(Squad(test_file=tmp_path / name), examples, objective)


def test_squads_title_stands_first() -> None:
    with_title, *_ = Squad(test_file=flat()).examples("test")
    assert with_title.prompt.startswith("Title: Mills\nContext: Passage 0")
    bare = [{k: v for k, v in row.items() if k != "title"} for row in flat()]
    assert Squad(test_file=bare).examples("test")[0].prompt.startswith("Context: Passage 0")


def test_squad_shows_the_sentences_that_hold_the_answer() -> None:
    """Of each answer's passage the fewest whole sentences, wherever it stands."""
    context = "It rained.  Ann, 3.5 m tall, left! Bo stayed? Then. He left"
    cases = {
        ("It rained", 0): "It rained.",
        ("3.5 m", 17): "Ann, 3.5 m tall, left!",
        ("left", 29): "Ann, 3.5 m tall, left!",
        ("left", 55): "He left",
        ("left! Bo", 29): "Ann, 3.5 m tall, left! Bo stayed?",
        ("Then", -1): "Then.",
        ("Bo", 3): "Bo stayed?",  # a wrong position: the answer's first place counts
    }
    rows = [
        {"context": context, "question": "?", "answers": {"text": [text], "answer_start": [at]}}
        for text, at in cases
    ]
    task = Squad(context="oracle_sentence", train_file=rows, test_file=rows)
    assert [e.prompt for e in task.examples("test")] == [
        f"Context: {shown}\nQuestion: ?\nAnswer:" for shown in cases.values()
    ]
    groups = {task.group(row) for row in rows}
    assert groups == {context}  # the split is by passage as before
    elsewhere = {"context": "No.", "question": "?", "answers": {"text": ["x"]}}
    lost = Squad(context="oracle_sentence", train_file=[elsewhere], test_file=[elsewhere])
    assert "does not hold the answer 'x'" in refused(lambda: lost.examples("test"))
    assert "did you mean 'passage'" in refused(lambda: Squad(context="pasage"))


def test_squad_is_cut_by_passage() -> None:
    task = Squad(train_file=flat(200))
    contexts = {split: {row["context"] for row in task.rows(split)} for split in SPLITS}
    assert all(contexts.values())
    assert sum(map(len, contexts.values())) == 200  # so none is in two splits
    assert sum(len(task.rows(split)) for split in SPLITS) == 400


def without(*path: Any) -> dict[str, Any]:
    """SQuAD's JSON with one thing missing."""
    content = squad()
    *parents, last = path
    place: Any = content
    for key in parents:
        place = place[key]
    del place[last]
    return content


QA = ("data", 0, "paragraphs", 1, "qas", 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (without("data", 0, "paragraphs", 1, "qas"), "KeyError: 'qas'"),
        (without("data", 0, "paragraphs", 1, "context"), "KeyError: 'context'"),
        (without(*QA, "question"), "KeyError: 'question'"),
        (without(*QA, "answers"), "KeyError: 'answers'"),
        (without(*QA, "answers", 0, "text"), "KeyError: 'text'"),
        ({"data": [{"paragraphs": None}]}, "is not in SQuAD 1.1's format"),
        ({"data": [{"paragraphs": [{"context": "x", "qas": ["q"]}]}]}, "SQuAD 1.1's format"),
        ({"data": [*squad()["data"], "x"]}, "SQuAD 1.1's format"),
        ({"data": [3]}, "a list of objects"),
        ({"data": "x"}, "a list of objects"),
        ({"version": "1.1"}, "'data'"),
        ("[{", "can't be read as JSON"),
    ],
)
def test_squad_files_that_do_not_fit(content: Any, problem: str, tmp_path: Path) -> None:
    path = save(tmp_path / "train.json", content)
    message = refused(lambda: Squad(train_file=path).examples("train"))
    assert problem in message
    assert str(path) in message


def answerless(place: int) -> dict[str, Any]:
    content = squad()
    content["data"][0]["paragraphs"][place // 2]["qas"][place % 2]["answers"] = []
    return content


def test_questions_without_answers_in_squad_2(tmp_path: Path) -> None:
    path = save(tmp_path / "test.json", answerless(4))
    task = build("task", "squad:version=2.0", test_file=path)
    examples = task.examples("test")
    assert examples[4].reference == ["unanswerable"]
    assert examples[0].reference == Squad(test_file=path).reference(examples[0].row)
    assert task.gold(examples[4].row) == "unanswerable"
    objective = as_objective(task.objective)
    said = ["", "Unanswerable.", "by the river", "none"]
    batch = Batch(["?"] * 4, [["unanswerable"]] * 4, completions=said)
    assert objective.score(batch) == [1.0, 1.0, 0.0, 0.0]
    for settings, problem in (
        ({"context": "oracle_sentence"}, "leave context out"),
        ({"no_answer": " "}, "give it a plain word"),
    ):
        assert problem in refused(partial(Squad, version="2.0", **settings))
    assert "take 1.1 or 2.0" in refused(lambda: Squad(version=3))


def test_a_question_without_answers_is_named_with_file_and_row(tmp_path: Path) -> None:
    path = save(tmp_path / "test.json", answerless(4))
    message = refused(lambda: Squad(test_file=path).examples("test"))
    assert message == f"task squad, {path}: row 5 has no reference answer: mend or drop the row"


@pytest.mark.parametrize("column", ["context", "question", "answers"])
def test_rows_without_a_column_are_named_with_file_and_row(column: str, tmp_path: Path) -> None:
    rows = flat()
    del rows[3][column]
    path = save(tmp_path / "test.jsonl", "\n".join(map(json.dumps, rows)))
    message = refused(lambda: Squad(test_file=path).examples("test"))
    assert f"{path}: row 4 has no {column!r}" in message


def test_answers_of_another_form(tmp_path: Path) -> None:
    path = save(tmp_path / "test.json", [{"context": "c", "question": "q", "answers": ["a"]}])
    assert f"{path}: row 1 doesn't fit" in refused(lambda: Squad(test_file=path).examples("test"))


# The hub --------------------------------------------------------------------------------------


def test_squad_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(flat(60) if split == "train" else flat(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Squad()
    assert len(task.examples("test")) == 4  # the hub's validation
    assert len(task.examples("train")) + len(task.examples("validation")) == 120
    assert asked == [
        ("rajpurkar/squad", None, "validation"),
        ("rajpurkar/squad", None, "train"),
    ]
    assert task.held_out("validation")
    assert not task.held_out("test")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the hub\n(offline)"),
        FileNotFoundError("no such data set"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported, but found squad.py"),
        datasets.exceptions.DatasetGenerationError("An error occurred"),
        KeyError("train"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_answers_is_one_clear_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refused(lambda: Squad().examples("train"))
    assert message.startswith("data set 'rajpurkar/squad' can't be loaded from the hub: ")
    assert str(error.args[0]).split("\n")[0] in message
    assert message.endswith("without a network give --train_file and --test_file")


# squad_mini -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> dict[str, list[Example]]:
    task = SquadMini()
    return {split: task.examples(split) for split in SPLITS}


def test_squad_mini_is_of_its_size(mini: dict[str, list[Example]]) -> None:
    assert {split: len(examples) for split, examples in mini.items()} == {
        "train": 800,
        "validation": 100,
        "test": 300,
    }


def test_squad_minis_splits_share_no_passage(mini: dict[str, list[Example]]) -> None:
    passages = [{e.row["context"] for e in examples} for examples in mini.values()]
    assert [len(p) for p in passages] == [400, 50, 150]
    assert len(set.union(*passages)) == 600


def test_squad_minis_answers_stand_where_they_say(mini: dict[str, list[Example]]) -> None:
    for example in (e for examples in mini.values() for e in examples):
        answers = example.row["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert example.row["context"][start : start + len(text)] == text


def test_squad_minis_ids_are_its_own(mini: dict[str, list[Example]]) -> None:
    ids = [e.row["id"] for examples in mini.values() for e in examples]
    assert len(set(ids)) == len(ids)
    assert all(ids)


def test_squad_mini_is_valid() -> None:
    for objective in (None, "exact_match"):
        lines = list(validate(ZOConfig(task="squad_mini", objective=objective)))
        assert sum("full marks" in line for line in lines) == len(SPLITS)


def test_one_split_of_squad_mini_may_be_replaced(tmp_path: Path) -> None:
    task = SquadMini(test_file=save(tmp_path / "mine.json", squad()))
    assert (len(task.rows("test")), len(task.rows("validation"))) == (6, 100)


# SST-2 ----------------------------------------------------------------------------------------

REVIEWS: list[Row] = [
    {"sentence": 'a "stirring , funny film', "label": 1},
    {"sentence": "NA", "label": 0},
    {"sentence": "it 's not , as they say , 'good'", "label": 0},
    {"sentence": "caf\u00e9\u2028 society \u0085 great", "label": 1},
]


def tsv(rows: list[Row] = REVIEWS, end: str = "\n") -> str:
    return end.join(f"{row['sentence']}\t{row['label']}" for row in rows)


SST2_FILES: dict[str, Callable[[Path], object]] = {
    "bare.tsv": lambda p: save(p, tsv()),
    "newline.tsv": lambda p: save(p, tsv() + "\n"),
    "header.tsv": lambda p: save(p, "sentence\tlabel\n" + tsv()),
    "blank.tsv": lambda p: save(p, "sentence\tlabel\n" + tsv() + "\n\n"),
    "windows.tsv": lambda p: save(p, "\ufeffsentence\tlabel\r\n" + tsv(end="\r\n") + "\r\n"),
    "rows.csv": lambda p: pd.DataFrame(REVIEWS).to_csv(p, index=False),
    "rows.jsonl": lambda p: save(p, "\n".join(map(json.dumps, REVIEWS)) + "\n"),
    "rows.json": lambda p: save(p, REVIEWS),
    "rows.parquet": lambda p: pd.DataFrame(REVIEWS).to_parquet(p),
}


@pytest.mark.parametrize("name", SST2_FILES)
def test_sst2_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    SST2_FILES[name](tmp_path / name)
    task = SST2(test_file=tmp_path / name)
    examples = task.examples("test")
    assert [e.row["sentence"] for e in examples] == [row["sentence"] for row in REVIEWS]
    assert [e.reference for e in examples] == [1, 0, 0, 1]
    assert examples[1].prompt == "Review: NA\nThe movie was"
    assert examples[1].choices == ["terrible", "great"]
    full_marks(task, examples)
    full_marks(task, examples, "f1")


@pytest.mark.parametrize("header", ["", "sentence\tlabel\n"])
def test_a_line_without_a_label_is_named(header: str, tmp_path: Path) -> None:
    path = save(tmp_path / "test.tsv", f"{header}fine\t1\nno label\nbad\t0")
    number = 3 if header else 2  # as an editor counts
    message = refused(lambda: SST2(test_file=path).examples("test"))
    assert f"{path}: line {number} has no tab" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_bytes("caf\u00e9\t1".encode("latin-1"))
    assert f"{path} is not UTF-8 text" in refused(lambda: SST2(test_file=path).examples("test"))


@pytest.mark.parametrize("label", ["positive", "2", "-1", "0.7", ""])
def test_labels_that_are_neither_0_nor_1(label: str, tmp_path: Path) -> None:
    path = save(tmp_path / "test.tsv", f"fine\t1\nso-so\t{label}")
    assert f"{path}: row 2" in refused(lambda: SST2(test_file=path).examples("test"))


def test_a_share_is_no_label() -> None:
    """The Treebank's own labels are shares of votes: 0.7 is not 0."""
    rows: list[Row] = [{"sentence": "fine", "label": 0.7}]
    assert "row 1" in refused(lambda: SST2(test_file=rows).examples("test"))
    whole: list[Row] = [{"sentence": "fine", "label": 1.0}]
    assert SST2(test_file=whole).examples("test")[0].reference == 1


def test_sst2_by_its_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(REVIEWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(SST2().examples("test")) == 4
    assert asked == [("nyu-mll/glue", "sst2", "validation")]


# YAML -----------------------------------------------------------------------------------------

GENERATION: dict[str, Any] = {
    "task": "capitals",
    "data_files": {"train": "rows.jsonl", "test": "rows.jsonl"},
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA: ",
    "doc_to_target": "answer",
}
CHOICE: dict[str, Any] = {
    "task": "moods",
    "data_files": {"test": "rows.jsonl"},
    "output_type": "multiple_choice",
    "doc_to_text": "text",
    "doc_to_target": "label",
    "doc_to_choice": ["bad", "good"],
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a task's file and its rows: ``write(GENERATION, rows, key=value)``."""

    def make(base: dict[str, Any], rows: list[Row], /, **changes: Any) -> Path:
        save(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
        told = {k: v for k, v in (base | changes).items() if v is not None}
        return save(tmp_path / "mine.yaml", yaml.safe_dump(told))

    return make


CAPITALS: list[Row] = [
    {"question": "France?", "answer": "Paris"},
    {"question": "Bolivia?", "answer": ["Sucre", "La Paz"]},
    {"question": "2 + 2?", "answer": 4},
]


def test_a_generation_task(write: Write) -> None:
    task = build("task", str(write(GENERATION, CAPITALS)))
    assert isinstance(task, YamlTask)
    assert (task.name, task.output, task.objective) == ("capitals", "generation", "exact_match")
    assert (list(task.stop), task.max_new_tokens) == (["\n"], 16)
    examples = task.examples("test")
    assert examples[0].prompt == "Q: France?\nA:"  # the answer brings its space along
    assert [e.reference for e in examples] == [["Paris"], ["Sucre", "La Paz"], ["4"]]
    full_marks(task, examples)


def test_settings_of_a_task(write: Write) -> None:
    path = write(
        GENERATION,
        CAPITALS,
        objective="token_f1",
        num_fewshot=1,
        generation_kwargs={"until": ["\n\n", "Q:"], "max_gen_toks": 5},
    )
    task = YamlTask(str(path))
    assert (task.objective, list(task.stop), task.max_new_tokens) == ("token_f1", ["\n\n", "Q:"], 5)
    assert task.examples("test")[0].prompt.startswith("Q: ")
    assert task.examples("test")[0].prompt.count("A:") == 2
    assert YamlTask(str(path), max_new_tokens=3).max_new_tokens == 3
    assert YamlTask(str(path), num_fewshot=2).num_fewshot == 2


def test_one_stop_string_may_be_a_plain_text(write: Write) -> None:
    """As in lm-evaluation-harness; its letters are no stop strings of their own."""
    path = write(GENERATION, CAPITALS, generation_kwargs={"until": "Q:"})
    assert list(YamlTask(str(path)).stop) == ["Q:"]


def test_given_files_win_over_the_tasks(write: Write, tmp_path: Path) -> None:
    other = save(tmp_path / "other.json", CAPITALS[:1])
    task = YamlTask(str(write(GENERATION, CAPITALS)), test_file=other)
    assert len(task.rows("test")) == 1


def test_a_task_of_the_hub(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(CAPITALS[:1])

    monkeypatch.setattr(datasets, "load_dataset", load)
    path = write(
        GENERATION,
        [],
        data_files=None,
        dataset_path="me/capitals",
        dataset_name="en",
        training_split="train",
        test_split="dev",
    )
    task = YamlTask(str(path))
    assert len(task.examples("test")) == 1
    assert asked == [("me/capitals", "en", "dev")]
    assert task.held_out("validation")


MOODS: list[Row] = [{"text": "fine", "label": 1}, {"text": "meh", "label": 0}]


def test_a_task_of_choices(write: Write) -> None:
    task = YamlTask(str(write(CHOICE, MOODS, length_normalized=True)))
    assert (task.output, task.objective, task.length_normalized) == ("choices", "accuracy", True)
    examples = task.examples("test")
    assert [e.reference for e in examples] == [1, 0]
    assert [e.choices for e in examples] == [["bad", "good"]] * 2
    full_marks(task, examples)


@pytest.mark.parametrize(
    ("target", "rows", "expected"),
    [
        ("label", [{"text": "x", "label": "good"}, {"text": "x", "label": "bad"}], [1, 0]),
        ("label", [{"text": "x", "label": "1"}, {"text": "x", "label": 0}], [1, 0]),
        ("{{label}}", [{"text": "x", "label": 1}, {"text": "x", "label": "bad"}], [1, 0]),
        (
            "{{'good' if ok else 'bad'}}",
            [{"text": "x", "ok": True}, {"text": "y", "ok": False}],
            [1, 0],
        ),
    ],
)
def test_labels_by_number_or_by_text(
    write: Write, target: str, rows: list[Row], expected: list[int]
) -> None:
    task = YamlTask(str(write(CHOICE, rows, doc_to_target=target)))
    assert [e.reference for e in task.examples("test")] == expected


def test_a_number_is_a_place_even_among_numbers(write: Write) -> None:
    """Row: which of 1, 2, 3 is it? Label 1 is the second of them, the text 2."""
    rows: list[Row] = [{"text": "1 + 1 =", "label": 1}, {"text": "1 + 2 =", "label": 2}]
    task = YamlTask(str(write(CHOICE, rows, doc_to_choice=["1", "2", "3"])))
    assert [e.reference for e in task.examples("test")] == [1, 2]


ARC: list[Row] = [
    {
        "text": "q",
        "label": 1,
        "choices": {"text": ['it\'s "so"', "yes", "no", "a, b", "1.50"], "label": list("ABCDE")},
    }
]


@pytest.mark.parametrize(
    "template",
    [
        "{{choices.text}}",
        '{{choices["text"]}}',
        "{{ choices.text | list }}",
    ],
)
def test_choices_by_a_template(write: Write, template: str) -> None:
    """Words that YAML would read as something else, and quotes of both kinds, stay as they are."""
    (example,) = YamlTask(str(write(CHOICE, ARC, doc_to_choice=template))).examples("test")
    assert example.choices == ARC[0]["choices"]["text"]


@pytest.mark.parametrize("template", ["[{{a}}, {{b}}]", '["{{a}}", "{{b}}"]', "['{{a}}', '{{b}}']"])
def test_choices_by_a_template_of_two_columns(write: Write, template: str) -> None:
    rows: list[Row] = [{"text": "q", "label": 0, "a": "one two", "b": "three"}]
    (example,) = YamlTask(str(write(CHOICE, rows, doc_to_choice=template))).examples("test")
    assert example.choices == ["one two", "three"]


def test_choices_by_a_column(write: Write) -> None:
    rows: list[Row] = [
        {"text": "x", "label": 2, "options": ["a", "b", "c"]},
        {"text": "y", "label": 0, "options": [1, 2]},
    ]
    examples = YamlTask(str(write(CHOICE, rows, doc_to_choice="options"))).examples("test")
    assert [e.choices for e in examples] == [["a", "b", "c"], ["1", "2"]]


@pytest.mark.parametrize("template", ["{{text}} or not", "{{text}}", "options"])
def test_choices_that_are_no_list(write: Write, template: str) -> None:
    """The letters of a text would be silent nonsense."""
    rows: list[Row] = [{"text": "abc", "label": 0, "options": "ab"}]
    task = YamlTask(str(write(CHOICE, rows, doc_to_choice=template)))
    message = refused(lambda: task.examples("test"))
    assert "row 1 doesn't fit" in message
    assert "which is no list" in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"doc_to_txet": "x"}, "doc_to_txet: Extra inputs are not permitted; did you mean 'doc_to"),
        ({"outputtype": "x"}, "did you mean 'output_type'?"),
        ({"doc_to_text": None}, "doc_to_text: Field required"),
        ({"task": None}, "task: Field required"),
        ({"output_type": "loglikelihood"}, "output_type: Input should be 'generate_until' or"),
        ({"output_type": "multiple_choice"}, "output_type multiple_choice needs doc_to_choice"),
        ({"num_fewshot": -1}, "num_fewshot: Input should be greater than or equal to 0"),
        ({"doc_to_text": "{{question"}, "template '{{question'"),
        ({"doc_to_text": "{{question | nope}}"}, "nope"),
        ({"generation_kwargs": {"max_gen_toks": 0}}, "generation_kwargs.max_gen_toks: Input"),
        ({"data_files": {"dev": "rows.jsonl"}}, "data_files.dev"),
    ],
)
def test_task_files_that_do_not_fit(write: Write, changes: dict[str, Any], problem: str) -> None:
    path = write(GENERATION, CAPITALS, **changes)
    message = refused(lambda: YamlTask(str(path)))
    assert problem in message
    if "template" not in problem and problem != "nope":
        assert f"task file {path}" in message


def test_an_unknown_key_below_another_has_no_wrong_advice(write: Write) -> None:
    path = write(GENERATION, CAPITALS, generation_kwargs={"max_new_tokens": 4})
    message = refused(lambda: YamlTask(str(path)))
    assert "generation_kwargs.max_new_tokens: Extra inputs are not permitted" in message
    assert "did you mean 'generation_kwargs'" not in message
    assert "max_gen_toks" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"task: [", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"\xff\xfe\x00\x01", "is not YAML"),
        (b"- task\n- x\n", "valid dictionary"),
        (b"", "valid dictionary"),
    ],
)
def test_files_that_are_no_task(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    message = refused(lambda: YamlTask(str(path)))
    assert f"task file {path}" in message
    assert problem in message


def test_a_missing_task_file() -> None:
    assert refused(lambda: build("task", "gone.yaml")) == "task file gone.yaml: no such file"


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_target"])
@pytest.mark.parametrize("value", ["{{capital}}", "capital"])
def test_an_undefined_column_is_named_with_file_and_row(write: Write, key: str, value: str) -> None:
    rows = [{**CAPITALS[0], "capital": "x"}, CAPITALS[1]]
    path = write(GENERATION, rows, **{key: value})
    message = refused(lambda: YamlTask(str(path)).examples("test"))
    assert f"{path.parent / 'rows.jsonl'}: row 2 doesn't fit" in message
    assert "'capital'" in message
    assert "it has question, answer" in message


@pytest.mark.parametrize("template", ["{{ 1 // (label | int) }}", "{{ text + label }}"])
def test_a_template_that_fails_names_the_row(write: Write, template: str) -> None:
    rows: list[Row] = [{"text": "x", "label": 0}]
    task = YamlTask(str(write(CHOICE, rows, doc_to_text=template)))
    assert "row 1 doesn't fit" in refused(lambda: task.examples("test"))


# Real data ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    return DATA


def test_xquad(data: Path) -> None:
    task = Squad(
        train_file=data / "xquad_en" / "train.json", test_file=data / "xquad_en" / "test.json"
    )
    examples = {split: task.examples(split) for split in SPLITS}
    passages = [{e.row["context"] for e in split} for split in examples.values()]
    assert sum(map(len, passages)) == len(set.union(*passages)) == 240
    assert sum(map(len, examples.values())) == 1190
    for split in examples.values():
        full_marks(task, split)
        full_marks(task, split, "exact_match")


def test_real_sst2(data: Path) -> None:
    files = {"train_file": "train", "validation_file": "dev", "test_file": "test"}
    task = SST2(**{key: data / "sst2" / f"{name}.tsv" for key, name in files.items()})  # type: ignore[arg-type]
    examples = {split: task.examples(split) for split in SPLITS}
    assert {split: len(rows) for split, rows in examples.items()} == {
        "train": 6920,
        "validation": 872,
        "test": 1821,
    }
    assert sum(e.reference for e in examples["test"]) == 909
    for split in examples.values():
        full_marks(task, split)


def test_gsm8k_as_a_yaml_task(data: Path, tmp_path: Path) -> None:
    path = save(
        tmp_path / "gsm8k.yaml",
        yaml.safe_dump(
            {
                "task": "gsm8k",
                "data_files": {"test": str(data / "gsm8k" / "test.jsonl")},
                "doc_to_text": "Question: {{question}}\nAnswer:",
                "doc_to_target": "{{answer.split('####')[-1].strip()}}",
                "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 256},
            }
        ),
    )
    task = YamlTask(str(path))
    examples = task.examples("test")
    assert len(examples) == 1319
    assert examples[0].reference == ["18"]
    full_marks(task, examples)
