"""SMU, the smooth maximum unit. Biswas, Kumar, Banerjee, Pandey: SMU, 2021, arXiv 2111.04682.

Public implementations start m at 1e6 (with alpha = 0.25) or at 2.5 (with 0.01). From 1e6 it cannot be learned: its gradient is 0
for abs(x) > 1e-5, and a step below 0.03 is lost in float32, so the unit stays leaky ReLU. The default here is 2.5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class SMU(Pointwise):
    r"""y = ((1 + alpha) x + (1 - alpha) x erf(m (1 - alpha) x)) / 2, with m learned per site.

    A smooth max(x, alpha x), which it is in the limit of a large m; alpha = 0 and m = 1 / sqrt(2) is GELU.

    Args:
        alpha: slope on the left, finite; the paper's is 0.25.
        m: initial value of m, finite; see the head of this file.

    Parameter ``m``: (1,), any real value. Not decayed (ours; the paper is silent: m = 0 is a linear function).

    Raises:
        ValueError: a value is not finite.
    """

    kernel = "smu"
    upcasts = True  # torch's erf keeps half precision, in which m x has three digits.

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, alpha: float = 0.25, m: float = 2.5
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("alpha", alpha)
        check_number("m", m)
        self.alpha, self.init = alpha, float(m)
        self.m = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("m", self.init)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.m, x.new_full((1,), self.alpha)

    @staticmethod
    def formula(x: Tensor, m: Tensor, alpha: Tensor) -> Tensor:
        z = (1 - alpha) * x
        return ((1 + alpha) * x + z * (m * z).erf()) / 2
