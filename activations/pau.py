"""PAU. Molina, Schramowski, Kersting: Pade Activation Units, ICLR 2020, arXiv 1907.06732, equation 2 ("safe" form)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise

# Coefficients of (c_0 + c_2 x^2 + c_4 x^4) / (1 + q_2 x^2 + q_4 x^4), the least-squares fit to |x| on
# [-3, 3]; tests/test_formulas.py repeats it.
ABSOLUTE = (0.06755026, 3.34468516, 1.88695571)
DENOMINATOR = (3.98803079, 0.30257435)


class PAU(Pointwise):
    r"""y = (p_0 + p_1 x + ... + p_5 x^5) / (1 + |q_1 x + ... + q_4 x^4|), one learned function per site.

    Starts near leaky ReLU on [-3, 3] (within 0.034), as the paper does; the coefficients are a fit of our own. Computed
    in float32 at least, as x^5 overflows half precision; float32 itself ends at |x| of about 5e7.

    Args:
        slope: negative slope of that leaky ReLU, finite.

    Parameters ``numerator`` (6,), ``denominator`` (4,), any real values: the absolute value keeps the denominator
    from 0. Not decayed (ours; the paper is silent: 0 is no simpler activation, but the zero function).

    Raises:
        ValueError: ``slope`` is not finite.
    """

    kernel = "pau"
    upcasts = True

    def __init__(self, num_features: int, *, channel_dim: int = 1, slope: float = 0.01) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("slope", slope)
        self.slope = slope
        self.numerator, self.denominator = nn.Parameter(torch.empty(6)), nn.Parameter(torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Leaky ReLU is (1 + slope) / 2 x + (1 - slope) / 2 |x|.
        (c0, c2, c4), (q2, q4) = ABSOLUTE, DENOMINATOR
        odd, even = (1 + self.slope) / 2, (1 - self.slope) / 2
        numerator = [even * c0, odd, even * c2, odd * q2, even * c4, odd * q4]
        self.assign("numerator", torch.tensor(numerator, device=self.numerator.device))
        self.assign("denominator", torch.tensor([0.0, q2, 0.0, q4], device=self.denominator.device))

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.numerator[:, None], self.denominator[:, None]

    @staticmethod
    def formula(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        p, q = numerator.unbind(), denominator.unbind()
        top = ((((p[5] * x + p[4]) * x + p[3]) * x + p[2]) * x + p[1]) * x + p[0]
        bottom = (((q[3] * x + q[2]) * x + q[1]) * x + q[0]) * x
        return top / (1 + bottom.abs())
