"""Means, intervals and comparisons of activations on common seeds.

Scores of an activation on a task are a mapping from seed to test score. A seed whose training diverged has the
value ``worst_possible``: it took part, and is worse than every score. A seed that was not run, failed or was
interrupted is absent. Scores that are errors may be compared by their ratios: an activation whose error is a hundredth of
another's on every seed is better, however much the errors of both vary over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np

Scores = Mapping[int, float]
ALPHA = 0.05
MAX_SEEDS_NEEDED = 1000
MAX_FLIPPED = 16  # 2^16 sign patterns take a few milliseconds


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
    half = float(stdtrit(n - 1, 1 - ALPHA / 2)) * error
    return Estimate(n, mean, std, mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error)))


@dataclass(frozen=True)
class Comparison:
    """One activation compared with another; positive or negative as the scores are, not as they are good.

    Where scores are compared by their ratios, a difference is one of logarithms, but for ``delta``, ``low`` and ``high``:
    these are a ratio less 1.

    Attributes:
        n: common seeds, which both finished or lost to divergence.
        delta: mean difference over them; nan if there are none.
        low, high: interval of delta; the intervals of a family hold together with 95 %.
        p: two-sided p-value of this comparison alone.
        p_adjusted: p-value times the size of the family, at most 1.
        verdict: better, worse, equal, undecided; empty if there is nothing to compare with.
        seeds_needed: number of common seeds that would decide an undecided comparison if difference and spread
            stayed as they are; nan if it is decided, or would not be with 1,000.
        effect_size: delta over the standard deviation of the differences.
        p_improvement: share of the common seeds on which the activation is better, ties counted half.
        correlation: of both activations' scores over the common seeds; what pairing by seed gains.
        p_sign_flip: exact two-sided p-value if each difference had either sign with equal probability. With n seeds
            it is at least 2^(1 - n).
    """

    n: int = 0
    delta: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_adjusted: float = math.nan
    verdict: str = ""
    seeds_needed: float = math.nan
    effect_size: float = math.nan
    p_improvement: float = math.nan
    correlation: float = math.nan
    p_sign_flip: float = math.nan


class Comparisons:
    """Compare the activations of one task in pairs, with a family-wise error of at most 5 % for each family.

    Seeds shift all activations alike, so differences are taken over common seeds. What is left of a score after
    the least-squares fit score = activation + seed estimates a variance for **each activation**; a difference has the
    standard error sqrt((v_i + v_j) / n), and Welch's degrees of freedom. With two activations this is the paired
    t test. Borrowing the other activations for the seeds' effect gives up to twice its degrees of freedom. Unlike a
    pooled error (Dunnett, Tukey), quiet activations do not make the differences of a wild one significant. Families are
    adjusted by Bonferroni's inequality, so that verdicts and intervals agree. ``scripts/simulate_verdicts.py``
    measures the error rates.

    A diverged seed counts as the worst score of the whole table, and an activation that diverged on more of the common
    seeds than another is not called better than it. An activation that never finished has no score to compare; see
    ``_by_divergence``. The variance of an activation is at least that of rounding to the
    step of the score (the smallest gap in the table).

    Args:
        scores: seed -> score of each activation, under its name.
        higher_is_better: direction of the score.
        relative: compare by ratios: all of the above is done with the logarithms of the scores, and means are geometric.
            A table with a score that has no logarithm is compared by differences all the same.

    Attributes:
        relative: whether ratios are compared.
    """

    def __init__(self, scores: Mapping[str, Scores], higher_is_better: bool, relative: bool = False) -> None:
        self.sign = 1 if higher_is_better else -1
        self.names = [name for name, entry in scores.items() if any(map(math.isfinite, entry.values()))]
        self.unscored = [name for name in scores if name not in self.names]
        self.diverged = {
            name: {seed: math.isinf(score) for seed, score in entry.items() if not math.isnan(score)}
            for name, entry in scores.items()
        }
        seeds = sorted({seed for name in self.names for seed in scores[name]})
        table = np.array([[scores[name].get(seed, math.nan) for seed in seeds] for name in self.names])
        table = table.reshape(len(self.names), len(seeds))
        self.present, self.lost = ~np.isnan(table), np.isinf(table)
        finite = np.unique(table[np.isfinite(table)])
        if len(finite):
            table[self.lost] = finite[0] if higher_is_better else finite[-1]
        self.scores, self.table = table, table
        self.relative = relative and bool((finite > 0).all())
        if self.relative:
            self.table, finite = np.log(table), np.log(finite)
        gaps = np.diff(finite)
        # gaps of rounding errors are none
        self.step = float(min(gaps[gaps > 1e-9 * np.abs(finite).max()], default=0.0)) if len(finite) else 0.0
        self.adjusted, self.variance, self.freedom, self.total_freedom = self._fit()

    def _fit(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Fit score = activation + seed; the activations' means, variances, degrees of freedom, and those of the fit."""
        count, present = len(self.names), self.present
        rows, columns = np.nonzero(present)
        design = np.zeros((len(rows) + 1, count + present.shape[1]))
        index = np.arange(len(rows))
        design[index, rows] = design[index, count + columns] = 1
        design[-1, count:] = 1  # effects of seeds sum to 0
        target = np.append(self.table[rows, columns], 0.0)
        solution, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
        residuals = np.zeros_like(self.table)
        residuals[rows, columns] = (target - design @ solution)[:-1]
        # a seed that one activation alone has tells nothing of its spread; with K activations each residual
        # has (K - 1) / K of its variance
        shared = present.sum(0)
        telling = present & (shared > 1)
        weights = np.where(telling, shared / np.maximum(shared - 1, 1), 0)
        freedom = np.maximum(telling.sum(1) - 1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(freedom > 0, (weights * residuals**2).sum(1) / freedom, math.nan)
        scale = np.abs(self.table[rows, columns]).max(initial=0.0)
        variance = np.maximum(np.where(variance <= (1e-12 * scale) ** 2, 0.0, variance), self.step**2 / 12)
        # less the parameters that the telling scores determine: the condition on the seeds' effects is no score
        total = int(telling.sum()) - (int(rank) - 1 - int((shared == 1).sum())) if len(rows) else 0
        return solution[:count], variance, freedom, total

    def means(self) -> dict[str, Estimate]:
        """Estimate each activation's mean score over the seeds that it finished, geometric where ratios are compared."""
        finished = self.present & ~self.lost
        means = {name: self._mean(i, finished[i]) for i, name in enumerate(self.names)}
        return means | {name: estimate([]) for name in self.unscored}

    def _mean(self, i: int, seeds: np.ndarray) -> Estimate:
        mean = estimate(self.table[i][seeds], self.step / math.sqrt(12))
        if not self.relative:
            return mean
        std = estimate(self.scores[i][seeds]).std
        return replace(mean, mean=_exp(mean.mean), std=std, low=_exp(mean.low), high=_exp(mean.high))

    def adjusted_means(self) -> dict[str, float]:
        """Return each activation's mean freed of which seeds it happens to have; nan without a finished seed.

        Least squares of score = activation + seed, the seeds' effects summing to 0; in a complete table the plain mean.
        """
        adjusted = map(_exp, self.adjusted) if self.relative else map(float, self.adjusted)
        return dict(zip(self.names, adjusted, strict=True)) | dict.fromkeys(self.unscored, math.nan)

    def distances(self, margin: float) -> dict[str, float]:
        """Return by how many margins each adjusted mean is worse than the best; inf without a finished seed."""
        margin = self._on_scale(margin)
        if not margin:
            return dict.fromkeys((*self.names, *self.unscored), math.nan)
        good = self.sign * self.adjusted
        behind = map(float, (good.max(initial=-math.inf) - good) / margin)
        return dict(zip(self.names, behind, strict=True)) | dict.fromkeys(self.unscored, math.inf)

    def _on_scale(self, margin: float) -> float:
        """Return the margin between the numbers that are compared."""
        return math.log1p(margin) if self.relative else margin

    def against(self, baseline: str, margin: float = 0.0) -> dict[str, Comparison]:
        """Compare every activation with ``baseline``, which is compared with nothing; one family.

        Args:
            margin: largest difference that does not matter. An activation whose interval lies within -+margin is
                ``equal``, or where ratios are compared from 1 / (1 + margin) to 1 + margin; 0 calls none equal.
        """
        margin = self._on_scale(margin)
        nothing = {name: Comparison() for name in (*self.names, *self.unscored)}
        if baseline not in nothing:
            return nothing
        by_score = [*self.names] if baseline in self.names else []
        seeds = self.diverged[baseline].keys()
        by_divergence = [
            name
            for name in nothing
            if name not in (baseline, *by_score) and self.diverged[name].keys() & seeds
        ]
        family = len({*by_score, *by_divergence} - {baseline})
        compared = {name: self._by_divergence(name, baseline, family) for name in by_divergence}
        if by_score:
            j, pairs = self.names.index(baseline), self._pairs(family)
            compared |= {
                name: self._comparison(i, j, pairs, family, margin)
                for i, name in enumerate(self.names)
                if i != j
            }
        return nothing | compared

    def all_pairs(self) -> dict[tuple[str, str], Comparison]:
        """Compare each activation with all that come after it; one family."""
        count = len(self.names)
        family = count * (count - 1) // 2
        pairs = self._pairs(family)
        return {
            (self.names[i], self.names[j]): self._comparison(i, j, pairs, family, margin=0.0)
            for i, j in combinations(range(count), 2)
        }

    def verdicts(self, margin: float = 0.0) -> dict[tuple[str, str], str]:
        """Return the verdict on the first of each ordered pair with common seeds.

        The family is all pairs, so that a verdict may be undecided here that ``against`` the baseline alone is not.
        """
        margin = self._on_scale(margin)
        count = len(self.names)
        pairs = self._pairs(count * (count - 1) // 2)
        words = np.array(["worse", "undecided", "better"], dtype=object)[pairs.verdicts.astype(int) + 1]
        words[self._equal(pairs, margin)] = "equal"
        common = zip(*np.nonzero(pairs.n), strict=True)
        return {(self.names[i], self.names[j]): words[i, j] for i, j in common if i != j}

    def rank_sets(self) -> dict[str, tuple[int, int]]:
        """Return the lowest and highest rank that each activation may have; all hold together with 95 %.

        The family is all pairs. The lowest is 1 plus the number of activations that are better, the highest the number of
        all less those that are worse; better than an activation is also what is better than one that is better.
        Without a finished seed an activation comes after all others.
        """
        count = len(self.names)
        better = self._pairs(count * (count - 1) // 2).verdicts > 0
        for via in range(count):  # transitive closure
            better |= better[:, [via]] & better[[via], :]
        np.fill_diagonal(better, False)
        low, high = 1 + better.sum(0), count - better.sum(1)
        sets = {name: (int(low[i]), int(high[i])) for i, name in enumerate(self.names)}
        return sets | dict.fromkeys(self.unscored, (count + 1, count + len(self.unscored)))

    def _pairs(self, family: int) -> "_Pairs":
        """Compare all pairs (i, j), as if ``family`` comparisons were made."""
        from scipy.special import stdtr, stdtrit

        present = self.present.astype(float)
        n = present @ present.T
        sums = np.where(self.present, self.table, 0.0) @ present.T
        lost = self.lost.astype(float) @ present.T
        with np.errstate(invalid="ignore", divide="ignore"):
            delta = np.where(n > 0, (sums - sums.T) / n, math.nan)
            total = self.variance[:, None] + self.variance
            welch = total**2 / (self.variance**2 / self.freedom + (self.variance**2 / self.freedom)[:, None])
            freedom = np.minimum(welch, max(self.total_freedom, 0))
            known = (n > 1) & (freedom > 0) & (total > 0)
            error = np.where(known, np.sqrt(total / n), math.nan)
            freedom = np.where(known, freedom, math.nan)
            p = 2 * stdtr(freedom, -np.abs(delta) / error)
            half = stdtrit(freedom, 1 - ALPHA / (2 * max(family, 1))) * error
        # what diverged more often is not better
        blocked = np.sign(delta) * self.sign * np.sign(lost - lost.T) > 0
        signs = np.where((np.abs(delta) > half) & ~blocked, np.sign(delta), 0) * self.sign
        return _Pairs(n.astype(int), delta, half, np.sqrt(total), freedom, p, signs, blocked)

    def _equal(self, pairs: "_Pairs", margin: float) -> np.ndarray:
        """Return which pairs differ by less than ``margin``: neither is better, and none of their seeds is lost."""
        lost = self.lost.any(1)
        within = np.abs(pairs.delta) + pairs.half < margin
        return within & (pairs.verdicts == 0) & ~lost & ~lost[:, None]

    def _comparison(self, i: int, j: int, pairs: "_Pairs", family: int, margin: float) -> Comparison:
        n, delta, half, p = (float(part[i, j]) for part in (pairs.n, pairs.delta, pairs.half, pairs.p))
        if not n:
            return Comparison()
        verdict = {1: "better", -1: "worse"}.get(int(pairs.verdicts[i, j]), "undecided")
        if self._equal(pairs, margin)[i, j]:
            verdict = "equal"
        seeds = self.present[i] & self.present[j]
        a, b = self.table[i][seeds], self.table[j][seeds]
        d = a - b
        varied = len(d) > 1 and min(np.ptp(a), np.ptp(b)) > 0
        std = float(d.std(ddof=1)) if len(d) > 1 else math.nan
        told = less_one if self.relative else float
        return Comparison(
            n=int(n),
            delta=told(delta),
            low=told(delta - half),
            high=told(delta + half),
            p=p,
            p_adjusted=min(1.0, p * family) if p == p else p,
            verdict=verdict,
            seeds_needed=self._seeds_needed(pairs, i, j, family, margin)
            if verdict == "undecided"
            else math.nan,
            effect_size=delta / std if std > 1e-12 * np.abs(a).max() else math.nan,
            p_improvement=float(((self.sign * d > 0) + 0.5 * (d == 0)).mean()),
            correlation=float(np.corrcoef(a, b)[0, 1]) if varied else math.nan,
            p_sign_flip=sign_flip(d),
        )

    def _by_divergence(self, name: str, other: str, family: int) -> Comparison:
        """Compare two activations of which one diverged on every seed: by their outcomes, as there is no difference.

        On a seed where the probability of divergence is q for both, and both diverge independently of each other or
        rather together, one of them alone diverges with a probability of at most q (1 - q) <= 1/4. So the chance that
        the same one does so on m of n common seeds, and the other one never, is at most 2 C(n, m) / 4^m.
        """
        mine, others = self.diverged[name], self.diverged[other]
        d = np.array([int(others[seed]) - int(mine[seed]) for seed in mine.keys() & others.keys()])
        n, alone = len(d), abs(int(d.sum()))
        p = min(1.0, 2 * math.comb(n, alone) / 4**alone)
        p_adjusted = min(1.0, p * family)
        undecided = p_adjusted > ALPHA
        return Comparison(
            n=n,
            p=p,
            p_adjusted=p_adjusted,
            verdict="undecided" if undecided else "better" if d.sum() > 0 else "worse",
            seeds_needed=math.ceil(math.log(2 * family / ALPHA, 4)) if undecided and alone == n else math.nan,
            p_improvement=float(((d > 0) + 0.5 * (d == 0)).mean()),
            p_sign_flip=sign_flip(d),
        )

    def _seeds_needed(self, pairs: "_Pairs", i: int, j: int, family: int, margin: float) -> float:
        """Return the fewest seeds whose interval would exclude 0, or lie within the margin, if seeds diverge as they do."""
        from scipy.special import stdtrit

        n, delta, std, freedom = (
            float(part[i, j]) for part in (pairs.n, abs(pairs.delta), pairs.std, pairs.freedom)
        )
        if math.isnan(freedom):
            return math.nan
        seeds = np.arange(int(n) + 1, MAX_SEEDS_NEEDED + 1)
        half = stdtrit(freedom * (seeds - 1) / (n - 1), 1 - ALPHA / (2 * family)) * std / np.sqrt(seeds)
        lost = self.lost[[i, j]].any()
        enough = seeds[(half < delta) & ~pairs.blocked[i, j] | (delta + half < margin) & ~lost]
        return float(enough[0]) if len(enough) else math.nan


@dataclass(frozen=True)
class _Pairs:
    """Matrices over pairs (i, j): common seeds, mean of i - j, half its interval, std and freedom of a difference, p.

    ``verdicts`` is 1 where i is better than j, -1 where it is worse; 0 at any interval where ``blocked``, as the one with
    the better mean difference diverged on more of the common seeds.
    """

    n: np.ndarray
    delta: np.ndarray
    half: np.ndarray
    std: np.ndarray
    freedom: np.ndarray
    p: np.ndarray
    verdicts: np.ndarray
    blocked: np.ndarray


def _exp(logarithm: float) -> float:
    """Return the number that has this logarithm; inf above the largest float."""
    with np.errstate(over="ignore"):  # not ``less_one`` + 1, which has no digits of a small number
        return float(np.exp(logarithm))


def less_one(logarithm: float) -> float:
    """Return exp(logarithm) - 1; inf above the largest float."""
    with np.errstate(over="ignore"):
        return float(np.expm1(logarithm))


def sign_flip(differences: np.ndarray) -> float:
    """Return the exact two-sided p-value of the mean difference over all patterns of signs.

    Above 16 differences it is that of 2^16 random patterns, always the same ones, the observed one among them.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    observed = abs(differences.sum())
    return float((np.abs(_signs(n) @ differences) >= observed * (1 - 1e-9)).mean())


@lru_cache(maxsize=4)
def _signs(n: int) -> np.ndarray:
    """(patterns, n) of -1 and 1; the first is all ones."""
    if n <= MAX_FLIPPED:
        return 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (2**MAX_FLIPPED, n))
    signs[0] = 1
    return signs


def worst_possible(higher_is_better: bool) -> float:
    """Return the value of a diverged seed."""
    return -math.inf if higher_is_better else math.inf
