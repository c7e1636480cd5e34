"""What the report must know of a test metric: its range, and the smallest difference that matters."""

import math
from dataclasses import dataclass

import pandas as pd

from results.statistics import Estimate


@dataclass(frozen=True)
class Metric:
    """Range of a metric and the default of ``report.margin``.

    Attributes:
        low, high: the legal range; intervals of means stay inside it.
        margin: half-width of the range of differences that count as equal, in the metric's unit.
        relative: the margin is a share of the baseline's mean instead.
        unit: what is written behind a value.
    """

    low: float = -math.inf
    high: float = math.inf
    margin: float = 0.0
    relative: bool = False
    unit: str = ""

    def margin_at(self, baseline_mean: float) -> float:
        """Return the margin in the metric's unit; 0, which calls nothing equal, for an unknown metric or baseline."""
        margin = self.margin * abs(baseline_mean) if self.relative else self.margin
        return margin if math.isfinite(margin) else 0.0

    def interval(self, mean: Estimate) -> tuple[float, float]:
        """Return the 95 % interval of a mean, inside the range.

        Where the range has two ends the t interval is one of logit((mean - low) / (high - low)), where it has a lower
        end alone one of log(mean - low), by the delta method; else it is the plain one.
        """
        above, below, half = mean.mean - self.low, self.high - mean.mean, (mean.high - mean.low) / 2
        if math.isnan(half) or not math.isfinite(self.low):
            return mean.low, mean.high
        if above <= 0 or below <= 0:  # a mean on the edge of the range has no logit
            return max(self.low, mean.low), min(self.high, mean.high)
        if math.isinf(self.high):
            factor = math.exp(min(half / above, 700.0))  # exp(700) is about the largest float
            return self.low + above / factor, self.low + above * factor
        width = self.high - self.low
        odds, factor = above / below, math.exp(min(half * width / (above * below), 300.0))
        low, high = (self.low + width * o / (1 + o) for o in (odds / factor, odds * factor))
        return low, high


METRICS = {
    "top1": Metric(low=0, high=100, margin=0.5, unit=" %"),
    "miou": Metric(low=0, high=100, margin=1.0, unit=" %"),
    "mse": Metric(low=0, margin=0.05, relative=True),
    "psnr": Metric(margin=0.2, unit=" dB"),
}
UNKNOWN = Metric()


def unit_of(metric: str) -> str:
    """Return what is written behind a value of ``metric``, such as `` %``; empty for one without a unit."""
    return METRICS.get(metric, UNKNOWN).unit


def is_wide(scores: pd.Series) -> bool:
    """Return whether positive scores span so much that only a logarithmic axis shows them."""
    scores = scores.dropna()
    return bool(len(scores)) and scores.min() > 0 and scores.max() / scores.min() > 20
