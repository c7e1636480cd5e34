"""Squared ReLU. So, Manke, Liu, Dai, Shazeer, Le: Primer, NeurIPS 2021, arXiv 2109.08668.

The square of leaky ReLU with slope 0.5 is that of speed-run records of small language models in 2026; no paper describes it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class ReLUSquared(Pointwise):
    """y = max(x, 0)^2, without parameters."""

    kernel = "relu_squared"

    @staticmethod
    def formula(x: Tensor) -> Tensor:
        return x.relu().square()


class LeakyReLUSquared(Pointwise):
    """y = max(x, 0)^2 + (negative_slope min(x, 0))^2, without parameters; positive on both sides, so not monotonic.

    Args:
        negative_slope: of the leaky ReLU that is squared, finite; the records' is 0.5.

    Raises:
        ValueError: ``negative_slope`` is not finite.
    """

    kernel = "leaky_relu_squared"

    def __init__(self, num_features: int, *, channel_dim: int = 1, negative_slope: float = 0.5) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("negative_slope", negative_slope)
        self.negative_slope = negative_slope

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (x.new_full((1,), self.negative_slope),)

    @staticmethod
    def formula(x: Tensor, negative_slope: Tensor) -> Tensor:
        return torch.where(x < 0, negative_slope * x, x).square()
