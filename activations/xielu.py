"""xIELU. Huang, Schlag: Deriving Activation Functions Using Integration, 2024, arXiv 2411.13010.

The authors' code puts min(x, -1e-6) into the exponential. For x in (-1e-6, 0] its slope is 1/2 - a_n where that of the
formula is 1/2, and its value at 0 is not 0. This is the formula, which needs no such bound.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise

BETA = 0.5  # Slope at 0, and the least a_n, which keeps y bounded from below.


class XIELU(Pointwise):
    r"""y = a_p x^2 + x / 2 for x > 0, a_n (exp(x) - 1 - x) + x / 2 below, one learned pair per site.

    a_p = softplus(p) > 0 and a_n = 1/2 + softplus(n) > 1/2, so that the unit has a minimum on the left.

    Args:
        a_p: initial value of a_p, above 0; the paper's is 0.8.
        a_n: initial value of a_n, above 0.5; the paper's is 0.8.

    Parameters ``p``, ``n``: (1,), any real values. Not decayed (ours; the paper is silent: p = 0 is a_p = log 2).

    Raises:
        ValueError: an initial value is outside its range.
    """

    kernel = "xielu"
    upcasts = True  # The square of 256 overflows float16.

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, a_p: float = 0.8, a_n: float = 0.8
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("a_p", a_p, above=0)
        check_number("a_n", a_n, above=BETA)
        self.init = {"p": _before_softplus(a_p), "n": _before_softplus(a_n - BETA)}
        self.p, self.n = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self.init.items():
            self.assign(name, value)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return F.softplus(self.p), BETA + F.softplus(self.n)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"a_p": F.softplus(self.p), "a_n": BETA + F.softplus(self.n)}

    @staticmethod
    def formula(x: Tensor, a_p: Tensor, a_n: Tensor) -> Tensor:
        # Each branch sees only its own side: exp of a large x would spoil the gradient of the other.
        left = x.clamp_max(0)
        return BETA * x + torch.where(x > 0, a_p * x.square(), a_n * (left.expm1() - left))


def _before_softplus(value: float) -> float:
    """Return the number whose softplus is ``value``."""
    return value + math.log(-math.expm1(-value))
