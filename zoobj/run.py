"""The run folder: settings, log, metrics, the tuned model, the result.

``log.jsonl`` holds one line a step, and a line is all that is needed to repeat the step: replaying
the moves of a log on the base model gives the tuned weights bit for bit.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoobj.config import MAY_CHANGE_ON_RESUME, ZOConfig
from zoobj.errors import UserError
from zoobj.signal import Verdict

CONFIG, LOG, METRICS, RESULT, CARD, REPORT = (
    "config.yaml",
    "log.jsonl",
    "metrics.jsonl",
    "result.json",
    "README.md",
    "report.html",
)
_PACKAGES = ("zoobj", "torch", "transformers", "datasets", "tokenizers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Result:
    """What a run comes to. ``before`` and ``after`` are measured on ``n`` held-out examples.

    ``evals`` counts scored training examples, both sides of a pair; ``ci95`` is a paired bootstrap
    of the difference; ``seconds`` are those of steps and evaluations, earlier sessions of a resumed
    run included; memory is bytes.
    """

    objective: str
    split: str
    n: int
    before: float
    after: float
    difference: float
    ci95: tuple[float, float]
    verdict: Verdict
    method: str
    steps: int
    evals: int
    seconds: float
    seconds_in_walk: float
    tie_rate: float
    peak_memory_bytes: int
    inference_peak_memory_bytes: int

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"{self.objective} on {self.n} {self.split} examples: {self.before:.4f} -> "
            f"{self.after:.4f}, difference {self.difference:+.4f} [{low:+.4f}, {high:+.4f}]: "
            f"{self.verdict}"
        )


def check_output_dir(args: ZOConfig) -> None:
    """Refuse a folder that holds something, unless the user said what to do with it."""
    path = Path(args.output_dir).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path} is a file: choose another")
    if args.resume_from_checkpoint:
        if not (path / CONFIG).is_file():
            raise UserError(f"--resume_from_checkpoint: no run in {path} (it has no {CONFIG})")
        return
    if path.is_dir() and any(path.iterdir()) and not args.overwrite_output_dir:
        raise UserError(
            f"--output_dir {path} is not empty: choose another, --overwrite_output_dir, or "
            "--resume_from_checkpoint to continue the run there"
        )


class RunFolder:
    """Writes a run; what was reported as done is on disk.

    Args:
        args: the run's settings; ``output_dir`` is made, or cleared of an earlier run.
        data: fingerprints of the splits, which a continued run must share.
    """

    def __init__(self, args: ZOConfig, data: dict[str, str]):
        self.path = Path(args.output_dir).expanduser()
        self.steps: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        if args.resume_from_checkpoint:
            self._check_same(args, data)
            self.steps = _read_lines(self.path / LOG)
            self.evaluations = _read_lines(self.path / METRICS)
            _check_consecutive(self.steps, self.path / LOG)
        else:
            self._clear()
        self._write_config(args, data)

    def log_step(self, line: dict[str, Any]) -> None:
        """Append a step to the log, flushed to disk."""
        self.steps.append(line)
        _append(self.path / LOG, line)

    def log_evaluation(self, line: dict[str, Any]) -> None:
        """Append an evaluation to the metrics."""
        self.evaluations.append(line)
        _append(self.path / METRICS, line)

    def evaluation(self, step: int, split: str) -> dict[str, Any] | None:
        """The evaluation of a split at this step, if it was paid for already."""
        found = (e for e in self.evaluations if e["step"] == step and e["split"] == split)
        return next(found, None)

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """The model in Hugging Face format, loadable without zoobj."""
        model.save_pretrained(self.path)
        tokenizer.save_pretrained(self.path)

    def write_result(self, result: Result) -> None:
        write_json(self.path / RESULT, asdict(result))

    def write_card(self, text: str) -> None:
        (self.path / CARD).write_text(text, encoding="utf-8")

    def _clear(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for old in (CONFIG, LOG, METRICS, RESULT, CARD, REPORT):
            (self.path / old).unlink(missing_ok=True)
        for weights in self.path.glob("model*.safetensors*"):  # a larger model has several
            weights.unlink()
        for checkpoint in self.path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (self.path / LOG).touch()

    def _write_config(self, args: ZOConfig, data: dict[str, str]) -> None:
        import yaml

        resolved = {
            **args.model_dump(),
            "environment": {"versions": versions(), "git_commit": git_commit(), "data": data},
        }
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        _replace(self.path / CONFIG, text)

    def _check_same(self, args: ZOConfig, data: dict[str, str]) -> None:
        """Refuse to continue a run under settings or data that would make it another one."""
        import yaml

        earlier = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        for key, value in args.model_dump().items():
            if key not in MAY_CHANGE_ON_RESUME and key in earlier and earlier[key] != value:
                raise UserError(
                    f"--resume_from_checkpoint: {key} was {earlier[key]!r} in {self.path}, now "
                    f"{value!r}: give the earlier value, or start in another --output_dir"
                )
        for split, fingerprint in earlier.get("environment", {}).get("data", {}).items():
            if data.get(split, fingerprint) != fingerprint:
                raise UserError(f"--resume_from_checkpoint: the {split} data have changed")


def _check_consecutive(steps: list[dict[str, Any]], path: Path) -> None:
    for number, line in enumerate(steps):
        if line.get("step") != number:
            raise UserError(f"{path}: line {number + 1} is step {line.get('step')}, not {number}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; one that a crash cut short is removed."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            raise UserError(f"{path}: line {number} is damaged: start anew elsewhere") from None
    return lines


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one go; NaN, which JSON doesn't know, becomes null."""
    _replace(path, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """The value with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def _replace(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def checksum(params: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the bytes of all tensors, by name, as 16 hex digits."""
    digest = hashlib.sha256()
    for name, param in sorted(params):
        digest.update(name.encode())
        data = param.detach().contiguous().view(-1).view(torch.uint8).cpu()
        digest.update(data.numpy().data)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an uninstalled clone
            from zoobj import __version__

            found[package] = __version__ if package == "zoobj" else "absent"
    return found


def git_commit() -> str | None:
    """The commit of the checkout that zoobj runs from, None if it is installed."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
