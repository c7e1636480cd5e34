"""ACON-C and MetaACON. Ma, Zhang, Liu, Sun: Activate or Not: Learning Customized Activation, CVPR 2021,
arXiv 2009.04759, equations 7 to 10.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation, bare
from activations.checks import check_int
from activations.kernels import gate
from activations.kernels.networks import Squeeze
from activations.kernels.pointwise import Pointwise


class ACONC(Pointwise):
    r"""y = (p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x, all three learned per channel.

    beta switches between the mean of p1 x and p2 x (beta = 0) and their maximum (beta -> infinity).

    Parameters ``p1``, ``p2``, ``beta`` (num_features,), any real values; initially N(0, 1), N(0, 1) and 1, as in the
    authors' code. Not decayed (ours, as 0 is no simpler activation but the zero function; the paper is silent).
    """

    kernel = "acon"

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.p1, self.p2, self.beta = (nn.Parameter(torch.empty(self.num_features)) for _ in range(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("p1", torch.randn(self.num_features, device=self.p1.device))
        self.assign("p2", torch.randn(self.num_features, device=self.p2.device))
        self.assign("beta", 1.0)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.p1, self.p2, self.beta

    @staticmethod
    def formula(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
        difference = (p1 - p2) * x
        return difference * (beta * difference).sigmoid() + p2 * x


class MetaACON(Activation):
    r"""ACON-C whose beta_c = sigmoid(fc2(fc1(mean of x over positions)))_c depends on the input.

    The paper's equation; the authors' code has batch norms between the two layers, which fail on a batch of one.
    (N, C) input has no positions: it is its own mean.

    Args:
        reduction: fc1 has max(num_features // reduction, min_hidden) units; the paper's is 16.
        min_hidden: at least 1; the authors' is 16.

    Parameters ``p1``, ``p2`` (num_features,) initially N(0, 1), not decayed; those of ``fc1`` (C -> hidden) and ``fc2``
    (hidden -> C).

    Raises:
        ValueError: a value is outside its range.
    """

    diagnostic_roles: ClassVar[Mapping[str, str]] = {"beta": "gate"}

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, reduction: int = 16, min_hidden: int = 16
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("reduction", reduction, minimum=1)
        check_int("min_hidden", min_hidden, minimum=1)
        channels = self.num_features
        hidden = max(channels // reduction, min_hidden)
        self.p1, self.p2 = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.fc1, self.fc2 = bare(nn.Linear, channels, hidden), bare(nn.Linear, hidden, channels)
        self.network = Squeeze(channels, 1, rectified=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("p1", torch.randn(self.num_features, device=self.p1.device))
        self.assign("p2", torch.randn(self.num_features, device=self.p2.device))
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def switch(self, x: Tensor) -> Tensor:
        """Return beta, (N, C), in (0, 1)."""
        (beta,), _ = self.network([gate.mean(x, self.channel_dim)], [self.fc1, self.fc2])
        return beta.squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        parameters = (self.fc1, self.fc2, self.p1, self.p2)
        return gate.gated(gate.acon, gate.mean, x, self.network, *parameters, channel_dim=self.channel_dim)

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"p1", "p2"})

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        of_input = {} if x is None else {"beta": self.switch(x)}
        return {"p1": self.p1, "p2": self.p2} | of_input
