"""Malformed flags, configs and paths: exit code 2, one clear line, nothing on disk is touched."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zoobj.cli import _EVAL, _MODEL, main
from zoobj.config import ZOConfig

ROOT = Path(__file__).parents[1]
SMALL = (
    "--max_steps 2 --per_device_train_batch_size 4 --max_eval_samples 4 --max_test_samples 4 "
    "--max_new_tokens 4 --disable_tqdm"
).split()
TRAIN = ["train", *SMALL]  # a case that is let through by mistake shall not train for minutes
REPLAY = "replay --log run --output new".split()
SETTINGS: dict[str, Any] = ZOConfig.model_json_schema()["properties"]
HUGE = "9" * 5000  # more digits than Python makes a number of
ABSENT = "~nobody-of-this-name/x"  # a home that isn't there
LONG = "a" * 300  # no file system takes such a name


class Case(NamedTuple):
    """What is typed, what the line has to name, and the content of a file that is typed."""

    argv: list[str]
    names: tuple[str, ...]
    file: tuple[str, str | bytes] | None = None


def told(line: str, *names: str, file: tuple[str, str | bytes] | None = None) -> Case:
    """A case from a line; it names the last word where nothing else is said."""
    verb, *words = line.split()
    argv = [*(TRAIN if verb == "train" else [verb]), *words]
    return Case(argv, names or (line.split()[-1],), file)


# Settings, one by one ---------------------------------------------------------------------------

# Of a kind of setting: what no setting of that kind takes, as a flag and in YAML.
FLAGS = {
    "integer": ("", "many", "1.5", "-1", "0", "nan", "1e3", "0x10", HUGE),
    "number": ("", "much", "-1", "0", "nan", "inf", "-inf", "1e999", "1,5"),
    "boolean": ("", "maybe", "2"),
    "enum": ("", "nope", "Linear", "auto,float32"),
    "string": (),
}
YAML = {
    "integer": ("[1]", "x", "2020-01-01"),
    "number": ("{a: 1}", ".nan", ".inf"),
    "boolean": ("[true]", "2"),
    "enum": ("[]", "5"),
    "string": ("[a]", "5"),
}
FINE = {
    *(("seed", "0"), ("num_fewshot", "0"), ("early_stopping_threshold", "0")),
    *(("target_value", "0"), ("target_value", "-1")),
    *(("reward_workers", "0"), ("max_failed", "0"), ("adam_beta2", "0"), ("adam_epsilon", "0")),
    ("weight_decay", "0"),
}


def kind(name: str) -> tuple[str, bool]:
    """The kind of a setting, and whether it may be left open."""
    options = SETTINGS[name].get("anyOf", [SETTINGS[name]])
    given = [option for option in options if option.get("type") != "null"]
    plain = [option for option in given if "const" not in option]  # "auto" or a number: a number
    types = [option["type"] for option in plain or given]
    found = "enum" if "enum" in given[0] else "string" if "string" in types else types[-1]
    return found, len(given) < len(options)


def settings() -> Iterator[Case]:
    for name in SETTINGS:
        what, open_ = kind(name)
        typo = name[: len(name) // 2] + name[len(name) // 2 + 1 :]
        for value in FLAGS[what]:
            if (name, value) not in FINE:
                shown = repr(value) if value != HUGE else "99...99"
                flag = [f"--{name}={value}"] if value == "-inf" else [f"--{name}", value]
                yield Case([*TRAIN, *flag], (name, shown))
        for value in (*YAML[what], *(() if open_ else ("null",))):
            file = ("case.yaml", f"{name}: {value}\n")
            yield Case(["validate", "--config", "case.yaml"], (f"{name} ",), file)
        if not (what == "boolean" or name == "resume_from_checkpoint"):
            yield Case([*TRAIN, f"--{name}"], (f"--{name}",))
        yield Case([*TRAIN, f"--{typo}", "1"], (f"'--{typo}'", f"did you mean '--{name}'?"))
        near = (f"'{typo}'", f"did you mean '{name}'?")
        yield Case([*TRAIN, "--config", "case.yaml"], near, ("case.yaml", f"{typo}: 1\n"))
        if name not in _EVAL:
            yield Case(["eval", f"--{name}", "1"], (f"'--{name}'",))
        if name not in _MODEL and what == "integer":
            yield Case([*REPLAY, f"--{name}", "1"], (f"--{name}",))
    for name, value in (("seed", str(2**63)), ("density", "1.01"), ("top_p", "2")):
        yield Case([*TRAIN, f"--{name}", value], (name, value))


# Everything else --------------------------------------------------------------------------------

LAYERS = ("99", "4:", "3:2", "-1", "1.5", "zzz*")  # of a model of four

COMMANDS = [
    Case([], ("verb",)),
    Case([""], ("verb ''",)),
    Case(["\n"], ("verb",)),
    Case([*TRAIN, "a\nb"], (r"'a\nb'",)),
    Case([*TRAIN, "--task", "a\nb\u2028c"], ("unknown task",)),
    Case([*TRAIN, "--config", "no\nsuch.yaml"], ("such.yaml",)),
    *(told(line) for line in ("frob", "train extra", "train -e", "env --frob", "log run frob")),
    told("Train x", "'train'"),
    Case(["ls"], ("what",)),
    told("ls task", "'task'", "'tasks'"),
    *(told(f"eval --limit {value}", "--limit") for value in ("0", "-1", "x", "1.5", "²", HUGE)),
    *(told(f"log run --lines {value}", "--lines") for value in ("0", "-1", "x", HUGE)),
    told("eval --split tset", "'tset'", "'test'"),
    told("eval --output nope/x.json"),
    told("eval --output notes.txt/x.json"),
    told("eval --output folder"),
    told("eval --max_new_tokens 1000000"),
    told("eval --num_fewshot 801 --limit 1"),
    told("train --config"),
    told("train --max_evals 5", "--max_evals 5"),
    told("train --per_device_train_batch_size 5000", "--per_device_train_batch_size 5000"),
    told("train --tune_layers zzz*"),
    told("train --tune_layers zzz* --output_dir run --overwrite_output_dir", "zzz*"),
    told("train --tune stear", "'stear'"),
    *(told(f"train --tune {kind} --tune_layers {x}") for kind in ("steer", "full") for x in LAYERS),
    told("train --tune lora --tune_layers *.nope,0", "*.nope"),
    told("train --tune steer --peft lora", "adapter"),
    told("train --tune prompt --prompt_tuning_init_text --eps 0.1", "--prompt_tuning_init_text"),
    Case([*TRAIN, "--tune", "prompt", "--prompt_tuning_init_text", ""], ("has no tokens",)),
    told("train --density 1e-12 --output_dir run --overwrite_output_dir", "density 1e-12"),
    told("train --on_error floor --objective loglikelihood", "--on_error floor"),
]
NAMES = [
    *(
        Case([*TRAIN, f"--{flag}", value], (repr(value),))
        for flag in ("task", "objective", "method")
        for value in ("", "zz", ":", "notes.txt", "folder", "nosuch.module:f", "a..b:c", "x.py:")
    ),
    told("train --task squad_mni", "did you mean 'squad_mini'?"),
    told("train --objective token_f2", "did you mean 'token_f1'?"),
    told("train --method zo-sdg", "did you mean 'zo-sgd'?"),
    *(told(f"train --method {x}") for x in ("zo-sgd:x=1", "os:getcwd", "nope.mod:f", "nosuch.x:f")),
    *(told(f"train --objective token_f1:{x}") for x in ("a=1", "make=1", "x", "=1", "a=[", "a")),
    *(told(f"train --objective f1:average={x}", x) for x in ("nope", "2020-99-99")),
    *(told(f"train --objective {x}:f", x) for x in ("nope.py", "folder.py")),
    *(told(f"train --objective builtins:{x}", x) for x in ("max", "dict", "NotImplemented")),
    *(told(f"train --task {x}") for x in ("squad:foo=1", "squad_mini:foo=1", "nope.yaml")),
    *(told(f"train --task {x}") for x in ("os:getcwd", "yaml", "builtins:dict")),
    told("train --task squad:context=oracle", "'oracle'"),
    told("train --task squad:context=no", "context False"),
    *(told(f"train --report_to {x}", "'nope'") for x in ("nope", "none,nope")),
    *(told(f"train --model_name_or_path {x}") for x in ("./nope", "nope/nope", "a/b/c", "a:b")),
    *(told(f"eval --model_name_or_path {x}") for x in ("notes.txt", "folder", "tiny-qaa")),
    told("eval --model_name_or_path run --gguf_file x.gguf"),
    told("eval --device_map garbage"),
]
PATHS = [
    *(told(f"train --output_dir {x}") for x in ("notes.txt", "folder", "run", "/dev/null")),
    *(told(f"train --output_dir {x}/sub") for x in ("notes.txt", "run/log.jsonl", "/dev/null")),
    *(told(f"train --resume_from_checkpoint {x}") for x in ("nope", "notes.txt", "folder")),
    *(told(f"train --resume_from_checkpoint {x}") for x in ("run/checkpoint-9", "/dev/null")),
    told("train --resume_from_checkpoint stray/checkpoint-3", "no run in stray"),
    told("train --resume_from_checkpoint", "no run in zoobj-run"),
    told("train --resume_from_checkpoint run --output_dir other"),
    told("train --resume_from_checkpoint run --eps 0.1", "eps", "0.1"),
    told("train --resume_from_checkpoint run --tune_layers zzz*", "tune_layers"),
    told("train --resume_from_checkpoint run --tune steer", "tune was 'full'"),
    told("train --output_dir new --branch_from run@1 --tune steer", "tunes what its parent does"),
    Case([*TRAIN, "--resume_from_checkpoint", ""], ("--resume_from_checkpoint ''",)),
    Case([*TRAIN, "--branch_from", ""], ("log",)),
    *(told(f"train --output_dir new --branch_from {x}") for x in ("nope", "folder", "notes.txt")),
    *(told(f"train --output_dir new --branch_from run@{x}", "@") for x in ("x", "", "-1", HUGE)),
    told("train --output_dir new --branch_from run@3", "step 3", "2 steps"),
    told("train --output_dir new --branch_from run@2", "run@2"),  # where max_steps ends it
    told("train --output_dir new --branch_from run/checkpoint-2"),
    told("train --output_dir new --branch_from run/model.safetensors"),
    told("train --branch_from run@1 --output_dir run", "--output_dir"),
    told("train --branch_from run@1 --output_dir run --overwrite_output_dir", "--output_dir"),
    told("train --branch_from run/log.jsonl@1 --output_dir ./folder/../run", "--output_dir"),
    *(told(f"replay --output new --log {x}") for x in ("nope", "folder", "notes.txt", "blank")),
    *(told(f"replay --output new --log run --log {x}") for x in ("nope", "run/result.json")),
    *(told(f"replay --log run --output {x}") for x in ("notes.txt", "folder", "run", "/dev/null")),
    told("replay --log run", "--output"),
    told("replay --output new", "--log"),
    *(told(f"replay --log run --output new --until {x}", x[:9]) for x in ("x", "3", "-3", "1.0")),
    *(told(f"replay --log run --output new --until {x}", "--until") for x in (HUGE, "--", "²")),
    *(told(f"replay --log run --output new --average {x}", x) for x in ("0", "x", "3", "-1")),
    told("replay --log run --output new --until 0 --average 2", "--average 2"),
    told("replay --log run --output new --trust_remote_code maybe"),
    told("replay --log run --output new --config nope.yaml"),
    told("replay --log run --output new --dtype bfloat16", "base"),
    *(told(f"log {x}") for x in ("nope", "folder", "notes.txt", "blank", "run/README.md")),
    *(
        told(f"log {x}")
        for x in ("run/model.safetensors", "run/metrics.jsonl", "altered/log.jsonl")
    ),
    *(
        told(f"{line} {path}", path[:9])
        for path in (ABSENT, LONG)
        for line in (
            *("log", "train --config", "train --output_dir", "train --resume_from_checkpoint"),
            *("train --branch_from", "replay --output new --log", "replay --log run --output"),
            *("train --model_name_or_path", "train --task squad --train_file"),
        )
    ),
]
Content = str | bytes
DEEP = "[" * 20000
CONFIGS: list[Content] = [
    *("", "- eps\n", "eps\n", "\teps: 1\n", "seed: 1\neps: 0.1\nseed: 2\n", "eps: *a\n"),
    *(f"eps: {DEEP}", "eps: {a: [1\n", "eps: 'x\n", "eps: 1\n---\neps: 2\n", "? [a]\n: 1\n"),
    *("1: 2\n", "null: 2\n", "eps: \x07\n", b"\x00\xff", "eps: 1\n".encode("utf-16")),
    *("eps: !foo 1\n", "eps: !!python/object/apply:os.getcwd []\n", f"seed: {HUGE}\n"),
    # PyYAML's own constructors fail on these, each in its way.
    *(f"seed: {value}\n" for value in ("2020-99-99", "!!int x", "!!bool x", "!!timestamp x")),
]
BOMB = ", ".join(f"&{b} [{f'*{a}, ' * 9}]" for a, b in pairwise("abcdefghi"))
VALUES = ("&a [*a]", f"[&a [x], {BOMB}]", "x" * 9999, f"0x{'f' * 5000}")
TASK = "task: x\ndoc_to_text: q\ndoc_to_target: a\n"
TASKS: list[Content] = [
    *("", "- a\n", "task: 2020-99-99\n", DEEP, b"\xff\x00", f"{TASK}foo: 1\n"),
    *(TASK.replace("q", "'{{'"), f"{TASK}data_files: {{train: nope.json}}\n"),
]
ARTICLE = '{"data": [{"paragraphs": 1}]}'
ROWS: dict[str, list[Content]] = {
    ".json": ["", "{", "3", "[1]", "{}", '{"data": 3}', ARTICLE, DEEP, b"\xff"],
    ".jsonl": ["{", "3", "{}", '{"context": 1, "question": "q", "answers": []}', DEEP, b"\xff"],
    ".csv": ["", "a,b\n1,2,3\n", "a,b\n1,2\n", '"', b"\xff\xfe"],
    ".tsv": ["", "a\tb\n1\t2\n", b"\xff\xfe"],
    ".parquet": ["", "x", b"PAR1\x00\x00\x00\x00PAR1"],
    ".txt": ["x"],
    "": ["x"],
}
REVIEWS = ('{"sentence": 3, "label": 0}', '{"sentence": "a", "label": 2}', "[]", "{}")
REWARDS: dict[str, Content] = {
    "exits.py": "import sys\nsys.exit(0)\n",
    "raises.py": "1 / 0\n",
    "syntax.py": "def f(:\n",
    "null.py": "\x00",
    "bytes.py": b"\xff\xfe",
    "nothing.py": "f = None\n",
    "needs.py": "class f:\n    def __init__(self, a): pass\n",
    "short.py": "def f(completions, **k): return []\n",
    "text.py": "def f(completions, **k): return ['a'] * len(completions)\n",
}
FILES = [
    *(told("train --config case.yaml", file=("case.yaml", x)) for x in CONFIGS),
    *(told("train --config case.yaml", "eps ", file=("case.yaml", f"eps: {x}")) for x in VALUES),
    told("train --config case.yaml", ABSENT, file=("case.yaml", f"output_dir: {ABSENT}\n")),
    *(told("train --task case.yaml", "", file=("case.yaml", x)) for x in TASKS),
    *(
        told(f"validate --task squad --train_file rows{ending}", file=(f"rows{ending}", content))
        for ending, contents in ROWS.items()
        for content in contents
    ),
    *(
        told("validate --task sst2 --train_file case.jsonl", file=("case.jsonl", f"{row}\n"))
        for row in REVIEWS
    ),
    told("validate --task squad --train_file x.jsonl", "'train' is empty", file=("x.jsonl", "\n")),
    told("validate --task squad --test_file x.csv", "--train_file", file=("x.csv", "\n")),
    *(told(f"train --objective {x}:f", x, file=(x, text)) for x, text in REWARDS.items()),
    *(told(f"train --{x}_file nope.json") for x in ("train", "validation", "test")),
    *(told(f"eval --task squad --test_file {x}") for x in ("folder", "blank", "notes.txt")),
    told("eval --model_name_or_path run/checkpoint-2 --config run/log.jsonl"),
]
CASES = [*settings(), *COMMANDS, *NAMES, *PATHS, *FILES]
# In a process of their own; offline, and with nobody logged in.
ALONE = [
    told("train --eps small", "eps 'small'"),
    told("train --lerning_rate 1", "did you mean '--learning_rate'?"),
    told("train --task squad", "--train_file"),
    told("train --push_to_hub", "--push_to_hub"),
    told("replay --log run --output run"),
    told("log blank"),
    Case([*TRAIN, "--config", os.fsdecode(b"no\xff.yaml")], (".yaml",)),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with things that people have, a finished run among them."""
    folder = tmp_path_factory.mktemp("work")
    for name, content in {"notes.txt": "mine\n", "blank": "", "folder/keep.txt": "mine\n"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (folder / "stray" / "checkpoint-3").mkdir(parents=True)
    done = [*TRAIN, "--tune", "full", "--save_steps", "2", "--output_dir", str(folder / "run")]
    assert main(done) == 0
    (folder / "altered").mkdir()
    log = (folder / "run" / "log.jsonl").read_text()
    (folder / "altered" / "log.jsonl").write_text(log.replace('"step":1', '"step": 1'))
    return folder


def snapshot(folder: Path) -> dict[Path, Any]:
    """Every path but locks; of files the bytes, and when they were written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def put_back(folder: Path, before: dict[Path, Any]) -> None:
    """So that one case that fails doesn't fail those that follow."""
    shutil.rmtree(folder)
    for path, kept in before.items():
        (path if kept is None else path.parent).mkdir(parents=True, exist_ok=True)
        if kept is not None:
            path.write_bytes(kept[0])


def check(case: Case, code: int, out: str, err: str) -> None:
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("zoobj: ")
    assert "Traceback" not in err
    assert len(err) < 600 + sum(map(len, case.argv)), "a line that nobody reads to its end"
    for name in case.names:
        assert name in err


def name_of(case: Case) -> str:
    return " ".join(word[:40] for word in case.argv if word not in SMALL)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_is_refused(
    case: Case, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(logging.root, "handlers", [])  # log lines go to stderr, as in a shell
    if case.file is not None:
        name, content = case.file
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(work)
    try:
        code = main(case.argv)
    finally:
        after = snapshot(work)
        if after != before:
            put_back(work, before)
    check(case, code, *capsys.readouterr())
    assert after == before


@pytest.mark.parametrize("case", ALONE, ids=name_of)
def test_is_refused_in_a_shell(case: Case, work: Path, tmp_path: Path) -> None:
    before = snapshot(work)
    environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "zoobj", *case.argv]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=work, env=environment, timeout=300, check=False
    )
    check(case, run.returncode, run.stdout, run.stderr)
    assert snapshot(work) == before


def test_there_are_hundreds() -> None:
    assert len({(*case.argv, *(case.file or ())) for case in CASES}) >= 300
