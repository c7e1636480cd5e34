"""StarReLU. Yu et al.: MetaFormer Baselines for Vision, 2022, arXiv 2210.13452.

The paper's scale and bias give the output of a standard normal input mean 0 and variance 1; common code starts at 1 and 0,
which is squared ReLU. ``star_relu`` and ``star_relu_one`` are the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class StarReLU(Pointwise):
    """y = s max(x, 0)^2 + b, with s and b learned per site.

    Args:
        scale: initial value of s, finite; the paper's is 0.8944 = 2 / sqrt(5).
        bias: initial value of b, finite; the paper's is -0.4472 = -1 / sqrt(5).

    Parameters ``scale``, ``bias``: (1,), any real values. Not decayed (ours; the paper is silent: s = 0 is a constant).

    Raises:
        ValueError: an initial value is not finite.
    """

    kernel = "star_relu"
    upcasts = True  # The square of 256 overflows float16.

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, scale: float = 0.8944, bias: float = -0.4472
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("scale", scale)
        check_number("bias", bias)
        self.init = {"scale": float(scale), "bias": float(bias)}
        self.scale, self.bias = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self.init.items():
            self.assign(name, value)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.scale, self.bias

    @staticmethod
    def formula(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return scale * x.relu().square() + bias
