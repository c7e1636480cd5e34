"""Units y = f(x; p) of one input and a few coefficients per channel or site: ``units`` over a whole tensor."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from activations.kernels import library
from activations.kernels.gpu import launch, units
from activations.kernels.gpu.units import added, no_sums

# How many of a unit's numbers are learned, where that is not all of them: the first.
LEARNED = {"finer": 0, "gaussian": 0, "leaky_relu_squared": 0, "smu": 1}


@triton.jit
def load_parameters(parameters, counts: tl.constexpr, units, unit, mask):
    """Return the numbers of ``unit`` from (counts[k], units) each, as a tuple of float32."""
    p = ()
    for k in tl.static_range(len(counts)):
        for row in tl.static_range(counts[k]):
            p = p + (tl.load(parameters[k] + row * units + unit, mask, other=1.0).to(tl.float32),)
    return p


@triton.jit
def _units(group, by_rows: tl.constexpr, width: tl.constexpr):
    """Return the units of a group: side by side (1, width), of which the last may not exist, or a single one."""
    unit = group.to(tl.int64)
    if by_rows:
        unit = unit * width + tl.arange(0, width)[None, :]
    return unit


@triton.jit
def _elements(
    tile, unit, units, outer, inner, across, by_rows: tl.constexpr, height: tl.constexpr, width: tl.constexpr
):
    """Return the addresses of a tile's elements, and which of them there are."""
    # in 64 bits; what may be 1 is not cast, as an argument that is 1 is no tensor
    rows = tl.full((), height, tl.int64) * (tile // across) + tl.arange(0, height)[:, None]
    step = tl.full((), 1, tl.int64) * units * inner
    if by_rows:
        at = unit
        mask = (rows < outer) & (unit < units)
    else:
        place = tl.full((), width, tl.int64) * (tile % across) + tl.arange(0, width)[None, :]
        at = unit * inner + place
        mask = (rows < outer) & (place < inner)
    return rows * step + at, mask


@triton.jit
def forward_kernel(
    x_ptr,
    y_ptr,
    parameters,
    units,
    outer,
    inner,
    across,
    count,
    load: tl.constexpr,
    formula: tl.constexpr,
    counts: tl.constexpr,
    pieces: tl.constexpr,
    by_rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    group = tl.program_id(0)
    unit = _units(group, by_rows, width)
    p = load(parameters, counts, units, unit, unit < units)
    for tile in range(tl.program_id(1), count, tl.num_programs(1)):
        offsets, mask = _elements(tile, unit, units, outer, inner, across, by_rows, height, width)
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        if pieces:
            y = formula(x, p, pieces)
        else:
            y = formula(x, p)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_kernel(
    x_ptr,
    g_ptr,
    dx_ptr,
    sums_ptr,
    parameters,
    units,
    outer,
    inner,
    across,
    count,
    load: tl.constexpr,
    formula: tl.constexpr,
    counts: tl.constexpr,
    pieces: tl.constexpr,
    sums: tl.constexpr,
    by_rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    group = tl.program_id(0)
    unit = _units(group, by_rows, width)
    p = load(parameters, counts, units, unit, unit < units)
    total = no_sums(sums, height, width)
    for tile in range(tl.program_id(1), count, tl.num_programs(1)):
        offsets, mask = _elements(tile, unit, units, outer, inner, across, by_rows, height, width)
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
        if pieces:
            dx, terms = formula(x, g, p, pieces)
        else:
            dx, terms = formula(x, g, p)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)
        total = added(total, terms, mask, sums)
    for k in tl.static_range(sums):
        # (programs, sums, units)
        row = sums_ptr + (tl.program_id(1) * sums + k) * units
        if by_rows:
            tl.store(row + tl.ravel(unit), tl.sum(total[k], 0), tl.ravel(unit < units))
        else:
            tl.store(row + unit, tl.sum(total[k]))


class Kernel(NamedTuple):
    """How a unit is computed: what its kernels take besides tensors and a tiling."""

    load: Any  # what reads a unit's numbers
    counts: tuple[float, ...]  # of which it knows this
    units: int
    sums: int  # numbers that are summed up for the parameters
    pieces: int = 0  # of a curve


def kernel(name: str, parameters: Sequence[Tensor], numbers: Sequence[float]) -> Kernel:
    """Return the kernel of the unit ``name``."""
    if name == "pwlu":
        rows, width = parameters[0].shape
        return Kernel(units.load_curve, (width - 5, *numbers), rows, width, width - 5)
    counts = tuple(p.shape[0] if p.ndim > 1 else 1 for p in parameters)
    total = sum(counts)
    sums = 2 * (total + 2) // 3 if name == "npwlu" else LEARNED.get(name, total)
    return Kernel(load_parameters, counts, parameters[0].shape[-1] if parameters else 1, sums)


def forward(
    name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor], numbers: Sequence[float] = ()
) -> Tensor:
    """Return y of the unit ``name``.

    Args:
        x: dense.
        parameters: contiguous, (units,) or (rows, units) each; of ``pwlu`` the curve and, if it has one, its phase.
        numbers: of ``pwlu`` the least width of its interval.
    """
    y = torch.empty_like(x)
    one = kernel(name, parameters, numbers)
    tiles = launch.tiles(*library.layout(x, one.units, channel_dim), sums=0, processors=launch.processors(x))
    launch.launch(
        *(forward_kernel, tiles.grid, x, y, tuple(parameters)),
        *(tiles.units, tiles.outer, tiles.inner, tiles.across, tiles.count),
        load=one.load,
        formula=getattr(units, name),
        counts=one.counts,
        pieces=one.pieces,
        by_rows=tiles.by_rows,
        height=tiles.height,
        width=tiles.width,
    )
    return y


def backward(
    name: str,
    channel_dim: int,
    g: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    numbers: Sequence[float] = (),
) -> list[Tensor]:
    """Return the gradients of ``x`` and the parameters, of ``pwlu`` the curve alone, from ``g`` in the layout of ``x``."""
    dx = torch.empty_like(x)
    one = kernel(name, parameters, numbers)
    at = library.layout(x, one.units, channel_dim)
    tiles = launch.tiles(*at, sums=one.sums, processors=launch.processors(x))
    sums = x.new_empty(tiles.programs, one.sums, tiles.units, dtype=torch.float32)
    launch.launch(
        *(backward_kernel, tiles.grid, x, g, dx, sums, tuple(parameters)),
        *(tiles.units, tiles.outer, tiles.inner, tiles.across, tiles.count),
        load=one.load,
        formula=getattr(units, f"{name}_backward"),
        counts=one.counts,
        pieces=one.pieces,
        sums=one.sums,
        by_rows=tiles.by_rows,
        height=tiles.height,
        width=tiles.width,
    )
    total = sums.sum(0)
    if name == "pwlu":
        return [dx, total.T.contiguous().to(parameters[0].dtype)]
    if name == "npwlu":
        total = _finish_npwlu(total, torch.cat([p.float().view(-1, tiles.units) for p in parameters]))
    counts = [int(count) for count in one.counts]
    if missing := sum(counts) - len(total):
        total = torch.cat([total, total.new_zeros(missing, tiles.units)])
    parts = total.split(counts)
    return [dx, *[part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]]


def _finish_npwlu(sums: Tensor, p: Tensor) -> Tensor:
    """Return the gradients of knots, heights and slopes, in this order, from the sums of g and g (x - knot) in every piece."""
    count = (len(p) - 1) // 3
    slopes, pieces = p[2 * count :], sums[: count + 1]  # the piece left of the first knot stands first
    d_knots, d_heights = -slopes[1:] * pieces[1:], pieces[1:].clone()
    d_knots[0] -= slopes[0] * pieces[0]
    d_heights[0] += pieces[0]
    return torch.cat([d_knots, d_heights, sums[count + 1 :]])
