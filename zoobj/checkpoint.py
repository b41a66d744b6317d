"""checkpoint-N/: a model in Hugging Face format, and what it takes to go on from it exactly.

The log alone brings back any step, so checkpoints are optional: they save the replay's time (two
directions a pass over the weights), and cost a copy of the weights on disk.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoobj.environment import checksum, checksum_in_order
from zoobj.estimators.first_order import FirstOrder
from zoobj.export import save_model
from zoobj.files import remove_folder, replace_folder, replace_text
from zoobj.log import ORIGIN, opened, sealed
from zoobj.overlay import FILE
from zoobj.walk import Walk

logger = logging.getLogger(__name__)

_FACTS, _REST, _OPTIMIZER = "zoobj.json", "walk.safetensors", "optimizer.safetensors"


def save(
    folder: Path,
    model: Any,
    tokenizer: Any,
    walk: Walk,
    log_hash: str,
    state: Any,
    optimizer: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint, which is there when it is complete.

    Args:
        folder: checkpoint-N of a run.
        model, tokenizer: to save.
        walk: over the model; goes to theta.
        log_hash: of the log at this step, which the checkpoint belongs to.
        state: transformers' TrainerState.
        optimizer: what a first-order method remembers.
    """
    kept = walk.state_dict()
    rest = {name: entry["rest"] for name, entry in kept.items() if entry["rest"] is not None}

    def fill(place: Path) -> None:
        save_model(model, tokenizer, place)
        state.save_to_json(str(place / "trainer_state.json"))
        if rest:
            save_file(rest, place / _REST)
        if optimizer:
            save_file(dict(optimizer), place / _OPTIMIZER)
        facts = {
            "log": log_hash,
            "checksum": checksum([*model.named_parameters(), *rest.items()]),
            "quanta": {name: entry["quantum"] for name, entry in kept.items()},
            "optimizer": checksum((optimizer or {}).items()),
        }
        replace_text(place / _FACTS, sealed(facts, ORIGIN, {}))

    replace_folder(folder, fill)


def load(
    folder: Path, model: Any, walk: Walk, log_hash: str, first: FirstOrder | None = None
) -> bool:
    """Take the weights of a checkpoint, if it is sound and belongs to this log.

    Args:
        folder: checkpoint-N of a run.
        model: its weights are overwritten in place, or left alone where the answer is False.
        walk: over the model.
        log_hash: of the log at step N.
        first: what moves the parameters that the walk does not, and remembers.
    """
    try:
        facts = opened((folder / _FACTS).read_bytes(), ORIGIN)
        if facts is None:
            raise ValueError(f"{_FACTS} is damaged")
        saved = _Saved(folder, model)
        rest = saved.rest()
        quanta = {name: float(facts["quanta"][name]) for name in walk.names}
        params = dict(model.named_parameters())
        ours = {id(param) for param in first.params} if first else set()
        tuned = [name for name, param in params.items() if name in quanta or id(param) in ours]
        remembered = saved.optimizer()
        sound = (
            facts["log"] == log_hash
            and facts["checksum"] == checksum_in_order(saved.all(params, tuned, rest))
            and facts.get("optimizer", checksum({}.items())) == checksum(remembered.items())
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s can't be used (%s: %s)", folder, type(error).__name__, error)
        return False
    if not sound:
        logger.warning("%s can't be used: it is damaged, or of another log", folder)
        return False
    with torch.no_grad():
        for name in tuned:
            params[name].copy_(saved.like(name, params[name]))
    walk.load_state_dict(
        {name: {"quantum": quanta[name], "rest": rest.get(name)} for name in walk.names}
    )
    if first is not None:
        first.load_state_dict(remembered)
    return True


class _Saved:
    """The tensors of a saved model, read from disk when they are asked for."""

    def __init__(self, folder: Path, model: Any):
        self.folder = folder
        self._found: dict[str, tuple[Any, str]] = {}  # of a parameter: the file, the name there
        for path in sorted((*folder.glob("model*.safetensors"), *folder.glob(FILE))):
            file = safe_open(path, framework="pt")
            self._found |= {name: (file, name) for name in file.keys()}  # noqa: SIM118
        for adapter in getattr(model, "peft_config", ()):
            self._find_adapter(model, adapter)

    def _find_adapter(self, model: Any, adapter: str) -> None:
        """peft saves an adapter's tensors by names of its own: which is which, memory tells."""
        from peft import get_peft_model_state_dict

        place = self.folder if adapter == "default" else self.folder / adapter
        file = safe_open(place / "adapter_model.safetensors", framework="pt")
        kept = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        names = {tensor.data_ptr(): name for name, tensor in kept.items()}
        for name, param in model.named_parameters():
            if param.data_ptr() in names:
                self._found[name] = (file, names[param.data_ptr()])

    def like(self, name: str, param: Tensor) -> Tensor:
        """The tensor of this name; KeyError or ValueError where none fits this parameter."""
        file, there = self._found[name]
        tensor = file.get_tensor(there)
        if tensor.shape != param.shape or tensor.dtype != param.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
        return tensor

    def all(
        self, params: Mapping[str, Tensor], tuned: Collection[str], rest: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """What the checksum is of, a tensor at a time: parameters and rests, by name."""
        for name in sorted(params):
            yield name, self.like(name, params[name]) if name in tuned else params[name]
            if name in rest:
                yield name, rest[name]

    def rest(self) -> dict[str, Tensor]:
        """What 16-bit weights don't show, by name."""
        return self._tensors(_REST)

    def optimizer(self) -> dict[str, Tensor]:
        """What a first-order method remembers, by name."""
        return self._tensors(_OPTIMIZER)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if not (self.folder / name).is_file():
            return {}
        with safe_open(self.folder / name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def checkpoints(run: Path, kind: str = "checkpoint") -> list[tuple[int, Path]]:
    """The checkpoints of a run folder and their steps, in order; or its snapshots."""
    found = ((re.fullmatch(rf"{kind}-(\d+)", path.name), path) for path in run.glob("*"))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def thin_out(run: Path, limit: int, best: int | None) -> None:
    """Remove the oldest checkpoints beyond a limit, but not the one of the best step."""
    here = checkpoints(run)
    surplus = len(here) - limit
    removable: Iterator[Path] = (path for step, path in here[:-1] if step != best)
    for path, _ in zip(removable, range(surplus), strict=False):
        remove_folder(path)
