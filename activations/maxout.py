"""Maxout. Goodfellow, Warde-Farley, Mirza, Courville, Bengio: Maxout Networks, ICML 2013, arXiv 1302.4389, section 3."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.base import Activation, bare
from activations.checks import check_choice, check_int

GROUPINGS = ("consecutive", "split")


def maxout(x: Tensor, pieces: int, grouping: str) -> Tensor:
    """Maximum over groups of ``pieces`` channels of (N, C, ...) input; C / pieces channels come out.

    Output channel c is the maximum over the input channels K c, ..., K c + K - 1 (``consecutive``), or over c, c + C / K,
    c + 2 C / K, ... (``split``).
    """
    parts = x.chunk(pieces, 1) if grouping == "split" else [x[:, k::pieces] for k in range(pieces)]
    return reduce(torch.maximum, parts)


class Maxout(Activation):
    r"""y_c = max_k (W x + b)_{c,k}: the maximum over K learned linear maps of all channels, at every position.

    Taken alone, a maximum over groups divides the width by K, and the next layer would have to know; a site here
    keeps its shape. So the unit brings its own linear maps, C to K C channels (a 1 x 1 convolution), which is the
    definition in the paper. It costs K C^2 weights and a matrix product: compare it at equal cost.

    Args:
        pieces: K, at least 2.
        grouping: which of the K C channels compete, ``consecutive`` (K c, ..., K c + K - 1) or ``split`` (c, c + C, ...).
            It must be that of trained weights; to a new unit it makes no difference but a permutation.

    Parameters ``weight`` (K C, C), ``bias`` (K C,): torch's default initialization; the weight is decayed.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, pieces: int = 2, grouping: str = "consecutive"
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_int("pieces", pieces, minimum=2)
        check_choice("grouping", grouping, GROUPINGS)
        self.pieces, self.grouping = pieces, grouping
        linear = bare(nn.Linear, self.num_features, pieces * self.num_features)
        self.weight, self.bias = linear.weight, linear.bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        linear = nn.Linear(self.num_features, self.pieces * self.num_features)
        self.assign("weight", linear.weight)
        self.assign("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 4:
            raise ValueError(f"input of shape {tuple(x.shape)}: must be (N, C), (N, C, L) or (N, C, H, W)")
        self.check_input(x)
        if 0 in x.shape[1:]:
            return self.of_no_positions(x)
        x = x.movedim(self.channel_dim, 1)
        product = (F.linear, F.conv1d, F.conv2d)[x.ndim - 2]
        maps = product(x, self.weight.view(*self.weight.shape, *[1] * (x.ndim - 2)), self.bias)
        return maxout(maps.to(x.dtype), self.pieces, self.grouping).movedim(1, self.channel_dim)
