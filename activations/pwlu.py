"""PWLU. Zhou, Zhu, Zhong: Learning Specialized Activation Functions with the Piecewise Linear Unit,
ICCV 2021, arXiv 2104.03693, equations 1 to 3 and section 3.3 (statistics-based realignment).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from activations.base import (
    Activation,
    check_bool,
    check_choice,
    check_finite,
    check_positive,
    check_whole,
    upcast,
)
from activations.kernels.lookup import piecewise_linear

INITIAL = 3.0  # half the interval before anything is known: that of 3 sigma for inputs from a norm
MIN_WIDTH = 1e-6  # relative to max(1, |B_L|); the boundaries are trained and might cross


class PWLU(Activation):
    r"""A continuous piecewise-linear function with N equal segments on [B_L, B_R] and two straight tails, all learnt.

        x <  B_L:        (x - B_L) K_L + Y_0
        B_L <= x < B_R:  (x - B_i) (Y_{i+1} - Y_i) / d + Y_i,  d = (B_R - B_L) / N,  i = floor((x - B_L) / d)
        x >= B_R:        (x - B_R) K_R + Y_N

    Training has two phases. In the first the unit is ReLU, so that its parameters get no gradient and rest, and mean
    and standard deviation of its inputs are tracked. The second starts with the realignment B_L, B_R = mean -+ 3 std,
    K_L = 0, K_R = 1, Y_i = ReLU(B_i), and trains everything. The first lasts ``statistics_epochs`` epochs, in a short
    run a quarter of the epochs, and leaves one for the second: min(statistics_epochs, ceil(epochs / 4), epochs - 1).
    A unit that is never told of epochs (``start_epoch``) is in the second phase from the beginning, on [-3, 3].

    Args:
        segments: N, at least 1; the paper's choice is 16, and 8 to 16 serve best.
        per_channel: one function for each channel instead of one for the site.
        statistics_epochs: length of the first phase in a long run; the paper's is 5.
        statistics: ``debiased``: running means, freed of their initial values as in Adam, so that they are means of
            what was seen; ``ema``: the plain ones, from mean 0 and std 1. The std is unbiased. A batch whose
            statistics are not finite is left out.
        momentum: what the running means keep of their last value, in [0, 1); the paper's is 0.9.
        fix_init: X > 0 for the interval [-X, X] from the beginning and no first phase (the paper's ablation), or None.

    Parameter ``curve`` (units, N + 5), units being 1 or num_features, any real values, not decayed (ours: decay would
    pull the shape towards 0). Its columns are also to be had, and changed, as ``left``, ``right`` (units,) = B_L, B_R,
    treated as at least 1e-6 max(1, |B_L|) apart; ``heights`` (units, N + 1); ``slope_left``, ``slope_right`` (units,) =
    K_L, K_R.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        num_features: int,
        *,
        channel_dim: int = 1,
        segments: int = 16,
        per_channel: bool = False,
        statistics_epochs: int = 5,
        statistics: str = "debiased",
        momentum: float = 0.9,
        fix_init: float | None = None,
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        check_whole(1, segments=segments)
        check_whole(0, statistics_epochs=statistics_epochs)
        check_bool(per_channel=per_channel)
        check_choice(("debiased", "ema"), statistics=statistics)
        check_finite(momentum=momentum)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: a number in [0, 1) is needed")
        if fix_init is not None:
            check_positive(fix_init=fix_init)
        self.segments, self.per_channel = segments, per_channel
        self.statistics, self.momentum = statistics, momentum
        self.statistics_epochs = 0 if fix_init is not None else statistics_epochs
        units = num_features if per_channel else 1
        self.curve = nn.Parameter(torch.empty(units, segments + 5))
        self.mean: Tensor
        self.std: Tensor
        self.batches: Tensor
        self.collecting: Tensor
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("std", torch.ones(units))
        self.register_buffer("batches", torch.zeros(units))  # seen by the statistics
        self.register_buffer("collecting", torch.tensor(False))  # the first phase
        self.is_collecting = False  # the same for Python, which may not look into a tensor while compiling
        self.register_load_state_dict_post_hook(_follow_phase)
        reach = torch.full((units,), INITIAL if fix_init is None else float(fix_init))
        self.align(-reach, reach)

    @property
    def left(self) -> Tensor:
        return self.curve[:, 0]

    @property
    def right(self) -> Tensor:
        return self.curve[:, 1]

    @property
    def heights(self) -> Tensor:
        return self.curve[:, 2:-2]

    @property
    def slope_left(self) -> Tensor:
        return self.curve[:, -2]

    @property
    def slope_right(self) -> Tensor:
        return self.curve[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if self.is_collecting and self.training:
            self._collect(x.detach())
        return self._function(x, self.channel_dim)

    def _function(self, x: Tensor, channel_dim: int) -> Tensor:
        if self.is_collecting:
            return x.relu()
        wide = upcast(x)  # positions in a table need it
        curve = self.curve.to(wide.dtype)
        return piecewise_linear(wide, curve, channel_dim=channel_dim, narrowest=MIN_WIDTH).to(x.dtype)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        first = min(self.statistics_epochs, -(-epochs // 4), epochs - 1)
        if epoch == 0 and first > 0:
            self._set_phase(collecting=True)
        elif epoch >= first and self.is_collecting:
            self._set_phase(collecting=False)
            self.realign()

    @property
    def phase(self) -> str:
        return "statistics" if self.is_collecting else "learning" if self.statistics_epochs else ""

    def realign(self) -> None:
        """Put the interval where the inputs were, mean -+ 3 std, and start there as ReLU; units that saw none stay."""
        seen = self.batches > 0
        # inputs that do not vary have an interval too
        reach = torch.maximum(3 * self.std, _min_width(self.mean))
        self.align(
            torch.where(seen, self.mean - reach, self.left.detach()),
            torch.where(seen, self.mean + reach, self.right.detach()),
        )

    @torch.no_grad()
    def align(self, left: Tensor, right: Tensor) -> None:
        """Set the interval, and ReLU on it, in place: the optimiser holds the parameters already.

        ReLU at the knots and in the tails, that is: where 0 is no knot, one segment cuts its corner.
        """
        share = torch.linspace(0, 1, self.segments + 1, dtype=left.dtype, device=left.device)
        self.left.copy_(left)
        self.right.copy_(right)
        self.heights.copy_(torch.lerp(left[:, None], right[:, None], share).relu())
        self.slope_left.zero_()
        self.slope_right.fill_(1)

    def _set_phase(self, *, collecting: bool) -> None:
        self.collecting.fill_(collecting)
        self.is_collecting = collecting

    @torch.no_grad()
    def _collect(self, x: Tensor) -> None:
        dims = list(range(x.ndim))
        if self.per_channel:
            dims.remove(self.channel_dim % x.ndim)
        if x.numel() <= (len(self.mean) if self.per_channel else 1):
            return  # a standard deviation needs two values
        std, mean = torch.std_mean(upcast(x), dims)
        good = (mean + std).isfinite()
        self.batches += good
        new = torch.full_like(self.mean, 1 - self.momentum)  # the share of this batch
        if self.statistics == "debiased":
            new = new / (1 - self.momentum ** self.batches.double()).to(new.dtype)
        for running, batch in ((self.mean, mean), (self.std, std)):
            running.copy_(torch.where(good, torch.lerp(running, batch.to(running.dtype), new), running))

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset(dict(self.named_parameters()))

    def curves(self, x: Tensor) -> Tensor:
        return self._function(x[:, None].expand(-1, len(self.curve)), 1).T

    def flops(self, shape: Sequence[int]) -> int:
        """Five an element: its place in the table, and one straight piece."""
        return 5 * math.prod(shape)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        names = ("left", "right", "slope_left", "slope_right", "mean", "std")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, segments={self.segments}, per_channel={self.per_channel}"


def _min_width(at: Tensor) -> Tensor:
    return MIN_WIDTH * at.detach().abs().clamp_min(1)


def _follow_phase(unit: PWLU, keys: Any) -> None:
    unit.is_collecting = bool(unit.collecting)
