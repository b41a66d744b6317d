"""Tasks: where rows come from and how they are asked. Each imports ``zoobj.task`` only."""

if __name__ != "zoobj.tasks":
    raise ImportError("import zoobj.tasks: the folder tasks/ is part of the package zoobj")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoobj.tasks.question_mini import QuestionMini as QuestionMini
    from zoobj.tasks.squad import Squad as Squad
    from zoobj.tasks.squad_mini import SquadMini as SquadMini
    from zoobj.tasks.sst2 import SST2 as SST2
    from zoobj.tasks.yaml_task import YamlTask as YamlTask

CATALOGUE = {
    "question_mini": "zoobj.tasks.question_mini:QuestionMini",
    "squad": "zoobj.tasks.squad:Squad",
    "squad_mini": "zoobj.tasks.squad_mini:SquadMini",
    "sst2": "zoobj.tasks.sst2:SST2",
    "yaml": "zoobj.tasks.yaml_task:YamlTask",
}
_EXPORTS = {target.partition(":")[2]: target.partition(":")[0] for target in CATALOGUE.values()}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
