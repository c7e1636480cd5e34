"""U-Net. Ronneberger, Fischer, Brox: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015, arXiv 1505.04597.

Differences to the paper: same padding, so that the map is as large as the image (the paper's shrinks by 184 pixels); batch
norm after every convolution; a skip is concatenated after upsampling to its size by nearest neighbors, without the paper's
2 x 2 up-convolution; no dropout; 16 and not 64 channels at full size, and three poolings, not four.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_int
from tasks.base import ActLayer
from tasks.networks.layers import conv, image_channels


class UNet(nn.Module):
    """Two convolutions at every level on the way down and on the way up, joined by skips.

    Args:
        act_layer: called once for each of the 2 (2 depth + 1) sites.
        input_shape: (C, H, W).
        num_outputs: number of outputs per pixel.
        width: channels at full size, >= 1; doubled by each pooling.
        depth: number of poolings, >= 1; sizes need not be multiples of 2^depth.

    Shape:
        (N, C, H, W) to (N, num_outputs, H, W).

    Raises:
        ValueError: inputs that are not images, or are too small for the last pooling.

    Examples:
        >>> import torch
        >>> from activations.prelu import PReLU
        >>> UNet(PReLU, (3, 20, 24), 6, width=8)(torch.zeros(1, 3, 20, 24)).shape
        torch.Size([1, 6, 20, 24])
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        width: int = 16,
        depth: int = 3,
    ) -> None:
        super().__init__()
        check_int("width", width, minimum=1)
        check_int("depth", depth, minimum=1)
        channels = image_channels(input_shape)
        if min(input_shape[1:]) < 2**depth:
            raise ValueError(
                f"depth={depth}: {depth} poolings take images of at least {2**depth} x {2**depth} pixels, this task has "
                f"{input_shape[1]} x {input_shape[2]}"
            )
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            Block(act_layer, before, after)
            for before, after in zip([channels, *widths], widths[:-1], strict=False)
        )
        self.bottom = Block(act_layer, widths[-2], widths[-1])
        self.up = nn.ModuleList(Block(act_layer, 3 * after, after) for after in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[2:])
            x = block(torch.cat((skip, x), 1))
        return self.head(x)


class Block(nn.Module):
    """3 x 3 convolution, batch norm and activation, twice."""

    def __init__(self, act_layer: ActLayer, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = act_layer(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = act_layer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))
