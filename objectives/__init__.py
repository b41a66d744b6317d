"""Objectives: what is tuned on. One family a file; each imports ``zoobj.objective`` only."""

if __name__ != "zoobj.objectives":
    raise ImportError(
        "import zoobj.objectives: the folder objectives/ is part of the package zoobj"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoobj.objectives.accuracy import MCC as MCC
    from zoobj.objectives.accuracy import Accuracy as Accuracy
    from zoobj.objectives.accuracy import BalancedAccuracy as BalancedAccuracy
    from zoobj.objectives.combined import Sum as Sum
    from zoobj.objectives.command import Command as Command
    from zoobj.objectives.drop_f1 import DropF1 as DropF1
    from zoobj.objectives.edit_similarity import EditSimilarity as EditSimilarity
    from zoobj.objectives.evaluate_metric import Evaluate as Evaluate
    from zoobj.objectives.exact_match import ExactMatch as ExactMatch
    from zoobj.objectives.f1 import F1 as F1
    from zoobj.objectives.f1 import Precision as Precision
    from zoobj.objectives.f1 import Recall as Recall
    from zoobj.objectives.form import JSONSchema as JSONSchema
    from zoobj.objectives.form import JSONValid as JSONValid
    from zoobj.objectives.form import RegexMatch as RegexMatch
    from zoobj.objectives.http_endpoint import Http as Http
    from zoobj.objectives.length import Length as Length
    from zoobj.objectives.length import LengthLimit as LengthLimit
    from zoobj.objectives.length import Repetition as Repetition
    from zoobj.objectives.loglikelihood import LogLikelihood as LogLikelihood
    from zoobj.objectives.loglikelihood import Margin as Margin
    from zoobj.objectives.numeric import MathMatch as MathMatch
    from zoobj.objectives.numeric import NumericMatch as NumericMatch
    from zoobj.objectives.pass_at_1 import PassAt1 as PassAt1
    from zoobj.objectives.ranking import ROCAUC as ROCAUC
    from zoobj.objectives.ranking import AveragePrecision as AveragePrecision
    from zoobj.objectives.reward import Reward as Reward
    from zoobj.objectives.reward_model import RewardModel as RewardModel
    from zoobj.objectives.rouge import Rouge as Rouge
    from zoobj.objectives.sklearn_metric import Sklearn as Sklearn
    from zoobj.objectives.token_f1 import TokenF1 as TokenF1
    from zoobj.objectives.torch_metric import TorchMetric as TorchMetric
    from zoobj.objectives.translation import BLEU as BLEU
    from zoobj.objectives.translation import TER as TER
    from zoobj.objectives.translation import ChrF as ChrF
    from zoobj.objectives.translation import SentenceBLEU as SentenceBLEU
    from zoobj.objectives.translation import SentenceChrF as SentenceChrF
    from zoobj.objectives.translation import SentenceTER as SentenceTER

CATALOGUE = {
    "accuracy": "zoobj.objectives.accuracy:Accuracy",
    "average_precision": "zoobj.objectives.ranking:AveragePrecision",
    "balanced_accuracy": "zoobj.objectives.accuracy:BalancedAccuracy",
    "bleu": "zoobj.objectives.translation:BLEU",
    "chrf": "zoobj.objectives.translation:ChrF",
    "command": "zoobj.objectives.command:Command",
    "drop_f1": "zoobj.objectives.drop_f1:DropF1",
    "edit_similarity": "zoobj.objectives.edit_similarity:EditSimilarity",
    "evaluate": "zoobj.objectives.evaluate_metric:Evaluate",
    "exact_match": "zoobj.objectives.exact_match:ExactMatch",
    "f1": "zoobj.objectives.f1:F1",
    "http": "zoobj.objectives.http_endpoint:Http",
    "json_schema": "zoobj.objectives.form:JSONSchema",
    "json_valid": "zoobj.objectives.form:JSONValid",
    "length": "zoobj.objectives.length:Length",
    "length_limit": "zoobj.objectives.length:LengthLimit",
    "loglikelihood": "zoobj.objectives.loglikelihood:LogLikelihood",
    "margin": "zoobj.objectives.loglikelihood:Margin",
    "math_match": "zoobj.objectives.numeric:MathMatch",
    "mcc": "zoobj.objectives.accuracy:MCC",
    "numeric_match": "zoobj.objectives.numeric:NumericMatch",
    "pass_at_1": "zoobj.objectives.pass_at_1:PassAt1",
    "precision": "zoobj.objectives.f1:Precision",
    "recall": "zoobj.objectives.f1:Recall",
    "regex_match": "zoobj.objectives.form:RegexMatch",
    "repetition": "zoobj.objectives.length:Repetition",
    "reward": "zoobj.objectives.reward:Reward",
    "reward_model": "zoobj.objectives.reward_model:RewardModel",
    "roc_auc": "zoobj.objectives.ranking:ROCAUC",
    "rouge": "zoobj.objectives.rouge:Rouge",
    "sentence_bleu": "zoobj.objectives.translation:SentenceBLEU",
    "sentence_chrf": "zoobj.objectives.translation:SentenceChrF",
    "sentence_ter": "zoobj.objectives.translation:SentenceTER",
    "sklearn": "zoobj.objectives.sklearn_metric:Sklearn",
    "sum": "zoobj.objectives.combined:Sum",
    "ter": "zoobj.objectives.translation:TER",
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
