"""From a base model and a log to weights: any step, exactly, or averages of steps and runs.

A Move is linear in its coefficients, so the mean of weights is the base moved by the mean of their
coefficients: with T logged steps, the mean over the last n is

    theta_0 + sum_t min(n, T - t) / n * move_t                     (1)

and the mean of R runs is each run's moves over R.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoobj.assemble import is_first_order, make_model, make_tuned, make_walk
from zoobj.config import ZOConfig
from zoobj.environment import checksum
from zoobj.errors import UserError
from zoobj.export import save_model
from zoobj.files import replace_folder
from zoobj.identity import check_base
from zoobj.log import FORMAT, Line, Log
from zoobj.passes import Decay
from zoobj.still import Still
from zoobj.walk import Move, Walk

# Settings that a walk depends on; with density, also the seed.
_WALK = ("noise", "tune", "tune_layers", "dtype")
_SINCE = {"blocks": 1, "fo_layers": None, "decay_to_base": False}  # older logs lack some


def read_log(path: str | Path, until: int | None = None) -> tuple[list[Line], str]:
    """The steps of a log before ``until`` (all by default), and their text.

    Args:
        path: a log.jsonl or the run folder that holds one.
        until: how many steps; a negative number leaves out so many at the end.

    Raises:
        UserError: no such log, one that is damaged, empty or too short, or of another format.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "log.jsonl"
    if not file.is_file():
        raise UserError(f"log {path}: no such file")
    log = Log(file, steps=True)
    if not log.lines:
        raise UserError(f"log {file} has no steps")
    header = log.lines[0].get("run")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(
            f"log {file}: its first line does not say what run it is, in format {FORMAT}"
        )
    count = len(log.lines) if until is None else until + (len(log.lines) if until < 0 else 0)
    if not 0 <= count <= len(log.lines):
        raise UserError(f"step {until}: log {file} has {len(log.lines)} steps")
    return log.lines[:count], log.text(count)


def header(log: str | Path) -> Line:
    """What the first line of a log says of its run: see ``identity``."""
    found: Line = read_log(log)[0][0]["run"]
    return found


def settings(run: Line) -> ZOConfig:
    """The settings in a header."""
    return ZOConfig(model_name_or_path=run["base"], **run["settings"])


def retrace(model: Any, steps: Sequence[Line], base: str | None = None) -> Walk | None:
    """Take a base model through logged steps, bit for bit.

    Args:
        model: in the state that the log began with.
        steps: from the log's first.
        base: where the model was loaded from, if not from where the log says.

    Returns:
        The walk over the model, at theta after these steps; None if there are none.

    Raises:
        UserError: the weights are not those that the log has a checksum of, or moved by gradients.
    """
    check_moves(steps)
    walk, kind = None, None
    checked = max((line["step"] for line in steps if line["checksum"]), default=None)
    for line in steps:
        if "run" in line and _kind(line["run"]) != kind:  # a branch may walk differently
            if walk is not None:
                walk.goto({})
            told = settings(line["run"]).model_copy(
                update={"model_name_or_path": base or line["run"]["base"]}
            )
            kind, walk = _kind(line["run"]), make_walk(told, model)
        assert walk is not None
        if line["step"] == checked:
            verify(model, walk, line)
        walk.commit(*move_of(line))
    if walk is not None:
        walk.goto({})
    return walk


def walk_after(model: Any, steps: Sequence[Line], args: ZOConfig) -> Walk:
    """The walk for a run with these settings, from where other steps lead to: see ``retrace``."""
    walk = retrace(model, steps, args.model_name_or_path)
    if is_first_order(args):
        return Still()
    kind = next((_kind(line["run"]) for line in reversed(steps) if "run" in line), None)
    if walk is None or kind != _kind({"settings": args.model_dump()}):
        return make_walk(args, model)
    return walk


def move_of(line: Line) -> tuple[Move, Decay | None]:
    """The move of a line, and the decay before it."""
    decay = line.get("decay")
    return [(seed, coefficient) for seed, coefficient in line["move"]], decay and Decay(*decay)


def check_moves(steps: Sequence[Line], linear: bool = False) -> None:
    """Refuse steps that a log can't give back.

    Args:
        steps: lines of a log.
        linear: whether their moves are to be added up in parts.

    Raises:
        UserError: a step was made by gradients; or, for ``linear``, has weight decay.
    """
    for line in steps:
        if "gradient" in line:
            raise UserError(
                f"step {line['step']} was made by a gradient, which is in no log: take the model "
                "of the run folder, or of its checkpoints"
            )
        if linear and "decay" in line:
            raise UserError(
                f"step {line['step']} has weight decay, after which steps are no sum of moves: "
                "--until gives the weights of any of them"
            )


def verify(model: Any, walk: Walk, line: Line) -> None:
    """Check the weights before a step against the checksum in its line.

    Raises:
        UserError: they differ.
    """
    walk.goto({})
    found = checksum(model.named_parameters())
    if found != line["checksum"]:
        raise UserError(
            f"the replayed weights at step {line['step']} have checksum {found}, the log says "
            f"{line['checksum']}: another version of zoobj or of the model's code?"
        )


def average(model: Any, logs: Sequence[Sequence[Line]], last: int = 1) -> Walk:
    """Take a base model to the mean of the last steps of one or several logs.

    Each coefficient is rounded once for each tensor, by less than the tensor's quantum.

    Args:
        model: the base of all logs.
        logs: their steps.
        last: how many steps of each to average, equation (1).

    Raises:
        UserError: fewer steps than that, or logs whose moves don't add up.
    """
    _check_average(logs, last)
    for steps in logs:
        check_moves(steps, linear=True)
    kinds = {_kind(line["run"]) for steps in logs for line in steps if "run" in line}
    if len(kinds) != 1:
        raise UserError("these logs can't be averaged: noise, tune, dtype or density differ")
    walk = make_walk(settings(logs[0][0]["run"]), model)
    for steps in logs:
        for t, line in enumerate(steps):
            share = min(last, len(steps) - t) / last / len(logs)  # (1)
            walk.commit([(seed, share * coefficient) for seed, coefficient in line["move"]])
    walk.goto({})
    return walk


def _check_average(logs: Sequence[Sequence[Line]], last: int) -> None:
    shortest = min(len(steps) for steps in logs)
    if not 1 <= last <= shortest:
        raise UserError(f"--average {last}: a log has {shortest} steps")


def replay(
    logs: Sequence[str], output: str, until: int | None, last: int, told: dict[str, Any]
) -> str:
    """``zoobj replay``: save the weights that logs lead to; returns what was done, in a line.

    Args:
        logs: log.jsonl files or run folders; of several, the mean.
        output: a new folder.
        until: see ``read_log``.
        last: steps to average.
        told: settings of the model that differ from those of the first log.

    Raises:
        UserError: for bad input; nothing is written then.
    """
    place = Path(output).expanduser()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"--output {output} exists and is not an empty folder: choose another")
    run = header(logs[0])
    read = [read_log(log, until)[0] for log in logs]
    if last > 1 or len(logs) > 1:
        _check_average(read, last)
    args = settings(run).model_copy(update=told)
    model, tokenizer = make_model(args)
    base = checksum(model.named_parameters())
    tuned = make_tuned(args, model, tokenizer, run["overlay"])
    for log in logs:
        check_base(header(log), str(told.get("model_name_or_path", run["base"])), base)
    if len(logs) == 1 and last == 1:
        if retrace(tuned, read[0], args.model_name_or_path) is None:
            make_walk(args, tuned)  # which puts the weights on its grid, as at the run's start
    else:
        average(tuned, read, last)
    replace_folder(place, partial(save_model, tuned, tokenizer))
    steps = ", ".join(str(len(steps)) for steps in read)
    return (
        f"{place}: {run['base']} after {steps} steps, checksum {checksum(tuned.named_parameters())}"
    )


def _kind(run: Line) -> tuple[Any, ...]:
    """What walks have to share."""
    told = run["settings"]
    masked = (told["density"], told["seed"]) if told["density"] < 1 else (1.0, None)
    since = (told.get(name, usual) for name, usual in _SINCE.items())
    return (*(told[name] for name in _WALK), *since, *masked)
