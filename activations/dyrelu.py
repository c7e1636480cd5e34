"""DyReLU. Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic ReLU, ECCV 2020, arXiv 2003.10027, equations 1 to 5.

The coefficient rule is the paper's, as in common ports. The authors published form C within DynamicHead alone,
with a batch norm in place of the temperature; here it is the paper's.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation, bare, upcast
from activations.checks import check_bool, check_choice, check_int, check_list, check_number
from activations.kernels import gate, library
from activations.kernels.networks import Squeeze
from activations.torch_private import softmax_backward


class DyReLU(Activation):
    r"""y_c = max_k (a_c^k x_c + b_c^k), with coefficients that a small network computes from the whole input.

        theta = 2 sigmoid(fc2(relu(fc1(mean of x over positions)))) - 1
        a^k = init_a^k + lambda_a theta_a^k,  b^k = init_b^k + lambda_b theta_b^k

    Form A has one set of K slopes and K intercepts per sample, B one per sample and channel, and C multiplies those
    of B by a map over positions, pi = min(P / 3 softmax_positions(conv1x1(x) / temperature), 1) with P positions. As
    pi > 0, that is pi times the output of B. (N, C) input has no positions: it is its own mean, and C is B.

    Args:
        form: A, B (the paper's for classification) or C (for keypoints).
        pieces: K, at least 1; the paper's is 2.
        reduction: fc1 has max(num_features // reduction, min_hidden) units; the paper's is 8.
        min_hidden: at least 1. Plain C // R is 0 for narrow layers, and the unit would no longer see its input.
        lambda_a, lambda_b: ranges of the residuals, finite; the paper's are 1 and 0.5.
        init_a, init_b: K numbers each, or null for the paper's (1, 0, ..., 0) and zeros, which is ReLU.
        temperature: of form C, above 0; the paper's is 10.
        zero_init: start with zero residuals, exactly at init_a and init_b; else fc2 starts at random like any
            linear layer, which leaves residuals of about 0.07.

    Parameters: those of ``fc1`` (C -> hidden) and ``fc2`` (hidden -> 2 K or 2 K C, for each channel K slopes, then K
    intercepts), ``attention`` (C,) in form C: the 1x1 convolution, whose bias the softmax would cancel. Biases are
    not decayed.

    Raises:
        ValueError: a value is outside its range.
    """

    diagnostic_roles: ClassVar[Mapping[str, str]] = {"coefficients": "coefficients"}

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        form: str = "B",
        pieces: int = 2,
        reduction: int = 8,
        min_hidden: int = 4,
        lambda_a: float = 1.0,
        lambda_b: float = 0.5,
        init_a: Sequence[float] | None = None,
        init_b: Sequence[float] | None = None,
        temperature: float = 10.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_choice("form", form, ("A", "B", "C"))
        for name, integer in (("pieces", pieces), ("reduction", reduction), ("min_hidden", min_hidden)):
            check_int(name, integer, minimum=1)
        check_number("lambda_a", lambda_a)
        check_number("lambda_b", lambda_b)
        check_number("temperature", temperature, above=0)
        check_bool("zero_init", zero_init)
        init_a = [1.0] + [0.0] * (pieces - 1) if init_a is None else init_a
        init_b = [0.0] * pieces if init_b is None else init_b
        check_list("init_a", init_a, length=pieces)
        check_list("init_b", init_b, length=pieces)
        self.form, self.pieces, self.zero_init = form, pieces, zero_init
        channels = self.num_features
        hidden = max(channels // reduction, min_hidden)
        self.fc1 = bare(nn.Linear, channels, hidden)
        self.fc2 = bare(nn.Linear, hidden, 2 * pieces * (1 if form == "A" else channels))
        if form == "C":
            self.attention = nn.Parameter(torch.empty(channels))
        initial = [float(value) for value in (*init_a, *init_b)]
        scale = [float(lambda_a)] * pieces + [float(lambda_b)] * pieces
        self.network = _Residuals(1 if form == "A" else channels, initial, scale, temperature)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.fc2.weight)
            nn.init.zeros_(self.fc2.bias)
        if self.form == "C":
            reach = self.num_features**-0.5  # as torch's convolution
            drawn = torch.empty(self.num_features, device=self.attention.device).uniform_(-reach, reach)
            self.assign("attention", drawn)

    def coefficients(self, x: Tensor) -> Tensor:
        """(N, 1 or C, 2 K): for each sample and channel K slopes, then K intercepts."""
        (coefficients,), _ = self.network([gate.mean(x, self.channel_dim)], [self.fc1, self.fc2])
        return coefficients

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        with_map = self.form == "C" and x.ndim > 2
        return gate.gated(
            gate.mapped_lines if with_map else gate.lines,
            gate.mean_and_map if with_map else gate.mean,
            *(x, self.network, self.fc1, self.fc2),
            channel_dim=self.channel_dim,
            attention=self.attention if with_map else None,
            fuse=self.pieces <= gate.MOST_LINES,
        )

    def spatial(self, x: Tensor) -> Tensor:
        """The map pi, of x's shape with one channel; form C."""
        z = (x * self.along_channels(self.attention, x)).sum(self.channel_dim, keepdim=True)
        return self.network.shares(z.flatten(1))[1].view(z.shape)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {} if x is None else {"coefficients": self.coefficients(x)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form}, pieces={self.pieces}"


class _Residuals(Squeeze):
    """initial + scale (2 sigmoid - 1) for each of ``channels``, and pi (N, P) where there is an attention's map."""

    scaled = True

    def __init__(self, channels: int, initial: list[float], scale: list[float], temperature: float) -> None:
        super().__init__(channels, len(initial))
        # numbers, not buffers, which would have the digits of float32 alone
        self.numbers = [initial, [2 * value for value in scale]]
        self.temperature = temperature
        self.ready: dict[tuple[torch.dtype, torch.device], Sequence[Tensor]] = {}  # of fused calls

    def rows(self, like: Tensor) -> Sequence[Tensor]:
        if torch.compiler.is_compiling() or not library.backend(like):
            return self._rows(like)
        key = like.dtype, like.device
        if key not in self.ready:
            with torch.inference_mode(False):  # what is made in it can never be part of a graph
                self.ready[key] = self._rows(like)
        return self.ready[key]

    def _rows(self, like: Tensor) -> Sequence[Tensor]:
        # filled one by one, as copying a list would make a GPU wait
        rows = (torch.cat([like.new_full((1,), value) for value in row]) for row in self.numbers)
        return [row.repeat(self.shape[0]) for row in rows]

    def others(self, statistics: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if len(statistics) == 1:
            return [], []
        shares, pi = self.shares(statistics[1])
        return [pi], [shares]

    def backward(self, inputs: gate.BackwardInputs) -> tuple[list[Tensor | None], list[Tensor | None]]:
        d_statistics, d_tensors = super().backward(inputs)
        if len(inputs.statistics) > 1 and inputs.needed[0]:
            shares, factor = inputs.saved[-1], inputs.statistics[1].shape[1] / 3
            d = torch.where(shares * factor >= 1, 0, inputs.gradients[1])
            d_statistics.append(softmax_backward(d, shares, 1, shares.dtype).mul_(factor / self.temperature))
        return d_statistics, d_tensors

    def shares(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """softmax_positions(z / temperature), and pi of it."""
        shares = upcast(z).div(self.temperature).softmax(1)
        pi = shares * (shares.shape[1] / 3)
        # the gradient of clamp_max at the bound itself is not the same in all versions of torch
        return shares, torch.where(pi >= 1, 1, pi).to(z.dtype)
