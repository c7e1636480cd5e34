"""PReLU. He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015, arXiv 1502.01852, equation 1."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.base import Activation, check_bool, check_finite
from activations.kernels.pointwise import pointwise


class PReLU(Activation):
    r"""y = max(0, x) + a min(0, x) with a learned slope a, which is also the slope at 0, as in torch.

    Args:
        shared: one slope for all channels (the paper's channel-shared variant) instead of one per channel.
        init: the initial value of every slope; the paper's is 0.25. Any finite number.

    ``weight``: (num_features,) or (1,), any real value. Kept from weight decay, which would pull
    every slope towards ReLU's (section 2.1 of the paper).

    Raises:
        ValueError: ``init`` not finite.
    """

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, shared: bool = False, init: float = 0.25
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_finite(init=init)
        check_bool(shared=shared)
        self.init = float(init)
        self.weight = nn.Parameter(torch.empty(1 if shared else self.num_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("weight", self.init)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return pointwise("prelu", self._prelu, x, self.weight, channel_dim=self.channel_dim)

    def _prelu(self, x: Tensor, weight: Tensor) -> Tensor:
        # torch's PReLU knows channels in dimension 1 only; the views cost nothing and keep the strides
        y = F.prelu(x.movedim(self.channel_dim, 1), weight).movedim(1, self.channel_dim)
        return y.to(x.dtype)  # autocast lets prelu lower the precision

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"weight"})

    def curves(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, self.weight[:, None] * x)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"slope": self.weight}
