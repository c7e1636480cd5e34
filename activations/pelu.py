"""PELU. Trottier, Giguere, Chaib-draa: Parametric Exponential Linear Unit, arXiv 1605.09332, equation 7."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_bool, check_number
from activations.kernels.pointwise import Pointwise


class PELU(Pointwise):
    r"""y = (a / b) x for x >= 0, a (exp(x / b) - 1) below, with learned a, b > 0.

    Args:
        shared: learn one pair for the site (as the paper does) instead of one per channel.
        minimum: lower bound of a and b in the formula, above 0; the paper's is 0.1. A parameter below it still gets
            its gradient, so that it can return.

    Parameters ``a``, ``b``: (1,) or (num_features,), initially 1 (ELU), not decayed (ours, as for PReLU).

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "pelu"

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, shared: bool = True, minimum: float = 0.1
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_bool("shared", shared)
        check_number("minimum", minimum, above=0)
        self.minimum = minimum
        units = 1 if shared else self.num_features
        self.a, self.b = (nn.Parameter(torch.empty(units)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("a", 1.0)
        self.assign("b", 1.0)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self._bounded(self.a), self._bounded(self.b)

    def _bounded(self, parameter: Tensor) -> Tensor:
        """Return ``parameter``, at least ``minimum``, with a gradient of 1 everywhere."""
        fixed = parameter.detach()
        return fixed.clamp_min(self.minimum) + (
            parameter - fixed
        )  # The second term is 0 and carries the gradient.

    @staticmethod
    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # Each branch sees only its own side: exp of a large x would spoil the gradient of the other.
        return torch.where(x >= 0, a / b * x, a * (x.clamp_max(0) / b).expm1())
