"""Scores from servers and programs: good ones, slow ones, broken ones and liars."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint import Answer, Endpoint, lengths, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from zoobj.errors import UserError
from zoobj.objective import Batch, Score, as_objective
from zoobj.objectives import Command, Http, http_endpoint
from zoobj.objectives.external import as_json
from zoobj.objectives.program import Program
from zoobj.outcome import judge

ROOT = Path(__file__).parents[1]


def texts(*completions: str, **rows: list[Any]) -> Batch:
    n = len(completions)
    return Batch(
        prompts=[f"prompt {i}" for i in range(n)],
        references=[[f"gold {i}"] for i in range(n)],
        completions=list(completions),
        rows=rows,
    )


def expected(batch: Batch) -> list[Score]:
    return [1 / (1 + len(text)) for text in batch.completions or []]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Pauses are short; warnings are caught."""
    monkeypatch.setattr(http_endpoint, "PAUSE", 0.01)
    caplog.set_level(logging.WARNING)


Maker = Callable[..., str]

# What goes out --------------------------------------------------------------------------------


def test_columns_as_json() -> None:
    batch = Batch(
        prompts=["?"] * 2,
        references=[np.int64(1), [np.str_("a")]],
        completions=["a", "\ud800"],
        rows={
            "x": [np.float32(0.5), float("nan")],
            "y": [np.arange(2), Path("a")],
            "z": [True, {1: (2,)}],
        },
    )
    said = json.loads(json.dumps(as_json(batch), allow_nan=False))
    assert said["references"] == [1, ["a"]]
    assert said["rows"] == {"x": [0.5, None], "y": [[0, 1], "a"], "z": [True, {"1": [2]}]}


def test_what_is_posted() -> None:
    batch = texts("a", "bb", answers=[{"text": ["x"]}, {"text": []}])
    with serving() as server:
        assert as_objective(f"http:{server.url}").score(batch) == expected(batch)
    (headers, posted) = server.requests[0]
    assert headers["Content-Type"] == "application/json"
    assert posted == {
        "prompts": ["prompt 0", "prompt 1"],
        "completions": ["a", "bb"],
        "references": [["gold 0"], ["gold 1"]],
        "rows": {"answers": [{"text": ["x"]}, {"text": []}]},
    }


def test_requests_of_a_batch_keep_its_order() -> None:
    """Answers come in another order than questions went out."""
    batch = texts(*["x" * i for i in range(25)])

    def slow_at_first(posted: dict[str, Any], number: int) -> Answer:
        return Answer(
            lengths(posted, number).body, delay=0.2 if "xxx" in posted["completions"] else 0
        )

    with serving(slow_at_first) as server:
        objective = as_objective(f"http:url={server.url},batch_size=4,concurrency=3")
        assert objective.score(batch) == expected(batch)
    assert sorted(len(posted["prompts"]) for _, posted in server.requests) == [1] + [4] * 6


def checksum(prompt: str, completion: str, reference: list[str]) -> float:
    return zlib.crc32(json.dumps([prompt, completion, reference]).encode()) / 2**32


def checksums(posted: dict[str, Any], number: int) -> Answer:
    columns = zip(posted["prompts"], posted["completions"], posted["references"], strict=True)
    return Answer({"scores": [checksum(*row) for row in columns]})


CHECKSUM = """
sum = zlib.crc32(json.dumps([row["prompt"], text, row["reference"]]).encode()) / 2 ** 32
print(json.dumps({"id": row["id"], "score": sum}))
"""


@pytest.mark.parametrize("kind", ["http", "command"])
def test_any_texts_arrive_as_they_are(kind: str, program: Maker) -> None:
    """200 rows and more."""
    any_text = st.text(max_size=6) | st.sampled_from(
        ["", "\r\n", "\u2028", "e\u0301", "\U0001f600"]
    )
    rows = st.lists(st.tuples(any_text, any_text, st.lists(any_text, max_size=2)), min_size=5)

    @settings(max_examples=45)
    @given(rows)
    def check(rows: list[tuple[str, str, list[str]]]) -> None:
        prompts, completions, references = map(list, zip(*rows, strict=True))
        batch = Batch(prompts=prompts, references=references, completions=completions)
        assert objective.score(batch) == [checksum(*row) for row in rows]

    with serving(checksums) as server:
        made = {"http": server.url, "command": program(CHECKSUM, before="import zlib")}
        objective = as_objective(f"{kind}:{made[kind]}")
        check()


def test_requests_are_made_at_a_time() -> None:
    batch = texts(*"abcdefgh")
    with serving(lambda posted, i: Answer(lengths(posted, i).body, delay=0.5)) as server:
        start = time.monotonic()
        scores = Http(server.url, batch_size=1, concurrency=8).score(batch)
    assert scores == expected(batch)
    assert time.monotonic() - start < 3


def test_null_is_no_score_and_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda posted, i: Answer({"scores": [0.5, None]})) as server:
        assert Http(server.url).score(texts("a", "b")) == [0.5, None]
    assert not caplog.messages


# Servers in trouble ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=500),
        Answer(status=503),
        Answer(status=429),
        Answer(drop=True),
        Answer({"scores": []}, delay=0.6),
        Answer('{"scores": [', headers={"Content-Length": "100"}),
    ],
    ids=lambda answer: f"{answer.status}-{answer.drop}-{answer.delay}",
)
def test_trouble_that_passes(trouble: Answer, caplog: pytest.LogCaptureFixture) -> None:
    batch = texts("a", "bb")
    with serving(lambda posted, i: trouble if i < 2 else lengths(posted, i)) as server:
        assert Http(server.url, timeout=0.3).score(batch) == expected(batch)
    assert len(server.requests) == 3
    assert not caplog.messages


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Answer(status=500), "status 500, 3 times"),
        (Answer(drop=True), "RemoteDisconnected: .*, 3 times"),
        (Answer({"scores": []}, delay=0.6), "TimeoutError: timed out, 3 times"),
        (Answer({"scores": [0.5]}, drip=0.1), "the answer did not end in time, 3 times"),
    ],
)
def test_trouble_that_stays_costs_its_request_only(
    trouble: Answer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(posted: dict[str, Any], number: int) -> Answer:
        return trouble if "bad" in posted["completions"] else lengths(posted, number)

    with serving(behave) as server:
        outcome = judge(
            Http(server.url, timeout=0.3, retries=2, batch_size=1), texts("a", "bad", "c")
        )
    assert outcome.scores == [0.5, None, 0.5]
    assert outcome.value == 0.5
    assert len(server.requests) == 5
    (message,) = caplog.messages
    assert re.search(said, message)
    assert server.url in message


def test_no_server(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        pass
    assert Http(server.url, retries=1).score(texts("a", "b")) == [None, None]
    assert "Connection refused, 2 times" in caplog.text


def test_what_retrying_will_not_mend(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda posted, i: Answer(status=400)) as server:
        assert Http(server.url).score(texts("a")) == [None]
    assert len(server.requests) == 1
    assert "status 400" in caplog.text


def test_redirects_are_not_followed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCORER", "s3cret")
    with serving() as other:
        moved = Answer(status=307, headers={"Location": other.url})
        with serving(lambda posted, i: moved) as server:
            assert Http(server.url, token_env="SCORER").score(texts("a")) == [None]
    assert other.requests == []
    assert "status 307" in caplog.text


def test_retry_after_is_waited_for() -> None:
    busy = Answer(status=429, headers={"Retry-After": "1"})
    with serving(lambda posted, i: lengths(posted, i) if i else busy) as server:
        start = time.monotonic()
        assert Http(server.url).score(texts("a")) == [0.5]
    assert time.monotonic() - start > 0.95


def test_retry_after_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "LONGEST_PAUSE", 0.05)
    busy = Answer(status=503, headers={"Retry-After": "86400"})
    with serving(lambda posted, i: lengths(posted, i) if i else busy) as server:
        assert Http(server.url).score(texts("a")) == [0.5]


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("soon", None),
        ("-1", None),
        ("\u00b2", None),
        ("Mon, 06 Jan 2020 08:00:00 GMT", 0.0),
    ],
)
def test_retry_after(asked: str | None, seconds: float | None) -> None:
    assert http_endpoint._seconds(asked) == seconds


def test_retry_after_a_date() -> None:
    asked = http_endpoint._seconds(formatdate(time.time() + 60, usegmt=True))
    assert asked is not None
    assert 50 < asked <= 60


def test_pauses_double(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http_endpoint, "PAUSE", 4.0)
    monkeypatch.setattr(http_endpoint.time, "sleep", lambda s: pauses.append(s))
    monkeypatch.setattr(Http, "_post", broken)
    assert Http("http://127.0.0.1", retries=5).score(texts("a")) == [None]
    assert pauses == [4.0, 8.0, 16.0, 30.0, 30.0]


def broken(*args: Any) -> Any:
    raise http_endpoint.requests.ConnectionError("no")


# Servers that lie -----------------------------------------------------------------------------

DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("body", "scores", "said"),
    [
        ({"scores": [0.5]}, [None, None], "1 scores came for 2 examples"),
        ({"scores": [0.5] * 3}, [None, None], "3 scores came for 2 examples"),
        ({"scores": []}, [None, None], "0 scores came for 2 examples"),
        ([0.5, 0.5], [None, None], 'the answer is not {"scores": [...]}'),
        ({"scores": 0.5}, [None, None], 'the answer is not {"scores": [...]}'),
        ({"score": [0.5, 0.5]}, [None, None], 'the answer is not {"scores": [...]}'),
        ("<html>", [None, None], "the answer is not JSON: b'<html>'"),
        ("", [None, None], "the answer is not JSON: b''"),
        (DEEP, [None, None], "the answer is not JSON"),
        (
            json.dumps({"scores": [0.5, 0.5], "x": "x" * 20_000}),
            [None, None],
            "more than 10400 bytes",
        ),
        ('{"scores": [NaN, 0.5]}', [None, 0.5], "gave nan as a score"),
        ('{"scores": [0.5, -Infinity]}', [0.5, None], "gave -inf as a score"),
        ({"scores": ["0.9", 0.5]}, [None, 0.5], "gave '0.9' as a score"),
        ({"scores": [True, 0.5]}, [None, 0.5], "gave True as a score"),
        ({"scores": [[1], 0.5]}, [None, 0.5], "gave [1] as a score"),
        (f'{{"scores": [0, 1{"0" * 400}]}}', [0.0, None], "as a score"),
        ({"scores": [1.5, 0.5]}, [None, 0.5], "gave 1.5, which is not from 0 to 1"),
    ],
)
def test_lies(body: Any, scores: list[Score], said: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda posted, i: Answer(body)) as server:
        objective = as_objective(f"http:url={server.url},low=0,high=1")
        assert objective.score(texts("a", "b")) == scores
        assert objective.score(texts("a", "b")) == scores
    assert len(server.requests) == 2  # asking again would not make it honest
    (message,) = caplog.messages  # once
    assert said in message


# Secrets, certificates, settings --------------------------------------------------------------


def test_a_token_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCORER", "s3cret")
    with serving(lambda posted, i: Answer({"scores": ["Bearer s3cret"]})) as server:
        objective = as_objective(f"http:url={server.url},token_env=SCORER")
        assert objective.score(texts("a")) == [None]
    assert server.requests[0][0]["Authorization"] == "Bearer s3cret"
    assert "gave 'Bearer ***' as a score" in caplog.text
    assert b"s3cret" not in pickle.dumps(objective)
    assert "s3cret" not in caplog.text + repr(objective) + repr(vars(objective))


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret\r\nX-More: 1", "s3cret\u20ac"])
def test_a_token_that_no_header_can_have_is_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER", token)
    with pytest.raises(UserError, match="SCORER has a line break or a letter") as caught:
        Http("https://host/x", token_env="SCORER")
    assert "s3cret" not in str(caught.value)


def test_no_proxy_comes_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see the token."""
    monkeypatch.setenv("SCORER", "s3cret")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as proxy, serving() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert Http(server.url, token_env="SCORER", retries=0).score(texts("a")) == [0.5]
        assert Http("http://elsewhere.invalid/", retries=0).score(texts("a")) == [0.5]
    assert [len(seen.requests) for seen in (proxy, server)] == [1, 1]


def test_no_other_token_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving() as server:
        Http(server.url).score(texts("a"))
    assert "Authorization" not in server.requests[0][0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("needs openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    asked = [*"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1".split()]
    asked += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([openssl, *asked], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def safe(certificate: tuple[Path, Path]) -> Iterator[Endpoint]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(context=context) as server:
        yield server


def test_a_certificate_nobody_vouches_for(safe: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    assert Http(safe.url).score(texts("a")) == [None]
    assert safe.requests == []
    assert "the connection is not safe: SSLCertVerificationError" in caplog.text


def test_a_certificate_that_is_trusted(safe: Endpoint, certificate: tuple[Path, Path]) -> None:
    objective = as_objective(f"http:url={safe.url},ca_file={certificate[0]}")
    assert objective.score(texts("a")) == [0.5]


def test_a_certificate_for_another_name(safe: Endpoint, certificate: tuple[Path, Path]) -> None:
    url = safe.url.replace("127.0.0.1", "localhost")
    assert Http(url, ca_file=str(certificate[0])).score(texts("a")) == [None]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http:somewhere", "'somewhere' is no URL: give one as in"),
        ("http:ftp://host/x", "is no URL"),
        ("http:https://", "is no URL"),
        ("http:https://[::1/x", "is no URL"),
        ("http:https://host:port/x", "is no URL"),
        ("http:https://me:pw@host/x", "the URL has a password in it"),
        ("http:url=http://host/x,token_env=SCORER", "travel unencrypted to host: use https"),
        ("http:url=https://host/x,token_env=SCORER", "the environment has no SCORER: export"),
        ("http:url=https://host/x,ca_file=/nowhere", "no file /nowhere"),
        ("http:url=https://host/x,timeout=0", "timeout 0: above 0"),
        ("http:url=https://host/x,batch_size=2.5", "batch_size 2.5 is not a whole number from 1"),
        ("http:url=https://host/x,concurrency=0", "concurrency 0 is not a whole number from 1"),
        ("http:url=https://host/x,retries=-1", "retries -1 is not a whole number from 0"),
        ("http:url=https://host/x,low=1,high=0", "low 1 is not below high 0"),
        ("http:url=https://host/x,tiemout=3", "takes http"),
        ("http", "url"),
        ("command:", "program"),
        ("command:program=,timeout=3", "no program"),
        ("command:no-such-program --fast", "no program 'no-such-program'"),
        ("command:cat 'x", "No closing quotation: mend the quotes"),
        ("command:program=cat,timeout=-1", "timeout -1: above 0"),
    ],
)
def test_settings_that_can_not_be(spec: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER", raising=False)
    with pytest.raises(UserError) as caught:
        as_objective(spec)
    assert said in str(caught.value) or "takes" in said
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


# Programs -------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Maker:
    """Write a Python program; the command that runs it. ``text`` is a completion in it."""

    def make(body: str, before: str = "") -> str:
        path = tmp_path / f"score{len(list(tmp_path.iterdir()))}.py"
        head = "import json, os, signal, sys, time\n" + textwrap.dedent(before)
        loop = (
            "\nfor line in sys.stdin:\n    row = json.loads(line)\n    text = row['completion']\n"
        )
        path.write_text(head + loop + textwrap.indent(textwrap.dedent(body), "    ") + "\n")
        return f"{sys.executable} -S {path}"

    return make


@pytest.fixture
def made(program: Maker) -> Iterator[Callable[..., Command]]:
    objectives: list[Command] = []

    def make(body: str, before: str = "", **settings: Any) -> Command:
        objectives.append(Command(program(body, before), **settings))
        return objectives[-1]

    yield make
    for objective in objectives:
        objective._running().end(grace=0)


def gone(pid: int) -> bool:
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def test_what_a_program_reads(made: Callable[..., Command], tmp_path: Path) -> None:
    objective = made(f"print(1.0); open({str(tmp_path / 'read')!r}, 'a').write(line)")
    objective.score(texts("a", "b\nc", kind=["x", "y"]))
    first, second = map(json.loads, (tmp_path / "read").read_text().splitlines())
    assert first == {
        "id": 1,
        "prompt": "prompt 0",
        "completion": "a",
        "reference": ["gold 0"],
        "row": {"kind": "x"},
    }
    assert second["completion"] == "b\nc"
    assert second["id"] == 2


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("print(len(text))", [1.0, 2.0, 3.0]),
        ("print(json.dumps({'score': len(text)}))", [1.0, 2.0, 3.0]),
        ("print(json.dumps({'id': row['id'], 'score': len(text), 'why': 'x'}))", [1.0, 2.0, 3.0]),
        ("print(len(text) if len(text) > 1 else 'null')", [None, 2.0, 3.0]),
        ("print(None if len(text) > 1 else 1e-3)", [0.001, None, None]),
        ("print(json.dumps({'score': None}))", [None, None, None]),
        ("print(float('nan') if text == 'a' else -float(text == 'bb'))", [None, -1.0, -0.0]),
    ],
)
def test_what_a_program_may_answer(
    answer: str, scores: list[Score], made: Callable[..., Command], caplog: pytest.LogCaptureFixture
) -> None:
    assert made(answer).score(texts("a", "bb", "ccc")) == scores
    assert not caplog.messages


def test_a_program_is_kept_alive(made: Callable[..., Command]) -> None:
    objective = made("print(os.getpid())")
    pids = {score for _ in range(3) for score in objective.score(texts("a", "b"))}
    assert len(pids) == 1


def test_a_program_by_spec() -> None:
    objective = as_objective(f"command:{sys.executable} {ROOT / 'tests' / 'lengths.py'}")
    assert objective.score(texts("a", "bb", "")) == [1 / 2, 1 / 3, 1.0]


def test_there_is_no_shell(tmp_path: Path) -> None:
    objective = Command(f"echo 0.5 ; touch {tmp_path / 'x'}")
    objective.score(texts("a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("sys.exit(3)", "it ended with status 3; on stderr: at die"),
        ("os._exit(3)", "it ended with status 3; on stderr: at die"),
        ("os.kill(os.getpid(), 9)", "it ended with status -9; on stderr: at die"),
        ("os.close(1); time.sleep(100)", "it ended; on stderr: at die"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_row_that_kills_costs_itself_only(
    death: str, said: str, made: Callable[..., Command], caplog: pytest.LogCaptureFixture
) -> None:
    objective = made(
        f"""
        if text == 'die':
            print('at', text, file=sys.stderr)
            {death}
        print(len(text))
        """
    )
    assert objective.score(texts("a", "die", "bb", "die", "c")) == [1.0, None, 2.0, None, 1.0]
    (message,) = caplog.messages
    assert said in message


def test_a_row_that_killed_once_is_scored(
    made: Callable[..., Command], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = str(tmp_path / "died")
    objective = made(
        f"""
        if text == 'die' and not os.path.exists({mark!r}):
            open({mark!r}, 'w')
            os._exit(1)
        print(len(text))
        """
    )
    assert objective.score(texts("a", "die", "c")) == [1.0, 3.0, 1.0]
    assert not caplog.messages


def test_a_program_that_ends_after_some_rows_is_started_again(made: Callable[..., Command]) -> None:
    objective = made("print(len(text)); n += 1\nif n == 2: break", before="n = 0")
    assert objective.score(texts("a", "bb", "c", "dd", "e")) == [1.0, 2.0, 1.0, 2.0, 1.0]


def test_a_program_that_can_not_work_is_given_up(
    made: Callable[..., Command], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    starts = tmp_path / "starts"
    objective = made("pass", before=f"open({str(starts)!r}, 'a').write('x')\nimport no_such_module")
    assert objective.score(texts(*["a"] * 30)) == [None] * 30
    assert starts.read_text() == "x" * 10
    assert "No module named 'no_such_module'" in caplog.text


def test_a_row_that_hangs_costs_itself_only(
    made: Callable[..., Command], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What the program started goes with it."""
    child = tmp_path / "child"
    objective = made(
        f"""
        if text == 'hang':
            import subprocess
            open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '300']).pid))
            print('sleeping', file=sys.stderr)
            time.sleep(300)
        print(len(text))
        """,
        timeout=1.5,
    )
    assert objective.score(texts("a", "hang", "c")) == [1.0, None, 1.0]
    assert "no line came in 1.5 s" in caplog.text
    assert "on stderr: sleeping" in caplog.text
    assert eventually(lambda: gone(int(child.read_text())))


@pytest.mark.parametrize(
    ("body", "before", "said"),
    [
        ("print(len(text))", "print('loading')", "unasked|printed 'loading'"),
        ("print('scoring'); print(len(text))", "", "printed 'scoring'"),
        ("print(len(text)); print(0.25)", "", "printed '.+' unasked"),
        ("print(f'{len(text)}\\n0.25')", "", "printed '.+' unasked"),
        ('print(\'{"id": 0, "score": 1}\')', "", "no score for a row"),
        ("print('0,5')", "", "printed '0,5'"),
        ("print()", "", "printed ''"),
        ("print('{}')", "", "no score for a row"),
        ('print(\'{"score": "high"}\')', "", "gave 'high' as a score"),
        ("print('true')", "", "gave True as a score"),
        ("print('[1]')", "", r"gave \[1\] as a score"),
        ("print('9' * 400)", "", "as a score"),
        ("sys.stdout.write('9' * 200000)", "", "printed 65536 bytes and no end of the line"),
    ],
)
def test_programs_that_lie(
    body: str,
    before: str,
    said: str,
    made: Callable[..., Command],
    caplog: pytest.LogCaptureFixture,
) -> None:
    objective = made(body, before)
    assert objective.score(texts("a", "bb", "c")) == [None] * 3
    assert re.search(said, caplog.text)
    assert len(caplog.messages) <= 2  # once a kind


def test_a_word_after_each_score(made: Callable[..., Command]) -> None:
    """It comes before the next row is sent, or is taken for an answer; neither makes a number."""
    scores = made("print(len(text)); print('done')").score(texts("a", "bb", "c"))
    assert all(score in (None, n) for score, n in zip(scores, (1.0, 2.0, 1.0), strict=True))
    assert None in scores


def test_a_line_too_many_among_rows_with_ids(made: Callable[..., Command]) -> None:
    """Scores that say whose they are stand."""
    objective = made(
        """
        print(json.dumps({'id': row['id'], 'score': len(text)}))
        if text == 'bb': print('by the way')
        """
    )
    assert objective.score(texts("a", "bb")) == [1.0, 2.0]
    assert objective.score(texts("c", "dd"))[0] in (1.0, None)  # None where it came late
    assert objective.score(texts("e", "f"))[1] == 1.0


def test_a_line_that_comes_after_the_batch(made: Callable[..., Command]) -> None:
    objective = made("print(len(text), flush=True)\nif text == 'bb': time.sleep(0.3); print(7)")
    objective.score(texts("a", "bb"))
    time.sleep(1)
    assert objective.score(texts("ccc")) == [3.0]


def test_a_second_line_that_comes_late(made: Callable[..., Command]) -> None:
    """Scores are those of their rows, or none; a batch of three ends where it shows least."""
    objective = made("print(len(text), flush=True); time.sleep(0.2); print(99, flush=True)")
    assert objective.score(texts("a", "bb", "ccc")) == [None] * 3
    assert objective.score(texts("a", "bb", "ccc")) == [None] * 3


def test_what_came_too_late_once_is_waited_for(made: Callable[..., Command]) -> None:
    objective = made("print(len(text), flush=True); time.sleep(0.3); print(99, flush=True)")
    objective.score(texts("a"))  # nothing tells that there will be more
    time.sleep(0.6)
    assert objective.score(texts("bb")) == [None]


def test_a_row_that_hangs_makes_no_batch_wait_for_more(made: Callable[..., Command]) -> None:
    objective = made("time.sleep(60 * (text == 'hang')); print(len(text))", timeout=1.5)
    start = time.monotonic()
    assert objective.score(texts("a", "hang", "bb")) == [1.0, None, 2.0]
    assert time.monotonic() - start < 2.9


def test_a_program_that_does_not_read(made: Callable[..., Command]) -> None:
    """Pipes are full, in both directions; the time is up all the same."""
    objective = made("", before="time.sleep(300)", timeout=0.5)
    start = time.monotonic()
    assert objective.score(texts("x" * 3_000_000)) == [None]
    assert time.monotonic() - start < 10


def test_long_rows_and_long_complaints(made: Callable[..., Command]) -> None:
    objective = made("print('e' * 300000, file=sys.stderr); print(len(text))", timeout=30)
    assert objective.score(texts("x" * 1_000_000, "y")) == [1_000_000.0, 1.0]


def test_a_program_without_stderr(made: Callable[..., Command]) -> None:
    objective = made("print(len(text))", before="sys.stderr.close(); os.close(2)")
    assert objective.score(texts("a", "bb")) == [1.0, 2.0]


# Its life -------------------------------------------------------------------------------------


def pid_of(objective: Command) -> int:
    process = objective._running()._process
    assert process is not None
    return process.pid


def test_it_ends_with_the_objective(program: Maker) -> None:
    objective = Command(program("print(len(text))"))
    objective.score(texts("a"))
    pid = pid_of(objective)
    assert not gone(pid)
    del objective
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()  # nor a zombie


def test_it_may_tidy_up(program: Maker, tmp_path: Path) -> None:
    path = program("print(len(text))").split()[-1]
    with open(path, "a") as file:
        file.write(f"open({str(tmp_path / 'tidy')!r}, 'w')\n")
    running = Program(f"{sys.executable} -S {path}")
    running.ask('{"completion": "a"}', 10)
    running.end(grace=10)
    assert (tmp_path / "tidy").exists()


STARTS = """
import sys, time
from zoobj.objective import Batch
from zoobj.objectives import Command
objective = Command(sys.argv[1])
print(int(objective.score(Batch(prompts=["?"], references=[[]], completions=["a"]))[0]), flush=True)
"""


@pytest.mark.parametrize("end", ["", "1 / 0", "sys.exit(3)", "time.sleep(100)"])
def test_it_ends_with_python(program: Maker, end: str) -> None:
    """At the end, with an exception, by Ctrl-C, though it ignores signals and the end of input."""
    stubborn = "for n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\nimport atexit\n"
    stubborn += "atexit.register(time.sleep, 300)"
    ours = subprocess.Popen(
        [sys.executable, "-c", STARTS + end, program("print(os.getpid())", stubborn)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert ours.stdout is not None
    pid = int(ours.stdout.readline())
    if "sleep" in end:
        assert os.getsid(pid) == pid  # so that Ctrl-C at the terminal does not reach it
        os.killpg(ours.pid, signal.SIGINT)
    ours.communicate(timeout=30)
    assert eventually(lambda: gone(pid))


def test_interrupted_while_it_waits(made: Callable[..., Command]) -> None:
    """The answer that was due is not taken for that of the next row."""
    objective = made("time.sleep(0.6 if text == 'slow' else 0); print(len(text))")
    assert objective.score(texts("a")) == [1.0]
    pid = pid_of(objective)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            objective.score(texts("slow"))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gone(pid)
    assert objective.score(texts("bb")) == [2.0]


def scored_elsewhere(objective: Command, queue: Any) -> None:
    queue.put(objective.score(texts("a", "bb")))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(method: str, made: Callable[..., Command]) -> None:
    objective = made("print(os.getpid())")
    (ours,) = objective.score(texts("a"))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=scored_elsewhere, args=(objective, queue))
    worker.start()
    theirs = queue.get(timeout=60)
    worker.join(60)
    assert worker.exitcode == 0
    assert theirs[0] == theirs[1] != ours
    assert objective.score(texts("a")) == [ours]  # still there
    assert eventually(lambda: gone(int(theirs[0])))


def test_by_several_threads(made: Callable[..., Command]) -> None:
    objective = made("print(len(text))")
    out: list[bool] = []

    def ask(length: int) -> None:
        for _ in range(20):
            out.append(objective.score(texts("x" * length)) == [float(length)])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == [True] * 80


# In a run -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "command"])
def test_a_run_on_scores_from_outside(kind: str, tmp_path: Path) -> None:
    """Both like short answers; tiny-qa learns to give them, from every score there is."""
    from zoobj import ZOConfig, ZOTrainer

    with serving() as server:
        lengths_program = shlex.join([sys.executable, str(ROOT / "tests" / "lengths.py")])
        spec = {"http": server.url, "command": lengths_program}[kind]
        args = ZOConfig(
            output_dir=str(tmp_path / "out"),
            objective=f"{kind}:{spec}",
            max_evals=2560,
            max_test_samples=50,
            max_eval_samples=50,
        )
        result = ZOTrainer(model="tiny-qa", task="squad_mini", args=args).train()
    assert result.n == 50
    assert result.verdict == "improved"
