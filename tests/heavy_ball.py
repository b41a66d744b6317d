"""A method with state, as someone's own file: momentum kept as seeds and scalars."""

from collections.abc import Sequence
from typing import Any

from zoobj.estimators import Estimator
from zoobj.noise import derive
from zoobj.walk import Move, Offset


class HeavyBall(Estimator):
    """theta <- theta - lr sum_k beta^(t - k) d_k z_k over the last steps."""

    name = "heavy-ball"
    evaluations = 2
    beta, memory = 0.7, 5

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.past: list[list[float]] = []
        self.direction = 0

    def offsets(self, step: int) -> list[Offset]:
        self.direction = derive(self.seed, step)
        return [{self.direction: self.eps}, {self.direction: -self.eps}]

    def move(self, losses: Sequence[float]) -> Move:
        self.past = [[seed, self.beta * d] for seed, d in self.past][-self.memory :]
        self.past.append([self.direction, losses[0] - losses[1]])
        return [(int(seed), -self.learning_rate * d) for seed, d in self.past if d]

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.past = [list(entry) for entry in state["past"]]
