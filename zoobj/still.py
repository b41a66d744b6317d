"""A walk over nothing, for runs in which gradients alone move the weights."""

from collections.abc import Iterable

from zoobj.passes import Decay
from zoobj.walk import Offset, Walk


class Still(Walk):
    """Stands at theta, and has no directions to go along: 16-bit weights need no companion.

    >>> Still().goto({})
    >>> Still().state_dict()
    {}
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._grids = []

    def goto(self, offset: Offset) -> None:
        """Nothing; there is no other place."""
        assert not offset

    def commit(self, move: Iterable[tuple[int, float]], decay: Decay | None = None) -> None:
        """Nothing; there are no moves."""
        assert not list(move)
        assert decay is None
