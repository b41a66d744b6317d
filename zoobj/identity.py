"""What makes a run this run and no other: base, data, settings, code. The log begins with it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoobj.config import MAY_CHANGE_ON_RESUME, ZOConfig, read_yaml
from zoobj.errors import UserError
from zoobj.log import FORMAT, Line
from zoobj.overlay import overlay_of
from zoobj.registry import specs

_KEYS = (
    "format",
    "base",
    "base_checksum",
    "adapter",
    "overlay",
    "tokenizer",
    "data",
    "code",
    "parent",
)
_NO_MATTER = {"base_model_name_or_path", "inference_mode", "revision"}  # to an adapter's output


@dataclass(frozen=True)
class Parent:
    """The run that another one branches off.

    Attributes:
        run: what its log says of itself, see ``identity``.
        facts: ``run`` (its path), ``step``, and the ``hash`` of the line before.
        steps: its lines up to there.
        text: the same as they are in its log.
    """

    run: Line
    facts: Line
    steps: list[Line]
    text: str


def identity(
    args: ZOConfig, model: Any, base_checksum: str, tokenizer: Any, data: Mapping[str, str]
) -> Line:
    """What a run can't change halfway; the key ``run`` of its first line.

    Args:
        args: the settings.
        model: read for its adapter or overlay.
        base_checksum: of the weights before any change.
        tokenizer: of the model.
        data: fingerprints of the splits.

    Returns:
        These, and ``parent``, which is None here; a run that branches off another has there the
        ``run`` (a path), ``step`` and the ``hash`` of the line before.
    """
    settings = args.model_dump(exclude=MAY_CHANGE_ON_RESUME)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {
        "format": FORMAT,
        "base": args.model_name_or_path,
        "base_checksum": base_checksum,
        "adapter": _adapter(model),
        "overlay": _overlay(model),
        "tokenizer": _digest(vocabulary.encode()),
        "data": dict(data),
        "code": _code(args),
        "parent": None,
        "settings": settings,
    }


def mark(run: Line) -> str:
    """16 hex digits that name a run before its first step; where its base lies does not matter."""
    told = {key: value for key, value in run.items() if key not in ("base", "parent")}
    parent = run["parent"] and (run["parent"]["step"], run["parent"]["hash"])
    return _digest(json.dumps([told, parent], sort_keys=True, default=str).encode())


def recorded(config: Path) -> Line:
    """The same, as a run folder's config.yaml has it.

    Raises:
        UserError: it is no config of a run, or damaged.
    """
    content = read_yaml(config)
    environment = content.get("environment")
    if not isinstance(environment, dict) or not _sound(environment):
        raise UserError(
            f"{config} is damaged or no config of a run: restore it, or start elsewhere"
        )
    kept = set(ZOConfig.model_fields) - MAY_CHANGE_ON_RESUME
    settings = {key: value for key, value in content.items() if key in kept}
    return {**{key: environment[key] for key in _KEYS}, "settings": settings}


def _sound(environment: Line) -> bool:
    """Whether all is there, and of its kind."""
    if any(key not in environment for key in _KEYS):
        return False
    parent = environment["parent"]
    if parent is not None and not (
        isinstance(parent, dict)
        and isinstance(parent.get("step"), int)
        and parent["step"] >= 0
        and isinstance(parent.get("hash"), str)
    ):
        return False
    return isinstance(environment["data"], dict) and isinstance(environment["code"], dict)


def check_same(earlier: Line, now: Line, path: Path) -> None:
    """Refuse to go on with a run as another one.

    Raises:
        UserError: the first thing that differs, by name.
    """
    go_on = "to go on with a change, branch off: --branch_from"
    if earlier["format"] != FORMAT:
        raise UserError(
            f"{path}: the log has format {earlier['format']}; this zoobj reads {FORMAT}"
        )
    for key, value in now["settings"].items():
        if key in earlier["settings"] and earlier["settings"][key] != value:
            raise UserError(
                f"--resume_from_checkpoint: {key} was {earlier['settings'][key]!r} in {path}, now "
                f"{value!r}: give the earlier value; {go_on} {path}"
            )
    for split, fingerprint in earlier["data"].items():
        if now["data"].get(split, fingerprint) != fingerprint:
            raise UserError(f"--resume_from_checkpoint: the {split} data of {path} have changed")
    check_base(earlier, now["base"], now["base_checksum"])
    for what in ("tokenizer", "adapter", "overlay"):
        if earlier[what] != now[what]:
            raise UserError(f"--resume_from_checkpoint: {path} was run with another {what}")
    for what in sorted({*earlier["code"], *now["code"]}):
        if earlier["code"].get(what) != now["code"].get(what):
            raise UserError(
                f"--resume_from_checkpoint: the file of {what} {now['settings'][what]} has changed "
                f"since {path} was begun: restore it; {go_on} {path}"
            )


def check_base(run: Line, base: str, checksum: str) -> None:
    """Refuse a base model that is not the one a run began with."""
    if run["base_checksum"] != checksum:
        raise UserError(
            f"model {base!r} is not the base of the run: its weights have checksum {checksum}, "
            f"those of {run['base']!r} had {run['base_checksum']}"
        )


def check_overlay(parent: Parent, model: Any) -> None:
    """Refuse a branch that tunes another part of the model than its parent."""
    mine, theirs = ((o and {**o, "units": None}) for o in (_overlay(model), parent.run["overlay"]))
    if mine != theirs:
        raise UserError(
            f"--branch_from {parent.facts['run']}: a branch tunes what its parent does: leave "
            "tune, tune_layers and what goes with them as they are; or make a model of the parent "
            "by zoobj replay, and start from that"
        )


def _overlay(model: Any) -> Line | None:
    """The facts of the overlay on a model."""
    overlay = overlay_of(model)
    return None if overlay is None else overlay.facts


def _code(args: ZOConfig) -> dict[str, str]:
    """Fingerprints of the files that objective, task and method come from, if they do."""
    found = {}
    for what in ("objective", "tie_breaker", "task", "method"):
        parts = [part for spec in specs(getattr(args, what)) for part in re.split("[:,=]", spec)]
        files = [Path(part).expanduser() for part in parts]
        code = [
            file.read_bytes()
            for file in files
            if file.suffix in (".py", ".yaml", ".yml") and file.is_file()
        ]
        if code:
            found[what] = _digest(b"".join(code))
    return found


def _adapter(model: Any) -> str | None:
    """Fingerprint of the configuration of peft's adapters; None if there is none."""
    configs = getattr(model, "peft_config", None)
    if configs is None:
        return None
    told = {
        name: {k: v for k, v in config.to_dict().items() if k not in _NO_MATTER}
        for name, config in configs.items()
    }
    text = json.dumps(told, sort_keys=True, default=lambda v: sorted(map(str, v)))
    return _digest(text.encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
