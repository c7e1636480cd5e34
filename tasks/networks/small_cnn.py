"""A plain convolutional network for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from tasks.base import ActLayer, check_list
from tasks.networks.layers import conv, image_channels


class SmallCNN(nn.Module):
    """3x3 convolution, batch norm and activation for each width (halving the size from the second on), mean, linear.

    Args:
        act_layer: called once for each width.
        widths: channels of the layers, one or more.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: no widths.
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
        check_list("network.widths", widths, "whole and at least 1", lambda v: v >= 1 and v == int(v))
        channels = image_channels("small_cnn", input_shape)
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
