"""Overlay: offsets that live in the forward pass, row by row of a batch; weights are never written.

The other way to be at an offset (the walk writes it into the weights, one at a time). Here a few
tunables are added to what modules give: vectors after layers, factors on norms, low-rank products
beside linear layers, embeddings before the prompt. Since each row of a batch can have tunables of
its own, one forward pass scores a whole population (as EGGROLL does with low-rank noise; Sarkar et
al. 2025, arXiv 2511.16652):

    overlay = Overlay(model, "steer")
    walk = Walk(overlay.named_parameters())
    members = []
    for offset in offsets:                            # a member is the tunables at an offset
        walk.goto(offset)
        members.append(overlay.snapshot())
    walk.goto({})
    with overlay.rows(members, [0, 0, 1, 1]):         # the member of each row
        logits = model(input_ids=four_rows).logits

The tunables are ordinary parameters: whatever moves a model's weights (walk, log, replay,
``ZOSGD``) moves these. Outside of ``rows`` the model gives what it gives at them.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoobj.errors import UserError
from zoobj.sites import Prompt, Site, Values, find_sites, layers, patterns

Kind = Literal["steer", "scale", "lora", "prompt"]
Member = list[Tensor]
"""The tunables of one candidate, in the order of ``named_parameters``."""

FILE = "overlay.safetensors"
_FORM = ("kind", "tune_layers", "rank", "tokens", "units")
_IN_LIST = re.compile(r"\.\d+\..*\.\d+(\.|$)")  # a module of a list within a layer


class Overlay:
    """Tunables beside a model, and the hooks that add them.

    Args:
        model: of transformers; read, never written. Hooks stay on it until ``remove``.
        kind: "steer", "scale", "lora" or "prompt"; see sites.py.
        tune_layers: the modules that get some, as patterns of names or numbers of layers by commas
            (``10:``, ``*.mlp.*``); by default those of every nth layer, so that they would be about
            ten, and for "steer" of the first 6 in 10 only.
        rank: of "lora".
        tokens: for "prompt", ids of tokens that the new ones begin as.
        units: of the sites by name; by default ``measure`` finds them.

    Attributes:
        sites: the places.
        base: what ``models.load_model`` loads the model by.

    Raises:
        UserError: no module to change, or an overlay is on the model already.
    """

    def __init__(
        self,
        model: Any,
        kind: str,
        tune_layers: str | None = None,
        rank: int = 1,
        tokens: Sequence[int] = (),
        units: Mapping[str, float] | None = None,
    ):
        if kind not in get_args(Kind):
            raise UserError(f"tune {kind!r}: choose {', '.join(get_args(Kind))}")
        if overlay_of(model) is not None:
            raise UserError("the model has an overlay already: call its remove() first")
        self.model, self.kind = model, kind
        self.base = {"model_name_or_path": model.config.name_or_path}
        self._form = {"kind": kind, "tune_layers": tune_layers, "rank": rank}
        self.sites = find_sites(model, kind, patterns(model, tune_layers), rank, tokens)
        self.tokens = [token for site in self.sites for token in getattr(site, "tokens", ())]
        self._rows: list[Values] | None = None  # what each site adds, and to how many rows
        self._count = 1
        self._source: Tensor | None = None  # the prompt of each row, and how many prompts
        self._prompts = 0
        self._shape = (0, 0)  # rows and tokens of the layer under way
        self._split_at = self._first_split()
        self._handles = [handle for site in self.sites for handle in self._hook(site)]
        self._handles += [
            layer.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            for number, (_, layer) in enumerate(layers(model))
        ]
        self.set_units(units or {})
        model.zoobj_overlay = self

    # What is tuned ----------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The tunables, as a module's."""
        for site in self.sites:
            yield from site.params.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those without their names."""
        return (param for _, param in self.named_parameters())

    @property
    def placeholders(self) -> list[int]:
        """Token ids to put before every prompt: -1, -2, ... for "prompt", none for the base."""
        if self._rows == []:
            return []
        return [-1 - number for number in range(len(self.tokens))]

    @property
    def units(self) -> dict[str, float]:
        """Of the sites, by name."""
        return {site.name: site.unit for site in self.sites}

    def set_units(self, units: Mapping[str, float]) -> None:
        """Take units that were measured before."""
        for site in self.sites:
            site.unit = units.get(site.name, 1.0)

    @torch.no_grad()
    def measure(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Set the units: what is typical of each site's outputs, of the model without an overlay.

        Changes at K sites add up to one that is sqrt(K) times as large, so units are divided by
        that: the same eps suits few sites and many. They are rounded to three digits, to be the
        same wherever they are measured.

        Args:
            input_ids, attention_mask: [rows, tokens] of typical prompts, padded on the left.
        """
        ids, mask = input_ids, attention_mask
        found: dict[str, float] = {}

        def look(site: Site, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tokens = mask.bool().reshape(-1)
            flat = [_first(x).flatten(0, -2) for x in (args or (*kwargs.values(),), output)]
            inputs, outputs = (x[tokens] if len(x) == len(tokens) else x for x in flat)
            unit = site.measure(inputs, outputs) / math.sqrt(len(self.sites))
            found[site.name] = float(f"{unit:.3g}")

        handles = [
            site.module.register_forward_hook(partial(look, site), with_kwargs=True)
            for site in self.sites
        ]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if self.model.can_generate() and "position_ids" in signature(self.model.forward).parameters:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # as generate() has them
        try:
            with self.aside():
                self.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        for site in self.sites:
            site.unit = found[site.name]

    # Members and rows -------------------------------------------------------------------------

    def snapshot(self) -> Member:
        """A copy of the tunables as they are now."""
        return [param.detach().clone() for param in self.parameters()]

    @contextmanager
    def rows(
        self, members: Sequence[Member], index: Sequence[int], source: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Within the block, row i of a batch is under ``members[index[i]]``.

        Args:
            members: snapshots.
            index: for each row, its member.
            source: for each row, the row of the input that it comes from, where the model is given
                each prompt once: layers below the first site then run once a prompt.
        """
        stacked = (torch.stack(column) for column in zip(*members, strict=True))
        where, dtype = torch.tensor(index), self.model.dtype
        if not all(0 <= number < len(members) for number in index):
            raise IndexError(f"index {index}: there are {len(members)} members")
        rows: list[Values] = []
        for site in self.sites:
            values = site.values(*islice(stacked, len(site.params)))
            device = next(site.module.parameters()).device
            values = tuple(value.to(device, dtype) for value in values)
            rows.append(site.spread(values, where.to(device)))
        shared = source is not None and max(source) + 1 < len(source)
        outer = self._rows, self._count, self._source, self._prompts
        self._rows, self._count = rows, len(index)
        self._source = torch.tensor(source) if shared else None
        self._prompts = max(source or [-1]) + 1
        try:
            yield
        finally:
            self._rows, self._count, self._source, self._prompts = outer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block the model is the base."""
        outer = self._rows, self._source
        self._rows, self._source = [], None
        try:
            yield
        finally:
            self._rows, self._source = outer

    def remove(self) -> None:
        """Take the hooks off; the model is the base again."""
        for handle in self._handles:
            handle.remove()
        if overlay_of(self.model) is self:
            del self.model.zoobj_overlay

    # Files ------------------------------------------------------------------------------------

    @property
    def facts(self) -> dict[str, Any]:
        """All that it takes to put the tunables on the same base again; JSON values."""
        return {**self._form, "tokens": self.tokens, "units": self.units}

    def save(self, folder: Path) -> None:
        """Write the tunables to ``overlay.safetensors``."""
        facts = {**self.facts, "base": self.base}
        tensors = {name: param.detach().cpu() for name, param in self.named_parameters()}
        save_file(tensors, folder / FILE, metadata={"overlay": json.dumps(facts)})

    # Hooks ------------------------------------------------------------------------------------

    def _hook(self, site: Site) -> Iterator[Any]:
        number = self.sites.index(site)
        if isinstance(site, Prompt):
            yield site.module.register_forward_pre_hook(
                lambda module, args: (site.known(args[0]), *args[1:])
            )

        def change(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            values = self._values(number, _first(output))
            if values is None:
                return None
            inputs, y = _first(args or (*kwargs.values(),)), self._apart(_first(output))
            shape, rows = y.shape, self._count if self._rows else 1
            if rows > 1:
                y = self._in_rows(site, y, rows)
                inputs = self._in_rows(site, inputs, rows) if site.reads else inputs
            y = site.change(inputs, y, values).view(shape)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        yield site.module.register_forward_hook(change, with_kwargs=True)

    def _in_rows(self, site: Site, tensor: Tensor, rows: int) -> Tensor:
        """With a row for each of the batch: some models flatten rows and tokens for a while."""
        if tensor.dim() > 2 and len(tensor) == rows:
            return tensor
        # An expert of a list is given some of the tokens, or all in an order of its own.
        flat = tensor.dim() == 2 and not _IN_LIST.search(site.name)
        if flat and self._shape[0] == rows and len(tensor) in (rows, math.prod(self._shape)):
            return tensor.view(rows, -1, tensor.shape[-1])
        raise UserError(
            f"--tune {site.kind}: {site.name} does not keep the rows of a batch apart (as experts "
            "don't): leave it out by --tune_layers"
        )

    def _values(self, number: int, output: Tensor) -> Values | None:
        """What a site adds now: for each row, or at the tunables themselves; None: nothing."""
        if self._rows is not None:
            return self._rows[number] if self._rows else None
        site = self.sites[number]
        values = site.values(*(param.detach()[None] for param in site.params.values()))
        return tuple(value.to(output.device, output.dtype) for value in values)

    # Prompts that are run once for all members ------------------------------------------------

    @property
    def shared_layers(self) -> int:
        """How many layers, from the first, give the same for all members of a prompt."""
        return self._split_at

    def _first_split(self) -> int:
        """The first layer whose input differs between members."""
        # Some models give layers a bias with a row for each head, of which none is a prompt's.
        given = signature(layers(self.model)[0][1].forward).parameters
        if self.kind == "prompt" or {"alibi", "position_bias"} & set(given):
            return 0
        names = [name for name, _ in layers(self.model)]
        first = min(
            number
            for number, name in enumerate(names)
            if any(f"{site.name}.".startswith(f"{name}.") for site in self.sites)
        )
        return first + 1 if self.kind == "steer" else first

    def _apart(self, tensor: Tensor) -> Tensor:
        """One row for each member, where each prompt is there once."""
        if self._source is None or len(tensor) != self._prompts:
            return tensor
        return tensor[self._source.to(tensor.device)]

    def _enter(self, number: int, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        """What a layer is given, with one row for each member from the first split on."""
        states = _first(args or (kwargs["hidden_states"],))
        self._shape = (self._count if self._rows else len(states), states.shape[1])
        if self._source is None or number < self._split_at:
            return None

        def apart(value: Any, first: bool = False) -> Any:
            if isinstance(value, tuple):
                return tuple(map(apart, value))
            ours = isinstance(value, Tensor) and value.dim() > 1 and len(value) == self._prompts
            # A single row broadcasts, but for the hidden states.
            return self._apart(value) if ours and (first or self._prompts > 1) else value

        named = {key: apart(v, first=key == "hidden_states") for key, v in kwargs.items()}
        return (*(apart(v, first=not i) for i, v in enumerate(args)),), named


def overlay_of(model: Any) -> Overlay | None:
    """The overlay on a model, if there is one."""
    return getattr(model, "zoobj_overlay", None)


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``overlay.safetensors`` says of itself: kind, units, base and so on.

    Raises:
        UserError: it can't be read.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["overlay"])
        if lacking := [key for key in _FORM if key not in facts]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except Exception as error:  # safetensors has its own kinds
        raise UserError(f"overlay {str(folder)!r} can't be read: {error}") from error
    return facts


def load_overlay(model: Any, folder: str | Path) -> Overlay:
    """Put a saved overlay on its base: the model gives what the tuned one gave.

    Raises:
        UserError: the file is damaged, or of another model.
    """
    facts = read_facts(Path(folder))
    overlay = Overlay(model, **{key: facts[key] for key in _FORM})
    saved = load_file(Path(folder) / FILE)
    mine = {name: param.shape for name, param in overlay.named_parameters()}
    if {name: tensor.shape for name, tensor in saved.items()} != mine:
        overlay.remove()
        raise UserError(f"overlay {folder} does not fit {type(model).__name__}: another base?")
    with torch.no_grad():
        for name, param in overlay.named_parameters():
            param.copy_(saved[name])
    overlay.base = facts.get("base", overlay.base)
    return overlay


def _first(value: Any) -> Tensor:
    """Hidden states, of what a module is given or gives."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found
