"""transformers' callbacks see real state and are obeyed; trackers get what the log says; the bar.

Values that a tracker stores are compared with log.jsonl and metrics.jsonl, read by its own reader.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from zoobj import UserError, ZOConfig, ZOTrainer
from zoobj.cli import main
from zoobj.interrupts import Interrupted

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


pytestmark = pytest.mark.usefixtures("no_statistics")


def small(output_dir: Path, **more: Any) -> ZOConfig:
    """Settings of a run of a second."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "full",
        "eps": 5e-3,
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 8,
        "max_train_samples": 64,
        "max_eval_samples": 8,
        "max_test_samples": 8,
        "max_new_tokens": 6,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Recorder(TrainerCallback):
    """Notes every event, what state said at that moment, and what came with it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.metrics: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.with_model = True


def _handler(event: str) -> Any:
    def handle(self: Recorder, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert isinstance(args, TrainingArguments)
        assert isinstance(state, TrainerState)
        assert isinstance(control, TrainerControl)
        self.args, self.history = args, state.log_history
        self.with_model &= kwargs["model"] is not None and kwargs["processing_class"] is not None
        self.seen.append((event, state.global_step))
        self.states.append({"event": event, **vars(state)})
        if event == "on_log":
            self.logs.append((state.global_step, kwargs["logs"]))
        if event == "on_evaluate":
            self.metrics.append(kwargs["metrics"])

    return handle


for _event in EVENTS:
    setattr(Recorder, _event, _handler(_event))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A finished run with a recorder and tensorboard."""
    folder, recorder = tmp_path_factory.mktemp("recorded") / "run", Recorder()
    settings = small(folder, report_to="tensorboard", save_steps=3, run_name="mine")
    ZOTrainer(args=settings, callbacks=[recorder]).train()
    return folder, recorder


# The protocol -------------------------------------------------------------------------------


def test_events_come_in_the_order_of_a_trainer(recorded: tuple[Path, Recorder]) -> None:
    step = ["on_step_begin", "on_log", "on_step_end"]
    evaluation = ["on_log", "on_evaluate"]
    expected = [
        *[("on_train_begin", 0), *((e, 0) for e in evaluation * 2)],  # test before, validation
        *[("on_step_begin", 0), ("on_log", 1), ("on_step_end", 1)],
        *[("on_step_begin", 1), ("on_log", 2), ("on_step_end", 2)],
        *[(e, 2) for e in evaluation],
        *[("on_step_begin", 2), ("on_log", 3), ("on_step_end", 3), ("on_save", 3)],
        *[("on_step_begin", 3), ("on_log", 4), ("on_step_end", 4)],
        *[(e, 4) for e in evaluation],
        ("on_save", 4),
    ]
    _, recorder = recorded
    seen = [event for event in recorder.seen if event[0] != "on_prediction_step"]
    best = next(s for s in reversed(recorder.states) if s["event"] == "on_save")
    if best["best_global_step"] != 0:  # else test is known already
        expected += [(e, 4) for e in evaluation]
    assert seen == [*expected, ("on_train_end", 4)]
    assert {event for event, _ in seen} >= set(step)
    assert recorder.with_model


def test_state_is_that_of_the_run(recorded: tuple[Path, Recorder]) -> None:
    folder, recorder = recorded
    validations = {
        line["step"]: line["value"]
        for line in lines(folder / "metrics.jsonl")
        if line["split"] == "validation"
    }
    known: list[int] = []
    for state in recorder.states:
        if state["event"] == "on_prediction_step":
            continue
        step = state["global_step"]
        assert state["max_steps"] == 4
        assert state["epoch"] == pytest.approx(step * 8 / 64)
        if state["event"] == "on_step_begin":
            known = [s for s in validations if s <= step]
            best = max(known, key=lambda s: (validations[s], -s))
            assert (state["best_global_step"], state["best_metric"]) == (best, validations[best])
        if state["event"] in ("on_train_begin", "on_log") and not known:
            assert state["best_metric"] is None  # nothing was validated yet
    assert [{**logs, "step": step} for step, logs in recorder.logs] == recorder.history


def test_args_are_training_arguments_with_our_settings(recorded: tuple[Path, Recorder]) -> None:
    folder, recorder = recorded
    args = recorder.args
    assert args.output_dir == str(folder)
    assert (args.run_name, args.eval_steps, args.logging_steps, args.seed) == ("mine", 2, 1, 3)
    assert args.per_device_train_batch_size == 8
    assert json.loads(args.to_json_string())["eps"] == 5e-3
    told = args.to_dict()
    assert told == ZOConfig(**told).model_dump()
    assert told["objective"] == "token_f1"
    plain = args.to_sanitized_dict()
    assert plain.keys() == told.keys()
    assert all(isinstance(value, (bool, int, float, str)) for value in plain.values())
    assert (args.world_size, args.process_index, args.local_process_index) == (1, 0, 0)
    assert args.should_save
    assert args.should_log


def test_predictions_are_told_between_begin_and_end(recorded: tuple[Path, Recorder]) -> None:
    _, recorder = recorded
    events = [event for event, _ in recorder.seen]
    assert events[0] == "on_train_begin"
    assert events[-1] == "on_train_end"
    assert events.count("on_prediction_step") >= 2 * 4


def test_logs_leave_out_steps_that_are_not_asked_for(tmp_path: Path) -> None:
    recorder = Recorder()
    ZOTrainer(args=small(tmp_path / "run", logging_steps=2), callbacks=[recorder]).train()
    assert [step for step, logs in recorder.logs if "eps" in logs] == [2, 4]


def test_a_failed_step_logs_no_value(tmp_path: Path) -> None:
    """What does not exist is left out, not reported as NaN."""

    def none(completions: list[str], **kwargs: Any) -> list[float | None]:
        calls.append(len(completions))
        return [1.0 if len(calls) == 1 else None] * len(completions)  # the try-out works

    calls: list[int] = []
    recorder = Recorder()
    settings = small(tmp_path / "run", max_steps=1)
    ZOTrainer(objective=none, args=settings, callbacks=[recorder]).train()
    told = next(logs for _, logs in recorder.logs if "eps" in logs)
    assert "reward" not in told
    assert told["failed"] == 8
    assert all(value is not None for _, logs in recorder.logs for value in logs.values())


class Ask(TrainerCallback):
    """Sets switches of control in an event, at a step."""

    def __init__(self, event: str, step: int, *switches: str):
        def handle(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for switch in switches if state.global_step == step else ():
                setattr(control, switch, True)

        setattr(self, event, handle)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_control_is_obeyed(tmp_path: Path) -> None:
    asks = [
        Ask("on_step_end", 1, "should_evaluate"),
        Ask("on_step_end", 2, "should_save"),
        Ask("on_step_end", 3, "should_training_stop"),
    ]
    ZOTrainer(args=small(tmp_path / "run", eval_steps=100), callbacks=asks).train()
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics if m["split"] == "validation"] == [0, 1, 3]
    assert [p.name for p in tmp_path.glob("run/checkpoint-*")] == ["checkpoint-2"]
    state = TrainerState.load_from_json(str(tmp_path / "run/checkpoint-2/trainer_state.json"))
    assert (state.global_step, state.max_steps) == (2, 4)
    assert result(tmp_path / "run")["stop_reason"] == "callback"
    assert result(tmp_path / "run")["steps"] == 3


def test_a_stop_on_a_validation_is_obeyed_before_the_next_step(tmp_path: Path) -> None:
    ask = Ask("on_evaluate", 2, "should_training_stop")
    ZOTrainer(args=small(tmp_path / "run", max_steps=8), callbacks=[ask]).train()
    assert (result(tmp_path / "run")["steps"], result(tmp_path / "run")["stop_reason"]) == (
        2,
        "callback",
    )


def test_a_stop_before_the_first_step_is_obeyed(tmp_path: Path) -> None:
    ask = Ask("on_train_begin", 0, "should_training_stop")
    ZOTrainer(args=small(tmp_path / "run"), callbacks=[ask]).train()
    assert (result(tmp_path / "run")["steps"], result(tmp_path / "run")["stop_reason"]) == (
        0,
        "callback",
    )


@pytest.mark.parametrize("higher", [True, False])
def test_early_stopping_of_transformers(tmp_path: Path, higher: bool) -> None:
    """Validations get worse from the first on: with a patience of 2 the third ends the run."""
    from zoobj import Batch, Objective

    class Fading(Objective):
        name, needs = "fading", frozenset({"completions"})
        higher_is_better = higher

        def __init__(self) -> None:
            self.calls = 0

        def score(self, batch: Batch) -> list[float | None]:
            self.calls += 1
            return [-self.calls if higher else float(self.calls)] * len(batch)

    callbacks = [EarlyStoppingCallback(early_stopping_patience=2)]
    settings = small(tmp_path / "run", max_steps=10, eval_steps=1)
    ZOTrainer(objective=Fading(), args=settings, callbacks=callbacks).train()
    assert result(tmp_path / "run")["stop_reason"] == "callback"
    assert result(tmp_path / "run")["steps"] == 2
    assert result(tmp_path / "run")["best_step"] == 0


def test_a_class_and_any_object_will_do(tmp_path: Path) -> None:
    class Few:
        begun = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            Few.begun += 1

    ZOTrainer(args=small(tmp_path / "run", max_steps=1), callbacks=[Few, Few(), object()]).train()
    assert Few.begun == 2


def test_a_run_that_train_is_pointed_at_is_the_one_that_callbacks_see(tmp_path: Path) -> None:
    """``output_dir`` may be told as late as ``train(resume_from_checkpoint=folder)``."""
    out, recorder = tmp_path / "run", Recorder()
    ZOTrainer(args=small(out, max_steps=1, lr_scheduler_type="constant")).train()
    settings = small(out, max_steps=2, lr_scheduler_type="constant").model_dump()
    del settings["output_dir"]
    ZOTrainer(args=ZOConfig(**settings), callbacks=[recorder]).train(str(out))
    assert recorder.args.output_dir == str(out)


# Trackers -----------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What tensorboard itself reads there: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "runs").iterdir()
    reader = EventAccumulator(str(place))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_reads_what_the_log_says(recorded: tuple[Path, Recorder]) -> None:
    folder, _ = recorded
    steps, metrics = lines(folder / "log.jsonl"), lines(folder / "metrics.jsonl")
    found = scalars(folder)

    def rows(values: list[float]) -> list[tuple[int, Any]]:
        return [(i + 1, pytest.approx(value, rel=1e-6)) for i, value in enumerate(values)]

    means = [sum(line["values"]) / 2 for line in steps]
    ties = [float(line["tie"]) for line in steps]
    expected = {
        "train/reward": rows(means),
        "train/rewards/token_f1/mean": rows(means),
        "train/frac_reward_zero_std": rows(ties),
        "train/flip_rate": rows([line["flips"] / line["n"] for line in steps]),
        "train/tie_rate": rows([sum(ties[: i + 1]) / (i + 1) for i in range(len(ties))]),
        "train/learning_rate": rows([line["learning_rate"] for line in steps]),
        "train/eps": rows([line["eps"] for line in steps]),
        "train/failed": rows([line["failed"] for line in steps]),
        "train/evals": rows([line["evals"] for line in steps]),
        "train/step_time": rows([line["seconds"] for line in steps]),
    }
    for split, prefix in (("validation", "eval"), ("test", "test")):
        here = [line for line in metrics if line["split"] == split]
        told = [line["step"] for line in here]
        if split == "test":  # the last is of the best weights, told when the run is over
            told = [0, 4][: len(here)]
        for name, key in (("token_f1", "value"), ("runtime", "seconds"), ("samples", "n")):
            values = [pytest.approx(line[key], rel=1e-6) for line in here]
            expected[f"{prefix}/{name}"] = list(zip(told, values, strict=True))
    epochs = found.pop("train/epoch")
    assert dict(epochs) == {i: i / 8 for i in range(5)}
    assert found == expected


def test_every_documented_name_is_reported(recorded: tuple[Path, Recorder]) -> None:
    """The list in the docstring of zoobj/callbacks.py is complete, and nothing in it is made up."""
    from zoobj import callbacks

    table = (callbacks.__doc__ or "").partition("test_:\n")[2].strip().splitlines()
    names = [re.split(r"\s{2,}", line.strip())[0] for line in table]
    documented = {name.replace("NAME", "token_f1") for row in names for name in row.split(", ")}
    _, recorder = recorded
    told = {name for _, logs in recorder.logs for name in logs}
    told = {name for name in told if not name.endswith(("_runtime", "_samples"))}
    assert told == documented


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "no such tracker; did you mean 'tensorboard'?"),
        ("none,zzz", "'zzz': no such tracker; choose from"),
        ("wandb", "pip install wandb"),
    ],
)
def test_trackers_that_are_not_there(tmp_path: Path, name: str, message: str) -> None:
    if name == "wandb":
        from transformers.integrations import is_wandb_available

        if is_wandb_available():
            pytest.skip("wandb is installed here")
    with pytest.raises(UserError, match=re.escape(message)):
        ZOTrainer(args=small(tmp_path / "run", report_to=name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("theirs", [None, "theirs"])
def test_the_project_reaches_wandb(
    tmp_path: Path, theirs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' callback takes it from the environment alone, which wins over the setting."""
    from transformers.integrations import integration_utils

    known = {"wandb": type("Wandb", (), {})}
    monkeypatch.setattr(integration_utils, "INTEGRATION_TO_CALLBACK", known)
    monkeypatch.setenv("WANDB_PROJECT", theirs or "")
    if theirs is None:
        monkeypatch.delenv("WANDB_PROJECT")
    ZOTrainer(args=small(tmp_path / "run", report_to="wandb", project="ours"))
    assert os.environ["WANDB_PROJECT"] == (theirs or "ours")


def test_an_interrupted_run_leaves_readable_events(tmp_path: Path) -> None:
    class Stop:
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                signal.raise_signal(signal.SIGINT)

    settings = small(tmp_path / "run", report_to="tensorboard")
    with pytest.raises(Interrupted):
        ZOTrainer(args=settings, callbacks=[Stop()]).train()
    assert [step for step, _ in scalars(tmp_path / "run")["train/reward"]] == [1, 2, 3]


# The progress bar ---------------------------------------------------------------------------


def command(output_dir: Path, **more: Any) -> list[str]:
    told = small(output_dir, sample_steps=1, **more).model_dump(exclude_unset=True)
    flags = [text for name, value in told.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "zoobj", "train", *flags]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}


def in_a_terminal(argv: list[str], interrupt_at: str | None = None) -> tuple[int, str]:
    """Run a program whose only output is a pseudo-terminal of 160 columns; what it wrote there."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), close_fds=True
    )
    os.close(theirs)
    written, deadline, told = b"", time.monotonic() + 120, False
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1.0)[0]:
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the program has closed its side
            break
        if not part:
            break
        written += part
        if interrupt_at is not None and not told and interrupt_at.encode() in written:
            process.send_signal(signal.SIGINT)
            told = True
    os.close(ours)
    return process.wait(30), written.decode()


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


def test_the_bar_in_a_terminal(tmp_path: Path) -> None:
    code, written = in_a_terminal(command(tmp_path / "run"))
    assert code == 0, written
    text = plain(written)
    last = lines(tmp_path / "run" / "log.jsonl")[-1]
    value = sum(last["values"]) / 2
    found = re.findall(
        r"(\d)/4 value ([\d.]+) smoothed ([\d.]+) ties (\d+)% flips (\d+)% eps ([\d.]+) (\d+) ex/s",
        text,
    )
    assert found, text[-3000:]
    step, shown, smoothed, _ties, flips, eps, _ = found[-1]
    assert (step, shown, eps) == ("4", f"{value:.4f}", "0.005")
    assert flips == f"{last['flips'] / last['n']:.0%}"[:-1]
    expected = None
    for line in lines(tmp_path / "run" / "log.jsonl"):
        mean = sum(line["values"]) / 2
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
    assert smoothed == f"{expected:.4f}"
    for number in range(1, 5):
        assert re.search(rf"[\r\n] *step {number} *\r?\n", text), text[-3000:]
    assert re.search(r"prompt \(end\).*reference.*\+.*score.*-.*score", text)
    assert re.search(r"step +2/4 +validation token_f1 0\.\d{4} \(n=8\)", text)
    assert written.rfind(SHOW) > written.rfind(HIDE) >= 0


def test_ctrl_c_gives_the_cursor_back(tmp_path: Path) -> None:
    argv = command(tmp_path / "run", max_steps=500)
    code, written = in_a_terminal(argv, interrupt_at="2/500")
    assert code == 130, written
    assert "interrupted by SIGINT at step" in " ".join(plain(written).split())
    assert written.rfind(SHOW) > written.rfind(HIDE) >= 0


def test_without_a_terminal_a_line_for_each_evaluation(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "run"), capture_output=True, text=True, env=environment(), check=True
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stderr + done.stdout)
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    told = [line for line in done.stderr.splitlines() if line.startswith("step")]
    assert len(told) == len(metrics)
    for text, line in zip(told, metrics, strict=True):
        assert f"{line['split']} token_f1 {line['value']:.4f} (n=8)" in text
    assert [line for line in done.stderr.splitlines() if line not in told] == []
    assert len(done.stdout.splitlines()) == 2


def test_no_bar_where_none_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **kwargs: None)  # a process's, not a test's
    monkeypatch.setattr("zoobj.cli._quiet", lambda: None)
    argv = [*command(tmp_path / "run", max_steps=1)[4:], "--disable_tqdm"]
    assert main(["train", *argv]) == 0
    written = capsys.readouterr()
    assert "step" not in written.err
    assert written.out.endswith(f"saved in {tmp_path / 'run'}\n")
