"""PELU. Trottier, Giguere, Chaib-draa: Parametric Exponential Linear Unit, arXiv 1605.09332, equation 7."""

import torch
from torch import Tensor, nn

from activations.base import Activation, check_bool, check_positive


class PELU(Activation):
    r"""y = (a / b) x for x >= 0, a (exp(x / b) - 1) below, with learned a, b > 0.

    Args:
        shared: one pair for the site (the paper's) instead of one per channel.
        minimum: a and b act as at least this, above 0, so that they stay positive; the paper's is 0.1. Below it
            they still get the gradient, and can come back.

    Parameters ``a``, ``b``: (1,) or (num_features,), initially 1 (ELU), not decayed (ours, as for PReLU).

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, shared: bool = True, minimum: float = 0.1
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_bool(shared=shared)
        check_positive(minimum=minimum)
        self.minimum = minimum
        units = 1 if shared else self.num_features
        self.a, self.b = (nn.Parameter(torch.empty(units)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("a", 1.0)
        self.assign("b", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise("pelu", _pelu, x, self._positive(self.a), self._positive(self.b))

    def _positive(self, parameter: Tensor) -> Tensor:
        fixed = parameter.detach()
        return fixed.clamp_min(self.minimum) + (parameter - fixed)  # the latter is 0 and has the gradient

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"a", "b"})

    def curves(self, x: Tensor) -> Tensor:
        return _pelu(x, *(self._positive(p)[:, None] for p in (self.a, self.b)))

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}


def _pelu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # each branch sees its own side only: exp of a large x would spoil the gradient of the other
    return torch.where(x >= 0, a / b * x, a * (x.clamp_max(0) / b).expm1())
