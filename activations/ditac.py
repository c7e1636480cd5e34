"""DiTAC. Chelly, Finder, Ifergane, Freifeld: Trainable Highly-expressive Activation Functions, ECCV 2024,
arXiv 2407.07564, section 4.

Differs from the authors' code where that departs from the mathematics or cannot be trusted: the data gradient of theta
is not multiplied by its dimension, the regularizer is part of the loss and its gradient that of the stated form,
the table holds y, is interpolated and made anew in every forward (it cannot be stale), and intervals need not contain 0.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.base import Activation
from activations.checks import check_bool, check_choice, check_int, check_number
from activations.cpab import cell_pairs, knot_basis, transform, transform_and_slope
from activations.kernels import library
from activations.kernels.lookup import piecewise_linear, take
from activations.kernels.tabulated import DiTACTable, Form, Frame, ditac_on_gpu, make_frame, warped

FORMS = ("gelu", "ge", "leaky", "inf")


class DiTAC(Activation):
    r"""Activations from a learned diffeomorphism T of the line, the flow of a CPAB velocity field on [a, b].

        gelu:   z Phi(x),  z = T(x) on [a, b], x outside;  Phi the normal cdf (the paper's DiTAC)
        ge:     GELU(x) for x < a;  T(x) on [a, b];  x above b.  a = 0 in the paper (GE-DiTAC); jumps at any other
        leaky:  T(x) on [a, b];  LeakyReLU(x) outside (Leaky-DiTAC).  Continuous at a for a >= 0 only
        inf:    T(x) everywhere: beyond [a, b] the end cells' affine velocity goes on (inf-DiTAC)

    theta (d,), one per site, are the coordinates of the velocity field on ``cells`` equal cells of [a, b] in an
    orthonormal basis (see ``cpab.knot_basis``). On [a, b] y is computed at ``table_size`` equally spaced points and
    interpolated; gradients reach theta through the table. The fused kernel interpolates GELU outside [a, b] as well:
    within 4e-7 of its values and 8e-4 of its slopes. Leaky-DiTAC on an interval beside 0 has no fused form.

    The released code has the gelu form alone; ge, leaky and inf are reconstructed from descriptions of the paper.

    Args:
        form: one of the above.
        a, b: ends of the interval, a < b; it need not contain 0.
        cells: number of cells, at least 2; the paper's is 10.
        zero_boundary: v(a) = v(b) = 0, so that T maps [a, b] to itself (d = cells - 1). false frees the ends
            (d = cells + 1); all forms but inf then jump at them.
        table_size: points of the table, at least 2 (2048 in the authors' code); null: T at every element, exactly.
        interpolation: ``linear``, of y, error O(step^2); ``nearest``, the authors': value and slope of T at the
            nearest point, error O(step), in plain torch operations.
        gelu_of: ``x``: the cdf's argument in the gelu form is the original x (the authors' code); ``z``: GELU(z).
        negative_slope: of the leaky form outside [a, b].
        init: ``prior``: theta ~ N(0, Sigma) with the authors' covariance, exp(-|d| / (2 init_smooth^2)) init_var^2
            between cell centers on [0, 1], for slopes and intercepts alike; ``identity``: theta = 0.
        lambda_reg: weight >= 0 of the regularizer theta^T P theta, once per site. P is the precision of theta under
            the authors' second prior, exp(-2 |d| / lambda_smooth) (2 cells lambda_var)^2 over 2 cells points on
            [-1, 1] that stand for s_0, c_0, s_1, ...
        lambda_smooth, lambda_var, init_smooth, init_var: above 0.

    Parameter ``theta`` (d,), any real values, not decayed (the regularizer takes that place). It means the same
    wherever a checkpoint goes, as the basis comes from no library's null space; so ``basis`` (cells + 1, d), knot
    velocities on [0, 1] by theta, and ``precision`` (d, d), P, are buffers outside the state_dict.

    Raises:
        ValueError: a value is outside its range.
    """

    decayed = False

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        form: str = "gelu",
        a: float = -0.5,
        b: float = 2.0,
        cells: int = 10,
        zero_boundary: bool = True,
        table_size: int | None = 2048,
        interpolation: str = "linear",
        gelu_of: str = "x",
        negative_slope: float = 0.01,
        init: str = "prior",
        lambda_reg: float = 0.1,
        lambda_smooth: float = 5.0,
        lambda_var: float = 2.0,
        init_smooth: float = 5.0,
        init_var: float = 2.0,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_choice("form", form, FORMS)
        check_choice("interpolation", interpolation, ("linear", "nearest"))
        check_choice("gelu_of", gelu_of, ("x", "z"))
        check_choice("init", init, ("prior", "identity"))
        check_bool("zero_boundary", zero_boundary)
        check_number("b", b)
        check_number("a", a, below=b)
        check_number("negative_slope", negative_slope)
        check_int("cells", cells, minimum=2)
        if table_size is not None:
            check_int("table_size", table_size, minimum=2)
        check_number("lambda_reg", lambda_reg, minimum=0)
        check_number("lambda_smooth", lambda_smooth, above=0)
        check_number("lambda_var", lambda_var, above=0)
        check_number("init_smooth", init_smooth, above=0)
        check_number("init_var", init_var, above=0)
        if interpolation == "nearest" and form == "inf":
            raise ValueError(
                "interpolation=nearest: form=inf requires linear, as a table of points has no tails"
            )
        self.form, self.a, self.b, self.gelu_of = form, float(a), float(b), gelu_of
        self.table_size, self.interpolation = table_size, interpolation
        self.exact_gradient = interpolation != "nearest"  # A staircase, which passes on the slope of a line.
        self.negative_slope, self.lambda_reg = negative_slope, lambda_reg

        self.cells, self.zero_boundary = cells, zero_boundary
        self.lambda_smooth, self.lambda_var = lambda_smooth, lambda_var
        self.init, self.init_smooth, self.init_var = init, init_smooth, init_var
        self.theta = nn.Parameter(torch.empty(cells - 1 if zero_boundary else cells + 1))
        self.coordinates = self.theta.shape  # on which the kernel relies
        self.basis: Tensor
        self.precision: Tensor
        self.register_buffer("basis", None, persistent=False)
        self.register_buffer("precision", None, persistent=False)
        self.register_load_state_dict_post_hook(_follow_theta)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        basis = knot_basis(self.cells, self.zero_boundary)
        theta = basis.new_zeros(basis.shape[1])
        if self.init == "prior":
            root = torch.linalg.cholesky(init_covariance(basis, self.init_smooth, self.init_var))
            theta = root @ torch.randn(len(theta), dtype=basis.dtype, device=basis.device)
        self.assign("theta", theta)
        self._make_buffers()

    def _make_buffers(self) -> None:
        """Made of hyper-parameters alone, in theta's dtype and on its device."""
        basis = knot_basis(self.cells, self.zero_boundary)
        self.basis = basis.to(self.theta)
        self.precision = prior_precision(basis, self.lambda_smooth, self.lambda_var).to(self.theta)
        self._frames: dict[torch.dtype, Frame] = {}

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Whatever moves or casts the unit; the buffers are made anew, so that double() has all digits."""
        super()._apply(*args, **kwargs)
        self._make_buffers()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._function(x)

    def _function(self, x: Tensor) -> Tensor:
        wide = library.widen(x)
        theta: Tensor = self.theta
        # a cast to what it is would take 2 us of 30; the kernels of a GPU take x in half precision and theta as it is
        if theta.dtype is not wide.dtype and wide.dtype not in library.HALF:
            theta = theta.to(wide.dtype)
        has_kernel = self._by_table and theta.shape == self.coordinates
        kernels = library.backend(wide, theta) if has_kernel else library.REFERENCE
        if kernels == library.CPU:
            y: Tensor = DiTACTable.apply(
                self._respond, self._frame(wide.dtype), library.dense(wide), theta.contiguous()
            )
        elif kernels == library.TRITON:
            y = ditac_on_gpu(self._form, self._respond_to, wide, self._velocity(theta.float()))
        else:
            y = self._respond(wide, theta)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    @property
    def _form(self) -> Form:
        """What the kernels of a GPU need to know."""
        assert self.table_size is not None
        return Form(self.form, self.gelu_of, self.a, self.b, self.table_size, float(self.negative_slope))

    @property
    def _by_table(self) -> bool:
        """Whether there is a fused form; its table has no place for a kink of leaky ReLU outside [a, b]."""
        form_has = self.form in ("gelu", "ge") or (self.form == "leaky" and self.a <= 0 <= self.b)
        return form_has and self.table_size is not None and self.interpolation == "linear"

    def _frame(self, dtype: torch.dtype) -> Frame:
        """What the fused table has besides theta, made once."""
        if dtype not in self._frames:
            assert self.table_size is not None
            self._frames[dtype] = make_frame(
                self.form,
                self.a,
                self.b,
                self.table_size,
                self.negative_slope,
                self.gelu_of,
                self.basis,
                dtype,
            )
        return self._frames[dtype]

    def _respond(self, x: Tensor, theta: Tensor) -> Tensor:
        """y in plain torch operations."""
        return self._respond_to(x, self._velocity(theta))

    def _velocity(self, theta: Tensor) -> Tensor:
        """(cells + 1,) at the knots."""
        # no matrix product, whose digits autocast would take
        return (self.basis.to(theta.dtype) * theta).sum(1)

    def _respond_to(self, x: Tensor, velocity: Tensor) -> Tensor:
        """y for a velocity field, in float32 at least."""
        if x.dtype in library.HALF:
            return self._respond_to(x.float(), velocity.float()).to(x.dtype)
        if self.form == "inf":
            return self._warp(x, velocity)
        exact = self.table_size is None or self.interpolation == "nearest"
        below_end = x <= self.b if exact else x < self.b  # at b a table's slope is that of the right
        inside = (x >= self.a) & below_end
        held = torch.where(inside, x, self.a)  # no overflow out there for autograd to meet
        if self.form == "gelu":
            within = self._warp(held, velocity, gelu=True)
            return torch.where(inside, within, x * torch.special.ndtr(x))
        if self.form == "ge":
            outside = torch.where(x < self.a, F.gelu(x), x)
        else:
            # its slope at 0 is the left one, as in torch, but for an interval that ends there
            positive = x > 0 if self.b else x >= 0
            outside = torch.where(positive, x, self.negative_slope * x)
        return torch.where(inside, self._warp(held, velocity), outside)

    def _warp(self, x: Tensor, velocity: Tensor, gelu: bool = False) -> Tensor:
        """T(x), or T(x) Phi(x), or GELU(T(x)): exactly, from a table of it, or from the nearest point of one of T."""
        if self.table_size is None:
            return self._gated(self._exact(x, velocity), x, gelu)
        length, ends = self.b - self.a, self._table_ends(velocity)
        left, right = (self.a + length * ends)[:, None]
        if self.interpolation == "nearest":
            return self._gated(self._nearest(x, velocity, self._points(left, right)), x, gelu)
        heights = self.a + length * warped(ends, velocity, self.table_size)
        if gelu:
            heights = self._gated(heights, self._points(left, right), gelu)
        slopes = self.cells * velocity.diff()
        tails = slopes[:1].exp(), slopes[-1:].exp()
        curve = torch.cat([left, right, heights, *tails])[None]
        return piecewise_linear(x, curve, channel_dim=self.channel_dim)

    def _points(self, left: Tensor, right: Tensor) -> Tensor:
        """(table_size,) equally spaced from ``left`` to ``right``, (1,) each."""
        assert self.table_size is not None
        share = torch.linspace(0, 1, self.table_size, dtype=left.dtype, device=left.device)
        return torch.lerp(left, right, share)

    def _gated(self, warped: Tensor, x: Tensor, gelu: bool) -> Tensor:
        if not gelu:
            return warped
        return F.gelu(warped) if self.gelu_of == "z" else warped * torch.special.ndtr(x)

    def _exact(self, x: Tensor, velocity: Tensor) -> Tensor:
        length = self.b - self.a
        return self.a + length * transform((x - self.a) / length, velocity)

    def _table_ends(self, velocity: Tensor) -> Tensor:
        """(2,) on the scale of [0, 1]: T is affine beyond them, its slope there exp(slope of the end cell's velocity).

        0 and 1, or in the inf form, where an end cell carries points into it, from where they just reach its inner knot.
        """
        ends = torch.arange(2, dtype=velocity.dtype, device=velocity.device)  # a list would make a GPU wait
        if self.form == "inf" and not self.zero_boundary:
            cells = self.cells
            slope = cells * torch.stack([velocity[1] - velocity[0], velocity[-1] - velocity[-2]])
            # back in time from the inner knot in the end cell's flow, by v (1 - e^-s) / s
            steep = slope.abs() > 1e-4
            back = torch.where(steep, -torch.expm1(-slope) / slope.where(steep, 1), 1 - slope / 2)
            first, last = (1 / cells - velocity[1] * back[0]), (1 - 1 / cells - velocity[-2] * back[1])
            ends = torch.stack([first.clamp_max(0), last.clamp_min(1)])
        return ends

    def _nearest(self, x: Tensor, velocity: Tensor, points: Tensor) -> Tensor:
        """T and dT/dx at the nearest point of the table; dT/dx is that of the exact T there."""
        length, last = self.b - self.a, len(points) - 1
        heights, slopes = transform_and_slope((points - self.a) / length, velocity)
        index = ((x.detach() - self.a) / length * last).round().clamp(0, last).nan_to_num(0.0)
        tables = (self.a + length * heights)[None], slopes.detach()[None]
        height, slope = take(index, *tables, channel_dim=self.channel_dim)
        return height + slope * (x - x.detach())

    def regularization(self) -> Tensor | float:
        if self.lambda_reg == 0:
            return 0.0
        return self.lambda_reg * (self.theta @ self.precision @ self.theta)

    def curves(self, x: Tensor) -> Tensor:
        return self._function(x[:, None]).T

    def flops(self, shape: Sequence[int]) -> int | None:
        """Seven an element: place in the table, straight piece, cdf and product; the table, one a batch, is left out."""
        return None if self.table_size is None else 7 * math.prod(shape)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"theta": self.theta, "velocity": (self.b - self.a) * (self.basis @ self.theta)}


def prior_precision(basis: Tensor, smooth: float, var: float) -> Tensor:
    """(d, d) P of the regularizer."""
    pairs = cell_pairs(basis)
    points = torch.linspace(-1, 1, len(pairs), dtype=basis.dtype, device=basis.device)
    covariance = _exponential(points, smooth / 2) * (var * len(pairs)) ** 2
    jitter = torch.full_like(points[: pairs.shape[1]], torch.finfo(torch.float32).eps)  # as the authors
    return torch.linalg.inv(pairs.T @ covariance @ pairs + jitter.diag())


def init_covariance(basis: Tensor, smooth: float, var: float) -> Tensor:
    """(d, d) covariance of the initial theta."""
    pairs = cell_pairs(basis)
    cells = len(pairs) // 2
    dtype, device = basis.dtype, basis.device
    centers = (torch.arange(cells, dtype=dtype, device=device) + 0.5) / cells
    pair = torch.eye(2, dtype=dtype, device=device)
    covariance = torch.kron(_exponential(centers, 2 * smooth**2), pair)
    return var**2 * (pairs.T @ covariance @ pairs)


def _follow_theta(unit: DiTAC, keys: Any) -> None:
    unit._make_buffers()  # with assign=True theta may have come to another device


def _exponential(points: Tensor, length: float) -> Tensor:
    return (-(points[:, None] - points).abs() / length).exp()
