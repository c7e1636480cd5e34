"""APL. Agostinelli, Hoffman, Sadowski, Baldi: Learning Activation Functions to Improve Deep Neural Networks,
ICLR workshop 2015, arXiv 1412.6830, equation 1.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.checks import check_int, check_number
from activations.kernels.pointwise import Pointwise
from activations.pieces import occupancy


class APL(Pointwise):
    r"""y = max(0, x) + sum_s a_s max(0, -x + b_s), s = 1..S, learned per channel.

    Args:
        hinges: S, at least 1; the paper's is 5 on CIFAR-10 and 2 on CIFAR-100.
        l2: weight >= 0 of the penalty on all a^2 + b^2, which the paper adds to keep them bounded; it replaces weight
            decay.

    Parameters ``a``, ``b`` (S, num_features), any real values. Initially a = 0, so that the unit starts as ReLU, and
    b ~ N(0, 1), so that no two hinges are equal (ours; the paper specifies neither). Not decayed.

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "apl"
    diagnostic_roles: ClassVar[Mapping[str, str]] = {"knots": "knots", "occupancy": "occupancy"}

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, hinges: int = 5, l2: float = 0.001
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("hinges", hinges, minimum=1)
        check_number("l2", l2, minimum=0)
        self.l2 = l2
        self.a, self.b = (nn.Parameter(torch.empty(hinges, self.num_features)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("a", 0.0)
        self.assign("b", torch.randn(self.b.shape, device=self.b.device))

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.a, self.b

    @staticmethod
    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y = x.relu()
        for slope, hinge in zip(a.unbind(), b.unbind(), strict=True):
            y = y + slope * (hinge - x).relu()
        return y

    def regularization(self) -> Tensor | float:
        return self.l2 * (self.a.square().sum() + self.b.square().sum()) if self.l2 else 0.0

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        knots = torch.cat([self.b, torch.zeros_like(self.b[:1])]).sort(0).values.T  # with ReLU's at 0
        values = super().diagnostics(x) | {"knots": knots}
        if x is not None:
            values["occupancy"] = occupancy(x, knots, self.channel_dim)
        return values
