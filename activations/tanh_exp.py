"""TanhExp. Liu, Di: TanhExp: A Smooth Activation Function with High Convergence Speed, arXiv 2003.09855."""

from torch import Tensor

from activations.kernels.pointwise import Pointwise

# tanh(exp(6)) is 1 in float64; exp of more would overflow and spoil the gradient.
SATURATED = 6.0


class TanhExp(Pointwise):
    """y = x tanh(exp(x)), without parameters."""

    kernel = "tanh_exp"

    @staticmethod
    def formula(x: Tensor) -> Tensor:
        return x * x.clamp_max(SATURATED).exp().tanh()
