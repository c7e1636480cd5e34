"""SReLU. Jin, Xu, Feng, Wei, Xiong, Yan: Deep Learning with S-shaped Rectified Linear Activation Units, AAAI 2016,
arXiv 1512.07030, equation 1.
"""

import torch
from torch import Tensor, nn

from activations.base import Activation, check_finite


class SReLU(Activation):
    r"""y = t_r + a_r (x - t_r) for x >= t_r;  x between;  t_l + a_l (x - t_l) for x <= t_l; learned per channel.

    Starts as leaky ReLU. The paper sets t_r to the k-th largest input after some epochs without training it; here it
    starts at a value that suits inputs from a norm, and is trained from the beginning.

    Args:
        t_right, a_left: initial values, finite; t_right above 0. t_l starts at 0 and a_r at 1, as in the paper.

    Parameters ``t_left``, ``a_left``, ``t_right``, ``a_right`` (num_features,), any real values. Not decayed (ours: decay
    would pull both slopes towards clipping). Where t_r falls below t_l, the right piece wins.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, t_right: float = 1.0, a_left: float = 0.2
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_finite(t_right=t_right, a_left=a_left)
        if t_right <= 0:
            raise ValueError(f"t_right={t_right}: a number above 0 is needed, where the left piece ends")
        self.initial = {"t_left": 0.0, "a_left": float(a_left), "t_right": float(t_right), "a_right": 1.0}
        self.t_left, self.a_left, self.t_right, self.a_right = (
            nn.Parameter(torch.empty(self.num_features)) for _ in self.initial
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self.initial.items():
            self.assign(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise("srelu", _srelu, x, self.t_left, self.a_left, self.t_right, self.a_right)

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset(dict(self.named_parameters()))

    def curves(self, x: Tensor) -> Tensor:
        return _srelu(x, *(p[:, None] for p in self.parameters()))

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return dict(self.named_parameters())


def _srelu(x: Tensor, t_left: Tensor, a_left: Tensor, t_right: Tensor, a_right: Tensor) -> Tensor:
    left = torch.where(x <= t_left, t_left + a_left * (x - t_left), x)
    return torch.where(x >= t_right, t_right + a_right * (x - t_right), left)
