"""Units that weigh a sample by its own statistics, fused: DyReLU, GCT, SE-ReLU, MetaACON.

Each is a statistic of the input, sums over the positions of every sample and channel, a small network that makes
coefficients of it, and an element-wise form of the input with these coefficients. Statistics and forms have kernels
(csrc/gate.cpp), each a node of the autograd graph with a gradient of its own; between them the network is plain torch.
The input runs through the statistic's node into the form's, so that the statistic's backward finds what the form left
and adds its part to it in place.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from activations.kernels import library

MOST_LINES = 8


def positions(x: Tensor, channel_dim: int) -> tuple[int, ...]:
    """The dimensions of ``x`` that are neither batch nor channels; none for (N, C)."""
    channels = channel_dim % x.ndim
    return tuple(dim for dim in range(1, x.ndim) if dim != channels)


def along_samples(values: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """``values`` (N or 1, C or 1), in x's dtype, shaped to broadcast along x's samples and channels."""
    shape = [1] * x.ndim
    shape[0], shape[channel_dim] = values.shape
    return values.to(x.dtype).view(shape)


def _upcast(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---- statistics: (N, C), or itself for (N, C), which has no positions


def mean(x: Tensor, channel_dim: int) -> Tensor:
    return x.mean(positions(x, channel_dim)) if x.ndim > 2 else x


def mean_relu(x: Tensor, channel_dim: int) -> Tensor:
    return mean(x.relu(), channel_dim)


def total(x: Tensor, channel_dim: int) -> Tensor:
    """In float32 at least."""
    x = _upcast(x)
    return x.sum(positions(x, channel_dim)) if x.ndim > 2 else x


def total_relu(x: Tensor, channel_dim: int) -> Tensor:
    return total(x.relu(), channel_dim)


def total_abs(x: Tensor, channel_dim: int) -> Tensor:
    return total(_upcast(x).abs(), channel_dim)


def total_square(x: Tensor, channel_dim: int) -> Tensor:
    return total(_upcast(x).square(), channel_dim)


def total_relu_square(x: Tensor, channel_dim: int) -> Tensor:
    return total_square(x.relu(), channel_dim)


def mean_and_map(x: Tensor, attention: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """The mean, and the map over positions that ``attention`` (C,) weighs the channels to, (N, P)."""
    shape = [1] * x.ndim
    shape[channel_dim] = -1
    weighted = (x * attention.to(x.dtype).view(shape)).sum(channel_dim)
    return mean(x, channel_dim), weighted.flatten(1)


# the kernel's number, and whether the sum is divided by the number of positions
_STATISTICS: dict[Callable[..., Any], tuple[int, bool]] = {
    mean: (0, True),
    total: (0, False),
    total_abs: (1, False),
    total_square: (2, False),
    mean_relu: (3, True),
    total_relu: (3, False),
    total_relu_square: (4, False),
    mean_and_map: (5, True),
}

_OF_RELU: dict[Callable[..., Any], Callable[..., Any]] = {
    mean: mean_relu,
    total: total_relu,
    total_abs: total_relu,
    total_square: total_relu_square,
}


# ---- forms; coefficients are (N or 1, C or 1, numbers for each)


def lines(x: Tensor, coefficients: Tensor, channel_dim: int) -> Tensor:
    """max_k (a_k x + b_k); ``coefficients`` are the K slopes, then the K intercepts."""
    terms = [along_samples(term, x, channel_dim) for term in coefficients.unbind(-1)]
    slopes, intercepts = terms[: len(terms) // 2], terms[len(terms) // 2 :]
    y = torch.addcmul(intercepts[0], slopes[0], x)
    for slope, intercept in zip(slopes[1:], intercepts[1:], strict=True):
        y = torch.maximum(y, torch.addcmul(intercept, slope, x))
    return y


def mapped_lines(x: Tensor, coefficients: Tensor, weights: Tensor, channel_dim: int) -> Tensor:
    """``lines`` times the map ``weights`` (N, P)."""
    shape = list(x.shape)
    shape[channel_dim] = 1
    return lines(x, coefficients, channel_dim) * weights.to(x.dtype).view(shape)


def scale(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    return x * along_samples(gate.squeeze(-1), x, channel_dim)


def scale_relu(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    return scale(x.relu(), gate, channel_dim)


def relu_scale(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    return scale(x, gate, channel_dim).relu()


def acon(x: Tensor, beta: Tensor, p1: Tensor, p2: Tensor, channel_dim: int) -> Tensor:
    """z sigmoid(beta z) + p2 x with z = (p1 - p2) x."""
    beta, p1, p2 = (along_samples(p.squeeze(-1), x, channel_dim) for p in (beta, p1, p2))
    difference = (p1 - p2) * x
    return difference * (beta * difference).sigmoid() + p2 * x


# the kernel and its variant; that of lines follows from their number
_FORMS: dict[Callable[..., Tensor], tuple[str, int]] = {
    lines: ("lines", 0),
    mapped_lines: ("mapped_lines", 0),
    scale: ("scale", 0),
    scale_relu: ("scale", 1),
    relu_scale: ("scale", 2),
    acon: ("acon", 0),
}


def gated(
    form: Callable[..., Tensor],
    statistic: Callable[..., Any],
    x: Tensor,
    network: Callable[..., tuple[Tensor, ...]],
    *parameters: Tensor,
    channel_dim: int,
    attention: Tensor | None = None,
    fuse: bool = True,
) -> Tensor:
    """``form(x, *network(statistic(x)))``, fused where that can be.

    Args:
        form, statistic: of those above; with ``scale_relu``, the statistic is of relu(x).
        network: from the statistic to the form's coefficients, in any dtype.
        parameters: of the network, for the rule of dispatch.
        attention: (C,), for ``mean_and_map``, whose two results the network takes.
        fuse: false where the kernels are known not to do, as for more than ``MOST_LINES`` lines.

    Shape:
        that of ``x``, dtype and memory format too; other layouts than planes of positions and rows of channels, each
        sample in one piece, go to the reference.
    """
    weights = () if attention is None else (attention,)
    after_relu = form is scale_relu
    # without positions there is nothing to sum
    fuse = fuse and x.ndim > 2 and library.fusable(x, *parameters, *weights)
    memory = _memory(x, channel_dim) if fuse else None
    if memory is None:
        if after_relu:  # once for both
            x, form = x.relu(), scale
        found = statistic(x, *weights, channel_dim)
        return form(x, *network(*found) if weights else network(found), channel_dim)
    statistic = _OF_RELU[statistic] if after_relu else statistic
    # nobody else sees this x
    *found, x = _Statistic.apply(statistic, channel_dim, memory, x, *weights)
    coefficients = [values.to(x.dtype) for values in network(*found)]
    y: Tensor = _Form.apply(form, channel_dim, memory, x, *coefficients)
    return y


@dataclass(frozen=True, slots=True)
class _Memory:
    """How samples lie: one plane after another, or rows of channels, one for each position."""

    samples: int
    channels: int
    positions: int
    rows: bool

    def for_all_channels(self) -> "_Memory":
        """With one channel, for coefficients that are the same for all."""
        return _Memory(self.samples, 1, self.channels * self.positions, False)


def _memory(x: Tensor, channel_dim: int) -> _Memory | None:
    channels, shape, strides = channel_dim % x.ndim, x.shape, x.stride()
    places = x.numel() // (shape[0] * shape[channels])
    for rows in (True, False):
        order = [dim for dim in range(1, x.ndim) if dim != channels]
        order = [0, *order, channels] if rows else [0, channels, *order]
        expected = 1
        for dim in reversed(order):
            if shape[dim] > 1 and strides[dim] != expected:
                break
            expected *= shape[dim]
        else:
            if not rows or shape[channels] > 1:
                return _Memory(shape[0], shape[channels], places, rows)
    return None


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return library.function(f"gate_{name}_{{}}", dtype, "iiiiiiippppppipid")


def _operands(tensors: list[Tensor]) -> Any:
    """Of contiguous (N or 1, C or 1, numbers) each: its address, steps from sample to sample and channel to channel."""
    entries = []
    for tensor in tensors:
        samples, channels, numbers = tensor.shape
        entries += [
            tensor.data_ptr(),
            channels * numbers if samples > 1 else 0,
            numbers if channels > 1 else 0,
            numbers,
        ]
    return (ctypes.c_int64 * len(entries))(*entries)


def _run(
    kernel: tuple[str, int, bool],
    memory: _Memory,
    x: Tensor,
    *,
    g: Tensor | None = None,
    out: Tensor | None = None,
    map: Tensor | None = None,
    dmap: Tensor | None = None,
    given: list[Tensor],
    wanted: list[Tensor],
    divisor: int = 1,
) -> None:
    name, variant, back = kernel
    if name.endswith("lines"):
        variant = int(given[0].shape[2] == 4)  # two lines have a kernel of their own
    _kernel(name, x.dtype)(
        variant,
        back,
        memory.samples,
        memory.channels,
        memory.positions,
        memory.rows,
        torch.get_num_threads(),
        x.data_ptr(),
        None if g is None else g.data_ptr(),
        None if out is None else out.data_ptr(),
        None if map is None else map.data_ptr(),
        None if dmap is None else dmap.data_ptr(),
        _operands(given),
        len(given),
        _operands(wanted),
        len(wanted),
        divisor,
    )


class _Statistic(torch.autograd.Function):
    """(statistic of x, x); saves x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        statistic: Callable[..., Any],
        channel_dim: int,
        memory: _Memory,
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.statistic, ctx.channel_dim, ctx.memory = statistic, channel_dim, memory
        ctx.set_materialize_grads(False)
        weights = tuple(w.contiguous() for w in weights)
        ctx.save_for_backward(x, *weights)
        variant, averaged = _STATISTICS[statistic]
        sums = x.new_empty(memory.samples, memory.channels, 1)
        maps = [x.new_empty(memory.samples, memory.positions) for _ in weights]
        _run(
            ("statistic", variant, False),
            memory,
            x,
            dmap=maps[0] if maps else None,
            given=[w.view(1, -1, 1) for w in weights],
            wanted=[sums],
            divisor=memory.positions if averaged else 1,
        )
        return sums.squeeze(-1), *maps, x.detach()  # returned as it is, it would be a view

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled() or not all(map(library.plain, gradients)):
            return None, None, None, *_Statistic.through_reference(ctx, gradients, x, *weights)
        d_sums, *d_maps, dx = (g for g in gradients if g is not None)
        variant, averaged = _STATISTICS[ctx.statistic]
        d_sums = d_sums / ctx.memory.positions if averaged else d_sums.contiguous()
        d_weights = [torch.empty_like(w) for w in weights]
        _run(
            ("statistic", variant, True),
            ctx.memory,
            x,
            g=dx,
            out=dx,  # made by the form's node for this one alone
            map=d_maps[0].contiguous() if d_maps else None,
            given=[d_sums.unsqueeze(-1), *[w.view(1, -1, 1) for w in weights]],
            wanted=[d.view(1, -1, 1) for d in d_weights],
        )
        return None, None, None, dx, *d_weights

    @staticmethod
    def through_reference(
        ctx: Any, gradients: tuple[Tensor | None, ...], *inputs: Tensor
    ) -> list[Tensor | None]:
        """The same by plain operations."""
        *g, dx = gradients
        need = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            views = [value.view_as(value) for value in inputs]
            found = ctx.statistic(*views, ctx.channel_dim)
            outputs = found if len(inputs) > 1 else (found,)
            known = [i for i, d in enumerate(g) if d is not None]
            wanted = [view for view, needed in zip(views, need, strict=True) if needed]
            parts = iter(
                torch.autograd.grad(
                    [outputs[i] for i in known],
                    wanted,
                    [g[i] for i in known],
                    create_graph=True,
                    allow_unused=True,
                )
            )
            results = [next(parts) if needed else None for needed in need]
            if results[0] is not None and dx is not None:
                results[0] = results[0] + dx
        return results


class _Form(torch.autograd.Function):
    """A form of x; saves x, coefficients and map. Its gradient of x is a tensor of its own."""

    @staticmethod
    def forward(
        ctx: Any, form: Callable[..., Tensor], channel_dim: int, memory: _Memory, x: Tensor, *values: Tensor
    ) -> Tensor:
        values = tuple(v.contiguous() for v in values)
        ctx.save_for_backward(x, *values)
        if values[0].shape[1] == 1:
            memory = memory.for_all_channels()
        ctx.form, ctx.channel_dim, ctx.memory = form, channel_dim, memory
        y = torch.empty_like(x)
        maps, coefficients = _split(values)
        _run((*_FORMS[form], False), memory, x, out=y, map=maps, given=coefficients, wanted=[])
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *values = ctx.saved_tensors
        if torch.is_grad_enabled() or not library.plain(g):
            reference = partial(ctx.form, channel_dim=ctx.channel_dim)
            needed = ctx.needs_input_grad[3:]
            return None, None, None, *library.through_reference(reference, (x, *values), needed, g)
        dx, found = torch.empty_like(x), [torch.empty_like(v) for v in values]
        maps, coefficients = _split(values)
        dmaps, wanted = _split(found)
        _run(
            (*_FORMS[ctx.form], True),
            ctx.memory,
            x,
            g=library.alike(g, x),
            out=dx,
            map=maps,
            dmap=dmaps,
            given=coefficients,
            wanted=wanted,
        )
        return None, None, None, dx, *found


def _split(values: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
    """The map, if there is one, and the coefficients."""
    return (values[-1], [*values[:-1]]) if values[-1].ndim == 2 else (None, [*values])
