"""Layers with the one initialisation that all networks here share."""

from collections.abc import Sequence

from torch import nn


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with same padding and no bias (a norm follows), He-initialised (arXiv 1502.01852, fan-out).

    The gain is ReLU's whatever the activation: a gain that depended on it would be part of what is compared.
    """
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def image_channels(name: str, input_shape: Sequence[int]) -> int:
    """Channels of the images that a convolutional network is to take.

    Raises:
        ValueError: no images.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"network={name}: takes images (C, H, W), this task has samples of shape {tuple(input_shape)}"
        )
    return input_shape[0]
