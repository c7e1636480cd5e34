"""Swish. Ramachandran, Zoph, Le: Searching for Activation Functions, 2017, arXiv 1710.05941, section 3.

The papers' tables call beta = 1 "Swish" (it is SiLU, arXiv 1606.08415); the trainable form is "Swish-beta".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_bool, check_number
from activations.kernels import library
from activations.kernels.pointwise import Pointwise

# Number of elements from which our kernel is faster than torch's SiLU.
MIN_FUSED = 2**18


class Swish(Pointwise):
    r"""y = x sigmoid(beta x).

    Args:
        beta: value of beta, or its initial value if it is trained; the paper's is 1. Any finite number.
        trainable: learn beta by gradient descent.
        per_channel: learn one beta per channel instead of one per site.

    Parameter ``beta`` (trainable form only): (1,) or (num_features,), any real value. Not decayed, as beta = 0 is not a
    simpler Swish but the linear function x / 2 (ours; the paper is silent on this).

    Raises:
        ValueError: ``beta`` is not finite, or ``per_channel`` is set without ``trainable``.
    """

    kernel = "swish"

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        beta: float = 1.0,
        trainable: bool = False,
        per_channel: bool = False,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("beta", beta)
        check_bool("trainable", trainable)
        check_bool("per_channel", per_channel)
        if per_channel and not trainable:
            raise ValueError("per_channel=True: requires trainable=True")
        self.init = float(beta)
        self.beta: nn.Parameter | float = beta
        if trainable:
            self.beta = nn.Parameter(torch.empty(self.num_features if per_channel else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.beta, Tensor):
            self.assign("beta", self.init)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (self.beta if isinstance(self.beta, Tensor) else x.new_full((1,), self.beta),)

    def forward(self, x: Tensor) -> Tensor:
        fixed = not isinstance(self.beta, Tensor)
        if fixed and self.beta == 1 and not (library.fusable(x) and x.numel() >= MIN_FUSED):
            self.check_input(x)
            return F.silu(x)
        return super().forward(x)

    @staticmethod
    def formula(x: Tensor, beta: Tensor) -> Tensor:
        return x * torch.sigmoid(beta * x)
