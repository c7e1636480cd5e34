"""SReLU. Jin, Xu, Feng, Wei, Xiong, Yan: Deep Learning with S-shaped Rectified Linear Activation Units, AAAI 2016,
arXiv 1512.07030, equation 1.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise
from activations.pieces import occupancy


class SReLU(Pointwise):
    r"""y = t_r + a_r (x - t_r) for x >= t_r;  x between;  t_l + a_l (x - t_l) for x <= t_l; learned per channel.

    Starts as leaky ReLU. The paper keeps t_r fixed for some epochs, then sets it to the k-th largest input; here it
    starts at a value that suits normalized inputs, and is trained from the beginning.

    Args:
        t_right, a_left: initial values, finite; t_right above 0, where the left piece ends. t_l starts at 0 and a_r at
            1, as in the paper.

    Parameters ``t_left``, ``a_left``, ``t_right``, ``a_right`` (num_features,), any real values. Not decayed (ours: decay
    would pull both slopes towards clipping). Where t_r falls below t_l, the right piece wins.

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "srelu"
    diagnostic_roles: ClassVar[Mapping[str, str]] = {
        "t_left": "interval_end",
        "t_right": "interval_end",
        "occupancy": "occupancy",
    }

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, t_right: float = 1.0, a_left: float = 0.2
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("t_right", t_right, above=0)
        check_number("a_left", a_left)
        self.initial = {"t_left": 0.0, "a_left": float(a_left), "t_right": float(t_right), "a_right": 1.0}
        self.t_left, self.a_left, self.t_right, self.a_right = (
            nn.Parameter(torch.empty(self.num_features)) for _ in self.initial
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self.initial.items():
            self.assign(name, value)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.t_left, self.a_left, self.t_right, self.a_right

    @staticmethod
    def formula(x: Tensor, t_left: Tensor, a_left: Tensor, t_right: Tensor, a_right: Tensor) -> Tensor:
        left = torch.where(x <= t_left, t_left + a_left * (x - t_left), x)
        return torch.where(x >= t_right, t_right + a_right * (x - t_right), left)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        values = super().diagnostics(x)
        if x is not None:
            # Where t_right is below t_left, the right piece wins and there is no middle.
            knots = torch.stack([torch.minimum(self.t_left, self.t_right), self.t_right], 1)
            values["occupancy"] = occupancy(x, knots, self.channel_dim)
        return values
