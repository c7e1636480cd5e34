"""FINER. Liu, Zhu et al.: FINER, Flexible Spectral-bias Tuning in Implicit Neural Representation by Variable-periodic
Activation Functions, CVPR 2024, arXiv 2312.02434.

The paper's formula differentiates through the factor abs(x) + 1, the authors' code holds it constant in backward, and their
numbers are those of the code: ``detach`` is true by default. The bias of their first layer, uniform in (-k, k), is a
matter of the network.
"""

from collections.abc import Sequence

from torch import Tensor

from activations.checks import check_bool, check_number
from activations.kernels.pointwise import Pointwise


class FINER(Pointwise):
    """y = sin(omega (abs(x) + 1) x), without parameters; for implicit representations.

    Args:
        omega: frequency at 0, above 0; the paper's is 30.
        detach: hold the factor abs(x) + 1 constant in backward, as the authors' code does. The gradient is then not that
            of the function but omega (abs(x) + 1) cos(...), which is about half as large for a large x.

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "finer"
    upcasts = True  # Half precision would lose the phase.

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, omega: float = 30.0, detach: bool = True
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("omega", omega, above=0)
        check_bool("detach", detach)
        self.omega, self.detach = omega, detach
        self.exact_gradient = not detach

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return x.new_full((1,), self.omega), x.new_full((1,), 1.0 if self.detach else 2.0)

    def formula(self, x: Tensor, omega: Tensor, part: Tensor) -> Tensor:
        factor = x.abs() + 1
        return (omega * ((factor.detach() if self.detach else factor) * x)).sin()
