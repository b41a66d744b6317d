"""zoobj.labels: a model that gives one label only is found out, and said to be."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from zoobj import Batch, ZOConfig, ZOTrainer
from zoobj.labels import collapsed, labels
from zoobj.scoring import Scorer
from zoobj.show import show


def batch(predictions: list[int], references: list[int]) -> Batch:
    n = len(predictions)
    return Batch(prompts=["?"] * n, references=references, predictions=predictions)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([1] * 20, [0] * 10 + [1] * 10, True),
        ([1] * 19 + [0], [0] * 10 + [1] * 10, True),
        ([1] * 18 + [0] * 2, [0] * 10 + [1] * 10, False),
        ([1] * 20, [1] * 18 + [0] * 2, False),  # nearly all are: no collapse, but the data
        ([1] * 20, [1] * 17 + [0] * 3, True),
    ],
)
def test_what_counts_as_a_collapse(
    predictions: list[int], references: list[int], expected: bool
) -> None:
    assert collapsed(labels([batch(predictions, references)])) is expected


def test_texts_have_no_labels() -> None:
    texts = Batch(prompts=["?"], references=[["a"]], completions=["a"])
    assert labels([texts]) == {}
    assert not collapsed({})


def run(folder: Path) -> list[dict[str, Any]]:
    args = ZOConfig(
        output_dir=str(folder),
        task="question_mini",
        tune="steer",
        max_steps=3,
        eval_steps=1,
        directions=1,
        per_device_train_batch_size=4,
        max_eval_samples=30,
        max_test_samples=30,
        disable_tqdm=True,
    )
    ZOTrainer(args=args).train()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_collapse_is_said_once_and_is_in_all_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def one_label(self: Scorer, examples: Any, members: Any) -> list[list[float]]:
        return [[-1.0, 0.0, -1.0, -1.0, -1.0, -1.0] for _ in examples]

    monkeypatch.setattr(Scorer, "_label_scores", one_label)
    with caplog.at_level(logging.WARNING):
        metrics = run(tmp_path / "run")
    told = [r.getMessage() for r in caplog.records if "collapse" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("collapse at step 0: 100.0% of predictions are one label, of gold")
    assert all(line["labels"]["top"] == 1.0 for line in metrics)
    steps = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["labels"]["distinct"] == 1 for line in steps)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["labels"]["top"] == 1.0
    assert result["labels"]["gold_distinct"] > 1
    assert "100.0% of predictions are one label" in show(str(tmp_path / "run"))
    assert "100.0% of predictions are one label" in (tmp_path / "run" / "report.html").read_text()


def test_a_sound_model_is_not_accused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = run(tmp_path / "run")
    assert not any("collapse" in record.getMessage() for record in caplog.records)
    assert all(line["labels"]["distinct"] > 1 for line in metrics)
