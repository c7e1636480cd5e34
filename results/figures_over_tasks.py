"""Figures of a study over its tasks: mean ranks with what differs, performance profile, and verdicts in pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results.escape import counted, figure_text
from results.leaderboard import rank_range
from results.over_tasks import TASKS_NEEDED, OverTasks, win_counts
from results.palette import Look, in_front

ON_PALE = "#1b1f24"  # not black, which the page draws white in the dark theme
CAPTIONS = {
    "mean_ranks": "Rank over blocks of task and seed: upright marks are means, thin bars their 95 % intervals for other tasks and other seeds, "
    "broad bars and numbers the ranks that an activation may have, together with 95 %.",
    "performance_profile": "Share of tasks on which an activation's mean score is within so many margins of the best one; the margin is "
    "the smallest difference that matters on a task. The baseline and the best seven others are in color, the rest in gray.",
    "win_matrix": "Number of tasks on which the row is better than the column, less those on which it is worse, by the verdicts of all "
    "pairs of a task; in each field better / equal / worse.",
}


def draw(over: OverTasks, looks: Mapping[str, Look]) -> dict[str, Figure]:
    """Draw the figures that the study has enough tasks for, by name; ``looks`` are those of the other figures."""
    figures = {}
    if len(over.tasks) >= TASKS_NEEDED:
        figures["mean_ranks"] = mean_ranks(over, looks)
    if len(over.gaps.columns) >= TASKS_NEEDED:
        figures["performance_profile"] = performance_profile(over, looks)
    return figures | {"win_matrix": win_matrix(over)}


def mean_ranks(over: OverTasks, looks: Mapping[str, Look]) -> Figure:
    """Draw mean ranks with their intervals, best on top, and the ranks that each activation may have."""
    rows = over.activations.dropna(subset=["mean_rank"])
    figure, ax = ranked_lines(rows)
    for y, row in enumerate(rows.itertuples()):
        color = looks.get(row.activation, Look()).color
        ranks = [row.rank_low, row.rank_high]
        ax.plot(ranks, [y, y], "-", lw=7, color=color, alpha=0.2, solid_capstyle="round")
        ax.plot([row.mean_rank_low, row.mean_rank_high], [y, y], "-", lw=1.1, color=color)
        ax.plot([row.mean_rank], [y], "|", ms=11, mew=2.2, color=color)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank (1 is best)")
    ax.set_title(f"mean ranks over {len(over.tasks)} tasks, 95 % intervals, ranks")
    return figure


def ranked_lines(rows: pd.DataFrame) -> tuple[Figure, Axes]:
    """Return a figure with a line for each activation, the first on top, named with the ranks that it may have."""
    figure = Figure(figsize=(6.4, 1.1 + 0.27 * len(rows)), layout="constrained")
    ax = figure.subplots()
    ranks = map(rank_range, rows["rank_low"].astype(int), rows["rank_high"].astype(int))
    names = map(figure_text, rows["activation"])
    ax.set_yticks(range(len(rows)), [f"{name}  {both}" for name, both in zip(names, ranks, strict=True)])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", lw=0.4, alpha=0.5)
    return figure, ax


def performance_profile(over: OverTasks, looks: Mapping[str, Look]) -> Figure:
    """Draw the share of tasks by the distance to the best."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    ax = figure.subplots()
    gaps = over.gaps
    finite = gaps.to_numpy()[np.isfinite(gaps.to_numpy())]
    end = max(2.0, 1.1 * float(finite.max(initial=0.0)))
    ranked = [name for name in over.activations["activation"] if name in gaps.index]
    front = in_front(ranked, over.baseline)
    others = len(ranked) - len(front)
    for name in ranked:
        look = looks.get(name, Look()) if name in front else Look()
        label = figure_text(name)
        if name not in front:
            label, others = counted(others, "other") if others else "_", 0  # one entry for all of them
        x = np.sort(gaps.loc[name].to_numpy(float))
        x = np.clip(x[np.isfinite(x)], 0, None)
        shares = np.arange(len(x) + 1) / len(gaps.columns)
        style: Any = {"color": look.color, "ls": look.line, "zorder": 2 if name in front else 1.5}
        ax.step([0, *x, end], [*shares, shares[-1]], where="post", lw=1.4, label=label, **style)
    ax.axvline(1, lw=0.8, ls=":", color="black", zorder=0)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlim=(0, end), ylim=(-0.02, 1.02))
    ax.set_xlabel("distance to the best, in margins of the task")
    ax.set_ylabel(f"share of {len(gaps.columns)} tasks")
    ax.set_title("performance profile")
    ax.grid(lw=0.4, alpha=0.5)
    figure.legend(loc="outside right center")
    return figure


def win_matrix(over: OverTasks) -> Figure:
    """Draw the verdicts of all pairs, counted over tasks."""
    names = list(over.activations["activation"])
    counts = win_counts(over)
    balance = np.zeros((len(names), len(names)))
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            better, _, worse = counts.get((name, other), (0, 0, 0))
            balance[i, j] = better - worse
    has_text = len(names) <= 16  # more have no room for it
    side = 1.6 + (0.5 if has_text else 0.2) * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    ax = figure.subplots()
    limit = max(1.0, float(np.abs(balance).max()))
    image = ax.imshow(balance, cmap="RdBu", vmin=-1.6 * limit, vmax=1.6 * limit)  # pale, for black text
    if has_text:
        for (name, other), numbers in counts.items():
            x, y, text = names.index(other), names.index(name), "/".join(map(str, numbers))
            ax.text(x, y, text, ha="center", va="center", size=7, color=ON_PALE)
    labels = [figure_text(name) for name in names]
    ax.set_xticks(range(len(names)), labels, rotation=90)
    ax.set_yticks(range(len(names)), labels)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title("tasks: better / equal / worse than the column")
    colorbar = figure.colorbar(image, ax=ax, shrink=0.6, label="better less worse")
    colorbar.ax.set_ylim(-limit, limit)
    return figure
