"""Gaussian. Ramasinghe, Lucey: Beyond Periodicity, Towards a Unifying Framework for Activations in Coordinate-MLPs, ECCV
2022, arXiv 2111.15135.

The paper writes exp(-x^2 / (2 sigma^2)); the form with a scale is that of the code which later work compares with, where it
is 10 or 30.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class Gaussian(Pointwise):
    """y = exp(-(s x)^2), without parameters; for implicit representations.

    Args:
        scale: s, above 0, which is 1 / (sqrt(2) sigma).

    Raises:
        ValueError: ``scale`` is not above 0.
    """

    kernel = "gaussian"
    upcasts = True

    def __init__(self, num_features: int, *, channel_dim: int = 1, scale: float = 10.0) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("scale", scale, above=0)
        self.scale = scale

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (x.new_full((1,), self.scale),)

    @staticmethod
    def formula(x: Tensor, scale: Tensor) -> Tensor:
        # exp(-40^2) is 0 in float64; the square of a larger number may overflow, and its slope with it.
        z = scale * x
        return (-torch.where(z.abs() > 40, 40.0, z).square()).exp()
