"""The scalar activations that torch.nn has, as units of this project.

ReLU, LeakyReLU, ELU (arXiv 1511.07289), SELU (1706.02515), CELU (1704.07483), GELU (1606.08415),
Mish (1908.08681), Hardswish (1905.02244), Softplus, Tanh and Sigmoid; formulas in torch's documentation.
An adapter is needed because torch.nn's constructors take other arguments first: ``nn.ReLU(64)`` is an
in-place ReLU, ``nn.ELU(64)`` an ELU with alpha = 64, and neither complains.
"""

from torch import Tensor, nn

from activations.base import Activation, check_finite


class TorchActivation(Activation):
    """A parameter-free element-wise activation of torch.nn: ``getattr(torch.nn, layer)(**hyper)``.

    Args:
        layer: the name of the class in torch.nn.
        hyper: its own arguments, such as ``alpha``.

    Raises:
        ValueError: no such class in torch.nn, a class with parameters, or an argument that is not finite.
        TypeError: an argument that the class does not take.
    """

    def __init__(self, num_features: int, *, channel_dim: int = 1, layer: str, **hyper: float | str) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        cls = getattr(nn, layer, None)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__.endswith(".activation")):
            raise ValueError(f"layer={layer!r}: torch.nn has no such activation")
        check_finite(**{name: value for name, value in hyper.items() if not isinstance(value, str)})
        self.layer = cls(**hyper)
        if next(self.layer.parameters(), None) is not None:
            raise ValueError(f"layer={layer!r}: has parameters, so it needs a unit of its own")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def curves(self, x: Tensor) -> Tensor:
        return self.layer(x).unsqueeze(0)
