"""A run's log for people: what it is, how it went, its first and last lines."""

import json
from collections.abc import Sequence
from pathlib import Path

from zoobj.accounting import signal
from zoobj.labels import described
from zoobj.log import Line, Log
from zoobj.replay import read_log
from zoobj.run import METRICS, SCORING


def show(path: str, count: int = 3) -> str:
    """Head, tail and summary of a log, whose chain is checked.

    Args:
        path: a run folder or its log.jsonl.
        count: lines of head and tail.

    Raises:
        UserError: no such log, or a damaged one, by line.
    """
    steps, _ = read_log(path)
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    shown = steps if len(steps) <= 2 * count else [*steps[:count], None, *steps[-count:]]
    return "\n".join(
        [
            *_summary(path, steps),
            *_validations(Log(folder / METRICS).lines),
            *_scoring(folder / SCORING),
            "",
            f"{'step':>6} {'value +':>9} {'value -':>9} {'flips':>6} {'failed':>6} tie "
            f"{'eps':>8} {'lr':>9} {'evals':>8} {'s':>7}  move",
            *("   ..." if line is None else _row(line) for line in shown),
        ]
    )


def _summary(path: str, steps: Sequence[Line]) -> list[str]:
    last = steps[-1]
    seconds = sum(line["seconds"] for line in steps)
    walk = sum(line["seconds_in_walk"] for line in steps) / max(seconds, 1e-9)
    runs = [(line["step"], line["run"]) for line in steps if "run" in line]
    lines = [
        f"{path}: {len(steps)} steps, {last['evals']} scored examples, {seconds:.0f} s "
        f"({walk:.1%} in the walk)",
        f"the chain is whole; its last hash is {last['hash']}",
    ]
    for start, run in runs:
        told = run["settings"]
        part = "" if told["tune"] == "full" else f" by --tune {told['tune']}"
        origin = f", branched off {run['parent']['run']}" if run["parent"] else ""
        lines.append(
            f"from step {start}: {run['base']} ({run['base_checksum']}), {told['method']}{part} on "
            f"{told['objective']} of {told['task']}, seed {told['seed']}{origin}"
        )
    told, failed = signal(steps), sum(line["failed"] for line in steps)
    asked = [line["tie_breaker"] for line in steps if "tie_breaker" in line]
    if asked:
        keys = ("pairs", "examples", "decided")
        tied, others, broken = (sum(line[key] for line in asked) for key in keys)
        lines.append(
            f"the tie-breaker was asked about {tied} pairs and {others} examples of others; of the "
            f"pairs it decided {broken}"
        )
    return [
        *lines,
        f"ties {told.tie_rate:.1%} of steps, flips {told.flip_rate:.1%} of examples, failed "
        f"{failed}; signal-to-noise of a pair {told.snr:.2f}, {told.wasted:.1%} of pairs wasted",
    ]


def _validations(lines: Sequence[Line]) -> list[str]:
    done = [x for x in lines if x["split"] == "validation" and x["value"] is not None]
    if not done:
        return []
    first, last = done[0], done[-1]
    return [
        f"validation {last['objective']}: {first['value']:.4f} at step {first['step']}, "
        f"{last['value']:.4f} at step {last['step']}; highest "
        f"{max(x['value'] for x in done):.4f}, lowest {min(x['value'] for x in done):.4f}",
        *([f"last validation: {described(last['labels'])}"] if "labels" in last else []),
    ]


def _scoring(path: Path) -> list[str]:
    """What scoring took, where the run has been that far."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        p50, p95, longest = (told["seconds"][key] for key in ("p50", "p95", "max"))
        failed = ", ".join(f"{kind} {n}" for kind, n in told["failed"].items() if n) or "none"
        return [
            f"scoring, last session: {told['calls']} calls, p50 {p50:.3g} s, p95 {p95:.3g} s, "
            f"longest {longest:.3g} s; {told['from_cache']} from the cache; failed: {failed}"
        ]
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged, or no call was made
        return []


def _row(line: Line) -> str:
    values = [None, None, *line["values"]][-2:]
    plus, minus = ("-" if value is None else f"{value:.4f}" for value in values)
    move = ", ".join(f"{seed}: {coefficient:.3g}" for seed, coefficient in line["move"][:2])
    more = ", ..." if len(line["move"]) > 2 else ""
    return (
        f"{line['step']:>6} {plus:>9} {minus:>9} {line['flips']:>6} {line['failed']:>6} "
        f"{'yes' if line['tie'] else 'no ':>3} {line['eps']:>8.3g} {line['learning_rate']:>9.3g} "
        f"{line['evals']:>8} {line['seconds']:>7.2f}  {{{move}{more}}}"
    )
