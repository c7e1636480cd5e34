"""max(x, T(x)) or max(0, T(x)), T being batch norm of a depthwise 3 x 3 window, or the light form's sum of two such.

The modules stand in activations/frelu.py; the kernels are in csrc/window.cpp. They take contiguous input and channels_last
as they are, others are copied to contiguous.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.kernels import library


class Branch(NamedTuple):
    """One convolution and its norm."""

    weight: Tensor  # (C, 1, 3, 3), or light: (C, 1, 1, 3) in the first branch and (C, 1, 3, 1) in the second
    bias: Tensor | None  # (C,); none in the light form
    gamma: Tensor  # (C,) as all that follow
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    momentum: float


class _Setting(NamedTuple):
    max_with_input: bool
    train: bool
    running: tuple[Tensor, ...]  # mean and variance of each branch
    numbers: tuple[float, ...]  # eps and momentum of each branch


def branch(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Branch:
    """What the kernel needs of the two."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    found = conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
    return Branch(*found, norm.eps, norm.momentum or 0.0)


def backend(x: Tensor, branches: Sequence[Branch], train: bool) -> str:
    """Whose kernels can do it, as ``library.backend``: by its rule, and what batch norm itself asks for."""
    tensors = [value for branch in branches for value in branch if isinstance(value, Tensor)]
    channels = x.shape[1]
    windows = [(3, 3)] if len(branches) == 1 else [(1, 3), (3, 1)]
    fit = (
        not torch.compiler.is_compiling()  # which fuses what surrounds torch's own convolution
        and all(
            branch.weight.shape == (channels, 1, *window)
            and all(value.shape == (channels,) for value in branch[1:6] if value is not None)
            for branch, window in zip(branches, windows, strict=True)
        )
        and not (train and x.numel() == x.shape[1])  # there batch norm raises its error
    )
    return library.backend(x, *tensors) if fit else library.REFERENCE


def window(
    kernels: str, x: Tensor, branches: Sequence[Branch], *, max_with_input: bool, train: bool
) -> Tensor:
    """max(x, T) (``max_with_input``) or max(0, T).

    Args:
        kernels: what ``backend`` returned.
        branches: one, or the two of the light form.
        train: with the batch's statistics, which enter the running ones where they are finite.

    Shape:
        (N, C, H, W).
    """
    parameters = [p for branch in branches for p in branch[:4] if p is not None]
    running = tuple(value for branch in branches for value in branch[4:6])
    numbers = tuple(float(value) for branch in branches for value in branch[6:])
    # A copy inside the autograd function would not be part of the graph.
    x, dense = x if _channels_last(x) else x.contiguous(), (p.contiguous() for p in parameters)
    node = _WindowOnGPU if kernels == library.TRITON else _Window
    y: Tensor = node.apply(_Setting(max_with_input, train, running, numbers), x, *dense)
    return y


def _reference(setting: _Setting, x: Tensor, *parameters: Tensor) -> Tensor:
    """The same in torch operations, for second derivatives; in float32 at least."""
    if x.dtype in library.HALF:
        return _reference(setting, x.float(), *(p.float() for p in parameters)).to(x.dtype)
    top, light = x.new_zeros(()), len(parameters) > 4
    for b in range(2 if light else 1):
        weight, *bias, gamma, beta = parameters[3 * b : 3 * b + 3] if light else parameters
        padding = weight.shape[2] // 2, weight.shape[3] // 2
        z = F.conv2d(x, weight, bias[0] if bias else None, padding=padding, groups=x.shape[1])
        mean, var = (None, None) if setting.train else setting.running[2 * b : 2 * b + 2]
        top = top + F.batch_norm(z, mean, var, gamma, beta, setting.train, 0.0, setting.numbers[2 * b])
    return torch.maximum(x, top) if setting.max_with_input else top.relu()


class _Window(torch.autograd.Function):
    """Saves its inputs, and mean and 1 / std of each channel's convolution."""

    @staticmethod
    def forward(ctx: Any, setting: _Setting, x: Tensor, *parameters: Tensor) -> Tensor:
        channels_last = _channels_last(x)
        running = tuple(value.contiguous() for value in setting.running)
        stats = x.new_empty(len(running), x.shape[1], dtype=torch.float64)
        updated = [torch.empty_like(value) for value in running]
        y, common = torch.empty_like(x), _common(setting, x, channels_last, parameters, running, stats)
        kernel = library.kernels("window_light" if len(running) > 2 else "window", x.dtype)[0]
        kernel(*common, x.data_ptr(), y.data_ptr(), library.addresses(updated))
        if setting.train:
            for value, new in zip(setting.running, updated, strict=True):
                value.copy_(new)
        # running statistics among them so that a change before backward is an error, as it is in batch norm
        library.save(ctx, x, stats, *parameters, *(() if setting.train else setting.running))
        ctx.setting = setting._replace(running=())
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, stats, *rest = library.saved(ctx)
        count = len(ctx.needs_input_grad) - 2
        parameters, running = rest[:count], tuple(rest[count:])
        if library.needs_reference(g):
            setting = ctx.setting._replace(running=running)

            def reference(*inputs: Tensor) -> Tensor:
                return _reference(setting, *inputs)

            return library.reference_backward(ctx, reference, (x, *parameters), g)
        channels_last = _channels_last(x)
        x = x if channels_last else x.contiguous()
        g, dx = library.match_layout(g, x), torch.empty_like(x)
        gradients = [torch.empty_like(p) for p in parameters]
        common = _common(ctx.setting, x, channels_last, parameters, running, stats)
        kernel = library.kernels("window_light" if len(stats) > 2 else "window", x.dtype)[1]
        kernel(*common, x.data_ptr(), dx.data_ptr(), g.data_ptr(), _table(gradients, (), 4))
        return None, dx, *gradients


def _channels_last(x: Tensor) -> bool:
    """Whether the kernel for channels side by side is the one to use; planes of one position are both."""
    if x.is_contiguous() and x.shape[2] * x.shape[3] > 1:
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _table(parameters: Sequence[Tensor], running: Sequence[Tensor], each: int) -> Any:
    """The addresses of each branch's weight, bias or none, gamma, beta, and running statistics if they are given."""
    light = len(parameters) > 4
    addresses: list[int | None] = []
    for b in range(2 if light else 1):
        weight, *bias, gamma, beta = parameters[3 * b : 3 * b + 3] if light else parameters
        own = [weight.data_ptr(), bias[0].data_ptr() if bias else None, gamma.data_ptr(), beta.data_ptr()]
        own += [value.data_ptr() for value in running[2 * b : 2 * b + 2]]
        addresses += own + [None] * (each - len(own))
    return (ctypes.c_void_p * len(addresses))(*addresses)


def _common(
    setting: _Setting,
    x: Tensor,
    channels_last: bool,
    parameters: Sequence[Tensor],
    running: Sequence[Tensor],
    stats: Tensor,
) -> tuple[Any, ...]:
    """The arguments that both kernels have."""
    return (
        (ctypes.c_int64 * 4)(*x.shape),
        channels_last,
        setting.max_with_input,
        setting.train,
        torch.get_num_threads(),
        _table(parameters, running, 6),
        (ctypes.c_double * len(setting.numbers))(*setting.numbers),
        stats.data_ptr(),
    )


class _WindowOnGPU(torch.autograd.Function):
    """The same by the kernels of gpu/window.py."""

    @staticmethod
    def forward(ctx: Any, setting: _Setting, x: Tensor, *parameters: Tensor) -> Tensor:
        from activations.kernels.gpu import window as gpu

        branches = _gpu_branches(parameters)
        eps = setting.numbers[::2]
        if setting.train:
            mean, var = gpu.statistics(x, branches)
            _update(setting, mean, var, x.numel() // x.shape[1])
        else:
            mean, var = (torch.stack(setting.running[k::2]).double() for k in range(2))
        inverse = torch.stack([(v + e).rsqrt() for v, e in zip(var, eps, strict=True)])
        norms = gpu.norms(branches, mean, inverse)
        # as in ``_Window``
        library.save(ctx, x, norms, *parameters, *(() if setting.train else setting.running))
        ctx.setting = setting._replace(running=())
        return gpu.forward(x, branches, norms, with_input=setting.max_with_input)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from activations.kernels.gpu import window as gpu

        x, norms, *rest = library.saved(ctx)
        count = len(ctx.needs_input_grad) - 2
        parameters, running = rest[:count], tuple(rest[count:])
        if library.needs_reference(g, library.TRITON):
            setting = ctx.setting._replace(running=running)

            def reference(*inputs: Tensor) -> Tensor:
                return _reference(setting, *inputs)

            return library.reference_backward(ctx, reference, (x, *parameters), g)
        x = x if _channels_last(x) else x.contiguous()
        dx, branches = gpu.backward(
            library.match_layout(g, x),
            x,
            _gpu_branches(parameters),
            norms,
            with_input=ctx.setting.max_with_input,
            train=ctx.setting.train,
        )
        return None, dx, *[value for branch in branches for value in branch if value is not None]


def _gpu_branches(parameters: Sequence[Tensor]) -> list[Any]:
    """Return the parameters of the node, weight, bias or none, gamma and beta of each branch, by branch."""
    from activations.kernels.gpu import window as gpu

    if len(parameters) == 4:
        return [gpu.Branch(*parameters)]
    return [gpu.Branch(parameters[k], None, *parameters[k + 1 : k + 3]) for k in (0, 3)]


def _update(setting: _Setting, mean: Tensor, var: Tensor, count: int) -> None:
    """Let a batch's mean and biased variance, (branches, C) of ``count`` elements, enter the running ones where they are finite."""
    unbiased = var * (count / (count - 1))
    for b, momentum in enumerate(setting.numbers[1::2]):
        for running, batch in zip(setting.running[2 * b : 2 * b + 2], (mean[b], unbiased[b]), strict=True):
            old = running.double()
            new = torch.lerp(old, batch, momentum)
            running.copy_(torch.where(new.isfinite(), new, old))
