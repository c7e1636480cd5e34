"""What an activation learned on a task, in numbers: agreement of its seeds, shape of its curves, its parameters by site."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results.learned import Learned, coefficient_parts, densities

LITTLE = 1e-6  # mean square change of a function that has learned nothing; float16 rounds to about that
COLUMNS = ("task", "activation", "depth", "site", "quantity", "seeds", "mean", "std", "within_std")
BY_PIECE = ("occupancy", "knots")  # roles of arrays whose mean says nothing
OF_CURVES = ("agreement", "not_relu", "not_linear", "slope_below_0", "slope_above_0")
DIGITS = 5  # significant ones of the table's numbers


@dataclass(frozen=True)
class Number:
    """A quantity of a site: number of seeds, mean and standard deviation of their means, and mean deviation within a seed."""

    seeds: int
    mean: float
    std: float
    within_std: float


def is_learned(read: Sequence[Learned]) -> bool:
    """Whether the curves are those of a function that training changes: fixed ones are the same at all sites of all seeds."""
    lines = [curve for each in read for curve in each.curves.values()]
    differ = any(not np.allclose(curve, lines[0][:1], atol=1e-4, equal_nan=True) for curve in lines)
    return differ or any(each.evolution for each in read)


def agreement_at(read: Sequence[Learned], site: str) -> float:
    """Return how much of what a site learned is the same for all seeds.

    1 - sum_x w(x) Var_s f_s(x) / sum_x w(x) mean_s (f_s(x) - f_0(x))^2, at least 0. f_s is the function of seed s, the mean of
    its units, with the unbiased variance over seeds; f_0 the mean over seeds of those before training; w the density of the inputs. nan
    for one seed, where the start is not known and where nothing was learned.
    """
    starts = [each.evolution[0][site] for each in read if site in each.evolution.get(0, {})]
    if len(read) < 2 or len(starts) < len(read):
        return math.nan
    x = read[0].x
    weights = np.mean([densities(each, site) for each in read], axis=0)
    curves = np.stack([each.curves[site].mean(0) for each in read])
    finite = np.isfinite(curves).all(0) & (weights > 0)
    if not finite.any() or not all(np.array_equal(each.x, x) for each in read):
        return math.nan
    curves, weights = curves[:, finite].astype(float), weights[finite] / weights[finite].sum()
    change = curves - np.mean(starts, axis=0)[finite]
    learned = float((weights * (change**2).mean(0)).sum())
    between = float((weights * curves.var(0, ddof=1)).sum())
    return max(0.0, 1 - between / learned) if learned > LITTLE else math.nan


def shape_at(learned: Learned, site: str) -> dict[str, float]:
    """Return numbers about the shape of a site's function f, the mean of its units; nan where they are not defined.

    All are over the density of the inputs. ``not_relu`` is 1 - corr(f, ReLU)^2, the share of the variance of f(x) that no
    a + b ReLU(x) explains, as a layer behind the site can undo a and b; ``not_linear`` is 1 - corr(f, x)^2. ``slope_below_0`` and
    ``slope_above_0`` are the mean slopes of f on the inputs below and above 0.
    """
    x, f, weights = (
        learned.x.astype(float),
        learned.curves[site].mean(0, dtype=float),
        densities(learned, site),
    )
    slope = np.gradient(f, x)
    return {
        "not_relu": _unexplained(f, np.maximum(x, 0), weights),
        "not_linear": _unexplained(f, x, weights),
        "slope_below_0": _mean(slope, weights * (x < 0)),
        "slope_above_0": _mean(slope, weights * (x > 0)),
    }


def _unexplained(f: np.ndarray, of: np.ndarray, weights: np.ndarray) -> float:
    known = np.isfinite(f) & (weights > 0)
    if known.any():
        (var_f, cov), (_, var_of) = np.cov(f[known], of[known], aweights=weights[known])
        if var_f > LITTLE and var_of > LITTLE:
            return float(1 - cov**2 / (var_f * var_of))
    return math.nan


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    known = np.isfinite(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan


def numbers(read: Sequence[Learned]) -> dict[str, dict[str, Number]]:
    """Return by site, in the order of depth, its quantities by name."""
    sites = dict.fromkeys(site for each in read for site in (*each.inputs, *each.curves, *each.diagnostics))
    return {site: _numbers_at(read, site) for site in sites}


def _numbers_at(read: Sequence[Learned], site: str) -> dict[str, Number]:
    found: dict[str, list[np.ndarray]] = {}  # for each seed its values
    for each in read:
        if site in each.curves:
            for name, value in shape_at(each, site).items():
                found.setdefault(name, []).append(np.array([value]))
        for name, values in _diagnostics(each, site):
            found.setdefault(name, []).append(values)
    result: dict[str, Number] = {}
    if all(site in each.curves for each in read):
        result["agreement"] = Number(len(read), agreement_at(read, site), math.nan, math.nan)
    for name, several in found.items():
        known = [finite for values in several if len(finite := values[np.isfinite(values)])]
        if known:
            means = np.array([values.mean() for values in known])
            std = float(means.std(ddof=1)) if len(means) > 1 else math.nan
            within = [values.std() for values in known if len(values) > 1]
            result[name] = Number(
                len(known), float(means.mean()), std, float(np.mean(within)) if within else math.nan
            )
    return result


def rows(
    task: str, activation: str, found: Mapping[str, Mapping[str, Number]], learned: bool
) -> Iterator[tuple[object, ...]]:
    """Yield the rows of ``learned.csv`` (``COLUMNS``) for one activation on one task; without curves unless these are ``learned``."""
    depth = 0
    for site, by_name in found.items():
        shown = {name: number for name, number in by_name.items() if learned or name not in OF_CURVES}
        depth += bool(shown)
        for name, number in shown.items():
            values = (float(f"{v:.{DIGITS}g}") for v in (number.mean, number.std, number.within_std))
            yield task, activation, depth, site, name, number.seeds, *values


def _diagnostics(learned: Learned, site: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values of a site's diagnostics, but of those by piece; every coefficient has a name of its own."""
    for name, values in learned.diagnostics.get(site, {}).items():
        role = learned.role(site, name)
        if role == "coefficients":
            for title, part in coefficient_parts(values):
                yield title, part.ravel().astype(float)
        elif role not in BY_PIECE:
            yield name, values.ravel().astype(float)


def table(found: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """Return ``rows`` as the columns of ``learned.csv``."""
    return pd.DataFrame(found, columns=list(COLUMNS))
