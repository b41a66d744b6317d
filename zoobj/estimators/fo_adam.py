"""FO-Adam: Adam by backpropagation, as torch has it.

D. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980 (2014), Algorithm 1:

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
    theta <- theta - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)

The strong reference, and the most memory: weights, activations, gradients, m and v.
"""

from typing import Any

import torch

from zoobj.estimators.first_order import WithOptimizer


class FOAdam(WithOptimizer):
    """Adam by backpropagation (torch.optim.Adam); differentiable objectives only."""

    name = "fo-adam"
    takes = ("adam_beta1", "adam_beta2", "adam_epsilon")

    def __init__(
        self,
        *args: Any,
        adam_beta1: float = 0.9,
        adam_beta2: float = 0.999,
        adam_epsilon: float = 1e-8,
        **settings: Any,
    ):
        super().__init__(*args, **settings)
        betas = (adam_beta1, adam_beta2)
        self.optimizer = torch.optim.Adam(
            self.params, lr=self.learning_rate, betas=betas, eps=adam_epsilon
        )
