"""``zoobj compare``: methods x objectives x seeds on one task, at one budget, in one table."""

import csv
import json
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from zoobj.comparison import BASELINES, PROBE, ZERO_SHOT, Cell, settings_of, surrogate_of
from zoobj.config import ZOConfig
from zoobj.errors import UserError, did_you_mean
from zoobj.files import jsonable, replace_text, write_json
from zoobj.registry import catalogue

logger = logging.getLogger(__name__)

Row = dict[str, Any]
_MIB = 2**20
_COLUMNS = (
    *("method", "objective", "trained_on", "left_out", "runs", "failed", "value"),
    *("gain", "gain_low", "gain_high", "verdict", "evals", "seconds", "seconds_in_walk"),
    *("peak_memory_bytes", "memory_ratio", "error"),
)


def compare(
    args: ZOConfig,
    methods: Sequence[str],
    objectives: Sequence[str],
    seeds: int,
    shots: int = 4,
    baselines: Sequence[str] = BASELINES,
) -> str:
    """Run what has not been run yet, and write the table; returns it as Markdown.

    Weights are chosen on validation, by each run itself; the test split is for the table only. A
    setting that a method has no use for is left out of its runs, and the table says so.

    Args:
        args: settings of all runs; ``output_dir`` is the comparison's folder.
        methods: names, or "all".
        objectives: what the runs are tuned and measured on.
        seeds: runs of each, with seeds 1 to ``seeds``.
        shots: examples in the prompt of the baseline "in-context".
        baselines: beside the methods; those that a task has no place for are left out.

    Raises:
        UserError: an unknown name, or a folder that holds another comparison.
    """
    from zoobj.assemble import method_class

    names = sorted(catalogue("method")) if list(methods) == ["all"] else list(methods)
    for name in names:
        method_class(name)
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise UserError(f"unknown baseline {unknown[0]!r}{did_you_mean(unknown[0], BASELINES)}")
    folder = Path(args.output_dir).expanduser()
    settings = _settings(args)
    cells = [Cell(name, o, 0) for o in objectives for name in baselines]
    cells += [Cell(m, o, s) for o in objectives for m in names for s in range(1, seeds + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    told = [_run(cell, settings, shots, folder, (i, len(cells))) for i, cell in enumerate(cells, 1)]
    rows = [
        row
        for o in objectives
        for m in [*baselines, *names]
        if (row := _row(m, o, [t for t in told if _of(t, m, o)], _zero(told, o)))
    ]
    return _write(rows, told, folder, settings)


def _settings(args: ZOConfig) -> dict[str, Any]:
    """What was told, for every cell; the rest is each method's own default."""
    own = {"output_dir", "method", "objective", "seed", "resume_from_checkpoint", "config"}
    return args.model_dump(include=args.model_fields_set - own)


def _of(told: Row, method: str, objective: str) -> bool:
    return told["cell"]["method"] == method and told["cell"]["objective"] == objective


def _zero(told: Sequence[Row], objective: str) -> float | None:
    """The value of the model as it is: every run has measured it."""
    for cell in told:
        if cell["cell"]["objective"] == objective and "result" in cell:
            key = "value" if cell["cell"]["method"] == ZERO_SHOT else "before"
            if key in cell["result"]:
                return float(cell["result"][key])
    return None


def _run(
    cell: Cell, settings: dict[str, Any], shots: int, folder: Path, place: tuple[int, int]
) -> Row:
    """The result of a cell, run unless it is there; what failed before is tried again."""
    file = folder / f"{cell.name}.json"
    own = settings_of(cell.method, settings)
    left_out = sorted(settings.keys() - own.keys())
    asked = {"cell": asdict(cell), "settings": own, "shots": shots}
    if file.is_file():
        known: Row = json.loads(file.read_text(encoding="utf-8"))
        if {name: known.get(name) for name in asked} != asked:
            raise UserError(
                f"{file} is of a comparison with other settings: choose another --output_dir"
            )
        if "result" in known:
            return {**known, "left_out": left_out}
    write_json(file, asked)
    without = "".join(f", without --{name}: the method has no use for it" for name in left_out)
    logger.info("%d of %d: %s%s", *place, cell.name, without)
    with (folder / f"{cell.name}.txt").open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "zoobj.comparison", str(file)]
        code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    told: Row = json.loads(file.read_text(encoding="utf-8"))
    if "result" not in told and "error" not in told:
        told["error"] = f"ended with code {code}: see {output.name}"
        write_json(file, told)
    if "error" in told:
        logger.warning("%s: %s", cell.name, told["error"])
    return {**told, "left_out": left_out}


def _row(method: str, objective: str, told: Sequence[Row], zero: float | None) -> Row | None:
    """A line of the table, over seeds; None for a baseline that the task has no place for."""
    done = [cell["result"] for cell in told if "result" in cell]
    errors = [cell["error"] for cell in told if "error" in cell]
    if not done and method == PROBE:
        return None
    values = [result["value"] for result in done if result["value"] is not None]
    row: Row = {"method": method, "objective": objective, "runs": len(done), "failed": len(errors)}
    row["trained_on"] = surrogate_of(method, objective) or objective
    row["left_out"] = " ".join(told[0].get("left_out", ()))
    if not values:
        return {**row, "error": errors[0] if errors else "no value"}
    gain = None if zero is None else fmean(values) - zero
    low, high = _interval(done, values, zero)
    return {
        **row,
        "value": fmean(values),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "verdict": "-" if method in BASELINES else _verdict(done, low, high),
        **{k: fmean(r[k] for r in done) for k in ("evals", "seconds", "seconds_in_walk")},
        "peak_memory_bytes": max(r["peak_memory_bytes"] for r in done),
        "memory_ratio": _memory_ratio(done),
        "error": errors[0] if errors else None,
    }


def _memory_ratio(done: Sequence[Row]) -> float | None:
    """Peak memory of a run over that of its own inference, before its first step."""
    pairs = [(r["peak_memory_bytes"], r.get("inference_peak_memory_bytes")) for r in done]
    return max((peak / inference for peak, inference in pairs if inference), default=None)


def _interval(
    done: Sequence[Row], values: Sequence[float], zero: float | None
) -> tuple[float | None, float | None]:
    """95 % of the gain: over seeds Student's t, of one run its paired bootstrap."""
    if zero is None:
        return None, None
    if len(values) == 1:
        low, high = done[0].get("ci95", (None, None))
        return low, high
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - zero - half, fmean(values) - zero + half


def _verdict(done: Sequence[Row], low: float | None, high: float | None) -> str:
    """As in result.json; which side is better, the runs' own verdicts tell."""
    if low is None or high is None or low <= 0 <= high:
        return "not shown"
    known = {r["verdict"]: r["difference"] for r in done if r["verdict"] != "not shown"}
    up = next((d > 0) == (v == "improved") for v, d in known.items()) if known else None
    return "not shown" if up is None else "improved" if (low > 0) == up else "worse"


def _write(rows: Sequence[Row], told: Sequence[Row], folder: Path, settings: Row) -> str:
    """compare.json, .csv, .md and, with matplotlib, .png."""
    write_json(folder / "compare.json", {"rows": jsonable(list(rows)), "cells": list(told)})
    with (folder / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    table = _markdown(rows, settings)
    replace_text(folder / "compare.md", table + "\n")
    try:
        _plot(rows, told, folder / "compare.png")
    except ImportError:
        logger.info("no compare.png: pip install 'zoobj[report]'")
    return table


def _markdown(rows: Sequence[Row], settings: Row) -> str:
    evals = _head("evals", settings, "max_evals", "max_steps", "max_reward_calls")
    seconds = _head("seconds", settings, "max_seconds")
    lines = [
        f"| method | objective | value | gain [95 %] | verdict | {evals} | {seconds} | MiB "
        "| of inference | in walk |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = row["trained_on"] != row["objective"]
        notes = f" (trained on {row['trained_on']})" if other else ""
        notes += f" (without {row['left_out']})" if row["left_out"] else ""
        start = f"| {row['method']}{notes} | {row['objective']} | "
        if "value" not in row:
            lines.append(f"{start}failed: {row['error']} | | | | | | | |")
            continue
        low, high = row["gain_low"], row["gain_high"]
        gain = "-" if row["gain"] is None else f"{row['gain']:+.3f}"
        gain += "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        walk = row["seconds_in_walk"] / max(row["seconds"], 1e-9)
        ratio = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        lines.append(
            f"{start}{row['value']:.3f}{failed} | {gain} | {row['verdict']} | {row['evals']:.0f} | "
            f"{row['seconds']:.0f} | {row['peak_memory_bytes'] / _MIB:.0f} | {ratio} | {walk:.1%} |"
        )
    return "\n".join(lines)


def _head(column: str, settings: Row, *names: str) -> str:
    """What a column of what is spent is called: with each run's budget, if one was told."""
    told = ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name))
    return f"{column} ({told})" if told else column


def _plot(rows: Sequence[Row], told: Sequence[Row], path: Path) -> None:
    """Every run a dot, their mean a bar; a panel for each objective."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    figure, panels = pyplot.subplots(
        1,
        len(objectives),
        figsize=(5.5 * len(objectives), 4.5),
        layout="constrained",
        squeeze=False,
    )
    for objective, axes in zip(objectives, panels[0], strict=True):
        shown = [row for row in rows if row["objective"] == objective and "value" in row][::-1]
        axes.barh([r["method"] for r in shown], [r["value"] for r in shown], color="C0", alpha=0.4)
        for row in shown:
            runs = [t["result"] for t in told if _of(t, row["method"], objective) and "result" in t]
            axes.plot([r["value"] for r in runs], [row["method"]] * len(runs), "C0.")
        axes.set(xlabel=f"{objective} on test")
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
