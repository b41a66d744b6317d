"""Every objective of the catalogue against a reference of its own, on random inputs."""

import functools
import json
import math
import pickle
import re
import string
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pydantic_core
import pytest
import regex
import sacrebleu
import scipy.special
import sklearn.metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field
from rouge_score.rouge_scorer import RougeScorer

from zoobj import objectives
from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, ScoreError, as_objective, is_score
from zoobj.outcome import judge
from zoobj.registry import import_file

ROOT = Path(__file__).parents[1]
many = settings(max_examples=200)


def answered(completions: Sequence[str], references: Sequence[Any], **rows: list[Any]) -> Batch:
    return Batch(
        prompts=[""] * len(completions),
        references=list(references),
        completions=list(completions),
        rows=rows,
    )


def also(cases: Sequence[dict[str, Any]], **more: Any) -> Callable[[Any], Any]:
    """Besides what chance brings, these cases."""

    def with_them(test: Any) -> Any:
        for case in cases:
            test = example(**case, **more)(test)
        return test

    return with_them


made = functools.cache(as_objective)  # by spec: looking one up takes milliseconds


def scored(spec: Any, completion: str, references: list[str]) -> Any:
    return made(spec).score(answered([completion], [references]))[0]


@pytest.fixture(autouse=True)
def _no_warning(recwarn: pytest.WarningsRecorder) -> Any:
    yield
    assert [
        str(w.message) for w in recwarn if "zoobj" in w.filename or "sklearn" in w.filename
    ] == []


# Choices --------------------------------------------------------------------------------------

Line = tuple[int, list[float]]  # gold label, log-likelihoods


def lines(classes: int) -> st.SearchStrategy[list[Line]]:
    """Examples whose scores are quarters, so that sums of them are exact and ties occur."""
    score = st.integers(-20, 0).map(lambda quarters: quarters / 4)
    line = st.tuples(
        st.integers(0, classes - 1), st.lists(score, min_size=classes, max_size=classes)
    )
    return st.lists(line, min_size=1, max_size=12)


sets = st.integers(2, 4).flatmap(lines)
ODD_SETS: list[dict[str, list[Line]]] = [
    {"given": [(1, [-2.0, -1.0])]},
    {"given": [(1, [-2.0, -1.0])] * 3},  # one class, all right
    {"given": [(0, [-2.0, -1.0])] * 3},  # one class, all wrong
    {"given": [(0, [-1.0] * 4), (3, [-1.0] * 4)]},  # nothing but ties
]


def chosen(given: list[Line]) -> Batch:
    return Batch(
        prompts=[""] * len(given),
        references=[gold for gold, _ in given],
        predictions=[scores.index(max(scores)) for _, scores in given],
        completions=["word"] * len(given),
        label_scores=[scores for _, scores in given],
        reference_logprob=[scores[gold] for gold, scores in given],
    )


@many
@given(sets, st.integers(1, 4))
@also(ODD_SETS, top=2)
def test_top_k_accuracy(given: list[Line], top: int) -> None:
    """By sorting; of equal scores the first comes first, as in predictions."""
    expected = []
    for gold, scores in given:
        order = [label for _, label in sorted((-s, label) for label, s in enumerate(scores))]
        expected.append(float(gold in order[:top]))
    batch = chosen(given)
    assert objectives.Accuracy(top=top).score(batch) == expected
    assert made("accuracy").score(batch) == objectives.Accuracy(top=1).score(batch)


@many
@given(st.lists(st.tuples(st.integers(0, 3), st.permutations([-1.0, -2.0, -3.0, -4.0]))), st.data())
def test_top_k_accuracy_is_scikit_learn_s(given: list[Line], data: st.DataObject) -> None:
    top = data.draw(st.integers(1, 3))
    batch = chosen([*given, (0, [-1.0, -2.0, -3.0, -4.0])])
    expected = sklearn.metrics.top_k_accuracy_score(
        batch.references, batch.label_scores, k=top, labels=range(4)
    )
    assert objectives.Accuracy(top=top).value(batch) == pytest.approx(expected)


def quietly(metric: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """The reference's number, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric(*args, **kwargs))


@many
@given(sets)
@also(ODD_SETS)
def test_balanced_accuracy(given: list[Line]) -> None:
    batch = chosen(given)
    expected = quietly(sklearn.metrics.balanced_accuracy_score, batch.references, batch.predictions)
    assert objectives.BalancedAccuracy().value(batch) == pytest.approx(expected)


@many
@given(sets)
@also(ODD_SETS)
def test_mcc(given: list[Line]) -> None:
    """By scikit-learn, and as the correlation of one-hot vectors that it is."""
    batch = chosen(given)
    got = objectives.MCC().value(batch)
    gold, predicted = (np.eye(4)[column] for column in (batch.references, batch.predictions))
    gold, predicted = gold - gold.mean(0), predicted - predicted.mean(0)
    spread = math.sqrt((gold**2).sum() * (predicted**2).sum())
    assert got == pytest.approx((gold * predicted).sum() / spread if spread > 1e-9 else 0.0)
    scikit = quietly(sklearn.metrics.matthews_corrcoef, batch.references, batch.predictions)
    assert got == pytest.approx(scikit)


@settings(max_examples=250)
@given(sets, st.sampled_from(["macro", "micro", "weighted", "binary"]))
@also(ODD_SETS, average="macro")
def test_precision_and_recall(given: list[Line], average: str) -> None:
    batch = chosen(given)
    how: dict[str, Any] = {"average": average, "zero_division": 0.0}
    if average == "binary":
        how = {"average": "macro", "labels": [1], "zero_division": 0.0}
    for name in ("precision", "recall"):
        metric = getattr(sklearn.metrics, f"{name}_score")
        expected = quietly(metric, batch.references, batch.predictions, **how)
        assert made(f"{name}:average={average}").value(batch) == pytest.approx(expected)


def odds_of(scores: list[float], label: int) -> float:
    probability = scipy.special.softmax(scores)[label]
    return round(math.log(probability / (1 - probability)), 9)


def slow_auc(positive: list[bool], odds: list[float]) -> float:
    """How often a positive is above a negative, ties half."""
    up = [o for o, is_it in zip(odds, positive, strict=True) if is_it]
    down = [o for o, is_it in zip(odds, positive, strict=True) if not is_it]
    return sum((u > d) + (u == d) / 2 for u in up for d in down) / (len(up) * len(down))


def slow_average_precision(positive: list[bool], odds: list[float]) -> float:
    """Precision at each threshold, weighted by the recall that it adds."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(odds), reverse=True):
        taken = [p for p, o in zip(positive, odds, strict=True) if o >= threshold]
        now = sum(taken) / sum(positive)
        total += sum(taken) / len(taken) * (now - recall)
        recall = now
    return total


@pytest.mark.parametrize(
    ("name", "slow", "scikit"),
    [
        ("roc_auc", slow_auc, sklearn.metrics.roc_auc_score),
        ("average_precision", slow_average_precision, sklearn.metrics.average_precision_score),
    ],
)
@many
@given(given=sets, pos_label=st.integers(0, 1))
@also(ODD_SETS, pos_label=1)
def test_areas(name: str, slow: Any, scikit: Any, given: list[Line], pos_label: int) -> None:
    batch = chosen(given)
    got = made(f"{name}:pos_label={pos_label}").value(batch)
    classes = sorted(set(batch.references))
    if len(classes) < 2:
        assert math.isnan(got)
        return
    if len(given[0][1]) == 2:
        classes = [pos_label]
    sides = [
        ([gold == c for gold, _ in given], [odds_of(scores, c) for _, scores in given])
        for c in classes
    ]
    assert got == pytest.approx(np.mean([slow(*side) for side in sides]))
    assert got == pytest.approx(np.mean([scikit(*side) for side in sides]))


@many
@given(sets.filter(lambda given: {gold for gold, _ in given} == set(range(len(given[0][1])))))
def test_auc_of_several_classes_is_scikit_learn_s(given: list[Line]) -> None:
    batch = chosen(given)
    p = scipy.special.softmax(np.array(batch.label_scores), axis=1).round(12)
    p = p / p.sum(axis=1, keepdims=True)
    if p.shape[1] == 2:
        expected = sklearn.metrics.roc_auc_score(batch.references, p[:, 1])
    else:
        expected = sklearn.metrics.roc_auc_score(batch.references, p.round(9), multi_class="ovr")
    assert objectives.ROCAUC().value(batch) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_areas_of_extreme_likelihoods(name: str) -> None:
    """Where probabilities are all 1 or 0 in floating point, the likelihoods still rank."""
    far = [(1, [-900.0, 0.0]), (0, [-800.0, 0.0]), (0, [0.0, -math.inf])]
    assert made(name).value(chosen(far)) == 1.0
    far[0], far[1] = (1, far[1][1]), (0, far[0][1])
    assert made(name).value(chosen(far)) == 0.5
    for odd in ([math.nan, 0.0], [-math.inf, -math.inf]):
        assert math.isnan(made(name).value(chosen([*far, (1, odd)])))


def test_areas_of_rows_with_other_numbers_of_choices() -> None:
    with pytest.raises(ScoreError, match="examples have 2 and 3 choices"):
        objectives.ROCAUC().value(chosen([(0, [-1.0, -2.0]), (1, [-1.0, -2.0, -3.0])]))


@many
@given(sets)
@also(ODD_SETS)
def test_margin(given: list[Line]) -> None:
    batch = chosen(given)
    margins = objectives.Margin().score(batch)
    assert margins == [
        min(scores[gold] - s for i, s in enumerate(scores) if i != gold) for gold, scores in given
    ]
    right = objectives.Accuracy().score(batch)
    assert all(m >= 0 if r else m <= 0 for m, r in zip(margins, right, strict=True))  # type: ignore[operator]


@pytest.mark.parametrize("spec", ["margin", "accuracy:top=2"])
def test_likelihoods_that_are_no_numbers_cannot_be_scored(spec: str) -> None:
    batch = chosen([(0, [-1.0, -2.0]), (1, [math.nan, -2.0])])
    assert [is_score(score) for score in made(spec).score(batch)] == [True, False]


# Texts ----------------------------------------------------------------------------------------

words = st.sampled_from(
    "the The a An mill mill. old Old, mills two it's 1,000 4 4.0 4-yard -- ; "
    "\u2019 \u00a0 \u0130 caf\u00e9 cafe\u0301 \u00dftrasse \u4f60\u597d nan 1e5 . \u0663 "
    "\u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430 \U0001f469\u200d\U0001f467".split(" ")
)
texts = st.one_of(
    st.lists(words, max_size=6).map(" ".join),
    st.lists(words, max_size=6).map("\n".join),
    st.text(alphabet=" \t\na,.AN'\u00e9\u3000the-;4\U0001f600", max_size=15),
    st.text(max_size=8),
)
accepted = st.lists(texts, min_size=1, max_size=3)
corpora = st.lists(st.tuples(texts, accepted), min_size=1, max_size=4)
ODD_TEXTS: list[dict[str, Any]] = [
    {"completion": "", "references": [""]},
    {"completion": "", "references": ["mill", "old mill"]},
    {"completion": "mill", "references": [""]},
    {"completion": "old mill", "references": ["a river", "two walls"]},  # nothing in common
    {"completion": ".", "references": ["-- ;", "the"]},  # no word
    {"completion": "cafe\u0301", "references": ["caf\u00e9"]},  # a combining accent
    {"completion": "\u043c\u0435\u043b\u0438", "references": ["\u043c\u0435\u043b", "mill"]},
    {"completion": "\u4f60\u597d", "references": ["\u518d\u89c1", "\u4f60 \u597d"]},
    {"completion": "\U0001f469\u200d\U0001f467 x", "references": ["\U0001f469 x"]},
]


def squad_words(text: str) -> list[str]:
    """The official normalisation, a step at a time."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad2(completion: str, references: list[str]) -> tuple[float, float]:
    """Exact match and F1 by the official rules of SQuAD 2.0."""
    gold = [text for text in references if squad_words(text)] or [""]
    best = (0.0, 0.0)
    for text in gold:
        want, got = squad_words(text), squad_words(completion)
        same = sum((Counter(want) & Counter(got)).values())
        if not want or not got:
            f1 = float(want == got)
        else:
            p, r = same / len(got), same / len(want)
            f1 = 2 * p * r / (p + r) if same else 0.0
        best = max(best[0], float(want == got)), max(best[1], f1)
    return best


@settings(max_examples=300)
@given(texts, st.lists(texts, max_size=3))
@also(ODD_TEXTS)
@example("", [])
@example("the", ["", "mill"])
@example("mill", ["the", "a mill"])
def test_squad_2(completion: str, references: list[str]) -> None:
    exact, f1 = squad2(completion, references)
    assert scored("exact_match:version=2.0", completion, references) == exact
    assert scored("token_f1:version=2.0", completion, references) == pytest.approx(f1)


def test_squad_2_with_a_word_for_no_answer() -> None:
    spec = "token_f1:version=2.0,no_answer=unanswerable"
    assert scored(spec, "Unanswerable.", ["unanswerable"]) == 1.0
    assert scored(spec, "", ["unanswerable"]) == 1.0
    assert scored(spec, "the mill", ["unanswerable"]) == 0.0
    assert scored(spec, "unanswerable", ["mill", "unanswerable"]) == 0.0  # there is an answer


def drop_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def drop_bag(span: str) -> set[str]:
    """The official steps: lower, punctuation, numbers, articles, white space; empty parts go."""
    parts = []
    for token in re.split(" |-", span):
        token = token.lower()
        if not drop_number(token):
            token = "".join(letter for letter in token if letter not in string.punctuation)
        if drop_number(token):
            token = str(float(token))
        token = " ".join(re.sub(r"\b(a|an|the)\b", " ", token).split())
        if token.strip():
            parts.append(token)
    return set(" ".join(parts).strip().split())


def drop_pair(predicted: set[str], gold: set[str]) -> float:
    wanted = {word for word in gold if drop_number(word)}
    if wanted and not wanted & {word for word in predicted if drop_number(word)}:
        return 0.0
    common = len(gold & predicted)
    precision = common / len(predicted) if predicted else 1.0
    recall = common / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_drop(completion: str, reference: str) -> float:
    """All assignments are tried; what is left over scores 0."""
    sides = [[s for s in text.split(";") if s.strip()] or [""] for text in (completion, reference)]
    predicted, gold = ([drop_bag(span) for span in spans] for spans in sides)
    size = max(len(predicted), len(gold))
    best = 0.0
    for order in permutations(range(size)):
        pairs = [(i, j) for i, j in enumerate(order) if i < len(predicted) and j < len(gold)]
        best = max(best, math.fsum(drop_pair(predicted[i], gold[j]) for i, j in pairs) / size)
    return best


spans = st.lists(st.lists(words, max_size=4).map(" ".join), max_size=4).map(" ; ".join)


@settings(max_examples=400)
@given(st.one_of(spans, texts), st.lists(st.one_of(spans, texts), min_size=1, max_size=3))
@also(ODD_TEXTS)
@example("4 yards", ["5 yards"])
@example("4", ["four", "4.0"])
@example("a; b", ["b; a"])
@example("", [""])
def test_drop_f1(completion: str, references: list[str]) -> None:
    if completion.count(";") > 5 or any(text.count(";") > 5 for text in references):
        return  # too many assignments
    expected = max(slow_drop(completion, text) for text in references)
    got = scored("drop_f1", completion, references)
    assert got == pytest.approx(expected, abs=0.005 + 1e-9)
    assert got == round(got, 2)


def test_drop_f1_by_hand() -> None:
    assert scored("drop_f1", "the 4-yard run", ["4 yard run"]) == 1.0
    assert scored("drop_f1", "run of yards", ["4 run of yards"]) == 0.0  # the number is missing
    assert scored("drop_f1", "old mill", ["the old mill tower"]) == 0.8
    assert scored("drop_f1", "mill", ["mill; tower; wall"]) == 0.33
    assert scored("drop_f1:separator=/", "mill / tower", ["tower/mill"]) == 1.0


def rouge_words(text: str) -> list[str]:
    """Runs of ASCII letters and digits of the text in lower case."""
    kept = [c if c in string.ascii_lowercase + string.digits else " " for c in text.lower()]
    return "".join(kept).split()


def common_subsequence(a: list[str], b: list[str]) -> int:
    longest = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, j in product(range(len(a)), range(len(b))):
        further = longest[i, j] + 1 if a[i] == b[j] else 0
        longest[i + 1, j + 1] = max(further, longest[i, j + 1], longest[i + 1, j])
    return int(longest[-1, -1])


def slow_rouge(kind: str, completion: str, reference: str) -> float:
    got, want = rouge_words(completion), rouge_words(reference)
    if kind == "rougeL":
        sizes, common = (len(got), len(want)), common_subsequence(got, want)
    else:
        n = int(kind[-1])
        a, b = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (got, want))
        sizes, common = (sum(a.values()), sum(b.values())), sum((a & b).values())
    return 2 * common / sum(sizes) if common else 0.0


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
@many
@given(completion=texts, references=accepted)
@also(ODD_TEXTS)
def test_rouge(kind: str, completion: str, references: list[str]) -> None:
    expected = max(slow_rouge(kind, completion, text) for text in references)
    assert scored(f"rouge:kind={kind}", completion, references) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@many
@given(completion=texts, references=accepted, stemmer=st.booleans())
@also(ODD_TEXTS, stemmer=False)
def test_rouge_is_rouge_score_s(
    kind: str, completion: str, references: list[str], stemmer: bool
) -> None:
    reference = RougeScorer([kind], use_stemmer=stemmer)
    expected = max(reference.score(text, completion)[kind].fmeasure for text in references)
    assert scored(objectives.Rouge(kind, stemmer), completion, references) == expected


def streams(corpus: list[tuple[str, list[str]]]) -> tuple[list[str], list[list[str | None]]]:
    """sacrebleu's arguments, with None where an example has fewer references than others."""
    most = max(len(references) for _, references in corpus)
    return [text for text, _ in corpus], [
        [references[i] if i < len(references) else None for _, references in corpus]
        for i in range(most)
    ]


CORPUS: list[tuple[str, Any, dict[str, Any]]] = [
    ("bleu", sacrebleu.corpus_bleu, {}),
    ("bleu:tokenize=char,lowercase=true", sacrebleu.corpus_bleu,
     {"tokenize": "char", "lowercase": True}),
    ("chrf", sacrebleu.corpus_chrf, {}),
    ("chrf:word_order=2", sacrebleu.corpus_chrf, {"word_order": 2}),
    ("ter", sacrebleu.corpus_ter, {}),
    ("ter:case_sensitive=true,normalized=true", sacrebleu.corpus_ter,
     {"case_sensitive": True, "normalized": True}),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "reference", "settings_"), CORPUS, ids=[c[0] for c in CORPUS])
@many
@given(corpus=corpora)
@example(corpus=[("the mill by the old river", ["the mill by the old river"])])
@example(corpus=[("", [""]), ("mill", ["", "mill"])])
@example(corpus=[(case["completion"], case["references"]) for case in ODD_TEXTS])
def test_corpus_metrics_are_sacrebleu_s(
    spec: str, reference: Any, settings_: dict[str, Any], corpus: list[tuple[str, list[str]]]
) -> None:
    batch = answered([completion for completion, _ in corpus], [texts for _, texts in corpus])
    expected = reference(*streams(corpus), **settings_).score / 100
    assert made(spec).value(batch) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sentence_bleu", sacrebleu.sentence_bleu),
        ("sentence_chrf", sacrebleu.sentence_chrf),
        ("sentence_ter", sacrebleu.sentence_ter),
    ],
)
@many
@given(completion=texts, references=accepted)
@also(ODD_TEXTS)
@example(completion="mill", references=["mill"])
def test_sentence_metrics_are_sacrebleu_s(
    name: str, reference: Any, completion: str, references: list[str]
) -> None:
    expected = reference(completion, references).score / 100
    assert scored(name, completion, references) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("name", ["bleu", "sentence_bleu", "chrf", "sentence_chrf"])
def test_a_perfect_translation_scores_exactly_1(name: str) -> None:
    """sacrebleu says 100.00000000000004, which is above the bound."""
    text = "the mill by the old river"
    batch = answered([text] * 3, [[text], [text, "x"], [text]])
    assert made(name).value(batch) == 1.0
    assert made(name.replace("bleu", "ter").replace("chrf", "ter")).value(batch) == 0.0


def slow_levenshtein(a: str, b: str) -> int:
    distance = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i, j in product(range(len(a)), range(len(b))):
        step = distance[i, j] + (a[i] != b[j])
        distance[i + 1, j + 1] = min(step, distance[i, j + 1] + 1, distance[i + 1, j] + 1)
    return int(distance[-1, -1])


@many
@given(texts, accepted)
@also(ODD_TEXTS)
def test_edit_similarity(completion: str, references: list[str]) -> None:
    expected = max(
        1 - slow_levenshtein(completion, text) / max(len(completion), len(text), 1)
        for text in references
    )
    assert scored("edit_similarity", completion, references) == pytest.approx(expected)


# Numbers --------------------------------------------------------------------------------------

prose = st.lists(
    st.sampled_from(["so", "mill", "\u2019", "(", "$", "=", "caf\u00e9,", "."]), max_size=3
)
cents = st.integers(-(10**7), 10**7)


@st.composite
def written(draw: st.DrawFn, value: Fraction) -> str:
    """A number as people write it."""
    whole, hundredths = divmod(abs(value.numerator * 100 // value.denominator), 100)
    text = f"{whole:,}" if draw(st.booleans()) else str(whole)
    if hundredths or draw(st.booleans()):
        text += f".{hundredths:02d}"
    sign = draw(st.sampled_from(["-", "-$", "\u2212", "$-"])) if value < 0 else ""
    return sign + (draw(st.sampled_from(["", "$"])) if value > 0 else "") + text


@st.composite
def sums(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A text, and the number it ends in."""
    parts: list[str] = []
    value = Fraction(0)
    for number in draw(st.lists(cents, min_size=1, max_size=3)):
        value = Fraction(number, 100)
        parts += [*draw(prose), draw(written(value))]
    return " ".join([*parts, *draw(prose)]), value


@settings(max_examples=300)
@given(sums(), sums(), st.booleans())
@example(("1,000", Fraction(1000)), ("1000.00", Fraction(1000)), False)
def test_numeric_match(
    said: tuple[str, Fraction], gold: tuple[str, Fraction], marked: bool
) -> None:
    (completion, got), (text, value) = said, gold
    if marked:
        text = f"3 + 4 = 7\n#### {value.numerator / value.denominator:,.2f}"
    assert scored("numeric_match", completion, [text]) == float(got == value)
    assert scored("numeric_match", completion, ["none", text, completion]) == 1.0


GSM8K = re.compile(r"#### (-?[0-9.,]+)")


@many
@given(st.lists(cents, max_size=3), st.lists(prose, min_size=4, max_size=4), cents, cents)
def test_strict_numeric_match(before: list[int], fill: Any, marked: int, gold: int) -> None:
    """The official rule: what follows the mark, without commas."""
    text = " ".join([*fill[0], *map(str, before), *fill[1], "\n####", f"{marked:,}", *fill[2]])
    official = GSM8K.search(text)
    assert official is not None
    expected = official.group(1).replace(",", "").rstrip(".") == str(gold)
    assert scored("numeric_match:strict=true", text, [f"#### {gold}"]) == float(expected)
    assert scored("numeric_match:strict=true", text, [f"#### {marked:,}"]) == 1.0
    assert scored("numeric_match:strict=true", f"{marked}", [f"#### {marked}"]) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5-3", "3"), ("5 - 3", "3"), ("-3", "-3"), ("(2)-1", "1"), ("3, 4", "4"), ("3,4", "4"),
        ("1,2345", "2345"), ("12,345", "12345"), ("72.", "72"), ("$.50", "0.5"), ("x3", "3"),
        ("9" * 5000, "9" * 5000), ("\u0663", None), ("", None), (".,-$", None), ("####", None),
    ],
)  # fmt: skip
def test_the_last_number(text: str, number: str | None) -> None:
    expected = None if number is None else 1.0
    assert scored("numeric_match", number or "1", [text]) == expected


@settings(max_examples=300)
@given(texts, accepted)
@also(ODD_TEXTS)
def test_any_text_has_a_numeric_score(completion: str, references: list[str]) -> None:
    score = scored("numeric_match", completion, references)
    assert score in (0.0, 1.0, None)
    assert (score is None) == (not any(re.search("[0-9]", text) for text in references))


LATEX = [
    "{n}/{d}", "\\frac{{{n}}}{{{d}}}", "$\\frac{{{n}}}{{{d}}}$", "so \\boxed{{{n}/{d}}}.",
    "It is $\\dfrac{{{n}}}{{{d}}}$.", "\\({n} \\div {d}\\)",
    "$\\frac{{2 \\cdot {n}}}{{2 \\cdot {d}}}$",
]  # fmt: skip
fractions = st.tuples(st.integers(1, 12), st.integers(1, 12))


@many
@given(fractions, fractions, st.sampled_from(LATEX), st.sampled_from(LATEX[:4]))
def test_math_match(said: Any, gold: Any, how: str, form: str) -> None:
    """Fractions in many forms against exact arithmetic."""
    completion = how.format(n=said[0], d=said[1])
    reference = form.format(n=gold[0], d=gold[1])
    assert scored("math_match", completion, [reference]) == (Fraction(*said) == Fraction(*gold))
    assert scored("math_match", completion, ["1000", how.format(n=said[0], d=said[1])]) == 1.0


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("$x^2 + 1$", "1 + x^2", 1.0),
        ("x^2+1", "1+x^2", 1.0),
        ("2\\sqrt{3}", "\\sqrt{12}", 1.0),
        ("2\\sqrt{3}", "2", 0.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("The answer is 1,234.", "1234", 1.0),
        ("$(1, 2)$", "(2, 1)", 0.0),
        ("I don't know", "3", 0.0),
        ("", "3", 0.0),
        ("3", "", None),
        ("3", " ", None),
    ],
)
def test_math_by_hand(completion: str, reference: str, expected: float | None) -> None:
    assert scored("math_match", completion, [reference]) == expected
    if expected is not None:
        assert scored("math_match", reference, [reference]) == 1.0


@many
@given(texts, accepted)
@also(ODD_TEXTS)
def test_any_text_has_a_score_in_mathematics(completion: str, references: list[str]) -> None:
    assert scored("math_match", completion, references) in (0.0, 1.0, None)


def test_what_takes_too_long_is_no_match(caplog: pytest.LogCaptureFixture) -> None:
    assert scored("math_match:seconds=1", "$9^{9^{9^{9}}}$", ["1"]) == 0.0
    assert "Timeout" in caplog.text


def test_math_in_a_thread() -> None:
    """Where the signal that keeps time can't be had."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(scored("math_match", "$0.5$", ["1/2"])))
    thread.start()
    thread.join()
    assert found == [1.0]


# Forms ----------------------------------------------------------------------------------------


@many
@given(texts, st.sampled_from([r"\d+", "mill|old", "[ab]*", "(?i)THE.*", r"\S{2,}", "(?s).+"]))
def test_regex_match(text: str, pattern: str) -> None:
    """As the package regex, another engine, sees it."""
    expected = regex.fullmatch(pattern, text) is not None
    assert scored(f"regex_match:{pattern}", text, []) == expected
    found = regex.search(pattern, text) is not None
    assert scored(objectives.RegexMatch(pattern, search=True), text, []) == found


letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nearly_json(draw: st.DrawFn) -> str:
    """JSON, often with a character lost, added or changed."""
    text = json.dumps(draw(values), ensure_ascii=False, indent=draw(st.sampled_from([None, 1])))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.integers(0, 1))
        text = text[:at] + draw(st.sampled_from(["", ",", "}", "'", "0", "NaN", "\n"])) + text[end:]
    return text


@settings(max_examples=400)
@given(st.one_of(nearly_json(), texts))
@example("NaN")
@example("[1, -Infinity]")
@example("")
@example("[1,]")
@example("\ufeff1")
def test_json_valid(text: str) -> None:
    """As pydantic's parser, which is written in Rust, sees it."""
    try:
        pydantic_core.from_json(text, allow_inf_nan=False)
        expected = 1.0
    except ValueError:
        expected = 0.0
    assert scored("json_valid", text, []) == expected


def test_a_number_of_thousands_of_digits_is_json() -> None:
    assert scored("json_valid", "1" * 5000, []) == 1.0
    assert scored(objectives.JSONSchema({"type": "integer"}), "1" * 5000, []) == 1.0
    assert scored(objectives.JSONSchema({"multipleOf": 0.1}), "1" * 5000, []) == 0.0


SCHEMA = {
    "type": "object",
    "required": ["age"],
    "properties": {"age": {"type": "integer", "minimum": 0}, "name": {"type": "string"}},
    "additionalProperties": False,
}
PERSON, EACH_ROW = objectives.JSONSchema(SCHEMA), objectives.JSONSchema(column="schema")
people = st.dictionaries(st.sampled_from(["age", "name", "town"]), values, max_size=3)


def fits(value: Any) -> bool:
    """SCHEMA, by hand."""
    if not isinstance(value, dict) or "age" not in value or not set(value) <= {"age", "name"}:
        return False
    age = value["age"]
    whole = not isinstance(age, bool) and isinstance(age, (int, float)) and age == int(age)
    return whole and age >= 0 and isinstance(value.get("name", ""), str)


@many
@given(st.one_of(people, values, st.builds(lambda n: {"age": n}, st.integers(-2, 3))))
@example({"age": 3, "name": "x"})
@example({"age": 3.0})
def test_json_schema(value: Any) -> None:
    text = json.dumps(value)
    assert scored(PERSON, text, []) == fits(value)
    assert scored(PERSON, text[:-1] + "?", []) == 0.0
    batch = answered([text] * 3, [[]] * 3, schema=[SCHEMA, json.dumps(SCHEMA), True])
    assert EACH_ROW.score(batch) == [fits(value), fits(value), 1.0]


SHAPES: list[Any] = [
    Annotated[int, Field(ge=-3, lt=10)],
    Annotated[str, Field(min_length=1, max_length=2)] | None,
    Annotated[list[str | bool], Field(max_length=2)],
    dict[str, list[int]],
    Literal["", "a", "\u4f60\u597d"],
]
ADAPTERS = [pydantic.TypeAdapter(shape) for shape in SHAPES]
whole = st.integers(-(10**9), 10**9)  # to pydantic 3.0 is no integer, to JSON schema it is
plain_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | whole | st.just(0.5) | letters | st.just("\u4f60\u597d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=["int", "str", "list", "dict", "one of"])
@many
@given(
    value=plain_values | st.lists(letters | st.booleans()) | st.dictionaries(letters, st.just([1]))
)
@example(value=2)
@example(value="")
@example(value="a")
@example(value="e\u0301")
@example(value="\U0001f469\u200d\U0001f467")
def test_json_schema_is_what_pydantic_accepts(shape: int, value: Any) -> None:
    """pydantic writes the schema, and judges without it."""
    adapter, text = ADAPTERS[shape], json.dumps(value)
    try:
        adapter.validate_json(text, strict=True)
        expected = 1.0
    except pydantic.ValidationError:
        expected = 0.0
    assert scored(objectives.JSONSchema(adapter.json_schema()), text, []) == expected


def test_json_schema_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(SCHEMA))
    assert scored(f"json_schema:schema={path}", '{"age": 1}', []) == 1.0
    assert scored(f"json_schema:{path}", '{"age": -1}', []) == 0.0


def test_texts_nested_too_deeply_are_no_crash() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert scored("json_valid", deep, []) in (0.0, 1.0)
    recursive = objectives.JSONSchema({"items": {"$ref": "#"}})
    assert scored(recursive, "[" * 900 + "]" * 900, []) in (0.0, 1.0)


def test_schemas_are_not_fetched() -> None:
    objective = objectives.JSONSchema({"$ref": "http://127.0.0.1:9/schema.json"})
    assert "Unresolvable" in (judge(objective, answered(["1"], [[]])).error or "")


# Lengths --------------------------------------------------------------------------------------

units = st.sampled_from(["words", "characters"])


@many
@given(texts, units, st.integers(0, 6), st.integers(0, 6))
def test_length(text: str, unit: str, a: int, b: int) -> None:
    count = len(re.findall(r"\S+", text)) if unit == "words" else sum(1 for _ in text)
    if unit == "words":  # \s and str.split differ in the control characters FS to US
        count = len(re.findall(r"[^\s\x1c-\x1f]+", text))
    assert scored(f"length:unit={unit}", text, []) == count
    low, high = min(a, b), max(a, b)
    outside = max(Fraction(low - count, low or 1), Fraction(count - high, high or 1), Fraction(0))
    expected = max(0.0, 1 - float(outside))
    if (low, high) != (0, 0):
        got = scored(objectives.LengthLimit(high, low, unit), text, [])
        assert got == pytest.approx(expected)
    if low:
        assert scored(objectives.LengthLimit(min=low, unit=unit), text, []) == min(1, count / low)


@many
@given(texts, units, st.integers(1, 4))
def test_repetition(text: str, unit: str, n: int) -> None:
    parts = text.split() if unit == "words" else list(text)
    seen: list[list[str]] = []
    repeated = 0
    for i in range(len(parts) - n + 1):
        repeated += parts[i : i + n] in seen
        seen.append(parts[i : i + n])
    got = scored(f"repetition:n={n},unit={unit}", text, [])
    assert got == pytest.approx(repeated / len(seen) if seen else 0.0)


# All of them ----------------------------------------------------------------------------------

CHOOSING = [
    "accuracy", "accuracy:top=2", "balanced_accuracy", "mcc", "f1", "f1:average=weighted",
    "precision", "recall:average=binary", "roc_auc", "average_precision", "margin", "loglikelihood",
]  # fmt: skip
WRITING = [
    "exact_match", "token_f1", "token_f1:version=2.0", "drop_f1", "rouge", "rouge:kind=rougeLsum",
    "bleu", "sentence_bleu", "chrf", "sentence_chrf", "ter", "sentence_ter", "edit_similarity",
    "numeric_match", "regex_match:m.*", "json_valid", "json_schema:column=schema", "length",
    "length_limit:max=3,min=2", "repetition:n=1",
]  # fmt: skip


def test_all_of_the_catalogue_is_here() -> None:
    here = {spec.partition(":")[0] for spec in (*CHOOSING, *WRITING)}
    elsewhere = {"reward", "math_match", "http", "command", "pass_at_1", "sum"}
    elsewhere |= {"evaluate", "sklearn", "torchmetrics", "reward_model"}
    assert here | elsewhere == set(objectives.CATALOGUE)


def holds(objective: Objective, batch: Batch, turned: Batch) -> None:
    """Within bounds, whatever the order, one by one as all at once; nothing warns."""
    low, high = objective.bounds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = objective.value(batch)
        again = objective.value(turned)
        scores = objective.score(batch) if objective.decomposable else []
    for number in filter(is_score, [value, *scores]):
        assert low is None or number >= low
        assert high is None or number <= high
    assert again == pytest.approx(value, nan_ok=True)
    if objective.decomposable:
        assert objective.score(turned) == scores[::-1]


@pytest.mark.parametrize("spec", CHOOSING)
@settings(max_examples=60)
@given(given=sets)
def test_any_choices(spec: str, given: list[Line]) -> None:
    holds(made(spec), chosen(given), chosen(given[::-1]))


@pytest.mark.parametrize("spec", WRITING)
@settings(max_examples=60)
@given(corpus=corpora)
def test_any_texts(spec: str, corpus: list[tuple[str, list[str]]]) -> None:
    schema = [{"type": "number"}] * len(corpus)
    batch = answered([c for c, _ in corpus], [r for _, r in corpus], schema=schema)
    holds(made(spec), batch, batch.select(range(len(corpus))[::-1]))


@pytest.mark.parametrize("spec", [*CHOOSING, *WRITING, "math_match"])
def test_nothing_to_score_is_no_number(spec: str) -> None:
    empty = Batch([], [], {"schema": []}, [], [], [], [])
    assert math.isnan(as_objective(spec).value(empty))


@pytest.mark.parametrize("spec", [*CHOOSING, *WRITING, "math_match"])
def test_workers_can_be_sent_one(spec: str) -> None:
    objective = as_objective(spec)
    batch = (
        chosen([(0, [-1.0, -2.0]), (1, [-2.0, -1.0]), (0, [-2.0, -1.0])])
        if spec in CHOOSING
        else answered(["old mill 3"], [["the mill 3"]], schema=[True])
    )
    before = objective.value(batch)
    assert is_score(before)
    assert pickle.loads(pickle.dumps(objective)).value(batch) == before


@pytest.mark.parametrize("spec", [s for s in WRITING if "2.0" not in s and "schema" not in s][:11])
@pytest.mark.parametrize(
    ("references", "problem"),
    [("the mill", "is not a list of accepted texts"), ([], "no accepted")],
)
def test_references_that_are_none(spec: str, references: Any, problem: str) -> None:
    assert problem in (judge(as_objective(spec), answered(["mill"], [references])).error or "")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("rouge", "rouge_score", "text"),
        ("bleu", "sacrebleu", "text"),
        ("sentence_ter", "sacrebleu", "text"),
        ("edit_similarity", "rapidfuzz", "text"),
        ("math_match", "math_verify", "math"),
        ("json_schema:column=schema", "jsonschema", "json"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'zoobj\[{extra}\]'"):
        as_objective(name)


def test_extras_are_those_of_the_project() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for where in objectives.CATALOGUE.values():
        extra = getattr(getattr(objectives, where.partition(":")[2]), "extra", None)
        assert extra is None or f"\n{extra} = [" in declared


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("accuracy:top=0", "top 0 is not a whole number from 1"),
        ("precision:average=marco", "precision: unknown average 'marco'; did you mean 'macro'"),
        ("roc_auc:pos_label=2", "pos_label 2 is neither 0 nor 1"),
        ("token_f1:version=1.0", "token_f1:1.0: unknown version 1.0; take 1.1 or 2.0"),
        ("exact_match:no_answer=none", "add version=2.0"),
        ("token_f1:version=2.0,no_answer=no", "no_answer False is not a text"),
        ("drop_f1:separator=", "separator None is not a text"),
        ("rouge:kind=rougel", "unknown kind 'rougel'; did you mean 'rougeL'"),
        ("bleu:tokenize=spm", "unknown tokenize 'spm'"),
        ("chrf:word_order=-1", "word_order -1 is not a whole number from 0"),
        ("numeric_match:strict=maybe", "strict 'maybe' is neither true nor false"),
        ("math_match:seconds=0.5", "seconds 0.5 is not a whole number"),
        ("chrf:lowercase=maybe", "lowercase 'maybe' is neither true nor false"),
        ("sklearn:f1_score:higher_is_better=2", "higher_is_better 2 is neither true nor false"),
        ("pass_at_1:workers=many", "workers 'many' is not a number"),
        ("command:program=cat,timeout=soon", "timeout 'soon' is not a number"),
        ("command:program=cat,low=worst", "low 'worst' is not a number"),
        ("command:program=3", "no program '3'"),
        ("f1:average=3", "unknown average 3; choose from"),
        ("f1:average=binary,pos_label=yes", "pos_label True is not a number"),
        ("regex_match:pattern=[ab]", "YAML takes the pattern for ['ab']: give it alone"),
        ("regex_match:(", "pattern '(': missing )"),
        ("json_schema", "give schema (a file) or column"),
        ("json_schema:gone.json", "schema gone.json: No such file or directory"),
        ("length:unit=word", "unknown unit 'word'; did you mean 'words'"),
        ("length_limit", "length_limit has no limit"),
        ("length_limit:max=2,min=3", "max 2 is below min 3"),
        ("length_limit:max=-1", "-1 is not a whole number"),
        ("repetition:n=0", "n 0 is not a whole number from 1"),
    ],
)
def test_options_that_make_no_sense(spec: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        as_objective(spec)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "is not JSON"), ('{"type": "objekt"}', "is no JSON schema")]
)
def test_files_that_hold_no_schema(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        as_objective(f"json_schema:{tmp_path / 'bad.json'}")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({}, "there is no column 'schema'; there are: none"),
        ({"schema": ["{"]}, "schema '{'"),
        ({"schema": [{"type": 3}]}, "is no JSON schema"),
    ],
)
def test_columns_that_hold_no_schema(rows: dict[str, list[Any]], problem: str) -> None:
    objective = objectives.JSONSchema(column="schema")
    assert problem in (judge(objective, answered(["1"], [[]], **rows)).error or "")


def test_the_table_of_the_docs_is_the_code_s() -> None:
    page = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- table -->\n")[2].partition("\n<!-- end of table -->")[0]
    helper = import_file(ROOT / "scripts/table_of_objectives.py")
    assert shown == helper.table(), "python scripts/table_of_objectives.py prints it"
