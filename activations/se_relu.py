"""SE-ReLU. Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507, equations 2 to 4.

The block after a ReLU, the order of MobileNetV3 (arXiv 1905.02244): what DyReLU's paper compares itself with.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from activations.base import Activation, bare
from activations.checks import check_int
from activations.kernels import gate
from activations.kernels.networks import Squeeze


class SEReLU(Activation):
    r"""y_c = r_c sigmoid(fc2(relu(fc1(mean of r over positions))))_c with r = relu(x).

    (N, C) input has no positions: it is its own mean.

    Args:
        reduction: fc1 has max(num_features // reduction, min_hidden) units; the paper's is 16.
        min_hidden: at least 1.

    Parameters: those of ``fc1`` (C -> hidden) and ``fc2`` (hidden -> C), torch's default initialization. Biases are
    not decayed.

    Raises:
        ValueError: a value is outside its range.
    """

    diagnostic_roles: ClassVar[Mapping[str, str]] = {"gate": "gate"}

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, reduction: int = 16, min_hidden: int = 4
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("reduction", reduction, minimum=1)
        check_int("min_hidden", min_hidden, minimum=1)
        channels = self.num_features
        hidden = max(channels // reduction, min_hidden)
        self.fc1, self.fc2 = bare(nn.Linear, channels, hidden), bare(nn.Linear, hidden, channels)
        self.network = Squeeze(channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def gate(self, r: Tensor) -> Tensor:
        """Return the gate, (N, C), in (0, 1), from the rectified input."""
        (values,), _ = self.network([gate.mean(r, self.channel_dim)], [self.fc1, self.fc2])
        return values.squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        layers = (self.fc1, self.fc2)
        return gate.gated(gate.scale_relu, gate.mean, x, self.network, *layers, channel_dim=self.channel_dim)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {} if x is None else {"gate": self.gate(x.relu())}
