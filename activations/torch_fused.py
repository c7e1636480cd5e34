"""The activations of torch.nn that torch computes slowly on the CPU: adapters with a fused kernel, taken where it is faster.

Below 2^18 elements, and where the compiled file for this processor has no advantage, they are torch's own operations;
torch.jit.script compiles those in any case.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.kernels import library
from activations.kernels.pointwise import pointwise
from activations.torch_nn import TorchActivation

# Number of elements from which a kernel is faster than torch's own operation, whose call is shorter.
MIN_FUSED = 2**18

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class FusedTorchActivation(TorchActivation):
    """Base of the adapters with a kernel. Takes the arguments of the layer, and raises what ``TorchActivation`` raises."""

    # Name of the kernel in csrc/smooth.cpp; empty if there is none for this choice of arguments.
    kernel: str = ""
    # The compiled files in which it is faster than torch's operation.
    variants: ClassVar[tuple[str, ...]] = ("avx2", "avx512", "neon")

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # What follows is not compiled.
            return self.compute(x)
        return self.function(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return y by the kernel or by torch's own operation, whichever is faster."""
        # The number of elements of a traced batch is unknown, and must not be asked for.
        many = not torch.compiler.is_compiling() and x.numel() >= MIN_FUSED
        if many and self.kernel and library.variant() in self.variants and library.fusable(x):
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


class ELU(FusedTorchActivation):
    """x above 0, alpha (exp(x) - 1) below. Clevert, Unterthiner, Hochreiter, arXiv 1511.07289, equation 15.

    Args:
        alpha: -alpha is the limit for x -> -infinity, finite; 1 by default.
    """

    layer = nn.ELU
    kernel = "elu"

    def coefficients(self) -> tuple[float, ...]:
        return 1.0, float(self.function.alpha), 1.0  # type: ignore[arg-type]


class SELU(FusedTorchActivation):
    """1.0507 ELU(x; 1.6733). Klambauer, Unterthiner, Mayr, Hochreiter, arXiv 1706.02515, equation 2."""

    layer = nn.SELU
    kernel = "elu"

    def coefficients(self) -> tuple[float, ...]:
        return SELU_SCALE, SELU_SCALE * SELU_ALPHA, 1.0


class CELU(FusedTorchActivation):
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


class GELU(FusedTorchActivation):
    """x Phi(x), Phi the normal cdf. Hendrycks, Gimpel, arXiv 1606.08415, section 2.

    Args:
        approximate: ``none`` (default), or ``tanh``: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """

    layer = nn.GELU

    def __init__(self, num_features: int, *, channel_dim: int = 1, **hyper: float | str) -> None:
        super().__init__(num_features, channel_dim=channel_dim, **hyper)
        # With the error function torch is as fast, on contiguous tensors.
        self.kernel = "gelu_tanh" if self.function.approximate == "tanh" else ""

    def compute(self, x: Tensor) -> Tensor:
        # Of a map in channels_last, a contiguous tensor in another order, torch takes up to twice the time.
        at_once = self.kernel or torch.compiler.is_compiling() or x.device.type != "cpu" or x.is_contiguous()
        if not at_once and x.dim() == 4 and (rows := x.permute(0, 2, 3, 1)).is_contiguous():
            return super().compute(rows).permute(0, 3, 1, 2)
        return super().compute(x)


class Mish(FusedTorchActivation):
    """x tanh(softplus(x)). Misra, arXiv 1908.08681, equation 1."""

    layer = nn.Mish
    kernel = "mish"


class Softplus(FusedTorchActivation):
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


class Tanh(FusedTorchActivation):
    """tanh(x)."""

    layer = nn.Tanh
    kernel = "tanh"
    variants = ("avx2",)
