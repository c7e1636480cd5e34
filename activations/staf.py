"""STAF. Morsali et al.: STAF, Sinusoidal Trainable Activation Functions for Implicit Neural Representation, 2025,
arXiv 2502.00869.

The authors' code draws the squares of the amplitudes with mean 1 / (2 tau), which gives the output a variance of about 1/4;
2 / tau would give 1, as their theorem asks. This is the code, from which the published numbers come.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_int, check_number
from activations.kernels.pointwise import Pointwise
from activations.kernels.signatures import MAX_PARAMS


class STAF(Pointwise):
    r"""y = sum over i = 1 to tau of b_i sin(w_i x + phi_i), one learned sum per site; for implicit representations.

    Args:
        tau: number of terms, from 1 to 13.
        omega: upper end of the initial frequencies, above 0; the paper's is 30.

    Parameters ``w``, ``phi``, ``b``: (tau,) each, any real values, at first w uniform in (0, omega), phi uniform in (-pi, pi)
    and b of either sign with abs(b)^2 exponential with mean 1 / (2 tau). Not decayed (ours; the paper is silent).

    Raises:
        ValueError: a value is outside its range.
    """

    kernel = "staf"
    upcasts = True  # Half precision would lose the phase.

    def __init__(self, num_features: int, *, channel_dim: int = 1, tau: int = 5, omega: float = 30.0) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("tau", tau, minimum=1, maximum=MAX_PARAMS // 3)
        check_number("omega", omega, above=0)
        self.tau, self.omega = tau, omega
        self.w, self.phi, self.b = (nn.Parameter(torch.empty(tau)) for _ in range(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.assign("w", self.omega * torch.rand_like(self.w))
        self.assign("phi", math.pi * (2 * torch.rand_like(self.phi) - 1))
        # The square root of a number of Laplace's distribution, with its sign.
        squares = torch.empty_like(self.b).exponential_(2 * self.tau)
        self.assign("b", squares.sqrt() * (2 * torch.randint_like(self.b, 2) - 1))

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return self.w[:, None], self.phi[:, None], self.b[:, None]

    @staticmethod
    def formula(x: Tensor, w: Tensor, phi: Tensor, b: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for frequency, phase, amplitude in zip(w, phi, b, strict=True):
            y = y + amplitude * (frequency * x + phase).sin()
        return y
