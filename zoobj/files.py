"""Files that are whole or not there, and are on disk when a function returns."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoobj.errors import UserError


class StorageError(UserError):
    """A file could not be written: the disk is full, read-only or gone."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line which file could not be written, and why.

    Raises:
        StorageError: for an error of the operating system, also one that came by way of Rust, in
            which safetensors and tokenizers are written.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = error.strerror or str(error)
        raise StorageError(f"{path}: {reason}{': free some space' if full else ''}") from error
    except Exception as error:
        if "(os error" not in str(error):
            raise
        raise StorageError(f"{path}: {error}") from error


def replace_text(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                _sync(file)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one go; NaN, which JSON doesn't know, becomes null."""
    replace_text(path, json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Add to a file; on disk when it returns, and as it was before where that fails."""
    with writing(path), path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        data = text.encode()
        try:
            while data:  # a disk that fills up takes a part first
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # an error is on its way already
                file.truncate(before)
            raise


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is there only when it is complete.

    Args:
        path: the folder; an older one is replaced.
        fill: writes the content into the folder it is given.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            fill(temporary)
            sync_tree(temporary)
            remove_folder(path)
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that half of it is never mistaken for a whole one."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flush every file of a folder to disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename survives a power cut."""
    if os.name != "posix":
        return  # Windows can't open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def jsonable(value: Any) -> Any:
    """The value with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
