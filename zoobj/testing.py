"""Contract tests to subclass: for objectives, tasks and methods, yours as well as zoobj's.

In a test file of your own package, under pytest::

    from zoobj import Batch
    from zoobj.testing import EstimatorContract, ObjectiveContract, TaskContract

    class TestBrevity(ObjectiveContract):
        objective = Brevity()                 # whatever ``--objective`` takes
        batch = Batch(prompts=["a", "b", "c"], references=[["x"]] * 3, completions=["x", "y z", ""])

    class TestCapitals(TaskContract):
        task = Capitals(test_file="tests/capitals.json", train_file="tests/capitals_train.json")

    class TestMySPSA(EstimatorContract):
        make = MySPSA                         # called with seed, eps and learning_rate

A first-order method has ``FirstOrderContract``, whose ``make`` is called with parameters and a
learning rate. pytest collects every ``test_...`` of the class. Checks that don't apply (the marks
of gold under an objective that needs a model, say) pass without a word. pytest itself is not
imported.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from zoobj.estimators import Estimator, FirstOrder
from zoobj.evaluation import gold_batch
from zoobj.objective import Batch, Objective, as_objective, is_score
from zoobj.outcome import judge
from zoobj.task import SPLITS, Example, Task
from zoobj.walk import Move, Offset, Walk
from zoobj.worker import pack, unpack

__all__ = ["EstimatorContract", "FirstOrderContract", "ObjectiveContract", "TaskContract", "taken"]

_EXAMPLES = 200  # of a split: enough to find a mistake, whatever the size of the data set


class ObjectiveContract:
    """What the engine relies on in an objective.

    Attributes:
        objective: an Objective, or what ``as_objective`` makes one of.
        batch: three or more examples with different outcomes, the objective's ``needs`` filled.
    """

    objective: ClassVar[Any]
    batch: ClassVar[Batch]

    def _made(self) -> Objective:
        return as_objective(type(self).objective)  # not self.: a function would be bound

    def _reversed(self) -> Batch:
        return self.batch.select(range(len(self.batch))[::-1])

    def test_attributes(self) -> None:
        objective = self._made()
        assert isinstance(objective.name, str)
        assert isinstance(objective.higher_is_better, bool)
        low, high = objective.bounds
        assert low is None or high is None or low < high, f"bounds {objective.bounds}"

    def test_batch_fits(self) -> None:
        """The batch given here is one that tests something."""
        assert len(self.batch) >= 3, "give three examples or more"
        for column in self._made().needs:
            assert getattr(self.batch, column) is not None, f"fill the batch's {column}"

    def test_one_score_each(self) -> None:
        objective = self._made()
        if objective.decomposable:
            for count in (len(self.batch), 1, 0):
                part = self.batch.select(range(count))
                assert len(objective.score(part)) == count, "return one score for each example"

    def test_scores_are_numbers_or_none(self) -> None:
        objective = self._made()
        values = objective.score(self.batch) if objective.decomposable else [self._value()]
        for value in values:
            is_score(value)  # raises where it is neither a number nor None

    def test_within_bounds(self) -> None:
        objective = self._made()
        low, high = objective.bounds
        scores = objective.score(self.batch) if objective.decomposable else []
        for number in filter(is_score, [*scores, self._value()]):
            assert low is None or number >= low, f"{number} is below the bound {low}"
            assert high is None or number <= high, f"{number} is above the bound {high}"

    def test_value_is_the_mean_of_scores(self) -> None:
        objective = self._made()
        if objective.decomposable:
            known = [score for score in objective.score(self.batch) if is_score(score)]
            mean = math.fsum(known) / len(known) if known else math.nan
            assert _close(objective.value(self.batch), mean), "set decomposable = False"

    def test_examples_do_not_see_each_other(self) -> None:
        """Scores of the examples in another order, and alone, are the same."""
        objective = self._made()
        if objective.decomposable:
            scores = objective.score(self.batch)
            assert _all_close(objective.score(self._reversed())[::-1], scores)
            alone = [objective.score(self.batch.select([i]))[0] for i in range(len(self.batch))]
            assert _all_close(alone, scores), "a score depends on the others in the batch"

    def test_order_does_not_matter(self) -> None:
        assert _close(self._made().value(self._reversed()), self._value())

    def test_repeatable(self) -> None:
        assert _close(self._value(), self._value()), "set deterministic = False"

    def test_batch_is_left_as_it_was(self) -> None:
        before = repr(self.batch)
        self._value()
        assert repr(self.batch) == before, "score a copy of the columns"

    def test_unscorable_is_no_number(self) -> None:
        """Known scores are used as they are; None and NaN among them don't count."""
        objective = self._made()
        if objective.decomposable:
            n = len(self.batch)
            assert objective.value(self.batch, [0.5, *[None] * (n - 1)]) == 0.5
            assert objective.value(self.batch, [0.25, *[math.nan] * (n - 1)]) == 0.25
            assert math.isnan(objective.value(self.batch, [None] * n))

    def test_goes_to_a_worker(self) -> None:
        """A copy of it in another process, as --reward_workers makes one, scores the same."""
        objective = self._made()
        copy = unpack(pack(objective))
        assert (copy.name, copy.decomposable) == (objective.name, objective.decomposable)
        assert _close(float(copy.value(self.batch)), self._value())

    def _value(self) -> float:
        return float(self._made().value(self.batch))


class TaskContract:
    """What the engine relies on in a task.

    Attributes:
        task: a Task; give it local rows, so that the test needs no network.
        objective: under which gold answers have full marks; by default the task's own.
    """

    task: ClassVar[Task]
    objective: ClassVar[Any] = None

    def _examples(self, split: str) -> list[Example]:
        return self.task.examples(split, _EXAMPLES)

    def test_attributes(self) -> None:
        task = self.task
        assert task.name
        assert task.output in ("generation", "choices")
        assert task.max_new_tokens >= 1
        assert not isinstance(task.stop, str), "stop is a sequence of strings"
        assert all(task.stop), "an empty stop string would end every completion"

    def test_every_split_has_examples(self) -> None:
        for split in SPLITS:
            assert self._examples(split), f"split {split} is empty"

    def test_prompts_are_texts_that_an_answer_can_follow(self) -> None:
        for example in (e for split in SPLITS for e in self._examples(split)):
            assert example.prompt.strip()
            assert not example.prompt.endswith(" "), "the answer brings its own space"

    def test_gold_has_full_marks(self) -> None:
        objective = as_objective(self.objective or self.task.objective)
        if {"completion_ids", "label_scores", "reference_logprob"} & set(objective.needs):
            return  # needs a model
        best = objective.bounds[1 if objective.higher_is_better else 0]
        for split in SPLITS:
            outcome = judge(objective, gold_batch(self.task, self._examples(split)), "raise")
            assert best is None or outcome.value == best, f"{split}: gold scores {outcome.value}"

    def test_splits_are_disjoint_by_group(self) -> None:
        seen: dict[Any, str] = {}
        for split in SPLITS:
            for row in self.task.rows(split):
                other = seen.setdefault(self.task.group(row), split)
                assert other == split, f"a group of rows is in {other} and in {split}"

    def test_splits_are_the_same_each_time(self) -> None:
        for split in SPLITS:
            once, again = self._examples(split), self._examples(split)
            assert self.task.fingerprint(once) == self.task.fingerprint(again)


class EstimatorContract:
    """What the engine relies on in a method.

    Attributes:
        make: called with ``seed``, ``eps`` and ``learning_rate``; a class or a function.
        eps, learning_rate, steps: with which it brings a quadratic in 20 weights from a loss of 1
            below a fifth of that.
    """

    make: ClassVar[Callable[..., Estimator]]
    eps: ClassVar[float] = 1e-2
    learning_rate: ClassVar[float] = 2e-2
    steps: ClassVar[int] = 300

    def _made(self, seed: int = 3) -> Estimator:
        return type(self).make(  # not self.: a function would be bound
            seed=seed, eps=self.eps, learning_rate=self.learning_rate
        )

    def _run(self, method: Estimator, steps: range) -> list[Any]:
        """Offsets and moves of some steps, under losses that depend on the step alone."""
        return [part for step in steps for part in taken(method, step, _made_up(step))]

    def test_as_many_offsets_as_evaluations(self) -> None:
        method = self._made()
        for step in range(5):
            offsets, _ = taken(method, step, _made_up(step))
            assert len(offsets) == method.evaluations

    def test_each_offset_is_in_one_group(self) -> None:
        method = self._made()
        for step in range(5):
            losses: list[float] = []
            offsets = method.offsets(step)
            while offsets:
                members = [number for group in method.groups(len(offsets)) for number in group]
                assert sorted(members) == list(range(len(offsets)))
                losses += _losses(step, len(losses) + len(offsets))[len(losses) :]
                offsets = method.more(losses)
            method.move(losses)

    def test_batches_are_counts(self) -> None:
        batches = self._made().batches
        assert batches
        assert all(isinstance(count, int) and count >= 1 for count in batches)

    def test_a_function_of_seed_and_step(self) -> None:
        once, again = self._made().offsets(4), self._made().offsets(4)
        assert [dict(offset) for offset in once] == [dict(offset) for offset in again]
        other = [dict(offset) for offset in self._made(seed=4).offsets(4)]
        assert other != [dict(offset) for offset in once]
        later = [dict(offset) for offset in self._made().offsets(5)]
        assert later != [dict(offset) for offset in once]

    def test_moves_are_finite_numbers(self) -> None:
        for scale in (1e-6, 1.0, 1e6):
            method = self._made()
            for step in range(20):
                for seed, coefficient in taken(method, step, _made_up(step, scale))[1]:
                    assert isinstance(seed, int)
                    assert 0 <= seed < 2**64, "the noise takes keys of 64 bits"
                    assert math.isfinite(coefficient)

    def test_some_move(self) -> None:
        assert any(self._run(self._made(), range(10))[1::2])

    def test_nothing_known_is_no_move(self) -> None:
        method = self._made()
        assert method.move([math.nan] * len(method.offsets(0))) == []
        json.dumps(method.state_dict(), allow_nan=False)  # raises where it left a NaN behind

    def test_half_a_pair_is_no_number(self) -> None:
        method = self._made()
        losses = [0.5 if i % 2 else math.nan for i in range(len(method.offsets(0)))]
        assert all(math.isfinite(coefficient) for _, coefficient in method.move(losses))

    def test_state_is_json_and_takes_up_where_it_left(self) -> None:
        whole = self._made()
        self._run(whole, range(5))
        state = json.loads(json.dumps(whole.state_dict(), allow_nan=False))
        resumed = self._made()
        resumed.load_state_dict(state)
        assert self._run(resumed, range(5, 10)) == self._run(whole, range(5, 10))

    def test_minimises_a_quadratic(self) -> None:
        weights = torch.nn.Parameter(torch.full((20,), 20**-0.5))
        walk = Walk([("weights", weights)])
        method = self._made()

        def loss(number: int, offset: Offset) -> float:
            if method.derivative and offset:
                walk.goto({})
                ((seed, scale),) = offset.items()
                return scale * float(2 * weights.detach() @ walk.direction(seed)["weights"])
            walk.goto(offset)
            return float(weights.detach().square().sum())

        for step in range(self.steps):
            walk.commit(taken(method, step, loss)[1])
        assert loss(0, {}) < 0.2


class FirstOrderContract:
    """What the engine relies on in a first-order method.

    Attributes:
        make: called with parameters and ``learning_rate``; a class or a function.
        learning_rate, steps: with which it brings a quadratic in 20 weights from a loss of 1 below
            a fifth of that.
    """

    make: ClassVar[Callable[..., FirstOrder]]
    learning_rate: ClassVar[float] = 2e-2
    steps: ClassVar[int] = 100

    def _params(self) -> list[torch.nn.Parameter]:
        """A matrix and a vector of 10 weights each, whose squares add up to 1."""
        shapes = ((2, 5), (10,))
        return [torch.nn.Parameter(torch.full(shape, 20**-0.5)) for shape in shapes]

    def _made(self, params: Sequence[torch.nn.Parameter], **settings: Any) -> FirstOrder:
        return type(self).make(params, learning_rate=self.learning_rate, **settings)

    def test_says_what_it_costs(self) -> None:
        method = self._made(self._params())
        assert isinstance(method.name, str)
        assert method.evaluations >= 1
        assert all(count >= 1 for count in method.batches)

    def test_minimises_a_quadratic(self) -> None:
        params = self._params()
        method = self._made(params)
        losses = [method.step(lambda: _square(params)) for _ in range(self.steps)]
        assert math.isclose(losses[0], 1.0, rel_tol=1e-5), "return the loss before the step"
        assert float(_square(params).detach()) < 0.2

    def test_leaves_no_gradient_and_no_hook(self) -> None:
        params = self._params()
        self._made(params).step(lambda: _square(params))
        assert all(param.grad is None for param in params)
        _square(params).backward()
        assert all(param.grad is not None for param in params), "a hook is left"

    def test_frozen_parameters_stay(self) -> None:
        params = self._params()
        params[1].requires_grad_(False)
        before = params[1].clone()
        self._made(params).step(lambda: _square(params))
        assert torch.equal(params[1], before)

    def test_micro_batches_are_one_batch(self) -> None:
        whole, parts = self._params(), self._params()
        one, several = self._made(whole), self._made(parts)
        for _ in range(5):
            one.step(lambda: _square(whole))
            several.step(lambda: (_square(parts) / 4 for _ in range(4)))
        assert all(torch.allclose(a, b) for a, b in zip(whole, parts, strict=True))

    def test_the_learning_rate_may_change(self) -> None:
        params = self._params()
        method = self._made(params)
        method.learning_rate = 0.0
        method.step(lambda: _square(params))
        assert all(torch.equal(a, b) for a, b in zip(params, self._params(), strict=True))

    def test_weight_decay_is_decoupled(self) -> None:
        """It does not depend on the gradient's size: plain against decayed, one step."""
        plain, decayed, pulled = self._params(), self._params(), self._params()
        anchor = {param: torch.ones_like(param) for param in pulled}
        self._made(plain).step(lambda: _square(plain))
        self._made(decayed, weight_decay=0.5).step(lambda: _square(decayed))
        self._made(pulled, weight_decay=0.5, anchor=anchor).step(lambda: _square(pulled))
        share = 0.5 * self.learning_rate
        for a, b, c, start in zip(plain, decayed, pulled, self._params(), strict=True):
            assert torch.allclose(a - b, share * start, rtol=0.05, atol=1e-6)
            assert torch.allclose(a - c, share * (start - 1), rtol=0.05, atol=1e-6)

    def test_takes_up_where_it_left(self) -> None:
        params = self._params()
        method = self._made(params)
        for _ in range(3):
            method.step(lambda: _square(params))
        copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
        state = {name: value.clone() for name, value in method.state_dict().items()}
        resumed = self._made(copies)
        resumed.load_state_dict(state)
        for _ in range(3):
            method.step(lambda: _square(params))
            resumed.step(lambda: _square(copies))
        assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def _square(params: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of all squares."""
    return torch.cat([param.flatten() for param in params]).square().sum()


def taken(
    method: Estimator, step: int, score: Callable[[int, Offset], float]
) -> tuple[list[dict[int, float]], Move]:
    """A step of a method: the offsets of all its rounds, and the move.

    Args:
        method: is asked for them.
        step: its number.
        score: the loss at an offset; given also how many were scored before it in this step.
    """
    asked: list[dict[int, float]] = []
    losses: list[float] = []
    offsets = method.offsets(step)
    while offsets:
        for offset in offsets:
            losses.append(score(len(losses), offset))
            asked.append(dict(offset))
        offsets = method.more(losses)
    return asked, method.move(losses)


def _losses(step: int, count: int) -> list[float]:
    """Made-up losses, all different."""
    return [math.sin(12.9898 * (step + 1) + 78.233 * i) for i in range(count)]


def _made_up(step: int, scale: float = 1.0) -> Callable[[int, Offset], float]:
    return lambda number, offset: scale * _losses(step, number + 1)[number]


def _close(a: float | None, b: float | None) -> bool:
    if not (is_score(a) and is_score(b)):
        return not is_score(a) and not is_score(b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _all_close(a: Sequence[float | None], b: Sequence[float | None]) -> bool:
    return len(a) == len(b) and all(map(_close, a, b))
