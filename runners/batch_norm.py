"""Batch norm with the statistics of a batch that is spread over several processes.

torch's own SyncBatchNorm refuses tensors on the CPU, so that nothing of it could be tested without two GPUs, and it replaces
modules. Here the modules stay what they are, and what they call in training is replaced: ``F.batch_norm``. So layers that
add something to it, such as timm's and FReLU's, follow as well.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from activations.base import Activation, along, upcast
from activations.torch_private import BatchNorm


def share_statistics(network: nn.Module, *, synchronized: bool) -> None:
    """Prepare the units of ``network`` for a batch that is spread over several processes.

    Batch norms, and units that collect statistics of their own (those with an attribute ``pooled``), use the whole batch if
    ``synchronized``, else what this process has of it.
    """
    for module in network.modules():
        if synchronized and isinstance(module, BatchNorm):
            module.forward = partial(_forward, module)
        if isinstance(module, Activation) and hasattr(module, "pooled"):
            module.pooled, module.attached = synchronized, False  # type: ignore[assignment]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``, with the statistics of what all processes pass together.

    Sums are taken in float64. In training every process must call it equally often.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    y, mean, var, count = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = var * (count / (count - 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.copy_(running * (1 - momentum) + new.to(running.dtype) * momentum)
    return y


class _BatchNorm(torch.autograd.Function):
    """Returns y, and of the batch of all processes mean, biased variance and count, which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        wide = upcast(x)
        dims = _others(x)
        sums = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)  # of 1, x, x^2
        if x.numel():
            var, mean = (value.double() for value in torch.var_mean(wide, dims, correction=0))
            own = x.numel() // x.shape[1]
            sums[0], sums[1], sums[2] = own, own * mean, own * (var + mean.square())
        distributed.all_reduce(sums)
        count, mean = sums[0], sums[1] / sums[0]
        var = (sums[2] / count - mean.square()).clamp_min(0)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = F.batch_norm(wide, mean.to(wide.dtype), var.to(wide.dtype), weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        mean, scale = (along(value.to(wide), x, 1) for value in (mean, scale))
        g, normal = g.to(wide), (x.to(wide) - mean) * scale
        dims = _others(x)
        own = torch.stack([g.sum(dims), (g * normal).sum(dims)])
        total = own.double()
        distributed.all_reduce(total)
        by_mean, by_scale = (along((value / count).to(wide), x, 1) for value in total)
        dx = (g - by_mean - normal * by_scale) * scale
        if weight is not None:
            dx = dx * along(weight.to(wide), x, 1)
        dweight = own[1].to(weight.dtype) if weight is not None else None
        return dx.to(x.dtype), dweight, own[0].to(ctx.bias_dtype) if ctx.bias_dtype else None, None


def _others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [dim for dim in range(x.ndim) if dim != 1]


def _forward(norm: nn.Module, x: Tensor) -> Any:
    with _OfAll() if norm.training else nullcontext():
        return type(norm).forward(norm, x)


class _OfAll(TorchFunctionMode):
    """While entered, ``F.batch_norm`` is the one of all processes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))
