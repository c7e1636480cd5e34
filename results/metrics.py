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
        relative: a positive error, of which ratios matter: activations are compared on a logarithmic scale.
        margin: the largest difference that counts as none, in the metric's unit; a share if it is relative.
        unit: what is written behind a value.
    """

    low: float = -math.inf
    high: float = math.inf
    relative: bool = False
    margin: float = 0.0
    unit: str = ""

    def margin_at(self, mean: float, margin: float | None = None) -> float:
        """Return the margin in the metric's unit at a mean score; 0, which calls nothing equal, if that is not known.

        Args:
            margin: takes the place of the metric's own.
        """
        margin = self.margin if margin is None else margin
        if self.relative:
            margin *= abs(mean)
        return margin if math.isfinite(margin) else 0.0

    def interval(self, mean: Estimate) -> tuple[float, float]:
        """Return the 95 % interval of a mean, inside the range.

        Where the range has two ends the t interval is one of logit((mean - low) / (high - low)), by the delta method;
        else it is the plain one, cut off at the end of the range.
        """
        above, below, half = mean.mean - self.low, self.high - mean.mean, (mean.high - mean.low) / 2
        width = self.high - self.low
        if math.isnan(half):
            return math.nan, math.nan
        if math.isinf(width) or above <= 0 or below <= 0:  # a mean on the edge of the range has no logit
            return max(self.low, mean.low), min(self.high, mean.high)
        odds, factor = above / below, math.exp(min(half * width / (above * below), 300.0))
        low, high = (self.low + width * o / (1 + o) for o in (odds / factor, odds * factor))
        return low, high


METRICS = {
    "top1": Metric(low=0, high=100, margin=0.5, unit=" %"),
    "miou": Metric(low=0, high=100, margin=1.0, unit=" %"),
    "mse": Metric(low=0, relative=True, margin=0.05),
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
