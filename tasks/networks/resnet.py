"""ResNet for CIFAR. He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016, arXiv 1512.03385, section 4.2."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_int
from tasks.base import ActLayer
from tasks.networks.layers import conv, image_channels


class ResNet(nn.Module):
    """Three stages of basic blocks at full, half and quarter size; depth = 6 n + 2 weighted layers.

    Shortcuts have no parameters (the paper's option A: every second pixel, missing channels are zero).

    Args:
        act_layer: called once for each of the 2 * 3 n + 1 sites.
        input_shape: (C, H, W).
        num_outputs: number of outputs.
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        width: channels of the first stage, >= 1; doubled at each of the next two.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: a depth that is not 6 n + 2.

    Examples:
        >>> import torch
        >>> from activations.prelu import PReLU
        >>> ResNet(PReLU, (3, 32, 32), 10, depth=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        depth: int = 20,
        width: int = 16,
    ) -> None:
        super().__init__()
        check_int("width", width, minimum=1)
        check_int("depth", depth, minimum=8)
        if (depth - 2) % 6:
            raise ValueError(f"depth={depth}: must be 6 n + 2, such as 8, 14, 20, 32, 44 or 56")
        self.conv = conv(image_channels(input_shape), width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.act = act_layer(width)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                out_channels = width * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(act_layer, channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.blocks(x)
        return self.head(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """conv, norm, act, conv, norm, plus the input, act."""

    def __init__(self, act_layer: ActLayer, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = act_layer(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = act_layer(out_channels)
        self.stride = stride
        self.missing = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input if shapes agree, else the paper's option A of it."""
        if self.stride == 1 and self.missing == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
