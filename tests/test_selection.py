"""Weights are chosen on validation: whatever the test rows are, the run is the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from logs import untimed

from zoobj import ZOConfig, ZOTrainer
from zoobj.comparison import Cell, result
from zoobj.tasks import QuestionMini

SMALL = {
    "task": "question_mini",
    "max_steps": 6,
    "eval_steps": 1,
    "early_stopping_patience": 4,
    "directions": 2,
    "per_device_train_batch_size": 8,
    "max_eval_samples": 16,
    "max_test_samples": 16,
    "disable_tqdm": True,
}
OF_TEST = {"before", "after", "value", "difference", "ci95", "verdict", "labels"}


def rows(turned: bool) -> list[dict[str, Any]]:
    """The task's own test rows, or others: with all labels wrong."""
    wrong = {"thing": "person", "person": "place", "place": "time"}
    named = QuestionMini().rows("test")
    others = [{**row, "label": wrong.get(row["label"], "thing")} for row in named]
    return others if turned else named


def same_but_for_test(one: Path, other: Path) -> None:
    """The logs, the validations and the weights of two runs; test is scored before and after."""
    logs = [untimed(folder) for folder in (one, other)]
    validations = []
    for folder in (one, other):
        told = [(e["split"], e["step"], e["value"]) for e in untimed(folder, "metrics.jsonl")]
        tests = [line for line in told if line[0] == "test"]
        validations.append([line for line in told if line[0] == "validation"])
        assert told == [tests[0], *validations[-1], *tests[1:]]
        assert len(tests) <= 2
    assert validations[0] == validations[1]
    for lines in logs:
        for line in lines:
            line.pop("hash")
        data = lines[0]["run"]["data"]
        assert data.pop("test")
        lines[0]["run"]["settings"].pop("test_file", None)
    assert logs[0] == logs[1]
    assert any(line["move"] or line.get("gradient") for line in logs[0])
    files = [folder / "model.safetensors" for folder in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def figures(told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of test, and all others that don't tell time or memory."""
    rest = {k: v for k, v in told.items() if "seconds" not in k and "memory" not in k}
    of_test = {key: rest.pop(key) for key in OF_TEST & rest.keys()}
    return of_test, rest


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize(
    "more",
    [
        {"tune": "full", "directions": 3, "per_device_train_batch_size": 16},
        {"tune": "steer"},
        {"method": "lomo", "objective": "loglikelihood", "directions": 1},
    ],
    ids=["full", "steer", "lomo"],
)
def test_no_test_row_has_a_say_in_a_run(more: dict[str, Any], tmp_path: Path) -> None:
    told = []
    for turned in (False, True):
        out = tmp_path / str(turned)
        args = ZOConfig(**{**SMALL, **more}, output_dir=str(out))
        ZOTrainer(args=args, test_dataset=rows(turned)).train()
        told.append(figures(json.loads((out / "result.json").read_text())))
    same_but_for_test(tmp_path / "False", tmp_path / "True")
    assert told[0][1] == told[1][1]  # best_step and stop_reason among them
    assert told[0][0]["after"] != told[1][0]["after"]


@pytest.mark.usefixtures("no_statistics")
def test_nor_in_a_comparison(tmp_path: Path) -> None:
    told, cell = [], Cell("zo-sgd", "accuracy", 1)
    for turned in (False, True):
        file, folder = tmp_path / f"{turned}.jsonl", tmp_path / str(turned)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(turned)))
        settings = {**SMALL, "tune": "steer", "test_file": str(file)}
        told.append(figures(result(cell, settings, 4, folder)))
    same_but_for_test(tmp_path / "False" / cell.name, tmp_path / "True" / cell.name)
    assert told[0][1] == told[1][1]
    assert told[0][0]["value"] != told[1][0]["value"]
