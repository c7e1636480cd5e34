"""Piecewise-linear functions given by a table of heights: PWLU's own form, and DiTAC's tabulated flow.

The fused kernels are in csrc/table.h and csrc/table.cpp.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from activations.base import along
from activations.kernels import library

HALF = 0.5  # the phase of an average of networks is that of the greater part
# Numbers of a curve, whose gradients the kernel for a GPU sums up in registers; longer ones go to the reference there.
MOST_ON_GPU = 40


def piecewise_linear(
    x: Tensor, curve: Tensor, *, channel_dim: int, min_width: float = 0.0, rests: Tensor | None = None
) -> Tensor:
    """The function through heights at equally spaced knots, with straight tails; one for all channels or one each.

    With d = (right - left) / n, knots B_i = left + i d and heights Y_i (PWLU, arXiv 2104.03693, equation 1):

        x < left           Y_0 + (x - left) slope_left
        left <= x < right  Y_i + (x - B_i) (Y_{i+1} - Y_i) / d,  i = floor((x - left) / d)
        right <= x         Y_n + (x - right) slope_right

    Each piece is anchored at a knot: a sum of hinges or an intercept at 0 would lose digits far outside. At a knot
    derivatives are those of the piece to the right. NaN gives NaN.

    Args:
        curve: (units, n + 5), units being 1 or the number of channels, n at least 1: left < right, Y_0 ... Y_n,
            slope_left, slope_right. In one tensor, as each more would cost a small input about what ReLU costs it.
        min_width: ``right`` acts as at least left + min_width max(1, |left|).
        rests: a number on the device of ``x``; while it is above 1/2 the function is ReLU, and the curve's gradient 0.
            No value is read: a kernel of a GPU takes the one that is needed, all others compute both.

    Shape:
        that of ``x``, dtype and memory format too.
    """
    phase = () if rests is None else (rests,)
    kernels = library.backend(x, curve, *phase)
    if not kernels or not _fit(kernels, x, curve, channel_dim):
        return _piecewise_linear(channel_dim, min_width, x, curve, *phase)
    if torch.compiler.is_compiling():
        from activations.kernels.gpu import ops

        return ops.pointwise("pwlu", channel_dim, x, [curve, *phase], min_width)
    on_gpu = kernels == library.TRITON
    dense = library.dense(x), curve.contiguous(), *(phase if on_gpu else ())
    y: Tensor = _PiecewiseLinear.apply(kernels, channel_dim, min_width, *dense)
    return y if on_gpu or rests is None else torch.where(rests > HALF, x.relu(), y)


def _fit(kernels: str, x: Tensor, curve: Tensor, channel_dim: int) -> bool:
    """Whether the kernel finds in ``curve`` what it reads."""
    if curve.ndim != 2:
        return False
    units, width = curve.shape
    if kernels == library.TRITON and width > MOST_ON_GPU:
        return False
    return width > 5 and (units == 1 or units == x.shape[channel_dim])


def _piecewise_linear(
    channel_dim: int, min_width: float, x: Tensor, curve: Tensor, rests: Tensor | None = None
) -> Tensor:
    """The reference; in float32 at least, as positions in a table need it."""
    if x.dtype in library.HALF:
        return _piecewise_linear(channel_dim, min_width, x.float(), curve.float(), rests).to(x.dtype)
    left, right, heights = curve[:, 0], curve[:, 1], curve[:, 2:-2]
    slope_left, slope_right = curve[:, -2], curve[:, -1]
    right = torch.maximum(right, left + min_width * left.detach().abs().clamp_min(1))
    width, steps = (right - left)[:, None] / (heights.shape[1] - 1), heights.diff(dim=1)
    knots = left[:, None] + width * torch.arange(steps.shape[1], device=x.device)
    anchors = torch.cat([left[:, None], knots, right[:, None]], 1)  # (units, n + 2)
    values = torch.cat([heights[:, :1], heights], 1)
    slopes = torch.cat([slope_left[:, None], steps / width, slope_right[:, None]], 1)
    piece = _piece(x, left, right, steps.shape[1], channel_dim)
    anchor, value, slope = take(piece, anchors, values, slopes, channel_dim=channel_dim)
    y = value + slope * (x - anchor)
    return y if rests is None else torch.where(rests > HALF, x.relu(), y)


class _PiecewiseLinear(torch.autograd.Function):
    """The fused form; saves its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, kernels: str, channel_dim: int, min_width: float, x: Tensor, curve: Tensor, *phase: Tensor
    ) -> Tensor:
        library.save(ctx, x, curve, *phase)
        ctx.kernels, ctx.channel_dim, ctx.min_width = kernels, channel_dim, min_width
        if kernels == library.TRITON:
            from activations.kernels.gpu import pointwise as gpu

            return gpu.forward("pwlu", channel_dim, x, [curve, *phase], [min_width])
        units, width = curve.shape
        y = torch.empty_like(x)
        library.kernels("pwlu", x.dtype)[0](
            *library.layout(x, units, channel_dim),
            torch.get_num_threads(),
            x.data_ptr(),
            y.data_ptr(),
            curve.data_ptr(),
            width - 5,
            min_width,
        )
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, curve, *phase = library.saved(ctx)
        if library.needs_reference(g, ctx.kernels):
            reference = partial(_piecewise_linear, ctx.channel_dim, ctx.min_width)
            return library.reference_backward(ctx, reference, (x, curve, *phase), g)
        g = library.match_layout(g, x)
        if ctx.kernels == library.TRITON:
            from activations.kernels.gpu import pointwise as gpu

            dx, dcurve = gpu.backward("pwlu", ctx.channel_dim, g, x, [curve, *phase], [ctx.min_width])
            return None, None, None, dx, dcurve, *[None for _ in phase]
        dx, dcurve = torch.empty_like(x), torch.empty_like(curve)
        library.kernels("pwlu", x.dtype)[1](
            *library.layout(x, len(curve), ctx.channel_dim),
            torch.get_num_threads(),
            x.data_ptr(),
            dx.data_ptr(),
            curve.data_ptr(),
            curve.shape[1] - 5,
            ctx.min_width,
            g.data_ptr(),
            dcurve.data_ptr(),
        )
        return None, None, None, dx, dcurve


def take(index: Tensor, *tables: Tensor, channel_dim: int) -> tuple[Tensor, ...]:
    """The entries of (units, n) tables at ``index``, which has the shape of an input; whole numbers in any dtype."""
    if index.ndim == 4 and index.stride(1) == 1 and not index.is_contiguous():
        # channels_last: flat indices go through memory in its own order, and the output keeps it
        order = (0, 2, 3, 1)
        taken = take(index.permute(order), *tables, channel_dim=order.index(channel_dim % 4))
        return tuple(entry.permute(0, 3, 1, 2) for entry in taken)
    units, n = tables[0].shape
    flat = index.long()
    if units > 1:
        flat = flat + along(torch.arange(units, device=index.device) * n, index, channel_dim)
    flat = flat.flatten()
    # of all gathers this one has the fastest backward
    return tuple(table.flatten().index_select(0, flat).view(index.shape) for table in tables)


def _piece(x: Tensor, left: Tensor, right: Tensor, n: int, channel_dim: int) -> Tensor:
    """The piece of each element of ``x``, in float: 0 left of ``left``, n + 1 from ``right`` on; 1 for NaN."""
    x, left, right = x.detach(), along(left.detach(), x, channel_dim), along(right.detach(), x, channel_dim)
    # divided by the width, as a product with its inverse puts points on knots into the piece before
    inside = ((x - left) / ((right - left) / n)).floor().clamp(0, n - 1).nan_to_num(0.0) + 1
    # where, as masked_fill forgets the memory format
    return torch.where(x < left, 0.0, torch.where(x >= right, n + 1.0, inside))
