"""GoLU, the Gompertz linear unit. Das, Safari, Adriaensen, Hutter: Gompertz Linear Units, 2025, arXiv 2502.03654.

The authors' CUDA backward returns 0 where x is NaN; here NaN stays NaN.
"""

import torch
from torch import Tensor

from activations.kernels.pointwise import Pointwise

# exp(-exp(7)) is 0 in float64, and exp(-x) of a smaller x would overflow.
SATURATED = -7.0


class GoLU(Pointwise):
    """y = x exp(-exp(-x)), without parameters. Below -7, where the gate is 0 in double precision, y and its slope are 0."""

    kernel = "golu"
    upcasts = True  # Half precision would lose the digits of exp(-x), which exp enlarges.

    @staticmethod
    def formula(x: Tensor) -> Tensor:
        z = torch.where(x < SATURATED, SATURATED, x)  # Not clamp_min, whose gradient where x is NaN is 0.
        return z * (-(-z).exp()).exp()
