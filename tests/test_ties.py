"""--tie_breaker: what the metric decides stays decided, what ties moves by the second one."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import untimed

from zoobj import Batch, Objective, UserError, ZOConfig, ZOTrainer
from zoobj.assemble import make_method
from zoobj.estimators import Estimator
from zoobj.estimators.population import Population
from zoobj.estimators.zo_adam import ZOAdam
from zoobj.estimators.zo_momentum import ZOMomentum
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.estimators.zo_sign import ZOSign
from zoobj.interrupts import Interrupted
from zoobj.objective import Score, as_objective
from zoobj.outcome import judge
from zoobj.probe import Probe
from zoobj.service import Service
from zoobj.show import show
from zoobj.ties import BOTH, SHARE, TieBreaker, _beside, second_objective

pytestmark = pytest.mark.usefixtures("no_statistics")


class Column(Objective):
    """Scores are what the rows have under a name."""

    needs = frozenset()
    bounds = (None, None)

    def __init__(self, name: str, higher_is_better: bool = True):
        self.name, self.higher_is_better, self.asked = name, higher_is_better, 0

    def score(self, batch: Batch) -> list[Score]:
        self.asked += len(batch)
        return list(batch.rows[self.name])


class NoJournal:
    """A run that keeps nothing."""

    def __init__(self) -> None:
        self.pending = SimpleNamespace(get=lambda *args: None, put=lambda *args: None)

    def key(self, step: int) -> str:
        return str(step)


def batch(first: list[Score], second: list[Score]) -> Batch:
    rows = {"first": list(first), "second": list(second)}
    return Batch(prompts=["?"] * len(first), references=[0] * len(first), rows=rows)


METHODS: dict[str, tuple[type[Estimator], dict[str, Any]]] = {
    "zo-sgd": (ZOSGD, {}),
    "zo-sgd as MeZO's": (ZOSGD, {"normalize": False}),
    "one-sided": (ZOSGD, {"one_sided": True}),
    "zo-sign": (ZOSign, {}),
    "zo-momentum": (ZOMomentum, {}),
    "zo-adam": (ZOAdam, {}),
    "rank": (Population, {"shaping": "rank"}),
    "zscore": (Population, {"shaping": "zscore"}),
    "sign": (Population, {"shaping": "sign"}),
}
coarse = st.sampled_from([0.0, 0.5, 1.0])
fine = st.one_of(st.floats(-5.0, 5.0), st.none())


@pytest.mark.parametrize("name", list(METHODS))
@given(data=st.data(), higher=st.booleans())
def test_it_never_reverses_a_decided_pair(name: str, data: st.DataObject, higher: bool) -> None:
    """Whatever it says, a step goes the way of the metric in a direction that that one decided."""
    kind, settings = METHODS[name]
    q = data.draw(st.integers(1, 4))
    made = [kind(seed=3, eps=0.1, learning_rate=0.2, directions=q, **settings) for _ in range(2)]
    main, twin = made
    second = Column("second", higher)
    ties = TieBreaker(
        second,
        Service(second),
        kind(seed=3, eps=0.1, learning_rate=0.2, directions=q, **settings),
    )
    offsets = main.offsets(0)
    twin.offsets(0)
    lists = st.lists(st.tuples(coarse, fine), min_size=3, max_size=3)
    rows = [data.draw(lists) for _ in offsets]
    batches = [batch(*map(list, zip(*row, strict=True))) for row in rows]  # type: ignore[arg-type]
    outcomes = [judge(Column("first"), b) for b in batches]
    values = [outcome.value for outcome in outcomes]
    losses = [-value for value in values]
    move = main.move(losses)
    run: Any = NoJournal()
    more, told = ties(run, 0, [None] * 3, main, outcomes, values, move)  # type: ignore[list-item]
    assert move == twin.move(losses)

    asked, tied, decided = second.asked, set(), {}
    heard = {"tied": {}, "decided": {}}  # type: ignore[var-annotated]
    for first, *others in main.groups(len(offsets)):
        for other in others:
            seed = next(iter({**offsets[first], **offsets[other]}))
            sides = list(zip(rows[first], rows[other], strict=True))
            same = [(a[1], b[1]) for a, b in sides if a[0] == b[0]]
            if values[first] == values[other]:
                tied.add(seed)
                same = [(a[1], b[1]) for a, b in sides]
            else:
                decided[seed] = len(same)
            known = [b - a for a, b in same if a is not None and b is not None]
            if known:
                difference = sum(known) / len(known) * len(same) / 3
                heard["tied" if seed in tied else "decided"][seed] = difference
    coefficients = dict(move)
    own = dict(more)
    for seed in {*coefficients} & {*own} - tied:
        own[seed] = (coefficients[seed] + own[seed]) / BOTH - coefficients[seed]
        assert abs(own[seed]) <= (SHARE + 1e-9) * abs(coefficients[seed])
    one_sided = name == "one-sided"
    paired = q == 1 if one_sided else name not in ("rank", "zscore", "sign")
    directions = heard["tied"] | (heard["decided"] if paired else {})
    assert {seed for seed, _ in more} <= {*directions} or one_sided
    if paired:
        better = 1 if higher is not one_sided else -1  # pairs begin at plus, others at theta
        for seed, coefficient in own.items():
            assert coefficient * directions[seed] * better <= 1e-12
        assert told["examples"] == sum(decided.values())
        assert asked == 2 * (sum(decided.values()) + 3 * len(tied))
    else:
        assert told["examples"] == 0
    assert told["pairs"] == len(tied)
    if not one_sided:  # there, examples that failed are left out of all that tie
        assert told["decided"] == sum(difference != 0 for difference in heard["tied"].values())


@given(own=st.lists(st.floats(-3, 3), min_size=3, max_size=3), first=st.floats(-1, 1))
def test_it_is_beside_in_directions_of_earlier_steps_too(own: list[float], first: float) -> None:
    """Momentum goes on in the directions of earlier steps, as the metric decided them then."""
    seeds = (7, 8, 9)
    move = [(7, first), (8, 0.0), (7, 0.5)]
    more = dict(_beside(move, list(zip(seeds, own, strict=True))))
    whole = first + 0.5
    assert (whole + more[7]) * whole > 0 or whole == 0
    assert (more[8], more[9]) == tuple(own[1:])
    if min(abs(own[0]), abs(whole)) > 1e-6:
        assert abs(whole + more[7]) <= BOTH * (1 + SHARE) * abs(whole) * (1 + 1e-9)
        assert (abs(whole + more[7]) > BOTH * abs(whole)) == (own[0] * whole > 0)


def test_the_objective_s_own_tie_breaker_is_the_default() -> None:
    def told(objective: Any, setting: Any = "auto", allowed: bool = True) -> str | None:
        second = second_objective(setting, as_objective(objective), allowed)
        return None if second is None else second.name

    for name in ("accuracy", "accuracy:top=2", "f1", "mcc", "recall", "sklearn:f1_macro"):
        assert told(name) == "margin"
    for name in ("token_f1", "roc_auc", "loglikelihood", "sklearn:rand_score"):
        assert told(name) is None
    assert told("accuracy", allowed=False) is None
    assert told("accuracy", "none") is told("accuracy", None) is None
    assert told("accuracy", "loglikelihood") == "loglikelihood"
    assert told(["accuracy", {"name": "f1", "weight": 0}]) == "margin"
    assert told([{"name": "accuracy", "weight": 2}, "f1"]) == "margin"
    assert told(["accuracy", {"name": "f1", "weight": -1}]) is None
    assert told(["accuracy", {"name": "f1", "at_least": 0.5}]) is None
    assert told(["accuracy", "loglikelihood"]) is None


# Runs -----------------------------------------------------------------------------------------


def small(output_dir: Path, **more: Any) -> ZOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "tune": "steer",
        "task": "question_mini",
        "objective": "accuracy",
        "eps": 0.2,
        "directions": 3,
        "per_device_train_batch_size": 4,
        "max_steps": 5,
        "eval_steps": 5,
        "max_train_samples": 40,
        "max_eval_samples": 4,
        "max_test_samples": 4,
        "seed": 3,
    }
    return ZOConfig(**{**settings, **more})


def nothing(completions: list[str], **kwargs: Any) -> list[float]:
    """A metric under which all pairs tie."""
    return [0.5] * len(completions)


@pytest.mark.parametrize(
    "more", [{}, {"one_sided": True}, {"method": "zo-momentum"}, {"method": "population"}]
)
def test_where_all_pairs_tie_it_moves_alone(tmp_path: Path, more: dict[str, Any]) -> None:
    """The run is that of the second objective."""
    tied = small(tmp_path / "tied", **more)
    ZOTrainer(objective=nothing, tie_breaker="margin", args=tied).train()
    alone = small(tmp_path / "alone", objective="margin", **more)
    ZOTrainer(args=alone).train()
    lines, others = untimed(tmp_path / "tied"), untimed(tmp_path / "alone")
    assert all(line["tie"] for line in lines)
    assert [line["move"] for line in lines] == [line["move"] for line in others]
    assert any(line["move"] for line in lines)
    for line, other in zip(lines, others, strict=True):
        assert line["tie_breaker"]["pairs"] == line["tie_breaker"]["decided"] == 3
        assert line["tie_breaker"]["state"] == other["state"]
        mean = sum(other["values"]) / len(other["values"])
        assert line["tie_breaker"]["value"] == pytest.approx(mean)


@pytest.mark.parametrize("tune", ["steer", "full"])
def test_the_first_step_has_the_metric_s_coefficients(tmp_path: Path, tune: str) -> None:
    """And others beside them, which reverse none of them."""
    own = {"steer": {"eps": 0.2}, "full": {"eps": 5e-3}}[tune]
    for name, breaker in (("with", "loglikelihood"), ("without", "none")):
        args = small(tmp_path / name, tune=tune, max_steps=1, directions=6, **own)
        ZOTrainer(args=args, tie_breaker=breaker).train()
    (line,), (other,) = untimed(tmp_path / "with"), untimed(tmp_path / "without")
    sides = zip(line["values"][::2], line["values"][1::2], strict=True)
    tied = sum(a == b for a, b in sides)
    assert 0 < tied < 6
    assert line["move"][: 6 - tied] == other["move"]
    decided, more = dict(other["move"]), dict(line["move"][6 - tied :])
    assert len({*decided, *more}) == 6
    for seed in {*decided} & {*more}:
        heard = (decided[seed] + more[seed]) / BOTH - decided[seed]
        assert 0 < abs(heard) <= (SHARE + 1e-9) * abs(decided[seed])
    assert {*decided} & {*more}
    assert line["tie_breaker"]["pairs"] == tied
    assert line["tie_breaker"]["examples"] > 0
    assert line["run"]["settings"]["tie_breaker"] == "loglikelihood"
    assert "tie_breaker" not in other


def test_with_one_fewer_examples_have_to_flip(tmp_path: Path) -> None:
    targets = {}
    for told in ("auto", "none"):
        args = small(tmp_path / told, eps="auto", tie_breaker=told, max_steps=1)
        trainer = ZOTrainer(args=args)
        trainer.train()
        assert isinstance(trainer.probe, Probe)
        assert trainer.probe.flips is not None
        targets[told] = trainer.probe.flips.target
    assert targets == {"auto": 0.2, "none": 0.4}


class Second:
    """A tie-breaker that counts its calls, and is interrupted at one of them."""

    def __init__(self, at: int = -1):
        self.at, self.calls, self.asked = at, 0, 0

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        self.calls += 1
        self.asked += len(completions)
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return [float(len(c) + len(p) % 7) for p, c in zip(prompts, completions, strict=True)]


def test_a_run_that_is_cut_off_ends_as_it_would_have(tmp_path: Path) -> None:
    """What the tie-breaker said within the step is not asked for again."""
    whole, cut, rest = Second(), Second(7), Second()
    ZOTrainer(tie_breaker=whole, args=small(tmp_path / "whole")).train()
    with pytest.raises(Interrupted):
        ZOTrainer(tie_breaker=cut, args=small(tmp_path / "run")).train()
    again = ZOConfig(output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    ZOTrainer(tie_breaker=rest, args=again).train()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    assert cut.calls + rest.calls - 1 == whole.calls  # all but the call that was cut off
    told = [line["tie_breaker"] for line in untimed(tmp_path / "whole")]
    tied, examples = (sum(each[key] for each in told) for key in ("pairs", "examples"))
    assert whole.asked == 4 + 2 * (4 * tied + examples)  # the try-out; then what tied, and no more
    assert 0 < tied < 15
    assert f"about {tied} pairs and {examples} examples of others" in show(str(tmp_path / "run"))


@pytest.mark.parametrize("method", ["zo-conservative", "one-point", "zo-svrg"])
def test_methods_without_pairs_of_one_round_are_refused(method: str) -> None:
    with pytest.raises(UserError, match=f"--tie_breaker margin: method '{method}' has no use for"):
        make_method(ZOConfig(method=method, tie_breaker="margin"))
    make_method(ZOConfig(method=method, tie_breaker="none"))


def test_a_tie_breaker_that_fails_is_named_before_the_run(tmp_path: Path) -> None:
    def broken(completions: list[str], **kwargs: Any) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(UserError, match="broken"):
        ZOTrainer(tie_breaker=broken, args=small(tmp_path / "run")).train()
    texts = small(tmp_path / "run", task="squad_mini", objective=None)
    with pytest.raises(UserError, match="task squad_mini generates text"):
        ZOTrainer(args=texts, tie_breaker="margin").train()
    assert not (tmp_path / "run").exists()
