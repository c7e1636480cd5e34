"""Units y = f(x; p) of one input and a few coefficients per channel or site, fused.

A formula is in the file of its activation, and is the reference; the kernels are in csrc/: pointwise.cpp,
smooth.cpp and expansions.cpp.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from activations.base import Activation, upcast
from activations.kernels import library
from activations.kernels.signatures import MAX_PARAMS, ROWS, VARYING_ROWS

Reference = Callable[..., Tensor]


class Pointwise(Activation):
    """Base of the units y = formula(x; coefficients), which a fused kernel computes where it can.

    A subclass names its ``kernel``, gives the ``formula`` in plain torch operations and, if it has parameters, returns
    them or what it makes of them from ``coefficients``. It needs no ``forward`` of its own.
    """

    decayed = False
    # Name of the kernel.
    kernel: ClassVar[str]
    # A static method: y from x and coefficients that broadcast with it, along its channels and with rows in front.
    formula: ClassVar[Callable[..., Tensor]]
    # Whether half precision is computed in float32.
    upcasts: ClassVar[bool] = False

    def coefficients(self, x: Tensor) -> Sequence[Tensor]:
        """Return the coefficients, each (units,) or (rows, units), units being 1 or num_features for all."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        wide = library.widen(x) if self.upcasts else x
        like = wide if wide.dtype not in library.HALF else wide.new_empty(0, dtype=torch.float32)
        coefficients = self.coefficients(like)
        y = pointwise(self.kernel, self.reference, wide, *coefficients, channel_dim=self.channel_dim)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def reference(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        """Compute y by ``formula``, from coefficients as ``coefficients`` returns them."""
        wide = upcast(x) if self.upcasts else x
        y = self.formula(wide, *(self.along_channels(c, wide) for c in coefficients))
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def curves(self, x: Tensor) -> Tensor:
        return self.formula(x[None], *(c.unsqueeze(-1) for c in self.coefficients(x)))

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return dict(self.named_parameters())


def pointwise(
    name: str, reference: Reference, x: Tensor, *parameters: Tensor, channel_dim: int = 1
) -> Tensor:
    """``reference(x, *parameters)``, by the kernel ``name`` where that can be.

    Args:
        name: of the kernel.
        reference: the unit in plain torch operations, of ``x`` and the parameters.
        parameters: each (units,), or (rows, units) if it is several numbers for each unit, units being 1 or the number
            of channels, the same for all; taken in x's dtype.
        channel_dim: of ``x``.

    Shape:
        that of ``x``, dtype and memory format too.
    """
    dtype, kernels = x.dtype, library.REFERENCE
    if dtype in library.HALF:  # which the kernels of a GPU take beside parameters in float32
        kernels = library.backend(x, *parameters)
    if not kernels:
        parameters = tuple([p if p.dtype is dtype else p.to(dtype) for p in parameters])
        kernels = library.backend(x, *parameters)
    if kernels:
        compiling = kernels == library.TRITON and torch.compiler.is_compiling()
        if compiling and not parameters:  # which is better compiled into its neighbors
            return reference(x)
        units = (_count_units if compiling else _units)(name, *[p.shape for p in parameters])
        if units == 1 or units == x.shape[channel_dim]:
            if compiling:
                return _compiled(name, channel_dim, x, parameters)
            dense = [p.contiguous() for p in parameters]
            y: Tensor = _Pointwise.apply(kernels, name, reference, channel_dim, library.dense(x), *dense)
            return y
    return reference(x, *parameters)


def _compiled(name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return y by an operator that torch.compile does not look into."""
    from activations.kernels.gpu import ops

    y: Tensor = ops.pointwise(name, channel_dim, x, list(parameters), 0.0)
    return y


def _count_units(name: str, *shapes: torch.Size) -> int:
    """How many units parameters of these shapes are for; 0 if they are not what the kernel reads."""
    if not all(0 < len(shape) < 3 for shape in shapes):
        return 0
    rows = [shape[0] if len(shape) > 1 else 1 for shape in shapes]
    first = rows[0] if rows else 0
    read = ROWS[name] if name in ROWS else [first + more for more in VARYING_ROWS[name]]
    units = {shape[-1] for shape in shapes} or {1}
    return units.pop() if rows == read and sum(rows) <= MAX_PARAMS and len(units) == 1 else 0


_units = cache(_count_units)  # which torch.compile would warn of


class _Pointwise(torch.autograd.Function):
    """Saves its inputs alone; the parameters' gradients are summed in double."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: str,
        name: str,
        reference: Reference,
        channel_dim: int,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        library.save(ctx, x, *parameters)
        # not ctx.name, which every node of a graph has
        ctx.kernels, ctx.kernel, ctx.reference, ctx.channel_dim = kernels, name, reference, channel_dim
        if kernels == library.TRITON:
            from activations.kernels.gpu import pointwise as gpu

            return gpu.forward(name, channel_dim, x, parameters)
        layout = library.layout(x, parameters[0].shape[-1] if parameters else 1, channel_dim)
        p = library.row_addresses(parameters)
        y = torch.empty_like(x)
        threads = torch.get_num_threads()
        library.kernels(name, x.dtype)[0](*layout, threads, x.data_ptr(), y.data_ptr(), p, len(p))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = library.saved(ctx)
        if library.needs_reference(g, ctx.kernels):
            return library.reference_backward(ctx, ctx.reference, (x, *parameters), g)
        g = library.match_layout(g, x)
        if ctx.kernels == library.TRITON:
            from activations.kernels.gpu import pointwise as gpu

            return None, None, None, None, *gpu.backward(ctx.kernel, ctx.channel_dim, g, x, parameters)
        dx = torch.empty_like(x)
        gradients = [torch.empty_like(p) for p in parameters]
        layout = library.layout(x, parameters[0].shape[-1] if parameters else 1, ctx.channel_dim)
        p, dp = library.row_addresses(parameters), library.row_addresses(gradients)
        threads = torch.get_num_threads()
        library.kernels(ctx.kernel, x.dtype)[1](
            *layout, threads, x.data_ptr(), dx.data_ptr(), p, len(p), g.data_ptr(), dp
        )
        return None, None, None, None, dx, *gradients
