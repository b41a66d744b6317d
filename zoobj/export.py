"""A tuned overlay as an ordinary model: folded into weights, or as an adapter.

**steer** becomes biases: of whatever module's bias shifts what a layer gives (the last linear layer
of an MLP, mostly; where it has none, the model's configuration may allow for it, as Llama's
``mlp_bias``). **scale** becomes the weights of the norms. **lora** becomes an adapter of peft, and
so do **prompt** and a **steer** that can't be folded, as LoRA whose B has a bias. What came out is
compared with the overlay before it is written. ``overlay.safetensors`` is written in any case; it
alone is there if nothing else will do, and ``load_overlay`` loads it.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoobj.overlay import Overlay
from zoobj.sites import LoRA, Site, layers, linear_shape

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-4}
_TOLERANCE_16_BITS = 0.1  # of the largest logit: rounding falls elsewhere
_PROBE = 7  # tokens


def save_model(tuned: Any, tokenizer: Any, folder: Path) -> None:
    """A model in Hugging Face format, an adapter in peft's, and its tokenizer.

    Args:
        tuned: a model, or an overlay: then ``overlay.safetensors``, and where one of them can hold
            the tunables, a model or an adapter.
        tokenizer: of the model.
        folder: where to.
    """
    tokenizer.save_pretrained(folder)
    if isinstance(tuned, Overlay):
        _save_overlay(tuned, folder)
    else:
        tuned.save_pretrained(folder)


def _save_overlay(overlay: Overlay, folder: Path) -> None:
    overlay.save(folder)
    with folded(overlay) as done:
        if done:
            overlay.model.save_pretrained(folder)
            return
    write = _ADAPTERS.get(overlay.kind)
    # peft puts prompts before those of models that generate, not before a masked model's.
    if write is None or (overlay.kind == "prompt" and not overlay.model.can_generate()):
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        logger.warning("no peft adapter is written: pip install 'zoobj[peft]'")
        return
    write(overlay, folder)


# Into weights ---------------------------------------------------------------------------------


@contextmanager
def folded(overlay: Overlay) -> Iterator[bool]:
    """Within the block the weights hold the tunables and the hooks add nothing, if that can be.

    Yields:
        Whether the model is so; the weights are what they were afterwards.
    """
    fold = {"steer": _fold_steer, "scale": _fold_scale}.get(overlay.kind)
    with ExitStack() as undo, torch.no_grad():
        done = False
        if fold is not None and _plain(overlay.model):
            before = _logits(overlay.model)
            undo.enter_context(overlay.aside())
            done = fold(overlay, undo) and _same(before, _logits(overlay.model))
        if not done:
            undo.close()
        yield done


def _plain(model: Any) -> bool:
    """Whether its weights are numbers that can be written, and saved as they are."""
    quantised = getattr(model.config, "quantization_config", None) is not None
    return not quantised and not hasattr(model, "peft_config")


def _fold_steer(overlay: Overlay, undo: ExitStack) -> bool:
    carrier = _carrier(overlay)
    if carrier is None:
        return False
    modules = dict(overlay.model.named_modules())
    if modules[f"{overlay.sites[0].name}.{carrier}"].bias is None:
        if not hasattr(overlay.model.config, "mlp_bias"):
            return False
        _open_biases(overlay.model, carrier.rpartition(".")[0], undo)
    for site in overlay.sites:
        (vector,) = _now(site)
        _set(modules[f"{site.name}.{carrier}"].bias, partial(torch.add, vector), undo)
    return True


def _carrier(overlay: Overlay) -> str | None:
    """The part of a layer whose bias shifts what the layer gives by as much; None: there is none.

    Looked for from the back, by adding a vector to what a part gives. Layers are alike in this.
    """
    site = overlay.sites[0]
    width = next(iter(site.params.values())).shape[-1]
    plain = _output_of(overlay, site.module)
    # As large as the largest activation, so that no tolerance can hide it.
    shift = torch.sin(torch.arange(width, device=plain.device) + 1.0).to(plain.dtype)
    shift = shift * plain.abs().max().clamp(min=1.0)
    for name, part in reversed(list(site.module.named_modules())):
        shape = linear_shape(part)
        bias = getattr(part, "bias", None)
        outputs = shape[1] if shape else len(bias) if isinstance(bias, Tensor) else None
        if not name or outputs != width:
            continue
        handle = part.register_forward_hook(lambda module, args, output: output + shift)
        try:
            moved = _output_of(overlay, site.module)
        finally:
            handle.remove()
        if _same(plain + shift, moved):
            return name
    return None


def _output_of(overlay: Overlay, layer: nn.Module) -> Tensor:
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = layer.register_forward_hook(look)
    try:
        with overlay.aside():
            _logits(overlay.model)
    finally:
        handle.remove()
    return seen[0]


def _open_biases(model: Any, mlp: str, undo: ExitStack) -> None:
    """Give the linear layers of all MLPs the biases that ``config.mlp_bias`` stands for."""
    config = model.config.get_text_config()
    undo.callback(setattr, config, "mlp_bias", config.mlp_bias)
    config.mlp_bias = True
    for _, layer in layers(model):
        for part in layer.get_submodule(mlp).children():
            shape = linear_shape(part)
            if shape is not None and getattr(part, "bias", None) is None:
                zeros = torch.zeros(shape[1], dtype=model.dtype, device=_device(part))
                part.register_parameter("bias", nn.Parameter(zeros))
                undo.callback(part.register_parameter, "bias", None)


def _fold_scale(overlay: Overlay, undo: ExitStack) -> bool:
    for site in overlay.sites:
        (factor,) = _now(site)
        if (rule := _rule(site.module)) is None:
            return False
        _rescale(site.module, rule, factor, undo)
    return True


def _rule(module: Any) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How a norm's weight makes its output that many times as large: some multiply by 1 + weight.

    Found by doubling it, in float32, so that neither rounding nor a small factor hides the answer.
    """
    twin = copy.deepcopy(module).float()
    x = torch.sin(torch.arange(len(twin.weight), device=twin.weight.device) + 1.0)[None]
    two = torch.full_like(twin.weight, 2.0)
    wanted = 2 * _alone(twin, x)
    for rule in (_times, _gemma):
        with ExitStack() as attempt:
            _rescale(twin, rule, two, attempt)
            if _same(wanted, _alone(twin, x)):
                return rule
    return None


def _rescale(module: Any, rule: Any, factor: Tensor, undo: ExitStack) -> None:
    _set(module.weight, partial(rule, factor), undo)
    if isinstance(getattr(module, "bias", None), Tensor):
        _set(module.bias, partial(_times, factor), undo)


def _times(factor: Tensor, weight: Tensor) -> Tensor:
    return weight * factor


def _gemma(factor: Tensor, weight: Tensor) -> Tensor:
    return (1 + weight) * factor - 1


def _alone(module: nn.Module, x: Tensor) -> Tensor:
    """What a module gives without its hooks."""
    output: Tensor = module.forward(x)
    return output


def _now(site: Site) -> tuple[Tensor, ...]:
    """What a site adds at its tunables, float32 on the module's device."""
    values = site.values(*(param.detach()[None] for param in site.params.values()))
    return tuple(value[0].to(_device(site.module)) for value in values)


def _set(param: Any, rule: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
    undo.callback(param.data.copy_, param.detach().clone())
    param.data.copy_(rule(param.detach().float()))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Of a few made-up tokens."""
    ids = torch.arange(_PROBE, device=model.device)[None] + 1
    logits: Tensor = model(input_ids=ids).logits
    return logits


def _same(wanted: Tensor, found: Tensor) -> bool:
    limit = _TOLERANCE.get(wanted.dtype, _TOLERANCE_16_BITS) * max(1.0, float(wanted.abs().max()))
    return float((wanted - found).abs().max()) <= limit


# As adapters of peft --------------------------------------------------------------------------


def _lora(overlay: Overlay, folder: Path) -> None:
    from peft import LoraConfig

    tensors, modules = {}, {}
    for site in overlay.sites:
        assert isinstance(site, LoRA)
        a, b = site.values(*(param.detach()[None] for param in site.params.values()))
        modules[site.name] = site.module
        tensors[f"{site.name}.lora_A.weight"] = a[0].mT
        tensors[f"{site.name}.lora_B.weight"] = b[0].mT
    rank = overlay.sites[0].rank  # type: ignore[attr-defined]
    config = LoraConfig(r=rank, lora_alpha=rank, **_about(overlay, modules))
    _write(config, tensors, folder)


def _steer(overlay: Overlay, folder: Path) -> None:
    from peft import LoraConfig

    carrier = _carrier(overlay)
    if carrier is None:
        return
    tensors, modules = {}, {}
    for site in overlay.sites:
        name = f"{site.name}.{carrier}"
        modules[name] = site.module.get_submodule(carrier)
        if (shape := linear_shape(modules[name])) is None:
            return  # LoRA is for linear layers
        tensors[f"{name}.lora_A.weight"] = torch.zeros(1, shape[0])
        tensors[f"{name}.lora_B.weight"] = torch.zeros(shape[1], 1)
        tensors[f"{name}.lora_B.bias"] = _now(site)[0].cpu()
    config = LoraConfig(r=1, lora_alpha=1, lora_bias=True, **_about(overlay, modules))
    _write(config, tensors, folder)


def _prompt(overlay: Overlay, folder: Path) -> None:
    from peft import PromptTuningConfig, TaskType

    (embeddings,) = _now(overlay.sites[0])
    text = overlay.model.config.get_text_config()
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=len(embeddings),
        token_dim=embeddings.shape[-1],
        num_transformer_submodules=1,
        num_attention_heads=text.num_attention_heads,
        num_layers=text.num_hidden_layers,
        base_model_name_or_path=overlay.model.config.name_or_path,
        inference_mode=True,
    )
    _write(config, {"prompt_embeddings": embeddings}, folder, prefix="")


_ADAPTERS = {"lora": _lora, "steer": _steer, "prompt": _prompt}


def _about(overlay: Overlay, modules: dict[str, nn.Module]) -> dict[str, Any]:
    return {
        "target_modules": sorted(modules),
        "base_model_name_or_path": overlay.model.config.name_or_path,
        "fan_in_fan_out": any(type(module).__name__ == "Conv1D" for module in modules.values()),
        "task_type": "CAUSAL_LM" if overlay.model.can_generate() else None,
        "inference_mode": True,
    }


def _write(
    config: Any, tensors: dict[str, Tensor], folder: Path, prefix: str = "base_model.model."
) -> None:
    from safetensors.torch import save_file

    named = {f"{prefix}{name}": tensor.contiguous().cpu() for name, tensor in tensors.items()}
    config.save_pretrained(str(folder))
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
