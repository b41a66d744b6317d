"""Sums, limits and what is only logged: arithmetic, failures, the log, runs that are cut off."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from test_trainer import lines, small

from zoobj import ZOTrainer
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.evaluation import evaluate, validate
from zoobj.journal import Journal
from zoobj.objective import Batch, Objective, Score, as_objective
from zoobj.objectives import F1, Accuracy, ExactMatch, Sum, TokenF1
from zoobj.outcome import judge
from zoobj.parts import rewards
from zoobj.signal import compare, paired_bootstrap
from zoobj.task import Example


class Given(Objective):
    """Scores that are a column of the batch; counts how often it is asked."""

    def __init__(
        self,
        name: str,
        higher_is_better: bool = True,
        bounds: tuple[float | None, float | None] = (None, None),
    ):
        self.name, self.higher_is_better, self.bounds = name, higher_is_better, bounds
        self.calls = 0

    def score(self, batch: Batch) -> list[Score]:
        self.calls += 1
        return list(batch.rows[self.name])


class Spread(Given):
    """Highest minus lowest score: set-level."""

    decomposable = False

    def value(self, batch: Batch, scores: Sequence[Score] | None = None) -> float:
        self.calls += 1
        column = batch.rows[self.name]
        return max(column) - min(column)


def columns(**rows: list[Any]) -> Batch:
    n = len(next(iter(rows.values())))
    return Batch(prompts=["?"] * n, references=[[]] * n, completions=["text"] * n, rows=rows)


scores = st.one_of(st.none(), st.floats(-10, 10))
tables = st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=8)
weights = st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)

# The arithmetic -------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tables, weights, st.floats(0.01, 2))
def test_a_sum_is_the_weighted_sum(table: list[Any], first: float, second: float) -> None:
    """Lower is better counts negatively; None in a part that counts is None in the sum."""
    up, down, beside = zip(*table, strict=True)
    made = as_objective(
        [
            {"name": Given("up"), "weight": first},
            {"name": Given("down", higher_is_better=False), "weight": second},
            {"name": Given("beside"), "weight": 0},
        ]
    )
    assert made.decomposable
    batch = columns(up=list(up), down=list(down), beside=list(beside))
    got = made.score(batch)
    for score, a, b in zip(got, up, down, strict=True):
        if a is None or b is None:
            assert score is None
        else:
            assert score == pytest.approx(first * a - second * b)
    outcome = judge(made, batch)
    assert outcome.scores == got
    assert outcome.failed == sum(a is None or b is None for a, b, _ in table)
    known = [score for score in got if score is not None]
    mean = math.fsum(known) / len(known) if known else math.nan
    assert outcome.value == pytest.approx(mean, nan_ok=True)
    assert outcome.beside["beside"].failed == sum(score is None for score in beside)


@settings(max_examples=25)
@given(weights, weights)
def test_operators_are_the_list(first: float, second: float) -> None:
    a, b, c = Given("a"), Given("b"), Given("c", higher_is_better=False)
    made = first * a - b * second + 0.5 * c
    told = as_objective(
        [
            {"name": a, "weight": first},
            {"name": b, "weight": -second},
            {"name": c, "weight": 0.5},
        ]
    )
    assert made.parts == told.parts == {"a": a, "b": b, "c": c}
    assert made.terms == told.terms
    assert made.name == told.name


def test_operators_on_whole_sums() -> None:
    a, b = Given("a"), Given("b")
    made = -(2 * (a + 3 * b) - a)
    assert [terms["weight"] for terms in made.terms.values()] == [-2.0, -6.0, 1.0]
    assert list(made.parts) == ["a", "b", "a_2"]
    assert (made.higher_is_better, made.name) == (True, "-2*a-6*b+a_2")


def test_set_level_parts_make_a_set_level_sum() -> None:
    gold, predicted = [1, 0, 0, 2, 1], [1, 1, 0, 0, 1]
    batch = Batch(prompts=[""] * 5, references=gold, predictions=predicted)
    made = F1() + 0.5 * Accuracy()
    assert not made.decomposable
    assert made.needs == {"predictions"}
    expected = f1_score(gold, predicted, average="macro") + 0.5 * accuracy_score(gold, predicted)
    assert made.value(batch) == judge(made, batch).value == pytest.approx(expected)
    assert judge(made, batch).scores is None


def test_needs_are_those_of_all_parts() -> None:
    made = as_objective(["token_f1", {"name": "loglikelihood", "weight": 0}])
    assert made.needs == {"completions", "reference_logprob"}


bounded = st.floats(-5, 5).flatmap(
    lambda low: st.floats(0.1, 5).map(lambda width: (low, low + width))
)


@given(bounded, bounded, weights, st.floats(-6, 6), st.booleans(), st.data())
def test_values_are_within_the_bounds(
    first: Any, second: Any, weight: float, limit: float, lexicographic: bool, data: Any
) -> None:
    parts = [
        {"name": Given("a", bounds=first), "weight": weight},
        {"name": Given("b", bounds=second), "at_most": limit, "weight": 0.5},
    ]
    made = Sum(parts, lexicographic=lexicographic)
    a, b = (data.draw(st.floats(low, high)) for low, high in (first, second))
    low, high = made.bounds
    assert low is not None
    assert high is not None
    assert low - 1e-9 <= made.value(columns(a=[a], b=[b])) <= high + 1e-9


def test_bounds_without_limit() -> None:
    length = Given("length", higher_is_better=False, bounds=(0.0, None))
    assert (0.5 * ExactMatch() + length).bounds == (None, 0.5)
    assert (0.5 * ExactMatch() - Given("x")).bounds == (None, None)
    assert Sum(["exact_match", {"name": length, "weight": 0}]).bounds == (0.0, 1.0)
    assert Sum(["exact_match", {"name": length, "at_most": 3}]).bounds == (None, 1.0)
    assert Sum(["exact_match", {"name": length, "at_least": 3}]).bounds == (-3.0, 1.0)


def test_normalise_divides_by_the_width_of_bounds() -> None:
    wide = Given("wide", bounds=(-50.0, 50.0))
    made = Sum([ExactMatch(), {"name": wide, "weight": 0.5}], normalise=True)
    assert [terms["weight"] for terms in made.terms.values()] == [1.0, 0.005]
    with pytest.raises(UserError, match=r"normalise divides by .* and x has \(None, None\)"):
        Sum([ExactMatch(), Given("x")], normalise=True)
    Sum([ExactMatch(), {"name": Given("x"), "weight": 0}], normalise=True)


# Limits ---------------------------------------------------------------------------------------

means = st.floats(0, 1), st.floats(0, 40)


def limited(lexicographic: bool = False) -> Objective:
    limit = {"name": Given("length"), "at_most": 20, "penalty": 0.25}
    return Sum([Given("f1", bounds=(0.0, 1.0)), limit], lexicographic=lexicographic)


@given(*means)
def test_a_penalty_is_for_the_mean(f1: float, length: float) -> None:
    made = limited()
    assert not made.decomposable
    batch = columns(f1=[f1, f1], length=[length + 5, length - 5])
    assert made.value(batch) == pytest.approx(f1 - 0.25 * max(0.0, length - 20))
    assert judge(made, batch).value == made.value(batch)


@given(*means, *means)
def test_lexicographic_order(f1: float, length: float, other_f1: float, other: float) -> None:
    """What keeps the limit beats what doesn't; then the violation decides, else the sum."""
    made = limited(lexicographic=True)
    value = made.value(columns(f1=[f1], length=[length]))
    than = made.value(columns(f1=[other_f1], length=[other]))
    if length <= 20 and other <= 20:
        assert (value, than) == (f1, other_f1)
    elif length <= 20 or length < other - 1e-9:
        assert value > than


def test_limits_on_both_sides_and_a_weight_besides() -> None:
    told = {"name": Given("x"), "at_least": 1, "at_most": 2, "weight": 10}
    made = as_objective(told)
    assert [made.value(columns(x=[x])) for x in (0.5, 1.5, 2.5)] == [4.5, 15.0, 24.5]
    assert made.terms == {"x": {"weight": 10.0, "at_most": 2.0, "at_least": 1.0, "penalty": 1.0}}
    assert made.name == "10*x,x<=2,x>=1"


def test_a_sum_with_limits_in_a_sum() -> None:
    batch = columns(f1=[0.5], length=[22.0], other=[3.0])
    assert (2 * limited() + Given("other")).value(batch) == pytest.approx(2 * (0.5 - 0.5) + 3)
    nested = Sum([limited(lexicographic=True), Given("other")])
    assert nested.value(batch) == judge(nested, batch).value == pytest.approx(-0.5 + 3)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ([{"name": "token_f1", "wieght": 1}], "unknown key 'wieght' of a part; did you mean 'wei"),
        ([{"weight": 1}], "has no name"),
        ([], "nothing counts"),
        ([{"name": "token_f1", "weight": 0}], "nothing counts"),
        ([{"name": "token_f1", "weight": "1"}], "weight '1' of token_f1 is no number"),
        ([{"name": "token_f1", "weight": math.nan}], "weight nan of token_f1 is no number"),
        ([{"name": "token_f1", "at_most": True}], "at_most True of token_f1 is no number"),
        ([{"name": "token_f1", "at_most": 0, "at_least": 1}], "swap them"),
        ([{"name": "token_f1", "at_most": 0, "penalty": 0}], "penalty 0 of token_f1 has to be"),
        ([{"name": Given("ter", False), "weight": -1}], "counts negatively already: give 1"),
        (["token_f2"], "did you mean 'token_f1'"),
        ({"parts": "token_f1"}, "a list of parts is needed"),
        ({"parts": ["token_f1"], "normalize": True}, "it takes Sum(parts"),
        ({"parts": ["token_f1"], "normalise": "perhaps"}, "normalise 'perhaps' is neither true"),
        ([3], "3 is no objective"),
        (
            {"parts": [Given("x"), {"name": "token_f1", "at_most": 0.5}], "lexicographic": True},
            "lexicographic needs a lowest sum",
        ),
    ],
)
def test_sums_that_make_no_sense(told: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        as_objective(told)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


# Failures, pairs, intervals -------------------------------------------------------------------


def test_each_part_is_asked_once() -> None:
    first, second, third = Given("a"), Spread("b"), Given("c")
    made = Sum([first, second, {"name": third, "weight": 0}])
    batch = columns(a=[1.0, 2.0], b=[0.0, 1.0], c=[None, 1.0])
    plus, minus = judge(made, batch), judge(made, batch)
    compare(made, plus, minus)
    rewards(made, [plus, minus])
    assert (first.calls, second.calls, third.calls) == (2, 2, 2)


def test_pairs_are_over_the_examples_that_all_parts_scored_on_both_sides() -> None:
    made = Given("a") + Spread("b")
    plus = judge(made, columns(a=[1.0, None, 4.0, 2.0], b=[0.0, 9.0, 1.0, 5.0]))
    minus = judge(made, columns(a=[2.0, 2.0, None, 3.0], b=[2.0, 3.0, 7.0, 4.0]))
    assert (plus.failed, minus.failed) == (1, 1)
    pair = compare(made, plus, minus)
    assert (pair.plus, pair.minus) == (1.5 + 5.0, 2.5 + 2.0)
    assert (pair.n, pair.failed) == (2, 2)


def test_limits_in_pairs_are_over_the_same_examples() -> None:
    made = limited()
    plus = judge(made, columns(f1=[1.0, None], length=[24.0, 0.0]))
    minus = judge(made, columns(f1=[0.5, 0.5], length=[22.0, 0.0]))
    pair = compare(made, plus, minus)
    assert (pair.plus, pair.minus, pair.n) == (0.0, 0.0, 1)
    assert pair.tie


@pytest.mark.parametrize("made", [Given("a") + Given("b"), Given("a") + Spread("b")])
def test_a_part_that_raises(made: Objective) -> None:
    outcome = judge(made, columns(a=[1.0, 2.0]))
    assert outcome.error == "objective 'b': KeyError: 'b'"
    assert outcome.failed == 2
    assert math.isnan(outcome.value)
    with pytest.raises(UserError, match="objective 'b': KeyError"):
        judge(made, columns(a=[1.0, 2.0]), "raise")


def test_failures_of_what_is_only_logged_do_not_matter() -> None:
    made = Sum([Given("a"), {"name": Given("b"), "weight": 0}])
    for policy in ("drop", "raise", "floor"):
        outcome = judge(made, columns(a=[1.0, 2.0]), policy)  # type: ignore[arg-type]
        assert (outcome.value, outcome.failed, outcome.error) == (1.5, 0, None)
        assert outcome.beside["b"].failed == 2
        assert outcome.errors == ["objective 'b': KeyError: 'b'"]  # shown all the same
    assert rewards(made, [outcome])["rewards"]["b"]["failed"] == 1.0


def test_the_floor_is_each_part_s_own() -> None:
    made = Given("a", bounds=(-1.0, 1.0)) + Given("b", False, bounds=(0.0, 8.0))
    outcome = judge(made, columns(a=[1.0, None], b=[None, 2.0]), "floor")
    assert outcome.scores == [1.0 - 8.0, -1.0 - 2.0]


def test_the_interval_of_a_limited_sum_asks_no_part_again() -> None:
    length = Given("length")
    made = Sum([Given("f1"), {"name": length, "at_most": 20}])
    low = judge(made, columns(f1=[0.0, 0.5] * 20, length=[30.0] * 40))
    high = judge(made, columns(f1=[1.0, 0.5] * 20, length=[10.0] * 40))
    interval = paired_bootstrap(made, low, high)
    # The limit is off by 10 before, and kept after; F1 gains 0.5 in the mean.
    assert interval[0] == pytest.approx(10.5, abs=0.2)
    assert interval[1] == pytest.approx(10.5, abs=0.2)
    assert interval[0] < 10.5 < interval[1]
    assert length.calls == 2


def test_outcomes_survive_in_the_journal(tmp_path: Path) -> None:
    made = Sum([Given("a"), Spread("b"), {"name": Given("c"), "weight": 0}])
    rows = [{"a": 1.0, "b": 2.0, "c": None}, {"a": None, "b": 0.0, "c": 1.0}]
    examples = [Example(i, "?", [], row) for i, row in enumerate(rows)]
    batch = columns(**{name: [row[name] for row in rows] for name in "abc"})
    batch = dataclasses.replace(batch, prompts=["?", "?"])
    outcome = judge(made, batch)
    Journal(tmp_path / "journal").put("key", outcome)
    again = Journal(tmp_path / "journal").get("key", examples)
    assert again is not None
    assert rewards(made, [again]) == rewards(made, [outcome])
    assert compare(made, again, again) == compare(made, outcome, outcome)
    assert (again.value, again.failed) == (outcome.value, outcome.failed) == (3.0, 1)


def test_figures_of_the_parts() -> None:
    made = Sum([Given("a"), {"name": Spread("b"), "weight": 2}, {"name": Given("c"), "weight": 0}])
    sides = [
        judge(made, columns(a=[1.0, 3.0], b=[0.0, 1.0], c=[None, None])),
        judge(made, columns(a=[None, 5.0], b=[0.0, 3.0], c=[None, None])),
    ]
    told = rewards(made, sides)["rewards"]
    assert told["a"] == {
        **{"mean": 3.0, "min": 1.0, "max": 5.0, "std": pytest.approx(math.sqrt(8 / 3))},
        **{"failed": 0.25, "weight": 1.0},
    }
    assert told["b"] == {"mean": 2.0, "min": 1.0, "max": 3.0, "failed": 0.0, "weight": 2.0}
    assert told["c"] == {"mean": None, "min": None, "max": None, "failed": 1.0, "weight": 0.0}
    assert rewards(ExactMatch(), []) == {}


# Settings and runs ----------------------------------------------------------------------------

TOLD = ["token_f1", {"name": "exact_match", "weight": 0.5}]


@pytest.mark.parametrize("told", [json.dumps(TOLD), yaml.safe_dump(TOLD, default_flow_style=True)])
def test_a_flag_may_hold_a_list(told: str) -> None:
    assert ZOConfig(objective=told).objective == TOLD
    assert ZOConfig(objective='{"parts": ["f1"]}').objective == {"parts": ["f1"]}
    with pytest.raises(UserError, match=r"objective .* it is not YAML"):
        ZOConfig(objective="[token_f1")


class Logs:
    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **more: Any) -> None:
        self.logs.append(logs)


def words(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


@pytest.mark.usefixtures("no_statistics")
def test_a_run_logs_every_part(tmp_path: Path) -> None:
    told = Logs()
    objective = [*TOLD, {"name": f"{__name__}:words", "weight": -0.01}]
    args = small(tmp_path, objective=objective, max_steps=2)
    result = ZOTrainer(args=args, callbacks=[told]).train()
    assert result.objective == "token_f1+0.5*exact_match-0.01*words"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["objective"] == objective
    more = ZOConfig(output_dir=str(tmp_path), resume_from_checkpoint=True, max_steps=3)
    ZOTrainer(args=more).train()
    assert len(lines(tmp_path / "log.jsonl")) == 3
    for line in lines(tmp_path / "log.jsonl"):
        parts = line["rewards"]
        assert list(parts) == ["token_f1", "exact_match", "words"]
        total = sum(part["weight"] * part["mean"] for part in parts.values())
        assert total == pytest.approx(sum(line["values"]) / len(line["values"]))
        assert parts["words"]["std"] > 0
    for line in lines(tmp_path / "metrics.jsonl"):
        total = sum(part["weight"] * part["mean"] for part in line["rewards"].values())
        assert total == pytest.approx(line["value"])
    first, last = told.logs[0], told.logs[-1]
    assert "test_rewards/words/mean" in first
    assert "eval_rewards/token_f1/mean" in last
    step = next(logs for logs in told.logs if "reward" in logs)
    assert step["rewards/exact_match/weight"] == 0.5
    assert step["rewards/words/max"] >= step["rewards/words/mean"] > 0


def test_eval_tells_every_part() -> None:
    told = evaluate(ZOConfig(objective=TOLD, max_new_tokens=8), limit=4)
    parts = told["rewards"]
    assert told["value"] == parts["token_f1"]["mean"] + 0.5 * parts["exact_match"]["mean"]


REWARD = "def words(completions):\n    return [float(len(text.split())) for text in completions]\n"


def limited_run(folder: Path) -> Path:
    """A YAML file with a sum, a limit and a logged-only part, and the code it names."""
    (folder / "rewards.py").write_text(REWARD)
    parts = [
        "token_f1",
        {"name": f"{folder / 'rewards.py'}:words", "at_most": 2, "penalty": 0.1},
        {"name": "exact_match", "weight": 0},
    ]
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({"objective": parts}))
    return config


@pytest.mark.slow
def test_a_run_with_a_limit_that_is_killed_comes_to_the_same_end(tmp_path: Path) -> None:
    config = limited_run(tmp_path)
    arguments = ["--config", config]
    assert killed.run(*killed.train(tmp_path / "whole", *arguments)) == 0, killed.printed(
        tmp_path / "whole"
    )
    out = tmp_path / "cut"
    killed.killed_after(0.2, *killed.train(out, *arguments), there=out / "log.jsonl")
    assert killed.run(*killed.resumed(out)) == 0, killed.printed(out)
    assert killed.left(out) == killed.left(tmp_path / "whole")
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["objective"] == yaml.safe_load(config.read_text())["objective"]
    assert settings["environment"]["code"].keys() == {"objective"}
    for line in lines(out / "log.jsonl"):
        assert list(line["rewards"]) == ["token_f1", "words", "exact_match"]
        assert line["rewards"]["words"]["at_most"] == 2.0
    result = json.loads((out / "result.json").read_text())
    assert result["objective"] == "token_f1,words<=2"
    (tmp_path / "rewards.py").write_text(REWARD + "\n")  # no longer the code of this run
    assert killed.run(*killed.resumed(out)) == 2
    assert "the file of objective" in killed.printed(out)


def test_a_misspelt_part_is_told_before_the_wait(tmp_path: Path) -> None:
    told = ["--objective", "[token_f2, exact_match]"]
    assert killed.run(*killed.train(tmp_path / "run", *told)) == 2
    assert "unknown objective 'token_f2'; did you mean 'token_f1'?" in killed.printed(
        tmp_path / "run"
    )


def test_gold_answers_of_a_combination_need_no_full_marks() -> None:
    args = ZOConfig(task="squad_mini", objective=[*TOLD, {"name": words, "at_most": 0}])
    told = list(validate(args))
    assert any("token_f1+0.5*exact_match,words<=0 of the gold answers: " in line for line in told)
    assert TokenF1().parts == {}
