"""How much a difference depends on which samples are in the test set, from the scores of single samples."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.arrays import read_arrays
from results.collect import FOLDS
from results.files import EXAMPLES
from results.statistics import ALPHA, Comparison, less_one

MEANS = ("top1", "mse", "mae")  # metrics that are means over samples


def read_examples(folder: str | Path, metric: str, score: float) -> tuple[np.ndarray, float] | None:
    """Return what each test sample contributes to a cell's score, and the least that one can change it by.

    None if that is not recorded, cannot be read, or does not have the mean ``score``.
    """
    try:
        arrays = read_arrays(Path(folder) / EXAMPLES)
        values, number = arrays[metric], arrays["count"]
    except (OSError, KeyError, ValueError):
        return None
    if values.ndim != 1 or values.dtype.kind not in "uf" or number.ndim or number.dtype.kind not in "iu":
        return None
    change, count = 0.0, int(number)
    if not 0 < count <= 8 * len(values):
        return None
    if values.dtype == np.uint8:
        change = 100.0
        values = change * np.unpackbits(values, count=count).astype(np.float32)
    if len(values) != count or not math.isclose(values.mean(dtype=float), score, rel_tol=1e-4):
        return None
    return values, change


def other_test_sets(
    cells: pd.DataFrame,
    baseline: str,
    metric: str,
    compared: Mapping[str, Comparison],
    relative: bool = False,
) -> dict[str, tuple[float, float]]:
    """Return intervals of the differences to the baseline that hold for another test set of the same size as well.

    An activation is absent where a common seed has no scores of single samples, diverged, or is tested on a fold of
    its own.

    Args:
        cells: those of one task that ended ``ok``.
        compared: each activation with the baseline; one family.
        relative: these are ratios.
    """
    if metric not in MEANS or (FOLDS in cells and cells[FOLDS].notna().any()):
        return {}
    groups = {str(label): group for label, group in cells.groupby("activation_label")}
    family = sum(c.n > 0 for c in compared.values())
    if baseline not in groups or not family:
        return {}
    reference = _by_seed(groups[baseline], metric, relative)
    intervals = {}
    for label, group in groups.items():
        of_seeds = compared.get(label, Comparison())
        if math.isnan(of_seeds.low):
            continue
        own = _by_seed(group, metric, relative)
        seeds = [seed for seed in own if seed in reference]
        if len(seeds) < of_seeds.n or len({len(part[s][0]) for part in (own, reference) for s in seeds}) > 1:
            continue
        difference = np.mean([own[s][0] - reference[s][0] for s in seeds], axis=0, dtype=float)
        intervals[label] = widened(of_seeds, difference, own[seeds[0]][1], family, relative)
    return intervals


def widened(
    of_seeds: Comparison, difference: np.ndarray, change: float, family: int, relative: bool = False
) -> tuple[float, float]:
    """Widen the interval of a difference, which is for seeds alone, by the choice of test samples.

    With h its half-width, N test samples, d_e the difference on sample e averaged over the common seeds, and z the normal
    quantile of the same simultaneous level, the half-width becomes

        sqrt(h^2 + z^2 var(d_e) / N).

    Seeds and samples are crossed: every seed is tested on all samples. What a seed and a sample have to do with each
    other is in both terms, so that the sum is rather too large. The variance is at least that of a single sample that the
    two activations disagree on in all seeds. Of a ratio all of this is that of its logarithm, where d_e is the difference of the
    samples' errors, each divided by their mean (the delta method).

    Args:
        difference: (N,) d_e.
        change: the least that one sample can change it by; 0 if there is no such step.
        family: number of comparisons whose intervals hold together.
        relative: the comparison is a ratio.
    """
    from scipy.special import ndtri

    count = len(difference)
    variance = max(difference.var(ddof=1), change**2 / count) / count if count > 1 else math.nan
    delta, low, high = of_seeds.delta, of_seeds.low, of_seeds.high
    if relative:
        with np.errstate(divide="ignore"):  # the end of a very long interval may be -1
            delta, low, high = (float(np.log1p(x)) for x in (delta, low, high))
    half = math.hypot((high - low) / 2, float(ndtri(1 - ALPHA / (2 * family))) * math.sqrt(variance))
    ends = delta - half, delta + half
    return (less_one(ends[0]), less_one(ends[1])) if relative else ends


def _by_seed(cells: pd.DataFrame, metric: str, relative: bool) -> dict[int, tuple[np.ndarray, float]]:
    """Return what ``read_examples`` does for each seed; where ``relative``, divided by its mean."""
    read = {
        int(seed): read_examples(folder, metric, float(score))
        for seed, folder, score in zip(cells["seed"], cells["folder"], cells["primary"], strict=True)
    }
    known = {seed: values for seed, values in read.items() if values is not None}
    if relative:
        known = {
            seed: (values / values.mean(dtype=float), change) for seed, (values, change) in known.items()
        }
    return known


def sentence(rows: pd.DataFrame) -> str:
    """Return, for the rows of one task, which verdicts may not hold for another test set; empty if that is not known."""
    decided = rows[rows["verdict"].isin(("better", "worse", "equal"))]
    if decided.empty:
        return ""
    metric = str(rows["metric"].iloc[0])
    if metric not in MEANS:
        return (
            f"Verdicts are for this test set: {metric} is not a mean over test samples, so that no interval for another "
            "test set is known."
        )
    known = decided.dropna(subset=["test_low"])
    if known.empty:
        return ""
    doubtful = [row for row in known.to_dict("records") if not _holds(row)]
    if not doubtful:
        count = len(known)
        return f"For another test set of the same size {'this verdict' if count == 1 else f'these {count} verdicts'} would hold as well (95 %)."
    told = ", ".join(f"{row['activation']} {row['verdict']} ({_ends(row)})" for row in doubtful)
    expected = "ratios" if rows["relative"].iloc[0] else "differences"
    return f"For another test set of the same size these verdicts may not hold, with the {expected} to expect: {told}."


def _ends(row: Mapping[str, Any]) -> str:
    low, high = row["test_low"], row["test_high"]
    return f"{1 + low:.3g} to {1 + high:.3g}" if row["relative"] else f"{low:+.3g} to {high:+.3g}"


def _holds(row: Mapping[str, Any]) -> bool:
    low, high, margin = row["test_low"], row["test_high"], row["margin"]
    if row["verdict"] == "equal":
        return (1 / (1 + margin) - 1 if row["relative"] else -margin) < low and high < margin
    return low > 0 or high < 0
