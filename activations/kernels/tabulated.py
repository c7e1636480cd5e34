"""DiTAC by table: y at equally spaced points of [a, b], made of theta, between tables of what y is outside.

The kernels are in csrc/ditac.cpp, the flow behind T in csrc/flow.h.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.kernels import library

# GELU outside [a, b]: beyond the reach it is 0 or x within 6e-9; a line over each step is within 4e-7 of it
REACH, STEPS = 6.0, 512


class Frame(NamedTuple):
    """What a unit's table has besides theta: three zones, [a, b] and what is on its left and right, and two tails."""

    ends: Tensor  # (4,) float64, of the zones
    counts: Tensor  # (3,) int64, of their pieces
    pairs: Tensor  # (pieces, 2) value and slope, those of [a, b] still empty
    points: int  # on [a, b]
    weights: Tensor | None  # (points,) float64: y is weights T(x) there; None: GELU(T(x))


def make_frame(form: str, a: float, b: float, points: int, negative_slope: float, gelu_of: str) -> Frame:
    """The frame of a form of DiTAC that is GELU, leaky ReLU or x outside [a, b], in float64."""
    left, right = _empty(a), _empty(b)
    tails = ((0.0, 0.0), (b, 1.0))  # value at the zones' end, and slope
    weights: Tensor | None = torch.ones(points, dtype=torch.float64)
    if form == "leaky":
        if a > 0:
            left, tails = (
                torch.tensor([[0.0, 0.0], [a, a]], dtype=torch.float64),
                ((0.0, negative_slope), tails[1]),
            )
        else:
            tails = ((negative_slope * a, negative_slope), tails[1])
        if b < 0:
            right, tails = (
                torch.tensor([[b, negative_slope * b], [0.0, 0.0]], dtype=torch.float64),
                (tails[0], (0.0, 1.0)),
            )
    elif a > -REACH:
        left = _gelu_between(-REACH, a)
    if form == "gelu":
        if b < REACH:
            right, tails = _gelu_between(b, REACH), (tails[0], (REACH, 1.0))
        weights = (
            torch.special.ndtr(torch.linspace(a, b, points, dtype=torch.float64)) if gelu_of == "x" else None
        )
    middle = torch.zeros(points - 1, 2, dtype=torch.float64)
    pieces = [torch.tensor(tails[:1]), _pieces(left), middle, _pieces(right), torch.tensor(tails[1:])]
    return Frame(
        ends=torch.stack([left[0, 0], left[-1, 0], right[0, 0], right[-1, 0]]),
        counts=torch.tensor([len(left) - 1, points - 1, len(right) - 1]),
        pairs=torch.cat([piece.double() for piece in pieces]),
        points=points,
        weights=weights,
    )


def _empty(at: float) -> Tensor:
    """A zone without width."""
    return torch.tensor([[at, 0.0]], dtype=torch.float64)


def _gelu_between(first: float, last: float) -> Tensor:
    """(points, 2) points and GELU at them."""
    points = torch.linspace(first, last, math.ceil((last - first) * STEPS) + 1, dtype=torch.float64)
    return torch.stack([points, points * torch.special.ndtr(points)], 1)


def _pieces(zone: Tensor) -> Tensor:
    """(points - 1, 2) value and slope of the pieces between a zone's points."""
    steps = zone.diff(dim=0)
    return torch.stack([zone[:-1, 1], steps[:, 1] / steps[:, 0]], 1)


@cache
def _kernels(dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    forward = library.function("ditac_{}_forward", dtype, "iippppiiipppp")
    return forward, library.function("ditac_{}_backward", dtype, "iippppiiipppppp")


class DiTACTable(torch.autograd.Function):
    """y of ``x`` for theta (d,) in the basis (cells + 1, d); ``reference`` computes the same in torch operations.

    Saves the input, and the table, which is small beside it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        reference: Callable[[Tensor, Tensor], Tensor],
        frame: Frame,
        basis: Tensor,
        x: Tensor,
        theta: Tensor,
    ) -> Tensor:
        y, pairs = torch.empty_like(x), frame.pairs.clone()
        ctx.save_for_backward(x, theta, basis, pairs)
        ctx.reference, ctx.frame = reference, frame
        arguments = _arguments(frame, basis, theta, pairs)
        _kernels(x.dtype)[0](x.numel(), torch.get_num_threads(), x.data_ptr(), y.data_ptr(), *arguments)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, theta, basis, pairs = ctx.saved_tensors
        if library.by_reference(g):
            needed = ctx.needs_input_grad[3:]
            return None, None, None, *library.through_reference(ctx.reference, (x, theta), needed, g)
        g, dx, dtheta = library.alike(g, x), torch.empty_like(x), torch.empty_like(theta)
        arguments = _arguments(ctx.frame, basis, theta, pairs)
        threads = torch.get_num_threads()
        _kernels(x.dtype)[1](
            x.numel(), threads, x.data_ptr(), dx.data_ptr(), *arguments, g.data_ptr(), dtheta.data_ptr()
        )
        return None, None, None, dx, dtheta


def _arguments(frame: Frame, basis: Tensor, theta: Tensor, pairs: Tensor) -> tuple[int | None, ...]:
    knots, d = basis.shape
    return (
        theta.data_ptr(),
        basis.data_ptr(),
        d,
        knots - 1,
        frame.points,
        frame.ends.data_ptr(),
        frame.weights.data_ptr() if frame.weights is not None else None,
        frame.counts.data_ptr(),
        pairs.data_ptr(),
    )
