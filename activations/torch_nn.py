"""The scalar activations that torch.nn has, as units of this project; formulas as in torch's documentation.

An adapter is needed because torch.nn's constructors take other arguments first: ``nn.ReLU(64)`` is an
in-place ReLU, ``nn.ELU(64)`` an ELU with alpha = 64, and neither complains.

torch computes some of them slowly on the CPU; these have a fused kernel, which is taken where it is faster. torch.jit.script
compiles all of them, and takes torch's own operation.
"""

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation
from activations.checks import check_choice, check_number
from activations.kernels import library
from activations.kernels.pointwise import pointwise

# Number of elements from which a kernel is faster than torch's own operation, whose call is shorter.
MIN_FUSED = 2**18

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class TorchActivation(Activation):
    """Base of the adapters: an element-wise, parameter-free ``layer`` of torch.nn.

    Args:
        hyper: the layer's own arguments, such as ``alpha``, with its defaults.

    Raises:
        ValueError: a number is not finite, or a divisor not above 0; ``approximate`` is unknown.
        TypeError: the layer has no such argument.

    Examples:
        >>> import torch
        >>> ELU(64, alpha=0.5)(torch.tensor([[-100.0]]).expand(1, 64))[0, 0].item()
        -0.5
    """

    scriptable = True
    layer: ClassVar[type[nn.Module]]
    # Arguments that are used as divisors and must be above 0.
    divisors: ClassVar[tuple[str, ...]] = ()
    # Name of the kernel in csrc/smooth.cpp, empty where torch's own operation is as fast.
    kernel: str = ""
    # The compiled files in which it is faster than torch's.
    variants: ClassVar[tuple[str, ...]] = ("avx2", "avx512", "neon")

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
        if not torch.jit.is_scripting():  # What follows is not compiled.
            return self.compute(x)
        return self.function(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return y by the kernel or by torch's own operation, whichever is faster."""
        if (
            self.kernel
            and x.numel() >= MIN_FUSED
            and library.variant() in self.variants
            and library.fusable(x)
        ):
            coefficients = [x.new_full((1,), value) for value in self.coefficients()]
            return pointwise(self.kernel, self.reference, x, *coefficients)
        y: Tensor = self.function(x)
        return y

    def reference(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        """Return y by torch's own operation, which has the coefficients itself."""
        y: Tensor = self.function(x)
        return y

    def coefficients(self) -> tuple[float, ...]:
        """Return the numbers that the kernel takes."""
        return ()

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


class ELU(TorchActivation):
    """x above 0, alpha (exp(x) - 1) below. Clevert, Unterthiner, Hochreiter, arXiv 1511.07289, equation 15.

    Args:
        alpha: -alpha is the limit for x -> -infinity, finite; 1 by default.
    """

    layer = nn.ELU
    kernel = "elu"

    def coefficients(self) -> tuple[float, ...]:
        return 1.0, float(self.function.alpha), 1.0  # type: ignore[arg-type]


class SELU(TorchActivation):
    """1.0507 ELU(x; 1.6733). Klambauer, Unterthiner, Mayr, Hochreiter, arXiv 1706.02515, equation 2."""

    layer = nn.SELU
    kernel = "elu"

    def coefficients(self) -> tuple[float, ...]:
        return SELU_SCALE, SELU_SCALE * SELU_ALPHA, 1.0


class CELU(TorchActivation):
    """max(x, 0) + min(0, alpha (exp(x / alpha) - 1)). Barron, arXiv 1704.07483, equation 2.

    Args:
        alpha: -alpha is the limit for x -> -infinity, above 0; 1 by default.
    """

    layer = nn.CELU
    divisors = ("alpha",)
    kernel = "elu"

    def coefficients(self) -> tuple[float, ...]:
        alpha = float(self.function.alpha)  # type: ignore[arg-type]
        return 1.0, alpha, 1 / alpha


class GELU(TorchActivation):
    """x Phi(x), Phi the normal cdf. Hendrycks, Gimpel, arXiv 1606.08415, section 2.

    Args:
        approximate: ``none`` (default), or ``tanh``: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """

    layer = nn.GELU

    def __init__(self, num_features: int, *, channel_dim: int = 1, **hyper: float | str) -> None:
        super().__init__(num_features, channel_dim=channel_dim, **hyper)
        self.kernel = "gelu_tanh" if self.function.approximate == "tanh" else "gelu"


class Mish(TorchActivation):
    """x tanh(softplus(x)). Misra, arXiv 1908.08681, equation 1."""

    layer = nn.Mish
    kernel = "mish"


class HardSwish(TorchActivation):
    """x min(max(x + 3, 0), 6) / 6. Howard et al. (MobileNetV3), arXiv 1905.02244, section 5.2."""

    layer = nn.Hardswish


class Softplus(TorchActivation):
    """log(1 + exp(beta x)) / beta, and x where beta x is above threshold. Dugas et al., NIPS 2000.

    Args:
        beta: sharpness, above 0; 1 by default.
        threshold: of the linear part, finite; 20 by default.
    """

    layer = nn.Softplus
    divisors = ("beta",)
    kernel = "softplus"

    def coefficients(self) -> tuple[float, ...]:
        beta, threshold = self.function.beta, self.function.threshold
        return float(beta), 1 / float(beta), float(threshold)  # type: ignore[arg-type]


class Tanh(TorchActivation):
    """tanh(x)."""

    layer = nn.Tanh
    kernel = "tanh"
    variants = ("avx2",)


class Sigmoid(TorchActivation):
    """1 / (1 + exp(-x))."""

    layer = nn.Sigmoid
    kernel = "sigmoid"
    variants = ("avx2",)
