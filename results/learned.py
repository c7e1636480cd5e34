"""Figures of what a finished cell's activations learned, from its ``curves.npz`` alone."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.arrays import read_arrays
from results.escape import figure_text, shortened
from results.figures import STYLE, save
from results.files import CURVES, PICTURES
from results.palette import COLORS, GRAY

WIDTH = 9.6  # inches
TAIL = 0.001  # share of the inputs at either end that a panel may leave out
NEARBY = 1.0  # a panel reaches at least this far to both sides of 0, where activations bend
SITE_LENGTH = 24  # characters of a site's name
DOTS = 100  # per strip: quantiles stand for more values than that
FIGURES = ("curves", "gates", "coefficients", "parameters")  # the names of a cell's figures
ROLES = ("gate", "coefficients", "occupancy", "knots", "interval_end")  # what is none of these is a parameter


@dataclass(frozen=True)
class Learned:
    """What a cell's ``curves.npz`` holds; sites stand in the network's order, which is depth.

    name: task/activation/seed-id.
    x: (points,).
    curves: (units, points) by site, where the unit is a scalar function.
    inputs: (points + 1,) by site: share of inputs below x[0], in each interval, above x[-1].
    diagnostics: arrays of any shape by site and name.
    roles: what such an array is (``ROLES``), by site and name; what has none is a plain parameter.
    evolution: (points,) mean curve by number of epochs trained and site, in the order of training.
    """

    name: str
    x: np.ndarray
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    diagnostics: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    roles: dict[str, dict[str, str]] = field(default_factory=dict)
    evolution: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def role(self, site: str, name: str) -> str:
        """Return what a diagnostic is: one of ``ROLES``, or ``parameter``."""
        role = self.roles.get(site, {}).get(name)
        return role if role in ROLES else "parameter"


def write_cell_figures(folder: Path) -> list[Path]:
    """Write what can be drawn of the cell in ``folder`` to its ``pictures/``, as SVG and PNG; returns the PNGs.

    Raises:
        ValueError: the cell is not finished, or its ``curves.npz`` is damaged or empty.
    """
    learned = read_learned(folder)
    with rc_context(STYLE):
        drawn = {
            function.__name__: function(learned) for function in (curves, gates, coefficients, parameters)
        }
        paths = [
            save(figure, folder / PICTURES, name) for name, figure in drawn.items() if figure is not None
        ]
    if not paths:
        raise ValueError(f"{folder / CURVES}: no curves, inputs or parameters in it, so nothing to draw")
    return paths


def read_learned(folder: Path) -> Learned:
    """The arrays of ``folder / curves.npz``.

    Raises:
        ValueError: there is no such file, or it is not what a runner writes.
    """
    path = folder / CURVES
    try:
        return _sorted("/".join(folder.resolve().parts[-3:]), read_arrays(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: no {CURVES} there, so this is no finished cell; run its command again to finish it"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); train the cell again with force=true") from None


def _sorted(name: str, arrays: Mapping[str, np.ndarray]) -> Learned:
    """The arrays by kind and site, after a look at their shapes."""
    if "x" not in arrays or arrays["x"].ndim != 1 or len(arrays["x"]) < 2:
        raise ValueError("no points x")
    learned = Learned(name, arrays["x"])
    points = len(learned.x)
    for key, array in arrays.items():
        kind, _, site = key.partition("/")
        fits = array.dtype.kind in "biuf"
        if kind == "curve":
            learned.curves[site] = array
            fits &= array.ndim == 2 and array.shape[1] == points
        elif kind == "inputs":
            learned.inputs[site] = array
            fits &= array.shape == (points + 1,)
        elif kind == "diagnostic":
            site, _, diagnostic = site.rpartition("/")
            learned.diagnostics.setdefault(site, {})[diagnostic] = array
        elif kind == "role":
            site, _, diagnostic = site.rpartition("/")
            learned.roles.setdefault(site, {})[diagnostic] = str(array)
            fits = array.dtype.kind == "U" and array.ndim == 0
        elif kind == "evolution":
            epochs, _, site = site.partition("/")
            fits &= array.shape == (points,) and epochs.isdecimal()
            if fits:
                learned.evolution.setdefault(int(epochs), {})[site] = array.astype(np.float32)
        if not fits:
            raise ValueError(f"{key} is {array.dtype}{list(array.shape)}, and x has {points} points")
    return learned


def curves(learned: Learned) -> Figure | None:
    """A panel per site: its curves over the distribution of its inputs.

    Sites without a curve are left out, unless none has one: then the inputs stand alone.
    """
    sites = list(learned.curves or learned.inputs)
    if not sites:
        return None
    figure, axes = _grid(len(sites))
    for ax, site in zip(axes, sites, strict=True):
        _draw_site(ax, learned, site)
        ax.set_title(_shortened(site), size=8)
    # the same label in many panels is one entry
    shown = {text: mark for ax in axes for mark, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend = figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(max(handle.get_alpha() or 1, 0.5))  # one channel of many is faint
    _title(figure, learned, "response curves by depth" if learned.curves else "inputs by depth")
    return figure


def _draw_site(ax: Axes, learned: Learned, site: str) -> None:
    x, lines, inputs = learned.x, learned.curves.get(site), learned.inputs.get(site)
    relu = np.maximum(x, 0)
    low, high = input_range(x, inputs)
    if inputs is not None and inputs[1:-1].any():
        _draw_inputs(ax, x, inputs)
    ax.plot(x, relu, ":", lw=1.0, color="black", zorder=3, label="ReLU")
    if lines is not None:
        _draw_lines(ax, x, lines)
        ends = _interval_ends(learned, site)
        if len(ends):
            low, high = _draw_interval(ax, ends, low, high)
            low, high = max(low, x[0]), min(high, x[-1])
    inside = (x >= low) & (x <= high)
    ax.set(xlim=(low, high), ylim=_limits((relu[None] if lines is None else lines)[:, inside]))
    ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize=7)


def densities(learned: Learned, site: str) -> np.ndarray:
    """Return (points,) the share of a site's inputs around each point, half of either neighboring interval."""
    inner = (
        learned.inputs[site][1:-1].astype(float) if site in learned.inputs else np.zeros(len(learned.x) - 1)
    )
    return (np.append(0.0, inner) + np.append(inner, 0.0)) / 2


def input_range(x: np.ndarray, inputs: np.ndarray | None) -> tuple[float, float]:
    """Where all but ``TAIL`` of the inputs at either end are, with a margin; all of ``x`` if that is not known."""
    first, last = float(x[0]), float(x[-1])
    if inputs is None or not inputs.sum() > 0:
        return first, last
    below = np.cumsum(inputs, dtype=float)[:-1] / inputs.sum()  # (points,) share of inputs below each
    low = float(x[below <= TAIL].max(initial=first))
    high = float(x[below >= 1 - TAIL].min(initial=last))
    margin = 0.08 * (high - low)
    return max(first, min(low - margin, -NEARBY)), min(last, max(high + margin, NEARBY))


def _draw_inputs(ax: Axes, x: np.ndarray, inputs: np.ndarray) -> None:
    """The histogram in the background, on a height of its own; the share that ``x`` does not reach as a number."""
    heights = 0.9 * inputs[1:-1] / inputs[1:-1].max()
    across = ax.get_xaxis_transform()
    ax.stairs(heights, x, fill=True, color=GRAY, alpha=0.45, lw=0, zorder=0, transform=across, label="inputs")
    total = inputs.sum()
    if inputs[0] >= 0.005 * total:
        ax.text(0.02, 0.97, f"← {inputs[0] / total:.0%}", size=7, va="top", transform=ax.transAxes)
    if inputs[-1] >= 0.005 * total:
        ax.text(0.98, 0.03, f"{inputs[-1] / total:.0%} →", size=7, ha="right", transform=ax.transAxes)


def _draw_lines(ax: Axes, x: np.ndarray, lines: np.ndarray) -> None:
    """One unit as a line; channels as a cloud of lines with their mean."""
    if len(lines) == 1:
        ax.plot(x, lines[0], lw=1.8, color=COLORS[0], label="curve")
        return
    lines = np.where(np.isfinite(lines), lines, np.nan)  # which matplotlib leaves out
    segments = [np.column_stack([x, line]) for line in lines]
    alpha = min(0.8, max(0.2, 8 / len(lines)))
    # hundreds of channels as vectors would make an SVG of megabytes
    cloud = LineCollection(segments, color=COLORS[5], lw=0.7, alpha=alpha, rasterized=True, label="channels")
    ax.add_collection(cloud, autolim=False)
    ax.plot(x, lines.mean(0), lw=1.8, color=COLORS[0], label="mean of channels")


def _interval_ends(learned: Learned, site: str) -> np.ndarray:
    """All values of a site's diagnostics that are ends of an interval, from the lowest on."""
    named = learned.diagnostics.get(site, {})
    ends = [np.ravel(values) for name, values in named.items() if learned.role(site, name) == "interval_end"]
    return np.sort(np.concatenate(ends)) if ends else np.zeros(0)


def _draw_interval(ax: Axes, ends: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Mark a learned interval, or those of many channels as ticks; returns the range with the former in it."""
    height = 1.0 if len(ends) == 2 else 0.07
    across = ax.get_xaxis_transform()
    label = "learned interval" if len(ends) == 2 else "learned intervals' ends"
    ax.vlines(ends, 0, height, color=COLORS[1], lw=0.8, transform=across, label=label)
    if len(ends) > 2 or not np.isfinite(ends).all():
        return low, high
    return min(low, float(ends[0]) - 0.1), max(high, float(ends[1]) + 0.1)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """From the lowest to the highest finite value, with a margin."""
    finite = _finite(values)
    if not len(finite):
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def gates(learned: Learned) -> Figure | None:
    """A panel for every gate: its values over the channels of each site, and their mean by depth."""
    named = _by_role(learned, "gate")
    return _panels(learned, named, "gates by depth", with_means=True) if named else None


def coefficients(learned: Learned) -> Figure | None:
    """A panel for the slope and the intercept of every piece: values over a batch and the channels of each site."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for by_site in _by_role(learned, "coefficients").values():
        for site, values in by_site.items():
            for title, part in coefficient_parts(values):
                named.setdefault(title, {})[site] = part
    return _panels(learned, named, "coefficients by depth") if named else None


def coefficient_names(values: np.ndarray) -> list[str]:
    """Return the names of coefficients (..., 2 K): K slopes, then K intercepts."""
    pieces = values.shape[-1] // 2 if values.ndim else 0
    return [f"{part} {k + 1}" for part in ("slope", "intercept") for k in range(pieces)]


def coefficient_parts(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values (...) of each of coefficients (..., 2 K)."""
    for k, name in enumerate(coefficient_names(values)):
        yield name, values[..., k]


def parameters(learned: Learned) -> Figure | None:
    """A panel for every diagnostic that no other figure shows: its values at each site."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for site, by_name in learned.diagnostics.items():
        for name, values in by_name.items():
            role = learned.role(site, name)
            if role not in ("gate", "coefficients") and not (
                role == "interval_end" and site in learned.curves
            ):
                named.setdefault(name, {})[site] = values
    return _panels(learned, named, "parameters by depth") if named else None


def _panels(
    learned: Learned, named: Mapping[str, Mapping[str, np.ndarray]], title: str, with_means: bool = False
) -> Figure:
    """A figure with a panel for each of ``named``, which holds values by site."""
    sites = [site for site in learned.diagnostics if any(site in by_site for by_site in named.values())]
    columns = 1 if len(named) < 3 else 2
    rows = math.ceil(len(named) / columns)
    figure = Figure(figsize=(WIDTH, 1.2 + 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for index, (ax, (name, by_site)) in enumerate(zip(axes, named.items(), strict=False)):
        color = COLORS[index % len(COLORS)] if with_means else COLORS[0]
        _strips(ax, {sites.index(site): values for site, values in by_site.items()}, color=color)
        if with_means:
            means = {sites.index(site): _finite(np.ravel(values)) for site, values in by_site.items()}
            heights = [float(values.mean()) if len(values) else math.nan for values in means.values()]
            ax.plot(list(means), heights, "-", lw=1.1, color="black", label="mean")
            ax.axhline(0, lw=0.8, color="black", zorder=1)
        ax.set_title(figure_text(name))
        _depth_axis(ax, sites, labelled=index + columns >= len(named))
    for ax in axes[len(named) :]:
        ax.remove()
    _title(figure, learned, title)
    return figure


def _by_role(learned: Learned, role: str) -> dict[str, dict[str, np.ndarray]]:
    """What has a role, by name and site."""
    named: dict[str, dict[str, np.ndarray]] = {}
    for site, by_name in learned.diagnostics.items():
        for name, values in by_name.items():
            if learned.role(site, name) == role:
                named.setdefault(name, {})[site] = values
    return named


def _strips(ax: Axes, groups: Mapping[int, np.ndarray], *, color: str) -> None:
    """At each depth a strip of dots, as wide as its values are dense; a line joins the medians."""
    dots, medians = [], []
    for depth, values in groups.items():
        finite = np.sort(_finite(values))
        if not len(finite):
            continue
        if len(finite) > DOTS:
            finite = np.quantile(finite, np.linspace(0, 1, DOTS))
        dots.append(np.stack([depth + 0.7 * _spread(finite), finite]))
        medians.append((depth, np.median(finite)))
    if not dots:
        return
    ax.plot(*np.concatenate(dots, axis=1), "o", ms=2.6, mew=0, alpha=0.45, color=color)
    ax.plot(
        *zip(*medians, strict=True), "o-", ms=4, lw=0.9, mec="white", mew=0.6, color=color, label="median"
    )


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _spread(values: np.ndarray) -> np.ndarray:
    """Sideways places in [-0.5, 0.5] for sorted values: the denser, the wider; evenly mixed by the golden ratio."""
    counts, edges = np.histogram(values, bins=min(20, len(values)))
    dense = counts[np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(counts) - 1)]
    mixed = (0.5 + np.arange(len(values)) * (math.sqrt(5) - 1) / 2) % 1 - 0.5
    return mixed * dense / max(dense.max(), 3)  # a few values are no crowd


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, at most five to a row."""
    least = min(5, count if count <= 4 else math.ceil(math.sqrt(count)))
    columns = min(range(least, 6), key=lambda columns: -count % columns)  # the fewest places stay empty
    rows = math.ceil(count / columns)
    width = WIDTH / max(columns, 3)
    size = (max(width * columns, WIDTH / 2), 0.8 + rows * (0.4 + 0.6 * width))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def _depth_axis(ax: Axes, sites: list[str], *, labelled: bool) -> None:
    """Sites by name along the x axis, turned unless they fit; every second or third where they are very many."""
    ticks = range(0, len(sites), math.ceil(len(sites) / 60))
    labels = [_shortened(sites[depth]) for depth in ticks]
    ax.set_xticks(ticks, labels, size=7, rotation=90 if len("".join(labels)) > 45 else 0)
    ax.set_xlim(-0.6, len(sites) - 0.4)
    ax.tick_params(labelbottom=labelled)
    ax.grid(axis="y", lw=0.4, alpha=0.5)


def _shortened(site: str) -> str:
    """Return the end of a long name, which tells sites apart, as text for a figure."""
    return figure_text(shortened(site, SITE_LENGTH))


def _title(figure: Figure, learned: Learned, text: str) -> None:
    figure.suptitle(f"{figure_text(learned.name)}: {text}", x=0.01, ha="left", size=10)
