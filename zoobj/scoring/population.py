"""Prompts under several members of an overlay, in one batch."""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from zoobj.overlay import Member, Overlay

T = TypeVar("T", bound=Hashable)

_WORTH_SHARING = 1 / 8  # of the layers; below it a pass over the prompt's last token costs more


@dataclass(frozen=True)
class Population:
    """Who is scored on which prompt.

    Attributes:
        overlay: what realises the members.
        members: the candidates.
        who: of each prompt, the number of its member.
    """

    overlay: Overlay
    members: Sequence[Member]
    who: Sequence[int]

    @property
    def shares(self) -> bool:
        """Whether enough layers give the same for all members to run them once a prompt."""
        count = self.overlay.model.config.get_text_config().num_hidden_layers
        return self.overlay.shared_layers >= _WORTH_SHARING * count


def among(
    population: Population | None, who: Sequence[int], source: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """The context to run rows in, each under a member; see ``Overlay.rows``."""
    if population is None:
        return nullcontext()
    return population.overlay.rows(population.members, who, source)


def once(rows: Sequence[T]) -> tuple[list[T], list[int]]:
    """What is there several times once, and for each row where it is.

    >>> once(["a", "a", "b", "a"])
    (['a', 'b'], [0, 0, 1, 0])
    """
    places: dict[T, int] = {}
    source = [places.setdefault(row, len(places)) for row in rows]
    return list(places), source


def spread(cache: Any, layers: int, source: Sequence[int]) -> None:
    """Give the first layers of a key-value cache a row for each row of the others."""
    import torch

    for layer in cache.layers[:layers]:
        where = torch.tensor(source, device=layer.keys.device)
        layer.keys, layer.values = layer.keys[where], layer.values[where]
