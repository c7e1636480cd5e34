"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from activations.checks import check_list
from tasks.base import ActLayer


class MLP(nn.Module):
    """Linear layers with an activation between them, torch's default initialization.

    Args:
        act_layer: called once for each hidden layer.
        input_shape: of one sample.
        num_outputs: number of outputs.
        hidden: widths of the hidden layers, one or more, >= 1.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: no hidden layer.

    Examples:
        >>> import torch
        >>> from activations.prelu import PReLU
        >>> MLP(PReLU, (2,), 1, hidden=[50])(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        hidden: Sequence[int] = (50,),
    ) -> None:
        super().__init__()
        check_list("hidden", hidden, integers=True, minimum=1)
        layers: list[nn.Module] = []
        for before, width in pairwise((prod(input_shape), *hidden)):
            layers += [nn.Linear(before, width), act_layer(width)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))
