"""The kernels as operators of torch, which torch.compile takes as they are: no graph break, and no look inside.

Backward is an operator too. Second derivatives and transforms of torch.func have none; outside torch.compile, which knows
neither, both go to the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from activations.kernels import library
from activations.kernels.gpu import pointwise as kernels


@torch.library.custom_op("actbench::pointwise", mutates_args=())
def pointwise(
    name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor], numbers: Sequence[float]
) -> Tensor:
    """Return y of the unit ``name``; see ``kernels.forward``."""
    if not x.numel():
        return torch.empty_like(x)
    return kernels.forward(name, channel_dim, library.dense(x), [p.contiguous() for p in parameters], numbers)


@torch.library.custom_op("actbench::pointwise_backward", mutates_args=())
def pointwise_backward(
    name: str, channel_dim: int, g: Tensor, x: Tensor, parameters: Sequence[Tensor], numbers: Sequence[float]
) -> list[Tensor]:
    """Return the gradients of x and of the parameters; see ``kernels.backward``."""
    if not x.numel():
        return [torch.empty_like(x), *[p.new_zeros(p.shape) for p in parameters]]
    x = library.dense(x)
    return kernels.backward(
        *(name, channel_dim, library.match_layout(g, x), x, [p.contiguous() for p in parameters], numbers)
    )


@pointwise.register_fake
def _(name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor], numbers: Any) -> Tensor:
    return torch.empty_like(library.dense(x))


@pointwise_backward.register_fake
def _(
    name: str, channel_dim: int, g: Tensor, x: Tensor, parameters: Sequence[Tensor], numbers: Any
) -> list[Tensor]:
    return [torch.empty_like(library.dense(x)), *[p.new_empty(p.shape) for p in parameters]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, ctx.channel_dim, x, parameters, ctx.numbers = inputs
    ctx.save_for_backward(x, *parameters)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    dx, *gradients = pointwise_backward(ctx.name, ctx.channel_dim, g, x, parameters, ctx.numbers)
    return None, None, dx, gradients, None


pointwise.register_autograd(_backward, setup_context=_save)
