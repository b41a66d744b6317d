"""Objectives whose library is an extra of zoobj's."""

from importlib import import_module
from typing import ClassVar

from zoobj.errors import UserError
from zoobj.objective import Objective


class NeedsExtra(Objective):
    """Base of objectives that need more than zoobj installs.

    Attributes:
        package: what they import.
        extra: what installs it.

    Raises:
        UserError: when one is made and the package is not there.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self) -> None:
        try:
            import_module(self.package)
        except ImportError as error:
            raise UserError(
                f"{self.name} needs the package {self.package} ({error}): "
                f"pip install 'zoobj[{self.extra}]'"
            ) from None
