"""Regression targets in closed form, each on the box that its task gives it.

All are vectorized, (N, D) to (N, 1), in the dtype and on the device of their input.
"""

import math

import torch
from torch import Tensor

SINES2D_FREQUENCIES = torch.tensor(
    [[9, -7], [-9, 11], [3, 13], [9, 9], [13, 5], [3, 19]], dtype=torch.float32
)
SINES2D_WEIGHTS = torch.tensor([0.4, 0.1, 0.15, 0.15, 0.1, 0.1])
SINE_MIXTURE_FREQUENCIES = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0])
SINE_MIXTURE_PHASES = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
# (10, 2) corners of a five-pointed star, clockwise
STAR = torch.tensor(
    [[(0.8, 0.32)[i % 2] * trig(math.pi * i / 5) for trig in (math.sin, math.cos)] for i in range(10)],
    dtype=torch.double,
)


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


def sound(x: Tensor) -> Tensor:
    """A plucked string with vibrato, four harmonics that decay, the higher ones faster; on [-1, 1].

    f(x) = 1/2 sum_h exp(-2 h t) sin(2 pi h p(t)) / h, h = 1, 2, 3, 4, t = (x + 1) / 2, p(t) = 4 t - cos(8 pi t) / 32: the
    pitch p'(t) = 4 + pi / 4 sin(8 pi t) swings by a fifth of itself four times.

    A signal of one variable in the manner of the audio of SIREN (arXiv 2006.09661, section 4.2), in closed form.

    Shape:
        (N, 1) to (N, 1).
    """
    h = torch.arange(1, 5, dtype=x.dtype, device=x.device)
    t = (x + 1) / 2
    turns = 4 * t - (8 * torch.pi * t).cos() / 32
    return ((-2 * h * t).exp() * (2 * torch.pi * h * turns).sin() / h).sum(1, keepdim=True) / 2


def signed_distance(x: Tensor) -> Tensor:
    """Signed Euclidean distance to a five-pointed star, negative inside; on [-1, 1]^2.

    The outline is the polygon with corners at the radii 0.8 and 0.32 in turn, at multiples of 36 degrees, the first one
    upwards. The distance is exact: to the nearest point of the nearest edge. Whether a point is inside is told by the
    number of edges that a ray from it to the right crosses.

    A field of distances is what networks of coordinates are trained on to represent shapes (Park et al., DeepSDF,
    CVPR 2019, arXiv 1901.05103; SIREN, arXiv 2006.09661, section 4.3, from the surface alone).

    Shape:
        (N, 2) to (N, 1).
    """
    start = STAR.to(x)
    edge = start.roll(-1, 0) - start  # (10, 2)
    to_x = x[:, None] - start  # (N, 10, 2)
    # the share of an edge that lies before its nearest point
    along = ((to_x * edge).sum(-1) / edge.square().sum(-1)).clamp(0, 1)  # (N, 10)
    distance = (to_x - along[..., None] * edge).norm(dim=-1).amin(1, keepdim=True)
    above = x[:, None, 1] >= start[:, 1]
    crosses = above != above.roll(-1, 1)
    right = (to_x[..., 0] * edge[:, 1] < to_x[..., 1] * edge[:, 0]) == (edge[:, 1] > 0)
    inside = (crosses & right).sum(1, keepdim=True) % 2 == 1
    return torch.where(inside, -distance, distance)


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
