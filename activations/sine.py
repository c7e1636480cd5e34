"""Sine, as in SIREN. Sitzmann, Martel, Bergman, Lindell, Wetzstein: Implicit Neural Representations with Periodic
Activation Functions, NeurIPS 2020, arXiv 2006.09661, section 3.2.
"""

from collections.abc import Sequence

from torch import Tensor

from activations.checks import check_number
from activations.kernels.pointwise import Pointwise


class Sine(Pointwise):
    """y = sin(omega x).

    Args:
        omega: frequency, above 0; the paper's is 30, together with initial weights that belong to it: ``network.init=siren``
            and the same ``network.omega``. Without them the networks' own weights, which fit ReLU, are multiplied by it.

    Raises:
        ValueError: ``omega`` is not above 0.
    """

    kernel = "sine"
    upcasts = True  # Half precision would lose the phase.

    def __init__(self, num_features: int, *, channel_dim: int = 1, omega: float = 30.0) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("omega", omega, above=0)
        self.omega = omega

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (x.new_full((1,), self.omega),)

    @staticmethod
    def formula(x: Tensor, omega: Tensor) -> Tensor:
        return (omega * x).sin()
