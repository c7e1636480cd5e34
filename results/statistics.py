"""Means, intervals and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % t interval.

    Interval and p-value are nan below two values, and for values that are all equal: a score moves in steps
    (one test image), so equal values say that the spread is below a step, not that it is nothing.

    Attributes:
        n: number of values.
        mean: their mean; nan if there are none.
        std: sample standard deviation (n - 1); nan below two values.
        low, high: mean -+ t(0.975; n - 1) std / sqrt(n).
        p: two-sided p-value of Student's t test that the expectation is 0.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    p: float

    @property
    def differs_from_zero(self) -> bool:
        """Whether the interval excludes 0; False where there is no interval."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, spread and interval of independent values."""
    from scipy.special import stdtr, stdtrit  # scipy.stats has the same and takes two seconds to import

    x = np.asarray(values, dtype=float)
    n = len(x)
    mean = float(x.mean()) if n else math.nan
    if n < 2:
        return Estimate(n, mean, math.nan, math.nan, math.nan, math.nan)
    std = float(x.std(ddof=1))
    if std <= 1e-12 * np.abs(x).max():
        return Estimate(n, mean, 0.0, math.nan, math.nan, math.nan)
    error = std / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    return Estimate(n, mean, std, mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error)))


def paired(values: dict[int, float], baseline: dict[int, float]) -> Estimate:
    """The difference ``values - baseline`` over the seeds that both have."""
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def rank_with_ties(scores: Sequence[dict[int, float]], higher_is_better: bool) -> list[int]:
    """Ranks of entries given by seed -> score: 1 for the best mean, and ties as ties.

    Going down from the best mean, an entry shares the rank of the leader of its group unless it is paired-different
    from that leader (95 % interval of the differences excludes 0); then it leads the next group, with its own
    position as rank, as in 1, 1, 3. An entry with fewer than two seeds in common with the leader cannot be told
    from it. Entries without any score come last.
    """
    sign = -1 if higher_is_better else 1
    means = [estimate(list(entry.values())).mean for entry in scores]
    order = sorted(range(len(scores)), key=lambda i: (math.isnan(means[i]), sign * means[i]))
    ranks = [0] * len(scores)
    leader = order[0] if order else 0
    for position, i in enumerate(order, start=1):
        other_kind = math.isnan(means[i]) != math.isnan(means[leader])
        if i == leader or other_kind or paired(scores[i], scores[leader]).differs_from_zero:
            leader = i
            ranks[i] = position
        else:
            ranks[i] = ranks[leader]
    return ranks
