"""The flow against a walk from cell to cell in 50 digits."""

import mpmath
import pytest
import torch
from torch import Tensor

from activations.cpab import cell_pairs, knot_basis, transform, transform_and_slope

LIMIT = 1e-12


def walk(x: mpmath.mpf, velocity: list[mpmath.mpf]) -> mpmath.mpf:
    """phi(x, 1), one cell after the other: the definition."""
    cells = len(velocity) - 1
    time = mpmath.mpf(1)
    cell = min(max(int(mpmath.floor(x * cells)), 0), cells - 1)
    while True:
        slope = cells * (velocity[cell + 1] - velocity[cell])
        speed = velocity[cell] + slope * (x - mpmath.mpf(cell) / cells)
        if speed == 0:
            return x
        step = 1 if speed > 0 else -1
        border = cell + (speed > 0)
        at_border = velocity[border]
        if 0 < border < cells and at_border * step > 0:
            distance = mpmath.mpf(border) / cells - x
            needed = mpmath.log(at_border / speed) / slope if slope else distance / speed
            if needed < time:
                x, time, cell = mpmath.mpf(border) / cells, time - needed, cell + step
                continue
        return x + (speed * mpmath.expm1(slope * time) / slope if slope else speed * time)


def reference(x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T, dT/dx and dT/dvelocity; derivatives by symmetric differences of 10^-20 in 50 digits."""
    with mpmath.workdps(50):
        h = mpmath.mpf(10) ** -20
        points, knots = [mpmath.mpf(p) for p in x.tolist()], [mpmath.mpf(v) for v in velocity.tolist()]

        def slope_of(function) -> float:
            return float((function(h) - function(-h)) / (2 * h))

        value = [float(walk(p, knots)) for p in points]
        by_x = [slope_of(lambda d, p=p: walk(p + d, knots)) for p in points]
        by_v = [
            [
                slope_of(lambda d, p=p, k=k: walk(p, [v + d * (i == k) for i, v in enumerate(knots)]))
                for k in range(len(knots))
            ]
            for p in points
        ]
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (value, by_x, by_v))  # type: ignore[return-value]


def fields() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    nearly_flat = torch.full((11,), 0.3, dtype=torch.float64) + 1e-9 * normal(11)
    closed = normal(11)
    closed[[0, -1]] = 0
    return {
        "free": 0.5 * normal(11),
        "zero boundary": 0.6 * closed,
        "one cell": 0.4 * normal(2),
        "two cells": 0.4 * normal(3),
        "fifty cells": 0.2 * normal(51),
        "constant": torch.full((6,), -0.21, dtype=torch.float64),
        "slopes of 1e-8": nearly_flat,
        "velocities of 1e-7": 1e-7 * normal(11),
        "strong": 3 * closed,
        "through many cells": 0.7 + 0.02 * normal(17).abs(),
    }


@pytest.mark.parametrize("kind", fields())
def test_agrees_with_the_walk_in_fifty_digits(kind: str) -> None:
    velocity = fields()[kind]
    cells = len(velocity) - 1
    x = torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.4 - 0.2
    if cells > 2:  # beside a knot, where the cell just begins or ends
        x = torch.cat([x, torch.tensor([1 / cells + 1e-13, 2 / cells - 1e-13], dtype=torch.float64)])
    x.requires_grad_()
    y = transform(x, velocity)
    (by_x,) = torch.autograd.grad(y.sum(), x)
    by_v = torch.autograd.functional.jacobian(lambda v: transform(x.detach(), v), velocity)
    for ours, exact in zip((y.detach(), by_x, by_v), reference(x.detach(), velocity), strict=True):
        assert ((ours - exact).abs() / exact.abs().clamp_min(1)).max() < LIMIT


def test_points_on_knots() -> None:
    """In a field that does not rest there, T is smooth at a knot; where it rests, the point stays."""
    velocity = fields()["free"]
    x = torch.arange(11, dtype=torch.float64) / 10
    exact = reference(x, velocity)[0]
    assert (transform(x, velocity) - exact).abs().max() < LIMIT
    velocity[4] = 0
    x.requires_grad_()
    y = transform(x, velocity)
    (by_x,) = torch.autograd.grad(y.sum(), x)
    assert y[4] == x[4]
    assert by_x[4] == pytest.approx((10 * (velocity[5] - velocity[4])).exp().item(), rel=1e-14)


def test_is_a_one_parameter_group() -> None:
    """T of -v undoes T of v, and twice half the time is the whole."""
    x = torch.linspace(-0.3, 1.3, 500, dtype=torch.float64)
    for velocity in fields().values():
        y = transform(x, velocity)
        assert (y.diff() >= 0).all()
        # where T is flat, its inverse is steep and magnifies what rounding leaves
        steepness = 1 / (y.diff() / x.diff()).min().clamp_max(1)
        if steepness > 1e6:
            continue
        assert (transform(y, -velocity) - x).abs().max() < 1e-14 * steepness
        assert (transform(transform(x, velocity / 2), velocity / 2) - y).abs().max() < 1e-14 * steepness


def test_zero_velocity_is_the_identity_and_constant_velocity_a_shift() -> None:
    x = torch.linspace(-2, 3, 77, dtype=torch.float64)
    assert torch.equal(transform(x, torch.zeros(6, dtype=torch.float64)), x)
    shifted = transform(x, torch.full((6,), 0.37, dtype=torch.float64))
    assert (shifted - x - 0.37).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-300, -40, -30, -22, -18, -12, -8, -4, 0, 0.3])
def test_gradients_are_numbers_for_velocities_of_any_size(exponent: int, dtype: torch.dtype) -> None:
    """A regularizer may shrink a field to almost nothing, and a long way there is NaN in careless formulas."""
    for seed in range(5):
        velocity = torch.randn(11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        velocity[[0, -1]] = velocity[[0, -1]] * 1e-17
        velocity = (velocity * 10.0**exponent).to(dtype).requires_grad_()
        x = torch.linspace(-0.2, 1.2, 200, dtype=dtype).requires_grad_()
        y = transform(x, velocity)
        gradients = torch.autograd.grad(y.sum(), (x, velocity))
        assert all(tensor.isfinite().all() for tensor in (y, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
def test_a_resting_end_rests_however_steep_the_field(scale: float, dtype: torch.dtype) -> None:
    for seed in range(20):
        velocity = scale * torch.randn(11, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        velocity[[0, -1]] = 0
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert torch.equal(transform(ends, velocity), ends)
    alone = torch.zeros(11, dtype=dtype)
    alone[1] = 1000.0  # a slope beyond the exponents of the dtype
    assert torch.equal(transform(ends, alone), ends)


def test_slope_is_the_derivative() -> None:
    x = torch.linspace(-0.3, 1.3, 200, dtype=torch.float64).requires_grad_()
    for velocity in fields().values():
        y, slope = transform_and_slope(x, velocity)
        (exact,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope, exact, atol=1e-13, rtol=1e-11)


def test_second_derivatives() -> None:
    x = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    velocity = fields()["free"].requires_grad_()
    assert torch.autograd.gradgradcheck(transform, (x, velocity))


@pytest.mark.parametrize("cells", [2, 5, 10, 16])
@pytest.mark.parametrize("zero_boundary", [True, False])
def test_basis_is_orthonormal_and_spans_the_continuous_fields(cells: int, zero_boundary: bool) -> None:
    basis = knot_basis(cells, zero_boundary)
    assert basis.shape == (cells + 1, cells - 1 if zero_boundary else cells + 1)
    pairs = cell_pairs(basis)
    torch.testing.assert_close(
        pairs.T @ pairs, torch.eye(pairs.shape[1], dtype=torch.float64), atol=1e-12, rtol=0
    )
    slope, intercept = pairs[0::2], pairs[1::2]
    knots = torch.arange(1, cells, dtype=torch.float64)[:, None] / cells
    left, right = slope[:-1] * knots + intercept[:-1], slope[1:] * knots + intercept[1:]
    torch.testing.assert_close(left, right, atol=1e-11, rtol=0)  # continuous at the inner knots
    assert torch.linalg.matrix_rank(basis) == basis.shape[1]
    if zero_boundary:
        assert not basis[[0, -1]].any()
