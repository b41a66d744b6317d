"""The walk as a torch optimizer: any module, any score, no backward pass.

    opt = ZOSGD(model.named_parameters(), lr=1e-3, eps=1e-2, maximize=True)
    opt.step(lambda: accuracy_of(model))

or, where scores come from elsewhere (a person, another program), one trial at a time:

    with opt.ask() as trial:
        score = my_score(model)
    opt.tell(trial, score)

Algorithm: SPSA as in ``zoobj.estimators.zo_sgd``, averaged over q directions (n-SPSA; Malladi et
al. 2023, arXiv 2305.17333, Definition 1). With d_k the difference of a pair along z_k,

    theta <- theta - lr / q sum_k [d_k / (2 eps)] z_k              (1)
    theta <- theta - lr / sqrt(q) sum_k [d_k / rms(d)] z_k         (2)

where (2), the default, makes lr the change of a weight in a typical step, whatever the units.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoobj.noise import derive
from zoobj.objective import is_score
from zoobj.passes import Decay
from zoobj.signal import RunningScale
from zoobj.walk import Noise, Offset, Walk


@dataclass(frozen=True)
class Trial:
    """One of the points that a step scores: sign * eps along a direction.

    Attributes:
        step, index: which step asks for it, and its number there.
        seed: of the direction.
        sign: +1 or -1.
    """

    step: int
    index: int
    seed: int
    sign: int


class ZOSGD(torch.optim.Optimizer):
    """Zeroth-order SGD, in place and exact: weights are restored to the bit after every score.

    Its memory is two bytes for each 16-bit weight, and none for float32. At construction weights
    are rounded once to a fine grid, by at most 2^-22 (16 bits: 2^-21) of a tensor's largest weight.

    Args:
        params: parameters, (name, parameter) pairs, or groups of either; a group may have its own
            ``lr``, ``eps`` and ``weight_decay``. Noise belongs to names, which are ``group.index``
            where none are given.
        lr: learning rate; with ``normalize`` the change of a weight in a typical step.
        eps: how far from theta the loss is scored.
        weight_decay: decoupled, as in AdamW: theta shrinks by lr * weight_decay a step, towards
            ``anchor`` if there is one.
        directions: pairs scored a step.
        normalize: divide differences by their running size, equation (2) instead of (1).
        maximize: the closure's value is a score, not a loss.
        noise, density, anchor, compile: see ``Walk``.
        seed: of the directions.

    Attributes:
        steps: made so far.
        failed: pairs so far of which a side could not be scored; they move nothing.
        ties: pairs so far whose sides scored the same; they move nothing either.

    Raises:
        UserError: a parameter that can't be walked, named.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> opt = ZOSGD([weight], lr=0.02, eps=0.05)
    >>> for _ in range(200):
    ...     loss = opt.step(lambda: (weight - 0.5).square().sum())
    >>> bool((weight - 0.5).abs().max() < 0.1)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        directions: int = 1,
        normalize: bool = True,
        maximize: bool = False,
        noise: Noise = "rademacher",
        density: float = 1.0,
        anchor: Mapping[str, Tensor] | None = None,
        compile: bool | None = None,
        seed: int = 0,
    ):
        if directions < 1:
            raise ValueError(f"directions {directions}: at least 1")
        self._walk = partial(
            Walk,
            noise=noise,
            density=density,
            mask_seed=derive(seed),
            anchor=anchor,
            grow=True,
            compile=compile,
        )
        self._walks: list[Walk] = []
        self.seed, self.directions = seed, directions
        self.normalize, self.maximize = normalize, maximize
        self.steps = self.failed = self.ties = 0
        self._scale = RunningScale()
        self._losses: list[float | None] = [None] * (2 * directions)  # None: not told yet
        self._asked: set[int] = set()  # trials of this step that were given out
        self._away = False
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; its tensors are put on their grids."""
        super().add_param_group(param_group)
        group, number = self.param_groups[-1], len(self._walks)
        for key in ("lr", "weight_decay"):
            if not group[key] >= 0:
                raise ValueError(f"{key} {group[key]}: 0 or more")
        if not 0 < group["eps"] < math.inf:
            raise ValueError(f"eps {group['eps']}: above 0")
        names = group.get("param_names") or [f"{number}.{i}" for i in range(len(group["params"]))]
        self._walks.append(self._walk(zip(names, group["params"], strict=True)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """Score 2 x ``directions`` points and move; 2 x ``directions`` + 1 passes.

        Args:
            closure: scores the model as it is; a number or a tensor of one. None, NaN or infinity
                mean that it could not be scored.

        Returns:
            The mean of the values, NaN if there is none.

        Raises:
            Whatever the closure raises; the weights are then exactly what they were before, and
            what had been told or scored in this step is kept for the next call.
        """
        if closure is None:
            raise TypeError("ZOSGD.step needs a closure that returns the loss; or use ask and tell")
        values = []
        try:
            for trial in self._untold():
                self._goto(trial)
                values.append(self._note(trial, closure()))
            self._move()
        finally:
            self._goto(None)
        numbers = [value for value in values if not math.isnan(value)]
        mean = sum(numbers) / len(numbers) if numbers else math.nan
        return -mean if self.maximize else mean

    @contextmanager
    def ask(self) -> Iterator[Trial]:
        """Within the block the weights are at a point to be scored; after it, at theta again.

        Calls give the points of the step in turn, those left out that were told already.
        """
        if self._away:
            raise RuntimeError("the weights are at a trial already: leave its block first")
        untold = self._untold()
        if all(trial.index in self._asked for trial in untold):
            self._asked.clear()
        trial = next(trial for trial in untold if trial.index not in self._asked)
        self._asked.add(trial.index)
        self._goto(trial)
        self._away = True
        try:
            with torch.no_grad():
                yield trial
        finally:
            self._away = False
            self._goto(None)

    def tell(self, trial: Trial, score: Any) -> bool:
        """What a trial scored (None: it could not be); the last one of a step makes the step.

        Returns:
            Whether the weights moved on to the next step.

        Raises:
            ValueError: the trial belongs to another step, or was told already.
        """
        if trial.step != self.steps or self._losses[trial.index] is not None:
            raise ValueError(f"trial {trial} is not waiting for a score at step {self.steps}")
        self._note(trial, score)
        if self._untold():
            return False
        self._move()
        self._opt_called = True  # so that torch's schedulers know of the step
        if not self._away:
            self._goto(None)
        return True

    def state_dict(self) -> dict[str, Any]:
        """torch's, and under "zo" the step, what was told of it, and the walk's own state.

        That is 2 bytes for each 16-bit weight, and next to nothing for float32.
        """
        own = {
            "seed": self.seed,
            "steps": self.steps,
            "failed": self.failed,
            "ties": self.ties,
            "losses": list(self._losses),
            "scale": [self._scale.square, self._scale.weight],
            "walks": [walk.state_dict() for walk in self._walks],
        }
        return {**super().state_dict(), "zo": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where ``state_dict`` left off. Restore the module's weights first."""
        own = state_dict["zo"]
        if len(own["losses"]) != 2 * self.directions:
            raise ValueError(f"the state is of {len(own['losses']) // 2} directions a step")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zo"})
        self.seed, self.steps = own["seed"], own["steps"]
        self.failed, self.ties = own["failed"], own["ties"]
        self._losses = list(own["losses"])
        self._scale.square, self._scale.weight = own["scale"]
        for walk, state in zip(self._walks, own["walks"], strict=True):
            walk.load_state_dict(state)

    def _trial(self, index: int) -> Trial:
        seed = derive(self.seed, self.steps, index // 2)
        return Trial(self.steps, index, seed, -1 if index % 2 else 1)

    def _untold(self) -> list[Trial]:
        return [self._trial(i) for i, loss in enumerate(self._losses) if loss is None]

    def _note(self, trial: Trial, score: Any) -> float:
        """The score as a loss, NaN if it is none."""
        number = float(score) if score is not None else math.nan
        loss = -number if self.maximize else number
        self._losses[trial.index] = loss = loss if is_score(loss) else math.nan
        return loss

    def _goto(self, trial: Trial | None) -> None:
        for walk, group in zip(self._walks, self.param_groups, strict=True):
            offset: Offset = {} if trial is None else {trial.seed: trial.sign * group["eps"]}
            walk.goto(offset)

    def _move(self) -> None:
        """Commit what the told losses say, and begin the next step."""
        losses = [math.nan if loss is None else loss for loss in self._losses]
        pairs = [
            (self._trial(index).seed, losses[index] - losses[index + 1])
            for index in range(0, len(losses), 2)
        ]
        told = [(seed, d) for seed, d in pairs if not math.isnan(d)]
        self.failed += len(pairs) - len(told)
        self.ties += sum(d == 0 for _, d in told)
        if self.normalize:
            told = [(seed, self._scale.normalise(d)) for seed, d in told]
        rounding = derive(self.seed, self.steps, -1)
        self.steps += 1
        self._losses = [None] * (2 * self.directions)
        self._asked.clear()
        if not told:
            return
        for walk, group in zip(self._walks, self.param_groups, strict=True):
            share = 1 / (2 * group["eps"] * self.directions)  # (1)
            if self.normalize:
                share = 1 / math.sqrt(self.directions)  # (2)
            rate = group["lr"] * group["weight_decay"]
            decay = Decay(rate, rounding) if rate else None
            walk.commit([(seed, -group["lr"] * share * d) for seed, d in told if d], decay)
