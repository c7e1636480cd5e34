"""FReLU and its control: max(x, T) or max(0, T), T being batch norm of a depthwise window, or the sum of two such.

The window is computed anew wherever it is needed, from neighbors that are in the cache; nothing of the input's size is
saved. Backward writes the gradient of the window's output once, as that of the input is a window over it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from activations.kernels.gpu import launch
from activations.kernels.gpu.units import added, no_sums

BLOCK = 512  # elements of a tile


@triton.jit
def _tile(
    tile,
    group,
    samples,
    channels,
    height,
    width,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    """Return of a tile's elements, some positions of some channels: address, whether there is one, row and column."""
    channel = group * across + tl.arange(0, across)[None, :]
    lanes = tl.arange(0, positions)[:, None]
    if wide:
        at = tl.full((), positions, tl.int64) * tile + lanes
        plane = tl.full((), 1, tl.int64) * height * width
    else:
        at = tile * positions + lanes
        plane = height * width
    sample, place = at // plane, at % plane
    row, column = place // width, place % width
    mask = (sample < samples) & (channel < channels)
    if rows:
        offsets = at.to(tl.int64) * channels + channel
    else:
        offsets = (sample.to(tl.int64) * channels + channel) * plane + place
    return offsets, mask, row, column


@triton.jit
def _weights(weight_ptr, channel, inside, count: tl.constexpr):
    """Return the weights of the channels' windows as a tuple."""
    weights = ()
    for k in tl.static_range(count):
        weights = weights + (tl.load(weight_ptr + channel * count + k, inside, other=0.0).to(tl.float32),)
    return weights


@triton.jit
def _neighbor(
    x_ptr,
    offsets,
    mask,
    row,
    column,
    height,
    width,
    step,
    down: tl.constexpr,
    right: tl.constexpr,
):
    """Return the elements ``down`` rows below and ``right`` columns beside those of a tile; 0 outside the image."""
    there = (
        mask & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
    )
    away = tl.full((), 1, tl.int64) * (down * width + right) * step
    return tl.load(x_ptr + offsets + away, there, other=0.0).to(tl.float32)


@triton.jit
def _window(
    x_ptr,
    offsets,
    mask,
    row,
    column,
    height,
    width,
    step,
    weights,
    high: tl.constexpr,
    broad: tl.constexpr,
    sign: tl.constexpr,
):
    """Return the sums of neighbors times weights; ``sign``: -1 for the gradient, which goes the other way."""
    z = 0.0
    for i in tl.static_range(high):
        for j in tl.static_range(broad):
            z += weights[i * broad + j] * _neighbor(
                x_ptr,
                offsets,
                mask,
                row,
                column,
                height,
                width,
                step,
                sign * (i - high // 2),
                sign * (j - broad // 2),
            )
    return z


@triton.jit
def _load_branches(weights, biases, channel, inside, sizes: tl.constexpr, biased: tl.constexpr):
    """Return each branch's weights, and its bias or 0."""
    loaded = ()
    offsets = ()
    for b in tl.static_range(len(sizes)):
        loaded = loaded + (_weights(weights[b], channel, inside, sizes[b][0] * sizes[b][1]),)
        if biased:
            offsets = offsets + (tl.load(biases[b] + channel, inside, other=0.0).to(tl.float32),)
        else:
            offsets = offsets + (0.0,)
    return loaded, offsets


@triton.jit
def _load_norms(norms_ptr, channels, channel, inside, branches: tl.constexpr):
    """Return mean, 1 / std, gamma and beta of each branch, from (branches, 4, channels)."""
    loaded = ()
    for b in tl.static_range(branches):
        one = ()
        for k in tl.static_range(4):
            one = one + (tl.load(norms_ptr + (b * 4 + k) * channels + channel, inside, other=0.0),)
        loaded = loaded + (one,)
    return loaded


@triton.jit
def _branches(
    x_ptr,
    offsets,
    mask,
    row,
    column,
    height,
    width,
    step,
    weights,
    biases,
    norms,
    sizes: tl.constexpr,
):
    """Return T, and the normal output of each branch's window."""
    top = 0.0
    normal = ()
    for b in tl.static_range(len(sizes)):
        z = biases[b] + _window(
            *(x_ptr, offsets, mask, row, column, height, width, step, weights[b]),
            *(sizes[b][0], sizes[b][1], 1),
        )
        normal = normal + ((z - norms[b][0]) * norms[b][1],)
        top += normal[b] * norms[b][2] + norms[b][3]
    return top, normal


@triton.jit
def statistics_kernel(
    x_ptr,
    stats_ptr,
    weights,
    biases,
    samples,
    channels,
    height,
    width,
    tiles,
    sizes: tl.constexpr,
    biased: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    """Write count, mean and sum of squared deviations of the window's output: (programs, branches, 3, channels)."""
    group = tl.program_id(0)
    channel = group * across + tl.arange(0, across)[None, :]
    inside = channel < channels
    step = channels if rows else 1
    loaded, offset = _load_branches(weights, biases, channel, inside, sizes, biased)
    count = tl.zeros((positions, across), tl.float32)
    means = no_sums(len(sizes), positions, across)
    squares = no_sums(len(sizes), positions, across)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        offsets, mask, row, column = _tile(
            tile, group, samples, channels, height, width, rows, wide, positions, across
        )
        count += tl.where(mask, 1.0, 0.0)
        part = tl.where(mask, 1.0 / tl.where(mask, count, 1.0), 0.0)
        new_means = ()
        new_squares = ()
        for b in tl.static_range(len(sizes)):
            z = offset[b] + _window(
                *(x_ptr, offsets, mask, row, column, height, width, step, loaded[b]),
                *(sizes[b][0], sizes[b][1], 1),
            )
            away = z - means[b]
            mean = means[b] + tl.where(mask, away * part, 0.0)
            new_means = new_means + (mean,)
            new_squares = new_squares + (squares[b] + tl.where(mask, away * (z - mean), 0.0),)
        means = new_means
        squares = new_squares
    total = tl.sum(count, 0)[None, :]
    at = stats_ptr + tl.program_id(1) * len(sizes) * 3 * channels + channel
    for b in tl.static_range(len(sizes)):
        mean = tl.sum(means[b] * count, 0)[None, :] / tl.where(total > 0, total, 1.0)
        away = means[b] - mean
        square = tl.sum(squares[b] + tl.where(count > 0, count * away * away, 0.0), 0)[None, :]
        tl.store(at + (b * 3) * channels, total, inside)
        tl.store(at + (b * 3 + 1) * channels, mean, inside)
        tl.store(at + (b * 3 + 2) * channels, square, inside)


@triton.jit
def forward_kernel(
    x_ptr,
    y_ptr,
    norms_ptr,
    weights,
    biases,
    samples,
    channels,
    height,
    width,
    tiles,
    sizes: tl.constexpr,
    biased: tl.constexpr,
    with_input: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    group = tl.program_id(0)
    channel = group * across + tl.arange(0, across)[None, :]
    inside = channel < channels
    step = channels if rows else 1
    loaded, offset = _load_branches(weights, biases, channel, inside, sizes, biased)
    norms = _load_norms(norms_ptr, channels, channel, inside, len(sizes))
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        offsets, mask, row, column = _tile(
            tile, group, samples, channels, height, width, rows, wide, positions, across
        )
        top, _normal = _branches(
            *(x_ptr, offsets, mask, row, column, height, width, step, loaded, offset, norms), sizes
        )
        if with_input:
            x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
            y = tl.where((top > x) | (top != top), top, x)
        else:
            y = tl.where(top < 0, 0.0, top)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _down(x_ptr, g_ptr, offsets, mask, top, with_input: tl.constexpr):
    """Return the gradients of T and, beside it, of x; T and x share it where they are equal, as in ``torch.maximum``."""
    g = tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
    if with_input:
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        share = tl.where(top < x, 0.0, tl.where(top == x, 0.5, 1.0))
        return g * share, g * (1.0 - share)
    return tl.where(top <= 0, 0.0, g), g * 0.0


@triton.jit
def sums_kernel(
    x_ptr,
    g_ptr,
    sums_ptr,
    norms_ptr,
    weights,
    biases,
    samples,
    channels,
    height,
    width,
    tiles,
    sizes: tl.constexpr,
    biased: tl.constexpr,
    with_input: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    """Write the sums of dT and of dT times each branch's normal output: (programs, 1 + branches, channels)."""
    group = tl.program_id(0)
    channel = group * across + tl.arange(0, across)[None, :]
    inside = channel < channels
    step = channels if rows else 1
    loaded, offset = _load_branches(weights, biases, channel, inside, sizes, biased)
    norms = _load_norms(norms_ptr, channels, channel, inside, len(sizes))
    total = no_sums(len(sizes) + 1, positions, across)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        offsets, mask, row, column = _tile(
            tile, group, samples, channels, height, width, rows, wide, positions, across
        )
        top, normal = _branches(
            *(x_ptr, offsets, mask, row, column, height, width, step, loaded, offset, norms), sizes
        )
        down, _beside = _down(x_ptr, g_ptr, offsets, mask, top, with_input)
        terms = (down,)
        for b in tl.static_range(len(sizes)):
            terms = terms + (down * normal[b],)
        total = added(total, terms, mask, len(sizes) + 1)
    at = sums_ptr + tl.program_id(1) * (len(sizes) + 1) * channels + channel
    for k in tl.static_range(len(sizes) + 1):
        tl.store(at + k * channels, tl.sum(total[k], 0)[None, :], inside)


@triton.jit
def window_kernel(
    x_ptr,
    g_ptr,
    dx_ptr,
    dz_ptr,
    sums_ptr,
    norms_ptr,
    means_ptr,
    weights,
    biases,
    samples,
    channels,
    height,
    width,
    tiles,
    size,
    sizes: tl.constexpr,
    biased: tl.constexpr,
    with_input: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    """Write the gradient of each branch's window to ``dz``, that of x beside T to ``dx``, and the sums for the weights.

    The sums (programs, numbers, channels) are those of every weight of every branch, then of every bias. ``means``,
    (1 + branches, channels), are the means of what ``sums_kernel`` sums up, 0 where the statistics are not the batch's.
    """
    group = tl.program_id(0)
    channel = group * across + tl.arange(0, across)[None, :]
    inside = channel < channels
    step = channels if rows else 1
    loaded, offset = _load_branches(weights, biases, channel, inside, sizes, biased)
    norms = _load_norms(norms_ptr, channels, channel, inside, len(sizes))
    middle = tl.load(means_ptr + channel, inside, other=0.0)
    count: tl.constexpr = _numbers(sizes)
    total = no_sums(count, positions, across)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        offsets, mask, row, column = _tile(
            tile, group, samples, channels, height, width, rows, wide, positions, across
        )
        top, normal = _branches(
            *(x_ptr, offsets, mask, row, column, height, width, step, loaded, offset, norms), sizes
        )
        down, beside = _down(x_ptr, g_ptr, offsets, mask, top, with_input)
        tl.store(dx_ptr + offsets, beside.to(dx_ptr.dtype.element_ty), mask)
        terms = ()
        ends = ()
        for b in tl.static_range(len(sizes)):
            turned = tl.load(means_ptr + (b + 1) * channels + channel, inside, other=0.0)
            dz = norms[b][1] * norms[b][2] * (down - middle - normal[b] * turned)
            tl.store(dz_ptr + b * size + offsets, dz, mask)
            ends = ends + (dz,)
            for i in tl.static_range(sizes[b][0]):
                for j in tl.static_range(sizes[b][1]):
                    neighbor = _neighbor(
                        *(x_ptr, offsets, mask, row, column, height, width, step),
                        *(i - sizes[b][0] // 2, j - sizes[b][1] // 2),
                    )
                    terms = terms + (dz * neighbor,)
        total = added(total, terms + ends, mask, count)
    at = sums_ptr + tl.program_id(1) * count * channels + channel
    for k in tl.static_range(count):
        tl.store(at + k * channels, tl.sum(total[k], 0)[None, :], inside)


@triton.constexpr_function
def _numbers(sizes):
    return sum(high * broad for high, broad in sizes) + len(sizes)


@triton.jit
def input_kernel(
    dx_ptr,
    dz_ptr,
    weights,
    samples,
    channels,
    height,
    width,
    tiles,
    size,
    sizes: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    positions: tl.constexpr,
    across: tl.constexpr,
):
    """Add to ``dx`` what comes through the windows."""
    group = tl.program_id(0)
    channel = group * across + tl.arange(0, across)[None, :]
    inside = channel < channels
    step = channels if rows else 1
    loaded = ()
    for b in tl.static_range(len(sizes)):
        loaded = loaded + (_weights(weights[b], channel, inside, sizes[b][0] * sizes[b][1]),)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        offsets, mask, row, column = _tile(
            tile, group, samples, channels, height, width, rows, wide, positions, across
        )
        dx = tl.load(dx_ptr + offsets, mask, other=0.0).to(tl.float32)
        for b in tl.static_range(len(sizes)):
            dx += _window(
                *(dz_ptr + b * size, offsets, mask, row, column, height, width, step, loaded[b]),
                *(sizes[b][0], sizes[b][1], -1),
            )
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


# ---- Calls


class Branch(NamedTuple):
    """One convolution and its norm, all (C,) but for the weight, contiguous."""

    weight: Tensor  # (C, 1, 3, 3), (C, 1, 1, 3) or (C, 1, 3, 1)
    bias: Tensor | None
    gamma: Tensor
    beta: Tensor


class _Call(NamedTuple):
    grid: tuple[int, int]
    tensors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # weights, biases
    shape: tuple[int, ...]  # of x, and the number of tiles
    settings: dict[str, Any]


def _call(x: Tensor, branches: Sequence[Branch]) -> _Call:
    samples, channels, height, width = x.shape
    rows = not x.is_contiguous() or height * width == 1
    across = min(launch.power(channels), 64) if rows else 1
    positions = BLOCK // across
    tiles, groups = -(-samples * height * width // positions), -(-channels // across)
    programs = max(1, min(tiles, launch.PROGRAMS * launch.processors(x) // groups))
    weights = tuple(branch.weight for branch in branches)
    biases = tuple(branch.weight if branch.bias is None else branch.bias for branch in branches)
    return _Call(
        (groups, programs),
        (weights, biases),
        (*x.shape, tiles),
        {
            "sizes": tuple(tuple(weight.shape[2:]) for weight in weights),
            "rows": rows,
            "wide": samples * height * width >= 2**31 - BLOCK,
            "positions": positions,
            "across": across,
        },
    )


def statistics(x: Tensor, branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (branches, C), in float64, of each window's output."""
    call = _call(x, branches)
    stats = x.new_empty(call.grid[1], len(branches), 3, x.shape[1], dtype=torch.float32)
    launch.launch(
        *(statistics_kernel, call.grid, x, stats, *call.tensors, *call.shape),
        biased=branches[0].bias is not None,
        **call.settings,
    )
    count, mean, square = stats.double().unbind(2)  # (programs, branches, C)
    total = count.sum(0)
    middle = (count * mean).sum(0) / total
    return middle, (square + count * (mean - middle).square()).sum(0) / total


def norms(branches: Sequence[Branch], mean: Tensor, inverse: Tensor) -> Tensor:
    """Return (branches, 4, C) in float32: mean, 1 / std, gamma and beta."""
    gamma, beta = (torch.stack([getattr(b, name).float() for b in branches]) for name in ("gamma", "beta"))
    return torch.stack([mean.float(), inverse.float(), gamma, beta], 1)


def forward(x: Tensor, branches: Sequence[Branch], norms: Tensor, *, with_input: bool) -> Tensor:
    """Return max(x, T) (``with_input``) or max(0, T) of ``x``, contiguous or channels_last."""
    call = _call(x, branches)
    y = torch.empty_like(x)
    launch.launch(
        *(forward_kernel, call.grid, x, y, norms, *call.tensors, *call.shape),
        biased=branches[0].bias is not None,
        with_input=with_input,
        **call.settings,
    )
    return y


def backward(
    g: Tensor, x: Tensor, branches: Sequence[Branch], norms: Tensor, *, with_input: bool, train: bool
) -> tuple[Tensor, list[Branch]]:
    """Return the gradients of ``x`` and of each branch, from ``g`` in the layout of ``x``; ``train``: also by the statistics."""
    call = _call(x, branches)
    programs, channels, count = call.grid[1], x.shape[1], len(branches)
    both = {"biased": branches[0].bias is not None, "with_input": with_input, **call.settings}
    sums = x.new_empty(programs, 1 + count, channels, dtype=torch.float32)
    launch.launch(sums_kernel, call.grid, x, g, sums, norms, *call.tensors, *call.shape, **both)
    totals = sums.sum(0)
    means = totals * (channels / x.numel()) if train else torch.zeros_like(totals)

    sizes = [weight.shape[2] * weight.shape[3] for weight in call.tensors[0]]
    dx = torch.empty_like(x)
    dz = x.new_empty(count * x.numel(), dtype=torch.float32)
    sums = x.new_empty(programs, sum(sizes) + count, channels, dtype=torch.float32)
    launch.launch(
        *(window_kernel, call.grid, x, g, dx, dz, sums, norms, means),
        *(*call.tensors, *call.shape, x.numel()),
        **both,
    )
    launch.launch(input_kernel, call.grid, dx, dz, call.tensors[0], *call.shape, x.numel(), **call.settings)
    parts = sums.sum(0).split([*sizes, *[1] * count])
    gradients = [
        Branch(
            weight=part.T.reshape(branch.weight.shape).to(branch.weight.dtype),
            bias=None if branch.bias is None else bias[0].to(branch.bias.dtype),
            gamma=totals[b + 1].to(branch.gamma.dtype),
            beta=totals[0].to(branch.beta.dtype),
        )
        for b, (branch, part, bias) in enumerate(zip(branches, parts[:count], parts[count:], strict=True))
    ]
    return dx, gradients
