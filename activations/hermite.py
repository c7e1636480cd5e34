"""Learned expansions in Hermite polynomials and in a Fourier series. Khalfaoui-Hassani, Kesselheim: Polynomial,
Trigonometric, and Tropical Activations, ICLR 2026, arXiv 2502.01247.

Initial values preserve variance: for Hermite and a standard normal input, value and derivative have the same mean square,
which tends to 1 with the degree. For Fourier the squared amplitudes of value and derivative have the same sum; over a period,
where a cosine counts half and the constant whole, the two mean squares differ. Learned frequencies are the authors' code.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_int
from activations.kernels.pointwise import Pointwise
from activations.kernels.signatures import MAX_PARAMS

# 1 / sqrt(I_0(2)), I_0 being the modified Bessel function: the sum of 1 / k!^2 over all k from 0 on is I_0(2).
FOURIER_GAIN = 0.6623264587866137


class Hermite(Pointwise):
    r"""y = sum over k = 0 to degree of c_k He_k(x) / k!, one learned polynomial per site.

    He_k are the probabilists' polynomials: 1, x, x^2 - 1, x^3 - 3 x, and so on. Computed in float32 at least.

    Args:
        degree: highest k, from 1 to 39.

    Parameter ``c``: (degree + 1,), any real values; c_k = 1 / sqrt(e) at first, but c_0 = sqrt((1 - 1 / degree!) / e). Not
    decayed (ours; the paper is silent).

    Raises:
        ValueError: ``degree`` is outside its range.
    """

    kernel = "hermite"
    upcasts = True

    def __init__(self, num_features: int, *, channel_dim: int = 1, degree: int = 3) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("degree", degree, minimum=1, maximum=MAX_PARAMS - 1)
        self.degree = degree
        self.c = nn.Parameter(torch.empty(degree + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        c = [math.sqrt((1 - 1 / math.factorial(self.degree)) / math.e)] + self.degree * [math.exp(-0.5)]
        self.assign("c", self.c.new_tensor(c))

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        return (self.c[:, None],)

    @staticmethod
    def formula(x: Tensor, c: Tensor) -> Tensor:
        before, h, y = torch.zeros_like(x), torch.ones_like(x), c[0]
        for k in range(1, len(c)):
            before, h = h, (x * h - before) / k
            y = y + c[k] * h
        return y


class Fourier(Pointwise):
    r"""y = a_0 + sum over k = 1 to degree of a_k cos(f_k x - phi_k) / k!, one learned series per site.

    Args:
        degree: number of terms, from 1 to 13.

    Parameters, any real values, not decayed (ours; the paper is silent):
        ``a`` (degree + 1,): a_k = 0.6623 = 1 / sqrt(I_0(2)) at first, but a_0 is sqrt(1 - 1 / degree!^2) times that.
        ``f`` (degree,): f_k = k at first.
        ``phi`` (degree,): pi / 4 at first.

    Raises:
        ValueError: ``degree`` is outside its range.
    """

    kernel = "fourier"
    upcasts = True  # Half precision would lose the phase.

    def __init__(self, num_features: int, *, channel_dim: int = 1, degree: int = 6) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("degree", degree, minimum=1, maximum=(MAX_PARAMS - 1) // 3)
        self.degree = degree
        self.weights = [1 / math.factorial(k) for k in range(1, degree + 1)]
        self.a = nn.Parameter(torch.empty(degree + 1))
        self.f, self.phi = (nn.Parameter(torch.empty(degree)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        first = math.sqrt(1 - 1 / math.factorial(self.degree) ** 2)
        self.assign("a", FOURIER_GAIN * self.a.new_tensor([first] + self.degree * [1.0]))
        self.assign("f", torch.arange(1, self.degree + 1, device=self.f.device))
        self.assign("phi", math.pi / 4)

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        # The sinusoids' amplitudes first and the constant last; cos(z) is sin(z + pi / 2).
        amplitudes = torch.cat([self.a[1:] * self._weights(), self.a[:1]])
        return self.f[:, None], (math.pi / 2 - self.phi)[:, None], amplitudes[:, None]

    def _weights(self) -> Tensor:
        """Return 1 / k! for all terms, the same bits either way."""
        if self.a.is_cpu:
            return self.a.new_tensor(self.weights)
        # copying a list would make a GPU wait
        steps = torch.arange(1, self.degree + 1, dtype=self.a.dtype, device=self.a.device)
        return steps.cumprod(0).reciprocal()

    @staticmethod
    def formula(x: Tensor, frequency: Tensor, phase: Tensor, amplitude: Tensor) -> Tensor:
        y = amplitude[-1]
        for f, shift, a in zip(frequency, phase, amplitude[:-1], strict=True):
            y = y + a * (f * x + shift).sin()
        return y
