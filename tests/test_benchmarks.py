"""The benchmarks run and print what they promise; their figures are for people."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_step_prints_all_rows_and_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--smoke", "--json", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr
    for row in ("A two", "B zoobj", "C MeZO", "D 2 passes", "peak memory, zoobj to inference"):
        assert row in run.stdout
    told = json.loads(out.read_text())
    assert len(told["rounds"]) == 2
    for seconds in told["rounds"]:
        assert all(seconds[name] > 0 for name in ("A", "C", "D", "mezo"))
        assert 0 < seconds["walk"] < seconds["B"]
    assert all(
        peak > told["weights_mib"] for peaks in told["memory_mib"].values() for peak in peaks
    )
    assert len(told["ratios"]) == 5 and all(ratio > 0 for ratio in told["ratios"].values())
