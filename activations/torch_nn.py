"""The scalar activations that torch.nn has, as units of this project; formulas as in torch's documentation.

An adapter is needed because torch.nn's constructors take other arguments first: ``nn.ReLU(64)`` is an
in-place ReLU, ``nn.ELU(64)`` an ELU with alpha = 64, and neither complains.

Those that torch computes slowly on the CPU are in torch_fused.py, so that the code of ReLU depends on no kernel.
"""

import inspect
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn

from activations.base import Activation
from activations.checks import check_choice, check_number


class TorchActivation(Activation):
    """Base of the adapters: an element-wise, parameter-free ``layer`` of torch.nn.

    Args:
        hyper: the layer's own arguments, such as ``alpha``, with its defaults.

    Raises:
        ValueError: a number is not finite, or a divisor not above 0; ``approximate`` is unknown.
        TypeError: the layer has no such argument.

    Examples:
        >>> import torch
        >>> LeakyReLU(64, negative_slope=0.5)(torch.tensor([[-1.0]]).expand(1, 64))[0, 0].item()
        -0.5
    """

    scriptable = True
    layer: ClassVar[type[nn.Module]]
    # Arguments that are used as divisors and must be above 0.
    divisors: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_features: int, *, channel_dim: int = 1, **hyper: float | str) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        legal = inspect.signature(self.layer).parameters.keys() - {"inplace"}
        if unknown := hyper.keys() - legal:
            raise TypeError(f"{type(self).__name__} takes no argument '{unknown.pop()}'")
        for name, value in hyper.items():
            if name == "approximate":
                check_choice(name, value, ("none", "tanh"))
            else:
                check_number(name, value, above=0 if name in self.divisors else None)
        self.function = self.layer(**hyper)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def curves(self, x: Tensor) -> Tensor:
        return self.function(x).unsqueeze(0)


class ReLU(TorchActivation):
    """max(x, 0). Nair, Hinton, ICML 2010."""

    layer = nn.ReLU


class LeakyReLU(TorchActivation):
    """max(x, 0) + negative_slope min(x, 0). Maas, Hannun, Ng, ICML 2013 workshop.

    Args:
        negative_slope: slope below 0, finite; 0.01 by default.
    """

    layer = nn.LeakyReLU


class HardSwish(TorchActivation):
    """x min(max(x + 3, 0), 6) / 6. Howard et al. (MobileNetV3), arXiv 1905.02244, section 5.2."""

    layer = nn.Hardswish


class Sigmoid(TorchActivation):
    """1 / (1 + exp(-x))."""

    layer = nn.Sigmoid


def __getattr__(name: str) -> Any:
    """Return an adapter that has moved to ``activations.torch_fused``, which ReLU must not import."""
    if name in ("CELU", "ELU", "GELU", "Mish", "SELU", "Softplus", "Tanh"):
        return getattr(import_module("activations.torch_fused"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
