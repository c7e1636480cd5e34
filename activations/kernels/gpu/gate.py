"""Units that weigh a sample by its own statistics: the statistics, the forms, and the gradients of both.

A form is a pointwise unit whose numbers differ from sample to sample. Forward reads the input for the statistics and again
for the form, backward for the gradients of the form's numbers and again, once the network between them has been
differentiated, for that of the input. The network is a few torch operations on tensors (N, C).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from activations.kernels.gate import Memory
from activations.kernels.gpu import launch, units

# ---- Statistics: what is summed up over the positions, and its derivative. See ``activations.kernels.gate``.


@triton.jit
def identity(x):
    return x, tl.where(x == x, 1.0, 1.0)


@triton.jit
def absolute(x):
    return tl.abs(x), tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def square(x):
    return x * x, 2.0 * x


@triton.jit
def rectified(x):
    return units.relu(x), tl.where(x > 0, 1.0, 0.0)


@triton.jit
def rectified_square(x):
    r = units.relu(x)
    return r * r, 2.0 * r


# ---- Forms; ``p`` are the numbers of a sample's channel


@triton.jit
def scale(x, p):
    return p[0] * x


@triton.jit
def scale_backward(x, g, p):
    return g * p[0], (g * x,)


@triton.jit
def scale_relu(x, p):
    return p[0] * units.relu(x)


@triton.jit
def scale_relu_backward(x, g, p):
    return tl.where(x <= 0, 0.0, g * p[0]), (g * units.relu(x),)


@triton.jit
def relu_scale(x, p):
    return units.relu(p[0] * x)


@triton.jit
def relu_scale_backward(x, g, p):
    down = tl.where(p[0] * x <= 0, 0.0, g)
    return down * p[0], (down * x,)


@triton.jit
def acon(x, p):
    return units.acon(x, (p[1], p[2], p[0]))


@triton.jit
def acon_backward(x, g, p):
    dx, terms = units.acon_backward(x, g, (p[1], p[2], p[0]))
    return dx, (terms[2], terms[0], terms[1])


@triton.jit
def lines(x, p):
    count: tl.constexpr = len(p) // 2
    y = p[0] * x + p[count]
    for k in tl.static_range(1, count):
        z = p[k] * x + p[count + k]
        y = tl.where((z > y) | (z != z), z, y)
    return y


@triton.jit
def lines_backward(x, g, p):
    """Lines that meet share the gradient, as in ``torch.maximum``."""
    count: tl.constexpr = len(p) // 2
    y = p[0] * x + p[count]
    shares = (tl.where(y == y, g, g),)
    for k in tl.static_range(1, count):
        z = p[k] * x + p[count + k]
        before = tl.where(y > z, 1.0, tl.where(y == z, 0.5, 0.0))
        reduced = ()
        for j in tl.static_range(k):
            reduced = reduced + (shares[j] * before,)
        shares = reduced + (g * (1.0 - before),)
        y = tl.where((z > y) | (z != z), z, y)
    dx = shares[0] * p[0]
    slopes = (shares[0] * x,)
    for k in tl.static_range(1, count):
        dx += shares[k] * p[k]
        slopes = slopes + (shares[k] * x,)
    return dx, slopes + shares


# ---- Kernels. Planes of positions, (samples, channels, positions), or ``rows`` of channels, (samples, positions, channels)


@triton.jit
def _units(
    group, samples, channels, positions, rows: tl.constexpr, height: tl.constexpr, width: tl.constexpr
):
    """Return of the units of a group: sample, channel, address, whether there is such a unit; and the positions in a tile."""
    if rows:
        blocks = tl.cdiv(channels, width)
        channel = (group % blocks) * width + tl.arange(0, width)[None, :]
        sample = group // blocks + channel * 0
        inside = channel < channels
        base = sample.to(tl.int64) * positions * channels + channel
        lanes = tl.arange(0, height)[:, None]
    else:
        unit = group * height + tl.arange(0, height)[:, None]
        sample, channel = unit // channels, unit % channels
        inside = unit < samples * channels
        base = unit.to(tl.int64) * positions
        lanes = tl.arange(0, width)[None, :]
    return sample, channel, base, inside, lanes


@triton.jit
def _elements(at, base, inside, channels, positions, rows: tl.constexpr):
    """Return of the elements at some positions of units: position, address, and whether there is one."""
    return at, base + at * (channels if rows else 1), inside & (at < positions)


@triton.jit
def _load_numbers(tensors, counts: tl.constexpr, channels, sample, channel, inside):
    """Return the numbers of each unit; ``counts``: of each tensor whether by sample, whether by channel, and how many."""
    p = ()
    for k in tl.static_range(len(counts)):
        row = (sample + channel) * 0  # a block, as the mask is
        if counts[k][0]:
            row += sample
        if counts[k][1]:
            row = row * channels + channel
        for j in tl.static_range(counts[k][2]):
            p = p + (tl.load(tensors[k] + row * counts[k][2] + j, inside, other=0.0).to(tl.float32),)
    return p


@triton.jit
def statistic_kernel(
    x_ptr,
    sums_ptr,
    samples,
    channels,
    positions,
    statistic: tl.constexpr,
    rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    sample, channel, base, inside, lanes = _units(
        tl.program_id(0), samples, channels, positions, rows, height, width
    )
    total = tl.zeros((height, width), tl.float32)
    each: tl.constexpr = height if rows else width
    for tile in range(tl.program_id(1), tl.cdiv(positions, each), tl.num_programs(1)):
        _at, offsets, mask = _elements(tile * each + lanes, base, inside, channels, positions, rows)
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        value, _slope = statistic(x)
        total += tl.where(mask, value, 0.0)
    axis: tl.constexpr = 0 if rows else 1
    place = sums_ptr + tl.program_id(1) * samples * channels + sample * channels + channel
    tl.store(tl.ravel(place), tl.sum(total, axis), tl.ravel(inside))


@triton.jit
def form_kernel(
    x_ptr,
    y_ptr,
    map_ptr,
    tensors,
    samples,
    channels,
    positions,
    form: tl.constexpr,
    counts: tl.constexpr,
    mapped: tl.constexpr,
    rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    sample, channel, base, inside, lanes = _units(
        tl.program_id(0), samples, channels, positions, rows, height, width
    )
    p = _load_numbers(tensors, counts, channels, sample, channel, inside)
    each: tl.constexpr = height if rows else width
    for tile in range(tl.program_id(1), tl.cdiv(positions, each), tl.num_programs(1)):
        at, offsets, mask = _elements(tile * each + lanes, base, inside, channels, positions, rows)
        y = form(tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32), p)
        if mapped:
            y *= tl.load(map_ptr + sample * positions + at, mask, other=0.0)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def sums_kernel(
    x_ptr,
    g_ptr,
    sums_ptr,
    map_ptr,
    tensors,
    samples,
    channels,
    positions,
    form: tl.constexpr,
    counts: tl.constexpr,
    sums: tl.constexpr,
    mapped: tl.constexpr,
    g_is_map: tl.constexpr,
    rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    sample, channel, base, inside, lanes = _units(
        tl.program_id(0), samples, channels, positions, rows, height, width
    )
    p = _load_numbers(tensors, counts, channels, sample, channel, inside)
    total = units.no_sums(sums, height, width)
    each: tl.constexpr = height if rows else width
    for tile in range(tl.program_id(1), tl.cdiv(positions, each), tl.num_programs(1)):
        at, offsets, mask = _elements(tile * each + lanes, base, inside, channels, positions, rows)
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        if g_is_map:
            g = tl.load(g_ptr + sample * positions + at, mask, other=0.0)
        else:
            g = tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
        if mapped:
            g *= tl.load(map_ptr + sample * positions + at, mask, other=0.0)
        _dx, terms = form(x, g, p)
        total = units.added(total, terms, mask, sums)
    axis: tl.constexpr = 0 if rows else 1
    # (parts, samples, channels, sums)
    place = sums_ptr + ((tl.program_id(1) * samples + sample) * channels + channel) * sums
    for k in tl.static_range(sums):
        tl.store(tl.ravel(place) + k, tl.sum(total[k], axis), tl.ravel(inside))


@triton.jit
def input_kernel(
    x_ptr,
    g_ptr,
    dx_ptr,
    map_ptr,
    down_ptr,
    down_map_ptr,
    attention_ptr,
    tensors,
    samples,
    channels,
    positions,
    form: tl.constexpr,
    statistic: tl.constexpr,
    counts: tl.constexpr,
    mapped: tl.constexpr,
    rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    sample, channel, base, inside, lanes = _units(
        tl.program_id(0), samples, channels, positions, rows, height, width
    )
    p = _load_numbers(tensors, counts, channels, sample, channel, inside)
    down = tl.load(down_ptr + sample * channels + channel, inside, other=0.0)
    if mapped:
        attention = tl.load(attention_ptr + channel, inside, other=0.0).to(tl.float32)
    each: tl.constexpr = height if rows else width
    for tile in range(tl.program_id(1), tl.cdiv(positions, each), tl.num_programs(1)):
        at, offsets, mask = _elements(tile * each + lanes, base, inside, channels, positions, rows)
        x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
        if mapped:
            g *= tl.load(map_ptr + sample * positions + at, mask, other=0.0)
        dx, _terms = form(x, g, p)
        _value, slope = statistic(x)
        dx += down * slope
        if mapped:
            dx += attention * tl.load(down_map_ptr + sample * positions + at, mask, other=0.0)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask)


@triton.jit
def map_kernel(
    x_ptr,
    g_ptr,
    map_ptr,
    tensors,
    samples,
    channels,
    positions,
    form: tl.constexpr,
    counts: tl.constexpr,
    with_g: tl.constexpr,
    rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Write the sums of form(x) over the channels, or of g form(x), one for each position (samples, positions)."""
    blocks = tl.cdiv(positions, height if rows else width)
    sample = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    if rows:
        at = block * height + tl.arange(0, height)[:, None]
        lanes = tl.arange(0, width)[None, :]
    else:
        at = block * width + tl.arange(0, width)[None, :]
        lanes = tl.arange(0, height)[:, None]
    total = tl.zeros((height, width), tl.float32)
    each: tl.constexpr = width if rows else height
    base = sample.to(tl.int64) * channels * positions
    for tile in range(tl.cdiv(channels, each)):
        channel = tile * each + lanes
        inside = channel < channels
        mask = inside & (at < positions)
        if rows:
            offsets = base + at * channels + channel
        else:
            offsets = base + channel * positions + at
        p = _load_numbers(tensors, counts, channels, sample, channel, inside)
        value = form(tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32), p)
        if with_g:
            value *= tl.load(g_ptr + offsets, mask, other=0.0).to(tl.float32)
        total += tl.where(mask, value, 0.0)
    axis: tl.constexpr = 1 if rows else 0
    tl.store(map_ptr + sample * positions + tl.ravel(at), tl.sum(total, axis), tl.ravel(at) < positions)


# ---- Calls


class _Grid(NamedTuple):
    grid: tuple[int, int]
    tile: dict[str, Any]


def _grid(memory: Memory, sums: int, processors: int) -> _Grid:
    """Return how the units of a tensor are dealt to programs: a tile is one position of some units, or some of one."""
    samples, channels, positions, rows = memory
    size = max(launch.FEWEST, min(launch.MOST, launch.REGISTERS // launch.power(sums + 1)))
    if rows:
        width = min(launch.power(channels), 64)
        height = min(launch.power(positions), size // width)
        groups, tiles = samples * -(-channels // width), -(-positions // height)
    else:
        width = launch.width_of(positions, size)
        height = min(size // width, launch.power(samples * channels))
        groups, tiles = -(-samples * channels // height), -(-positions // width)
    parts = min(tiles, -(-launch.PROGRAMS * processors // groups))
    return _Grid((groups, parts), {"rows": rows, "height": height, "width": width})


def _counts(tensors: Sequence[Tensor]) -> tuple[tuple[bool, bool, int], ...]:
    """Return of contiguous tensors (N or 1, C or 1, numbers) whether by sample, whether by channel, and how many numbers."""
    return tuple((t.shape[0] > 1, t.shape[1] > 1, t.shape[2]) for t in tensors)


def statistic(function: Callable[..., Any], memory: Memory, x: Tensor) -> Tensor:
    """Return the sums (N, C) of a statistic over the positions."""
    (groups, parts), tile = _grid(memory, 1, launch.processors(x))
    sums = x.new_empty(parts, memory.samples, memory.channels, dtype=torch.float32)
    launch.launch(statistic_kernel, (groups, parts), x, sums, *memory[:3], statistic=function, **tile)
    return sums[0] if parts == 1 else sums.sum(0)


def attended(memory: Memory, x: Tensor, attention: Tensor) -> Tensor:
    """Return the sums (N, P) over the channels, weighted with ``attention`` (C,)."""
    return _map(scale, memory, x, None, [attention.view(1, -1, 1)])


def _map(
    form: Callable[..., Any], memory: Memory, x: Tensor, g: Tensor | None, tensors: Sequence[Tensor]
) -> Tensor:
    tile = _grid(memory, 1, launch.processors(x)).tile
    sums = x.new_empty(memory.samples, memory.positions, dtype=torch.float32)
    if memory.rows:
        tile = tile | {"height": min(tile["height"], 16)}
        blocks = -(-memory.positions // tile["height"])
    else:
        tile = tile | {"width": min(tile["width"], 128), "height": min(launch.power(memory.channels), 8)}
        blocks = -(-memory.positions // tile["width"])
    launch.launch(
        *(
            map_kernel,
            (memory.samples * blocks,),
            x,
            x if g is None else g,
            sums,
            tuple(tensors),
            *memory[:3],
        ),
        form=form,
        counts=_counts(tensors),
        with_g=g is not None,
        **tile,
    )
    return sums


def forward(
    form: Callable[..., Any], memory: Memory, x: Tensor, tensors: Sequence[Tensor], map: Tensor | None
) -> Tensor:
    """Return the form of ``x``; ``tensors``: contiguous, (N or 1, C or 1, numbers); ``map``: (N, P) or None."""
    grid, tile = _grid(memory, 0, launch.processors(x))
    y = torch.empty_like(x)
    launch.launch(
        *(form_kernel, grid, x, y, y if map is None else map, tuple(tensors), *memory[:3]),
        form=form,
        counts=_counts(tensors),
        mapped=map is not None,
        **tile,
    )
    return y


def numbers_backward(
    form: Callable[..., Any],
    memory: Memory,
    g: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    map: Tensor | None,
    *,
    g_is_map: bool = False,
) -> list[Tensor]:
    """Return the gradients of ``tensors``; ``form`` is that which returns terms, ``g`` lies like ``x`` or is a map."""
    counts = _counts(tensors)
    numbers = sum(count for _, _, count in counts)
    (groups, parts), tile = _grid(memory, numbers, launch.processors(x))
    sums = x.new_empty(parts, memory.samples, memory.channels, numbers, dtype=torch.float32)
    launch.launch(
        *(
            sums_kernel,
            (groups, parts),
            x,
            g,
            sums,
            sums if map is None else map,
            tuple(tensors),
            *memory[:3],
        ),
        form=form,
        counts=counts,
        sums=numbers,
        mapped=map is not None,
        g_is_map=g_is_map,
        **tile,
    )
    total = sums[0] if parts == 1 else sums.sum(0)
    parts_of = total.split([count for _, _, count in counts], 2)
    return [part.sum_to_size(t.shape) for part, t in zip(parts_of, tensors, strict=True)]


def map_backward(
    form: Callable[..., Any], memory: Memory, g: Tensor, x: Tensor, tensors: Sequence[Tensor]
) -> Tensor:
    """Return the gradient (N, P) of the map that a form is multiplied with."""
    return _map(form, memory, x, g, tensors)


def input_backward(
    form: Callable[..., Any],
    function: Callable[..., Any],
    memory: Memory,
    g: Tensor,
    x: Tensor,
    tensors: Sequence[Tensor],
    down: Tensor,
    map: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """Return the gradient of ``x``.

    Args:
        form: that which returns terms.
        function: the statistic.
        down: (N, C), gradient of the statistic's sums.
        map: the form's map, the gradient of the statistic's, and its attention; or None.
    """
    grid, tile = _grid(memory, 0, launch.processors(x))
    dx = torch.empty_like(x)
    factor, down_map, attention = map or (down, down, down)
    launch.launch(
        *(input_kernel, grid, x, g, dx, factor, down, down_map, attention, tuple(tensors), *memory[:3]),
        form=form,
        statistic=function,
        counts=_counts(tensors),
        mapped=map is not None,
        **tile,
    )
    return dx
