"""Metrics of other libraries as objectives, against those libraries; reward models, functions."""

import asyncio
import copy
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics
from tiny import made as tiny_model

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, ScoreError, as_objective
from zoobj.objectives import Evaluate, Reward, RewardModel, Sklearn
from zoobj.objectives.squad_text import normalize
from zoobj.objectives.token_f1 import token_f1
from zoobj.outcome import judge
from zoobj.registry import build

torchmetrics = pytest.importorskip("torchmetrics")


def choices(gold: Sequence[int], scores: np.ndarray) -> Batch:
    """Label scores with what they predict."""
    return Batch(
        prompts=[""] * len(gold),
        references=list(gold),
        predictions=scores.argmax(1).tolist(),
        completions=[f"word {label}" for label in scores.argmax(1)],
        label_scores=scores.tolist(),
    )


def texts(completions: Sequence[str], references: Sequence[Sequence[str]]) -> Batch:
    return Batch(
        prompts=["?"] * len(completions),
        references=[list(answers) for answers in references],
        completions=list(completions),
    )


def batches(classes: int, size: int = 1) -> Any:
    """Log-probabilities that need not sum to 1, as those of label words."""
    line = st.lists(st.floats(-20, 0), min_size=classes, max_size=classes)
    example = st.tuples(st.integers(0, classes - 1), line)
    return st.lists(example, min_size=size, max_size=12).map(
        lambda made: choices([gold for gold, _ in made], np.array([line for _, line in made]))
    )


words = st.sampled_from("the old mill by river a wall caf\u00e9 \u4f60\u597d it's 1,000".split())
lines = st.lists(words, max_size=6).map(" ".join)
answered = st.lists(
    st.tuples(lines, st.lists(lines, min_size=1, max_size=3)), min_size=1, max_size=6
)
spoken = answered.map(lambda made: texts([c for c, _ in made], [r for _, r in made]))

anything = st.text(max_size=10) | lines

# scikit-learn ---------------------------------------------------------------------------------

ON_PREDICTIONS: dict[str, tuple[Callable[..., float], bool]] = {
    "balanced_accuracy_score": (metrics.balanced_accuracy_score, True),
    "balanced_accuracy": (metrics.balanced_accuracy_score, True),
    "f1_score:average=macro": (functools.partial(metrics.f1_score, average="macro"), True),
    "f1_micro": (functools.partial(metrics.f1_score, average="micro"), True),
    "matthews_corrcoef": (metrics.matthews_corrcoef, True),
    "cohen_kappa_score:weights=quadratic": (
        functools.partial(metrics.cohen_kappa_score, weights="quadratic"),
        True,
    ),
    "mutual_info_score": (metrics.mutual_info_score, True),
    "zero_one_loss": (metrics.zero_one_loss, False),
    "mean_absolute_error": (metrics.mean_absolute_error, False),
    "neg_mean_absolute_error": (lambda *a: -metrics.mean_absolute_error(*a), True),
    "fbeta_score:beta=2,average=weighted": (
        functools.partial(metrics.fbeta_score, beta=2, average="weighted"),
        True,
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spec", ON_PREDICTIONS)
@given(batches(3))
def test_sklearn_on_predictions(spec: str, batch: Batch) -> None:
    function, higher = ON_PREDICTIONS[spec]
    objective = as_objective(f"sklearn:{spec}")
    expected = function(batch.references, batch.predictions)
    assert objective.value(batch) == pytest.approx(expected, nan_ok=True)
    assert (objective.higher_is_better, objective.decomposable) == (higher, False)
    assert objective.needs == {"predictions"}
    assert objective.bounds == (None, None)


@pytest.mark.parametrize("spec", ["log_loss", "neg_log_loss"])
@pytest.mark.parametrize("classes", [2, 3])
@given(st.data())
def test_sklearn_log_loss_of_any_classes(spec: str, classes: int, data: Any) -> None:
    batch = data.draw(batches(classes))
    objective = as_objective(f"sklearn:{spec}")
    shares = softmax(np.array(batch.label_scores), axis=1)
    expected = metrics.log_loss(batch.references, shares, labels=range(classes))
    assert objective.value(batch) == pytest.approx(-expected if spec[0] == "n" else expected)
    assert objective.higher_is_better == (spec == "neg_log_loss")
    assert objective.needs == {"label_scores"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("spec", ["roc_auc", "roc_auc_score", "average_precision_score"])
@given(batches(2))
def test_sklearn_ranking_of_two_choices(spec: str, batch: Batch) -> None:
    function = metrics.average_precision_score if spec[0] == "a" else metrics.roc_auc_score
    second = softmax(np.array(batch.label_scores), axis=1)[:, 1]
    outcome = judge(as_objective(f"sklearn:{spec}"), batch)
    try:
        expected = function(batch.references, second)
    except ValueError:
        expected = math.nan
    assert outcome.value == pytest.approx(expected, nan_ok=True)
    if len(set(batch.references)) == 2:
        assert not math.isnan(outcome.value)


def test_sklearn_top_k_of_three() -> None:
    batch = choices([0, 1, 2], np.array([[-2.0, -1.0, -3.0], [-1.0, -3.0, -2.0], [-1, -2, -0.5]]))
    assert Sklearn("top_k_accuracy_score", k=2).value(batch) == pytest.approx(2 / 3)


def test_sklearn_scorer_objects() -> None:
    scorer = metrics.make_scorer(metrics.fbeta_score, beta=0.5, average="macro")
    objective = as_objective(scorer)
    batch = choices([0, 1, 1], np.array([[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0]]))
    expected = metrics.fbeta_score([0, 1, 1], [0, 0, 1], beta=0.5, average="macro")
    assert objective.value(batch) == pytest.approx(expected)
    assert objective.name == "fbeta_score"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("f1_scor", "no metric or scorer 'f1_scor'; did you mean 'f1_score'"),
        ("f1_score:avarage=macro", "takes no 'avarage'; did you mean 'average'"),
        ("roc_curve_display", "no metric or scorer"),
    ],
)
def test_sklearn_specs_that_fit_nothing(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        as_objective(f"sklearn:{spec}")


def test_sklearn_failures_are_told() -> None:
    batch = choices([0, 1, 2], -np.eye(3))
    outcome = judge(Sklearn("f1_score"), batch)  # average=binary
    assert "sklearn:f1_score raised ValueError: Target is multiclass" in (outcome.error or "")
    outcome = judge(Sklearn("confusion_matrix"), batch)
    assert "one number is needed" in (outcome.error or "")
    ragged = Batch(prompts=["", ""], references=[0, 1], label_scores=[[-1.0], [-1.0, -2.0]])
    with pytest.raises(ScoreError, match="different numbers of choices"):
        Sklearn("neg_log_loss").value(ragged)


# torchmetrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "function"),
    [
        ("classification.MulticlassF1Score:num_classes=3", "f1"),
        ("MatthewsCorrCoef:task=multiclass,num_classes=3", "matthews"),
        ("classification.MulticlassCalibrationError:num_classes=3", "calibration"),
        ("classification.MulticlassAccuracy:num_classes=3,top_k=2,average=micro", "top_k"),
    ],
)
@given(batches(3))
def test_torchmetrics_of_choices(spec: str, function: str, batch: Batch) -> None:
    shares = torch.tensor(softmax(np.array(batch.label_scores), axis=1))
    ids, gold = torch.tensor(batch.predictions), torch.tensor(batch.references)
    functional = torchmetrics.functional.classification
    reference: dict[str, Callable[[], Any]] = {
        "f1": lambda: functional.multiclass_f1_score(ids, gold, 3),
        "matthews": lambda: functional.multiclass_matthews_corrcoef(ids, gold, 3),
        "calibration": lambda: functional.multiclass_calibration_error(shares, gold, 3),
        "top_k": lambda: functional.multiclass_accuracy(shares, gold, 3, top_k=2, average="micro"),
    }
    expected = reference[function]()
    objective = as_objective(f"torchmetrics:{spec}")
    assert objective.value(batch) == pytest.approx(float(expected), nan_ok=True)
    assert objective.value(batch) == objective.value(batch)  # starts afresh
    assert objective.higher_is_better == (function != "calibration")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(batches(2, size=2))
def test_torchmetrics_curves_take_probabilities(batch: Batch) -> None:
    second = torch.tensor(softmax(np.array(batch.label_scores), axis=1)[:, 1])
    expected = torchmetrics.functional.classification.binary_auroc(
        second, torch.tensor(batch.references)
    )
    objective = as_objective(torchmetrics.AUROC(task="binary"))
    assert objective.needs == {"label_scores"}
    assert objective.value(batch) == pytest.approx(float(expected))


@given(spoken)
def test_torchmetrics_of_texts(batch: Batch) -> None:
    first = [answers[0] for answers in batch.references]
    functional = torchmetrics.functional.text
    bleu = functional.bleu_score(batch.completions, batch.references)
    assert as_objective("torchmetrics:text.BLEUScore").value(batch) == pytest.approx(float(bleu))
    ter = as_objective("torchmetrics:text.TranslationEditRate")
    expected = float(functional.translation_edit_rate(batch.completions, batch.references))
    assert ter.value(batch) == pytest.approx(expected, nan_ok=True)
    errors = as_objective("torchmetrics:text.WordErrorRate")
    assert not errors.higher_is_better
    assert errors.needs == {"completions"}
    if any(first):  # else the rate divides by 0 words
        expected = float(functional.word_error_rate(batch.completions, first))
        assert errors.value(batch) == pytest.approx(expected)


@given(spoken)
def test_torchmetrics_squad_and_keys(batch: Batch) -> None:
    exact = as_objective("torchmetrics:text.SQuAD:key=exact_match")
    pairs = list(zip(batch.completions or [], batch.references, strict=True))
    right = [any(normalize(c) == normalize(r) for r in refs) for c, refs in pairs]
    assert exact.value(batch) == pytest.approx(100 * np.mean(right), abs=1e-4)
    assert exact.name == "SQuAD_exact_match"


class OfMine(torchmetrics.text.WordErrorRate):  # type: ignore[misc,name-defined]
    """A metric of texts whose class is not torchmetrics' own."""


def test_torchmetrics_of_texts_derived_by_others() -> None:
    made = as_objective(OfMine())
    assert made.needs == {"completions"}
    assert made.value(texts(["old mill", "wall"], [["the mill", "x"], ["wall"]])) == pytest.approx(
        1 / 3
    )


def test_torchmetrics_where_a_metric_is() -> None:
    """What it is given goes to its device: here to one that takes in nothing."""
    metric = torchmetrics.MeanMetric().to("meta")
    ids, gold = as_objective(metric)._ids(choices([0, 1], -np.eye(2)))  # type: ignore[attr-defined]
    assert ids.device.type == gold.device.type == "meta"


def test_torchmetrics_objects_are_left_alone() -> None:
    metric = torchmetrics.classification.BinaryAccuracy()
    metric.update(torch.tensor([1]), torch.tensor([0]))
    state = copy.deepcopy(metric.metric_state)
    objective = as_objective(metric)
    assert objective.value(choices([1, 1], np.array([[-1.0, 0.0], [-1.0, 0.0]]))) == 1.0
    assert metric.metric_state == state
    assert float(metric.compute()) == 0.0


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("classification.MulticlassF1:num_classes=3", "did you mean 'MulticlassF1Score'"),
        ("clasification.BinaryF1Score", "has no attribute 'clasification'"),
        ("classification.MulticlassF1Score", "missing 1 required positional argument"),
        ("classification.MulticlassF1Score:num_classes=-1", "RuntimeError"),
    ],
)
def test_torchmetrics_specs_that_fit_nothing(spec: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        as_objective(f"torchmetrics:{spec}")


def test_torchmetrics_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(UserError, match=r"pip install 'zoobj\[torchmetrics\]'"):
        as_objective("torchmetrics:text.BLEUScore")


def test_torchmetrics_without_one_number() -> None:
    objective = as_objective(torchmetrics.classification.MulticlassF1Score(3, average=None))
    outcome = judge(objective, choices([0, 1, 2], -np.eye(3)))
    assert "one number is needed" in (outcome.error or "")


# evaluate -------------------------------------------------------------------------------------

SCRIPT = """
import datasets
import evaluate


class {name}(evaluate.Metric):
    def _info(self):
        features = datasets.Features({{"predictions": {predictions}, "references": {references}}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, {more}):
        {body}
"""
NUMBER, STRING = 'datasets.Value("int64")', 'datasets.Value("string")'
SCRIPTS: dict[str, dict[str, str]] = {
    "macro": {
        **{"predictions": NUMBER, "references": NUMBER, "more": 'average="binary"'},
        "body": "from sklearn.metrics import f1_score\n"
        "        return {'n': len(references), 'f1': f1_score(references, predictions, "
        "average=average)}",
    },
    "first": {
        **{"predictions": STRING, "references": STRING, "more": "**more"},
        "body": "return {'same': sum(map(str.__eq__, predictions, references))}",
    },
    "any_of": {
        **{"predictions": STRING, "references": f"datasets.Sequence({STRING})", "more": "**more"},
        "body": "return {'any': sum(p in r for p, r in zip(predictions, references))}",
    },
    "squad_like": {
        "predictions": f'{{"id": {STRING}, "prediction_text": {STRING}, '
        f'"no_answer_probability": datasets.Value("float32")}}',
        "references": f'{{"id": {STRING}, "answers": datasets.features.Sequence('
        f'{{"text": {STRING}, "answer_start": datasets.Value("int32")}})}}',
        "more": "**more",
        "body": "from zoobj.objectives.token_f1 import token_f1\n"
        "        given = {p['id']: p['prediction_text'] for p in predictions}\n"
        "        best = [max([token_f1(given[r['id']], t) for t in r['answers']['text']] or [0]) "
        "for r in references]\n"
        "        return {'n': len(best), 'f1': 100 * sum(best) / len(best)}",
    },
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metrics as local scripts, which evaluate loads as it does those of the hub."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, fields in SCRIPTS.items():
        kind = "".join(word.title() for word in name.split("_"))
        (folder / f"{name}.py").write_text(SCRIPT.format(name=kind, **fields))
    return folder


@given(batches(3))
def test_evaluate_on_label_ids(scripts: Path, batch: Batch) -> None:
    objective = cached(f"evaluate:{scripts / 'macro.py'}:key=f1,average=macro")
    expected = metrics.f1_score(batch.references, batch.predictions, average="macro")
    assert objective.value(batch) == pytest.approx(expected)
    assert objective.needs == {"predictions"}
    assert not objective.decomposable


@functools.cache
def cached(spec: str) -> Objective:
    return as_objective(spec)


@given(spoken)
def test_evaluate_on_texts(scripts: Path, batch: Batch) -> None:
    pairs = list(zip(batch.completions or [], batch.references, strict=True))
    first = cached(f"evaluate:{scripts / 'first.py'}")
    assert first.value(batch) == sum(c == answers[0] for c, answers in pairs)
    any_of = cached(f"evaluate:{scripts / 'any_of.py'}:any")
    assert any_of.value(batch) == sum(c in answers for c, answers in pairs)
    assert (first.name, any_of.name, any_of.needs) == ("first", "any_of_any", {"completions"})


@given(spoken)
def test_evaluate_on_dicts_with_ids(scripts: Path, batch: Batch) -> None:
    objective = cached(f"evaluate:{scripts / 'squad_like.py'}:f1")
    pairs = zip(batch.completions or [], batch.references, strict=True)
    expected = 100 * np.mean([max(token_f1(c, r) for r in refs) for c, refs in pairs])
    assert objective.value(batch) == pytest.approx(expected)
    assert objective.name == "squad_like_f1"


def test_evaluate_on_a_question_without_an_answer(scripts: Path) -> None:
    objective = cached(f"evaluate:{scripts / 'squad_like.py'}:f1")
    assert objective.value(texts(["mill", "x"], [["mill"], []])) == 50.0


def test_evaluate_goes_on_after_a_failure(scripts: Path) -> None:
    objective = cached(f"evaluate:{scripts / 'first.py'}")
    outcome = judge(objective, texts(["mill", "x"], [["mill"], [3]]))  # type: ignore[list-item]
    assert outcome.error is None or "raised" in outcome.error
    broken = judge(objective, texts(["mill"], [["mill"], ["x"]]))
    assert "evaluate metric 'first' raised" in (broken.error or "")
    assert objective.value(texts(["mill"], [["mill"]])) == 1
    outcome = judge(objective, texts(["mill"], [[]]))
    assert "compares with one accepted text, and a reference is []" in (outcome.error or "")


def test_evaluate_starts_afresh(scripts: Path) -> None:
    """Whatever the object took in before."""
    import evaluate

    metric = evaluate.load(str(scripts / "first.py"), keep_in_memory=True)
    metric.add(prediction="mill", reference="mill")
    objective = as_objective(metric)
    assert [objective.value(texts(["a"], [[gold]])) for gold in "aba"] == [1, 0, 1]


def test_evaluate_leaves_the_global_generators_alone(scripts: Path) -> None:
    states = [str(np.random.get_state()), str(torch.get_rng_state())]  # noqa: NPY002
    cached(f"evaluate:{scripts / 'first.py'}").value(texts(["a"], [["a"]]))
    assert [str(np.random.get_state()), str(torch.get_rng_state())] == states  # noqa: NPY002


@pytest.mark.parametrize(
    ("key", "problem"),
    [("f2", "has no 'f2' in its result; choose from: all, f1"), ("all", "one num")],
)
def test_evaluate_keys_that_are_no_number(key: str, problem: str) -> None:
    class Told:
        def compute(self, predictions: Any, references: Any) -> Any:
            return {"f1": 0.5, "all": [0.5, 1.0]}

    assert problem in (judge(Evaluate(Told(), key=key), texts(["a"], [["a"]])).error or "")
    assert as_objective(Told()).value(texts(["a"], [["a"]])) == 0.5


@pytest.mark.parametrize(
    ("result", "value"),
    [(0.5, 0.5), ({"x": "y", "v": np.float32(0.5)}, 0.5), ({"v": torch.tensor([2.0])}, 2.0)],
)
def test_results_with_one_number(result: Any, value: float) -> None:
    class Told:
        def compute(self, *, predictions: Any, references: Any) -> Any:
            assert (predictions, references) == ([1], [0])
            return result

    batch = Batch(prompts=["?"], references=[0], predictions=[1], completions=["x"])
    objective = Evaluate(Told(), higher_is_better=False, bounds=(0.0, 1.0))
    assert objective.value(batch) == value
    assert (objective.name, objective.bounds) == ("Told", (0.0, 1.0))
    assert not objective.higher_is_better


@pytest.mark.parametrize("result", ["0.5", b"1", {"v": np.array("0.5")}, {"v": [0.5]}, {}, []])
def test_texts_and_lists_are_no_numbers(result: Any) -> None:
    class Told:
        def compute(self, predictions: Any, references: Any) -> Any:
            return result

    outcome = judge(as_objective(Told()), texts(["a"], [["a"]]))
    assert "one number is needed" in (outcome.error or "")


@pytest.mark.parametrize("result", [None, {"v": None}, {"v": 10**400}, {"v": None, "n": 3}])
def test_none_could_not_be_scored(result: Any) -> None:
    class Told:
        def compute(self, predictions: Any, references: Any) -> Any:
            return result

    outcome = judge(as_objective(Told()), texts(["a"], [["a"]]))
    assert math.isnan(outcome.value)
    assert outcome.failed == 1


def test_evaluate_that_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(UserError) as caught:
        as_objective("evaluate:squad:f1")
    assert (
        "metric 'squad' can't be loaded: ConnectionError: Couldn't reach the hub; without"
        in str(caught.value)
    )
    with pytest.raises(UserError, match=r"3 has no compute"):
        Evaluate(3)


# Reward models --------------------------------------------------------------------------------

PROMPTS = ["Where did the mill stand?", "Who sat on the wall?", "One two three"]
COMPLETIONS = ["by the river", "the miller's cat, and it sat there for a long time", ""]
TEMPLATE = "{% for m in messages %}<end>{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[..., str]:
    """The folder of a classifier of random weights, in float64."""

    def save(kind: str = "BertForSequenceClassification", labels: int = 1, **more: Any) -> str:
        import transformers

        classifier = getattr(transformers, kind)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        config = classifier.config_class(
            **{**sizes, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_labels": labels},
            **{"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 64, **more},
        )
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.Generator().manual_seed(5).get_state())
            model = classifier(config).double()
        for parameter in model.parameters():
            parameter.data.mul_(4.0)
        folder = tmp_path_factory.mktemp("classifier")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def asked() -> Batch:
    return said(PROMPTS, COMPLETIONS)


def said(prompts: list[str], completions: list[str]) -> Batch:
    return Batch(prompts=prompts, references=[[]] * len(prompts), completions=completions)


@pytest.mark.parametrize(
    "kind", ["BertForSequenceClassification", "LlamaForSequenceClassification"]
)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_reward_model_scores_each_by_itself(
    saved: Callable[..., str], tokenizer: Any, kind: str, batch_size: int
) -> None:
    folder = saved(kind)
    objective = RewardModel(folder, batch_size=batch_size)
    assert objective.decomposable
    assert not any(parameter.requires_grad for parameter in objective.model.parameters())
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(f"{prompt} {completion}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(objective.model(ids).logits[0, 0]))
    assert len(set(expected)) == 3
    assert objective.score(asked()) == pytest.approx(expected, rel=1e-9)
    assert objective.score(asked().select([])) == []


def test_a_reward_model_on_any_texts(saved: Callable[..., str], tokenizer: Any) -> None:
    """200 and more; a prompt that ends in white space brings the space itself."""
    objective = RewardModel(saved(), batch_size=4)

    @settings(max_examples=50)
    @given(st.lists(st.tuples(anything, anything), min_size=4, max_size=6))
    @example([("", ""), ("\u4f60 ", "\u597d"), ("old\n", ""), ("cafe\u0301", "\U0001f600")])
    def check(pairs: list[tuple[str, str]]) -> None:
        expected = []
        for prompt, completion in pairs:
            text = prompt + (completion if prompt[-1:].isspace() else f" {completion}")
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = objective.model(ids).logits if ids.numel() else torch.full((1, 1), np.nan)
            expected.append(float(logits[0, 0]))
        batch = said([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
        assert objective.score(batch) == pytest.approx(expected, rel=1e-9)

    check()


def test_a_reward_model_with_a_chat_template(saved: Callable[..., str], tokenizer: Any) -> None:
    made = RewardModel(saved())
    made.tokenizer.chat_template = TEMPLATE
    text = f"<end>user: {PROMPTS[0]}\n<end>assistant: {COMPLETIONS[0]}\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = float(made.model(ids[:, -64:]).logits[0, 0])
    assert made.score(asked().select([0])) == pytest.approx([expected], rel=1e-9)


def test_a_reward_model_keeps_the_last_tokens(saved: Callable[..., str]) -> None:
    made = RewardModel(saved(), max_length=4)
    long = said(["One two three " * 40, "three " * 40], ["by the river and the wall"] * 2)
    first, second = made.score(long)
    assert first == second
    RewardModel(saved()).score(long)  # else the model has no positions for so many


def test_labels_of_a_reward_model(saved: Callable[..., str]) -> None:
    folder = saved(labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    by_index, by_name = (
        RewardModel(folder, label=2),
        as_objective(f"reward_model:{folder}:label=good,name=helpful"),
    )
    assert by_index.score(asked()) == by_name.score(asked())
    assert by_index.score(asked()) != RewardModel(folder, label=0).score(asked())
    assert by_name.name == "helpful"
    with pytest.raises(UserError, match="has 3 labels: say which one is good, as in label=bad"):
        RewardModel(folder)
    with pytest.raises(UserError, match="no label 'god'; did you mean 'good'"):
        RewardModel(folder, label="god")
    with pytest.raises(UserError, match="no label 3; choose from: bad, fair, good"):
        RewardModel(folder, label=3)


def test_a_reward_model_without_padding(saved: Callable[..., str]) -> None:
    folder = saved()
    made = RewardModel(folder)
    expected = made.score(asked())
    made.tokenizer.pad_token = None
    alone = RewardModel(made.model, tokenizer=made.tokenizer)
    assert alone.batch_size == 1
    assert alone.score(asked()) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UserError, match="a model object needs its tokenizer"):
        RewardModel(made.model)


def test_a_reward_model_object_stays_as_it_is(saved: Callable[..., str]) -> None:
    loaded = RewardModel(saved())
    model = loaded.model.train().requires_grad_(True)
    objective = RewardModel(model, tokenizer=loaded.tokenizer)
    assert objective.score(asked()) == objective.score(asked())  # no dropout
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_things_that_are_no_reward_model(tmp_path: Path, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    tiny_model("llama").save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"no trained classifier: it has no weights for score"):
        RewardModel(str(tmp_path / "lm"))
    with pytest.raises(UserError, match=r"nowhere' can't be loaded"):
        RewardModel(str(tmp_path / "nowhere"))
    assert torch.equal(torch.get_rng_state(), state)


# Functions in both of TRL's conventions -------------------------------------------------------


def plain(text: Any) -> str:
    """What TRL gives, as text: a string, or a list of one message."""
    return text if isinstance(text, str) else text[0]["content"]


def right(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float | None]:
    pairs = zip(completions, solution, strict=True)
    return [float(gold in plain(text)) if gold else None for text, gold in pairs]


async def slow(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(plain(c)) - len(plain(p))) for p, c in zip(prompts, completions, strict=True)]


class Judge:
    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        return [self.factor * len(plain(text)) for text in completions]

    async def method(
        self, prompts: list[Any], completions: list[Any], **kwargs: Any
    ) -> list[float]:
        return self(completions)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "function": right,
    "coroutine function": slow,
    "callable object": Judge(2.0),
    "bound coroutine": Judge(3.0).method,
    "partial": functools.partial(right, threshold=2),
    "partial coroutine": functools.partial(slow, temperature=1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("conversational", [False, True])
@settings(max_examples=20)
@given(rows=st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=4))
@example(rows=list(zip(PROMPTS, COMPLETIONS, ["river", "dog", ""], strict=True)))
def test_the_same_function_in_both_calling_conventions(
    name: str, conversational: bool, rows: list[tuple[str, str, str]]
) -> None:
    fn = FUNCTIONS[name]
    prompts, completions, solution = map(list, zip(*rows, strict=True))
    given: tuple[list[Any], list[Any]] = (prompts, completions)
    if conversational:  # as TRL's GRPOTrainer builds them
        given = (
            [[{"role": "user", "content": text}] for text in prompts],
            [[{"role": "assistant", "content": text}] for text in completions],
        )
    direct = fn(prompts=given[0], completions=given[1], solution=solution, trainer_state=None)
    if asyncio.iscoroutine(direct):
        direct = asyncio.run(direct)
    batch = Batch(
        prompts=prompts,
        references=[[]] * len(rows),
        completions=completions,
        rows={"solution": solution},
    )
    made = Reward(fn, conversational=conversational)
    assert made.score(batch) == direct
    if prompts == PROMPTS:
        assert len({score for score in direct if score is not None}) > 1


def test_a_reward_on_token_ids() -> None:
    def tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        assert len(kwargs["completions"]) == len(completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    ids = [[5, 6], [], [7]]
    made = Reward(tokens)
    assert made.needs == {"completion_ids"}
    batch = said(["?", "?", "?"], ["two words", "", "one"])
    assert made.score(replace(batch, completion_ids=ids)) == tokens(ids, completions=ids)
    with pytest.raises(ScoreError, match="'completion_ids', which is not there"):
        made.score(batch)


def test_a_reward_of_trl_s_own() -> None:
    trl = pytest.importorskip("trl.rewards")
    completions = ["<think>a</think>b", "no thought"]
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    made = Reward(trl.think_format_reward, conversational=True)
    scores = made.score(said(["?", "?"], completions))
    assert scores == trl.think_format_reward(messages) == [1.0, 0.0]


def test_conversational_in_a_spec(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def f(completions): return [len(c[0]) for c in completions]\n")
    made = build("objective", f"reward:{tmp_path / 'r.py'}:f:conversational=true,name=mine")
    assert (made.name, made.score(asked())) == ("mine", [2.0, 2.0, 2.0])


# Runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize(
    "told",
    [
        "sklearn:f1_score:average=macro",
        "torchmetrics:classification.BinaryF1Score",
        ["sklearn:f1_score:average=macro", {"name": "sklearn:neg_log_loss", "weight": 0.1}],
    ],
)
def test_a_run_on_choices(tmp_path: Path, told: Any) -> None:
    from test_trainer import lines as read
    from test_trainer import small

    from zoobj import ZOTrainer
    from zoobj.tasks import SST2

    task = SST2(train_file=[{"sentence": f"film {i}", "label": i % 2} for i in range(100)])
    result = ZOTrainer(task=task, args=small(tmp_path / "run", objective=told)).train()
    assert math.isfinite(result.after)
    for line in read(tmp_path / "run" / "log.jsonl"):
        assert line["n"] == 8
        assert ("rewards" in line) == isinstance(told, list)


@pytest.mark.slow
@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize("kind", ["evaluate", "reward", "reward_model"])
def test_a_run_on_texts(
    tmp_path: Path, scripts: Path, saved: Callable[..., str], kind: str
) -> None:
    from test_trainer import small

    from zoobj import ZOTrainer

    async def shorter(completions: list[str], **kwargs: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [-float(len(text)) if text else None for text in completions]

    told: dict[str, Any] = {
        "evaluate": f"evaluate:{scripts / 'squad_like.py'}:f1",
        "reward": shorter,
        "reward_model": f"reward_model:{saved()}",
    }
    result = ZOTrainer(objective=told[kind], args=small(tmp_path / "run", max_steps=2)).train()
    assert math.isfinite(result.before)
    assert math.isfinite(result.after)
