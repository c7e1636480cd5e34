"""A plain convolutional network for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from activations.checks import check_list
from tasks.base import ActLayer
from tasks.networks.layers import conv, image_channels


class SmallCNN(nn.Module):
    """3x3 convolution, batch norm and activation for each width (halving the size from the second on), mean, linear.

    Args:
        act_layer: called once for each width.
        input_shape: (C, H, W).
        num_outputs: number of outputs.
        widths: channels of the layers, one or more, >= 1.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: no widths.

    Examples:
        >>> import torch
        >>> from activations.prelu import PReLU
        >>> SmallCNN(PReLU, (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        check_list("widths", widths, integers=True, minimum=1)
        channels = image_channels(input_shape)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += [
                conv(channels, width, 3, stride=1 if i == 0 else 2),
                nn.BatchNorm2d(width),
                act_layer(width),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))
