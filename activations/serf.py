"""Serf. Nag, Bhattacharyya, Mukherjee, Kundu: Serf, Towards Better Training of Deep Neural Networks Using Log-Softplus
Error Activation Function, 2021, arXiv 2108.09598.
"""

from torch import Tensor
from torch.nn import functional as F

from activations.kernels.pointwise import Pointwise


class Serf(Pointwise):
    """y = x erf(log(1 + exp(x))), without parameters."""

    kernel = "serf"
    upcasts = True

    @staticmethod
    def formula(x: Tensor) -> Tensor:
        return x * F.softplus(x).erf()
