"""Figures of a study: learning curves with their spread, and scores with every seed shown."""

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results import figures_over_tasks
from results.cost import equal_time, pareto_front, validation_curves
from results.escape import figure_text
from results.files import write_all
from results.leaderboard import rank_range
from results.over_tasks import OverTasks

# Okabe and Ito's palette, told apart with any kind of colour vision; black is the baseline's
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
GREY = "#BBBBBB"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "actbench",  # the same data give the same file
}


def draw_figures(table: pd.DataFrame, records: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, bytes]:
    """Draw ``scores`` and ``learning_curves`` for every task; returns the files, SVG and PNG, by their names."""
    files: dict[str, bytes] = {}
    with rc_context(STYLE):
        for task, rows in table.groupby("task", sort=True):
            cells = records[(records["task_label"] == task) & (records["status"] == "ok")]
            if cells.empty:
                continue
            figures = {
                "scores": scores(rows, cells),
                "learning_curves": learning_curves(rows, cells, metrics),
                "step_time": score_against_step_time(rows),
                "parameters": score_against_parameters(rows),
                "equal_time": score_at_equal_time(rows, cells, metrics),
            }
            ending = stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", str(task)).strip("_")
            number = 1
            while f"scores-{ending}.png" in files:  # names that differ in what a file's name cannot hold
                number += 1
                ending = f"{stem}-{number}"
            for name, figure in figures.items():
                if figure is not None:
                    files |= _rendered(figure, f"{name}-{ending}")
    return files


def draw_over_tasks(over: OverTasks) -> dict[str, bytes]:
    """Draw the figures of a study over its tasks; returns the files, SVG and PNG, by their names."""
    names = [name for name in over.activations["activation"] if name != over.baseline]
    colors = dict(zip(names, COLORS, strict=False)) | {over.baseline: "black"}
    with rc_context(STYLE):
        figures = figures_over_tasks.draw(over, colors)
        return {
            file: content
            for name, figure in figures.items()
            for file, content in _rendered(figure, name).items()
        }


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write ``figure`` as ``name.svg`` and ``name.png``; returns the PNG."""
    files = {folder / file: content for file, content in _rendered(figure, name).items()}
    write_all(files)
    return folder / f"{name}.png"


def _rendered(figure: Figure, name: str) -> dict[str, bytes]:
    """The content of ``name.svg`` and ``name.png``."""
    files = {}
    for suffix in ("svg", "png"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None  # the same data give the same file
        figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        files[f"{name}.{suffix}"] = buffer.getvalue()
    return files


def scores(rows: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """One line per activation, best on top: every seed a dot, the mean with its 95 % interval."""
    rows = rows[rows["n"] > 0]
    figure = Figure(figsize=(6.4, 1.1 + 0.27 * len(rows)), layout="constrained")
    ax = figure.subplots()
    colors = _colors(rows)
    for y, row in enumerate(rows.itertuples()):
        values = cells[cells["activation_label"] == row.activation]["primary"].astype(float)
        color = colors.get(row.activation, GREY)
        ax.plot(values, np.full(len(values), y), "o", ms=4.5, mew=0, alpha=0.5, color=color)
        if row.n > 1:
            ax.plot([row.ci95_low, row.ci95_high], [y, y], "-", lw=1.1, color=color)
        ax.plot([row.mean], [y], "|", ms=11, mew=2.2, color=color)
    baseline = rows[rows["activation"] == rows["baseline"]]
    if len(baseline):
        ax.axvline(baseline["mean"].iloc[0], lw=0.8, ls=":", color="black", zorder=0)
    labels = [
        f"{figure_text(row.activation)}  {rank_range(row.rank_low, row.rank_high)}"
        for row in rows.itertuples()
    ]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    first = rows.iloc[0]
    if _wide(cells["primary"].astype(float)):
        ax.set_xscale("log")
    ax.set_xlabel(
        f"test {figure_text(first['metric'])} ({'higher' if first['higher_is_better'] else 'lower'} is better)"
    )
    ax.set_title(f"{figure_text(first['task'])}: seeds, mean, 95 % interval, ranks ({_counts(rows)})")
    ax.grid(axis="x", lw=0.4, alpha=0.5)
    return figure


def learning_curves(rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Validation metric by epoch, and training loss beside it: mean over seeds, and the range of the seeds."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = rows[rows["n"] > 0]
    colors = _colors(rows)
    metric = str(rows["metric"].iloc[0])
    if not {"split", "epoch", "loss", metric} <= set(metrics.columns):
        metrics = pd.DataFrame(columns=["folder", "epoch", "split", "loss", metric])  # the cells' were lost
    curves = metrics.merge(cells[["folder", "activation_label"]], on="folder")
    for ax, split, column in ((left, "val", metric), (right, "train", "loss")):
        part = curves[curves["split"] == split]
        for label, by_epoch in _curves(part, column, list(colors)):
            epochs = by_epoch.index.to_numpy() + 1
            color = colors.get(label, GREY)
            front = 2 if label in colors else 1
            marker = "o" if len(epochs) == 1 else None
            ax.plot(
                epochs, by_epoch["mean"], lw=1.3, color=color, marker=marker, zorder=front + 0.5, label=label
            )
            if label in colors:
                ax.fill_between(
                    epochs, by_epoch["min"], by_epoch["max"], color=color, alpha=0.13, lw=0, zorder=front
                )
        _limit(ax, part[column], higher_is_better=split == "val" and bool(rows["higher_is_better"].iloc[0]))
        ax.set(xlabel="epoch", title=f"{split} {figure_text(column)}")
        ax.grid(lw=0.4, alpha=0.5)
    handles, names = left.get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    shown = {label: by_name[label] for label in rows["activation"] if label in colors and label in by_name}
    if len(by_name) > len(shown):
        rest = next(handle for name, handle in by_name.items() if name not in shown)
        shown[f"{len(by_name) - len(shown)} others"] = rest
    figure.legend(shown.values(), map(figure_text, shown), loc="outside right center")
    figure.suptitle(
        f"{figure_text(rows['task'].iloc[0])}: mean and range over seeds ({_counts(rows)})",
        x=0.01,
        ha="left",
        size=10,
    )
    return figure


def score_against_step_time(rows: pd.DataFrame) -> Figure | None:
    """Test score against the time of a training step relative to ReLU's, with the Pareto front; None if none was timed."""
    figure = _score_against(rows, "step_ratio")
    if figure is not None:
        (ax,) = figure.axes
        if math.isfinite(floor := rows["cost_floor"].max()):
            ax.axvspan(1 - floor, 1 + floor, color=GREY, alpha=0.25, lw=0, zorder=0)
        ax.set_xlabel("time of a training step relative to ReLU (gray: noise)")
    return figure


def score_against_parameters(rows: pd.DataFrame) -> Figure | None:
    """Test score against the number of parameters, with the Pareto front; None if none is known."""
    figure = _score_against(rows, "parameters")
    if figure is not None:
        figure.axes[0].set_xlabel("parameters of the network")
    return figure


def _score_against(rows: pd.DataFrame, column: str) -> Figure | None:
    """Mean scores with their 95 % intervals against a cost; what is on the front is named and joined by a line."""
    rows = rows[(rows["n"] > 0) & rows[column].notna()]
    if rows.empty:
        return None
    first = rows.iloc[0]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    colors = _colors(rows)
    front = rows[pareto_front(rows[column], rows["mean"], bool(first["higher_is_better"]))].sort_values(
        column
    )
    ax.step(front[column], front["mean"], where="post", lw=0.9, color=GREY, zorder=1)
    for row, cost in zip(rows.itertuples(), rows[column], strict=True):
        color = colors.get(row.activation, GREY)
        if row.n > 1:
            ax.plot(
                [cost, cost], [row.ci95_low, row.ci95_high], "-", lw=0.8, alpha=0.6, color=color, zorder=2
            )
        ax.plot([cost], [row.mean], "o", ms=5, mew=0, color=color, zorder=3)
        if row.activation in colors or row.activation in set(front["activation"]):
            ax.annotate(
                figure_text(row.activation),
                (cost, row.mean),
                xytext=(5, 3),
                textcoords="offset points",
                size=8,
                color=colors.get(row.activation, "#666666"),
            )
    if _wide(rows["mean"]):
        ax.set_yscale("log")
    direction = "higher" if first["higher_is_better"] else "lower"
    ax.set_ylabel(f"test {figure_text(first['metric'])} ({direction} is better)")
    ax.set_title(f"{figure_text(first['task'])}: mean, 95 % interval, Pareto front ({_counts(rows)})")
    ax.margins(x=0.12)
    ax.grid(lw=0.4, alpha=0.5)
    return figure


def score_at_equal_time(rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame) -> Figure | None:
    """Validation score by training time in units of ReLU's epochs; None if no step was timed."""
    rows = rows[(rows["n"] > 0) & rows["step_ratio"].notna()]
    curves = validation_curves(rows, cells, metrics) if len(rows) else {}
    if not curves:
        return None
    first = rows.iloc[0]
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    ax = figure.subplots()
    colors = _colors(rows)
    for label, ratio in zip(rows["activation"], rows["step_ratio"], strict=True):
        if label not in curves:
            continue
        curve = curves[label]
        ax.plot(
            (curve.index.to_numpy() + 1) * ratio,
            curve,
            lw=1.3,
            marker="o" if len(curve) == 1 else None,
            color=colors.get(label, GREY),
            zorder=2.5 if label in colors else 1.5,
            label=figure_text(label) if label in colors else None,
        )
    ax.axvline(equal_time(rows, curves), lw=0.8, ls=":", color="black")
    _limit(ax, pd.concat(curves.values()), higher_is_better=bool(first["higher_is_better"]))
    ax.set(
        xlabel="training time in epochs of ReLU (dotted: the first one ends)",
        ylabel=f"val {figure_text(first['metric'])}",
        title=f"{figure_text(first['task'])}: equal time, mean over seeds ({_counts(rows)})",
    )
    figure.legend(loc="outside right center")
    ax.grid(lw=0.4, alpha=0.5)
    return figure


def _curves(part: pd.DataFrame, column: str, front: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Mean, min and max by epoch for each activation, those in ``front`` last so that they are drawn on top."""
    groups = {str(label): group for label, group in part.groupby("activation_label")}
    for label in [
        *(label for label in groups if label not in front),
        *(label for label in front if label in groups),
    ]:
        yield label, groups[label].groupby("epoch")[column].agg(["mean", "min", "max"])


def _colors(rows: pd.DataFrame) -> dict[str, str]:
    """A colour for the baseline and the best of the others; what is left stays grey."""
    labels = list(rows["activation"])
    baseline = rows["baseline"].iloc[0]
    colors = dict(zip((label for label in labels if label != baseline), COLORS, strict=False))
    return colors | ({baseline: "black"} if baseline in labels else {})


def _counts(rows: pd.DataFrame) -> str:
    low, high = rows["n"].min(), rows["n"].max()
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def _wide(values: pd.Series) -> bool:
    """Whether positive values span so much that only a logarithmic axis shows them."""
    values = values.dropna()
    return bool(len(values)) and values.min() > 0 and values.max() / values.min() > 20


def _limit(ax: Axes, values: pd.Series, *, higher_is_better: bool) -> None:
    """Leave out the worst of the first epochs, which would flatten the rest; span orders of magnitude by a log axis."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = values[np.isfinite(values.astype(float))]
    if values.empty:
        return
    if _wide(values):
        ax.set_yscale("log")
        return
    low, high = values.min(), values.max()
    if higher_is_better:
        low = values.quantile(0.1)
    else:
        high = values.quantile(0.9)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
