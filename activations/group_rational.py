"""Group-rational unit of KAT. Yang, Wang: Kolmogorov-Arnold Transformer, ICLR 2025, arXiv 2409.10594.

The authors' code refuses a number of channels that the groups do not divide. Groups of almost equal size are ours, and so are
the digits of the fit to Swish.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_choice, check_int
from activations.kernels.pointwise import Pointwise

# (c_0 + c_2 x^2 + c_4 x^4) / (1 + q_2 x^2 + q_4 x^4), the least-squares fit to Swish - x / 2, which is even, on [-3, 3];
# tests/test_recent_units.py repeats it.
EVEN = (3.25356946e-07, 2.49997367e-01, 5.80264304e-03)
DENOMINATOR = (1.06530680e-01, 5.50294664e-04)


class GroupRational(Pointwise):
    r"""y = (p_0 + p_1 x + ... + p_5 x^5) / (1 + abs(q_1 x + ... + q_4 x^4)), with p per site and q per group of channels.

    The channels form ``groups`` groups of neighbors, whose sizes differ by at most 1: channel c of C is in group
    floor(c groups / C). Where C is smaller than ``groups``, each channel is a group. The slope of abs at 0 is taken as 1, so
    that denominators which start at 0 can be learned. Computed in float32 at least, as x^5 overflows half precision.

    Args:
        groups: number of groups, at least 1; the paper's is 8.
        init: function that the unit starts as: ``swish``, by a fit (within 2e-6 on [-3, 3]), or ``identity``. In the
            authors' blocks one unit starts as the identity and the other as a smooth ReLU.

    Parameters ``numerator`` (6,), ``denominator`` (4, groups), any real values. Not decayed (ours, as for PAU).

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "group_rational"
    upcasts = True

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, groups: int = 8, init: str = "swish"
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("groups", groups, minimum=1)
        check_choice("init", init, ("swish", "identity"))
        self.groups, self.init = min(groups, self.num_features), init
        self.numerator = nn.Parameter(torch.empty(6))
        self.denominator = nn.Parameter(torch.empty(4, self.groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        (c0, c2, c4), (q2, q4) = EVEN, DENOMINATOR
        top, bottom = [c0, 0.5, c2, q2 / 2, c4, q4 / 2], [0.0, q2, 0.0, q4]
        if self.init == "identity":
            top, bottom = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 4 * [0.0]
        self.assign("numerator", torch.tensor(top, device=self.numerator.device))
        bottoms = torch.tensor(bottom, device=self.denominator.device)
        self.assign("denominator", bottoms[:, None].expand(4, self.groups))

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        size, rest = divmod(self.num_features, self.groups)
        if rest:
            channels = torch.arange(self.num_features, device=x.device)
            denominator = self.denominator[:, channels * self.groups // self.num_features]
        else:  # The same without an index, whose backward is slow.
            denominator = self.denominator[:, :, None].expand(4, self.groups, size).reshape(4, -1)
        return self.numerator[:, None].expand(6, self.num_features), denominator

    @staticmethod
    def formula(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        p, q = numerator.unbind(), denominator.unbind()
        top = ((((p[5] * x + p[4]) * x + p[3]) * x + p[2]) * x + p[1]) * x + p[0]
        bottom = (((q[3] * x + q[2]) * x + q[1]) * x + q[0]) * x
        return top / (1 + torch.where(bottom < 0, -bottom, bottom))
