"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from tasks.base import ActLayer, check_list


class MLP(nn.Module):
    """Linear layers with an activation between them, torch's default initialisation.

    Args:
        act_layer: called once for each hidden layer.
        hidden: widths of the hidden layers, one or more.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: no hidden layer.
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
        check_list("network.hidden", hidden, "whole and at least 1", lambda v: v >= 1 and v == int(v))
        layers: list[nn.Module] = []
        for before, width in pairwise((prod(input_shape), *hidden)):
            layers += [nn.Linear(before, width), act_layer(width)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))
