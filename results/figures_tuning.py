"""Figure of a tuned setting: the validation score of every activation against it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from results.captions import direction
from results.collect import setting_text
from results.escape import figure_text
from results.metrics import is_wide
from results.palette import GRAY, Look
from results.tuning import Tuned, is_grid, is_number, names_of, profile, settings_of

MAX_COLUMNS = 4  # panels side by side
MAX_TICKS = 4


def draw(tuned: Tuned, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, Figure]]:
    """Yield task, setting and figure for each setting that was tuned on a task."""
    for task in tuned.tasks:
        rows = tuned.trials[(tuned.trials["task_label"] == task) & tuned.trials["trial"].notna()]
        for name in names_of(rows):
            if rows["n"].sum():
                yield task, name, sensitivity(tuned, task, name, looks)


def sensitivity(tuned: Tuned, task: str, name: str, looks: Mapping[str, Look]) -> Figure:
    """One panel for each activation: its scores over those of all others, the seeds' range, and its good range."""
    trials = tuned.trials[tuned.trials["task_label"] == task]
    order = tuned.activations[tuned.activations["task"] == task].sort_values("tuned_rank_low")["activation"]
    curves = {str(label): profile(trials[trials["activation_label"] == label], name) for label in order}
    columns = min(MAX_COLUMNS, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(0.7 + 2.3 * columns, 0.9 + 1.75 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
    places = _places(pd.concat(curves.values())["value"])
    scores = pd.concat(curves.values())[["val_low", "val_high"]].stack()
    joined = is_grid(trials[trials["common_id"] == trials["common_id"].iloc[0]])
    for ax, (label, curve) in zip(axes, curves.items(), strict=False):
        _background(ax, curves.values(), places, joined)
        _line(ax, curve, places, looks.get(label, Look()), joined)
        common = trials[(trials["activation_label"] == label) & trials["common"]]
        if len(common):
            at = settings_of(common["settings"].iloc[0]).get(name)
            if is_number(at) and at > 0 if places.log else _key(at) in places:
                ax.axvline(places(at), lw=0.8, ls=":", color="black")
        width = tuned.ranges.get((task, label, name))
        ax.set_title(f"{figure_text(label)}{f': {width.text} decades' if width else ''}", size=9)
        ax.grid(lw=0.4, alpha=0.5)
    for ax in axes[max(0, len(curves) - columns) : len(curves)]:
        ax.tick_params(labelbottom=True)  # also above a place without a panel
    for ax in axes[len(curves) :]:
        ax.set_axis_off()
    if places.log:
        axes[0].set_xscale("log")
        # Log ticks of less than a decade write over each other.
        values = sorted({float(value) for curve in curves.values() for value in curve["value"]})
        some = values[:: math.ceil(len(values) / MAX_TICKS)]
        axes[0].set_xticks(some, [f"{value:g}" for value in some])
        axes[0].xaxis.set_minor_locator(NullLocator())
    else:
        axes[0].set_xticks(range(len(places)), list(places))
    if is_wide(scores):
        axes[0].set_yscale("log")
    scored = trials.dropna(subset=["metric"])
    figure.supxlabel(figure_text(name), size=9)
    figure.supylabel(f"val {figure_text(scored['metric'].iloc[0])} ({direction(scored)})", size=9)
    figure.suptitle(
        f"{figure_text(task)}: sensitivity, mean and range of the trials' seeds", x=0.01, ha="left", size=10
    )
    return figure


def caption(tuned: Tuned, task: str, name: str) -> str:
    """Return what the marks of ``sensitivity`` are."""
    rows = tuned.trials[(tuned.trials["task_label"] == task) & tuned.trials["trial"].notna()]
    metric, seeds = rows["metric"].dropna().iloc[0], rows["trial_seeds"].iloc[0].split()
    several = "" if len(names_of(rows)) == 1 else " At each value the best trial with it is shown."
    return (
        f"Validation {metric} on {task} against {name}, n = {len(seeds)} trial seeds. Lines are means, bars reach from the lowest seed to the "
        "highest, the ring is what was chosen, crosses are trials that lost a seed. Gray: all other activations. Dotted: the common recipe. "
        f"Behind the names: width of the good range.{several}"
    )


class _Places(dict[str, float]):
    """Where values stand on the axis: at themselves, or side by side if they have no logarithm."""

    log = False

    def __call__(self, value: object) -> float:
        return float(value) if self.log else self[_key(value)]  # type: ignore[arg-type]


def _key(value: object) -> str:
    return setting_text(json.dumps(value) if isinstance(value, list) else value)


def _places(values: pd.Series) -> _Places:
    places = _Places({key: float(k) for k, key in enumerate(dict.fromkeys(map(_key, values)))})
    numbers = [value for value in values if is_number(value)]
    places.log = len(numbers) == len(values) and min(numbers) > 0
    return places


def _background(ax: Axes, curves: Iterable[pd.DataFrame], places: _Places, joined: bool) -> None:
    """Draw the means of all curves as one line with gaps: an element for each would be most of the file."""
    x: list[float] = []
    y: list[float] = []
    for curve in curves:
        whole = curve[curve["n"] > 0]
        x += [*map(places, whole["value"]), math.nan]
        y += [*whole["val"], math.nan]
    style: Any = {"ls": "-"} if joined else {"ls": "", "marker": "o", "ms": 2}
    ax.plot(x, y, lw=0.7, color=GRAY, zorder=1, **style)


def _line(ax: Axes, curve: pd.DataFrame, places: _Places, look: Look, joined: bool) -> None:
    whole = curve[curve["n"] > 0]
    x = [places(value) for value in whole["value"]]
    style: Any = {"ls": look.line if joined else "", "marker": look.marker, "color": look.color}
    ax.plot(x, whole["val"], ms=4, lw=1.4, zorder=3, **style)
    ax.vlines(x, whole["val_low"], whole["val_high"], lw=2.5, color=look.color, alpha=0.35, zorder=3)
    chosen = whole[whole["chosen"]]
    x = [places(value) for value in chosen["value"]]
    ax.plot(x, chosen["val"], "o", ms=9, mew=1.2, mfc="none", mec=look.color, zorder=3)
    lost = [places(value) for value in curve["value"][curve["lost"] > 0]]
    ax.plot(lost, [0.97] * len(lost), "x", ms=6, color=look.color, transform=ax.get_xaxis_transform())
