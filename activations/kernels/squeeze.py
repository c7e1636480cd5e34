"""The network of most units in gate.py: two linear layers, from a sample's mean to a number or more for each channel."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from activations.kernels.gate import Network

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_threshold_backward = torch.ops.aten.threshold_backward.default

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Squeeze(Network):
    """sigmoid(fc2(hidden)), as (N, *shape), with hidden = relu(fc1(mean)), or fc1(mean) if not ``rectified``.

    The two layers are its first parameters; all others, (C,) each, are coefficients as they are.
    """

    def __init__(self, *shape: int, rectified: bool = True) -> None:
        self.shape, self.rectified = shape, rectified

    def excite(self, mean: Tensor, fc1: Any, fc2: Any) -> tuple[Tensor, Tensor]:
        """hidden, and the sigmoid as (N, numbers)."""
        hidden = fc1(mean)
        if self.rectified:
            hidden = hidden.relu()
        return hidden, fc2(hidden).sigmoid()

    def __call__(
        self, found: Sequence[Tensor], parameters: Sequence[Any]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        fc1, fc2, *coefficients = parameters
        hidden, gate = self.excite(found[0], fc1, fc2)
        first = gate.reshape(gate.shape[0], *self.shape)
        return [first, *[c.view(1, -1, 1) for c in coefficients]], [hidden, gate]

    def backward(
        self,
        found: Sequence[Tensor],
        tensors: Sequence[Tensor],
        saved: Sequence[Tensor],
        gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        (hidden, gate, *_), (weight1, _, weight2, *_) = saved, tensors
        d = _sigmoid_backward(gradients[0].view_as(gate), gate)
        d_fc2 = _of_layer(d, hidden, needed[3:5])
        d_mean: Tensor | None = None
        d_fc1: list[Tensor | None] = [None, None]
        if any(needed[:3]):
            d = d.mm(weight2)
            if self.rectified:
                d = _threshold_backward(d, hidden, 0)
            d_fc1 = _of_layer(d, found[0], needed[1:3])
            d_mean = d.mm(weight1) if needed[0] else None
        return [d_mean], [*d_fc1, *d_fc2, *[g.view(-1) for g in gradients[1:]]]

    def tensors(self, parameters: Sequence[Any]) -> Sequence[Tensor] | None:
        fc1, fc2, *coefficients = parameters
        first, second = _of_plain(fc1), _of_plain(fc2)
        if first is None or second is None or _has_any_global_hook():
            return None
        return [*first, *second, *coefficients]

    def parameters(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        weight1, bias1, weight2, bias2, *coefficients = tensors
        return [
            partial(F.linear, weight=weight1, bias=bias1),
            partial(F.linear, weight=weight2, bias=bias2),
            *coefficients,
        ]


def _of_layer(d: Tensor, x: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of weight and bias."""
    return [d.t().mm(x) if needed[0] else None, d.sum(0) if needed[1] else None]


def _of_plain(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias, if calling it is its linear function of them and nothing else."""
    own = layer.__dict__
    if type(layer) is not nn.Linear or "forward" in own or any(own[hooks] for hooks in _HOOKS):
        return None
    weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
    return None if weight is None or bias is None else (weight, bias)
