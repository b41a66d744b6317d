"""zoobj's own objectives, tasks and methods keep the contracts, which catch breaches."""

import functools
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from endpoint import serving

from zoobj import estimators, objectives
from zoobj.estimators import Estimator
from zoobj.estimators.adalomo import AdaLomo
from zoobj.estimators.fo_adam import FOAdam
from zoobj.estimators.fo_sgd import FOSGD
from zoobj.estimators.forward_grad import ForwardGrad
from zoobj.estimators.lomo import LOMO
from zoobj.estimators.one_point import OnePoint
from zoobj.estimators.population import Population
from zoobj.estimators.zo_adam import ZOAdam
from zoobj.estimators.zo_conservative import ZOConservative
from zoobj.estimators.zo_momentum import ZOMomentum
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.estimators.zo_sign import ZOSign
from zoobj.estimators.zo_svrg import ZOSVRG
from zoobj.objective import Batch, Objective, Score, as_objective
from zoobj.registry import find
from zoobj.task import Row, Task
from zoobj.tasks import SST2, SquadMini
from zoobj.testing import EstimatorContract, FirstOrderContract, ObjectiveContract, TaskContract
from zoobj.walk import Move, Offset

PROMPTS = ["a", "b", "c", "d"]
TEXTS = Batch(
    prompts=PROMPTS,
    references=[["old mill", "mill"], ["river"], ["two", "2"], ["by the wall"]],
    completions=["The old mill.", "a deep river", "", "wall"],
)
CHOICES = Batch(
    prompts=PROMPTS,
    references=[1, 0, 0, 2],
    predictions=[1, 1, 0, 0],
    completions=["good", "good", "bad", "bad"],
    label_scores=[[-2.0, -0.5, -3.0], [-1.5, -1.0, -2.0], [-0.25, -4.0, -2.0], [-1.0, -3.0, -1.5]],
    reference_logprob=[-0.5, -1.5, -0.25, -1.5],
)
SUMS = Batch(
    prompts=PROMPTS,
    references=[["2 + 1 = 3\n#### 3"], ["1,000", "10^3"], ["0.5"], ["no number"]],
    completions=["$3$", "so 999", "\\boxed{\\frac{1}{2}}", "4"],
)
FORMS = Batch(
    prompts=PROMPTS,
    references=[[]] * 4,
    completions=['{"age": 3}', '{"age": "3"}', "by the old mill by the old mill", ""],
    rows={"schema": [{"required": ["age"]}, '{"type": "array"}', True, False]},
)

# Objectives -----------------------------------------------------------------------------------


class TestAccuracy(ObjectiveContract):
    objective, batch = "accuracy", CHOICES


class TestTopTwoAccuracy(ObjectiveContract):
    objective, batch = "accuracy:top=2", CHOICES


class TestBalancedAccuracy(ObjectiveContract):
    objective, batch = "balanced_accuracy", CHOICES


class TestMCC(ObjectiveContract):
    objective, batch = "mcc", CHOICES


class TestPrecision(ObjectiveContract):
    objective, batch = "precision", CHOICES


class TestRecall(ObjectiveContract):
    objective, batch = "recall:average=weighted", CHOICES


class TestROCAUC(ObjectiveContract):
    objective, batch = "roc_auc", CHOICES


class TestAveragePrecision(ObjectiveContract):
    objective, batch = "average_precision", CHOICES


class TestMargin(ObjectiveContract):
    objective, batch = "margin", CHOICES


class TestF1(ObjectiveContract):
    objective, batch = "f1", CHOICES


class TestBinaryF1(ObjectiveContract):
    objective, batch = "f1:average=binary", CHOICES


class TestExactMatch(ObjectiveContract):
    objective, batch = "exact_match", TEXTS


class TestTokenF1(ObjectiveContract):
    objective, batch = "token_f1", TEXTS


class TestTokenF1OfSQuAD2(ObjectiveContract):
    objective, batch = "token_f1:version=2.0,no_answer=by the wall", TEXTS


class TestDropF1(ObjectiveContract):
    objective, batch = "drop_f1", TEXTS


class TestRouge(ObjectiveContract):
    objective, batch = "rouge", TEXTS


class TestRougeLsum(ObjectiveContract):
    objective, batch = "rouge:kind=rougeLsum,stemmer=true", TEXTS


class TestBLEU(ObjectiveContract):
    objective, batch = "bleu:tokenize=char", TEXTS


class TestSentenceBLEU(ObjectiveContract):
    objective, batch = "sentence_bleu", TEXTS


class TestChrF(ObjectiveContract):
    objective, batch = "chrf", TEXTS


class TestSentenceChrF(ObjectiveContract):
    objective, batch = "sentence_chrf:word_order=2", TEXTS


class TestTER(ObjectiveContract):
    objective, batch = "ter", TEXTS


class TestSentenceTER(ObjectiveContract):
    objective, batch = "sentence_ter", TEXTS


class TestEditSimilarity(ObjectiveContract):
    objective, batch = "edit_similarity", TEXTS


class TestNumericMatch(ObjectiveContract):
    objective, batch = "numeric_match", SUMS


class TestMathMatch(ObjectiveContract):
    objective, batch = "math_match", SUMS


class TestRegexMatch(ObjectiveContract):
    objective, batch = r"regex_match:.*\w{5}.*", FORMS


class TestJSONValid(ObjectiveContract):
    objective, batch = "json_valid", FORMS


class TestJSONSchema(ObjectiveContract):
    objective = objectives.JSONSchema({"properties": {"age": {"type": "integer"}}})
    batch = FORMS


class TestJSONSchemaOfEachRow(ObjectiveContract):
    objective, batch = "json_schema:column=schema", FORMS


class TestLength(ObjectiveContract):
    objective, batch = "length", FORMS


class TestLengthLimit(ObjectiveContract):
    objective, batch = "length_limit:max=4,min=1", FORMS


class TestRepetition(ObjectiveContract):
    objective, batch = "repetition", FORMS


class TestLogLikelihood(ObjectiveContract):
    objective, batch = "loglikelihood", CHOICES


def brevity(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [-float(len(text)) if text else None for text in completions]


class TestHttp(ObjectiveContract):
    objective, batch = "http:http://127.0.0.1:1", TEXTS  # until there is a server

    @pytest.fixture(autouse=True)
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with serving() as endpoint:
            monkeypatch.setattr(type(self), "objective", f"http:{endpoint.url}")
            yield


LENGTHS = shlex.join([sys.executable, str(Path(__file__).with_name("lengths.py"))])


class TestCommand(ObjectiveContract):
    objective, batch = f"command:{LENGTHS}", TEXTS


class TestPassAt1(ObjectiveContract):
    objective = "pass_at_1"
    batch = Batch(
        prompts=PROMPTS[:3],
        references=[["1"]] * 3,
        rows={"tests": ["assert f(2) == 4", ["assert f(2) == 4"], ""]},
        completions=["def f(x): return x * x", "def f(x): return x", "f = 1"],
    )


class TestReward(ObjectiveContract):
    objective, batch = brevity, TEXTS


def share(predictions: list[int], references: list[int]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


class TestSetLevelReward(ObjectiveContract):
    objective, batch = objectives.Reward(share), CHOICES


class TestChatReward(ObjectiveContract):
    objective, batch = objectives.Reward(brevity, conversational=True), TEXTS


class Share:
    """A metric in evaluate's shape."""

    def compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"share": share(predictions, references)}


class TestEvaluate(ObjectiveContract):
    objective, batch = Share(), CHOICES


class TestSklearn(ObjectiveContract):
    objective, batch = "sklearn:f1_score:average=macro", CHOICES


class TestSklearnScorer(ObjectiveContract):
    objective, batch = "sklearn:neg_log_loss", CHOICES


class TestTorchMetric(ObjectiveContract):
    objective = "torchmetrics:classification.MulticlassF1Score:num_classes=3"
    batch = CHOICES


class TestTorchMetricOfTexts(ObjectiveContract):
    objective, batch = "torchmetrics:text.WordErrorRate", TEXTS


class TestSum(ObjectiveContract):
    objective = objectives.TokenF1() + 0.5 * objectives.ExactMatch() - 0.01 * as_objective(brevity)
    batch = TEXTS


class TestSetLevelSum(ObjectiveContract):
    objective, batch = objectives.F1() + 0.5 * objectives.Accuracy(), CHOICES


class TestSumWithLimit(ObjectiveContract):
    objective = objectives.Sum(["token_f1", {"name": "exact_match", "at_most": 0.25}])
    batch = TEXTS


class TestLexicographicSum(ObjectiveContract):
    objective = objectives.Sum(
        ["token_f1", {"name": "exact_match", "at_most": 0.25}], lexicographic=True
    )
    batch = TEXTS


def classifier() -> Any:
    """A sequence classifier of random weights, and a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("#abcdefghijklmnopqrstuvwxyz")}
    backend = Tokenizer(models.WordLevel(letters, unk_token="#"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="#")
    model = tiny.made("bert classifier", dtype=torch.float64)
    return objectives.RewardModel(model, label=0, tokenizer=tokenizer, batch_size=2)


class TestRewardModel(ObjectiveContract):
    objective, batch = classifier(), TEXTS


# Tasks ----------------------------------------------------------------------------------------


class TestSquadMini(TaskContract):
    task = SquadMini()


class TestSquadMiniExactMatch(TaskContract):
    task, objective = SquadMini(num_fewshot=2), "exact_match"


class TestSST2(TaskContract):
    task = SST2(train_file=[{"sentence": f"film {i}", "label": i % 2} for i in range(100)])


class TestSST2LogLikelihood(TaskContract):
    task, objective = TestSST2.task, "loglikelihood"


# Methods --------------------------------------------------------------------------------------


class TestZOSGD(EstimatorContract):
    make = ZOSGD


class TestZOSGDSeveralDirections(EstimatorContract):
    make = functools.partial(ZOSGD, directions=3)


class TestPopulation(EstimatorContract):
    make = functools.partial(Population, directions=4)


class TestPopulationZScore(EstimatorContract):
    make = functools.partial(Population, directions=4, shaping="zscore")


class TestPopulationSign(EstimatorContract):
    make = functools.partial(Population, directions=4, shaping="sign")


class TestPopulationOfOnePair(EstimatorContract):
    make = Population


class TestZOSGDNotNormalized(EstimatorContract):
    make = functools.partial(ZOSGD, normalize=False)


class TestZOSGDOneSided(EstimatorContract):
    make = functools.partial(ZOSGD, directions=3, one_sided=True)


class TestZOSign(EstimatorContract):
    make = ZOSign


class TestZOMomentum(EstimatorContract):
    make, steps = ZOMomentum, 150


class TestZOMomentumSeveralDirections(EstimatorContract):
    make, steps = functools.partial(ZOMomentum, directions=2, normalize=False), 150
    learning_rate = 2e-3  # each direction moves ten times as far in all


class TestZOAdam(EstimatorContract):
    make, steps = ZOAdam, 150


class TestZOAdamOneSided(EstimatorContract):
    make, steps = functools.partial(ZOAdam, directions=2, one_sided=True), 150


class TestZOConservative(EstimatorContract):
    make = ZOConservative


class TestZOConservativeSeveralDirections(EstimatorContract):
    make = functools.partial(ZOConservative, directions=3, normalize=False)


class TestZOSVRG(EstimatorContract):
    make = ZOSVRG
    learning_rate = 5e-3  # an anchor's directions are walked four times


class TestZOSVRGSeveralDirections(EstimatorContract):
    make = functools.partial(ZOSVRG, directions=2, svrg_interval=3, normalize=False)


class TestOnePoint(EstimatorContract):
    """A difference holds the last step's direction as well: small steps, and many."""

    make, eps, learning_rate, steps = OnePoint, 0.1, 1e-2, 1000


class TestOnePointSeveralDirections(EstimatorContract):
    make = functools.partial(OnePoint, directions=2, normalize=False)
    eps, learning_rate, steps = 0.1, 1e-2, 1000


class TestForwardGrad(EstimatorContract):
    make = ForwardGrad


class TestForwardGradSeveralDirections(EstimatorContract):
    make = functools.partial(ForwardGrad, directions=3, normalize=False)


class TestFOSGD(FirstOrderContract):
    make = FOSGD


class TestFOAdam(FirstOrderContract):
    make = FOAdam


class TestLOMO(FirstOrderContract):
    make = LOMO


class TestLOMOClipped(FirstOrderContract):
    make = functools.partial(LOMO, max_grad_norm=1.0, max_grad_value=0.5)


class TestAdaLomo(FirstOrderContract):
    make, learning_rate = AdaLomo, 0.1


def kept(contract: type) -> set[Any]:
    """What the tests above are about."""
    attribute = "objective" if contract is ObjectiveContract else "make"
    return {vars(kind)[attribute] for kind in contract.__subclasses__() if attribute in vars(kind)}


def test_every_registered_objective_is_above() -> None:
    kinds = {type(as_objective(objective)) for objective in kept(ObjectiveContract)}
    assert {find("objective", name).thing for name in objectives.CATALOGUE} <= kinds


def test_every_registered_method_is_above() -> None:
    made = kept(EstimatorContract) | kept(FirstOrderContract)
    names = {getattr(make, "name", None) for make in made}
    assert set(estimators.CATALOGUE) <= names


# Breaches -------------------------------------------------------------------------------------


def breaches(contract: type, **attributes: Any) -> set[str]:
    """The tests that fail for these."""
    made = type("Broken", (contract,), attributes)()
    failed = set()
    for name in dir(made):
        if name.startswith("test_"):
            try:
                getattr(made, name)()
            except Exception:
                failed.add(name)
    return failed


class Lengths(Objective):
    name, bounds = "lengths", (0.0, None)

    def score(self, batch: Batch) -> list[Score]:
        return [float(len(text)) for text in batch.completions or []]


class Boastful(Lengths):
    bounds = (0.0, 1.0)


class Curved(Lengths):
    """Scores depend on who else is in the batch."""

    def score(self, batch: Batch) -> list[Score]:
        scores = [float(len(text)) for text in batch.completions or []]
        return [score / max(scores) for score in scores]


class First(Lengths):
    """Scores depend on the order."""

    def score(self, batch: Batch) -> list[Score]:
        return [float(i) for i in range(len(batch))]


class Short(Lengths):
    def score(self, batch: Batch) -> list[Score]:
        return [1.0]


class Median(Lengths):
    """A value that is no mean, though it is called decomposable."""

    def value(self, batch: Batch, scores: Any = None) -> float:
        known = sorted(self.score(batch) if scores is None else scores)
        return known[len(known) // 2]


class Zero(Lengths):
    """None is taken for 0."""

    def value(self, batch: Batch, scores: Any = None) -> float:
        known = self.score(batch) if scores is None else scores
        return math.fsum(score or 0.0 for score in known) / len(known)


class Meddling(Lengths):
    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        batch.completions[:] = [text.strip(".") for text in batch.completions]
        return super().score(batch)


class Wordy(Lengths):
    def score(self, batch: Batch) -> list[Score]:
        return ["good"] * len(batch)  # type: ignore[list-item]


class Counting(Lengths):
    """Remembers how often it was asked."""

    calls = 0

    def score(self, batch: Batch) -> list[Score]:
        self.calls += 1
        return [float(self.calls)] * len(batch)


@pytest.mark.parametrize(
    ("objective", "caught"),
    [
        (Lengths(), None),
        (Boastful(), "test_within_bounds"),
        (Curved(), "test_examples_do_not_see_each_other"),
        (First(), "test_examples_do_not_see_each_other"),
        (Short(), "test_one_score_each"),
        (Median(), "test_value_is_the_mean_of_scores"),
        (Zero(), "test_unscorable_is_no_number"),
        (Meddling(), "test_batch_is_left_as_it_was"),
        (Wordy(), "test_scores_are_numbers_or_none"),
        (Counting(), "test_repeatable"),
    ],
)
def test_breaches_by_an_objective(objective: Objective, caught: str | None) -> None:
    # A batch of each test's own, since one of them spoils it.
    failed = breaches(ObjectiveContract, objective=objective, batch=TEXTS.select(range(4)))
    assert caught in failed if caught else not failed


def test_a_batch_that_tests_nothing() -> None:
    bare = Batch(prompts=["a"], references=[1])
    assert "test_batch_fits" in breaches(ObjectiveContract, objective="accuracy", batch=bare)


class Echo(Task):
    name = "echo"

    def prompt(self, row: Row) -> str:
        return f"{row['text']}:"

    def reference(self, row: Row) -> list[str]:
        return [row["text"]]


class Spaced(Echo):
    def prompt(self, row: Row) -> str:
        return f"{row['text']}: "


class Letters(Echo):
    stop = "\n\n"


class Unsplit(Echo):
    def rows(self, split: str) -> list[Row]:
        return self._source("train")


class Ungold(Echo):
    def gold(self, row: Row) -> str:
        return "something else"


class Moody(Echo):
    calls = 0

    def prompt(self, row: Row) -> str:
        self.calls += 1
        return f"{row['text']} {self.calls}:"


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Echo, None),
        (Spaced, "test_prompts_are_texts_that_an_answer_can_follow"),
        (Letters, "test_attributes"),
        (Unsplit, "test_splits_are_disjoint_by_group"),
        (Ungold, "test_gold_has_full_marks"),
        (Moody, "test_splits_are_the_same_each_time"),
    ],
)
def test_breaches_by_a_task(kind: type[Task], caught: str | None) -> None:
    task = kind(train_file=[{"text": f"word {i}"} for i in range(60)])
    failed = breaches(TaskContract, task=task)
    assert caught in failed if caught else not failed


class Uphill(ZOSGD):
    def move(self, losses: Any) -> Move:
        return [(seed, -coefficient) for seed, coefficient in super().move(losses)]


class NaNMoves(ZOSGD):
    def move(self, losses: Any) -> Move:
        return [(self.direction, (losses[0] - losses[1]) / self.eps)]


class Forgetful(ZOSGD):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class OneSided(ZOSGD):
    def offsets(self, step: int) -> list[Offset]:
        return super().offsets(step)[:1]


class Overlapping(ZOSGD):
    def groups(self, count: int) -> Any:
        return [range(count), range(count)]


class SameDirection(ZOSGD):
    def offsets(self, step: int) -> list[Offset]:
        return super().offsets(0)


class Random(ZOSGD):
    """Directions depend on what was asked before, in this process."""

    asked = 0

    def offsets(self, step: int) -> list[Offset]:
        Random.asked += 1
        return super().offsets(Random.asked)


class Idle(ZOSGD):
    def move(self, losses: Any) -> Move:
        return []


@pytest.mark.parametrize(
    ("make", "caught"),
    [
        (ZOSGD, None),
        (Uphill, "test_minimises_a_quadratic"),
        (NaNMoves, "test_nothing_known_is_no_move"),
        (NaNMoves, "test_half_a_pair_is_no_number"),
        (Forgetful, "test_state_is_json_and_takes_up_where_it_left"),
        (OneSided, "test_as_many_offsets_as_evaluations"),
        (Overlapping, "test_each_offset_is_in_one_group"),
        (SameDirection, "test_a_function_of_seed_and_step"),
        (Random, "test_a_function_of_seed_and_step"),
        (Idle, "test_some_move"),
    ],
)
def test_breaches_by_a_method(make: type[Estimator], caught: str | None) -> None:
    failed = breaches(EstimatorContract, make=make)
    assert caught in failed if caught else not failed
