"""The places in a model where an overlay adds something, found by structure, not by family."""

import fnmatch
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoobj.errors import UserError
from zoobj.noise import noise

Values = tuple[Tensor, ...]
"""What a site adds for each of several members: tensors [members, ...]."""

_LAYERS = 10  # about: fewer numbers are learned sooner, and what is added travels on anyway
_STEERED = 0.6  # of the layers, from the first: later ones have next to no part in the slope
_COLUMNS = 64  # of low-rank factors of all members, that every row is multiplied with
_SLICE = re.compile(r"(\d*):(\d*)|(\d+)")


class Site(ABC):
    """A module, and the few numbers that change its output.

    Args:
        name: of the module.
        module: whose output is changed; the first dimension of what it gives are rows.

    Attributes:
        params: by name, float32, in units of what is normal there (see ``measure``): so one eps
            suits all places.
        unit: that norm.
        reads: whether ``change`` looks at the inputs.
    """

    kind: ClassVar[str]
    reads: ClassVar[bool] = False

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module
        self.params: dict[str, nn.Parameter] = {}
        self.unit = 1.0

    def _add_param(self, name: str, start: Tensor) -> None:
        self.params[name] = nn.Parameter(start, requires_grad=True)

    def measure(self, inputs: Tensor, output: Tensor) -> float:
        """The unit, from [tokens, width] of real tokens."""
        return 1.0

    @abstractmethod
    def values(self, *params: Tensor) -> Values:
        """From stacked params, each [members, ...], to what ``change`` takes, on any device."""

    def spread(self, values: Values, who: Tensor) -> Values:
        """What ``change`` takes where each row is under a member, ``who`` [rows]."""
        return tuple(value[who] for value in values)

    @abstractmethod
    def change(self, inputs: Tensor, output: Tensor, values: Values) -> Tensor:
        """The output [rows, ..., width] under values that were spread, or of one member for all.

        It may be written in place: no module here gives back what it was given.
        """


class Steer(Site):
    """Adds a vector to what a layer gives to the next: y + unit v."""

    kind = "steer"

    def __init__(self, name: str, module: nn.Module, width: int):
        super().__init__(name, module)
        self._add_param(f"steer.{name}", torch.zeros(width))

    def measure(self, inputs: Tensor, output: Tensor) -> float:
        return typical(output)

    def values(self, *params: Tensor) -> Values:
        return (params[0] * self.unit,)

    def change(self, inputs: Tensor, output: Tensor, values: Values) -> Tensor:
        return _in_place(output).add_(_between(values[0], output))


class Scale(Site):
    """Multiplies what a norm gives, channel by channel: y (1 + unit v)."""

    kind = "scale"

    def __init__(self, name: str, module: nn.Module, width: int):
        super().__init__(name, module)
        self._add_param(f"scale.{name}", torch.zeros(width))

    def values(self, *params: Tensor) -> Values:
        return (1 + params[0] * self.unit,)

    def change(self, inputs: Tensor, output: Tensor, values: Values) -> Tensor:
        return _in_place(output).mul_(_between(values[0], output))


class LoRA(Site):
    """Adds a product of rank r to a linear layer: y + x A^T B^T / sqrt(r).

    Its form is that of LoRA (Hu et al. 2021, arXiv 2106.09685) scaled as in EGGROLL (Sarkar et al.
    2025, arXiv 2511.16652). A begins as +/-1 / sqrt(inputs), B as 0, in units of what the layer
    gives for inputs of size 1.
    """

    kind = "lora"
    reads = True

    def __init__(self, name: str, module: nn.Module, inputs: int, outputs: int, rank: int):
        super().__init__(name, module)
        self.rank, self.shrink = rank, 1 / math.sqrt(inputs)
        start = noise("rademacher", 0, f"lora_A.{name}", 0, rank * inputs)
        self._add_param(f"lora_A.{name}", start.view(rank, inputs).clone())
        self._add_param(f"lora_B.{name}", torch.zeros(outputs, rank))

    def measure(self, inputs: Tensor, output: Tensor) -> float:
        return typical(output) / typical(inputs)

    def values(self, *params: Tensor) -> Values:
        a, b = params
        return a.mT * self.shrink, b.mT * (self.unit / math.sqrt(self.rank))

    def spread(self, values: Values, who: Tensor) -> Values:
        """Few columns in all: as one matrix, with which columns are whose. Else one a row."""
        a, b = values
        members, inputs, rank = a.shape
        if members * rank > _COLUMNS:
            return super().spread(values, who)
        mine = (who[:, None] == torch.arange(members, device=who.device)).to(a.dtype)
        mine = mine.repeat_interleave(rank, dim=1)[:, None]
        told = a.mT.reshape(-1, inputs).contiguous(), b.reshape(-1, b.shape[-1]), mine
        return (*told, who[:members]) if rank == 1 and _in_turn(who, members) else told

    def change(self, inputs: Tensor, output: Tensor, values: Values) -> Tensor:
        a, b, *mine = values
        if not mine and len(a) > 1:  # [rows, inputs, rank] and [rows, rank, outputs]
            return torch.baddbmm(output, torch.bmm(inputs, a), b)
        y = _in_place(output)
        if len(mine) == 2 and inputs.shape[1] == 1:  # one token: no matrices, but products
            x = inputs.reshape(-1, *a.shape)
            inner = (x * a).sum(-1, keepdim=True)
            return y.view(-1, *b.shape).addcmul_(inner, b).view_as(y)
        if mine:
            inner = nn.functional.linear(inputs, a) * mine[0]
        else:
            inner, b = inputs @ a[0], b[0]
        flat = y.view(-1, y.shape[-1])
        return flat.addmm_(inner.reshape(len(flat), -1), b).view_as(y)


class Prompt(Site):
    """Embeddings of tokens that are not in the vocabulary: e + unit v, e of tokens that are.

    In token ids they are -1, -2, ...; a soft prompt (Lester et al. 2021, arXiv 2104.08691).

    Args:
        tokens: ids of the tokens that they begin as.
    """

    kind = "prompt"

    def __init__(self, name: str, module: nn.Module, width: int, tokens: Sequence[int]):
        super().__init__(name, module)
        self.tokens = list(tokens)
        self._add_param(f"prompt.{name}", torch.zeros(len(tokens), width))
        weight = module.weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            self.start = module(torch.tensor([self.tokens], device=weight.device))[0].float().cpu()
        self._slots: Tensor | None = None

    def measure(self, inputs: Tensor, output: Tensor) -> float:
        return typical(output)

    def values(self, *params: Tensor) -> Values:
        return (self.start + params[0].cpu() * self.unit,)

    def known(self, ids: Tensor) -> Tensor:
        """Ids that the vocabulary has; where others were is remembered for ``change``."""
        self._slots = ids if bool((ids < 0).any()) else None
        return ids if self._slots is None else ids.clamp(min=0)

    def change(self, inputs: Tensor, output: Tensor, values: Values) -> Tensor:
        if self._slots is None:
            return output
        row, position = (self._slots < 0).nonzero(as_tuple=True)
        slot = -1 - self._slots[row, position]
        output = output.clone()
        output[row, position] = values[0][row if len(values[0]) > 1 else 0, slot]
        return output


def _in_turn(who: Tensor, members: int) -> bool:
    """Whether rows are of the members 0, 1, ... over and over."""
    numbers = torch.arange(members, device=who.device).repeat(-(-len(who) // members))
    return len(who) % members == 0 and bool((who == numbers[: len(who)]).all())


def _in_place(output: Tensor) -> Tensor:
    """What may be overwritten: the output, but for a backward pass a copy."""
    return output.clone() if torch.is_grad_enabled() else output


def _between(values: Tensor, output: Tensor) -> Tensor:
    """[rows, width] so that it broadcasts over what lies between rows and width."""
    return values.view(len(values), *[1] * (output.dim() - 2), values.shape[-1])


def typical(vectors: Tensor) -> float:
    """Median over tokens of the root mean square over [tokens, width].

    The mean would not do: one token of a text, mostly the first, has activations a hundred times
    as large from some layer on (Sun et al. 2024, "Massive activations in large language models").
    """
    return float(vectors.float().square().mean(-1).sqrt().median())


# Finding them ---------------------------------------------------------------------------------


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's layers by name: the largest ModuleList of as many as its configuration says.

    Raises:
        UserError: there is none.
    """
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise UserError(
            f"the layers of {type(model).__name__} can't be found (a ModuleList of {count} "
            "modules): use --tune full"
        )
    name, modules = max(found, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return [(f"{name}.{number}", layer) for number, layer in enumerate(modules)]


def patterns(model: nn.Module, spec: str | None) -> list[str]:
    """``tune_layers`` as patterns of names: parts by commas, of which ``3``, ``10:`` or ``2:8``
    stand for layers by number; none stands for all.

    Raises:
        UserError: no layer has such a number.
    """
    found: list[str] = []
    for part in (spec or "").split(","):
        match = _SLICE.fullmatch(part.strip())
        if part and match is None:
            found.append(part.strip())
        elif match is not None:
            names = [name for name, _ in layers(model)]
            low, high, one = match.groups()
            span = slice(int(one), int(one) + 1) if one else slice(*_bounds(low, high))
            if not names[span]:
                raise UserError(f"tune_layers {part!r}: the model has layers 0 to {len(names) - 1}")
            found += [f"{name}.*" for name in names[span]]
    return found


def _bounds(low: str, high: str) -> tuple[int | None, int | None]:
    return (int(low) if low else None, int(high) if high else None)


def find_sites(
    model: nn.Module, kind: str, chosen: Sequence[str], rank: int, tokens: Sequence[int]
) -> list[Site]:
    """The sites of a kind whose module has a chosen name; with none chosen, the usual ones.

    Raises:
        UserError: there is none.
    """
    found = list(_candidates(model, kind, bool(chosen), rank, tokens))
    sites = [
        site
        for site in found
        if not chosen or any(_matches(site.name, pattern) for pattern in chosen)
    ]
    for pattern in chosen or ("*",):
        if not any(_matches(site.name, pattern) for site in sites):
            named = f"; such as {found[0].name}" if found else ""
            raise UserError(f"--tune_layers {pattern}: no module for {kind} there{named}")
    return sites


def _matches(name: str, pattern: str) -> bool:
    """Whether a module has such a name, or all its parts have."""
    whole = pattern.removesuffix(".*")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, whole)


def _candidates(
    model: nn.Module, kind: str, chosen: bool, rank: int, tokens: Sequence[int]
) -> Iterator[Site]:
    """All there are; unless some will be chosen, in every nth layer."""
    config: Any = model.config
    width = config.get_text_config().hidden_size
    if kind == "prompt":
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        name = next(name for name, module in model.named_modules() if module is embeddings)
        with torch.no_grad():
            device: Any = model.device
            width = embeddings(torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
        if max(tokens, default=0) >= (known := len(embeddings.weight)):
            raise UserError(f"--tune prompt: the model has no token {max(tokens)}, only {known}")
        yield Prompt(name, embeddings, width, tokens)
        return
    whole = layers(model)
    last = math.ceil(_STEERED * len(whole)) if kind == "steer" else len(whole)
    usual = whole[: last : max(1, len(whole) // _LAYERS)]
    for layer_name, layer in whole if chosen else usual:
        if kind == "steer":
            yield Steer(layer_name, layer, width)
            continue
        for part_name, module in layer.named_modules():
            name = f"{layer_name}.{part_name}"
            if kind == "scale" and (norm := _norm_width(module)):
                yield Scale(name, module, norm)
            elif kind == "lora" and (shape := linear_shape(module)):
                yield LoRA(name, module, *shape, rank)


def _norm_width(module: nn.Module) -> int:
    """Channels of a module that has nothing but one number for each, as norms do; else 0."""
    weight = getattr(module, "weight", None)
    alone = next(module.children(), None) is None
    return len(weight) if alone and isinstance(weight, Tensor) and weight.dim() == 1 else 0


def linear_shape(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, quantised ones and GPT-2's Conv1D included."""
    if type(module).__name__ == "Conv1D":
        inputs, outputs = module.weight.shape
        return int(inputs), int(outputs)
    inputs, outputs = (getattr(module, f"{side}_features", None) for side in ("in", "out"))
    return None if inputs is None or outputs is None else (int(inputs), int(outputs))
