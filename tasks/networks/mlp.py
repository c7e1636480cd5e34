"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt

from torch import Tensor, nn

from activations.checks import check_choice, check_list, check_number
from tasks.base import ActLayer

INITS = ("torch", "siren")


class MLP(nn.Module):
    """Linear layers with an activation between them.

    The initial weights are the same for all activations of a cell's network settings: torch's default, or those that
    periodic units need. ``init`` is a setting of the network, so that the report names it with the activation.

    Args:
        act_layer: called once for each hidden layer.
        input_shape: of one sample.
        num_outputs: number of outputs.
        hidden: widths of the hidden layers, one or more, >= 1.
        init: torch: U(-1/sqrt(n), 1/sqrt(n)) for n inputs. siren: U(-1/n, 1/n) in the first layer and
            U(-sqrt(6/n)/omega, sqrt(6/n)/omega) in the others, the last included, for units that multiply their input
            by ``omega`` (Sitzmann et al., arXiv 2006.09661, section 3.2); biases as in torch.
        omega: of ``init=siren``, > 0.
        first_bias: k > 0 draws the first layer's bias from U(-k, k), as FINER does (arXiv 2312.02434, section 3.3); null
            leaves it as ``init`` has it.

    Shape:
        (N, *input_shape) to (N, num_outputs).

    Raises:
        ValueError: no hidden layer, or a value outside its range.

    Examples:
        >>> from activations.sine import Sine
        >>> siren = MLP(Sine, (2,), 3, hidden=(64, 64), init="siren")
        >>> bool(siren.layers[2].weight.abs().max() <= (6 / 64) ** 0.5 / 30)
        True
    """

    def __init__(
        self,
        act_layer: ActLayer,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        hidden: Sequence[int] = (50,),
        init: str = "torch",
        omega: float = 30.0,
        first_bias: float | None = None,
    ) -> None:
        super().__init__()
        check_list("hidden", hidden, integers=True, minimum=1)
        check_choice("init", init, INITS)
        check_number("omega", omega, above=0)
        if first_bias is not None:
            check_number("first_bias", first_bias, above=0)
        layers: list[nn.Module] = []
        for before, width in pairwise((prod(input_shape), *hidden)):
            layers += [nn.Linear(before, width), act_layer(width)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_outputs))
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        if init == "siren":
            for index, layer in enumerate(linear):
                n = layer.in_features
                bound = sqrt(6 / n) / omega if index else 1 / n
                nn.init.uniform_(layer.weight, -bound, bound)
        if first_bias is not None:
            nn.init.uniform_(linear[0].bias, -first_bias, first_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))
