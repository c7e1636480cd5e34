"""Layers with the initialization that all networks here share."""

from collections.abc import Sequence

from torch import nn


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution with same padding and no bias (a norm follows), He-initialized (arXiv 1502.01852, fan-out).

    The gain is ReLU's whatever the activation: a gain that depended on it would be part of what is compared.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def image_channels(input_shape: Sequence[int]) -> int:
    """Return the number of channels of the inputs of a convolutional network.

    Raises:
        ValueError: inputs that are not images.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"the network takes images (C, H, W), but samples of this task have shape {tuple(input_shape)}"
        )
    return input_shape[0]
