"""N-PWLU. Zhu, Dong: Non-uniform Piecewise Linear Activation Functions in Deep Neural Networks, ICPR 2022,
doi 10.1109/ICPR56361.2022.9956345.

The journal version of PWLU (TPAMI 2023, doi 10.1109/TPAMI.2023.3286109) has a non-uniform form as well. Known to us
from the abstracts alone: intervals of unequal, learned width, and a cumulative definition, by which the
parameters of all intervals hang together and no realignment is needed. The form below is ours and has these
properties; it may differ from the authors' in detail, so do not cite scores of it as theirs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation, along
from activations.checks import check_bool, check_int, check_number
from activations.kernels import library
from activations.kernels.lookup import take
from activations.kernels.pointwise import pointwise
from activations.pieces import occupancy


class NPWLU(Activation):
    r"""A continuous piecewise-linear function with N intervals of learned width, summed up from the left.

        B_0 = left,  B_i = B_{i-1} + exp(log_widths_i)
        Y_0 = height,  Y_i = Y_{i-1} + slopes_i (B_i - B_{i-1})
        y = Y_i + slope (x - B_i) on the piece of x; slopes_0 left of B_0, slopes_{N+1} right of B_N

    A change of one slope or width shifts all that is to the right of it, the learned tail included.

    Args:
        intervals: N, at least 1; the abstract's is 4.
        per_channel: one function for each channel instead of one for the site.
        reach: B_0 = -reach and B_N = reach at the start, with equal widths; above 0.

    Parameters, units being 1 or num_features, any real values, not decayed (ours): ``left``, ``height`` (units,),
    ``log_widths`` (units, N), ``slopes`` (units, N + 2). They start as ReLU, for odd N with one corner cut. At a knot
    derivatives are those of the piece to the right.

    Raises:
        ValueError: a value is outside its range.
    """

    decayed = False
    diagnostic_roles: ClassVar[Mapping[str, str]] = {
        "left": "interval_end",
        "right": "interval_end",
        "knots": "knots",
        "occupancy": "occupancy",
    }

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        intervals: int = 4,
        per_channel: bool = False,
        reach: float = 3.0,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("intervals", intervals, minimum=1)
        check_bool("per_channel", per_channel)
        check_number("reach", reach, above=0)
        self.reach = float(reach)
        units = self.num_features if per_channel else 1
        self.left, self.height = (nn.Parameter(torch.empty(units)) for _ in range(2))
        self.log_widths = nn.Parameter(torch.empty(units, intervals))
        self.slopes = nn.Parameter(torch.empty(units, intervals + 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        units, intervals = self.log_widths.shape
        knots = torch.linspace(-self.reach, self.reach, intervals + 1, device=self.slopes.device)
        inner = knots.relu().diff() / knots.diff()
        slopes = torch.cat([torch.zeros_like(knots[:1]), inner, torch.ones_like(knots[:1])])
        self.assign("left", -self.reach)
        self.assign("height", 0.0)
        self.assign("log_widths", math.log(2 * self.reach / intervals))
        self.assign("slopes", slopes.repeat(units, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._function(x, self.channel_dim)

    def _function(self, x: Tensor, channel_dim: int) -> Tensor:
        wide = library.widen(x)
        dtype = self.slopes.dtype if wide.dtype in library.HALF else wide.dtype
        slopes, height = self.slopes.to(dtype), self.height.to(dtype)
        knots, widths = self._knots(dtype)
        heights = height[:, None] + (slopes[:, 1:-1] * widths).cumsum(1)
        heights = torch.cat([height[:, None], heights], 1)
        reference = partial(_pieces, channel_dim)
        y = pointwise("npwlu", reference, wide, knots.T, heights.T, slopes.T, channel_dim=channel_dim)
        return y.to(x.dtype)

    def _knots(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the knots B, (units, N + 1), and the widths of the intervals between them, (units, N)."""
        left = self.left.to(dtype)[:, None]
        widths = self.log_widths.to(dtype).exp()
        return torch.cat([left, left + widths.cumsum(1)], 1), widths

    def curves(self, x: Tensor) -> Tensor:
        return self._function(x[:, None].expand(-1, len(self.left)), 1).T

    def flops(self, shape: Sequence[int]) -> int:
        """For each element a comparison and a sum per knot, and one straight piece."""
        return (2 * self.slopes.shape[1] + 1) * math.prod(shape)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        knots, _ = self._knots(self.left.dtype)
        values = dict(self.named_parameters()) | {"right": knots[:, -1], "knots": knots}
        if x is not None:
            values["occupancy"] = occupancy(x, knots, self.channel_dim)
        return values


def _pieces(channel_dim: int, x: Tensor, knots: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """The function with ``knots`` and ``heights`` there (N + 1, units), ``slopes`` before, between and after (N + 2, units)."""
    if x.dtype in library.HALF:
        return _pieces(channel_dim, x.float(), knots.float(), heights.float(), slopes.float()).to(x.dtype)
    anchors, values = (torch.cat([at[:1], at]).T for at in (knots, heights))  # one for each piece
    piece = torch.zeros_like(x)
    for knot in knots.detach().unbind():
        piece = piece + (x.detach() >= along(knot, x, channel_dim))
    anchor, value, slope = take(piece, anchors, values, slopes.T, channel_dim=channel_dim)
    return value + slope * (x - anchor)
