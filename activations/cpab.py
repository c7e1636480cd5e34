"""CPAB: flows of continuous piecewise-affine velocity fields in one dimension, in closed form.

Freifeld, Hauberg, Batmanghelich, Fisher: Transformations Based on Continuous Piecewise-Affine Velocity Fields,
TPAMI 2017, section 4; closed forms in one dimension: Martinez, Viles, Olaizola, arXiv 2206.08107, section 3.

The unit interval is cut into N equal cells. A velocity field v is continuous, affine on each cell, and so given by
its velocities at the N + 1 knots k/N; beyond the interval the end cells go on. T(x) = phi(x, 1) solves
d phi/dt = v(phi), phi(x, 0) = x.

The reference code walks from cell to cell, one point after the other. Here all points jump at once: a trajectory
never turns, so its time through a whole cell depends on that cell alone, and the cell in which a point ends follows
from the running sums of those times. Written in plain differentiable operations: no loop, no data-dependent branch.
"""

import math

import torch
from torch import Tensor

# Taylor coefficients of artanh(sqrt u)/sqrt u, and of sinh(sqrt u)/sqrt u. Within the limits below the next term
# is under 1e-17; beyond them the plain formulas lose no more than a digit, in value and derivative.
ARTANH = tuple(1 / (2 * k + 1) for k in range(9))
SINH = (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880, 1 / 39916800, 1 / 6227020800, 1 / 1307674368000)
ARTANH_LIMIT, SINH_LIMIT = 0.1, 0.5


def transform(x: Tensor, velocity: Tensor) -> Tensor:
    """T(x) for the velocity field with the given knot velocities; differentiable in both, twice.

    Accurate to about 1e-14 in float64, slopes near 0 and points on knots included; monotone increasing. Where
    dT/dx jumps (a resting knot between two slopes), derivatives are those of the cell to the right.

    Args:
        x: points of any shape, on the scale on which the cells fill [0, 1].
        velocity: (N + 1,) velocities at the knots 0, 1/N, ..., 1. Zero at both ends keeps [0, 1] in itself.

    Shape:
        that of ``x``.
    """
    return transform_and_slope(x, velocity)[0]


def transform_and_slope(x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """T(x) and dT/dx; see ``transform``."""
    cells = velocity.shape[0] - 1
    slope = cells * (velocity[1:] - velocity[:-1])  # (N,)

    # the time that a trajectory takes through each cell; 2 stands for any that is not crossed in unit time. The fastest
    # velocity tells most of these apart: what cannot be crossed stays out of the formulas, where tiny ones overflow
    left, right = velocity[:-1], velocity[1:]
    crossed = (left * right > 0) & (torch.maximum(left.abs(), right.abs()) * cells > 1)
    times = _travel_time(left.where(crossed, 1), right.where(crossed, 1), slope, 1 / cells)
    times = times.abs().where(crossed, 2).clamp_max(2)  # negative for those who go left
    clock = torch.cat([times.new_zeros(1), times.cumsum(0)])  # (N + 1,) at the knots

    # where each point starts, and when it would leave its cell
    cell = (x.detach() * cells).nan_to_num(0.0).clamp(0, cells - 1).long()
    after, before = x - cell.to(x.dtype) / cells, (cell + 1).to(x.dtype) / cells - x
    # from the nearer knot: a point on a resting knot must rest, as rounding would grow by exp(slope)
    speed = torch.where(
        after <= before, velocity[cell] + slope[cell] * after, velocity[cell + 1] - slope[cell] * before
    )
    ahead = speed > 0
    exit_knot = cell + ahead
    exit_speed = velocity[exit_knot]
    distance = exit_knot.to(x.dtype) / cells - x
    inner = (exit_knot > 0) & (exit_knot < cells)  # the end cells have no outer border
    fast = torch.maximum(speed.abs(), exit_speed.abs()) > distance.abs()
    leaves = inner & fast & (speed * exit_speed > 0)
    time = _travel_time(speed.where(leaves, 1), exit_speed.where(leaves, 1), slope[cell], distance)
    leaves = leaves & (time < 1)
    rest = 1 - time.where(leaves, 0)

    # those who leave: the last inner knot that they reach in the rest of the time
    inner_clock = clock[1:-1]
    exit_knot = exit_knot.where(leaves, 1)
    here = clock[exit_knot]
    passed_ahead = (inner_clock > here[..., None]) & (inner_clock <= (here + rest)[..., None])
    passed_behind = (inner_clock < here[..., None]) & (inner_clock >= (here - rest)[..., None])
    reached = exit_knot + passed_ahead.sum(-1).where(ahead, -passed_behind.sum(-1))
    gone = clock[reached] - here
    rest = rest - gone.where(ahead, -gone).where(leaves, 0)

    # the last stretch, inside one cell
    start = (reached.to(x.dtype) / cells).where(leaves, x)
    last_speed = velocity[reached].where(leaves, speed)
    z = slope[(reached - (~ahead).long()).where(leaves, cell)] * rest
    z = z.clamp_max(0.9 * math.log(torch.finfo(x.dtype).max))  # an infinity times no speed would be NaN
    end = start + last_speed * rest * _expm1_over(z)
    # the flow is autonomous: dT/dx = v(T) / v(x), which inside a cell is exp(slope) at resting points as well
    return end, (last_speed / speed.where(leaves, 1)).where(leaves, 1) * z.exp()


def _travel_time(start: Tensor, end: Tensor, slope: Tensor, distance: Tensor | float) -> Tensor:
    """Time from velocity ``start`` to ``end``, of one sign, a ``distance`` apart: log(end / start) / slope.

    Written as distance / mean velocity * artanh(w) / w with w = (end - start) / (end + start) where w is small, as
    both log and slope vanish there.
    """
    total = start + end
    w = (end - start) / total
    small = w.abs() < ARTANH_LIMIT
    series = _polynomial(w.where(small, 0) ** 2, ARTANH) * distance * 2 / total
    ratio = (end / start).where(~small, 2)
    return series.where(small, ratio.log() / slope.where(~small, 1))


def _expm1_over(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, 1 at 0; as exp(z/2) sinh(z/2) / (z/2) where z is small."""
    half = z / 2
    small = half.abs() < SINH_LIMIT
    series = _polynomial(half.where(small, 0) ** 2, SINH) * half.where(small, 0).exp()
    large = z.where(~small, 1)
    return series.where(small, large.expm1() / large)


def _polynomial(u: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(u, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * u + coefficient
    return total


def knot_basis(cells: int, zero_boundary: bool) -> Tensor:
    """(N + 1, d) float64 on the CPU: knot velocities of the d coordinates theta of a velocity field.

    An orthonormal basis, in the space of the cells' (slope, intercept) pairs, of the fields that are continuous and,
    with ``zero_boundary``, rest at 0 and 1: d = N - 1, or N + 1. Gram-Schmidt on the hat functions from left to
    right, with positive diagonal: unlike a null space from an SVD it is the same with every library.
    """
    hats = torch.eye(cells + 1, dtype=torch.float64, device="cpu")
    if zero_boundary:
        hats = hats[:, 1:-1]
    pairs = cell_pairs(hats)
    upper = torch.linalg.cholesky(pairs.T @ pairs).mT  # Q = pairs / upper is orthonormal
    return torch.linalg.solve_triangular(upper, hats, upper=True, left=False)


def cell_pairs(velocity: Tensor) -> Tensor:
    """(2 N, ...) slopes and intercepts s_0, c_0, s_1, c_1, ... of the field with these (N + 1, ...) knot velocities."""
    cells = velocity.shape[0] - 1
    slope = cells * (velocity[1:] - velocity[:-1])
    knots = torch.arange(cells, dtype=velocity.dtype, device=velocity.device) / cells
    knots = knots.view(-1, *[1] * (velocity.ndim - 1))
    return torch.stack([slope, velocity[:-1] - slope * knots], 1).flatten(0, 1)
