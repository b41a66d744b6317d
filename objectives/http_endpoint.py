"""Scores from a server: a batch in JSON is posted, scores come back."""

import email.utils
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from zoobj.errors import UserError
from zoobj.objective import Batch, Score, ScoreError
from zoobj.objectives.external import External, as_json

LOOPBACK = ("localhost", "127.0.0.1", "::1")
AGAIN = (408, 429, 500, 502, 503, 504)  # worth another try
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds: before the first retry; whatever the server asks for
BYTES_PER_SCORE, BYTES = 200, 10_000  # an answer may have: so many for each score, and for the rest


class Http(External):
    """Scores from an endpoint, ``http:URL`` or ``http:url=URL,timeout=5``.

    Examples are posted in JSON, ``{"prompts": [...], "completions": [...], "references": [...],
    "rows": {column: [...]}}``, each list with one item for each example; the answer is
    ``{"scores": [...]}``, as many numbers, null where there is none.

    A request that meets no connection, no answer in time, or status 408, 429, 500, 502, 503 or 504
    is made again, after 0.5, 1, 2, ... seconds or what Retry-After says, 30 at most. What fails for
    good costs the examples of that request: they score None, and the log says why.

    Args:
        url: where to post. Redirects are not followed.
        timeout: seconds for a connection, for the answer to begin, and for it to end.
        batch_size: examples in a request.
        concurrency: requests at a time.
        retries: after the first try.
        token_env: environment variable with a token, sent as ``Authorization: Bearer ...``; it is
            neither logged nor kept. Over https, or to this machine.
        ca_file: certificates to trust, PEM, instead of the usual ones. They are always checked.
        name, higher_is_better, low, high: see ``External``.

    Raises:
        UserError: a setting that can't be; the message has the remedy.

    >>> Http("https://scores.example/v1", batch_size=16)
    Http('http')
    """

    def __init__(
        self,
        url: str,
        timeout: float = 30.0,
        batch_size: int = 32,
        concurrency: int = 4,
        retries: int = 4,
        token_env: str | None = None,
        ca_file: str | None = None,
        name: str = "http",
        higher_is_better: bool = True,
        low: float | None = None,
        high: float | None = None,
    ):
        super().__init__(name, higher_is_better, low, high)
        self.url, (self.where, self.host) = url, _checked_url(url, token_env)
        if not timeout > 0:
            raise UserError(f"http: timeout {timeout}: above 0")
        numbers = {"batch_size": batch_size, "concurrency": concurrency, "retries": retries}
        for what, value in numbers.items():
            least = 0 if what == "retries" else 1
            if type(value) is not int or value < least:
                raise UserError(f"http: {what} {value!r} is not a whole number from {least}")
        token = os.environ.get(token_env or "", "")
        if token_env and not token:
            raise UserError(f"http: the environment has no {token_env}: export {token_env}=...")
        if not (token.isascii() and token.isprintable()):
            raise UserError(
                f"http: {token_env} has a line break or a letter that no header can have: export "
                "the token alone"
            )
        if ca_file and not Path(ca_file).is_file():
            raise UserError(f"http: no file {ca_file}: ca_file is a file of certificates in PEM")
        self.seconds, self.batch_size, self.concurrency = timeout, batch_size, concurrency
        self.retries, self.token_env, self.ca_file = retries, token_env, ca_file

    def score(self, batch: Batch) -> list[Score]:
        size = self.batch_size
        parts = [
            batch.select(range(start, min(start + size, len(batch))))
            for start in range(0, len(batch), size)
        ]
        with requests.Session() as session, ThreadPoolExecutor(self.concurrency) as pool:
            for scheme in ("https://", "http://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=self.concurrency))
            done = list(pool.map(lambda part: self._scores(session, part), parts))
        return [score for scores in done for score in scores]

    def _scores(self, session: requests.Session, part: Batch) -> list[Score]:
        """Scores of the examples of one request."""
        body = json.dumps(as_json(part)).encode()
        try:
            said = self._answer(session, body, BYTES + BYTES_PER_SCORE * len(part))
            scores = said.get("scores") if isinstance(said, dict) else None
            if not isinstance(scores, list):
                raise ScoreError('the answer is not {"scores": [...]}')
            if len(scores) != len(part):
                raise ScoreError(f"{len(scores)} scores came for {len(part)} examples")
        except ScoreError as error:
            self._tell(str(error).partition(":")[0], f"{self.where}: {error}")
            return [None] * len(part)
        return [self._checked(score, self.where) for score in scores]

    def _answer(self, session: requests.Session, body: bytes, most: int) -> Any:
        """Post until there is an answer; what it says."""
        for tried in range(self.retries + 1):
            asked = None
            try:
                with self._post(session, body) as response:
                    if response.status_code == 200:
                        return _json(self._read(response, most))
                    problem = f"status {response.status_code}"
                    if response.status_code not in AGAIN:
                        raise ScoreError(problem)
                    asked = _seconds(response.headers.get("Retry-After"))
            except requests.exceptions.SSLError as error:
                raise ScoreError(f"the connection is not safe: {_cause(error)}") from None
            except requests.RequestException as error:
                problem = _cause(error)
            if tried < self.retries:
                pause = PAUSE * 2**tried if asked is None else asked
                time.sleep(min(pause, LONGEST_PAUSE))
        raise ScoreError(f"{problem}, {self.retries + 1} times")

    def _post(self, session: requests.Session, body: bytes) -> requests.Response:
        return session.post(
            self.url,
            data=body,
            headers={"Content-Type": "application/json"},
            auth=self._authorise,  # also keeps requests from looking for one in ~/.netrc
            proxies={"no_proxy": self.host} if self.host in LOOPBACK else None,
            timeout=self.seconds,
            verify=self.ca_file or True,
            allow_redirects=False,
            stream=True,
        )

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token_env:
            request.headers["Authorization"] = f"Bearer {os.environ[self.token_env]}"
        return request

    def _tell(self, kind: str, problem: str) -> None:
        token = os.environ.get(self.token_env or "")
        super()._tell(kind, problem.replace(token, "***") if token else problem)

    def _read(self, response: requests.Response, most: int) -> bytes:
        """The body; the time and the size of all of it are bounded, not of each packet alone."""
        until, body = time.monotonic() + self.seconds, b""
        for piece in response.iter_content(1):
            body += piece
            if len(body) > most:
                raise ScoreError(f"the answer has more than {most} bytes")
            if time.monotonic() > until:
                raise requests.Timeout("the answer did not end in time")
        return body


def _checked_url(url: str, token_env: str | None) -> tuple[str, str]:
    """The URL as messages show it, without the query; and its host.

    Raises:
        UserError: it is none, or would give a secret away.
    """
    try:
        parts = urlsplit(str(url))
        known = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:  # brackets or a port that are none
        known = False
    if not known or not parts.hostname:
        raise UserError(f"http: {url!r} is no URL: give one as in 'http:https://host/score'")
    if parts.username or parts.password:
        raise UserError(
            "http: the URL has a password in it, which logs would keep: put a token into the "
            "environment and name it by token_env"
        )
    if token_env and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise UserError(f"http: a token would travel unencrypted to {parts.hostname}: use https")
    return f"{parts.scheme}://{parts.netloc}{parts.path}", parts.hostname


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ScoreError(f"the answer is not JSON: {body[:60]!r}") from None


def _seconds(asked: str | None) -> float | None:
    """A Retry-After, which is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if not asked:
        return None
    if asked.strip().isdecimal():
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _cause(error: BaseException) -> str:
    """The innermost reason, for requests wraps it several times."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}"[:200]
