"""Objectives: what is tuned on. One family a file; each imports ``zoobj.objective`` only."""

if __name__ != "zoobj.objectives":
    raise ImportError(
        "import zoobj.objectives: the folder objectives/ is part of the package zoobj"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoobj.objectives.accuracy import Accuracy as Accuracy
    from zoobj.objectives.combined import Sum as Sum
    from zoobj.objectives.evaluate_metric import Evaluate as Evaluate
    from zoobj.objectives.exact_match import ExactMatch as ExactMatch
    from zoobj.objectives.f1 import F1 as F1
    from zoobj.objectives.loglikelihood import LogLikelihood as LogLikelihood
    from zoobj.objectives.reward import Reward as Reward
    from zoobj.objectives.reward_model import RewardModel as RewardModel
    from zoobj.objectives.sklearn_metric import Sklearn as Sklearn
    from zoobj.objectives.token_f1 import TokenF1 as TokenF1
    from zoobj.objectives.torch_metric import TorchMetric as TorchMetric

CATALOGUE = {
    "accuracy": "zoobj.objectives.accuracy:Accuracy",
    "evaluate": "zoobj.objectives.evaluate_metric:Evaluate",
    "exact_match": "zoobj.objectives.exact_match:ExactMatch",
    "f1": "zoobj.objectives.f1:F1",
    "loglikelihood": "zoobj.objectives.loglikelihood:LogLikelihood",
    "reward": "zoobj.objectives.reward:Reward",
    "reward_model": "zoobj.objectives.reward_model:RewardModel",
    "sklearn": "zoobj.objectives.sklearn_metric:Sklearn",
    "sum": "zoobj.objectives.combined:Sum",
    "token_f1": "zoobj.objectives.token_f1:TokenF1",
    "torchmetrics": "zoobj.objectives.torch_metric:TorchMetric",
}
_EXPORTS = {target.partition(":")[2]: target.partition(":")[0] for target in CATALOGUE.values()}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
