"""Real runs that are killed: `zoobj train` in a process of its own, and what it left behind."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNTOLD = {"seconds", "seconds_in_walk"}  # timings differ from run to run
MEASURED = {*UNTOLD, "peak_memory_bytes", "inference_peak_memory_bytes"}
SMALL = (
    "--max_steps 6 --eval_steps 2 --per_device_train_batch_size 4 --max_train_samples 64 "
    "--max_eval_samples 4 --max_test_samples 6 --max_new_tokens 4 --learning_rate 3e-3 "
    "--disable_tqdm"
).split()


# A server that has only imported, and forks: quick as a fork, and clean as a process of its own.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["zoobj.cli", "zoobj.trainer", "zoobj.progress"])


def start(*arguments: str | Path, size: int | None = None) -> Any:
    """Begin `zoobj ...` in a process of its own.

    What it prints goes to a file beside its output_dir, see `printed`.

    Args:
        arguments: of the command.
        size: bytes that no file may grow beyond.
    """
    argv = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(argv, size))
    process.start()
    return process


def _run(argv: list[str], size: int | None) -> None:
    from zoobj.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(_output(argv), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    code = 1
    try:
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _output(argv: list[str]) -> Path:
    folder = Path(argv[argv.index("--output_dir") + 1])
    return folder.with_name(folder.name + ".txt")


def printed(out: Path) -> str:
    """What the runs in a folder wrote to stdout and stderr."""
    return out.with_name(out.name + ".txt").read_text()


def run(*arguments: str | Path, **more: Any) -> int:
    """`zoobj ...` to its end; the exit code."""
    process = start(*arguments, **more)
    process.join()
    return int(process.exitcode)


def killed_after(
    seconds: float,
    *arguments: str | Path,
    number: int = signal.SIGKILL,
    there: Path | None = None,
) -> int:
    """`zoobj ...`, sent a signal after so many seconds unless it is done by then.

    Args:
        seconds: from the start, or from when ``there`` exists.
        arguments: of the command.
        number: of the signal.
        there: a file that the run makes.

    Returns:
        The exit code; minus the signal's number for one that was killed.
    """
    process = start(*arguments)
    while there is not None and not there.exists() and process.is_alive():
        time.sleep(0.005)
    process.join(seconds)
    with suppress(ProcessLookupError):  # it may have ended just now
        if process.exitcode is None:
            os.kill(process.pid, number)
    process.join()
    return int(process.exitcode)


def train(out: Path, *more: str | Path) -> list[str | Path]:
    """The arguments of a run of a second."""
    return ["train", "--output_dir", out, *SMALL, *more]


def resumed(out: Path) -> list[str | Path]:
    """The arguments that continue it; all settings are the run's own."""
    return ["train", "--resume_from_checkpoint", "--output_dir", out]


def left(out: Path) -> dict[str, Any]:
    """What a finished run comes to, timings and memory aside."""
    result = json.loads((out / "result.json").read_text())
    return {
        "log": untimed(out / "log.jsonl"),
        "metrics": untimed(out / "metrics.jsonl"),
        "weights": (out / "model.safetensors").read_bytes(),
        "result": {key: value for key, value in result.items() if key not in MEASURED},
    }


def untimed(path: Path) -> list[dict[str, Any]]:
    """Lines of a log without their timings."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNTOLD} for line in lines]
