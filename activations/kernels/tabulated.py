"""DiTAC by table: y at equally spaced points of [a, b], made of theta, in a longer table of what y is outside; and the
values of T alone, for tables that are made of them in torch.

The kernels are in csrc/ditac.cpp, the flow behind T in csrc/flow.h.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.cpab import transform
from activations.kernels import library

# outside [a, b] a line over each piece is so near to GELU, in value and in slope; beyond the reach GELU is 0 or x within 6e-9
VALUE, SLOPE, REACH = 4e-7, 8e-4, 6.0

# whatever torch's default device is: these tensors are for C
DOUBLE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


class Frame(NamedTuple):
    """What a unit's table has besides theta."""

    numbers: Tensor  # (8,) float64, Frame of csrc/ditac.cpp
    weights: Tensor | None  # (points,) float64: y is weights T(x) on [a, b]; None: GELU(T(x))
    basis: Tensor  # (cells + 1, d)
    pairs: Tensor  # (pieces, 2) value and slope, those of [a, b] empty; the outer ones are tails
    made: int  # numbers in float64 of a table, and of what the flow leaves for its gradient


def make_frame(
    form: str,
    a: float,
    b: float,
    points: int,
    negative_slope: float,
    gelu_of: str,
    basis: Tensor,
    dtype: torch.dtype,
) -> Frame:
    """The frame of a form of DiTAC that is GELU, leaky ReLU or x outside [a, b].

    All pieces are equally wide. Where those between the points on [a, b] are too wide for what is outside, they are
    cut into parts.
    """
    outside = {
        "gelu": (_gelu, _gelu),
        "ge": (_gelu, _identity),
        "leaky": (lambda x: torch.where(x < 0, negative_slope * x, x),) * 2,
    }[form]
    first = -REACH if outside[0] is _gelu else a
    last = REACH if outside[1] is _gelu else b
    curved = [span for span, f in (((first, a), outside[0]), ((b, last), outside[1])) if f is _gelu]
    parts = max([1, *(_parts((b - a) / (points - 1), *span) for span in curved)])
    width = (b - a) / (points - 1) / parts
    left = max(0, math.ceil((a - first) / width))
    right = max(0, math.ceil((last - b) / width))
    pieces = [
        _tail(outside[0], a - left * width, -width),
        _pieces(outside[0], a, width, range(-left, 0)),
        torch.zeros((points - 1) * parts, 2, **DOUBLE),
        _pieces(outside[1], b, width, range(right)),
        _tail(outside[1], b + right * width, width),
    ]
    weights: Tensor | None = torch.ones(points, **DOUBLE)
    if form == "gelu":
        x = torch.linspace(a, b, points, **DOUBLE)
        weights = torch.special.ndtr(x) if gelu_of == "x" else None
    cells, d = basis.shape[0] - 1, basis.shape[1]
    numbers = [points, parts, left + 1, (points - 1) * parts + right + 1, d, cells, a, b]
    pairs = torch.cat(pieces).to(dtype)
    return Frame(
        torch.tensor(numbers, **DOUBLE),
        weights,
        basis.to("cpu", dtype).contiguous(),
        pairs,
        made=2 * points + pairs.nbytes // 8,
    )


def _gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


def _identity(x: Tensor) -> Tensor:
    return x


def _parts(width: float, first: float, last: float) -> int:
    """Into how many parts pieces of a width must be cut to follow GELU between two points."""
    if first >= last:
        return 1
    x = torch.linspace(first, last, 1001, **DOUBLE)
    curvature = float(((2 - x * x) * (-x * x / 2).exp()).abs().max()) / math.sqrt(2 * math.pi)
    return math.ceil(max(width * curvature / (2 * SLOPE), width * math.sqrt(curvature / (8 * VALUE))))


def _pieces(f: Callable[[Tensor], Tensor], origin: float, width: float, among: range) -> Tensor:
    """(pieces, 2) value at the left end and slope of equally wide pieces, numbered from an origin."""
    ends = f(origin + width * torch.arange(among.start, among.stop + 1, **DOUBLE))
    return torch.stack([ends[:-1], ends.diff() / width], 1)


def _tail(f: Callable[[Tensor], Tensor], end: float, width: float) -> Tensor:
    """(1, 2) of the straight line that f comes to beyond ``end``: on the left its anchor is one piece farther."""
    ends = torch.tensor([end, end + width], **DOUBLE)
    near, far = ends.relu() if f is _gelu else f(ends)
    return torch.stack([far if width < 0 else near, (far - near) / width])[None]


class DiTACTable(torch.autograd.Function):
    """y of ``x`` for theta (d,); ``reference`` computes the same in torch operations.

    Saves the input, and the table, which is small beside it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        reference: Callable[[Tensor, Tensor], Tensor],
        frame: Frame,
        x: Tensor,
        theta: Tensor,
    ) -> Tensor:
        y, made = torch.empty_like(x), torch.empty(frame.made, **DOUBLE)
        library.keep(ctx, x, theta, made)
        ctx.reference, ctx.frame = reference, frame
        library.kernels("ditac", x.dtype)[0](*_shared(frame, x, theta, made), x.data_ptr(), y.data_ptr())
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, theta, made = library.kept(ctx)
        if library.by_reference(g):
            needed = ctx.needs_input_grad[2:]
            return None, None, *library.through_reference(ctx.reference, (x, theta), needed, g)
        g, dx, dtheta = library.alike(g, x), torch.empty_like(x), torch.empty_like(theta)
        library.kernels("ditac", x.dtype)[1](
            *_shared(ctx.frame, x, theta, made),
            *(x.data_ptr(), dx.data_ptr(), g.data_ptr(), dtheta.data_ptr()),
        )
        return None, None, dx, dtheta


def _shared(frame: Frame, x: Tensor, theta: Tensor, made: Tensor) -> tuple[int | None, ...]:
    """What both kernels take first."""
    weights = None if frame.weights is None else frame.weights.data_ptr()
    constants = frame.numbers.data_ptr(), weights, frame.basis.data_ptr(), frame.pairs.data_ptr()
    return *constants, torch.get_num_threads(), theta.data_ptr(), made.data_ptr(), x.numel()


def warped(ends: Tensor, velocity: Tensor, points: int) -> Tensor:
    """(points,) ``transform`` of equally spaced ones from ends[0] to ends[1], which may lie outside [0, 1]."""
    if library.fusable(velocity, ends):
        heights: Tensor = _Warped.apply(points, ends.contiguous(), velocity.contiguous())
        return heights
    return _warped(points, ends, velocity)


def _warped(points: int, ends: Tensor, velocity: Tensor) -> Tensor:
    share = torch.linspace(0, 1, points, dtype=ends.dtype, device=ends.device)
    return transform(torch.lerp(ends[0], ends[1], share), velocity)


class _Warped(torch.autograd.Function):
    """The fused form."""

    @staticmethod
    def forward(ctx: Any, points: int, ends: Tensor, velocity: Tensor) -> Tensor:
        heights, made = velocity.new_empty(points), torch.empty(2 * points, **DOUBLE)
        library.keep(ctx, ends, velocity, made)
        ctx.points = points
        wide = ends.double()
        library.kernels("cpab", velocity.dtype)[0](
            *(len(velocity) - 1, points, wide.data_ptr(), velocity.data_ptr(), made.data_ptr()),
            heights.data_ptr(),
        )
        return heights

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ends, velocity, made = library.kept(ctx)
        needed = ctx.needs_input_grad[1:]
        if library.by_reference(g):
            return None, *library.through_reference(partial(_warped, ctx.points), (ends, velocity), needed, g)
        g, d_velocity, wide = g.contiguous(), torch.empty_like(velocity), ends.double()
        d_ends = torch.empty_like(wide) if needed[0] else None
        library.kernels("cpab", velocity.dtype)[1](
            *(len(velocity) - 1, ctx.points, wide.data_ptr(), velocity.data_ptr(), made.data_ptr()),
            *(g.data_ptr(), d_velocity.data_ptr(), None if d_ends is None else d_ends.data_ptr()),
        )
        return None, None if d_ends is None else d_ends.to(ends.dtype), d_velocity
