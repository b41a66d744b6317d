"""zoobj compare: cells in processes of their own, resumed, failing alone, and their table."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from zoobj import UserError, ZOConfig
from zoobj.cli import main
from zoobj.compare import _interval, _markdown, _row, _verdict, compare
from zoobj.comparison import BASELINES, Cell, result, settings_of

FEW = {
    "max_evals": 128,
    "per_device_train_batch_size": 16,
    "tune": "full",
    "max_eval_samples": 8,
    "max_test_samples": 16,
}
ROWS = [{"sentence": f"It is {word} {i}.", "label": i % 2} for i, word in enumerate("ab" * 60)]


def few(folder: Path, **more: Any) -> ZOConfig:
    return ZOConfig(**{**FEW, **more}, output_dir=str(folder))


def test_the_command_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [text for name, value in FEW.items() for text in (f"--{name}", str(value))]
    out = tmp_path / "out"
    told = ["compare", *flags, "--methods", "zo-sgd", "--seeds", "2", "--output_dir", str(out)]
    assert main([*told, "--baselines", "zero-shot,linear-probe"]) == 0
    shown = capsys.readouterr().out
    assert (out / "compare.md").read_text() in shown
    cells = json.loads((out / "compare.json").read_text())["cells"]
    zero, probe, *runs = cells
    assert "generates text" in probe["error"]
    assert [run["result"]["evals"] for run in runs] == [128, 128]
    assert zero["result"]["value"] == pytest.approx(runs[0]["result"]["before"])
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert [row["method"] for row in rows] == ["zero-shot", "zo-sgd"]
    mean = sum(run["result"]["value"] for run in runs) / 2
    assert float(rows[1]["value"]) == pytest.approx(mean)
    assert float(rows[1]["gain"]) == pytest.approx(mean - zero["result"]["value"])
    assert (out / "compare.png").stat().st_size > 1000


@pytest.mark.slow
def test_done_cells_are_not_run_again_and_one_that_failed_is(tmp_path: Path) -> None:
    reward = tmp_path / "rewards.py"
    reward.write_text("def some(completions):\n    raise ValueError('no judge')\n")
    objective = f"{reward}:some"
    args = few(tmp_path / "out")
    table = compare(args, ["zo-sgd"], ["token_f1", objective], 1, baselines=[])
    first, second = table.splitlines()[2:]
    assert first.startswith("| zo-sgd | token_f1 | 0.")
    assert "no judge" in second
    good = tmp_path / "out" / "zo-sgd-token_f1-1.json"
    before = good.stat().st_mtime_ns
    reward.write_text("def some(completions):\n    return [float(len(c)) for c in completions]\n")
    table = compare(args, ["zo-sgd"], ["token_f1", objective], 1, baselines=[])
    assert "no judge" not in table
    assert table.splitlines()[2] == first
    assert good.stat().st_mtime_ns == before


@pytest.mark.slow
def test_other_settings_are_another_comparison(tmp_path: Path) -> None:
    compare(few(tmp_path), ["zo-sgd"], ["token_f1"], 1, baselines=[])
    with pytest.raises(UserError, match="choose another --output_dir"):
        compare(few(tmp_path, eps=0.01), ["zo-sgd"], ["token_f1"], 1, baselines=[])


@pytest.mark.slow
def test_a_choices_task_has_a_probe_and_examples_in_context(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    args = few(tmp_path / "out", task="sst2", train_file=str(file))
    compare(args, [], ["accuracy"], 1, 2)
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "out/compare.csv").open())}
    assert set(rows) == {"zero-shot", "in-context", "linear-probe"}
    assert float(rows["linear-probe"]["value"]) == 1.0, "a's are 0 and b's are 1"
    assert all(row["verdict"] == "-" for row in rows.values())


@pytest.mark.slow
def test_a_budget_of_seconds_is_each_run_s(tmp_path: Path) -> None:
    """None has less for those before it; each ends at the first step after so many seconds."""
    args = few(tmp_path / "out", max_evals=None, max_seconds=2.0, eval_steps=1000)
    table = compare(args, ["zo-sgd", "lomo"], ["loglikelihood"], 2, baselines=[])
    assert "| evals | seconds (max_seconds 2.0) |" in table
    cells = json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]
    assert len(cells) == 4
    for cell in cells:
        assert cell["result"]["stop_reason"] == "max_seconds"
        folder = tmp_path / "out" / Cell(**cell["cell"]).name
        steps = [line["seconds"] for line in map(json.loads, (folder / "log.jsonl").open())]
        first = json.loads((folder / "metrics.jsonl").open().readline())["seconds"]
        assert sum(steps[:-1]) + first < 2.0
        assert cell["result"]["steps"] == len(steps) > 1


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize("method", ["fo-sgd", "forward-grad", "zo-momentum"])
@pytest.mark.parametrize("objective", ["loglikelihood", "token_f1"])
def test_what_a_method_has_no_use_for_is_left_out(
    method: str, objective: str, tmp_path: Path
) -> None:
    told = {"eps": 0.01, "directions": 2, "momentum": 0.5, "max_grad_norm": 1.0}
    unused = {
        "fo-sgd": {"eps", "directions", "momentum"},
        "forward-grad": {"eps", "momentum", "max_grad_norm"},
        "zo-momentum": {"max_grad_norm"},
    }[method]
    settings = {**FEW, "tune": "full", "max_evals": 64, **told}
    own = settings_of(method, settings)
    assert settings.keys() - own.keys() == unused
    assert own.items() <= settings.items()
    found = result(Cell(method, objective, 1), own, 4, tmp_path)
    assert found["evals"] == 64
    assert all(settings_of(name, settings) == settings for name in BASELINES)


@pytest.mark.slow
def test_and_the_table_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    args = few(tmp_path / "out", eps=0.01, max_evals=32)
    for _ in range(2):  # also where it is done already
        table = compare(args, ["fo-sgd", "zo-sgd"], ["loglikelihood"], 1, baselines=[])
        head, _, first, second = table.splitlines()
        assert "| evals (max_evals 32) | seconds |" in head
        assert first.startswith("| fo-sgd (without eps) | loglikelihood | -")
        assert second.startswith("| zo-sgd | loglikelihood | -")
    said = [record.getMessage() for record in caplog.records]
    assert "1 of 2: fo-sgd-loglikelihood-1, without --eps: the method has no use for it" in said
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [row["left_out"] for row in rows] == ["eps", ""]


@pytest.mark.parametrize(
    ("methods", "baselines", "message"),
    [
        (["zo-sgdd"], [], "did you mean 'zo-sgd'"),
        (["zo-sgd"], ["zero"], "did you mean 'zero-shot'"),
    ],
)
def test_unknown_names(
    methods: list[str], baselines: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        compare(few(tmp_path / "out"), methods, ["token_f1"], 1, baselines=baselines)
    assert not (tmp_path / "out").exists()


# The table's arithmetic -----------------------------------------------------------------------


def run(after: float, verdict: str = "improved") -> dict[str, Any]:
    return {
        "value": after,
        "difference": after - 0.5,
        "verdict": verdict,
        "ci95": [after - 0.6, after - 0.4],
        "evals": 10,
        "seconds": 2.0,
        "seconds_in_walk": 0.1,
        "peak_memory_bytes": 2**20,
        "inference_peak_memory_bytes": 2**19,
    }


def test_the_interval_is_students_t() -> None:
    values = [0.7, 0.8, 0.9]
    low, high = _interval([run(v) for v in values], values, 0.5)
    half = 4.302653 * 0.1 / 3**0.5  # t of two degrees of freedom
    assert (low, high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert _interval([run(0.7)], [0.7], 0.5) == (pytest.approx(0.1), pytest.approx(0.3))


@pytest.mark.parametrize(
    ("low", "high", "verdicts", "expected"),
    [
        (0.1, 0.2, ["improved", "improved"], "improved"),
        (-0.1, 0.2, ["improved", "improved"], "not shown"),
        (-0.2, -0.1, ["worse", "worse"], "worse"),
        (0.1, 0.2, ["not shown", "not shown"], "not shown"),
    ],
)
def test_the_verdict_is_over_seeds(
    low: float, high: float, verdicts: list[str], expected: str
) -> None:
    sign = 1 if high > 0 else -1
    done = [run(0.5 + 0.2 * sign, verdict) for verdict in verdicts]
    assert _verdict(done, low, high) == expected


def test_of_an_error_less_is_better() -> None:
    assert _verdict([run(0.3, "improved"), run(0.3, "improved")], -0.25, -0.15) == "improved"


def test_a_failed_cell_is_counted_and_the_others_stay() -> None:
    cells = [{"result": run(0.7)}, {"error": "killed"}]
    row = _row("zo-sgd", "token_f1", cells, 0.5)
    assert row is not None
    assert (row["runs"], row["failed"], row["error"]) == (1, 1, "killed")
    assert row["value"] == 0.7
    assert _row("linear-probe", "token_f1", [{"error": "generates"}], 0.5) is None


def test_what_gradients_are_trained_on_is_said() -> None:
    row = _row("lomo", "token_f1", [{"result": run(0.7)}], 0.5)
    assert row is not None
    assert row["trained_on"] == "loglikelihood"
    assert "| lomo (trained on loglikelihood) | token_f1 | 0.700 |" in _markdown([row], {})
    for method, objective in (("lomo", "loglikelihood"), ("zo-sgd", "token_f1")):
        row = _row(method, objective, [{"result": run(0.7)}], 0.5)
        assert row is not None
        assert "trained on" not in _markdown([row], {})


def test_names_of_files() -> None:
    assert Cell("zo-sgd", "a/b.py:f", 3).name == "zo-sgd-a-b-py-f-3"
