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


def pointwise(
    name: str, reference: Reference, x: Tensor, *parameters: Tensor, channel_dim: int = 1, rows: int = 1
) -> Tensor:
    """``reference(x, *parameters)``, by the kernel ``name`` where that can be.

    Args:
        name: of the kernel.
        reference: the unit in plain torch operations, of ``x`` and the parameters.
        parameters: each (units,) or (rows, units), units being 1 or the number of channels; in x's dtype.
        channel_dim: of ``x``.
        rows: 1 where a parameter is one number for each unit, else how many it is.

    Shape:
        that of ``x``, dtype and memory format too.
    """
    if not library.fusable(x, *parameters):
        return reference(x, *parameters)
    return _Pointwise.apply(name, reference, channel_dim, rows, x, *parameters)


@cache
def _kernels(name: str, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    forward = library.function(f"{name}_{{}}_forward", dtype, "iiiipppi")
    return forward, library.function(f"{name}_{{}}_backward", dtype, "iiiipppipp")


class _Pointwise(torch.autograd.Function):
    """Saves its inputs alone; the parameters' gradients are summed in double."""

    @staticmethod
    def forward(
        ctx: Any, name: str, reference: Reference, channel_dim: int, rows: int, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        x = library.dense(x)
        parameters = tuple(p.contiguous() for p in parameters)
        ctx.save_for_backward(x, *parameters)
        ctx.name, ctx.reference, ctx.channel_dim = name, reference, channel_dim
        ctx.counts = [p.shape[0] if p.ndim > 1 else rows for p in parameters]
        units = max((p.numel() // k for p, k in zip(parameters, ctx.counts, strict=True)), default=1)
        ctx.layout = library.layout(x, units, channel_dim)
        p = library.pointers(list(zip(parameters, ctx.counts, strict=True)))
        y = torch.empty_like(x)
        threads = torch.get_num_threads()
        _kernels(name, x.dtype)[0](*ctx.layout, threads, x.data_ptr(), y.data_ptr(), p, len(p))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[4:]
            return None, None, None, None, *library.through_reference(ctx.reference, (x, *parameters), needed, g)
        g, dx = library.alike(g, x), torch.empty_like(x)
        gradients = [torch.empty_like(p) for p in parameters]
        p = library.pointers(list(zip(parameters, ctx.counts, strict=True)))
        dp = library.pointers(list(zip(gradients, ctx.counts, strict=True)))
        threads = torch.get_num_threads()
        _kernels(ctx.name, x.dtype)[1](
            *ctx.layout, threads, x.data_ptr(), dx.data_ptr(), p, len(p), g.data_ptr(), dp
        )
        return None, None, None, None, dx, *gradients
