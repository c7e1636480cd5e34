"""Snake. Ziyin, Hartwig, Ueda: Neural Networks Fail to Learn Periodic Functions and How to Fix It, NeurIPS 2020,
arXiv 2006.08195, equation 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_bool, check_number
from activations.kernels.pointwise import Pointwise

# Taylor coefficients of sin(sqrt u) / sqrt u; for |z| below the limit the next term is less than 1e-17.
SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000)
SINC_LIMIT = 0.5


class Snake(Pointwise):
    r"""y = x + sin^2(a x) / a; where a learned a becomes 0, the limits y = x and dy/da = x^2.

    Args:
        a: frequency, or its initial value if it is trained; not 0. The paper's default is 1; it uses 5 to 50 for data
            with a short period.
        trainable: learn a by gradient descent.
        per_channel: learn one a per channel instead of one per site.

    Parameter ``a`` (trainable form only): (1,) or (num_features,). Not decayed (ours: a = 0 is the identity).

    Raises:
        ValueError: a value is outside its range, or ``per_channel`` is set without ``trainable``.
    """

    kernel = "snake"
    upcasts = True  # Half precision would lose the phase.

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
        check_number("a", a)
        check_bool("trainable", trainable)
        check_bool("per_channel", per_channel)
        if a == 0:
            raise ValueError(f"a={a}: must not be 0")
        if per_channel and not trainable:
            raise ValueError("per_channel=True: requires trainable=True")
        self.init = float(a)
        self.a: nn.Parameter | float = a
        if trainable:
            self.a = nn.Parameter(torch.empty(self.num_features if per_channel else 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.a, Tensor):
            self.assign("a", self.init)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (self.a if isinstance(self.a, Tensor) else x.new_full((1,), self.a),)

    @staticmethod
    def formula(x: Tensor, a: Tensor) -> Tensor:
        # In the form x + x sin(z) sin(z) / z: the plain form divides by a, and its gradient loses digits for a small a.
        z = a * x
        sine, small = z.sin(), z.abs() < SINC_LIMIT
        u, series = z.where(small, 0).square(), torch.full_like(z, SINC[-1])
        for coefficient in SINC[-2::-1]:
            series = series * u + coefficient
        return x + sine * (x * series.where(small, sine / z.where(~small, 1)))
