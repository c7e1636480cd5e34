"""Sine, as in SIREN. Sitzmann, Martel, Bergman, Lindell, Wetzstein: Implicit Neural Representations with Periodic
Activation Functions, NeurIPS 2020, arXiv 2006.09661, section 3.2.
"""

from torch import Tensor

from activations.base import Activation, check_positive, upcast


class Sine(Activation):
    """y = sin(omega x).

    Args:
        omega: above 0; the paper's is 30, together with an initialization of the weights that belongs to it. Networks
            here are initialised alike for all activations, so that this unit stands without it.

    Raises:
        ValueError: ``omega`` not above 0.
    """

    def __init__(self, num_features: int, *, channel_dim: int = 1, omega: float = 30.0) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_positive(omega=omega)
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)  # half precision would lose the phase
        return self.pointwise("sine", _sine, wide, wide.new_full((1,), self.omega)).to(x.dtype)

    def curves(self, x: Tensor) -> Tensor:
        return _sine(x, x.new_full((1,), self.omega)).unsqueeze(0)


def _sine(x: Tensor, omega: Tensor) -> Tensor:
    return (omega * x).sin()
