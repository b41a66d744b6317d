"""Objectives: what is tuned on. One family a file; each imports ``zoobj.objective`` only."""

if __name__ != "zoobj.objectives":
    raise ImportError(
        "import zoobj.objectives: the folder objectives/ is part of the package zoobj"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoobj.objectives.accuracy import Accuracy as Accuracy
    from zoobj.objectives.command import Command as Command
    from zoobj.objectives.exact_match import ExactMatch as ExactMatch
    from zoobj.objectives.f1 import F1 as F1
    from zoobj.objectives.http_endpoint import Http as Http
    from zoobj.objectives.loglikelihood import LogLikelihood as LogLikelihood
    from zoobj.objectives.pass_at_1 import PassAt1 as PassAt1
    from zoobj.objectives.reward import Reward as Reward
    from zoobj.objectives.token_f1 import TokenF1 as TokenF1

CATALOGUE = {
    "accuracy": "zoobj.objectives.accuracy:Accuracy",
    "command": "zoobj.objectives.command:Command",
    "exact_match": "zoobj.objectives.exact_match:ExactMatch",
    "f1": "zoobj.objectives.f1:F1",
    "http": "zoobj.objectives.http_endpoint:Http",
    "loglikelihood": "zoobj.objectives.loglikelihood:LogLikelihood",
    "pass_at_1": "zoobj.objectives.pass_at_1:PassAt1",
    "reward": "zoobj.objectives.reward:Reward",
    "token_f1": "zoobj.objectives.token_f1:TokenF1",
}
_EXPORTS = {target.partition(":")[2]: target.partition(":")[0] for target in CATALOGUE.values()}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
