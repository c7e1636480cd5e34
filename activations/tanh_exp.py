"""TanhExp. Liu, Di: TanhExp: A Smooth Activation Function with High Convergence Speed, arXiv 2003.09855."""

from torch import Tensor

from activations.base import Activation

# tanh(exp(6)) is 1 in float64, and exp of more would overflow and spoil the gradient
SATURATED = 6.0


class TanhExp(Activation):
    """y = x tanh(exp(x))."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise("tanh_exp", _tanh_exp, x)

    def curves(self, x: Tensor) -> Tensor:
        return _tanh_exp(x).unsqueeze(0)


def _tanh_exp(x: Tensor) -> Tensor:
    return x * x.clamp_max(SATURATED).exp().tanh()
