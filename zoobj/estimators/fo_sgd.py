"""FO-SGD: stochastic gradient descent by backpropagation, as torch has it.

    theta <- theta - lr g         (H. Robbins, S. Monro, 1951)

The plain reference: what a zeroth-order method estimates, exactly. Memory: weights, activations and
all gradients, as many numbers as weights.
"""

from typing import Any

import torch

from zoobj.estimators.first_order import WithOptimizer


class FOSGD(WithOptimizer):
    """Gradient descent by backpropagation (torch.optim.SGD); differentiable objectives only."""

    name = "fo-sgd"

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.optimizer = torch.optim.SGD(self.params, lr=self.learning_rate)
