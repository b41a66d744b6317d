"""zoobj.export: what is saved gives, without zoobj where that can be, what the overlay gave."""

import contextlib
import copy
import json
import logging
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, KINDS, TOKENS, Twin, padded, prompts, random_members
from torch import Tensor

from zoobj import export
from zoobj.errors import UserError
from zoobj.export import save_model
from zoobj.models import load_model
from zoobj.overlay import FILE, Overlay, load_overlay, overlay_of

peft = pytest.importorskip("peft")

CLOSE = 1e-4
FAR = 0.05
ROWS = prompts([7, 7], seed=2)  # as long: peft puts prompts before padding
CAUSAL = [family for family in FAMILIES if "bert" not in family]

pytestmark = [
    pytest.mark.usefixtures("_quiet"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft's use of transformers
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]


@pytest.fixture
def _quiet() -> Any:
    """No bars on stderr."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    yield
    of_transformers.enable_progress_bar()


@cache
def base(family: str, layers: int = 3) -> Any:
    """Read only."""
    return tiny.made(family, layers)


def tuned(
    family: str,
    kind: str,
    where: str | None = None,
    *,
    model: Any = None,
    layers: int = 3,
    size: float = 0.3,
) -> Overlay:
    """An overlay away from its start, with units that were measured."""
    model = copy.deepcopy(base(family, layers)) if model is None else model
    overlay = Overlay(model, kind, where, rank=2, tokens=TOKENS if kind == "prompt" else ())
    overlay.measure(*padded(prompts([6, 9], seed=4)))
    (member,) = random_members(overlay, 1, size=size)
    for param, value in zip(overlay.parameters(), member, strict=True):
        param.data.copy_(value)
    return overlay


def given(overlay: Overlay) -> Tensor:
    ids, mask = padded([[*overlay.placeholders, *row] for row in ROWS])
    return tiny.logits(overlay.model, mask, input_ids=ids)


def plainly(model: Any) -> Tensor:
    """Of a model that has no placeholders; a prompt's own places are the first."""
    ids, mask = padded(ROWS)
    config = getattr(model, "peft_config", {}).get("default")
    if config is not None and config.is_prompt_learning:
        with torch.no_grad():
            found: Tensor = model(input_ids=ids, attention_mask=mask).logits
            return found
    return tiny.logits(model, mask, input_ids=ids)


def form_of(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    assert FILE in names
    assert "tokenizer.json" in names
    held = {"model": "config.json", "adapter": "adapter_config.json"}
    assert ("config.json" in names) == ("model.safetensors" in names)
    assert ("adapter_config.json" in names) == ("adapter_model.safetensors" in names)
    forms = [form for form, name in held.items() if name in names]
    assert len(forms) < 2
    return forms[0] if forms else "overlay"


def reloaded(folder: Path, plain: Any) -> Any:
    """What is in a folder; on a copy of the base where that isn't in it."""
    form = form_of(folder)
    if form == "model":
        return type(plain).from_pretrained(folder).eval()
    model = copy.deepcopy(plain)
    if form == "adapter":
        return peft.PeftModel.from_pretrained(model, folder).eval()
    return load_overlay(model, folder).model


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def settings_of(model: Any) -> dict[str, Any]:
    """But for those that transformers itself sets when it saves."""
    settings: dict[str, Any] = model.config.to_dict()
    return {k: v for k, v in settings.items() if k not in {"architectures", "dtype"}}


def bits(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def expected_form(family: str, kind: str) -> str:
    if kind == "scale":
        return "model"
    if kind == "prompt":
        return "adapter" if family in CAUSAL else "overlay"
    if kind == "lora":
        return "adapter"
    special = {"qwen2": "adapter", "qwen3": "adapter", "gemma2": "overlay", "gemma3": "overlay"}
    return special.get(family, "model")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_gives_what_the_overlay_gave(
    family: str, kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    overlay = tuned(family, kind)
    model = overlay.model
    before, config, tunables = bits(model), settings_of(model), overlay.snapshot()
    wanted = given(overlay)
    save_model(overlay, tokenizer, tmp_path)
    # The model in memory is what it was.
    now = bits(model)
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert settings_of(model) == config
    assert torch.equal(given(overlay), wanted)
    for one, other in zip(overlay.snapshot(), tunables, strict=True):
        assert torch.equal(one, other)
    # What was written is what a model is whose weights are changed by hand.
    assert form_of(tmp_path) == expected_form(family, kind)
    found = reloaded(tmp_path, base(family))
    if (again := overlay_of(found)) is not None:
        got = given(again)
    else:
        got = plainly(found)
    twin = Twin(copy.deepcopy(base(family)), overlay, tunables)
    by_hand = torch.stack([twin.logits(row) for row in ROWS])
    if kind == "prompt" and expected_form(family, kind) == "adapter" and got.dim() > 2:
        assert got.shape[1] in {7, 7 + len(TOKENS)}  # peft may leave out the prompt's own places
        wanted, by_hand = wanted[:, -got.shape[1] :], by_hand[:, -got.shape[1] :]
    assert got.shape == wanted.shape == by_hand.shape
    assert apart(got, wanted) < CLOSE
    assert apart(got, by_hand) < CLOSE
    words = [[*TOKENS, *row] if kind == "prompt" else row for row in ROWS]
    ids, mask = padded(words)
    untuned = tiny.logits(base(family), mask, input_ids=ids)
    if got.dim() > 2:
        untuned = untuned[:, -got.shape[1] :]
    assert apart(got, untuned) > FAR


def test_llama_has_the_biases_of_its_mlp(tokenizer: Any, tmp_path: Path) -> None:
    overlay = tuned("llama", "steer", "1:")
    save_model(overlay, tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mlp_bias"] is True
    assert overlay.model.config.mlp_bias is False
    assert "model.layers.0.mlp.down_proj.bias" not in dict(overlay.model.named_parameters())
    saved = load_file(tmp_path / "model.safetensors")
    for part in ("gate_proj", "up_proj", "down_proj"):  # all have one, few are not 0
        shown = [bool(saved[f"model.layers.{n}.mlp.{part}.bias"].any()) for n in range(3)]
        assert shown == [False, *[part == "down_proj"] * 2]


def test_qwen_is_an_adapter_of_biases(tokenizer: Any, tmp_path: Path) -> None:
    overlay = tuned("qwen2", "steer", "1")
    save_model(overlay, tokenizer, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_bias"] is True
    assert config["target_modules"] == ["model.layers.1.mlp.down_proj"]
    saved = load_file(tmp_path / "adapter_model.safetensors")
    (vector,) = overlay.snapshot()
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.bias"
    assert torch.allclose(saved.pop(name), vector * overlay.units["model.layers.1"])
    assert not any(bool(tensor.any()) for tensor in saved.values())


@pytest.mark.parametrize("where", ["1", "11", "1,10:", "*.1", "*.1*"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "steer"), ("llama", "lora"), ("qwen3", "steer"), ("gpt2", "scale")],
)
def test_layers_whose_names_end_alike(
    family: str, kind: str, where: str, tokenizer: Any, tmp_path: Path
) -> None:
    if kind in {"lora", "scale"} and where.startswith("*"):
        where = f"{where}.*"
    overlay = tuned(family, kind, where, layers=12)
    wanted = given(overlay)
    save_model(overlay, tokenizer, tmp_path)
    got = plainly(reloaded(tmp_path, base(family, 12)))
    assert apart(got, wanted) < 3 * CLOSE  # of 12 layers
    assert apart(got, plainly(base(family, 12))) > FAR


@pytest.mark.parametrize("where", ["*.mlp.*", "*.q_proj,*.0.mlp.up_proj", "2"])
def test_lora_on_some_modules(where: str, tokenizer: Any, tmp_path: Path) -> None:
    overlay = tuned("llama", "lora", where)
    wanted = given(overlay)
    save_model(overlay, tokenizer, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(site.name for site in overlay.sites)
    assert apart(plainly(reloaded(tmp_path, base("llama"))), wanted) < CLOSE


def test_folded_is_undone_after_an_error() -> None:
    overlay = tuned("llama", "steer")
    before, wanted = bits(overlay.model), given(overlay)
    with contextlib.suppress(KeyError), export.folded(overlay) as done:
        assert done
        assert apart(plainly(overlay.model), wanted) < CLOSE
        assert "model.layers.0.mlp.gate_proj.bias" in bits(overlay.model)
        raise KeyError
    now = bits(overlay.model)
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert overlay.model.config.mlp_bias is False
    assert torch.equal(given(overlay), wanted)


# Large activations and 16 bits ----------------------------------------------------------------


def usual(logits: Tensor) -> Tensor:
    """But for the token whose embedding is a massive one."""
    return logits[..., 2:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["opt", "opt post-norm", "gpt2", "gemma2", "qwen2"])
def test_no_tolerance_hides_where_a_vector_goes(
    family: str, dtype: torch.dtype, tokenizer: Any, tmp_path: Path
) -> None:
    """Some tokens of real models have activations a thousand times as large as others."""
    model = tiny.made(family, dtype=dtype)
    model.get_input_embeddings().weight.data[1] *= 10000  # of the few that saving tries
    plain = copy.deepcopy(model)
    overlay = tuned(family, "steer", model=model, size=0.1)
    wanted = given(overlay)
    effect = apart(usual(wanted), usual(plainly(plain)))
    save_model(overlay, tokenizer, tmp_path)
    assert form_of(tmp_path) == expected_form(family, "steer")
    found = reloaded(tmp_path, plain)
    again = overlay_of(found)
    got = plainly(found) if again is None else given(again)
    limit = CLOSE if dtype == torch.float32 else 0.25 * effect
    assert apart(usual(got), usual(wanted)) < limit < effect


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_16_bits(
    family: str, kind: str, dtype: torch.dtype, tokenizer: Any, tmp_path: Path
) -> None:
    plain = tiny.made(family, dtype=dtype)
    overlay = tuned(family, kind, model=copy.deepcopy(plain), size=0.1)
    before, wanted = bits(overlay.model), given(overlay)
    save_model(overlay, tokenizer, tmp_path)
    assert all(torch.equal(now, before[name]) for name, now in bits(overlay.model).items())
    assert form_of(tmp_path) == expected_form(family, kind)
    found = reloaded(tmp_path, plain)
    assert found.dtype == dtype
    again = overlay_of(found)
    got = plainly(found) if again is None else given(again)
    wanted, got = wanted[:, -7:], got[:, -7:]
    assert got.dtype == dtype
    assert apart(got, wanted) < 0.15 * float(wanted.abs().max())
    effect = (plainly(plain).float() - wanted.float()).norm()
    assert float((got.float() - wanted.float()).norm()) < 0.3 * float(effect)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_the_rule_of_a_norm_is_found_for_small_factors(
    family: str, tokenizer: Any, tmp_path: Path
) -> None:
    """(1 + w) f - 1 and w f are alike where f is nearly 1; a weight tells more than logits."""
    model = tiny.made(family, dtype=torch.float16)
    overlay = tuned(family, "scale", model=model, size=0.02)
    save_model(overlay, tokenizer, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for site, (factor,) in zip(overlay.sites, map(export._now, overlay.sites), strict=True):
        weight = site.module.weight.detach().float()
        add = 1 if family == "gemma2" else 0
        goal = (weight + add) * factor - add
        assert apart(saved[f"{site.name}.weight"], goal) < 1e-3


# Loading with zoobj ---------------------------------------------------------------------------


@pytest.fixture
def saved_base(tokenizer: Any, tmp_path: Path) -> Any:
    """Makes folders of bases, with names."""

    def save(family: str) -> Path:
        folder = tmp_path / f"base of {family}"
        save_model(base(family), tokenizer, folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("family", "kind"),
    [("gemma3", "steer"), ("llama", "steer"), ("llama", "lora"), ("gpt2", "scale")],
)
def test_load_model_reads_all_that_is_saved(
    family: str, kind: str, tokenizer: Any, saved_base: Any, tmp_path: Path
) -> None:
    model, _ = load_model(str(saved_base(family)))
    overlay = tuned(family, kind, model=model.eval())
    wanted = given(overlay)
    folder = tmp_path / "tuned"
    save_model(overlay, tokenizer, folder)
    found, _ = load_model(str(folder))
    assert apart(plainly(found.eval()), wanted) < CLOSE
    assert (overlay_of(found) is None) == (form_of(folder) == "model")


@pytest.mark.parametrize("kind", KINDS)
def test_an_overlay_alone_loads_with_its_base(
    kind: str, saved_base: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, _ = load_model(str(saved_base("llama")))
    overlay = tuned("llama", kind, {"prompt": None}.get(kind, "1:"), model=model)
    wanted = given(overlay)
    folder = tmp_path / "tuned"
    folder.mkdir()
    overlay.save(folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
    found, own = load_model(str(folder))
    assert own.get_vocab() == tokenizer.get_vocab()
    again = overlay_of(found)
    assert again is not None
    assert again.facts == overlay.facts
    assert again.placeholders == overlay.placeholders
    assert [name for name, _ in again.named_parameters()] == [
        name for name, _ in overlay.named_parameters()
    ]
    for one, other in zip(again.snapshot(), overlay.snapshot(), strict=True):
        assert torch.equal(one, other)
    assert apart(given(again), wanted) < CLOSE
    again.remove()
    assert torch.equal(plainly(found), plainly(base("llama")))
    # What was loaded can be saved again.
    second = load_overlay(copy.deepcopy(base("llama")), folder)
    second.base = again.base
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    assert given(overlay_of(load_model(str(tmp_path / "again"))[0])).equal(wanted)  # type: ignore[arg-type]


def overlay_folder(tmp_path: Path, base_folder: Path, kind: str = "lora") -> Path:
    model, _ = load_model(str(base_folder))
    folder = tmp_path / "tuned"
    folder.mkdir()
    tuned("llama", kind, model=model).save(folder)
    return folder


def rewritten(path: Path, tensors: Any = None, **facts: Any) -> None:
    """With other facts; None: leave one out."""
    with safe_open(path, framework="pt") as file:
        held = json.loads(file.metadata()["overlay"])
    held = {k: v for k, v in {**held, **facts}.items() if k not in facts or v is not None}
    saved = load_file(path) if tensors is None else tensors
    save_file(saved, path, metadata={"overlay": json.dumps(held)})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(b"\xff" * 300),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "no facts": lambda path: save_file(load_file(path), path),
    "other facts": lambda path: save_file(load_file(path), path, metadata={"overlay": "[1, 2]"}),
    "no JSON": lambda path: save_file(load_file(path), path, metadata={"overlay": "{"}),
    "no base": lambda path: rewritten(path, base=None),
    "no name of a base": lambda path: rewritten(path, base={}),
    "a base that is no name": lambda path: rewritten(path, base=3),
    "a base without a name": lambda path: rewritten(path, base={"model_name_or_path": ""}),
    "a base that is gone": lambda path: rewritten(path, base={"model_name_or_path": "./gone"}),
    "no kind": lambda path: rewritten(path, kind=None),
    "an unknown kind": lambda path: rewritten(path, kind="bias"),
    "no units": lambda path: rewritten(path, units=None),
    "another rank": lambda path: rewritten(path, rank=1),
    "other layers": lambda path: rewritten(path, tune_layers="1:"),
    "layers that there aren't": lambda path: rewritten(path, tune_layers="7:"),
    "no tensors": lambda path: rewritten(path, {}),
    "a tensor too few": lambda path: rewritten(path, dict(list(load_file(path).items())[1:])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_overlay_is_refused(damage: str, saved_base: Any, tmp_path: Path) -> None:
    folder = overlay_folder(tmp_path, saved_base("llama"))
    DAMAGES[damage](folder / FILE)
    with pytest.raises(UserError) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    if "base" not in damage:
        model = copy.deepcopy(base("llama"))
        with pytest.raises(UserError):
            load_overlay(model, folder)
        assert overlay_of(model) is None
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("other", ["gpt2", "qwen3", "bert"])
@pytest.mark.parametrize("kind", ["steer", "scale", "lora"])
def test_an_overlay_of_another_model_is_refused(
    kind: str, other: str, saved_base: Any, tmp_path: Path
) -> None:
    tuned("llama", kind).save(tmp_path)
    model = copy.deepcopy(base(other))
    if other == "qwen3":  # which has modules of the same names and widths
        model = tiny.made(other, 4)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_overlay(model, tmp_path)
    assert overlay_of(model) is None
    assert not any(module._forward_hooks for module in model.modules())
    Overlay(model, "steer").remove()


def test_a_prompt_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    overlay = Overlay(copy.deepcopy(base("llama")), "prompt", tokens=[5, 300])
    overlay.save(tmp_path)
    model = copy.deepcopy(base("llama"))
    model.resize_token_embeddings(200)
    with pytest.raises(UserError, match=r"300.*200"):
        load_overlay(model, tmp_path)
    assert overlay_of(model) is None


@pytest.mark.parametrize("kind", ["lora", "prompt", "steer"])
def test_without_peft_the_overlay_alone_is_written(
    kind: str,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    overlay = tuned("qwen2", kind)
    wanted = given(overlay)
    with caplog.at_level(logging.WARNING, logger="zoobj"):
        save_model(overlay, tokenizer, tmp_path)
    (record,) = [r for r in caplog.records if r.name.startswith("zoobj")]
    assert record.levelno == logging.WARNING
    assert "zoobj[peft]" in record.message
    assert form_of(tmp_path) == "overlay"
    again = load_overlay(copy.deepcopy(base("qwen2")), tmp_path)
    assert torch.equal(given(again), wanted)


def test_a_plain_model_is_saved_as_it_is(tokenizer: Any, tmp_path: Path) -> None:
    save_model(base("llama"), tokenizer, tmp_path)
    assert not (tmp_path / FILE).exists()
    found = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(plainly(found), plainly(base("llama")))
