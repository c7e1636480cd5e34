"""Units y = f(x; p) of one input and a few parameters per channel or site, fused.

The formulas stand in the files of the activations, which give them as reference; their kernels are in csrc/pointwise.cpp.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from activations.kernels import library

Reference = Callable[..., Tensor]


# numbers for each unit, at most; as in csrc/pointwise.h
MOST = 40
# how many numbers for each unit each parameter of a kernel is
ROWS = {
    "acon": [1, 1, 1],
    "pau": [6, 4],
    "pelu": [1, 1],
    "prelu": [1],
    "sine": [1],
    "snake": [1],
    "srelu": [1, 1, 1, 1],
    "swish": [1],
    "tanh_exp": [],
}
# how many more than the first parameter is, which may be any number
VARYING_ROWS = {"apl": [0, 0], "npwlu": [0, 0, 1]}


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
    parameters = tuple(p if p.dtype is x.dtype else p.to(x.dtype) for p in parameters)
    if not library.fusable(x, *parameters):
        return reference(x, *parameters)
    units = _units(name, *[p.shape for p in parameters])
    if units != 1 and units != x.shape[channel_dim]:
        return reference(x, *parameters)
    dense = (p.contiguous() for p in parameters)
    y: Tensor = _Pointwise.apply(name, reference, channel_dim, library.dense(x), *dense)
    return y


@cache
def _units(name: str, *shapes: torch.Size) -> int:
    """How many units parameters of these shapes are for; 0 if they are not what the kernel reads."""
    if not all(0 < len(shape) < 3 for shape in shapes):
        return 0
    rows = [shape[0] if len(shape) > 1 else 1 for shape in shapes]
    first = rows[0] if rows else 0
    read = ROWS[name] if name in ROWS else [first + more for more in VARYING_ROWS[name]]
    units = {shape[-1] for shape in shapes} or {1}
    return units.pop() if rows == read and sum(rows) <= MOST and len(units) == 1 else 0


@cache
def _kernels(name: str, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    forward = library.function(f"{name}_{{}}_forward", dtype, "iiiipppi")
    return forward, library.function(f"{name}_{{}}_backward", dtype, "iiiipppipp")


class _Pointwise(torch.autograd.Function):
    """Saves its inputs alone; the parameters' gradients are summed in double."""

    @staticmethod
    def forward(
        ctx: Any, name: str, reference: Reference, channel_dim: int, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        library.keep(ctx, x, *parameters)
        # not ctx.name, which every node of a graph has
        ctx.kernel, ctx.reference, ctx.channel_dim = name, reference, channel_dim
        layout = library.layout(x, parameters[0].shape[-1] if parameters else 1, channel_dim)
        p = library.row_addresses(parameters)
        y = torch.empty_like(x)
        threads = torch.get_num_threads()
        _kernels(name, x.dtype)[0](*layout, threads, x.data_ptr(), y.data_ptr(), p, len(p))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = library.kept(ctx)
        if library.by_reference(g):
            needed = ctx.needs_input_grad[3:]
            return None, None, None, *library.through_reference(ctx.reference, (x, *parameters), needed, g)
        g, dx = library.alike(g, x), torch.empty_like(x)
        gradients = [torch.empty_like(p) for p in parameters]
        layout = library.layout(x, parameters[0].shape[-1] if parameters else 1, ctx.channel_dim)
        p, dp = library.row_addresses(parameters), library.row_addresses(gradients)
        threads = torch.get_num_threads()
        _kernels(ctx.kernel, x.dtype)[1](
            *layout, threads, x.data_ptr(), dx.data_ptr(), p, len(p), g.data_ptr(), dp
        )
        return None, None, None, dx, *gradients
