"""The kernels as operators of torch, which torch.compile takes as they are: no graph break, and no look inside.

Backward is an operator too. Second derivatives and transforms of torch.func have none; outside torch.compile, which knows
neither, both go to the reference.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from activations.kernels import library
from activations.kernels.gpu import ditac as tables
from activations.kernels.gpu import launch
from activations.kernels.gpu import pointwise as kernels
from activations.kernels.tabulated import Form

# ---- Pointwise units and PWLU


@torch.library.custom_op("actbench::pointwise", mutates_args=())
def pointwise(name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor], number: float) -> Tensor:
    """Return y of the unit ``name``; see ``kernels.forward``."""
    if not x.numel():
        return torch.empty_like(x)
    return kernels.forward(
        name, channel_dim, library.dense(x), [p.contiguous() for p in parameters], [number]
    )


@torch.library.custom_op("actbench::pointwise_backward", mutates_args=())
def pointwise_backward(
    name: str, channel_dim: int, g: Tensor, x: Tensor, parameters: Sequence[Tensor], number: float
) -> list[Tensor]:
    """Return the gradients of x and of the parameters; see ``kernels.backward``."""
    if not x.numel():
        return [torch.empty_like(x), *[p.new_zeros(p.shape) for p in parameters]]
    x = library.dense(x)
    dense = [p.contiguous() for p in parameters]
    dx, *gradients = kernels.backward(name, channel_dim, library.match_layout(g, x), x, dense, [number])
    gradients += [torch.zeros_like(p) for p in dense[len(gradients) :]]  # of a phase
    return [dx, *[gradient.clone() for gradient in gradients]]  # what an operator returns shares no memory


@pointwise.register_fake
def _(name: str, channel_dim: int, x: Tensor, parameters: Sequence[Tensor], number: float) -> Tensor:
    return torch.empty_like(library.dense(x))


@pointwise_backward.register_fake
def _(
    name: str, channel_dim: int, g: Tensor, x: Tensor, parameters: Sequence[Tensor], number: float
) -> list[Tensor]:
    return [torch.empty_like(library.dense(x)), *[p.new_empty(p.shape) for p in parameters]]


def _save_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, ctx.channel_dim, x, parameters, ctx.number = inputs
    ctx.save_for_backward(x, *parameters)


def _of_pointwise(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    dx, *gradients = pointwise_backward(ctx.name, ctx.channel_dim, g, x, parameters, ctx.number)
    return None, None, dx, gradients, None


pointwise.register_autograd(_of_pointwise, setup_context=_save_pointwise)


# ---- DiTAC; the first arguments are those of ``Form``


@torch.library.custom_op("actbench::ditac", mutates_args=())
def ditac(
    form: str,
    gelu_of: str,
    a: float,
    b: float,
    points: int,
    negative_slope: float,
    x: Tensor,
    velocity: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the table; see ``tables.forward``."""
    return tables.forward(
        Form(form, gelu_of, a, b, points, negative_slope), library.dense(x), velocity.contiguous()
    )


@torch.library.custom_op("actbench::ditac_backward", mutates_args=())
def ditac_backward(
    form: str,
    gelu_of: str,
    a: float,
    b: float,
    points: int,
    negative_slope: float,
    g: Tensor,
    x: Tensor,
    heights: Tensor,
    rows: Tensor,
    knots: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the velocity; see ``tables.backward``."""
    x = library.dense(x)
    unit = Form(form, gelu_of, a, b, points, negative_slope)
    dx, d_velocity = tables.backward(unit, library.match_layout(g, x), x, heights, rows, knots)
    return dx, d_velocity.clone()  # as above


@ditac.register_fake
def _(
    form: str,
    gelu_of: str,
    a: float,
    b: float,
    points: int,
    negative_slope: float,
    x: Tensor,
    velocity: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    columns = launch.power(velocity.shape[0])
    heights = velocity.new_empty(points, dtype=torch.float32)
    return (
        torch.empty_like(library.dense(x)),
        heights,
        velocity.new_empty(points, columns, dtype=torch.float32),
    )


@ditac_backward.register_fake
def _(
    form: str,
    gelu_of: str,
    a: float,
    b: float,
    points: int,
    negative_slope: float,
    g: Tensor,
    x: Tensor,
    heights: Tensor,
    rows: Tensor,
    knots: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(library.dense(x)), heights.new_empty(knots)


def _save_ditac(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *ctx.form, x, velocity = inputs
    ctx.knots = velocity.shape[0]
    ctx.save_for_backward(x, *output[1:])


def _of_ditac(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Any, ...]:
    return (None,) * 6 + tuple(ditac_backward(*ctx.form, g, *ctx.saved_tensors, ctx.knots))


ditac.register_autograd(_of_ditac, setup_context=_save_ditac)
