"""What code in the sandbox can and can't do; pass@1, which is run there."""

import ctypes
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zoobj.errors import UserError
from zoobj.objective import Batch, ScoreError, as_objective
from zoobj.objectives import PassAt1, lock, pass_at_1, sandbox
from zoobj.objectives.sandbox import MIB, Completed, Limits, SandboxError, check, run
from zoobj.outcome import judge

try:
    check(False)
except UserError as refusal:
    pytest.skip(f"no sandbox here: {refusal}", allow_module_level=True)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sandboxes are set up; nothing must be left in it. Its mode lets everyone in."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    left = [path.name for path in made.iterdir() if path.name.startswith("zoobj-")]
    shutil.rmtree(made, ignore_errors=True)
    assert not left


def tried(code: str, stdin: str = "", **limits: Any) -> Completed:
    return run(textwrap.dedent(code), stdin, Limits(**limits))


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what is left until its parent asks for it."""
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


# What it can do -------------------------------------------------------------------------------


def test_stdin_stdout_stderr_and_status() -> None:
    done = tried(
        """
        import sys
        print(input().upper())
        print("caf\u00e9 \U0001f600", file=sys.stderr)
        sys.exit(3)
        """,
        stdin="a \u00df\nb",
    )
    assert (done.status, done.stdout, done.killed) == (3, "A SS\n", None)
    assert done.stderr == "caf\u00e9 \U0001f600\n"
    assert 0 < done.seconds < Limits().seconds


def test_its_directory_is_its_own() -> None:
    done = tried(
        """
        import json, os, shutil, sqlite3, subprocess, tempfile, threading
        os.mkdir("a")
        open("a/b", "w").write("text")
        os.rename("a/b", "c")
        shutil.rmtree("a")
        assert tempfile.mkstemp()[1].startswith(os.getcwd())
        assert open("c").read() == "text"
        threads = [threading.Thread(target=print, args=("thread",)) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        print(subprocess.run(["/bin/echo", "program"], capture_output=True).stdout.decode())
        open("/dev/null", "w").write("x")
        """
    )
    assert done.status == 0, done.stderr
    assert done.stdout == "thread\n" * 3 + "program\n\n"


def test_a_signal_is_its_status() -> None:
    assert tried("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").status == -11
    assert tried("import os; os.abort()").status == -6


def test_the_same_code_says_the_same() -> None:
    """Sets of texts have one order, whatever ours have."""
    code = "print({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    assert len({run(code).stdout for _ in range(3)}) == 1


def test_many_at_a_time() -> None:
    out: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: out.append(run(f"print({i})").stdout)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(out) == [f"{i}\n" for i in range(8)]


def test_strange_code() -> None:
    assert tried("print('\ud800')").status == 0  # not in UTF-8: written as ?
    assert tried("x = 1\0").status == 1
    assert tried("").status == 0


# What it can't --------------------------------------------------------------------------------


def refused(each: str, **names: Any) -> list[str]:
    """Run lines of code; those that were not refused."""
    lines = [line.strip() for line in each.strip().splitlines()]
    code = "import ctypes, fcntl, os, pathlib, resource, signal, socket\n"
    code += "".join(f"{name} = {value!r}\n" for name, value in names.items())
    for line in lines:
        code += f"try:\n    {line}\n    print({line!r})\nexcept (OSError, ValueError):\n    pass\n"
    done = run(code)
    assert done.status == 0, done.stderr
    return done.stdout.splitlines()


def test_refused_reports_what_was_not() -> None:
    assert refused("1 + 1\nopen('/nowhere')") == ["1 + 1"]


def test_write_outside_of_its_directory(folder: Path) -> None:
    """Modes would let it; and so they would in /tmp and /dev/shm."""
    kept = folder / "kept"
    kept.write_text("ours")
    kept.chmod(0o666)
    before = kept.stat()
    done = refused(
        """
        open(kept, "w")
        open(kept, "a")
        open(kept, "r+")
        open("../kept", "w")
        os.truncate(kept, 0)
        os.chmod(kept, 0)
        os.utime(kept, (0, 0))
        os.setxattr(kept, "user.x", b"1")
        os.unlink(kept)
        os.rename(kept, "stolen")
        os.link(kept, "linked")
        os.rename("main.py", f"{folder}/main.py")
        os.mkdir(f"{folder}/new")
        os.symlink("x", f"{folder}/link")
        open(f"{folder}/new", "w")
        open("/dev/shm/zoobj-test", "w")
        open("../stdout", "w")
        os.symlink(kept, "way") or open("way", "w")
        os.mkfifo(f"{folder}/fifo")
        os.chdir("..") or open("x", "w")
        """,
        kept=str(kept),
        folder=str(folder),
    )
    assert done == []
    assert kept.read_text() == "ours"
    after = kept.stat()
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    assert sorted(path.name for path in folder.iterdir()) == ["kept"]


def test_read_outside_of_its_directory(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    done = refused(
        """
        open(secret).read()
        os.symlink(secret, "way") or open("way").read()
        os.listdir(os.path.dirname(secret))
        open("/etc/passwd").read()
        os.listdir("/")
        os.listdir("/proc")
        os.listdir(os.path.expanduser("~"))
        """,
        secret=str(secret),
    )
    assert done == []


def test_read_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOBJ_TEST_TOKEN", "s3cret")
    done = tried(f"import os; print(sorted(os.environ)); print({os.getpid()})")
    names = done.stdout.splitlines()[0]
    assert set(eval(names)) <= {"PYTHONHASHSEED", "LC_CTYPE"}
    left = refused(
        """
        open(f"/proc/{os.getppid()}/environ").read()
        open(f"/proc/{ours}/environ").read()
        open(f"/proc/{ours}/mem").read()
        open(f"/proc/{ours}/cmdline").read()
        open("/proc/self/environ").read()
        """,
        ours=os.getpid(),
    )
    assert left == []


def test_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = refused(
            """
            socket.socket()
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            socket.socket(socket.AF_UNIX)
            socket.create_connection(("127.0.0.1", port))
            if ctypes.CDLL(None).socket(2, 1, 0) < 0: raise OSError
            if ctypes.CDLL(None).syscall(425, 1, 0) < 0: raise OSError
            """,
            port=server.getsockname()[1],
        )
    assert left == []


def test_signals_and_limits_of_others() -> None:
    """Signal 0 would hurt nobody, and is refused as any other would be."""
    left = refused(
        """
        os.kill(ours, 0)
        os.kill(os.getppid(), 0)
        os.kill(-1, 0)
        os.killpg(os.getpgid(ours), 0)
        signal.pidfd_send_signal(os.pidfd_open(ours), 0)
        resource.prlimit(ours, resource.RLIMIT_NOFILE, (10, 10))
        os.setpriority(os.PRIO_PROCESS, ours, 19)
        fcntl.fcntl(0, fcntl.F_SETOWN, ours)
        fcntl.fcntl(0, 15, bytes(8))
        fcntl.ioctl(socket.socketpair()[0], 0x8901, bytes(4))
        fcntl.ioctl(socket.socketpair()[0], 0x8902, bytes(4))
        if ctypes.CDLL(None).ptrace(16, ours, 0, 0) < 0: raise OSError
        if ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError
        if ctypes.CDLL(None).shmget(0, 4096, 0o600) < 0: raise OSError
        """,
        ours=os.getpid(),
    )
    assert left == []


def test_memory_and_queues_that_are_there() -> None:
    """They may be open to all users, and are not to the code."""
    libc = ctypes.CDLL(None)
    memory, queue = libc.shmget(0, 4096, 0o1666), libc.msgget(0, 0o1666)
    assert memory >= 0
    assert queue >= 0
    try:
        left = refused(
            """
            if ctypes.CDLL(None).shmat(memory, None, 0) == -1: raise OSError
            if ctypes.CDLL(None).shmctl(memory, 2, bytes(256)) < 0: raise OSError
            if ctypes.CDLL(None).msgsnd(queue, bytes([1] + [0] * 15), 8, 2048) < 0: raise OSError
            if ctypes.CDLL(None).msgctl(queue, 2, bytes(256)) < 0: raise OSError
            """,
            memory=memory,
            queue=queue,
        )
    finally:
        libc.shmctl(memory, 0, None)
        libc.msgctl(queue, 0, None)
    assert left == []


def test_rights_are_given_up_for_good() -> None:
    left = refused(
        """
        os.setuid(0)
        os.setgroups([0])
        resource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        """
    )
    assert left == []


def test_limits_are_hard() -> None:
    done = tried(
        """
        import resource
        for name in ("NPROC", "AS", "CPU", "FSIZE", "NOFILE"):
            soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
            assert soft == hard != resource.RLIM_INFINITY, name
        """
    )
    assert done.status == 0, done.stderr


ESCAPE = """
import os, signal, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.write(write, str(os.getpid()).encode())
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
print(int(os.read(read, 100)), flush=True)
"""


@pytest.mark.parametrize(("then", "killed"), [("", None), ("while True: pass", "time")])
def test_outlive_it_in_another_session(then: str, killed: str | None) -> None:
    start = time.monotonic()
    done = tried(ESCAPE + then, seconds=1.5 if killed else 20)
    assert done.killed == killed
    assert gone(int(done.stdout))
    assert time.monotonic() - start < 15


def test_fork_bomb() -> None:
    start = time.monotonic()
    done = tried(
        """
        import os, time
        print(os.getpgid(0), flush=True)
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.001)
        """,
        seconds=1,
        processes=8,
    )
    assert done.killed == "time"
    with pytest.raises(ProcessLookupError):
        os.killpg(int(done.stdout.splitlines()[0]), 0)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "what", ["os.fork() or time.sleep(20)", "start_new_thread(time.sleep, (20,))"]
)
def test_processes_and_threads_are_counted(what: str) -> None:
    done = tried(
        f"""
        import os, time
        from _thread import start_new_thread
        for count in range(100):
            try:
                {what}
            except (OSError, RuntimeError):
                break
        print(count, flush=True)
        os._exit(0)
        """,
        processes=8,
    )
    # Exactly so with a user of its own; else other processes come and go meanwhile.
    assert 1 <= int(done.stdout) <= (8 if os.getuid() == 0 else 40), done


def test_memory_of_a_process() -> None:
    done = tried("x = bytearray(600 << 20)")
    assert done.status == 1
    assert "MemoryError" in done.stderr


def test_memory_of_all_of_them() -> None:
    done = tried(
        """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                x = bytearray(os.urandom(1 << 20) * 40)  # twice that while it is made
                time.sleep(20)
        time.sleep(20)
        """,
        memory=128 * MIB,
        seconds=15,
    )
    assert done.killed == "memory"


def test_one_big_file() -> None:
    done = tried("open('x', 'wb').write(bytes(20 << 20))")
    assert "File too large" in done.stderr


@pytest.mark.parametrize(
    "more",
    [
        "open(str(i), 'wb').write(bytes(1 << 20))",
        "open(str(i), 'wb')",
        "os.mkdir('x') or os.chdir('x')",
    ],
)
def test_many_files_or_folders(more: str) -> None:
    """Empty ones count, too, and what is too deep to look into."""
    code = f"""
        import os, time
        for i in range(200):
            {more}
        time.sleep(20)
        """
    done = tried(code, disk=MIB // 2 if "wb')" in more else 32 * MIB, seconds=15)
    assert done.killed == "disk", done


def test_all_is_removed_and_links_are_not_followed(folder: Path) -> None:
    ours = folder / "ours"
    ours.mkdir(mode=0o755)
    done = tried(
        f"""
        import os
        os.mkdir('x')
        os.mkdir('x/y', 0)
        os.symlink({str(ours)!r}, 'link')
        os.symlink({str(ours)!r}, 'x/link')
        """
    )
    assert done.status == 0, done.stderr
    assert ours.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(stream: str) -> None:
    done = tried(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", file=MIB, seconds=15)
    assert done.status != 0
    assert done.killed is None
    assert len(getattr(done, stream)) == MIB


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")],
    ids=["x86_64", "aarch64"],
)
def test_numbers_of_system_calls(column: int, header: str) -> None:
    """As the kernel's headers have them, so far as they know them."""
    path = Path("/usr/include") / header
    if not path.is_file():
        pytest.skip(f"needs {path}")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text()))
    ours = {
        **lock.DENIED,
        **lock.ON_ITSELF,
        **lock.OWNER_OF_SIGNALS,
        "clone": lock.CLONE,
        "clone3": lock.CLONE3,
    }
    there = {name for name in ours if name in known}
    assert len(there) > 40
    assert {name: ours[name][column] for name in there} == {n: int(known[n]) for n in there}


# When things go wrong around it ---------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_us(number: signal.Signals, folder: Path) -> None:
    """Ctrl-C, or the whole run killed."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    ours = subprocess.Popen(
        [sys.executable, "-c", f"from zoobj.objectives.sandbox import run; run({code!r})"],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )

    def pids() -> list[int]:
        written = [path.read_text() for path in folder.glob("zoobj-*/stdout")]
        return [int(text) for text in written if text]

    assert eventually(lambda: bool(pids()))
    (pid,) = pids()
    assert not gone(pid)
    ours.send_signal(number)
    _, said = ours.communicate(timeout=30)
    assert eventually(lambda: gone(pid))
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in said
    else:  # nobody was left to do it
        for path in folder.glob("zoobj-*"):
            shutil.rmtree(path)


def test_the_watcher_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            started.append(self)
            threading.Timer(0.7, self.kill).start()

    monkeypatch.setattr(sandbox.subprocess, "Popen", Recorded)
    with pytest.raises(SandboxError, match="the sandbox broke down"):
        run("import time; time.sleep(100)")
    assert started[0].returncode == -signal.SIGKILL


def test_no_python_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/nowhere/python")
    with pytest.raises(SandboxError, match=r"could not be set up: .*/nowhere/python"):
        run("")


@pytest.fixture
def unfiltered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system for which there is no seccomp filter, as the watcher sees it."""
    setarch = shutil.which("setarch")
    if not setarch or subprocess.run([setarch, "linux32", "true"], check=False).returncode:
        pytest.skip("needs setarch, to seem another machine")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {setarch} linux32 {sys._base_executable} "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    monkeypatch.setattr(sys, "_base_executable", str(python))
    check.cache_clear()
    sandbox._warn.cache_clear()


@pytest.mark.usefixtures("unfiltered")
def test_a_system_that_lacks_something_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SandboxError, match=r"this system lacks seccomp \(the network is open\)"):
        run("")
    with pytest.raises(UserError, match=r"lacks seccomp .* say weak=true"):
        as_objective("pass_at_1")
    with caplog.at_level(logging.WARNING):
        assert run("print(1)", weak=True).stdout == "1\n"
        run("", weak=True)
    assert caplog.messages == [
        "sandbox: this system lacks seccomp (the network is open); generated code runs all the same"
    ]
    as_objective("pass_at_1:weak=true")
    check.cache_clear()


# pass@1 ---------------------------------------------------------------------------------------

TEST = "assert double(3) == 6\nassert double('a') == 'aa'"


def solved(*completions: str, **rows: Any) -> Batch:
    n = len(completions)
    rows = rows or {"tests": [TEST] * n}
    return Batch(prompts=["?"] * n, references=[[TEST]] * n, completions=[*completions], rows=rows)


RIGHT = "def double(x):\n    return x + x\n"
WRONG = {
    "value": "def double(x): return x * x",
    "partly": "def double(x): return 6",
    "name": "def twice(x): return 2 * x",
    "syntax": "def double(x) return 2 * x",
    "empty": "",
    "prose": "To double a number, add it to itself.",
    "raises": RIGHT + "1 / 0",
    "exits": RIGHT + "raise SystemExit(0)",
    "exits, later": "import sys\ndef double(x): sys.exit(0)",
    "leaves at once": "import os\ndef double(x): os._exit(0)",
    "ends the text": RIGHT + "'''",
    "goes on": RIGHT + "if False: \\",
    "prints": "print('passed')\nimport os\nos._exit(0)",
    "hangs": "def double(x):\n    while True: pass",
    "reads": "double = lambda x: int(input())",
    "deep": "def double(x): return double(x)",
    "killed": "import os\ndef double(x): os.kill(os.getpid(), 9)",
    "memory": "def double(x): return bytearray(1 << 40)",
    "reads its file": "import os, re\n"
    "print('\\n' + re.findall('[0-9a-f]{32}', open('main.py').read())[-1], flush=True)\n"
    "os._exit(0)",
}


def test_right_and_wrong_programs() -> None:
    batch = solved(RIGHT, *WRONG.values(), RIGHT)
    scores = PassAt1(seconds=3).score(batch)
    assert scores[0] == scores[-1] == 1.0
    assert dict(zip(WRONG, scores[1:-1], strict=True)) == dict.fromkeys(WRONG, 0.0)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RIGHT, RIGHT),
        (f"```python\n{RIGHT}```", RIGHT),
        (f"Sure:\n\n```py\n{RIGHT}```\nIt adds x to itself.", RIGHT),
        (f"```\nx = 1\n```\nor better\n```python\n{RIGHT}```\n", RIGHT),
        (f"```python\n{RIGHT}", RIGHT),
        ("1. so:\n   ```python\n   x = 1\n   ```\n", "x = 1\n"),
        ("s = '`x`'", "s = '`x`'"),
        ("```python\ns = '''\n    a ``` b'''\n```", "s = '''\n    a ``` b'''\n"),
        ("", ""),
    ],
)
def test_the_code_in_a_completion(text: str, code: str) -> None:
    assert pass_at_1.code_in(text) == code


def test_where_tests_come_from() -> None:
    lines = [["assert double(1) == 2", "assert double(2) == 4"]]
    assert PassAt1().score(solved(RIGHT, tests=lines)) == [1.0]
    assert PassAt1().score(solved(RIGHT, tests=[["assert double(1) == 2", "assert 0"]])) == [0.0]
    assert PassAt1(column="checks").score(solved(RIGHT, checks=[TEST])) == [1.0]
    assert PassAt1(column="references").score(solved(RIGHT, id=[1])) == [1.0]
    with pytest.raises(ScoreError, match=r"no column 'tests' .* from id, references"):
        PassAt1().score(solved(RIGHT, id=[1]))


@pytest.mark.parametrize("tests", ["", " \n", [], None, [""]])
def test_no_tests_are_no_pass(tests: Any) -> None:
    assert PassAt1().score(solved(RIGHT, tests=[tests])) == [None]


def test_a_main_part_is_not_run() -> None:
    assert PassAt1().score(solved(RIGHT + "if __name__ == '__main__':\n    input()")) == [1.0]


def test_programs_run_at_a_time() -> None:
    batch = solved(*["import time; time.sleep(1)"] * 6, tests=["1"] * 6)
    start = time.monotonic()
    assert PassAt1(workers=6).score(batch) == [1.0] * 6
    assert time.monotonic() - start < 5


def test_a_broken_sandbox_says_nothing_of_the_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    objective = PassAt1()
    monkeypatch.setattr(sys, "_base_executable", "/nowhere/python")
    with caplog.at_level(logging.WARNING):
        outcome = judge(objective, solved(RIGHT, RIGHT))
    assert outcome.scores == [None, None]
    assert outcome.failed == 2
    (said,) = caplog.messages
    assert "could not be set up" in said


def test_settings_out_of_range() -> None:
    for spec in ("workers=-1", "seconds=0", "memory=-5"):
        with pytest.raises(UserError, match=r"above 0"):
            as_objective(f"pass_at_1:{spec}")


STRANGE = ["", "e\u0301", "\u4f60\u597d", "\U0001f600", "'\"\\\n```", "\x00\u2028"]


@pytest.mark.slow
def test_random_programs_against_plain_exec() -> None:
    """200 of them; here they are harmless."""
    import random

    rng = random.Random(5)
    completions, tests, expected = [], [], []
    for _ in range(200):
        a, b, x, right = rng.randint(0, 3), rng.randint(0, 3), rng.randint(0, 3), rng.randint(0, 6)
        code = f"def f(x):\n    return {a} * x // {b}"
        if rng.random() < 0.3:
            code = f"def f(x):\n    return len({rng.choice(STRANGE)!r} * x)"
        completions.append(f"Answer:\n```python\n{code}\n```" if rng.random() < 0.5 else code)
        tests.append(f"assert f({x}) == {right % 3}")
        try:
            exec(f"{code}\n{tests[-1]}", {})
            expected.append(1.0)
        except Exception:
            expected.append(0.0)
    assert 20 < sum(expected) < 180
    assert PassAt1().score(solved(*completions, tests=tests)) == expected
