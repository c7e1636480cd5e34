"""U-Net. Ronneberger, Fischer, Brox: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015, arXiv 1505.04597.

Other than there: same padding, so that the map is as large as the image (the paper's shrinks by 184 pixels); batch norm
after every convolution; a skip is joined after upsampling to its size by nearest neighbours, without the paper's 2 x 2
up-convolution; no dropout; 16 and not 64 channels at full size, and three poolings, not four.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import ActLayer, check_whole
from tasks.networks.layers import conv, image_channels


class UNet(nn.Module):
    """Two convolutions at every level on the way down and on the way up, joined by skips.

    Args:
        act_layer: called once for each of the 2 (2 depth + 1) sites.
        width: channels at full size, at least 1; doubled by each pooling.
        depth: number of poolings, at least 1; sizes need not be multiples of 2^depth.

    Shape:
        (N, C, H, W) to (N, num_outputs, H, W).

    Raises:
        ValueError: no images, or images that the last pooling would leave nothing of.
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
        check_whole("network.width", width, 1)
        check_whole("network.depth", depth, 1)
        channels = image_channels("unet", input_shape)
        if min(input_shape[1:]) < 2**depth:
            raise ValueError(
                f"network.depth={depth}: halves images {depth} times, so they need {2**depth} x {2**depth} pixels, "
                f"this task has {input_shape[1]} x {input_shape[2]}"
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
