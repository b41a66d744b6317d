"""The zeroth-order family once more, as its papers write it: explicit vectors in float64."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import rankdata

from zoobj.estimators import Estimator
from zoobj.noise import derive, noise
from zoobj.testing import taken
from zoobj.walk import Offset

SIZE, ROWS, BATCH, SEED = 30, 120, 12, 3
Vector = np.ndarray[Any, np.dtype[np.float64]]
Loss = Callable[[Vector], float]

_RNG = np.random.default_rng(0)
INPUTS = _RNG.normal(size=(ROWS, SIZE)) * np.linspace(0.3, 1.5, SIZE)
TARGETS = INPUTS @ _RNG.normal(size=SIZE) + _RNG.normal(size=ROWS)
START = _RNG.normal(size=SIZE) * 0.3


@cache
def direction(seed: int) -> Vector:
    """+/-1 for each weight, as the walk has it."""
    return noise("rademacher", seed, "weights", 0, SIZE).double().numpy()


def moved(theta: Vector, along: Any) -> Vector:
    """theta + sum(scale * z(seed))."""
    for seed, scale in along:
        theta = theta + scale * direction(seed)
    return theta


def squares(theta: Vector, rows: Any) -> float:
    return float(np.mean((INPUTS[rows] @ theta - TARGETS[rows]) ** 2) / 2)


def logistic(theta: Vector, rows: Any) -> float:
    margins = np.sign(TARGETS[rows]) * (INPUTS[rows] @ theta)
    return float(np.mean(np.logaddexp(0.0, -margins)))


def slope(theta: Vector, rows: Any, loss: Any) -> Vector:
    """The gradient of ``squares`` or ``logistic``."""
    told, sign = INPUTS[rows] @ theta, np.sign(TARGETS[rows])
    each = told - TARGETS[rows] if loss is squares else -sign / (1 + np.exp(sign * told))
    return INPUTS[rows].T @ each / len(rows)


def batch(step: int, size: int = BATCH) -> Any:
    """Rows of a step, all different."""
    return np.random.default_rng(step).choice(ROWS, size, replace=False)


def path(method: Estimator, loss: Any, steps: int) -> list[Vector]:
    """theta after each step of a method, its moves made in float64."""
    theta, found = START, []
    for step in range(steps):
        rows = batch(step, BATCH * method.batches[step % len(method.batches)])

        def score(number: int, offset: Offset, theta: Any = theta, rows: Any = rows) -> float:
            return loss(moved(theta, offset.items()), rows)

        theta = moved(theta, taken(method, step, score)[1])
        found.append(theta)
    return found


class SGD:
    """theta <- theta - lr G."""

    def __init__(
        self, lr: float, eps: float, q: int = 1, one_sided: bool = False, normalize: bool = False
    ):
        self.lr, self.eps, self.q = lr, eps, q
        self.one_sided, self.normalize = one_sided, normalize
        self.differences: list[float] = []

    def directions(self, step: int) -> list[Vector]:
        later = [direction(derive(SEED, step, k)) for k in range(1, self.q)]
        return [direction(derive(SEED, step)), *later]

    def gradient(self, step: int, theta: Vector, loss: Loss) -> Vector:
        total = np.zeros(SIZE)
        for z in self.directions(step):
            if self.one_sided:
                total += self.share(loss(theta + self.eps * z) - loss(theta), self.eps) * z
            else:
                d = loss(theta + self.eps * z) - loss(theta - self.eps * z)
                total += self.share(d, 2 * self.eps) * z
        return total

    def share(self, difference: float, apart: float) -> float:
        if not self.normalize:
            return difference / apart / self.q
        return difference / self.rms([difference]) / math.sqrt(self.q)

    def rms(self, more: list[float]) -> float:
        self.differences += more
        weights = 0.9 ** np.arange(len(self.differences))[::-1]
        return math.sqrt(np.average(np.square(self.differences), weights=weights))

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        return theta - self.lr * self.gradient(step, theta, loss)

    def path(self, loss: Any, steps: int) -> list[Vector]:
        theta, found = START, []
        for step in range(steps):
            rows = batch(step, BATCH * self.batches(step))
            theta = self.step(step, theta, lambda x, rows=rows: loss(x, rows))
            found.append(theta)
        return found

    def batches(self, step: int) -> int:
        return 1


class Sign(SGD):
    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        return theta - self.lr * np.sign(self.gradient(step, theta, loss))


class Momentum(SGD):
    buffer: Any = 0.0

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        self.buffer = 0.9 * self.buffer + self.gradient(step, theta, loss)
        return theta - self.lr * (0.1 if self.normalize else 1.0) * self.buffer


class Adam(SGD):
    first: Any = 0.0
    second: Any = 0.0

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        gradient, t = self.gradient(step, theta, loss), step + 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**t), self.second / (1 - 0.999**t)
        return theta - self.lr * first / (np.sqrt(second) + 1e-8)


class Conservative(SGD):
    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        away = self.lr * self.gradient(step, theta, loss)
        return min((theta, theta - away, theta + away), key=loss)


class OnePoint(SGD):
    before: float | None = None

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        directions = [direction(derive(SEED, step, k)) for k in range(self.q)]
        losses = [loss(theta + self.eps * z) for z in directions]
        before, self.before = self.before, float(np.mean(losses))
        if before is None:
            return theta
        for z, value in zip(directions, losses, strict=True):
            theta = theta - self.lr * self.share(value - before, self.eps) * z
        return theta


class SVRG(SGD):
    """With a copy of the weights, and of the full gradient."""

    interval, anchor_batches = 4, 4
    anchor: Vector
    full: Vector

    def batches(self, step: int) -> int:
        return 1 if step % self.interval else self.anchor_batches

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        fresh = step % self.interval == 0
        if fresh:
            self.anchor, self.full = theta.copy(), np.zeros(SIZE)
        count, found, correction = 2 * self.q if fresh else self.q, [], np.zeros(SIZE)
        for k in range(count):
            z = direction(derive(SEED, step, k))
            here, there = (
                loss(x + self.eps * z) - loss(x - self.eps * z) for x in (theta, self.anchor)
            )
            found.append(here)
            correction += (here if fresh else here - there) / count * z
        if fresh:
            self.full, correction = correction, np.zeros(SIZE)
        unit = 1 / (2 * self.eps)
        if self.normalize:
            unit = math.sqrt(2 * self.q) / self.rms(found)
        return theta - self.lr * unit * (self.full + correction)


class Population(SGD):
    """Members' losses shaped within the step, one pair after another."""

    def __init__(self, lr: float, eps: float, q: int, shaping: str = "rank"):
        super().__init__(lr, eps, q)
        self.shaping = shaping

    def step(self, step: int, theta: Vector, loss: Loss) -> Vector:
        directions = [direction(derive(SEED, step, k)) for k in range(self.q)]
        losses = [loss(theta + side * z) for z in directions for side in (self.eps, -self.eps)]
        shaped = rankdata(losses) if self.shaping == "rank" else losses
        d = [shaped[2 * k] - shaped[2 * k + 1] for k in range(self.q)]
        d = [float(np.sign(x)) for x in d] if self.shaping == "sign" else d
        rms = math.sqrt(np.mean(np.square(d)))
        for z, x in zip(directions, d, strict=True):
            theta = theta - self.lr / math.sqrt(self.q) * x / rms * z
        return theta
