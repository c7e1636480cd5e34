"""What is particular to the units of 2021 to 2026: initial states, edges and gradients that are not the function's."""

import math

import numpy as np
import pytest
import torch
from conftest import CPU_MODES, draw
from numpy.polynomial import hermite_e
from torch.nn import functional as F

from activations.finer import FINER
from activations.gaussian import Gaussian
from activations.golu import GoLU
from activations.group_rational import DENOMINATOR, EVEN, GroupRational
from activations.hermite import Fourier, Hermite
from activations.kernels import library
from activations.poly import PolyNorm, PolyReLU
from activations.relu_squared import LeakyReLUSquared
from activations.smu import SMU
from activations.staf import STAF
from activations.star_relu import StarReLU
from activations.sugar import SUGAR
from activations.xielu import XIELU

C = 6
MODES = pytest.mark.parametrize("mode", CPU_MODES)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golu_and_its_slope_are_zero_where_the_gate_is(mode: str, dtype: torch.dtype) -> None:
    """exp(-x) overflows below -88, and 0 times infinity must not be seen; NaN must."""
    x = torch.tensor([[-7.5, -89.0, -710.0, -3e38, -math.inf, math.nan]], dtype=dtype).requires_grad_()
    with library.using(mode):
        y = GoLU(6)(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y[0, :5].abs().max() == 0
    assert gradient[0, :5].abs().max() == 0
    assert y[0, 5].isnan()
    assert gradient[0, 5].isnan()


@MODES
def test_gaussian_ends_at_zero_without_overflow(mode: str) -> None:
    x = torch.tensor([[0.0, 1e20, -3e38, math.inf, math.nan]]).requires_grad_()
    with library.using(mode):
        y = Gaussian(5)(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y[0, :4].tolist() == [1, 0, 0, 0]
    assert gradient[0, :4].abs().max() == 0
    assert y[0, 4].isnan()


def test_star_relu_gives_a_normal_input_mean_zero_and_variance_one() -> None:
    points, weights = hermite_e.hermegauss(200)
    y = StarReLU(C).curves(torch.tensor(points).float())[0].double().detach().numpy()
    mean = (weights * y).sum() / weights.sum()
    variance = (weights * (y - mean) ** 2).sum() / weights.sum()
    assert mean == pytest.approx(0, abs=2e-3)
    assert variance == pytest.approx(1, abs=2e-3)


def test_leaky_relu_squared_is_positive_on_both_sides() -> None:
    x = torch.tensor([[-2.0, 2.0]])
    assert LeakyReLUSquared(2)(x).tolist() == [[1.0, 4.0]]


@pytest.mark.parametrize(("a_p", "a_n"), [(0.8, 0.8), (1e-3, 0.501), (50.0, 900.0)])
def test_xielu_starts_at_the_curvatures_that_it_is_told(a_p: float, a_n: float) -> None:
    found = XIELU(C, a_p=a_p, a_n=a_n).double().diagnostics()
    assert found["a_p"].item() == pytest.approx(a_p, rel=1e-5)
    assert found["a_n"].item() == pytest.approx(a_n, rel=1e-5)


@MODES
def test_xielu_has_the_slope_of_its_formula_at_zero(mode: str) -> None:
    x = torch.tensor([[0.0, -0.0, -1e-7, 1e-7]]).requires_grad_()
    with library.using(mode):
        y = XIELU(4)(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.5))


def test_smu_is_gelu_and_leaky_relu_where_it_should_be() -> None:
    x = draw(20, C)
    torch.testing.assert_close(SMU(C, alpha=0.0, m=0.5**0.5).double()(x), F.gelu(x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(SMU(C, m=1e6).double()(x), F.leaky_relu(x, 0.25))


def test_smu_from_a_million_has_no_gradient() -> None:
    """What the head of smu.py says of the published initial value."""
    unit, x = SMU(C, m=1e6), draw(1000, C).float()
    unit(x).sum().backward()
    assert unit.m.grad is not None
    assert unit.m.grad.item() == 0
    assert unit.m.detach() + 0.03 == unit.m.detach()


def test_group_rational_starts_near_swish_with_the_best_fit_there_is() -> None:
    from scipy.optimize import least_squares

    x = np.linspace(0, 3, 3001)

    def error(p: np.ndarray) -> np.ndarray:
        even = (p[0] + p[1] * x**2 + p[2] * x**4) / (1 + p[3] * x**2 + p[4] * x**4)
        return even - x * np.tanh(x / 2) / 2

    fit = least_squares(error, [0, 0.25, 0.005, 0.1, 0.0005], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert fit.x == pytest.approx([*EVEN, *DENOMINATOR], rel=1e-3, abs=1e-8)
    points = torch.linspace(-3, 3, 601, dtype=torch.float64)
    found = GroupRational(16).double().curves(points)
    assert (found - F.silu(points)).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("channels", "groups", "sizes"), [(16, 8, [2] * 8), (3, 8, [1] * 3), (10, 4, [3, 2, 3, 2])]
)
def test_groups_are_neighbors_and_almost_equal(channels: int, groups: int, sizes: list[int]) -> None:
    unit = GroupRational(channels, groups=groups)
    with torch.no_grad():
        unit.denominator.copy_(torch.arange(unit.groups) + torch.zeros(4, 1))
    _, denominator = unit.coefficients(torch.empty(()))
    expected = [group for group, size in enumerate(sizes) for _ in range(size)]
    assert denominator[0].tolist() == expected


@MODES
def test_group_rational_leaves_the_identity(mode: str) -> None:
    """Its denominators start at 0, where abs has no slope of its own; it is taken as 1."""
    unit, x = GroupRational(4, groups=2, init="identity").double(), draw(5, 4)
    with library.using(mode):
        y = unit(x)
        y.sum().backward()
    assert torch.equal(y, x)
    expected = [[-(x[:, c : c + 2] ** (k + 2)).sum().item() for c in (0, 2)] for k in range(4)]
    torch.testing.assert_close(unit.denominator.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("degree", [1, 3, 8])
def test_hermite_starts_with_equal_mean_squares_of_value_and_slope(degree: int) -> None:
    points, weights = hermite_e.hermegauss(60)
    x = torch.tensor(points).requires_grad_()
    torch.set_default_dtype(torch.float64)
    try:
        y = Hermite(1, degree=degree).curves(x)
    finally:
        torch.set_default_dtype(torch.float32)
    (slope,) = torch.autograd.grad(y.sum(), x)
    squares = [(weights * v.detach().numpy().ravel() ** 2).sum() / weights.sum() for v in (y, slope)]
    expected = sum(1 / math.factorial(k) for k in range(degree)) / math.e
    assert squares == pytest.approx([expected, expected], rel=1e-10)


@pytest.mark.parametrize("degree", [2, 6])
def test_fourier_starts_with_equal_amplitudes_of_value_and_slope(degree: int) -> None:
    a = Fourier(1, degree=degree).a.detach().double()
    k = torch.arange(1, degree + 1)
    amplitudes = a[1:] / k.double().add(1).lgamma().exp()
    value, slope = a[0] ** 2 + amplitudes.square().sum(), (k * amplitudes).square().sum()
    assert value.item() == pytest.approx(slope.item(), rel=1e-6)
    expected = sum(1 / math.factorial(j) ** 2 for j in range(degree)) / np.i0(2.0)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_staf_draws_what_its_docstring_says() -> None:
    torch.manual_seed(0)
    units = [STAF(1, tau=4) for _ in range(2000)]
    w, phi, b = (torch.stack([getattr(unit, name).detach() for unit in units]) for name in ("w", "phi", "b"))
    for values, low, high in ((w, 0.0, 30.0), (phi, -math.pi, math.pi)):
        assert values.min() >= low
        assert values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    assert b.square().mean().item() == pytest.approx(1 / 8, rel=0.05)
    assert b.square().var().item() == pytest.approx(1 / 64, rel=0.15)
    assert (b > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_poly_relu_has_no_slope_at_zero() -> None:
    x = torch.zeros(1, 1, requires_grad=True)
    PolyReLU(1)(x).backward()
    assert x.grad is not None
    assert x.grad.item() == 0


def test_poly_norm_normalizes_over_the_channels_alone() -> None:
    unit = PolyNorm(C, eps=1e-12).double()
    x = 1 + draw(2, C, 3, 4).abs()
    torch.testing.assert_close(unit(3 * x), unit(x))
    torch.testing.assert_close(unit(x)[:, :, 1:2, 2:3], unit(x[:, :, 1:2, 2:3]))
    permuted = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(unit(x[:, permuted]), unit(x)[:, permuted])


@MODES
@pytest.mark.parametrize("detach", [True, False])
def test_finer_has_the_gradient_that_it_says(mode: str, detach: bool) -> None:
    x = draw(30, C).requires_grad_()
    unit = FINER(C, omega=2.0, detach=detach)
    with library.using(mode):
        (gradient,) = torch.autograd.grad(unit(x).sum(), x)
    factor = (1 if detach else 2) * x.abs() + 1
    torch.testing.assert_close(gradient, 2 * factor * (2 * (x.abs() + 1) * x).cos())
    assert unit.exact_gradient == (not detach)


def test_sugar_is_relu_with_the_gradient_of_b_silu() -> None:
    x = (10 * draw(30, C)).requires_grad_()
    y = SUGAR(C)(x)
    assert torch.equal(y, x.relu())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    other = x.detach().requires_grad_()
    smooth = (other + 1.67) * other.sigmoid() - 1.67 / 2
    torch.testing.assert_close(gradient, *torch.autograd.grad(smooth.sum(), other))
