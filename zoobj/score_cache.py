"""Scores on disk by what was scored: the same completion is never paid for twice, in any run.

A folder with a file for each objective, known by its code and its arguments; a line holds the hash
of an example, with all its columns, and its score. Lines are sealed, so that one that is cut short
or damaged is as good as absent. Several processes may use a folder at once.
"""

import functools
import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoobj.errors import UserError
from zoobj.files import append_text, writing
from zoobj.log import ORIGIN, opened, sealed
from zoobj.objective import Batch, Objective, Score


class ScoreCache:
    """Scores of a decomposable objective, by example.

    Args:
        folder: made where it is not there.
        objective: whose scores these are.

    Raises:
        UserError: the folder can't be written, or nothing tells this objective from another.
    """

    def __init__(self, folder: str, objective: Objective):
        path = Path(folder).expanduser()
        name = re.sub(r"\W+", "-", objective.name)[:60]
        self.path = path / f"{name}-{_digest(_told(objective))}.jsonl"
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.is_file() else b""
        lines = (opened(text, ORIGIN) for text in content.split(b"\n"))
        self._scores: dict[str, float] = {
            line["example"]: line["score"] for line in lines if line is not None
        }

    def get(self, key: str | None) -> Score:
        """The score of an example, None where it is not known."""
        return None if key is None else self._scores.get(key)

    def put(self, scores: Mapping[str, float]) -> None:
        """Keep scores; they are on disk when this returns."""
        new = {key: score for key, score in scores.items() if key not in self._scores}
        if not new:
            return
        lines = [sealed({"example": key, "score": new[key]}, ORIGIN, {}) for key in new]
        with writing(self.path), FileLock(f"{self.path}.lock"):
            cut = _last_byte(self.path) not in (b"", b"\n")
            append_text(self.path, "\n" * cut + "\n".join(lines) + "\n")
        self._scores |= new


def example_key(batch: Batch, i: int) -> str | None:
    """The hash of all that an objective can see of an example; None where JSON can't hold it."""
    try:
        return _digest(asdict(batch.select([i])))
    except (TypeError, ValueError):
        return None


def _last_byte(path: Path) -> bytes:
    """Of a file; nothing where it is empty or not there."""
    if not path.is_file() or not path.stat().st_size:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read()


def _told(objective: Objective) -> Any:
    try:
        return identity(objective)
    except Exception as error:
        raise UserError(
            f"--reward_cache: objective {objective.name!r} can't be told from others "
            f"({type(error).__name__}: {error}): leave reward_cache out, or set deterministic = "
            "False in its class"
        ) from error


def identity(thing: Any) -> Any:
    """What makes an objective this one, as JSON: where its code is, its hash, its arguments.

    The hash is that of the whole file, so that any change in it begins a new cache.

    >>> identity({"k": (1, "x")})
    {'k': [1, 'x']}
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [identity(part) for part in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted((identity(part) for part in thing), key=json.dumps)
    if isinstance(thing, dict):
        return {str(key): identity(value) for key, value in thing.items()}
    if isinstance(thing, (Path, re.Pattern)):
        return repr(thing)
    if isinstance(thing, Objective):
        return [identity(type(thing)), identity(_state(thing))]
    if isinstance(thing, functools.partial):
        return [identity(part) for part in (thing.func, thing.args, thing.keywords)]
    if inspect.ismethod(thing):
        return [identity(thing.__func__), identity(thing.__self__)]
    if inspect.isclass(thing):
        parents = [_code(kind) for kind in thing.__mro__ if kind is not object]
        return [f"{thing.__module__}.{thing.__qualname__}", parents]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        more = [identity(part) for part in (thing.__defaults__, thing.__kwdefaults__, cells)]
        return [f"{thing.__module__}.{thing.__qualname__}", _code(thing), more]
    import dill

    return hashlib.sha256(dill.dumps(thing, recurse=True)).hexdigest()


def _state(objective: Objective) -> Any:
    """What a copy in another process would have, which is less than all where it says so."""
    kinds = type(objective).__mro__[:-1]  # object has one of its own since Python 3.11
    own = (vars(kind)["__getstate__"] for kind in kinds if "__getstate__" in vars(kind))
    return next(own, vars)(objective)


def _code(thing: Any) -> str:
    """Hash of the file that something is defined in, or of its own source."""
    file = inspect.getsourcefile(thing)
    if file is not None and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
