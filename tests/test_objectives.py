"""zoobj.objectives against outside references, and what may be given as an objective."""

import asyncio
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.evaluation import validate
from zoobj.objective import Batch, Objective, Score, ScoreError, as_objective
from zoobj.objectives import F1, Accuracy, ExactMatch, LogLikelihood, Reward, TokenF1
from zoobj.outcome import judge
from zoobj.scoring import Scorer
from zoobj.task import Example, Task


def answered(completions: Sequence[str], references: Sequence[Any], **rows: list[Any]) -> Batch:
    return Batch(
        prompts=[f"prompt {i}" for i in range(len(completions))],
        references=list(references),
        completions=list(completions),
        rows=rows,
    )


def chosen(predictions: Sequence[int], references: Sequence[int]) -> Batch:
    return Batch(
        prompts=[""] * len(predictions),
        references=list(references),
        predictions=list(predictions),
        completions=[f"word {label}" for label in predictions],
    )


many = settings(max_examples=200)

# Choices against scikit-learn -----------------------------------------------------------------

labels = st.integers(2, 5).flatmap(
    lambda classes: st.lists(
        st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=20
    )
)


@many
@given(labels)
@example([(0, 0)])
@example([(0, 1), (0, 1)])
def test_accuracy(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = zip(*pairs, strict=True)
    batch = chosen(predicted, gold)
    assert Accuracy().value(batch) == pytest.approx(accuracy_score(gold, predicted))
    assert Accuracy().score(batch) == [float(p == g) for p, g in pairs]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@many
@given(pairs=labels)
@example(pairs=[(0, 0)])
@example(pairs=[(1, 1), (1, 1)])
@example(pairs=[(0, 1), (0, 1)])
def test_f1(average: str, pairs: list[tuple[int, int]]) -> None:
    """Whatever classes a batch lacks among its predictions, its gold answers or both."""
    predicted, gold = zip(*pairs, strict=True)
    expected = f1_score(gold, predicted, average=average, zero_division=0.0)
    assert F1(average=average).value(chosen(predicted, gold)) == pytest.approx(expected)


@many
@given(labels, st.integers(0, 2))
def test_binary_f1_is_that_of_one_class(pairs: list[tuple[int, int]], positive: int) -> None:
    predicted, gold = zip(*pairs, strict=True)
    (expected,) = f1_score(gold, predicted, labels=[positive], average=None, zero_division=0.0)
    got = F1(average="binary", pos_label=positive).value(chosen(predicted, gold))
    assert got == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "binary"])
def test_f1_of_one_class_warns_of_nothing(average: str) -> None:
    assert F1(average=average).value(chosen([0, 0], [0, 0])) == (average != "binary")
    assert F1(average=average).value(chosen([1], [0])) == 0.0


def test_f1_by_spec() -> None:
    made = as_objective("f1:average=binary,pos_label=0")
    assert (made.average, made.pos_label) == ("binary", 0)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="unknown average 'marco'; did you mean 'macro'"):
        F1(average="marco")


# Text against torchmetrics --------------------------------------------------------------------

words = st.sampled_from(
    "the The a An mill mill. old Old, old-mill two it's theatre 1,000 -- \u2019 \u00a0 \u0130 "
    "caf\u00e9 CAF\u00c9 cafe\u0301 \u00dftrasse \u4f60\u597d \u041c\u0415\u041b\u042c".split(" ")
)
texts = st.one_of(
    st.lists(words, max_size=6).map(" ".join),
    st.text(alphabet=" \t\na,.AN'\u00e9\u3000the-\U0001f600", max_size=15),
    st.text(max_size=8),
)
answers = st.lists(texts, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def official() -> Callable[[str, list[str]], tuple[float, float]]:
    """Exact match and F1 of one completion by torchmetrics' copy of SQuAD's evaluation."""
    text = pytest.importorskip("torchmetrics.text", reason="torchmetrics is the outside reference")
    metric = text.SQuAD()

    def score(completion: str, references: list[str]) -> tuple[float, float]:
        metric.reset()
        starts = [0] * len(references)
        metric.update(
            [{"prediction_text": completion, "id": "0"}],
            [{"answers": {"answer_start": starts, "text": references}, "id": "0"}],
        )
        result = metric.compute()
        return float(result["exact_match"]) / 100, float(result["f1"]) / 100

    return score


@settings(max_examples=300)
@given(texts, answers)
@example("\u00dfe", ["sse"])  # lower case, not folded
@example("thea", ["a"])
@example("the-mill", ["themill"])
@example("an\u00a0old \u2019mill\u2019", ["old mill"])
@example("the", ["a", "mill"])
@example("mill mill old", ["mill", "mill old old"])
def test_text_scores_are_those_of_squad(
    official: Callable[..., tuple[float, float]], completion: str, references: list[str]
) -> None:
    batch = answered([completion], [references])
    exact, f1 = official(completion, references)
    assert ExactMatch().score(batch) == [exact]
    assert TokenF1().score(batch) == pytest.approx([f1], abs=1e-6)


@many
@given(texts, st.lists(texts, max_size=3))
@example("", [])
@example("mill", [])
@example("the", ["", "mill"])
def test_text_scores_of_squad_2_are_those_of_squad(
    official: Callable[..., tuple[float, float]], completion: str, references: list[str]
) -> None:
    """Of the answers that have a word; where there are none, the empty one is accepted."""
    said = [text for text in references if official(text, [""]) == (0.0, 0.0)]
    exact, f1 = official(completion, said or [""])
    batch = answered([completion], [references])
    assert ExactMatch(version=2.0).score(batch) == [exact]
    assert TokenF1(version=2.0).score(batch) == pytest.approx([f1], abs=1e-6)


@settings(max_examples=50)
@given(st.lists(texts, min_size=1, max_size=4))
def test_an_accepted_answer_has_full_marks(references: list[str]) -> None:
    batch = answered(references, [references] * len(references))
    assert ExactMatch().value(batch) == TokenF1().value(batch) == 1.0


@given(st.lists(st.tuples(texts, answers), min_size=1, max_size=6))
def test_a_set_is_the_mean_of_its_examples(pairs: list[tuple[str, list[str]]]) -> None:
    batch = answered([c for c, _ in pairs], [r for _, r in pairs])
    for objective in (ExactMatch(), TokenF1()):
        one_by_one = [objective.score(answered([c], [r]))[0] for c, r in pairs]
        assert objective.score(batch) == one_by_one
        assert objective.value(batch) == pytest.approx(np.mean(one_by_one))  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [ExactMatch(), TokenF1()])
@pytest.mark.parametrize("reference", ["the mill", 1])
def test_a_reference_that_is_no_list(objective: Objective, reference: object) -> None:
    """The characters of a text would make a silent nonsense score."""
    outcome = judge(objective, answered(["mill"], [reference]))
    assert f"reference {reference!r} is not a list of accepted texts" in (outcome.error or "")


@pytest.mark.parametrize("objective", [Accuracy(), F1()])
def test_a_task_of_text_has_no_choices_to_validate(objective: Objective) -> None:
    with pytest.raises(UserError, match="needs predictions of choices, but task squad_mini"):
        list(validate(ZOConfig(task="squad_mini", objective=objective.name)))


# Log-likelihood against cross entropy ---------------------------------------------------------


class Answer(Task):
    name = "answer"

    def prompt(self, row: dict[str, Any]) -> str:
        return str(row["text"])

    def reference(self, row: dict[str, Any]) -> list[str]:
        return list(row["answers"])


def likely(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Batch:
    given = [Example(i, str(r["text"]), r["answers"], r) for i, r in enumerate(rows)]
    return Scorer(model, tokenizer, Answer())(given, LogLikelihood.needs)


def minus_cross_entropy(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """As transformers has it, times the tokens that it is the mean over."""
    prompt = tokenizer(row["text"])["input_ids"]
    answer = tokenizer(f" {row['answers'][0]}")["input_ids"]
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        return -float(model(ids, labels=labels).loss) * len(answer)


@settings(max_examples=50)
@given(st.lists(st.tuples(texts.filter(str.strip), texts), min_size=4, max_size=6))
@example([("mill", ""), ("cafe\u0301", "\U0001f600"), ("\u4f60", "\u597d"), ("the", "the")])
def test_loglikelihood_of_any_texts(model: Any, tokenizer: Any, pairs: list[Any]) -> None:
    """Of 200 pairs and more, several at a time, so that they are padded."""
    rows = [{"text": prompt.strip(), "answers": [answer.strip()]} for prompt, answer in pairs]
    expected = [minus_cross_entropy(model, tokenizer, row) for row in rows]
    got = LogLikelihood().score(likely(model, tokenizer, rows))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_loglikelihood_is_minus_the_cross_entropy(model: Any, tokenizer: Any) -> None:
    rows = [
        {"text": "Question: Where did the mill stand? Answer:", "answers": ["by the river", "x"]},
        {"text": "One", "answers": ["two three"]},
        {"text": "\u4f60", "answers": ["\u597d"]},
    ]
    batch = likely(model, tokenizer, rows)
    expected = [minus_cross_entropy(model, tokenizer, row) for row in rows]
    assert LogLikelihood().score(batch) == pytest.approx(expected, abs=2e-5)
    assert LogLikelihood().value(batch) == pytest.approx(np.mean(expected), abs=2e-5)
    assert not LogLikelihood.bounds[0]
    assert LogLikelihood.higher_is_better


# as_objective ---------------------------------------------------------------------------------


class Length(Objective):
    name, bounds = "length", (0.0, None)

    def score(self, batch: Batch) -> list[Score]:
        return [float(len(text)) for text in batch.completions or []]


def length(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def reward_file(tmp_path: Path) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(
        "from zoobj.objective import Objective\n"
        "def length(completions, **kwargs):\n"
        "    return [float(len(text)) for text in completions]\n"
        "class Length(Objective):\n"
        "    name = 'length'\n"
        "    def __init__(self, factor=1): self.factor = factor\n"
        "    def score(self, batch): return [self.factor * len(t) for t in batch.completions]\n"
        "NUMBER = 3\n"
    )
    return str(path)


@pytest.mark.parametrize("thing", [Length, Length(), length, functools.partial(length)])
def test_things_that_are_objectives(thing: Any) -> None:
    made = as_objective(thing)
    assert made.score(answered(["ab", "abc"], [[], []])) == [2.0, 3.0]
    assert made.decomposable
    assert made.needs == {"completions"}
    assert made.name
    assert as_objective(made) is made


@pytest.mark.parametrize(
    ("attr", "name", "score"),
    [("length", "length", 2.0), ("Length", "length", 2.0), ("Length:factor=3", "length", 6.0)],
)
def test_things_in_a_file(reward_file: str, attr: str, name: str, score: float) -> None:
    made = as_objective(f"{reward_file}:{attr}")
    assert made.name == name
    assert made.score(answered(["ab"], [[]])) == [score]


def test_reward_of_a_file(reward_file: str) -> None:
    made = as_objective(f"reward:{reward_file}:length")
    assert made.name == "length"
    assert made.score(answered(["ab"], [[]])) == [2.0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("accuracy", Accuracy),
        ("exact_match", ExactMatch),
        ("f1", F1),
        ("loglikelihood", LogLikelihood),
        ("token_f1", TokenF1),
        ("zoobj.objectives.token_f1:TokenF1", TokenF1),
    ],
)
def test_objectives_by_name(name: str, kind: type[Objective]) -> None:
    made = as_objective(name)
    assert type(made) is kind
    assert ":" in name or made.name == name


def refused(thing: Any) -> str:
    with pytest.raises(UserError) as caught:
        as_objective(thing)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("thing", [3, None, int, [3], {"name": 3}])
def test_things_that_are_no_objective(thing: Any) -> None:
    shown = 3 if isinstance(thing, (list, dict)) else thing
    assert f"{shown!r} is no objective: give a name, an Objective, a function" in refused(thing)


@pytest.mark.parametrize("thing", [F1, Reward])
def test_a_class_whose_arguments_are_missing(thing: type[Objective]) -> None:
    if thing is F1:  # has defaults for all
        assert as_objective(thing).name == "f1"
    else:
        assert "'fn'" in refused(thing)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("acuracy", "unknown objective 'acuracy'; did you mean 'accuracy'"),
        ("gone.py:f", "no file gone.py"),
        ("zoobj.nowhere:f", "unknown objective 'zoobj.nowhere:f'"),
        ("reward", "missing a required argument: 'fn'"),
        ("accuracy:average=macro", "got an unexpected keyword argument 'average'"),
        ("f1:average=x", "unknown average 'x'"),
        ("zoobj.objective:Score", "is no objective"),
    ],
)
def test_specs_that_name_no_objective(spec: str, problem: str) -> None:
    assert problem in refused(spec)


@pytest.mark.parametrize(
    ("attr", "problem"),
    [
        ("lenght", "has no function or class 'lenght'; did you mean 'length'"),
        ("NUMBER", "NUMBER' is no objective: give a name"),
        ("length:factor=2", "is not a class and takes no arguments"),
    ],
)
def test_files_that_hold_no_objective(reward_file: str, attr: str, problem: str) -> None:
    assert problem in refused(f"{reward_file}:{attr}")


class Nameless(Length):
    name = ""


class Greedy(Length):
    needs = frozenset({"completions", "logits"})


class Scoreless(Objective):
    name = "scoreless"


class Valueless(Objective):
    name, decomposable = "valueless", False


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Nameless, "Nameless has no name: set the class attribute 'name'"),
        (Greedy, "Greedy needs unknown columns ['logits']: choose from completions, predictions"),
        (Scoreless, "Scoreless must define score() (decomposable=True)"),
        (Valueless, "Valueless must define value() (decomposable=False)"),
    ],
)
def test_breaches_of_the_contract(kind: type[Objective], problem: str) -> None:
    assert problem in refused(kind)
    assert problem in refused(kind())


def test_a_decomposable_value_is_the_mean_of_what_could_be_scored() -> None:
    batch = answered(["", "a", "bcd"], [[]] * 3)
    assert Length().value(batch) == pytest.approx(4 / 3)
    assert Length().value(batch, [None, 2.0, math.nan]) == 2.0
    assert math.isnan(Length().value(batch, [None, math.inf, -math.inf]))


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), max_size=6))
def test_select_takes_every_column(order: list[int], repeats: list[int]) -> None:
    full = Batch(
        prompts=list("abcd"),
        references=[0, 1, 2, 3],
        rows={"id": [0, 1, 2, 3]},
        predictions=[0, 1, 2, 3],
        label_scores=[[float(i)] for i in range(4)],
        reference_logprob=[0.0, 1.0, 2.0, 3.0],
    )
    for pick in (order, repeats, []):
        part = full.select(pick)
        assert len(part) == len(pick)
        assert part.prompts == ["abcd"[i] for i in pick]
        assert part.references == part.rows["id"] == part.predictions == pick
        assert part.label_scores == [[float(i)] for i in pick]
        assert part.reference_logprob == [float(i) for i in pick]
        assert part.completions is None


# Reward ---------------------------------------------------------------------------------------


def reward(fn: Any, completions: Sequence[str] = ("one", "two"), **rows: list[Any]) -> list[Score]:
    return Reward(fn).score(answered(completions, [["gold"]] * len(completions), **rows))


def failed(fn: Any, **rows: list[Any]) -> str:
    with pytest.raises(ScoreError) as caught:
        reward(fn, **rows)
    return str(caught.value)


def test_arguments_are_given_by_name() -> None:
    seen: dict[str, Any] = {}

    def fn(
        references: Any, answer: Any, prompts: Any, completions: Any = (), depth: int = 4
    ) -> Any:
        seen.update(locals())
        return [0, 1]

    assert reward(fn, answer=["x", "y"], other=[1, 2]) == [0.0, 1.0]
    assert seen["prompts"] == ["prompt 0", "prompt 1"]
    assert seen["completions"] == ["one", "two"]
    assert seen["references"] == [["gold"], ["gold"]]
    assert (seen["answer"], seen["depth"]) == (["x", "y"], 4)


def test_kwargs_have_all_columns() -> None:
    def fn(completions: Any, **kwargs: Any) -> Any:
        assert set(kwargs) == {"prompts", "references", "predictions", "answer", "a b"}
        assert kwargs["answer"] == ["x", "y"]
        return [1, 1]

    assert reward(fn, **{"answer": ["x", "y"], "a b": [1, 2]}) == [1.0, 1.0]


def test_our_columns_win_over_the_data_sets() -> None:
    def fn(prompts: list[str], completions: list[str]) -> list[float]:
        assert (prompts, completions) == (["prompt 0"], ["one"])
        return [1.0]

    theirs = {"prompts": ["theirs"], "completions": ["theirs"]}
    assert Reward(fn).score(dataclasses.replace(answered(["one"], [[]]), rows=theirs)) == [1.0]


async def waits(completions: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return [1.0] * len(completions)


def test_coroutines_are_awaited_with_and_without_a_loop_running() -> None:
    assert reward(waits) == [1.0, 1.0]

    async def notebook() -> list[Score]:
        return reward(waits)

    assert asyncio.run(notebook()) == [1.0, 1.0]


class Judge:
    """A reward with a state."""

    def __call__(self, completions: list[str], **kwargs: Any) -> list[int]:
        return [len(text) for text in completions]

    def method(self, completions: list[str]) -> list[int]:
        return self(completions)

    @staticmethod
    def static(completions: list[str]) -> list[int]:
        return Judge()(completions)


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (Judge(), "Judge"),
        (Judge().method, "method"),
        (Judge.static, "static"),
        (functools.partial(length, factor=2), "partial"),
    ],
)
def test_other_callables(fn: Callable[..., Any], name: str) -> None:
    made = Reward(fn)
    assert made.name == name
    assert made.score(answered(["a", "bc"], [[], []])) == [1.0, 2.0]
    assert Reward(fn, name="mine").name == "mine"


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5], (1, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5]), [True, np.float32(0.5)]],
)
def test_kinds_of_numbers(returned: Any) -> None:
    scores = reward(lambda completions: returned)
    assert scores == [1.0, 0.5]
    assert all(type(score) is float for score in scores)


def test_what_could_not_be_scored_stays_so() -> None:
    scores = reward(lambda completions: [None, math.nan])
    assert scores[0] is None
    assert math.isnan(scores[1] or 0)
    outcome = judge(Reward(lambda completions: [None, 1.0]), answered(["a", "b"], [[], []]))
    assert (outcome.failed, outcome.value) == (1, 1.0)


def test_numbers_without_end() -> None:
    assert reward(lambda completions: [10**400, 1]) == [None, 1.0]


def none_at_all(completions: Any) -> Any:
    return None


def too_short(completions: Any) -> Any:
    return [1.0]


def in_words(completions: Any) -> Any:
    return [1.0, "good"]


def broken(completions: Any) -> Any:
    raise KeyError("answer")


def wants_more(completions: Any, answer: Any) -> Any:
    return [1.0, 1.0]


@pytest.mark.parametrize(
    ("fn", "problem", "remedy"),
    [
        (none_at_all, "returned None", "return a list"),
        (lambda completions: {0: 1.0, 1: 1.0}, "returned {0: 1.0, 1: 1.0}", "return a list"),
        (lambda completions: {1.0, 0.5}, "returned {", "return a list"),
        (lambda completions: "11", "returned '11'", "return a list"),
        (lambda completions: ["1", 1.0], "returned '1' as a score", "return numbers or None"),
        (lambda completions: [b"1", 1.0], "returned b'1' as a score", "return numbers or None"),
        (lambda completions: np.array(["1", "1"]), "returned ", "return numbers or None"),
        (lambda completions: torch.ones(2, 2), "returned tensor", "return numbers or None"),
        (too_short, "returned 1 scores for 2 completions", "return one for each"),
        (in_words, "returned 'good' as a score", "return numbers or None"),
        (broken, "raised KeyError: 'answer'", "mend the function"),
        (wants_more, "takes 'answer', which is not there", "it may take completions, predictions"),
    ],
)
def test_failures_name_file_function_problem_and_remedy(
    fn: Callable[..., Any], problem: str, remedy: str
) -> None:
    message = failed(fn, question=["q", "q"])
    assert message.startswith(f"test_objectives.py, function {fn.__name__!r} {problem}")
    assert remedy in message
    outcome = judge(Reward(fn), answered(["one", "two"], [[], []], question=["q", "q"]))
    assert outcome.error == message
    assert outcome.failed == 2


def test_a_failure_in_a_file_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def bad(completions):\n    return 1 / 0\n")
    assert f"{path}, function 'bad' raised ZeroDivisionError" in failed(f"{path}:bad")


def test_a_missing_column_lists_what_is_there() -> None:
    message = failed(wants_more, question=["q", "q"])
    assert "question" in message
    assert "references" in message
    assert "label_scores" not in message


@pytest.mark.parametrize("fn", [3, "zoobj.objective:COLUMNS", "zoobj.objective:Objective"])
def test_things_that_are_no_function(fn: Any) -> None:
    with pytest.raises(UserError, match="is not a function"):
        Reward(fn)


# Set-level functions --------------------------------------------------------------------------


def share(predictions: list[Any], references: list[Any]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(predictions)


def test_a_set_level_function_on_choices_gets_label_ids() -> None:
    made = Reward(share)
    assert not made.decomposable
    assert made.value(chosen([1, 0, 1], [1, 1, 1])) == pytest.approx(2 / 3)
    assert judge(made, chosen([1, 0], [1, 1])).value == 0.5
    assert judge(made, chosen([1, 0], [1, 1])).scores is None


def test_a_set_level_function_on_text_gets_completions() -> None:
    def inside(predictions: list[str], references: list[list[str]]) -> float:
        return share([p in r for p, r in zip(predictions, references, strict=True)], [True, True])

    assert Reward(inside).value(answered(["a", "b"], [["a", "x"], ["y"]])) == 0.5


@pytest.mark.parametrize("result", [0.25, np.float64(0.25), {"f1": 0.25, "n": 9}])
def test_kinds_of_set_level_results(result: Any) -> None:
    assert Reward(lambda predictions, references: result).value(chosen([1], [1])) == 0.25


@pytest.mark.parametrize(
    ("result", "problem"),
    [({}, "returned an empty dict"), ("good", "returned 'good' as a score"), ([], "returned []")],
)
def test_set_level_results_that_are_none(result: Any, problem: str) -> None:
    outcome = judge(Reward(lambda predictions, references: result), chosen([1], [1]))
    assert problem in (outcome.error or "")
    assert math.isnan(outcome.value)


def test_a_set_level_none_could_not_be_scored() -> None:
    outcome = judge(Reward(lambda predictions, references: None), chosen([1, 0], [1, 1]))
    assert math.isnan(outcome.value)
    assert outcome.failed == 2


def test_settings_of_a_reward() -> None:
    made = Reward(length, higher_is_better=False, bounds=(0.0, 10.0))
    assert (made.higher_is_better, made.bounds) == (False, (0.0, 10.0))
    assert judge(made, answered(["a", "bc"], [[], []])).value == 1.5


@pytest.mark.parametrize(
    ("fn", "needs"),
    [
        (lambda completions: [], {"completions"}),
        (lambda prompts, **kwargs: [], {"completions"}),
        (lambda label_scores: [], {"label_scores"}),
        (lambda completions, reference_logprob: [], {"completions", "reference_logprob"}),
        (share, {"completions"}),
    ],
)
def test_needs_are_what_a_function_takes(fn: Callable[..., Any], needs: set[str]) -> None:
    assert Reward(fn).needs == needs


def test_a_column_that_scoring_fills_is_passed_on() -> None:
    batch = dataclasses.replace(chosen([1], [1]), label_scores=[[-2.0, -1.0]])
    made = Reward(lambda label_scores: [max(line) for line in label_scores])
    assert made.score(batch) == [-1.0]
