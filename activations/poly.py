"""PolyReLU and PolyNorm. Zhuo, Wang, Zeng, Li, Zhou, Ma: Polynomial Composition Activations, 2024, arXiv 2411.03884.
Both of order 3, the paper's.

A common implementation of PolyNorm starts b at 1; the paper's is 0, and is taken here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.base import Activation, upcast
from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class PolyReLU(Pointwise):
    """y = a_1 r + a_2 r^2 + a_3 r^3 + b with r = max(x, 0), one learned function per site.

    Parameters ``a`` (3,), initially 1/3, and ``b`` (1,), initially 0: any real values. Not decayed (ours; the paper is
    silent). Computed in float32 at least, as x^3 overflows half precision.
    """

    kernel = "poly_relu"
    upcasts = True

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.a, self.b = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("a", 1 / 3)
        self.assign("b", 0.0)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.a[:, None], self.b

    @staticmethod
    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        r, (a1, a2, a3) = x.relu(), a.unbind()
        return ((a3 * r + a2) * r + a1) * r + b


class PolyNorm(Activation):
    """y = a_1 norm(x) + a_2 norm(x^2) + a_3 norm(x^3) + b, where norm divides by the root mean square over the channels.

    Every position is normalized on its own, over the ``num_features`` channels in ``channel_dim``, whatever the other
    dimensions are; batch and positions are never mixed, train and eval mode are alike, and there are no statistics. An
    output depends on all channels at its place, so that the unit has no response curve. Its scale is lost: y(2 x) is y(x)
    but for ``eps``. With one channel, y only knows the sign of x.

    Args:
        eps: added to the mean square, above 0.

    Parameters ``a`` (3,), initially 1/3, and ``b`` (1,), initially 0: any real values. Not decayed (ours; the paper is
    silent). Computed in float32 at least, which x^6 overflows from abs(x) = 2e6 on.

    Raises:
        ValueError: ``eps`` is not above 0.
    """

    decayed = False

    def __init__(self, num_features: int, *, channel_dim: int = 1, eps: float = 1e-6) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("eps", eps, above=0)
        self.eps = eps
        self.a, self.b = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("a", 1 / 3)
        self.assign("b", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        wide = upcast(x)
        y, power = self.b.to(wide.dtype), torch.ones_like(wide)
        for a in self.a.to(wide.dtype).unbind():
            power = power * wide
            y = y + a * (power * (power.square().mean(self.channel_dim, keepdim=True) + self.eps).rsqrt())
        return y.to(x.dtype)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}
