"""zoobj: tune the weights of a language model directly on the score you report.

The public names load on first use, so that ``import zoobj`` stays far below half a second.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoobj.config import ZOConfig as ZOConfig
    from zoobj.errors import UserError as UserError
    from zoobj.objective import Batch as Batch
    from zoobj.objective import Objective as Objective
    from zoobj.objective import as_objective as as_objective
    from zoobj.task import Example as Example
    from zoobj.task import Task as Task
    from zoobj.trainer import ZOTrainer as ZOTrainer
    from zoobj.walk import Move as Move
    from zoobj.walk import Walk as Walk

__version__ = "0.1.0"

# In a checkout the plug-ins live beside the package (objectives/, tasks/); an installed zoobj has
# them inside. Only the checkout needs to be told where to look.
if not (Path(__file__).parent / "objectives").exists():
    __path__.append(str(Path(__file__).parents[1]))

_EXPORTS = {
    "Batch": "zoobj.objective",
    "Example": "zoobj.task",
    "Move": "zoobj.walk",
    "Objective": "zoobj.objective",
    "Task": "zoobj.task",
    "UserError": "zoobj.errors",
    "Walk": "zoobj.walk",
    "ZOConfig": "zoobj.config",
    "ZOTrainer": "zoobj.trainer",
    "as_objective": "zoobj.objective",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'zoobj' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
