"""The run folder: settings, log, metrics, checkpoints, the tuned model, the result.

``log.jsonl`` holds one line a step, and a line is all that is needed to repeat the step: replaying
the moves of a log on the base model gives the tuned weights bit for bit. A folder belongs to one
process at a time, and everything in it is on disk when it is reported.
"""

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoobj.config import ZOConfig
from zoobj.environment import git_commit, versions
from zoobj.errors import UserError
from zoobj.export import save_model
from zoobj.files import (
    remove_folder,
    replace_folder,
    replace_text,
    sync_folder,
    write_json,
    writing,
)
from zoobj.identity import Parent, check_same, mark, recorded
from zoobj.journal import Journal
from zoobj.log import ORIGIN, Line, Log

CONFIG, LOG, METRICS, RESULT, SCORING, CARD, REPORT = (
    "config.yaml",
    "log.jsonl",
    "metrics.jsonl",
    "result.json",
    "scoring.json",
    "README.md",
    "report.html",
)
STOP = "STOP"  # a file of this name in the folder ends the run
_MODEL = ("config.json", "adapter_config.json")  # the model of the next run may have one only
_LOCK, _PENDING, _OUTCOMES = ".lock", "pending.jsonl", "outcomes.jsonl"


def run_folder(args: ZOConfig) -> Path:
    """Where the run is written."""
    return Path(args.output_dir).expanduser()


def resumes(args: ZOConfig) -> bool:
    """Whether there is a run to continue; one that was killed before its first line is none."""
    return bool(args.resume_from_checkpoint) and (run_folder(args) / CONFIG).is_file()


def has_steps(args: ZOConfig) -> bool:
    """Whether there is a run to continue with lines in its log, a branch with all its parent's."""
    log = run_folder(args) / LOG
    if not (resumes(args) and log.is_file()):
        return False
    return log.read_bytes().count(b"\n") >= max(1, begun_at(args))


def begun_at(args: ZOConfig) -> int:
    """The step where the run that is continued began."""
    return _start(recorded(run_folder(args) / CONFIG))


def check_output_dir(args: ZOConfig) -> None:
    """Refuse a folder that holds something, unless the user said what to do with it."""
    path = run_folder(args)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path} is a file: choose another")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--output_dir {path}: {above} is a file: choose another")
    if args.resume_from_checkpoint:
        if not resumes(args) and not (path.is_dir() and _empty(path)):
            raise UserError(f"--resume_from_checkpoint: no run in {path} (it has no {CONFIG})")
        return
    base = Path(args.model_name_or_path).expanduser()
    saved = (*path.glob("checkpoint-*"), *path.glob("snapshot-*"))
    doomed = [path.resolve(), *(folder.resolve() for folder in saved)]
    if args.overwrite_output_dir and base.is_dir() and base.resolve() in doomed:
        raise UserError(
            f"--overwrite_output_dir: {path} holds the base model: choose another folder"
        )
    if path.is_dir() and not _empty(path) and not args.overwrite_output_dir:
        raise UserError(
            f"--output_dir {path} is not empty: choose another, --overwrite_output_dir, or "
            "--resume_from_checkpoint to continue the run there"
        )


def _empty(path: Path) -> bool:
    """Nothing is there but what a run leaves that was killed before it began."""
    return all(file.name == _LOCK or file.name.endswith(".tmp") for file in path.iterdir())


class RunFolder:
    """Writes a run; what was reported as done is on disk. To be closed.

    Args:
        args: the run's settings; ``output_dir`` is made.

    Attributes:
        log: of the steps; ``metrics``: of the evaluations.
        pending: outcomes of the step in flight; ``outcomes``: of test.
        start: the step where this run began, above 0 if it branched off another.
        this: what makes the run this one, once it has begun.
        recorded: what config.yaml says of the run that is continued.

    Raises:
        UserError: another process writes there, or what is there is damaged.
    """

    def __init__(self, args: ZOConfig):
        self.path = run_folder(args)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / _LOCK)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"--output_dir {self.path}: another process is writing there; wait for it, or "
                    "choose another folder"
                ) from None
        try:
            check_output_dir(args)  # again: it may have been another's a moment ago
            self._open(args)
        except BaseException:
            self.close()
            raise

    def _open(self, args: ZOConfig) -> None:
        if not args.resume_from_checkpoint:
            with writing(self.path):
                self._clear()
        for stale in self.path.glob(".*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        self.log = Log(self.path / LOG, steps=True)
        self.metrics = Log(self.path / METRICS)
        self.pending = Journal(self.path / _PENDING)
        self.outcomes = Journal(self.path / _OUTCOMES)
        self.recorded = recorded(self.path / CONFIG) if resumes(args) else None
        self.start = _start(self.recorded) if self.recorded else 0
        self._mark = ""

    def begin(self, this: Line, args: ZOConfig, parent: Parent | None) -> None:
        """Write the settings down, or check that they are those of the run there.

        Args:
            this: what makes the run this one, from ``identity``.
            args: all settings.
            parent: the run that this one branches off, whose steps become its first.

        Raises:
            UserError: settings, data or base that would make it another run, by key.
        """
        this = {**this, "parent": parent.facts if parent else None}
        if self.recorded is not None:
            this["parent"] = self.recorded["parent"]
            check_same(self._earlier(parent), this, self.path)
        self.start, self.this, self._mark = _start(this), this, mark(this)
        self._write_config(args)  # before the parent's steps: without it, they are nobody's
        if parent is not None:
            replace_text(self.path / LOG, parent.text)
            self.log = Log(self.path / LOG, steps=True)

    def _earlier(self, parent: Parent | None) -> Line:
        """What the run there says of itself: in its log, which can't be altered without a trace.

        Raises:
            UserError: settings and log are of two runs.
        """
        assert self.recorded is not None
        told, steps = self.recorded["parent"], self.steps if parent is None else parent.steps
        begun = [line["step"] for line in steps if "run" in line]
        known = len(steps) >= self.start and (
            told is None
            or told["hash"] == (steps[self.start - 1]["hash"] if self.start else ORIGIN)
        )
        if len(steps) > self.start:
            known = known and begun[-1:] == [self.start]
        if not known:
            whose = LOG if parent is None else parent.facts["run"]
            raise UserError(
                f"{self.path}: {CONFIG} and {whose} are not of the same run: restore the one that "
                "was changed, or start elsewhere"
            )
        return steps[self.start]["run"] if len(steps) > self.start else self.recorded

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        (self.path / STOP).unlink(missing_ok=True)  # it has stopped, for whatever reason
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()

    @property
    def steps(self) -> list[Line]:
        """The lines of the log."""
        return self.log.lines

    def log_step(self, line: Mapping[str, Any], timings: Mapping[str, float]) -> None:
        """Append a step to the log; the first of a run says what run it is."""
        begins = {"run": self.this} if len(self.steps) == self.start else {}
        self.log.append({**line, **begins}, timings)
        self.pending.clear()

    def log_evaluation(self, line: Mapping[str, Any], timings: Mapping[str, float]) -> None:
        """Append an evaluation to the metrics, bound to the log as it stood at its step."""
        bound = {"log": self.log.hash_at(line["step"]), "run": self._mark}
        self.metrics.append({**line, **bound}, timings)

    def key(self, step: int) -> str:
        """Of the weights before a step of this run, for what is measured there."""
        return f"{self._mark}/{self.log.hash_at(step)}"

    @property
    def evals(self) -> int:
        """Training examples scored so far, both sides of a pair; of a branch, all of its line."""
        return self.steps[-1]["evals"] if self.steps else 0

    @property
    def calls(self) -> int:
        """How often this run called the objective on a batch: a try-out, steps, evaluations."""
        steps = sum(line.get("calls", len(line["values"])) for line in self.steps[self.start :])
        return 1 + steps + len(self.evaluations)

    @property
    def seconds(self) -> float:
        """Of the steps and evaluations of this run."""
        lines = (*self.steps[self.start :], *self.evaluations)
        return sum(float(line["seconds"]) for line in lines)

    @property
    def seconds_in_walk(self) -> float:
        """Of the steps of this run."""
        return sum(float(line["seconds_in_walk"]) for line in self.steps[self.start :])

    @property
    def tie_rate(self) -> float:
        """Share of the steps of this run that tied."""
        steps = self.steps[self.start :]
        return sum(line["tie"] for line in steps) / max(1, len(steps))

    @property
    def evaluations(self) -> list[Line]:
        """The lines of the metrics that belong to the log; others are of steps that were lost."""
        return [
            line
            for line in self.metrics.lines
            if line["step"] <= len(self.steps)
            and line["log"] == self.log.hash_at(line["step"])
            and line.get("run") == self._mark  # before the first step, all logs have one hash
        ]

    def evaluation(self, step: int, split: str) -> Line | None:
        """The evaluation of a split at this step, if it was paid for already."""
        found = (e for e in self.evaluations if e["step"] == step and e["split"] == split)
        return next(found, None)

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """The model in Hugging Face format, loadable without zoobj."""
        staging = self.path / ".model.tmp"
        replace_folder(staging, partial(save_model, model, tokenizer))
        with writing(self.path):
            for index in self.path.glob("*.index.json"):
                index.unlink()  # without it, shards of two versions are not taken for a model
            files = sorted(staging.iterdir(), key=lambda f: f.name.endswith(".index.json"))
            for file in files:
                if file.is_dir():  # peft has one for each adapter that has a name
                    remove_folder(self.path / file.name)
                os.replace(file, self.path / file.name)
            sync_folder(self.path)
        remove_folder(staging)

    def finished(self, best: int) -> str | None:
        """Why an earlier session ended the run, if that is the end that it is still at."""
        try:
            told = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
            same = (told["steps"], told["best_step"]) == (len(self.steps), best)
            return str(told["stop_reason"]) if same and told["after"] is not None else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_result(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / RESULT, dict(result))

    def write_scoring(self, figures: Mapping[str, Any]) -> None:
        write_json(self.path / SCORING, dict(figures))

    def write_card(self, text: str) -> None:
        replace_text(self.path / CARD, text)

    def _clear(self) -> None:
        """Remove an earlier run, its settings first: half a run is none."""
        known = (CONFIG, LOG, METRICS, RESULT, SCORING, CARD, REPORT, STOP, _PENDING, _OUTCOMES)
        for old in (*known, *_MODEL):
            (self.path / old).unlink(missing_ok=True)
        for pattern in ("model*.safetensors*", "adapter_model.safetensors"):
            for weights in self.path.glob(pattern):  # a larger model has several
                weights.unlink()
        for pattern in ("checkpoint-*", "snapshot-*"):
            for saved in self.path.glob(pattern):
                remove_folder(saved)

    def _write_config(self, args: ZOConfig) -> None:
        import yaml

        run = {key: value for key, value in self.this.items() if key != "settings"}
        environment = {"versions": versions(), "git_commit": git_commit(), **run}
        calls = {"resume_from_checkpoint": False, "overwrite_output_dir": False}
        resolved = {**args.model_dump(), **calls, "environment": environment}
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        replace_text(self.path / CONFIG, text)


def _start(identity: Line) -> int:
    """The step where a run began."""
    return identity["parent"]["step"] if identity["parent"] else 0
