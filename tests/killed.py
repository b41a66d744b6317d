"""Real runs that are killed: `zoobj train` in a process of its own, and what it left behind."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
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


def start(*arguments: str | Path, before: Callable[[], None] = lambda: None) -> int:
    """Begin `zoobj ...` in a forked process (importing torch anew would take seconds); its pid.

    What it prints goes to a file beside its output_dir, see `printed`.
    """
    from zoobj.cli import main
    from zoobj.trainer import ZOTrainer  # imported here, so that children need not

    assert ZOTrainer
    argv = [str(argument) for argument in arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(_output(argv), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        before()
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


def wait(pid: int) -> int:
    """The exit code; minus the signal's number for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(*arguments: str | Path, **more: Any) -> int:
    """`zoobj ...` to its end; the exit code."""
    return wait(start(*arguments, **more))


def killed_after(seconds: float, *arguments: str | Path, number: int = signal.SIGKILL) -> int:
    """`zoobj ...`, sent a signal after so many seconds unless it is done by then; the exit code."""
    pid = start(*arguments)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, number)
    return wait(pid)


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
