"""GCT. Yang, Zhu, Wu, Yang: Gated Channel Transformation for Visual Recognition, CVPR 2020, arXiv 1909.11519,
equations 2 to 6, with the placement of eps as in the authors' code (C times larger than the paper's).

Not Gaussian Context Transformer, which shares the acronym.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation
from activations.checks import check_bool, check_choice, check_number
from activations.kernels import gate, library
from activations.kernels.networks import NormGate
from activations.torch_nn import ReLU


class GCT(Activation):
    r"""A gate per channel from the norms of all channels, after or before a base activation.

        l2:  s_c = alpha_c (sum_positions x_c^2 + eps)^(1/2),  sh_c = gamma_c s_c / (mean_c s^2 + eps)^(1/2)
        l1:  s_c = alpha_c sum_positions |x_c|,                sh_c = gamma_c s_c / (mean_c |s| + eps)
        y_c = x_c (1 + tanh(sh_c + beta_c))

    Norms are computed in float32 at least: sums of squares overflow half precision.

    Args:
        mode: l2 (the paper's) or l1.
        after_relu: in l1, the input is known not to be negative, and |x| is left out.
        eps: above 0; the authors' is 1e-5.
        base: factory of the base activation; null for the gate alone, which is no non-linearity.
        position: of the gate, ``after`` the base activation, where it feeds the next convolution as in the paper,
            or ``before`` it.

    Parameters ``alpha``, ``gamma``, ``beta`` (num_features,), any real values, initially 1, 0, 0: the identity. While
    gamma = 0, alpha gets no gradient. beta is not decayed (section 4.1 of the paper), alpha and gamma are.

    Raises:
        ValueError: a value is outside its range.
    """

    diagnostic_roles: ClassVar[Mapping[str, str]] = dict.fromkeys(("alpha", "gamma", "beta"), "gate")

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        mode: str = "l2",
        after_relu: bool = False,
        eps: float = 1e-5,
        base: Callable[..., Activation] | None = None,
        position: str = "after",
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_choice("mode", mode, ("l2", "l1"))
        check_choice("position", position, ("after", "before"))
        check_bool("after_relu", after_relu)
        check_number("eps", eps, above=0)
        if after_relu and (mode != "l1" or position != "after"):
            raise ValueError("after_relu=True: requires mode=l1 and position=after")
        self.mode, self.after_relu, self.eps, self.position = mode, after_relu, eps, position
        self.base = nn.Identity() if base is None else _make_base(base, num_features, channel_dim)
        self.alpha, self.gamma, self.beta = (nn.Parameter(torch.empty(self.num_features)) for _ in range(3))
        self._reset_gate()

    def reset_parameters(self) -> None:
        if isinstance(self.base, Activation):
            self.base.reset_parameters()
        self._reset_gate()

    def _reset_gate(self) -> None:
        self.assign("alpha", 1.0)
        self.assign("gamma", 0.0)
        self.assign("beta", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        with_relu = library.is_plain(self.base, ReLU) and library.is_plain(self.base.function, nn.ReLU)
        if self.position == "before":
            return self._gated(gate.relu_scale, x) if with_relu else self.base(self._gated(gate.scale, x))
        return self._gated(gate.scale_relu, x) if with_relu else self._gated(gate.scale, self.base(x))

    def _gated(self, form: Callable[..., Tensor], x: Tensor) -> Tensor:
        parameters = (self.alpha, self.gamma, self.beta)
        network = NormGate(self.mode == "l2", self.eps)
        return gate.gated(form, self._norm, x, network, *parameters, channel_dim=self.channel_dim)

    @property
    def _norm(self) -> Callable[..., Tensor]:
        if self.mode == "l2":
            return gate.total_square
        return gate.total if self.after_relu else gate.total_abs

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"beta"})

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"alpha": self.alpha, "gamma": self.gamma, "beta": self.beta}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode}, position={self.position}"


def _make_base(base: Callable[..., Activation], num_features: int, channel_dim: int) -> Activation:
    try:
        unit = base(num_features, channel_dim=channel_dim)
    except TypeError as error:  # no factory, or a factory of something else
        raise ValueError(f"base: {error}; must be an activation with _target_ and _partial_: true") from None
    if not isinstance(unit, Activation):
        raise ValueError(f"base: {type(unit).__name__} must be a subclass of activations.base.Activation")
    return unit
