"""Swish. Ramachandran, Zoph, Le: Searching for Activation Functions, 2017, arXiv 1710.05941, section 3.

The papers' tables call beta = 1 "Swish" (it is SiLU, arXiv 1606.08415); the trainable form is "Swish-beta".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.base import Activation, check_bool, check_finite
from activations.kernels import library

# elements from which our kernel outruns torch's SiLU
MANY = 2**18


class Swish(Activation):
    r"""y = x sigmoid(beta x).

    Args:
        beta: the value of beta, or its initial value where it is trained; the paper's is 1. Any finite number.
        trainable: learn beta by gradient descent.
        per_channel: one learned beta per channel instead of one per site.

    ``beta`` (trainable form only): (1,) or (num_features,), any real value. Kept from weight decay, as
    beta = 0 is not a simpler Swish but the linear function x / 2. The paper is silent on this; ours.

    Raises:
        ValueError: ``beta`` not finite, or ``per_channel`` without ``trainable``.
    """

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
        check_finite(beta=beta)
        check_bool(trainable=trainable, per_channel=per_channel)
        if per_channel and not trainable:
            raise ValueError("per_channel=True: a beta per channel must be trainable (trainable=True)")
        self.init = float(beta)
        self.beta: nn.Parameter | float = beta
        if trainable:
            self.beta = nn.Parameter(torch.empty(self.num_features if per_channel else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.beta, Tensor):
            self.assign("beta", self.init)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if isinstance(self.beta, Tensor):
            return self.pointwise("swish", _swish, x, self.beta)
        if self.beta == 1 and not (library.fusable(x) and x.numel() >= MANY):
            return F.silu(x)
        return self.pointwise("swish", _swish, x, x.new_full((1,), self.beta))

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"beta"} & dict(self.named_parameters()).keys())

    def curves(self, x: Tensor) -> Tensor:
        return _swish(x[None], self.beta[:, None] if isinstance(self.beta, Tensor) else self.beta)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return dict(self.named_parameters())


def _swish(x: Tensor, beta: Tensor | float) -> Tensor:
    return x * torch.sigmoid(beta * x)
