"""SUGAR. Horuz, Kasenbacher, Higuchi et al.: The Resurrection of the ReLU, 2025, arXiv 2505.22074.

The surrogate is B-SiLU; the paper's second one, NeLU, is left out, as its formula could not be checked.
"""

from torch import Tensor

from activations.base import Activation, upcast
from activations.checks import check_number


class SUGAR(Activation):
    """y = max(x, 0), whose backward is that of B-SiLU(x) = (x + alpha) sigmoid(x) - alpha / 2; without parameters.

    The gradient, s + (x + alpha) s (1 - s) with s = sigmoid(x), is not that of the function: it reaches units that ReLU
    leaves without one. There is no fused kernel.

    Args:
        alpha: of B-SiLU, finite; the paper's is 1.67.

    Raises:
        ValueError: ``alpha`` is not finite.
    """

    exact_gradient = False

    def __init__(self, num_features: int, *, channel_dim: int = 1, alpha: float = 1.67) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_number("alpha", alpha)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        wide = upcast(x)
        surrogate = (wide + self.alpha) * wide.sigmoid() - self.alpha / 2
        # The difference is 0 and carries the gradient.
        return (wide.relu().detach() + (surrogate - surrogate.detach())).to(x.dtype)

    def curves(self, x: Tensor) -> Tensor:
        return x.relu().unsqueeze(0)
