"""Tabulated DiTAC.

``DiTACTable`` samples y on [a, b], extends the table with the fixed function outside, and interpolates. ``warped``
samples T only, for the forms that build their table in torch. The kernels are in csrc/ditac.cpp, the flow behind T in csrc/flow.h.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.cpab import transform
from activations.kernels import library

# Outside [a, b], the largest error of a straight piece against GELU, in value and in slope, and the |x| beyond which GELU is
# 0 or x within 6e-9.
VALUE, SLOPE, REACH = 4e-7, 8e-4, 6.0

# These tensors are read by C, whatever torch's default device is.
DOUBLE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


class Frame(NamedTuple):
    """The part of a unit's table that does not depend on theta."""

    # (8,) float64, ``Frame`` of csrc/ditac.cpp: points, parts, pieces before and behind, d, cells, a, b.
    numbers: Tensor
    weights: Tensor | None  # (points,) float64: y is weights T(x) on [a, b]; None: GELU(T(x))
    basis: Tensor  # (cells + 1, d)
    pairs: Tensor  # (pieces, 2) value and slope, those of [a, b] empty; the outer ones are tails
    workspace: int  # number of float64 that a table and the flow's intermediate results take


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
    """Return the frame of a form of DiTAC that is GELU, leaky ReLU or x outside [a, b].

    All pieces are equally wide. If the distance of the points on [a, b] is too wide for the function outside, pieces are
    fractions of it.

    Args:
        form: ``gelu``, ``ge`` or ``leaky``.
        a, b: ends of the interval.
        points: of the table on [a, b].
        negative_slope: of leaky ReLU.
        gelu_of: ``x`` or ``z``, as in ``DiTAC``.
        basis: (cells + 1, d) knot velocities by theta.
        dtype: of the inputs.
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
        workspace=2 * points + pairs.nbytes // 8,
    )


def _gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


def _identity(x: Tensor) -> Tensor:
    return x


def _parts(width: float, first: float, last: float) -> int:
    """Return into how many parts pieces of a width must be cut to follow GELU from ``first`` to ``last``."""
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
        y, workspace = torch.empty_like(x), torch.empty(frame.workspace, **DOUBLE)
        library.save(ctx, x, theta, workspace)
        ctx.reference, ctx.frame = reference, frame
        library.kernels("ditac", x.dtype)[0](*_shared(frame, x, theta, workspace), x.data_ptr(), y.data_ptr())
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, theta, workspace = library.saved(ctx)
        if library.needs_reference(g):
            return library.reference_backward(ctx, ctx.reference, (x, theta), g)
        g, dx, dtheta = library.match_layout(g, x), torch.empty_like(x), torch.empty_like(theta)
        library.kernels("ditac", x.dtype)[1](
            *_shared(ctx.frame, x, theta, workspace),
            *(x.data_ptr(), dx.data_ptr(), g.data_ptr(), dtheta.data_ptr()),
        )
        return None, None, dx, dtheta


def _shared(frame: Frame, x: Tensor, theta: Tensor, workspace: Tensor) -> tuple[int | None, ...]:
    """Return the arguments that both kernels take first."""
    weights = None if frame.weights is None else frame.weights.data_ptr()
    constants = frame.numbers.data_ptr(), weights, frame.basis.data_ptr(), frame.pairs.data_ptr()
    return *constants, torch.get_num_threads(), theta.data_ptr(), workspace.data_ptr(), x.numel()


class Form(NamedTuple):
    """What the kernels of a GPU need to know of a unit; see ``activations.ditac``."""

    form: str  # gelu, ge or leaky
    gelu_of: str
    a: float
    b: float
    points: int
    negative_slope: float


def ditac_on_gpu(
    form: Form, reference: Callable[[Tensor, Tensor], Tensor], x: Tensor, velocity: Tensor
) -> Tensor:
    """Return y of ``x`` for the velocities at the knots, (cells + 1,), which ``reference`` computes in torch operations."""
    y: Tensor
    if torch.compiler.is_compiling():
        from activations.kernels.gpu import ops

        y = ops.ditac(*form, x, velocity)[0]
    else:
        y = _DiTACOnGPU.apply(reference, form, library.dense(x), velocity)
    return y


class _DiTACOnGPU(torch.autograd.Function):
    """By the kernels of gpu/ditac.py, which need no table outside [a, b]; saves the table as well."""

    @staticmethod
    def forward(
        ctx: Any, reference: Callable[[Tensor, Tensor], Tensor], form: Form, x: Tensor, velocity: Tensor
    ) -> Tensor:
        from activations.kernels.gpu import ditac

        y, heights, rows = ditac.forward(form, x, velocity)
        library.save(ctx, x, velocity, heights, rows)
        ctx.reference, ctx.form = reference, form
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from activations.kernels.gpu import ditac

        x, velocity, heights, rows = library.saved(ctx)
        if library.needs_reference(g, library.TRITON):
            return library.reference_backward(ctx, ctx.reference, (x, velocity), g)
        return (
            None,
            None,
            *ditac.backward(ctx.form, library.match_layout(g, x), x, heights, rows, len(velocity)),
        )


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
        heights, workspace = velocity.new_empty(points), torch.empty(2 * points, **DOUBLE)
        library.save(ctx, ends, velocity, workspace)
        ctx.points = points
        wide = ends.double()
        library.kernels("cpab", velocity.dtype)[0](
            *(len(velocity) - 1, points, wide.data_ptr(), velocity.data_ptr(), workspace.data_ptr()),
            heights.data_ptr(),
        )
        return heights

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ends, velocity, workspace = library.saved(ctx)
        if library.needs_reference(g):
            return library.reference_backward(ctx, partial(_warped, ctx.points), (ends, velocity), g)
        g, d_velocity, wide = g.contiguous(), torch.empty_like(velocity), ends.double()
        d_ends = torch.empty_like(wide) if ctx.needs_input_grad[1] else None
        library.kernels("cpab", velocity.dtype)[1](
            *(len(velocity) - 1, ctx.points, wide.data_ptr(), velocity.data_ptr(), workspace.data_ptr()),
            *(g.data_ptr(), d_velocity.data_ptr(), None if d_ends is None else d_ends.data_ptr()),
        )
        return None, None if d_ends is None else d_ends.to(ends.dtype), d_velocity
