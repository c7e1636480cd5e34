"""Tabulated DiTAC: y and its gradient by the velocities at the knots, at the points of a table; and both looked up.

The flow stands in ``activations.cpab``. The table is made once per forward, in float64: a point follows its trajectory from
cell to cell, and with it the derivative of its end by the velocities. A disturbance dv of the field moves the end T of a
trajectory phi by v(T) times the integral of dv(phi(t)) / v(phi(t)) over time; a stretch in a cell of slope s, entered at y
with speed u for a time t and left at speed w, adds

    (dv(y) t E(s t) + ds u t^2 E'(s t)) / w,  E(z) = (exp(z) - 1) / z.

Backward then has no histogram to make: it gathers the two rows of an element's neighbors and adds up as many numbers as
there are knots.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from activations.kernels.gpu import launch
from activations.kernels.tabulated import Form

POINTS = 32  # of a program that makes a part of the table
TILE = 1024  # elements of a forward
SUMS = 4096  # numbers that a tile of a backward sums up, one for each element and knot


# ---- The table


@triton.jit
def _travel_time(start, end, slope, distance):
    """Return the time from speed ``start`` to ``end``, of one sign: log(end / start) / slope, by artanh's series near 0."""
    total = start + end
    w = (end - start) / total
    small = tl.abs(w) < 0.1
    u = tl.where(small, w * w, 0.0)
    series = u * 0.0 + 1.0 / 17
    for k in tl.static_range(15, 0, -2):
        series = series * u + 1.0 / k
    far = tl.log(tl.where(small, 1.0, end / start)) / tl.where(small, 1.0, slope)
    return tl.where(small, series * distance * 2.0 / total, far)


@triton.jit
def _growth(z):
    """Return exp(z), E(z) and E'(z)."""
    z = tl.where(z > 638.0, 638.0, z)
    small = tl.abs(z) < 0.7
    u = tl.where(small, z, 0.0)
    e = u * 0.0 + 1.0 / 15
    turned = u * 0.0 + 14.0 / 15
    # E is the sum of z^k / (k + 1)!, in Horner's form; so is E', of k z^(k - 1) / (k + 1)!
    for k in tl.static_range(13, 0, -1):
        e = (e * u + 1.0) / (k + 1)
        turned = (turned * u + k) / (k + 1)
    e = e * u + 1.0
    grown = tl.exp(z)
    safe = tl.where(small, 1.0, z)
    far = (grown - 1.0) / safe
    return grown, tl.where(small, e, far), tl.where(small, turned, (grown - far) / safe)


@triton.jit
def table_kernel(
    velocity_ptr,
    heights_ptr,
    rows_ptr,
    points,
    cells,
    a: tl.constexpr,
    b: tl.constexpr,
    form: tl.constexpr,
    gelu_of: tl.constexpr,
    block: tl.constexpr,
    columns: tl.constexpr,
):
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < points
    knots = tl.arange(0, columns)[None, :]
    count = cells.to(tl.float64)
    start = tl.where(inside, index, 0).to(tl.float64) / (points - 1).to(tl.float64)
    x = start
    cell = (x * count).to(tl.int32)
    cell = tl.where(cell > cells - 1, cells - 1, cell)
    left = x * 0.0 + 1.0  # of the time
    end = x
    done = x < -1.0
    passed = tl.zeros((block, columns), tl.float64)  # the integral of the stretches before
    row = passed
    for _ in range(cells):
        low, high = cell.to(tl.float64) / count, (cell + 1).to(tl.float64) / count
        from_left = tl.load(velocity_ptr + cell).to(tl.float64)
        from_right = tl.load(velocity_ptr + cell + 1).to(tl.float64)
        slope = count * (from_right - from_left)
        after, before = x - low, high - x
        # from the nearer knot: a point on a resting knot must rest
        speed = tl.where(after <= before, from_left + slope * after, from_right - slope * before)
        ahead = speed > 0
        knot = cell + ahead.to(tl.int32)
        exit = tl.where(ahead, from_right, from_left)
        distance = knot.to(tl.float64) / count - x
        fastest = tl.where(tl.abs(speed) > tl.abs(exit), tl.abs(speed), tl.abs(exit))
        # the end cells have no outer border
        leaves = (knot > 0) & (knot < cells) & (fastest > tl.abs(distance)) & (speed * exit > 0)
        time = _travel_time(tl.where(leaves, speed, 1.0), tl.where(leaves, exit, 1.0), slope, distance)
        leaves = leaves & (time < left)
        time = tl.where(leaves, time, left)
        grown, e, turned = _growth(slope * time)
        share = after * count
        value = time * e
        turn = speed * time * time * turned * count
        stretch = tl.where(knots == cell[:, None], ((1.0 - share) * value - turn)[:, None], 0.0)
        stretch += tl.where(knots == cell[:, None] + 1, (share * value + turn)[:, None], 0.0)
        last = (leaves == 0) & (done == 0)
        end = tl.where(last, x + speed * value, end)
        row = tl.where(last[:, None], (speed * grown)[:, None] * passed + stretch, row)
        leaves = leaves & (done == 0)
        passed += tl.where(leaves[:, None], stretch / tl.where(leaves, exit, 1.0)[:, None], 0.0)
        done = done | last
        x = tl.where(leaves, knot.to(tl.float64) / count, x)
        left = tl.where(leaves, left - time, left)
        cell = tl.where(leaves, tl.where(ahead, cell + 1, cell - 1), cell)
    y = a + (b - a) * end
    scale = y * 0.0 + (b - a)
    if form == "gelu":
        place = y if gelu_of == "z" else a + (b - a) * start
        cdf = 0.5 * (1.0 + tl.erf(place * 0.7071067811865476))
        if gelu_of == "z":
            scale *= cdf + y * tl.exp(-0.5 * y * y) * 0.3989422804014327
        else:
            scale *= cdf
        y *= cdf
    tl.store(heights_ptr + index, y.to(tl.float32), inside)
    place = rows_ptr + index[:, None] * columns + knots
    tl.store(place, (row * scale[:, None]).to(tl.float32), inside[:, None])


# ---- Looking it up


@triton.jit
def _outside(x, form: tl.constexpr, b: tl.constexpr, negative_slope: tl.constexpr, left):
    """Return the function outside [a, b], and its slope; ``left``: whether x is left of a."""
    if form == "leaky":
        positive = x > 0 if b != 0 else x >= 0
        slope = tl.where(positive, 1.0, negative_slope)
        return tl.where(positive, x, negative_slope * x), slope
    cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    # far out the product of infinity and 0 would be NaN
    held = tl.where(tl.abs(x) > 40.0, 40.0, x)
    slope = cdf + held * tl.exp(-0.5 * held * held) * 0.3989422804014327
    y = x * cdf
    if form == "ge":
        y, slope = tl.where(left, y, x), tl.where(left, slope, 1.0)
    return y, slope


@triton.jit
def _looked_up(x, heights_ptr, points, a: tl.constexpr, b: tl.constexpr):
    """Return whether x is in [a, b), the point of the table left of it, how far it is to the next, and the heights of both."""
    inside = (x >= a) & (x < b)
    far = (tl.where(inside, x, a) - a) * ((points - 1).to(tl.float32) / (b - a))
    point = tl.floor(far)
    point = tl.where(point > (points - 2).to(tl.float32), (points - 2).to(tl.float32), point)
    point = tl.where(point > 0.0, point, 0.0)
    share = far - point
    point = point.to(tl.int32)
    return inside, point, share, tl.load(heights_ptr + point), tl.load(heights_ptr + point + 1)


@triton.jit
def forward_kernel(
    x_ptr,
    y_ptr,
    heights_ptr,
    size,
    count,
    points,
    a: tl.constexpr,
    b: tl.constexpr,
    form: tl.constexpr,
    negative_slope: tl.constexpr,
    tile: tl.constexpr,
):
    lanes = tl.arange(0, tile)
    for k in range(tl.program_id(0), count, tl.num_programs(0)):
        offsets = tl.full((), tile, tl.int64) * k + lanes
        mask = offsets < size
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        inside, _point, share, low, high = _looked_up(x, heights_ptr, points, a, b)
        y, _ = _outside(x, form, b, negative_slope, x < a)
        y = tl.where(inside, low + (high - low) * share, y)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_kernel(
    x_ptr,
    g_ptr,
    dx_ptr,
    heights_ptr,
    rows_ptr,
    sums_ptr,
    size,
    count,
    points,
    a: tl.constexpr,
    b: tl.constexpr,
    form: tl.constexpr,
    negative_slope: tl.constexpr,
    columns: tl.constexpr,
    tile: tl.constexpr,
):
    knots = tl.arange(0, columns)[None, :]
    total = tl.zeros((tile, columns), tl.float32)
    per_width = (points - 1).to(tl.float32) / (b - a)
    lanes = tl.arange(0, tile)
    for k in range(tl.program_id(0), count, tl.num_programs(0)):
        offsets = tl.full((), tile, tl.int64) * k + lanes
        mask = offsets < size
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
        inside, point, share, low, high = _looked_up(x, heights_ptr, points, a, b)
        _, slope = _outside(x, form, b, negative_slope, x < a)
        dx = g * tl.where(inside, (high - low) * per_width, slope)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)
        counts = (inside & mask)[:, None]
        at = rows_ptr + point[:, None] * columns + knots
        before, behind = tl.load(at, counts, other=0.0), tl.load(at + columns, counts, other=0.0)
        total += tl.where(counts, g[:, None] * (before + (behind - before) * share[:, None]), 0.0)
    tl.store(sums_ptr + tl.program_id(0) * columns + tl.ravel(knots), tl.sum(total, 0))


def forward(form: Form, x: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y of dense ``x`` for the ``velocity`` at the knots, (cells + 1,); and the table, heights and rows of derivatives."""
    cells = len(velocity) - 1
    columns = launch.power(cells + 1)
    heights = velocity.new_empty(form.points, dtype=torch.float32)
    rows = velocity.new_empty(form.points, columns, dtype=torch.float32)
    launch.launch(
        *(table_kernel, (-(-form.points // POINTS),), velocity, heights, rows, form.points, cells),
        a=form.a,
        b=form.b,
        form=form.form,
        gelu_of=form.gelu_of,
        block=POINTS,
        columns=columns,
    )
    y = torch.empty_like(x)
    count, programs = _programs(x, TILE)
    launch.launch(
        *(forward_kernel, (programs,), x, y, heights, x.numel(), count, form.points),
        a=form.a,
        b=form.b,
        form=form.form,
        negative_slope=form.negative_slope,
        tile=TILE,
    )
    return y, heights, rows


def backward(
    form: Form, g: Tensor, x: Tensor, heights: Tensor, rows: Tensor, knots: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``x`` and of the velocity, (knots,), from ``g`` in the layout of ``x`` and ``forward``'s table."""
    columns = rows.shape[1]
    tile = max(1, SUMS // columns)
    dx, (count, programs) = torch.empty_like(x), _programs(x, tile)
    sums = x.new_empty(programs, columns, dtype=torch.float32)
    launch.launch(
        *(backward_kernel, (programs,), x, g, dx, heights, rows, sums, x.numel(), count, form.points),
        a=form.a,
        b=form.b,
        form=form.form,
        negative_slope=form.negative_slope,
        columns=columns,
        tile=tile,
    )
    return dx, sums.sum(0)[:knots]


def _programs(x: Tensor, tile: int) -> tuple[int, int]:
    """Return the number of tiles, and of programs."""
    count = -(-x.numel() // tile)
    return count, max(1, min(count, launch.PROGRAMS * launch.processors(x)))
