"""zoobj.flips: eps finds the share of flips that is asked for, and never runs away."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoobj.flips import FlipControl
from zoobj.signal import Pair


def pair(n: int, flips: int, changed: int) -> Pair:
    return Pair(0.5, 0.4, n, 0, flips, flips, 0, changed)


def staircase(control: FlipControl, steps: int, scale: float, n: int = 64) -> list[float]:
    """A model whose examples flip with probability 1 - exp(-eps / scale)."""
    rng, found = np.random.default_rng(1), []
    for _ in range(steps):
        flips = int(rng.binomial(n, 1 - math.exp(-control.eps / scale)))
        control.update([pair(n, flips, flips)])
        found.append(control.eps)
    return found


@pytest.mark.parametrize("target", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("first", [0.2, 1.0, 5.0])
def test_it_converges_on_a_staircase(target: float, first: float) -> None:
    wanted = -math.log(1 - target)  # the eps at which so many flip, with a scale of 1
    control = FlipControl(wanted * first, target)
    eps = staircase(control, 300, 1.0)[100:]
    assert math.exp(np.log(eps).mean()) == pytest.approx(wanted, rel=0.15)
    assert np.log(eps).std() < 0.5


def test_it_does_not_run_away_where_nothing_flips() -> None:
    control = FlipControl(0.1)
    for _ in range(1000):
        control.update([pair(64, 0, 0)])
    assert control.eps == pytest.approx(0.8)


def test_it_turns_back_where_all_is_broken() -> None:
    """Garbage on both sides: every output differs and none scores."""
    control = FlipControl(0.1)
    control.update([pair(64, 0, 64)])
    assert control.eps < 0.1


def test_what_could_not_be_scored_says_nothing() -> None:
    control = FlipControl(0.1)
    control.update([Pair(math.nan, math.nan, 0, 64, 0)])
    assert control.eps == 0.1


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), max_size=60))
def test_it_is_bounded_and_its_state_is_json(told: list[tuple[int, int]]) -> None:
    control = FlipControl(0.1, 0.3)
    for flips, changed in told:
        control.update([pair(64, flips, max(flips, changed))])
        assert 0.1 / 8 <= control.eps <= 0.1 * 8
    resumed = FlipControl(0.1, 0.3)
    resumed.load_state_dict(json.loads(json.dumps(control.state_dict())))
    for other in (control, resumed):
        other.update([pair(64, 5, 20)])
    assert resumed.eps == control.eps
