"""Regression targets in closed form, each on the box that its task gives it.

All are vectorized, (N, D) to (N, 1), in the dtype and on the device of their input.
"""

import torch
from torch import Tensor

SINES2D_FREQUENCIES = torch.tensor(
    [[9, -7], [-9, 11], [3, 13], [9, 9], [13, 5], [3, 19]], dtype=torch.float32
)
SINES2D_WEIGHTS = torch.tensor([0.4, 0.1, 0.15, 0.15, 0.1, 0.1])
SINE_MIXTURE_FREQUENCIES = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0])
SINE_MIXTURE_PHASES = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])


def sine_mixture(x: Tensor) -> Tensor:
    """f(x) = 1/5 sum_k sin(pi k x + phi_k), k = 1, 2, 3, 5, 8, phi_k = 0, 1, 2, 3, 4; on [-1, 1].

    In the manner of Rahaman et al., On the Spectral Bias of Neural Networks (ICML 2019, arXiv 1806.08734), experiment 1,
    who take ten waves of equal amplitude, 5 to 50 periods in the interval and random phases; ours are 1 to 8 and fixed.

    Shape:
        (N, 1) to (N, 1).
    """
    waves = torch.pi * x * SINE_MIXTURE_FREQUENCIES.to(x) + SINE_MIXTURE_PHASES.to(x)
    return waves.sin().mean(1, keepdim=True)


def sine(x: Tensor) -> Tensor:
    """f(x) = sin(2 pi x).

    Shape:
        (N, 1) to (N, 1).
    """
    return (2 * torch.pi * x).sin()


def step(x: Tensor) -> Tensor:
    """f(x) = sign(x): -1 below 0 and 1 above.

    Shape:
        (N, 1) to (N, 1).
    """
    return x.sign()


def absolute_value(x: Tensor) -> Tensor:
    """f(x) = abs(x).

    Shape:
        (N, 1) to (N, 1).
    """
    return x.abs()


def chirp(x: Tensor) -> Tensor:
    """f(x) = sin(2 pi (t + 9 t^2 / 2)), t = (x + 1) / 2: a wave whose frequency in t rises from 1 to 10; on [-1, 1].

    Shape:
        (N, 1) to (N, 1).
    """
    t = (x + 1) / 2
    return (2 * torch.pi * (t + 4.5 * t.square())).sin()


def runge(x: Tensor) -> Tensor:
    """f(x) = 1 / (1 + 25 x^2) on [-1, 1]: polynomials through equidistant points diverge.

    C. Runge, Ueber empirische Funktionen und die Interpolation zwischen aequidistanten Ordinaten, Zeitschrift fuer
    Mathematik und Physik 46 (1901): 224-243; the paper has 1 / (1 + x^2) on [-5, 5].

    Shape:
        (N, 1) to (N, 1).
    """
    return 1 / (1 + 25 * x.square())


def sawtooth(x: Tensor) -> Tensor:
    """f(x) = 2 (2 x - floor(2 x + 1/2)): four teeth in [-1, 1] that rise from -1 to 1 and jump back.

    Shape:
        (N, 1) to (N, 1).
    """
    return 2 * (2 * x - (2 * x + 0.5).floor())


def sines2d(x: Tensor) -> Tensor:
    """f(x) = sum_i w_i sin(A_i . x): the regression target of DiTAC's figure 1 (arXiv 2407.07564).

    Shape:
        (N, 2) to (N, 1).
    """
    return ((x @ SINES2D_FREQUENCIES.to(x).T).sin() @ SINES2D_WEIGHTS.to(x))[:, None]


def franke(x: Tensor) -> Tensor:
    """Two hills, a slope and a dip on [0, 1]^2, a test function for interpolation.

    f(x, y) = 3/4 exp(-((9x - 2)^2 + (9y - 2)^2) / 4) + 3/4 exp(-(9x + 1)^2 / 49 - (9y + 1) / 10)
            + 1/2 exp(-((9x - 7)^2 + (9y - 3)^2) / 4) - 1/5 exp(-(9x - 4)^2 - (9y - 7)^2)

    R. Franke, A Critical Comparison of Some Methods for Interpolation of Scattered Data, report NPS-53-79-003,
    Naval Postgraduate School, 1979.

    Shape:
        (N, 2) to (N, 1).
    """
    x, y = (9 * x).split(1, dim=1)
    return (
        0.75 * (-((x - 2).square() + (y - 2).square()) / 4).exp()
        + 0.75 * (-(x + 1).square() / 49 - (y + 1) / 10).exp()
        + 0.5 * (-((x - 7).square() + (y - 3).square()) / 4).exp()
        - 0.2 * (-(x - 4).square() - (y - 7).square()).exp()
    )


def checkerboard(x: Tensor) -> Tensor:
    """f(x, y) = (-1)^(floor(2x) + floor(2y)): squares of side 1/2, sixteen of them in [-1, 1]^2.

    Shape:
        (N, 2) to (N, 1).
    """
    return 1 - 2 * (2 * x).floor().sum(1, keepdim=True).remainder(2)
