"""The log: lines that are appended, flushed, and sealed by a hash over all lines before them.

A line is a JSON object. Its hash is SHA-256 over the hash of the line before it and its own bytes
up to there, as 16 hex digits:

    {"step":7,"move":[[123,-0.001]], ... ,"hash":"0f3c9a12b4d5e6f7","seconds":0.41}

A changed, lost, added or swapped line breaks the chain from there on. Timings stand behind the
hash and are not part of it. So the hash of a line names all that was done up to it, and two runs of
equal settings have equal hashes.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoobj.errors import UserError
from zoobj.files import append_text

Line = dict[str, Any]
FORMAT = 1  # of a step's line; a line that begins a run says it
ORIGIN = "0" * 16  # the hash before the first line

_SEALED = re.compile(rb'(?P<body>\{.*),"hash":"(?P<hash>[0-9a-f]{16})"(?P<tail>.*)\}')
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


class Log:
    """Sealed lines and the file that they are kept in.

    Args:
        path: the file; made by the first line.
        steps: each line is a step; the first has number 0, and none is left out.

    Raises:
        UserError: a line that is damaged or altered, or (for steps) out of order, by number.
    """

    def __init__(self, path: Path, steps: bool = False):
        self.path = path
        self.lines: list[Line] = []
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        timings = ("seconds", "seconds_in_walk") if steps else ("seconds",)
        for number, text in enumerate(whole.split(b"\n")[:-1], 1):
            line = opened(text, self.hash, timings)
            if line is None or (steps and line.get("step") != number - 1):
                raise UserError(
                    f"{path}: line {number} is damaged or altered, or lines before it are missing "
                    "(its hash does not follow): delete it and all after it to go on from what is "
                    "before"
                )
            self.lines.append(line)
        self._cut = len(whole) < len(content)  # a crash cut the last line short
        self._whole = len(whole)

    @property
    def hash(self) -> str:
        """Of the last line."""
        return self.hash_at(len(self.lines))

    def hash_at(self, count: int) -> str:
        """Of the log when it had this many lines."""
        return self.lines[count - 1]["hash"] if count else ORIGIN

    def text(self, count: int) -> str:
        """The first lines as they are in the file."""
        return "".join(self.path.read_text(encoding="utf-8").splitlines(keepends=True)[:count])

    def append(self, line: Mapping[str, Any], timings: Mapping[str, float]) -> None:
        """Seal a line and write it; it is on disk when this returns."""
        if self._cut:
            with self.path.open("r+b") as file:
                file.truncate(self._whole)
            self._cut = False
        text = sealed(line, self.hash, timings)
        append_text(self.path, text + "\n")
        self.lines.append(json.loads(text))


def sealed(line: Mapping[str, Any], previous: str, timings: Mapping[str, float]) -> str:
    """A line as it is written; JSON has no NaN, so neither has a line."""
    body = json.dumps(line, separators=(",", ":"), allow_nan=False)[:-1]
    tail = "".join(f',"{name}":{seconds}' for name, seconds in timings.items())
    return f'{body},"hash":"{_hash(previous, body.encode())}"{tail}}}'


def opened(text: bytes, previous: str, timings: Sequence[str] = ()) -> Line | None:
    """The line, None where it is damaged or does not follow."""
    match = _SEALED.fullmatch(text)
    if match is None or match["hash"].decode() != _hash(previous, match["body"]):
        return None
    tail = "".join(f',"{name}":{_NUMBER}' for name in timings)
    if not re.fullmatch(tail.encode(), match["tail"]):
        return None
    return json.loads(text)


def _hash(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()[:16]
