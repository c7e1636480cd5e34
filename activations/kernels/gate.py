"""Units that weigh a sample by its own statistics, fused: DyReLU, GCT, SE-ReLU, MetaACON.

Each is a statistic of the input, sums over the positions of every sample and channel, a small network that makes
coefficients of it, and an element-wise form of the input with these coefficients. Statistics and forms have kernels
(csrc/gate.cpp); networks are a few torch operations on tensors so small that a node of the autograd graph for each
would cost more than the operation, so their gradients are written out and a unit is one node.
"""

import ctypes
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from activations.base import upcast
from activations.kernels import library

MOST_LINES = 8


def positions(x: Tensor, channel_dim: int) -> tuple[int, ...]:
    """Return the dimensions of ``x`` that are neither batch nor channels; none for (N, C)."""
    channels = channel_dim % x.ndim
    return tuple(dim for dim in range(1, x.ndim) if dim != channels)


def along_samples(values: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Return ``values`` (N or 1, C or 1), in x's dtype, shaped to broadcast along x's samples and channels."""
    shape = [1] * x.ndim
    shape[0], shape[channel_dim] = values.shape
    return values.to(x.dtype).view(shape)


# ---- Statistics over the positions, (N, C); (N, C) input has no positions and is its own mean and total.


def mean(x: Tensor, channel_dim: int) -> Tensor:
    """Return the mean; 0 if there are no positions, as a NaN would spoil the network's gradients."""
    if x.ndim < 3:
        return x
    dims = positions(x, channel_dim)
    return x.mean(dims) if all(x.shape[dim] for dim in dims) else x.sum(dims)


def mean_relu(x: Tensor, channel_dim: int) -> Tensor:
    """Return the mean of relu(x)."""
    return mean(x.relu(), channel_dim)


def total(x: Tensor, channel_dim: int) -> Tensor:
    """Return the sum, like all sums in float32 at least."""
    x = upcast(x)
    return x.sum(positions(x, channel_dim)) if x.ndim > 2 else x


def total_relu(x: Tensor, channel_dim: int) -> Tensor:
    """Return the sum of relu(x)."""
    return total(x.relu(), channel_dim)


def total_abs(x: Tensor, channel_dim: int) -> Tensor:
    """Return the sum of |x|."""
    return total(upcast(x).abs(), channel_dim)


def total_square(x: Tensor, channel_dim: int) -> Tensor:
    """Return the sum of x^2."""
    return total(upcast(x).square(), channel_dim)


def total_relu_square(x: Tensor, channel_dim: int) -> Tensor:
    """Return the sum of relu(x)^2."""
    return total_square(x.relu(), channel_dim)


def mean_and_map(x: Tensor, attention: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Return the mean, and the map over positions (N, P), sums over channels weighted with ``attention`` (C,)."""
    shape = [1] * x.ndim
    shape[channel_dim] = -1
    weighted = (x * attention.to(x.dtype).view(shape)).sum(channel_dim)
    return mean(x, channel_dim), weighted.flatten(1)


# Number of the kernel in csrc/gate.cpp, and whether its sum is divided by the number of positions.
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


# ---- Forms; coefficients are (N or 1, C or 1, numbers per channel).


def lines(x: Tensor, coefficients: Tensor, channel_dim: int) -> Tensor:
    """Return max_k (a_k x + b_k); ``coefficients`` are the K slopes, then the K intercepts."""
    terms = [along_samples(term, x, channel_dim) for term in coefficients.unbind(-1)]
    slopes, intercepts = terms[: len(terms) // 2], terms[len(terms) // 2 :]
    y = torch.addcmul(intercepts[0], slopes[0], x)
    for slope, intercept in zip(slopes[1:], intercepts[1:], strict=True):
        y = torch.maximum(y, torch.addcmul(intercept, slope, x))
    return y


def mapped_lines(x: Tensor, coefficients: Tensor, weights: Tensor, channel_dim: int) -> Tensor:
    """Return ``lines`` times the map ``weights`` (N, P)."""
    shape = list(x.shape)
    shape[channel_dim] = 1
    return lines(x, coefficients, channel_dim) * weights.to(x.dtype).view(shape)


def scale(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    """Return gate x."""
    return x * along_samples(gate.squeeze(-1), x, channel_dim)


def scale_relu(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    """Return gate relu(x)."""
    return scale(x.relu(), gate, channel_dim)


def relu_scale(x: Tensor, gate: Tensor, channel_dim: int) -> Tensor:
    """Return relu(gate x)."""
    return scale(x, gate, channel_dim).relu()


def acon(x: Tensor, beta: Tensor, p1: Tensor, p2: Tensor, channel_dim: int) -> Tensor:
    """Return z sigmoid(beta z) + p2 x with z = (p1 - p2) x."""
    beta, p1, p2 = (along_samples(p.squeeze(-1), x, channel_dim) for p in (beta, p1, p2))
    difference = (p1 - p2) * x
    return difference * (beta * difference).sigmoid() + p2 * x


# Name of the kernel and its variant; the variant of lines follows from their number.
_FORMS: dict[Callable[..., Tensor], tuple[str, int]] = {
    lines: ("lines", 0),
    mapped_lines: ("mapped_lines", 0),
    scale: ("scale", 0),
    scale_relu: ("scale", 1),
    relu_scale: ("scale", 2),
    acon: ("acon", 0),
}


class BackwardInputs(NamedTuple):
    """Arguments of a network's ``backward``."""

    statistics: Sequence[Tensor]
    tensors: Sequence[Tensor]  # its parameters, as ``Network.tensors`` returns them
    saved: Sequence[Tensor]  # what ``forward`` returned for it
    gradients: Sequence[Tensor]  # of coefficients and map; may be written to
    needed: Sequence[bool]  # whether gradients are needed: of the statistics, together, and of each tensor


class Network(Protocol):
    """From statistics, (N, C) and for ``mean_and_map`` (N, P) too, to a form's coefficients and map."""

    def __call__(
        self, statistics: Sequence[Tensor], parameters: Sequence[Any]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the form's coefficients and map, in any dtype, and what ``backward`` needs; change nothing in place.

        Args:
            statistics: (N, C), and (N, P) for ``mean_and_map``.
            parameters: tensors or layers, as passed to ``gated``.
        """

    def backward(self, inputs: BackwardInputs) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Return the contiguous gradients of the statistics and of the tensors; anything where none is needed."""

    def tensors(self, parameters: Sequence[Any]) -> Sequence[Tensor] | None:
        """Return the tensors of ``parameters``, or None if a layer among them must be called."""
        return parameters

    def fit(self, tensors: Sequence[Tensor], channels: int) -> bool:
        """Return whether ``tensors`` have the shapes that the kernels assume."""
        return all(tensor.shape == (channels,) for tensor in tensors)

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Return parameters that compute the same from ``tensors``."""
        return tensors

    def forward(
        self, statistics: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the same as a call, without an autograd graph."""
        return self(statistics, self.parameters(tensors))


def gated(
    form: Callable[..., Tensor],
    statistic: Callable[..., Any],
    x: Tensor,
    network: Network,
    *parameters: Any,
    channel_dim: int,
    attention: Tensor | None = None,
    fuse: bool = True,
) -> Tensor:
    """``form(x, *network(statistic(x), parameters))``, fused where that can be.

    Args:
        form, statistic: of those above; with ``scale_relu``, the statistic is of relu(x).
        parameters: of the network, tensors or layers; layers that are no plain ones, or hooked, go to the reference,
            which calls them.
        attention: (C,), for ``mean_and_map``, whose two results the network takes.
        fuse: false where the kernels are known not to do, as for more than ``MOST_LINES`` lines.

    Shape:
        that of ``x``, dtype and memory format too; other layouts than planes of positions and rows of channels, each
        sample in one piece, go to the reference.

    Raises:
        ValueError: the channels are in dimension 0, which holds the samples.
    """
    if channel_dim % x.ndim == 0:
        raise ValueError(
            f"input of shape {tuple(x.shape)}: channels in dimension 0 (channel_dim={channel_dim}), which holds the samples"
        )
    unit = _Unit(form, statistic, network, channel_dim)
    weights = () if attention is None else (attention,)
    # without positions there is nothing to sum
    tensors = network.tensors(parameters) if fuse and x.ndim > 2 else None
    memory, kernels = None, library.REFERENCE
    # torch.compile is left the whole unit: it knows sums and products
    if tensors is not None and not torch.compiler.is_compiling():
        kernels = library.backend(x, *weights, *tensors)
    if kernels:
        assert tensors is not None
        channels = x.shape[channel_dim]
        if network.fit(tensors, channels) and all(weight.shape == (channels,) for weight in weights):
            memory = _memory(x, channel_dim)
        if kernels == library.TRITON and memory is not None and not memory.fits_gpu:
            memory = None
    if tensors is None or memory is None:
        if form is scale_relu:  # once for both
            x, unit = x.relu(), unit._replace(form=scale)
        return unit.reference(x, weights, parameters)
    if form is scale_relu:
        unit = unit._replace(statistic=_OF_RELU[statistic])
    node = _GatedOnGPU if kernels == library.TRITON else _Gated
    y: Tensor = node.apply(unit, memory, x, *weights, *tensors)
    return y


class _Unit(NamedTuple):
    form: Callable[..., Tensor]
    statistic: Callable[..., Any]
    network: Network
    channel_dim: int

    def reference(self, x: Tensor, weights: Sequence[Tensor], parameters: Sequence[Any]) -> Tensor:
        statistics = self.statistic(x, *weights, self.channel_dim)
        values, _ = self.network(statistics if weights else (statistics,), parameters)
        return self.form(x, *values, self.channel_dim)

    def of_tensors(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Return ``reference`` of the tensors that the autograd node takes."""
        weights, own = self.split(tensors)
        return self.reference(x, weights, self.network.parameters(own))

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Split them into the statistic's and the network's."""
        weights = int(self.statistic is mean_and_map)
        return tensors[:weights], tensors[weights:]


class Memory(NamedTuple):
    """How samples lie: one plane after another, or rows of channels, one for each position."""

    samples: int
    channels: int
    positions: int
    rows: bool

    @property
    def fits_gpu(self) -> bool:
        """Whether the kernels of a GPU can take it.

        They count in 32 bits: the elements of a sample, those of a map, a form's numbers, and a tile more.
        """
        largest = max(self.positions * self.samples, self.positions * self.channels)
        return max(largest, self.samples * self.channels * 2 * MOST_LINES) < 2**31 - 2**12

    def for_form(self, values: Sequence[Tensor]) -> "Memory":
        """With one channel, where coefficients are the same for all."""
        if values[0].shape[1] > 1:
            return self
        return Memory(self.samples, 1, self.channels * self.positions, False)


def _memory(x: Tensor, channel_dim: int) -> Memory | None:
    dim = channel_dim % x.ndim
    samples, channels = x.shape[0], x.shape[dim]
    positions = x.numel() // (samples * channels)
    planes = x if dim == 1 else x.movedim(dim, 1)
    if (positions > 1 or channels == 1) and planes.is_contiguous():
        return Memory(samples, channels, positions, False)
    return Memory(samples, channels, positions, True) if x.movedim(dim, -1).is_contiguous() else None


def _readable(x: Tensor, channel_dim: int) -> tuple[Tensor, Memory]:
    """Return ``x``, which a saved-tensor hook may have given back in a layout that no kernel takes, in one, and that."""
    memory = _memory(x, channel_dim)
    if memory is None:
        x = x.movedim(channel_dim, 1).contiguous().movedim(1, channel_dim)
        memory = _memory(x, channel_dim)
        assert memory is not None
    return x, memory


def _operands(tensors: Sequence[Tensor]) -> Any:
    """Return for each tensor, contiguous (N or 1, C or 1) or (N or 1, C or 1, numbers), its address, the steps from
    sample to sample and from channel to channel, and numbers, as an array for C.
    """
    entries = []
    for tensor in tensors:
        samples, channels, *rest = tensor.shape
        numbers = rest[0] if rest else 1
        entries += [
            tensor.data_ptr(),
            channels * numbers if samples > 1 else 0,
            numbers if channels > 1 else 0,
            numbers,
        ]
    return (ctypes.c_int64 * len(entries))(*entries)


def _run(
    kernel: tuple[str, int, bool],
    memory: Memory,
    x: Tensor,
    *,
    g: Tensor | None = None,
    out: Tensor | None = None,
    map: Tensor | None = None,
    dmap: Tensor | None = None,
    reads: list[Tensor],
    writes: list[Tensor],
    divisor: int = 1,
) -> None:
    name, variant, back = kernel
    if name.endswith("lines"):
        variant = int(reads[0].shape[2] == 4)  # Two lines have a kernel of their own.
    library.kernel(f"gate_{name}_{{}}", x.dtype)(
        variant,
        back,
        *memory,
        torch.get_num_threads(),
        x.data_ptr(),
        None if g is None else g.data_ptr(),
        None if out is None else out.data_ptr(),
        None if map is None else map.data_ptr(),
        None if dmap is None else dmap.data_ptr(),
        _operands(reads),
        len(reads),
        _operands(writes),
        len(writes),
        divisor,
    )


class _Gated(torch.autograd.Function):
    """A whole unit as one node; saves x and small tensors: parameters, statistics, coefficients, the network's own."""

    @staticmethod
    def forward(ctx: Any, unit: _Unit, memory: Memory, x: Tensor, *tensors: Tensor) -> Tensor:
        weights, own = unit.split(tensors)
        variant, averaged = _STATISTICS[unit.statistic]
        statistics = [x.new_empty(memory.samples, memory.channels)]
        statistics += [x.new_empty(memory.samples, memory.positions) for _ in weights]
        _run(
            ("statistic", variant, False),
            memory,
            x,
            dmap=statistics[1] if weights else None,
            reads=[w.contiguous().view(1, -1) for w in weights],
            writes=statistics[:1],
            divisor=memory.positions if averaged else 1,
        )
        values, saved = unit.network.forward(statistics, own)
        values = [v.contiguous() for v in values]
        y = torch.empty_like(x)
        maps, coefficients = _split(values)
        _run(
            (*_FORMS[unit.form], False),
            memory.for_form(values),
            x,
            out=y,
            map=maps,
            reads=coefficients,
            writes=[],
        )
        ctx.unit, ctx.counts = unit, (len(tensors), len(statistics), len(values))
        library.save(ctx, x, *tensors, *statistics, *values, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        unit, needed = ctx.unit, ctx.needs_input_grad[2:]
        rest = iter(library.saved(ctx))
        x = next(rest)
        tensors, statistics, values = (list(islice(rest, count)) for count in ctx.counts)
        if library.needs_reference(g):
            return library.reference_backward(ctx, unit.of_tensors, (x, *tensors), g)
        x, memory = _readable(x, unit.channel_dim)
        dx, d_values = torch.empty_like(x), [torch.empty_like(v) for v in values]
        maps, coefficients = _split(values)
        dmaps, writes = _split(d_values)
        _run(
            (*_FORMS[unit.form], True),
            memory.for_form(values),
            x,
            g=library.match_layout(g, x),
            out=dx,
            map=maps,
            dmap=dmaps,
            reads=coefficients,
            writes=writes,
        )
        weights, own = unit.split(tensors)
        d_weights = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
        below = any(needed[: 1 + len(weights)])
        asked = (below, *needed[1 + len(weights) :])
        (d_sums, *d_maps), d_own = unit.network.backward(
            BackwardInputs(statistics, own, list(rest), d_values, asked)
        )
        if below:
            variant, averaged = _STATISTICS[unit.statistic]
            _run(
                ("statistic", variant, True),
                memory,
                x,
                g=dx,
                out=dx,  # made here, for this alone
                map=d_maps[0] if d_maps else None,
                reads=[
                    d_sums * (1 / memory.positions) if averaged else d_sums,
                    *[w.contiguous().view(1, -1) for w in weights],
                ],
                writes=[d.view(1, -1) for d in d_weights],
            )
        return None, None, dx, *d_weights, *d_own


def _split(values: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
    """Split what a network returns into the map, if there is one, and the coefficients."""
    return (values[-1], [*values[:-1]]) if values[-1].ndim == 2 else (None, [*values])


class _GatedOnGPU(torch.autograd.Function):
    """The same by the kernels of gpu/gate.py; saves x, parameters, and what the network makes of the statistics.

    The network is computed again in backward, by torch, which differentiates it.
    """

    @staticmethod
    def forward(ctx: Any, unit: _Unit, memory: Memory, x: Tensor, *tensors: Tensor) -> Tensor:
        from activations.kernels.gpu import gate as gpu

        weights, own = unit.split(tensors)
        statistics = [gpu.statistic(_gpu_statistic(unit), memory, x)]
        if _STATISTICS[unit.statistic][1]:
            statistics[0] *= 1 / memory.positions
        statistics += [gpu.attended(memory, x, w.contiguous()) for w in weights]
        with _without_autocast(x):
            maps, values = _split(_coefficients(unit, statistics, [t.float() for t in own]))
        ctx.unit, ctx.counts = unit, (len(tensors), len(statistics), len(values))
        library.save(ctx, x, *tensors, *statistics, *values, *(() if maps is None else (maps,)))
        return gpu.forward(getattr(gpu, _gpu_form(unit)), memory, x, values, maps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from activations.kernels.gpu import gate as gpu

        unit, needed = ctx.unit, ctx.needs_input_grad[2:]
        rest = iter(library.saved(ctx))
        x = next(rest)
        tensors, statistics, values = (list(islice(rest, count)) for count in ctx.counts)
        if library.needs_reference(g, library.TRITON):

            def reference(x: Tensor, *tensors: Tensor) -> Tensor:
                return unit.of_tensors(upcast(x), *(t.float() for t in tensors)).to(x.dtype)

            return library.reference_backward(ctx, reference, (x, *tensors), g)
        maps = next(rest, None)
        x, memory = _readable(x, unit.channel_dim)
        g = library.match_layout(g, x)
        weights, own = unit.split(tensors)
        form = getattr(gpu, f"{_gpu_form(unit)}_backward")
        d_values = gpu.numbers_backward(form, memory, g, x, values, maps)
        if maps is not None:
            d_values.append(gpu.map_backward(getattr(gpu, _gpu_form(unit)), memory, g, x, values))

        # The network; what it is not asked for is not differentiated.
        leaves = [t.detach().requires_grad_() for t in statistics]
        leaves += [
            t.detach().float().requires_grad_(need)
            for t, need in zip(own, needed[1 + len(weights) :], strict=True)
        ]
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad(), _without_autocast(x):
            again = _coefficients(unit, leaves[: len(statistics)], leaves[len(statistics) :])
            gradients = iter(
                torch.autograd.grad(again, asked, d_values, allow_unused=True, materialize_grads=True)
            )
        down, *d_own = (next(gradients) if leaf.requires_grad else None for leaf in leaves)
        assert down is not None
        d_maps, d_own = d_own[: len(weights)], d_own[len(weights) :]
        if _STATISTICS[unit.statistic][1]:
            down = down * (1 / memory.positions)
        d_own = [None if d is None else d.to(t.dtype) for d, t in zip(d_own, own, strict=True)]

        d_weights: list[Tensor | None] = []
        map_of_input = None
        for weight, d_map in zip(weights, d_maps, strict=True):
            assert maps is not None
            assert d_map is not None
            d_map = d_map.contiguous()
            attention = weight.contiguous()
            map_of_input = maps, d_map, attention
            (d,) = gpu.numbers_backward(
                gpu.scale_backward, memory, d_map, x, [attention.view(1, -1, 1)], None, g_is_map=True
            )
            d_weights.append(d.view(-1).to(weight.dtype))
        dx = None
        if needed[0]:
            statistic = _gpu_statistic(unit)
            dx = gpu.input_backward(form, statistic, memory, g, x, values, down.contiguous(), map_of_input)
        return None, None, dx, *d_weights, *d_own


def _coefficients(unit: _Unit, statistics: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what the network makes of the statistics, in torch operations and float32."""
    values, _ = unit.network(statistics, unit.network.parameters(tensors))
    return [value.contiguous() for value in values]


def _without_autocast(x: Tensor) -> torch.autocast:
    """Return what is entered for a network, forward and backward, whose linear layers would lose digits otherwise."""
    return torch.autocast(x.device.type, enabled=False)


def _gpu_statistic(unit: _Unit) -> Any:
    """Return the Triton function of what is summed up over the positions."""
    from activations.kernels.gpu import gate as gpu

    functions = gpu.identity, gpu.absolute, gpu.square, gpu.rectified, gpu.rectified_square, gpu.identity
    return functions[_STATISTICS[unit.statistic][0]]


def _gpu_form(unit: _Unit) -> str:
    """Return the name of the form in gpu/gate.py, which multiplies any with a map."""
    return "lines" if unit.form is mapped_lines else unit.form.__name__
