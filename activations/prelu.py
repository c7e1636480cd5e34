"""PReLU. He, Zhang, Ren, Sun: Delving Deep into Rectifiers, ICCV 2015, arXiv 1502.01852, equation 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_bool, check_number
from activations.kernels.pointwise import Pointwise


class PReLU(Pointwise):
    r"""y = max(0, x) + a min(0, x) with a learned slope a, which is also the slope at 0, as in torch.

    Args:
        shared: learn one slope for all channels (the paper's channel-shared variant) instead of one per channel.
        init: initial value of every slope; the paper's is 0.25. Any finite number.

    Parameter ``weight``: (num_features,) or (1,), any real value. Not decayed, as decay would pull every slope towards
    ReLU's (section 2.1 of the paper).

    Raises:
        ValueError: ``init`` is not finite.
    """

    kernel = "prelu"

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, shared: bool = False, init: float = 0.25
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("init", init)
        check_bool("shared", shared)
        self.init = float(init)
        self.weight = nn.Parameter(torch.empty(1 if shared else self.num_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("weight", self.init)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (self.weight,)

    @staticmethod
    def formula(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x >= 0, x, slope * x)

    def reference(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        # torch's PReLU takes channels in dimension 1 only; the views cost nothing and keep the strides.
        y = F.prelu(x.movedim(self.channel_dim, 1), coefficients[0].to(x.dtype)).movedim(1, self.channel_dim)
        return y.to(x.dtype)  # Under autocast, prelu lowers the precision.

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"slope": self.weight}
