"""PWLU. Zhou, Zhu, Zhong: Learning Specialized Activation Functions with the Piecewise Linear Unit,
ICCV 2021, arXiv 2104.03693, equations 1 to 3 and section 3.3 (statistics-based realignment).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from activations.base import Activation, upcast
from activations.checks import check_bool, check_choice, check_int, check_number
from activations.kernels import library
from activations.kernels.lookup import HALF, piecewise_linear
from activations.pieces import occupancy

INITIAL = 3.0  # half the interval before anything is known: that of 3 sigma for inputs from a norm
MIN_WIDTH = 1e-6  # relative to max(1, |B_L|); the boundaries are trained and might cross


class PWLU(Activation):
    r"""A continuous piecewise-linear function with N equal segments on [B_L, B_R] and two straight tails, all learned.

        x <  B_L:        (x - B_L) K_L + Y_0
        B_L <= x < B_R:  (x - B_i) (Y_{i+1} - Y_i) / d + Y_i,  d = (B_R - B_L) / N,  i = floor((x - B_L) / d)
        x >= B_R:        (x - B_R) K_R + Y_N

    Training has two phases. In the first the unit is ReLU, so that its parameters get no gradient and rest, and mean
    and standard deviation of its inputs are tracked. The second starts with the realignment B_L, B_R = mean -+ 3 std,
    K_L = 0, K_R = 1, Y_i = ReLU(B_i), and trains everything. The first lasts ``statistics_epochs`` epochs, in a short
    run a quarter of the epochs, and leaves one for the second: min(statistics_epochs, ceil(epochs / 4), epochs - 1).
    A unit that is never told of epochs (``start_epoch``) is in the second phase from the beginning, on [-3, 3].

    The phase is the buffer ``collecting``, 1 or 0, and nothing else, so that it is right in whatever holds the state:
    copies, averages, ``torch.func.functional_call``. An average of networks between the phases is in the one that has
    more than half of the weight. On the CPU every forward reads the buffer. Where reading would make a GPU wait or
    break a graph (other devices, torch.compile, export, tracing, torch.func transforms), the kernel of a GPU
    reads it, or both functions are computed and ``torch.where`` takes one. Whether a training step **collects** follows
    there from what the module itself was last told, by ``start_epoch``, ``load_state_dict`` or ``reset_parameters``: an
    average that is not told does not.

    With torch.distributed initialized, statistics are those of the batches of all processes together, and every
    process must run the unit equally often in the first phase. The curve is then part of the graph in that phase
    as well, as DistributedDataParallel asks: its gradient is 0 instead of None, and an optimizer makes a state for it.
    ``pooled = False`` keeps statistics to the own process, and ``attached = False`` leaves the curve out, for
    ``find_unused_parameters=True``.

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
        ValueError: a value is outside its range.
    """

    decayed = False
    diagnostic_roles: ClassVar[Mapping[str, str]] = {
        "left": "interval_end",
        "right": "interval_end",
        "occupancy": "occupancy",
    }

    # With several processes: whether statistics are those of all of them, and whether a curve that rests is in the graph.
    pooled = attached = True

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
        check_int("segments", segments, minimum=1)
        check_int("statistics_epochs", statistics_epochs, minimum=0)
        check_bool("per_channel", per_channel)
        check_choice("statistics", statistics, ("debiased", "ema"))
        check_number("momentum", momentum, minimum=0, below=1)
        if fix_init is not None:
            check_number("fix_init", fix_init, above=0)
        self.segments, self.per_channel = segments, per_channel
        self.statistics, self.momentum = statistics, momentum
        self.statistics_epochs = 0 if fix_init is not None else statistics_epochs
        self.reach = INITIAL if fix_init is None else float(fix_init)
        units = self.num_features if per_channel else 1
        self.curve = nn.Parameter(torch.empty(units, segments + 5))
        self.mean: Tensor
        self.std: Tensor
        self.batches: Tensor
        self.collecting: Tensor
        self.register_buffer("mean", torch.empty(units))
        self.register_buffer("std", torch.empty(units))
        self.register_buffer("batches", torch.empty(units))  # seen by the statistics
        # 1 in the first phase; a floating-point number, which averages of networks can average
        self.register_buffer("collecting", torch.empty(()))
        self.register_load_state_dict_post_hook(_follow_phase)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for buffer, value in ((self.mean, 0), (self.std, 1), (self.batches, 0)):
            buffer.fill_(value)
        self._set_phase(collecting=False)
        reach = torch.full_like(self.mean, self.reach)
        self.align(-reach, reach)

    @property
    def left(self) -> Tensor:
        """(units,) left ends B_L of the learned interval: a view of ``curve``."""
        return self.curve[:, 0]

    @property
    def right(self) -> Tensor:
        """(units,) right ends B_R of the learned interval: a view of ``curve``."""
        return self.curve[:, 1]

    @property
    def heights(self) -> Tensor:
        """(units, N + 1) values Y at the knots: a view of ``curve``."""
        return self.curve[:, 2:-2]

    @property
    def slope_left(self) -> Tensor:
        """(units,) slopes K_L of the left tails: a view of ``curve``."""
        return self.curve[:, -2]

    @property
    def slope_right(self) -> Tensor:
        """(units,) slopes K_R of the right tails: a view of ``curve``."""
        return self.curve[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        collecting = self._read_phase()
        collects = self.training and (self.told_to_collect if collecting is None else collecting)
        if collects:
            self._collect(x.detach())
        return self._function(x, self.channel_dim, collecting, rests=collects)

    def _read_phase(self) -> bool | None:
        """Whether this is the first phase; None where only a tensor may say so."""
        phase = self._buffers["collecting"]  # an attribute of a module takes a microsecond to find
        assert phase is not None
        return phase.item() > HALF if library.readable(phase) else None

    def _function(
        self, x: Tensor, channel_dim: int, collecting: bool | None, *, rests: bool = False
    ) -> Tensor:
        """The function of the phase. A curve that ``rests`` gets no gradient, or 0 where there are several processes."""
        if collecting is False:
            return self._learned(x, self.curve, channel_dim, None)
        attached = rests and self.attached and _several_processes()
        if collecting and not attached:
            return x.relu()
        curve = self.curve.detach() if rests and not attached else self.curve
        return self._learned(x, curve, channel_dim, self.collecting)

    def _learned(self, x: Tensor, curve: Tensor, channel_dim: int, rests: Tensor | None) -> Tensor:
        """The function of the second phase, or ReLU while ``rests`` says so."""
        wide = library.widen(x)  # positions in a table need it
        # a cast to what it is would take as long as reading the phase
        if curve.dtype is not wide.dtype and wide.dtype not in library.HALF:
            curve = curve.to(wide.dtype)
        y = piecewise_linear(wide, curve, channel_dim=channel_dim, min_width=MIN_WIDTH, rests=rests)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        first = min(self.statistics_epochs, -(-epochs // 4), epochs - 1)
        if epoch == 0 and first > 0:
            self._set_phase(collecting=True)
        elif epoch >= first and self.collecting > HALF:
            self.realign()
            self._set_phase(collecting=False)

    @property
    def phase(self) -> str:
        return "statistics" if self.collecting > HALF else "learning" if self.statistics_epochs else ""

    def realign(self) -> None:
        """Put the interval where the inputs were, mean -+ 3 std, and start there as ReLU; units that saw none stay."""
        seen = self.batches > 0
        # inputs that do not vary have an interval too
        reach = torch.maximum(3 * self.std, _min_width(self.mean))
        self.align(
            torch.where(seen, self.mean - reach, self.left.detach()),
            torch.where(seen, self.mean + reach, self.right.detach()),
        )

    def align(self, left: Tensor, right: Tensor) -> None:
        """Set the interval, and ReLU on it, in place: the optimizer holds the parameters already.

        ReLU at the knots and in the tails, that is: where 0 is no knot, one segment cuts its corner.

        Raises:
            ValueError: ``curve`` is computed from other parameters in a way that cannot be undone; see ``assign``.
        """
        heights = self._knots(left, right).relu()
        left, right = left[:, None], right[:, None]
        slopes = torch.zeros_like(left), torch.ones_like(left)
        self.assign("curve", torch.cat([left, right, heights, *slopes], 1))

    def _knots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the knots (units, N + 1) of equal segments from ``left`` to ``right``, (units,) each."""
        share = torch.linspace(0, 1, self.segments + 1, dtype=left.dtype, device=left.device)
        return torch.lerp(left[:, None], right[:, None], share)

    def _set_phase(self, *, collecting: bool) -> None:
        self.collecting.fill_(collecting)
        self.told_to_collect = collecting

    @torch.no_grad()
    def _collect(self, x: Tensor) -> None:
        dims = list(range(x.ndim))
        if self.per_channel:
            dims.remove(self.channel_dim % x.ndim)
        if self.pooled and _several_processes():
            std, mean = _std_mean_of_all(upcast(x), dims, len(self.mean))
        elif x.numel() > len(self.mean):
            std, mean = torch.std_mean(upcast(x), dims)
        else:
            return  # a standard deviation needs two values
        good = (mean + std).isfinite() & (self.collecting > HALF)
        self.batches += good
        new = torch.full_like(self.mean, 1 - self.momentum)  # the share of this batch
        if self.statistics == "debiased":
            new = new / (1 - self.momentum ** self.batches.double()).to(new.dtype)
        for running, batch in ((self.mean, mean), (self.std, std)):
            running.copy_(torch.where(good, torch.lerp(running, batch.to(running.dtype), new), running))

    def curves(self, x: Tensor) -> Tensor:
        return self._function(x[:, None].expand(-1, len(self.curve)), 1, self._read_phase()).T

    def flops(self, shape: Sequence[int]) -> int:
        """Five an element: its place in the table, and one straight piece."""
        return 5 * math.prod(shape)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        names = ("left", "right", "slope_left", "slope_right", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        if x is not None:
            right = torch.maximum(self.right, self.left + _min_width(self.left))
            values["occupancy"] = occupancy(x, self._knots(self.left, right), self.channel_dim)
        return values

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, segments={self.segments}, per_channel={self.per_channel}"


def _min_width(at: Tensor) -> Tensor:
    return MIN_WIDTH * at.detach().abs().clamp_min(1)


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _std_mean_of_all(x: Tensor, dims: list[int], units: int) -> tuple[Tensor, Tensor]:
    """(units,) each, in float64: unbiased std and mean of what all processes hold; not finite for fewer than two values."""
    count = x.numel() // units
    moments = torch.zeros(3, units, dtype=torch.float64, device=x.device)  # sums of 1, x, x^2
    if count:
        var, mean = (value.double() for value in torch.var_mean(x, dims, correction=0))
        moments[0] = count
        moments[1] = count * mean
        moments[2] = count * (var + mean.square())
    distributed.all_reduce(moments)
    total, mean = moments[0], moments[1] / moments[0]
    var = (moments[2] - total * mean.square()) / (total - 1)
    return var.clamp_min(0).sqrt(), mean


def _follow_phase(unit: PWLU, keys: Any) -> None:
    if not unit.collecting.is_meta:
        unit.told_to_collect = bool(unit.collecting > HALF)
