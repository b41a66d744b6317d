"""Tiny models of random weights, and a twin of an overlay that changes their weights by hand."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as tf
from conftest import VOCABULARY
from torch import Tensor, nn

PAD, EOS = 0, 1  # as the tokenizer of conftest.py has them
FIRST = 3  # of the tokens that are no special ones
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS}


def _usual(layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return {**_IDS, **sizes, "num_hidden_layers": layers, "max_position_embeddings": 64}


def _grouped(layers: int, **more: Any) -> dict[str, Any]:
    return {**_usual(layers), "num_key_value_heads": 2, **more}


def _gpt2(layers: int) -> dict[str, Any]:
    return {**_IDS, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 64}


def _opt(layers: int, pre_norm: bool) -> dict[str, Any]:
    sizes = {k: v for k, v in _usual(layers).items() if k != "intermediate_size"}
    more = {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": pre_norm}
    return {**sizes, **more}


def _gemma(layers: int, **more: Any) -> dict[str, Any]:
    return _grouped(layers, head_dim=8, sliding_window=8, **more)


def _mixture(layers: int) -> dict[str, Any]:
    return _grouped(layers, num_experts_per_tok=2)


FAMILIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", _grouped),
    "gpt2": ("GPT2LMHeadModel", _gpt2),
    "opt": ("OPTForCausalLM", lambda n: _opt(n, True)),
    "opt post-norm": ("OPTForCausalLM", lambda n: _opt(n, False)),
    "qwen2": ("Qwen2ForCausalLM", _grouped),
    "qwen3": ("Qwen3ForCausalLM", lambda n: _grouped(n, head_dim=8)),
    "gemma2": ("Gemma2ForCausalLM", _gemma),
    "gemma3": ("Gemma3ForCausalLM", _gemma),
    "neox": ("GPTNeoXForCausalLM", _usual),
    "bert": ("BertForMaskedLM", _usual),
    "bert classifier": ("BertForSequenceClassification", _usual),
    "roberta": ("RobertaForMaskedLM", _usual),
}
MIXTURES = {
    "mixtral": ("MixtralForCausalLM", lambda n: {**_mixture(n), "num_local_experts": 4}),
    "qwen2 moe": (
        "Qwen2MoeForCausalLM",
        lambda n: {
            **_mixture(n),
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
}
KINDS = ["steer", "scale", "lora", "prompt"]
TOKENS = (5, 9, 17)  # that prompts begin as


def made(family: str, layers: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    """A model in evaluation mode; no weight is 0 or 1 by rule, so that none can be overlooked."""
    name, settings = {**FAMILIES, **MIXTURES}[family]
    kind = getattr(tf, name)
    config = kind.config_class(**settings(layers))
    with torch.random.fork_rng(devices=[]):
        model = kind(config).eval()
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() > 1:
                param.normal_(0.0, 0.3, generator=generator)
            else:
                param += 0.2 * torch.randn(param.shape, generator=generator)
    return model.to(dtype)


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(FIRST, VOCABULARY, (length,), generator=generator).tolist()
        for length in lengths
    ]


def padded(rows: Sequence[Sequence[int]], side: str = "left") -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill, ones = [PAD] * (width - len(row)), [1] * len(row)
        ids.append([*fill, *row] if side == "left" else [*row, *fill])
        mask.append([*([0] * len(fill)), *ones] if side == "left" else ones + [0] * len(fill))
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def logits(model: Any, mask: Tensor, **inputs: Tensor) -> Tensor:
    """Positions count from the first real token, where the model lets one say so."""
    options: dict[str, Any] = {**inputs, "attention_mask": mask}
    forward = model.get_base_model().forward if hasattr(model, "peft_config") else model.forward
    if "position_ids" in inspect.signature(forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    found: Tensor = model(**options).logits
    return found


def random_members(
    overlay: Any, count: int, seed: int = 0, size: float = 0.3
) -> list[list[Tensor]]:
    """Around the tunables as they are."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            p.detach() + size * torch.randn(p.shape, generator=generator)
            for p in overlay.parameters()
        ]
        for _ in range(count)
    ]


class Twin:
    """A model under one member: its weights are changed, or a layer's output by a hook.

    Args:
        model: a copy of the base of its own.
        overlay: on another copy; only names, units and the form are read.
        member: the tunables.
    """

    def __init__(self, model: Any, overlay: Any, member: Sequence[Tensor]):
        self.model = model
        self.prompt: Tensor | None = None
        names = [name for name, _ in overlay.named_parameters()]
        self.tunables = dict(zip(names, member, strict=True))
        with torch.no_grad():
            for name, value in self.tunables.items():
                kind, _, place = name.partition(".")
                module = model.get_submodule(place)
                getattr(self, f"_{kind}")(place, module, value, overlay.units[place])

    def _steer(self, place: str, module: nn.Module, value: Tensor, unit: float) -> None:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + unit * value, *output[1:])
            return output + unit * value

        module.register_forward_hook(add)

    def _scale(self, place: str, module: Any, value: Tensor, unit: float) -> None:
        factor = 1 + unit * value
        if "Gemma" in type(module).__name__:
            module.weight.copy_((1 + module.weight) * factor - 1)
        else:
            module.weight *= factor
        if getattr(module, "bias", None) is not None:
            module.bias *= factor

    def _lora_A(self, place: str, module: Any, value: Tensor, unit: float) -> None:
        rank, inputs = value.shape
        change = self.tunables[f"lora_B.{place}"] @ value
        change = change * unit / math.sqrt(rank) / math.sqrt(inputs)
        module.weight += change.T if type(module).__name__ == "Conv1D" else change

    def _lora_B(self, *args: Any) -> None:
        """Done with A."""

    def _prompt(self, place: str, module: nn.Module, value: Tensor, unit: float) -> None:
        self.prompt = module(torch.tensor(TOKENS)) + unit * value

    def logits(self, row: Sequence[int]) -> Tensor:
        """Of one row alone, no padding: [tokens, vocabulary], or [labels] of a classifier."""
        ids = torch.tensor([row])
        if self.prompt is None:
            return logits(self.model, torch.ones_like(ids), input_ids=ids)[0]
        embeddings = self.model.get_input_embeddings()(ids).detach()
        whole = torch.cat([self.prompt[None], embeddings], dim=1)
        return logits(self.model, torch.ones(whole.shape[:2]).long(), inputs_embeds=whole)[0]
