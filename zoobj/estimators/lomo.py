"""LOMO: gradient descent whose gradients don't outlive the backward pass.

K. Lv et al., "Full parameter fine-tuning for large language models with limited resources", arXiv
2306.09782 (2023), Algorithm 1: as soon as a parameter's gradient is there,

    theta_l <- theta_l - lr g_l,   g_l <- None

The same steps as ``fo-sgd``; memory: weights, activations and the largest gradient.
"""

from torch import Tensor
from torch.nn import Parameter

from zoobj.estimators.first_order import Fused


class LOMO(Fused):
    """Gradient descent during the backward pass, so that no gradient survives it."""

    name = "lomo"

    def update(self, param: Parameter, grad: Tensor) -> Tensor:
        return grad
