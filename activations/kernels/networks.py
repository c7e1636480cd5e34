"""The networks of the units in gate.py, from statistics to coefficients, each with its gradient.

Their kernels are in csrc/networks.cpp.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.kernels import library
from activations.kernels.gate import BackwardInputs, Network

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_threshold_backward = torch.ops.aten.threshold_backward.default

# Number of multiplications in the two layers up to which our kernel, in one thread, is faster than torch's operations.
SMALL = 2**20


class Squeeze(Network):
    """sigmoid(fc2(hidden)), as (N, *shape), with hidden = relu(fc1(mean)), or fc1(mean) if not ``rectified``.

    Its parameters are the two layers, then further coefficients, (C,) each, which it passes on as they are.

    Args:
        shape: of one sample's coefficients; fc2 has as many outputs as they have elements.
        rectified: whether there is a ReLU between the layers.
    """

    # Whether the output is term + factor (sigmoid - 1/2) instead of the sigmoid; see ``rows``.
    scaled = False

    def __init__(self, *shape: int, rectified: bool = True) -> None:
        self.shape, self.outputs, self.rectified = shape, math.prod(shape), rectified

    def rows(self, like: Tensor) -> Sequence[Tensor]:
        """Return term and factor, one number per output each, if ``scaled``."""
        return ()

    def others(self, statistics: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return what else the form takes, from the statistics after the mean, and what ``backward`` needs of it."""
        return [], []

    def __call__(
        self, statistics: Sequence[Tensor], parameters: Sequence[Any]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        (fc1, fc2, *coefficients), mean, rows = parameters, statistics[0], self.rows(statistics[0])
        hidden = fc1(mean)
        if self.rectified:
            hidden = hidden.relu()
        first = gate = fc2(hidden).sigmoid()
        if rows:
            (term, factor), half = rows, gate - 0.5
            first = torch.addcmul(term, factor, half if half.dtype is mean.dtype else half.to(mean.dtype))
        return self._values(statistics, first, coefficients, [hidden, gate, *rows[1:]])

    def forward(
        self, statistics: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        mean, rows = statistics[0], self.rows(statistics[0])
        if not _small(mean, tensors):
            return super().forward(statistics, tensors)
        hidden, gate = (mean.new_empty(len(mean), len(bias)) for bias in (tensors[1], tensors[3]))
        first = torch.empty_like(gate) if rows else gate
        self._run(0, mean, tensors, rows or (None, None), hidden, gate, first)
        return self._values(statistics, first, tensors[4:], [hidden, gate, *rows[1:]])

    def _values(
        self,
        statistics: Sequence[Tensor],
        first: Tensor,
        coefficients: Sequence[Tensor],
        saved: Sequence[Tensor],
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        values, more = self.others(statistics)
        first = first.reshape(first.shape[0], *self.shape)  # len() would fix the number of samples in a trace
        return [first, *[c.view(1, -1, 1) for c in coefficients], *values], [*saved, *more]

    def _run(
        self,
        back: int,
        mean: Tensor,
        tensors: Sequence[Tensor],
        rows: Sequence[Tensor | None],
        hidden: Tensor,
        *rest: Tensor,
    ) -> None:
        kernel = library.kernels("squeeze", mean.dtype)[back]
        dense = [tensor.contiguous() for tensor in tensors[:4]]  # kept alive until the kernel returns
        kernel(
            *(*mean.shape, hidden.shape[1], rest[0].shape[1], self.rectified, mean.data_ptr()),
            *(tensor.data_ptr() for tensor in dense),
            *(None if row is None else row.data_ptr() for row in rows),
            *(tensor.data_ptr() for tensor in (hidden, *rest)),
        )

    def backward(self, inputs: BackwardInputs) -> tuple[list[Tensor | None], list[Tensor | None]]:
        statistics, tensors, saved, gradients, needed = inputs
        (hidden, gate, *more), (weight1, _, weight2, *_), mean = saved, tensors, statistics[0]
        scale = more[0] if self.scaled else None
        d = gradients[0].view_as(gate)
        d_mean: Tensor | None
        d_coefficients = [g.view(-1) for g in gradients[1 : len(tensors) - 3]]
        if _small(mean, tensors):
            d_mean, *d_layers = (mean.new_empty(t.shape) for t in (mean, *tensors[:4]))
            self._run(1, mean, tensors, (None, scale), hidden, gate, d, d_mean, *d_layers)
            return [d_mean], [*d_layers, *d_coefficients]
        d = _sigmoid_backward(d if scale is None else d.mul_(scale), gate)
        d_fc2 = _of_layer(d, hidden, needed[3:5])
        d_mean = None
        d_fc1: list[Tensor | None] = [None, None]
        if any(needed[:3]):
            d = d.mm(weight2)
            if self.rectified:
                d = _threshold_backward(d, hidden, 0)
            d_fc1 = _of_layer(d, mean, needed[1:3])
            d_mean = d.mm(weight1) if needed[0] else None
        return [d_mean], [*d_fc1, *d_fc2, *d_coefficients]

    def tensors(self, parameters: Sequence[Any]) -> Sequence[Tensor] | None:
        fc1, fc2, *coefficients = parameters
        first, second = _of_plain(fc1), _of_plain(fc2)
        if first is None or second is None:
            return None
        return [*first, *second, *coefficients]

    def fit(self, tensors: Sequence[Tensor], channels: int) -> bool:
        weight1, bias1, weight2, bias2, *coefficients = (tensor.shape for tensor in tensors)
        hidden = weight1[0]
        return (
            weight1 == (hidden, channels)
            and bias1 == (hidden,)
            and weight2 == (self.outputs, hidden)
            and bias2 == (self.outputs,)
            and all(shape == (channels,) for shape in coefficients)
        )

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        weight1, bias1, weight2, bias2, *coefficients = tensors
        return [
            partial(F.linear, weight=weight1, bias=bias1),
            partial(F.linear, weight=weight2, bias=bias2),
            *coefficients,
        ]


def _of_layer(d: Tensor, x: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of weight and bias of a linear layer."""
    return [d.t().mm(x) if needed[0] else None, d.sum(0) if needed[1] else None]


def _of_plain(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a plain linear layer that has both, else None."""
    if not library.is_plain(layer, nn.Linear):
        return None
    weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
    return None if weight is None or bias is None else (weight, bias)


def _small(mean: Tensor, tensors: Sequence[Tensor]) -> bool:
    weight1, _, weight2, *_ = tensors
    return len(mean) * (weight1.numel() + weight2.numel()) <= SMALL


class NormGate(Network):
    """GCT's 1 + tanh(beta + gamma s / size), (N, C, 1), from the norms; see ``activations.gct``."""

    def __init__(self, squared: bool, eps: float) -> None:
        self.squared, self.eps = squared, eps

    def __call__(
        self, statistics: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        (norm,) = statistics
        alpha, gamma, beta = (p if p.dtype is norm.dtype else p.to(norm.dtype) for p in parameters)
        if self.squared:
            norm = (norm + self.eps).sqrt()
            s = alpha * norm
            size = (s.square().mean(1, keepdim=True) + self.eps).sqrt()
        else:
            s = alpha * norm
            size = s.abs().mean(1, keepdim=True) + self.eps
        normal = s / size
        turn = torch.addcmul(beta, gamma, normal).tanh()
        return [(1 + turn).unsqueeze(-1)], []

    def forward(
        self, statistics: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        (norm,) = statistics
        workspace = norm.new_empty(4, *norm.shape)  # root, normal, turn, then the sizes, which are fewer
        y = torch.empty_like(norm)
        self._run(0, norm, tensors, workspace, y)
        return [y.unsqueeze(-1)], [workspace]

    def backward(self, inputs: BackwardInputs) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        (norm,), tensors, (workspace,), gradients, _ = inputs
        d_norm, *d_tensors = (norm.new_empty(t.shape) for t in (norm, *tensors))
        self._run(1, norm, tensors, workspace, gradients[0], d_norm, *d_tensors)
        return [d_norm], d_tensors

    def _run(
        self, back: int, norm: Tensor, tensors: Sequence[Tensor], workspace: Tensor, *rest: Tensor
    ) -> None:
        first, step = workspace.data_ptr(), norm.nbytes
        dense = [tensor.contiguous() for tensor in tensors]  # kept alive until the kernel returns
        library.kernels("norm_gate", norm.dtype)[back](
            *(*norm.shape, self.squared, self.eps, norm.data_ptr()),
            *(tensor.data_ptr() for tensor in dense),
            *(first + k * step for k in range(4)),
            *(tensor.data_ptr() for tensor in rest),
        )
