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


@pytest.mark.slow
def test_population_prints_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "population.json"
    script = str(ROOT / "benchmarks" / "population.py")
    command = [sys.executable, script, "--smoke", "--kinds", "steer,prompt", "--json", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr
    told = json.loads(out.read_text())
    for kind in ("steer", "prompt"):
        assert kind in run.stdout
        assert told[f"memory {kind}"]["A"] > 0
        for count in (1, 2):
            figures = told[f"{kind} {count}"]
            for part in ("prefill", "decode"):
                assert figures[f"A {part}"] > 0
                assert figures[f"B {part}"] > 0
                assert figures[f"ratio {part}"] > 0


@pytest.mark.slow
def test_memory_prints_a_line_for_each_method(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--json", str(out)]
    command += ["--layers", "1", "--rows", "1", "--tokens", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr
    told = json.loads(out.read_text())
    assert len(told) == 8
    for name, figures in told.items():
        assert f"| {name} | {figures['peak'] / 2**20:.0f} |" in run.stdout
        assert figures["weights"] == told["inference"]["weights"] > figures["largest"] > 0
        assert figures["peak"] > figures["weights"]
    peaks = {name: figures["peak"] - figures["weights"] for name, figures in told.items()}
    assert max(peaks["inference"], peaks["zo-sgd"]) < peaks["fo-sgd"] < peaks["fo-adam"]


@pytest.mark.slow
def test_against_grpo_measures_both(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    script, out = str(ROOT / "benchmarks" / "against_grpo.py"), tmp_path / "out"
    command = [sys.executable, script, "--seconds", "4", "--marks", "2", "--seeds", "1"]
    command += ["--grpo_rates", "1e-4", "--max_test_samples", "8", "--output_dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr
    assert (out / "against_grpo.png").stat().st_size > 1000
    base = json.loads((out / "inference.json").read_text())["final"]
    for name in ("zoobj-1", "grpo-1-1em4"):
        told = json.loads((out / f"{name}.json").read_text())
        assert told["curve"][0][1] == pytest.approx(base)  # both begin at the same model
        assert len(told["curve"]) >= 2
        assert told["peak"] > 0
        assert f"{told['final']:.4f}" in run.stdout
