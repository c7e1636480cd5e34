"""FReLU. Ma, Zhang, Sun: Funnel Activation for Visual Recognition, ECCV 2020, arXiv 2007.11824, equations 2 and 3.

Not Flexible ReLU, which shares the acronym. The authors advise replacing one activation per block at first, and keep
ReLU in the stem and the last stage of a ResNet.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.base import Activation, bare
from activations.checks import check_bool, check_int, check_number
from activations.kernels import library
from activations.kernels import window as kernel
from activations.torch_private import BatchNorm


class FReLU(Activation):
    r"""y = max(x, T(x)) with a learned window T per channel.

        T = BN(depthwise convolution), with bias as in the authors' code (BN makes it idle in training)
        light:  T = BN1(depthwise 1 x k, no bias) + BN2(depthwise k x 1, no bias)

    Args:
        kernel_size: k of the window, odd; the paper's is 3.
        light: the two crossed windows that the authors use in lightweight networks; for images alone.
        dims: 2 for (N, C, H, W) input, 1 for (N, C, L).
        gamma: initial weight of BN, finite; 1 in the authors' code. BN cancels their small initial convolution (std
            0.01), so that T starts with unit variance; gamma = 0 starts at ReLU.

    Parameters: those of the convolutions and norms, names ``conv``, ``norm`` or, light, ``conv1``, ``norm1``,
    ``conv2``, ``norm2``. Weights of convolutions are decayed, biases and norms not. A batch whose statistics are not
    finite does not enter the running ones.

    Shape:
        (N, C, H, W) or, with dims = 1, (N, C, L).

    Raises:
        ValueError: a value outside its range, or input without the positions that a window needs.
    """

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        kernel_size: int = 3,
        light: bool = False,
        dims: int = 2,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("kernel_size", kernel_size, minimum=1)
        check_bool("light", light)
        check_int("dims", dims, minimum=2 if light else 1, maximum=2)
        check_number("gamma", gamma)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd")
        self.dims, self.light, self.gamma = dims, light, gamma
        if light:
            self.conv1, self.norm1 = _window(self.num_features, (1, kernel_size), bias=False)
            self.conv2, self.norm2 = _window(self.num_features, (kernel_size, 1), bias=False)
        else:
            self.conv, self.norm = _window(self.num_features, (kernel_size,) * dims, bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv, norm in self._branches():
            # Draws random numbers that are then overwritten, as the constructor of a convolution does.
            conv.reset_parameters()
            nn.init.normal_(conv.weight, std=0.01)  # as in the authors' code
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            norm.reset_parameters()
            nn.init.constant_(norm.weight, self.gamma)

    def _branches(self) -> list[tuple[Any, Any]]:
        """Return each convolution with its norm."""
        return (
            [(self.conv1, self.norm1), (self.conv2, self.norm2)] if self.light else [(self.conv, self.norm)]
        )

    def window(self, x: Tensor) -> Tensor:
        """Return T(x) for channels in dimension 1."""
        if self.light:
            return self.norm1(self.conv1(x)) + self.norm2(self.conv2(x))
        return self.norm(self.conv(x))

    def combine(self, x: Tensor, window: Tensor) -> Tensor:
        """Return the output for the input and its window T(x)."""
        return torch.maximum(x, window)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.dims + 2:
            legal = "(N, C, H, W); dims=1 is the form for (N, C, L)" if self.dims == 2 else "(N, C, L)"
            raise ValueError(f"input of shape {tuple(x.shape)}: a window over positions must have {legal}")
        self.check_input(x)
        if 0 in x.shape[1:]:
            return self.of_no_positions(x)
        x = x.movedim(self.channel_dim, 1)
        y = self._fused(x)
        if y is None:
            y = self.combine(x, self.window(x).to(x.dtype))
        return y.movedim(1, self.channel_dim)

    def _fused(self, x: Tensor) -> Tensor | None:
        """Return the output of the fused kernel, or None where the modules must compute it."""
        if type(self) not in (FReLU, DwConvReLU) or self.dims != 2:
            return None
        pairs = self._branches()
        train = bool(pairs[0][1].training)
        if not all(_plain(conv, norm, self.light, train) for conv, norm in pairs):
            return None
        branches = [kernel.branch(conv, norm) for conv, norm in pairs]
        kernels = kernel.backend(x, branches, train)
        if not kernels:
            return None
        if train:
            for _, norm in pairs:
                norm.num_batches_tracked += 1
        return kernel.window(kernels, x, branches, max_with_input=type(self) is FReLU, train=train)


class DwConvReLU(FReLU):
    """y = max(0, T(x)), T the window of FReLU: a depthwise convolution and ReLU, at the same cost.

    The control that tells what in FReLU is the convolution and what is the maximum with the input.
    """

    def combine(self, x: Tensor, window: Tensor) -> Tensor:
        return window.relu()


def _window(channels: int, kernel_size: tuple[int, ...], bias: bool) -> tuple[Any, Any]:
    cls, norm = (nn.Conv2d, BatchNorm2d) if len(kernel_size) == 2 else (nn.Conv1d, BatchNorm1d)
    padding = tuple(k // 2 for k in kernel_size)
    window = bare(cls, channels, channels, kernel_size, padding=padding, groups=channels, bias=bias)
    return window, norm(channels)


class _SkipsBadBatches(BatchNorm):
    """Batch norm whose running statistics one batch with a NaN does not spoil for ever.

    Exponential means leave out the channels that are not finite. Cumulative ones (``momentum=None``, as
    ``torch.optim.swa_utils.update_bn`` sets it) leave out the whole batch and do not count it: they stay the plain
    mean of all batches that entered, for which there is one count for all channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        running_mean, running_var, count = self.running_mean, self.running_var, self.num_batches_tracked
        idle = not (self.training and self.track_running_stats) or (self.momentum is None and count is None)
        if idle or running_mean is None or running_var is None:
            return super().forward(x)
        # with a share of 1, new statistics are the batch's own
        share = 1.0 if self.momentum is None else self.momentum
        mean, var = running_mean.clone(), running_var.clone()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, share, self.eps)
        with torch.no_grad():
            good = mean.isfinite(), var.isfinite()
            if self.momentum is None:
                assert count is not None
                entire = (good[0] & good[1]).all()
                good = entire, entire
                count += entire
                part = count.to(mean.dtype).clamp_min(1).reciprocal()
                mean, var = torch.lerp(running_mean, mean, part), torch.lerp(running_var, var, part)
            elif count is not None:
                count += 1
            running_mean.copy_(torch.where(good[0], mean, running_mean))
            running_var.copy_(torch.where(good[1], var, running_var))
        return y


class BatchNorm1d(_SkipsBadBatches, nn.BatchNorm1d):
    """For (N, C, L)."""


class BatchNorm2d(_SkipsBadBatches, nn.BatchNorm2d):
    """For (N, C, H, W)."""


def _plain(conv: nn.Module, norm: nn.Module, light: bool, train: bool) -> bool:
    """Whether both are as ``_window`` made them, with a window of 3, and nobody looks at what passes between them."""
    return (
        library.is_plain(conv, nn.Conv2d)
        and library.is_plain(norm, BatchNorm2d)
        and norm.training == train
        and conv.kernel_size in ((3, 3), (1, 3), (3, 1))
        and conv.padding == tuple(k // 2 for k in conv.kernel_size)
        and (conv.stride, conv.dilation, conv.padding_mode) == ((1, 1), (1, 1), "zeros")
        and (conv.bias is None) == light
        and all(value is not None for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
        and (not train or _is_exponential(norm))
    )


def _is_exponential(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch in training enters running means with a fixed share."""
    tracks = norm.track_running_stats and norm.num_batches_tracked is not None
    return tracks and norm.momentum is not None
