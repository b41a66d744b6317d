"""An adapter of peft is tuned alone, saved in peft's format, and loads wherever peft's own do."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoobj import UserError, ZOConfig, ZOTrainer, checkpoint
from zoobj.assemble import make_scorer, make_task
from zoobj.cli import main
from zoobj.environment import checksum
from zoobj.evaluation import evaluate
from zoobj.interrupts import Interrupted
from zoobj.log import Log
from zoobj.models import load_model
from zoobj.objectives import TokenF1
from zoobj.outcome import judge
from zoobj.scoring.choices import loglikelihood

peft = pytest.importorskip("peft")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plot takes as long as the run."""
    monkeypatch.setattr("zoobj.trainer.write_report", lambda *args: None)


def small(output_dir: Path, **more: Any) -> ZOConfig:
    """Settings of a run of a second that changes something."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "full",
        "max_steps": 4,
        "eval_steps": 2,
        "eps": 2e-2,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 8,
        "max_eval_samples": 8,
        "max_test_samples": 24,
        "max_new_tokens": 8,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


def lora(**more: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    return peft.LoraConfig(task_type="CAUSAL_LM", **{**settings, **more})


def trainer(args: ZOConfig, config: Any = None, **more: Any) -> ZOTrainer:
    """On a fresh base: peft changes the one it gets."""
    model, tokenizer = load_model("tiny-qa")
    config = config or lora()
    return ZOTrainer(model, args=args, processing_class=tokenizer, peft_config=config, **more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(path)]


def same(first: Path, second: Path) -> bool:
    """The adapters of two folders, bit for bit."""
    a, b = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def value(model: Any, tokenizer: Any) -> float:
    """The score of a model on what ``small`` tests on."""
    args = small(Path("x"))
    task = make_task(args)
    model.eval()
    tokenizer.padding_side = "left"
    batch = make_scorer(args, model, tokenizer, task)(task.examples("test", 24), TokenF1().needs)
    return judge(TokenF1(), batch).value


class StopAt:
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One finished run with a checkpoint at every second step."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    result = trainer(small(folder, save_steps=2)).train()
    assert result.best_step > 0  # else it is no more than what the seed gives
    return folder, result


# What is tuned ------------------------------------------------------------------------------


def test_only_the_adapter_is_tuned(tmp_path: Path) -> None:
    made = trainer(small(tmp_path / "run", max_steps=2))
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.train()
    made.track.to(2, made.run)  # the best weights may be the first
    assert set(made.track.walk.names) == {name for name in before if "lora_" in name}
    for name, param in made.model.named_parameters():
        assert torch.equal(param, before[name]) != ("lora_" in name), name


def test_the_folder_holds_an_adapter_and_nothing_of_the_base(done: tuple[Path, Any]) -> None:
    folder, _ = done
    assert not list(folder.glob("**/model*.safetensors"))
    saved = load_file(folder / WEIGHTS)
    assert len(saved) == 4 * 2 * 2  # layers, modules, A and B
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in saved)
    config = json.loads((folder / CONFIG).read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 4)
    assert Path(config["base_model_name_or_path"]).name == "tiny_qa"
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "README.md").read_text().count("zoobj replay") == 1  # our card, not peft's
    for place in folder.glob("checkpoint-*"):
        assert load_file(place / WEIGHTS).keys() == saved.keys()
        assert (place / CONFIG).is_file()
    assert len(list(folder.glob("checkpoint-*"))) == 2


def test_a_run_of_all_weights_in_the_same_folder_is_no_adapter(tmp_path: Path) -> None:
    """And the other way round: nothing of an earlier run is taken for a part of this one."""
    out = tmp_path / "run"
    trainer(small(out, max_steps=1)).train()
    result = ZOTrainer(args=small(out, max_steps=1, overwrite_output_dir=True)).train()
    assert not (out / CONFIG).exists()
    settings = ZOConfig(model_name_or_path=str(out), max_new_tokens=8)
    assert evaluate(settings, limit=24)["value"] == pytest.approx(result.after, abs=1e-6)
    result = trainer(small(out, max_steps=1, overwrite_output_dir=True)).train()
    assert not (out / "model.safetensors").exists()
    assert evaluate(settings, limit=24)["value"] == pytest.approx(result.after, abs=1e-6)


# Where it loads -----------------------------------------------------------------------------


def test_peft_loads_it_and_it_scores_as_the_result(done: tuple[Path, Any]) -> None:
    folder, result = done
    base, tokenizer = load_model("tiny-qa")
    model = peft.PeftModel.from_pretrained(base, folder)
    assert value(model, tokenizer) == pytest.approx(result.after, abs=1e-6)
    assert value(load_model("tiny-qa")[0], tokenizer) == pytest.approx(result.before, abs=1e-6)


def test_transformers_loads_it(done: tuple[Path, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, result = done
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert value(model, AutoTokenizer.from_pretrained(folder)) == pytest.approx(
        result.after, abs=1e-6
    )


def test_eval_of_the_folder_repeats_the_result(done: tuple[Path, Any]) -> None:
    folder, result = done
    settings = ZOConfig(model_name_or_path=str(folder), max_new_tokens=8)
    assert evaluate(settings, limit=24)["value"] == pytest.approx(result.after, abs=1e-6)


def test_tuning_goes_on_from_an_adapter_folder(done: tuple[Path, Any], tmp_path: Path) -> None:
    """As a new run: the adapter is what is tuned and saved, from where it stood."""
    folder, result = done
    out = tmp_path / "run"
    made = ZOTrainer(args=small(out, model_name_or_path=str(folder), max_steps=1))
    assert all("lora_" in name for name, p in made.model.named_parameters() if p.requires_grad)
    again = made.train()
    assert again.before == pytest.approx(result.after, abs=1e-6)
    assert (out / WEIGHTS).is_file()
    assert not (out / "model.safetensors").exists()


def test_an_adapter_without_its_base_is_refused(done: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = done
    for name in (WEIGHTS, "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / CONFIG).read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="no such folder"):
        evaluate(ZOConfig(model_name_or_path=str(tmp_path)))


# The same again -----------------------------------------------------------------------------


def test_same_seed_same_adapter_and_the_global_state_is_left_alone(
    done: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, result = done
    torch.rand(7)  # whatever the global state, it plays no part
    state = torch.get_rng_state()
    again = trainer(small(tmp_path / "run")).train()
    assert torch.equal(torch.get_rng_state(), state)
    assert same(folder, tmp_path / "run")
    assert untimed(tmp_path / "run" / "log.jsonl") == untimed(folder / "log.jsonl")
    assert again.after == result.after
    other = trainer(small(tmp_path / "other", seed=4))
    first = trainer(small(tmp_path / "third"))
    name = next(n for n, _ in first.model.named_parameters() if "lora_A" in n)
    parameters = (dict(t.model.named_parameters())[name] for t in (first, other))
    assert not torch.equal(*parameters)


@pytest.mark.parametrize("save_steps", [None, 2])
def test_an_interrupted_run_continues_to_the_same_end(
    done: tuple[Path, Any],
    tmp_path: Path,
    save_steps: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From the log alone, and from a checkpoint, which is taken without complaint."""
    folder, result = done
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        trainer(small(out, save_steps=save_steps), callbacks=[StopAt(3)]).train()
    assert (out / WEIGHTS).is_file()
    assert len(list(out.glob("checkpoint-*"))) == (1 if save_steps else 0)
    resumed = trainer(small(out, resume_from_checkpoint=True))
    with caplog.at_level(logging.WARNING):
        assert resumed.train().after == result.after
    assert "can't be used" not in caplog.text
    assert untimed(out / "log.jsonl") == untimed(folder / "log.jsonl")
    assert same(out, folder)


def test_a_checkpoint_gives_the_weights_it_was_made_of(
    done: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded, not replayed: with the log's moves refused, the weights are there all the same."""
    folder, _ = done
    made = trainer(small(tmp_path / "run"))
    made.track.begin([], made.args)
    log = Log(folder / "log.jsonl", steps=True)
    assert checkpoint.load(folder / "checkpoint-2", made.model, made.track.walk, log.hash_at(2))
    checksums = [line["checksum"] for line in log.lines]
    assert checksum(made.model.named_parameters()) == checksums[2]


@pytest.mark.parametrize("what", ["modules_to_save", "named", "bias", "bfloat16"])
def test_checkpoints_of_other_adapters(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Names and dtypes that peft saves in its own way; resuming gives what was."""

    def make(args: ZOConfig, **more: Any) -> ZOTrainer:
        dtype = "bfloat16" if what == "bfloat16" else "auto"
        model, tokenizer = load_model("tiny-qa", dtype=dtype)
        config = lora()
        if what == "modules_to_save":
            config = lora(modules_to_save=["lm_head"])
        if what == "bias":
            config = lora(bias="all")
        if what == "named":
            model = peft.get_peft_model(model, config, adapter_name="mine")
            config = None
            for name, p in model.named_parameters():  # as if it came from somewhere
                if "lora_" in name:
                    p.data = torch.linspace(-0.1, 0.1, p.numel()).view_as(p).to(p.dtype)
        return ZOTrainer(model, args=args, processing_class=tokenizer, peft_config=config, **more)

    out = tmp_path / "run"
    settings = {"save_steps": 2, "max_steps": 3, "max_test_samples": 4}
    make(small(tmp_path / "whole", **settings)).train()
    with pytest.raises(Interrupted):
        make(small(out, **settings), callbacks=[StopAt(2)]).train()
    with caplog.at_level(logging.WARNING):
        make(small(out, resume_from_checkpoint=True, **settings)).train()
    assert untimed(out / "log.jsonl") == untimed(tmp_path / "whole" / "log.jsonl")
    assert "can't be used" not in caplog.text


def test_another_configuration_of_the_adapter_is_refused(
    done: tuple[Path, Any], tmp_path: Path
) -> None:
    """Same shapes, same first weights, but another scale."""
    args = small(done[0])
    with pytest.raises(UserError, match="was run with another adapter"):
        trainer(args, lora(lora_alpha=16)).train(resume_from_checkpoint=True)


def test_from_log_gives_the_adapter_of_a_step(done: tuple[Path, Any]) -> None:
    folder, result = done
    model, tokenizer = load_model("tiny-qa")
    made = ZOTrainer.from_log(
        str(folder),
        until=result.best_step,
        model=model,
        processing_class=tokenizer,
        peft_config=lora(),
    )
    saved = load_file(folder / WEIGHTS)
    named = {k.replace(".default", ""): p for k, p in made.model.named_parameters()}
    assert all(torch.equal(named[name], tensor) for name, tensor in saved.items())


def test_the_command_s_own_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--peft lora` saves an adapter; `zoobj replay` brings back any step of it."""
    run, out = tmp_path / "run", tmp_path / "out"
    settings = small(run, peft="lora", lora_r=2, lora_target_modules="q_proj,up_proj", save_steps=1)
    ZOTrainer(args=settings).train()
    config = json.loads((run / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 16)
    assert set(config["target_modules"]) == {"q_proj", "up_proj"}
    assert main(["replay", "--log", str(run), "--until", "3", "--output", str(out)]) == 0
    assert same(out, run / "checkpoint-3")
    assert (
        main(["train", "--peft", "lora", "--lora_target_modules", "no", "--output_dir", "x"]) == 2
    )
    assert "the adapter does not fit the model: Target modules" in capsys.readouterr().err


def test_log_probabilities_do_not_depend_on_padding() -> None:
    """peft's own signature hides that the model takes positions, which GPT-2 learns."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        model = peft.get_peft_model(GPT2LMHeadModel(config), lora(target_modules=["c_attn"]))
    model.eval()
    prompts, answers = [[1, 2], list(range(3, 20))], [[7, 8]] * 2
    both = loglikelihood(model, prompts, answers, pad=0, batch_size=2)
    alone = [loglikelihood(model, [p], answers[:1], pad=0, batch_size=1)[0] for p in prompts]
    assert both == pytest.approx(alone, abs=1e-5)


def test_virtual_tokens_are_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match="adapter 'default' is PROMPT_TUNING"):
        trainer(small(Path("x")), config)
