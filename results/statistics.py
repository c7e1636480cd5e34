"""Means, intervals and comparisons of activations on common seeds.

Scores of an activation on a task are a mapping from seed to test score. A seed whose training diverged has the
value ``worst_possible``: it took part, and is worse than every score. A seed that was not run, failed or was
interrupted is absent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Mapping[int, float]


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % t interval.

    Interval and p-value are nan below two values, and for equal values whose resolution is not known.

    Attributes:
        n: number of values.
        mean: their mean; nan if there are none.
        std: sample standard deviation (n - 1); nan below two values.
        low, high: mean -+ t(0.975; n - 1) max(std, resolution) / sqrt(n).
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


def estimate(values: Sequence[float], resolution: float = 0.0) -> Estimate:
    """Estimate the mean of independent values.

    Args:
        values: finite numbers.
        resolution: lower bound of the standard deviation for the interval. Scores move in steps (one test image),
            so that equal values say that the spread is below a step, not that there is none.
    """
    from scipy.special import stdtr, stdtrit  # scipy.stats has the same and takes two seconds to import

    x = np.asarray(values, dtype=float)
    n = len(x)
    mean = float(x.mean()) if n else math.nan
    if n < 2:
        return Estimate(n, mean, math.nan, math.nan, math.nan, math.nan)
    std = float(x.std(ddof=1))
    if std <= 1e-12 * np.abs(x).max():
        std = 0.0
    error = max(std, resolution) / math.sqrt(n)
    if error == 0:
        return Estimate(n, mean, std, math.nan, math.nan, math.nan)
    half = float(stdtrit(n - 1, 0.975)) * error
    return Estimate(n, mean, std, mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error)))


class Comparisons:
    """Compare the activations of one task, in pairs, on the seeds that both finished or lost.

    The difference of a pair is a t interval of the seed-by-seed differences, with the uncertainty of a score's step as
    the least standard deviation. In means and differences a diverged seed counts as the worst score of the whole table.
    An activation is better than another if that interval lies on its side of 0 and it diverged on no more of
    the common seeds.

    Args:
        scores: seed -> score of each activation, under its name.
        higher_is_better: direction of the score.
    """

    def __init__(self, scores: Mapping[str, Scores], higher_is_better: bool) -> None:
        self.sign = 1 if higher_is_better else -1
        finite = sorted({x for entry in scores.values() for x in entry.values() if math.isfinite(x)})
        worst = 0.0 if not finite else finite[0] if higher_is_better else finite[-1]
        self.lost = {
            name: {seed for seed, x in entry.items() if not math.isfinite(x)}
            for name, entry in scores.items()
        }
        self.scores = {
            name: {seed: x if math.isfinite(x) else worst for seed, x in entry.items()}
            for name, entry in scores.items()
        }
        self.finite = {
            name: [x for x in entry.values() if math.isfinite(x)] for name, entry in scores.items()
        }
        # the smallest gap is at least a step of the score; gaps of rounding errors are none
        gaps = np.diff(finite)
        self.step = float(min(gaps[gaps > 1e-9 * np.abs(finite).max()], default=0.0)) if finite else 0.0

    def mean(self, name: str) -> Estimate:
        """Estimate the mean score of the seeds that ``name`` finished."""
        return estimate(self.finite[name], self.step / math.sqrt(12))  # std of a rounding to whole steps

    def difference(self, name: str, other: str) -> Estimate:
        """Estimate the mean of ``name - other`` over their common seeds; without any if one is unknown."""
        mine, theirs = self.scores.get(name, {}), self.scores.get(other, {})
        common = sorted(mine.keys() & theirs.keys())
        return estimate([mine[seed] - theirs[seed] for seed in common], self.step / math.sqrt(6))

    def verdict(self, name: str, other: str) -> str:
        """Say whether ``name`` is ``better`` or ``worse`` than ``other``, or a ``tie``; empty below two common seeds."""
        delta = self.difference(name, other)
        if delta.n < 2:
            return ""
        if not delta.differs_from_zero:
            return "tie"
        better = self.sign * delta.mean > 0
        winner, loser = (name, other) if better else (other, name)
        common = self.scores[name].keys() & self.scores[other].keys()
        if len(self.lost[winner] & common) > len(self.lost[loser] & common):
            return "tie"
        return "better" if better else "worse"

    def ranks(self) -> dict[str, int]:
        """Rank the activations: 1 plus the number of those that are better.

        Better than an activation is also what is better than one that is better, so that no activation has a
        higher or the same rank as one that is worse on common seeds. Those without any finished seed come last.
        """
        scored = [name for name in self.scores if self.finite[name]]
        above = {
            name: {other for other in scored if other != name and self.verdict(other, name) == "better"}
            for name in scored
        }
        for via in scored:  # transitive closure
            for name in scored:
                if via in above[name]:
                    above[name] |= above[via]
        ranks = {name: 1 + len(above[name] - {name}) for name in scored}
        return {name: ranks.get(name, len(scored) + 1) for name in self.scores}

    def adjusted_means(self) -> dict[str, float]:
        """Compute each activation's mean, freed of which seeds it happens to have; nan without a finished seed.

        The least-squares solution of score = activation + seed over all cells, which in a complete table is the plain
        mean. The seeds' effects sum to 0 over all seeds of the table.
        """
        seeds = sorted({seed for entry in self.scores.values() for seed in entry})
        names = [name for name in self.scores if self.finite[name]]
        cells = [
            (names.index(name), seeds.index(s), x) for name in names for s, x in self.scores[name].items()
        ]
        rows = np.zeros((len(cells) + 1, len(names) + len(seeds)))
        target = np.zeros(len(cells) + 1)
        for row, (activation, seed, score) in enumerate(cells):
            rows[row, activation] = rows[row, len(names) + seed] = 1
            target[row] = score
        rows[-1, len(names) :] = 1
        solution = np.linalg.lstsq(rows, target, rcond=None)[0] if cells else np.zeros(0)
        found = dict(zip(names, map(float, solution[: len(names)]), strict=True))
        return {name: found.get(name, math.nan) for name in self.scores}


def worst_possible(higher_is_better: bool) -> float:
    """Return the value of a diverged seed."""
    return -math.inf if higher_is_better else math.inf
