"""Methods against slow, obvious twins."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from zoobj.errors import UserError
from zoobj.estimators.population import Population
from zoobj.estimators.zo_sgd import ZOSGD
from zoobj.signal import RunningScale, average_ranks

losses = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, math.nan]))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, -1.0, 7.0]), min_size=1, max_size=12))
def test_average_ranks_are_scipys(values: list[float]) -> None:
    assert average_ranks(values) == pytest.approx(rankdata(values) - 1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("q", [1, 2, 5])
def test_zo_sgd_averages_over_its_directions(q: int, normalize: bool) -> None:
    draw, scale = random.Random(q), RunningScale()
    method = ZOSGD(seed=3, eps=0.1, learning_rate=0.2, directions=q, normalize=normalize)
    for step in range(100):
        offsets = method.offsets(step)
        seeds = [next(iter(offset)) for offset in offsets[::2]]
        assert offsets == [{seed: side} for seed in seeds for side in (0.1, -0.1)]
        assert len(set(seeds)) == q
        told = [draw.choice([draw.random(), 0.5, math.nan]) for _ in offsets]
        wanted = {}
        for k, seed in enumerate(seeds):
            d = told[2 * k] - told[2 * k + 1]
            if not math.isnan(d) and d != 0:
                amount = scale.normalise(d) / math.sqrt(q) if normalize else d / 0.2 / q
                wanted[seed] = -0.2 * amount
        assert dict(method.move(told)) == pytest.approx(wanted)


def twin(told: Sequence[float], q: int, shaping: str, rate: float) -> dict[int, float]:
    """By the equations of population.py, one pair after another: a pair -> its coefficient."""
    sound = [k for k in range(q) if math.isfinite(told[2 * k] - told[2 * k + 1])]
    kept = [told[i] for k in sound for i in (2 * k, 2 * k + 1)]
    shaped = list(rankdata(kept)) if shaping == "rank" and kept else kept
    d = {k: float(shaped[2 * n] - shaped[2 * n + 1]) for n, k in enumerate(sound)}
    if shaping == "sign":
        d = {k: float(np.sign(x)) for k, x in d.items()}
    rms = math.sqrt(sum(x * x for x in d.values()) / len(d)) if d else 0.0
    return {k: -rate / math.sqrt(q) * x / rms for k, x in d.items() if x} if rms else {}


@given(st.integers(1, 5), st.sampled_from(["rank", "zscore", "sign"]), st.data())
def test_population_is_its_twin(q: int, shaping: str, data: st.DataObject) -> None:
    method = Population(seed=1, eps=0.1, learning_rate=0.2, directions=q, shaping=shaping)
    seeds = [next(iter(offset)) for offset in method.offsets(4)[::2]]
    told = data.draw(st.lists(losses, min_size=2 * q, max_size=2 * q))
    found = dict(method.move(told))
    wanted = {seeds[k]: value for k, value in twin(told, q, shaping, 0.2).items()}
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    if found:  # (1): a step of the stated size
        size = math.sqrt(sum(value**2 for value in found.values()))
        assert size <= 0.2 * (1 + 1e-9)


def test_ties_share_a_rank() -> None:
    """Where all tie but one, only the pair of that one moves."""
    method = Population(seed=1, eps=0.1, learning_rate=0.2, directions=4)
    seeds = [next(iter(offset)) for offset in method.offsets(0)[::2]]
    told = [0.5] * 8
    told[4] = 0.25
    assert [seed for seed, _ in method.move(told)] == [seeds[2]]
    method.offsets(1)
    assert method.move([0.5] * 8) == []


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(UserError, match="shaping 'ranks'"):
        Population(seed=1, eps=0.1, learning_rate=0.2, shaping="ranks")  # type: ignore[arg-type]


@given(st.sampled_from(["rank", "zscore", "sign"]), st.permutations(range(4)), st.data())
def test_shaping_does_not_care_for_order(
    shaping: str, order: list[int], data: st.DataObject
) -> None:
    """The pairs of a step in another order: each keeps its coefficient."""
    told = data.draw(st.lists(losses, min_size=8, max_size=8))
    turned = [told[2 * k + side] for k in order for side in (0, 1)]
    found = []
    for given_losses in (told, turned):
        method = Population(seed=1, eps=0.1, learning_rate=0.2, directions=4, shaping=shaping)
        seeds = [next(iter(offset)) for offset in method.offsets(0)[::2]]
        move = dict(method.move(given_losses))
        found.append([move.get(seed, 0.0) for seed in seeds])
    assert found[1] == pytest.approx([found[0][k] for k in order], rel=1e-9, abs=1e-12)


@given(st.sampled_from(["rank", "zscore", "sign"]), st.data())
def test_members_that_tie_weigh_the_same(shaping: str, data: st.DataObject) -> None:
    """Two pairs of equal losses have equal coefficients, and one of equal sides has none."""
    a, b, *rest = data.draw(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
    method = Population(seed=1, eps=0.1, learning_rate=0.2, directions=4, shaping=shaping)
    seeds = [next(iter(offset)) for offset in method.offsets(0)[::2]]
    move = dict(method.move([a, b, *rest, a, b, a, a]))
    assert move.get(seeds[0], 0.0) == move.get(seeds[2], 0.0)
    assert seeds[3] not in move
