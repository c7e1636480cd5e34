"""Snake. Ziyin, Hartwig, Ueda: Neural Networks Fail to Learn Periodic Functions and How to Fix It, NeurIPS 2020,
arXiv 2006.08195, equation 3.
"""

import torch
from torch import Tensor, nn

from activations.base import Activation, check_bool, check_finite, upcast


class Snake(Activation):
    r"""y = x + sin^2(a x) / a, and its limit x where a learned a comes to be 0; dy/da is x^2 there.

    Args:
        a: the frequency, or its initial value; not 0. The paper uses 1 (its default) and larger values, 5 to 50, where
            the period is known to be short.
        trainable: learn a by gradient descent.
        per_channel: one learned a per channel instead of one per site.

    Parameter ``a`` (trainable form only): (1,) or (num_features,). Not decayed (ours: a = 0 is the identity).

    Raises:
        ValueError: a value outside its range, or ``per_channel`` without ``trainable``.
    """

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        a: float = 1.0,
        trainable: bool = True,
        per_channel: bool = False,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_finite(a=a)
        check_bool(trainable=trainable, per_channel=per_channel)
        if a == 0:
            raise ValueError("a=0: the frequency must not be 0")
        if per_channel and not trainable:
            raise ValueError("per_channel=True: an a per channel must be trainable (trainable=True)")
        self.init = float(a)
        self.a: nn.Parameter | float = a
        if trainable:
            self.a = nn.Parameter(torch.empty(self.num_features if per_channel else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.a, Tensor):
            self.assign("a", self.init)

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)  # half precision would lose the phase
        a = self.a if isinstance(self.a, Tensor) else wide.new_full((1,), self.a)
        return self.pointwise("snake", _snake, wide, a).to(x.dtype)

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset(dict(self.named_parameters()))

    def curves(self, x: Tensor) -> Tensor:
        return _snake(x[None], self.a[:, None] if isinstance(self.a, Tensor) else self.a)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return dict(self.named_parameters())


# Taylor coefficients of sin(sqrt u) / sqrt u; within |z| below the limit the next term is under 1e-17
SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000)
SINC_LIMIT = 0.5


def _snake(x: Tensor, a: Tensor | float) -> Tensor:
    # as x + x sin(z) sin(z) / z: the plain form divides by a, and loses its gradient's digits where a is small
    z = a * x
    sine, small = z.sin(), z.abs() < SINC_LIMIT
    u, series = z.where(small, 0).square(), torch.full_like(z, SINC[-1])
    for coefficient in SINC[-2::-1]:
        series = series * u + coefficient
    return x + sine * (x * series.where(small, sine / z.where(~small, 1)))
