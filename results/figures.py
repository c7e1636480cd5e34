"""Figures of a study: learning curves with their spread, and scores with every seed shown."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from results import captions, figures_over_tasks, figures_tuning
from results.cost import equal_time, pareto_front, validation_curves
from results.escape import counted, figure_text
from results.files import write_all
from results.metrics import is_wide
from results.over_tasks import OverTasks
from results.palette import GRAY, Look, in_front
from results.tuning import Tuned

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
NAME_WIDTH, NAME_HEIGHT = 60, 9  # points that a name takes in a figure
MAX_STEM = 100  # characters; a file's name has room for 255 bytes, also while it is temporary


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: ``name`` is that of its files, ``caption`` says what its marks are."""

    task: str
    name: str
    caption: str
    svg: bytes
    png: bytes


def draw_figures(
    table: pd.DataFrame, records: pd.DataFrame, metrics: pd.DataFrame, looks: Mapping[str, Look]
) -> list[Drawing]:
    """Draw scores, learning curves and costs of every task."""
    drawings: list[Drawing] = []
    stems: set[str] = set()
    with rc_context(STYLE):
        for task, rows in table.groupby("task", sort=True):
            cells = records[(records["task_label"] == task) & (records["status"] == "ok")]
            if cells.empty:
                continue
            ending = file_stem(str(task), stems)
            figures = {
                captions.scores: scores(rows, cells, looks),
                captions.learning_curves: learning_curves(rows, cells, metrics, looks),
                captions.step_time: score_against_step_time(rows, looks),
                captions.parameters: score_against_parameters(rows, looks),
                captions.equal_time: score_at_equal_time(rows, cells, metrics, looks),
            }
            for caption, figure in figures.items():
                if figure is not None:
                    name = f"{caption.__name__}-{ending}"
                    drawings.append(_drawing(figure, str(task), name, caption(rows)))
    return drawings


def file_stem(name: str, taken: set[str]) -> str:
    """Return ``name`` as part of a file's name that is not in ``taken`` yet, and add it there."""
    ending = stem = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("_")[:MAX_STEM]
    number = 1
    while ending in taken:  # names that differ in what a file's name cannot hold, or behind its end
        number += 1
        ending = f"{stem}-{number}"
    taken.add(ending)
    return ending


def draw_over_tasks(over: OverTasks, looks: Mapping[str, Look]) -> list[Drawing]:
    """Draw the figures of a study over its tasks."""
    with rc_context(STYLE):
        figures = figures_over_tasks.draw(over, looks)
        return [
            _drawing(figure, "", name, figures_over_tasks.CAPTIONS[name]) for name, figure in figures.items()
        ]


def draw_sensitivity(tuned: Tuned, looks: Mapping[str, Look]) -> list[Drawing]:
    """Draw the validation score against each tuned setting, a figure for each task."""
    drawings, stems = [], set[str]()
    with rc_context(STYLE):
        for task, name, figure in figures_tuning.draw(tuned, looks):
            stem = file_stem(f"sensitivity-{name.rpartition('.')[2]}-{task}", stems)
            drawings.append(_drawing(figure, task, stem, figures_tuning.caption(tuned, task, name)))
    return drawings


def _drawing(figure: Figure, task: str, name: str, caption: str) -> Drawing:
    return Drawing(task, name, caption, *_rendered(figure, name).values())


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write ``figure`` as ``name.svg`` and ``name.png``; returns the PNG."""
    files = {folder / file: content for file, content in _rendered(figure, name).items()}
    write_all(files)
    return folder / f"{name}.png"


def _rendered(figure: Figure, name: str) -> dict[str, bytes]:
    """The content of ``name.svg`` and ``name.png``."""
    files = {}
    with warnings.catch_warnings():
        # a PNG shows a box for a character that the font lacks; the page has the reader's fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # once for both formats: the layout takes as long as drawing
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        for suffix in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else None  # the same data give the same file
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            files[f"{name}.{suffix}"] = buffer.getvalue()
    return files


def scores(rows: pd.DataFrame, cells: pd.DataFrame, looks: Mapping[str, Look]) -> Figure:
    """One line per activation, best on top: every seed a dot, the mean with its 95 % interval."""
    rows = rows[rows["n"] > 0]
    figure, ax = figures_over_tasks.ranked_lines(rows)
    values_of = dict(list(cells["primary"].astype(float).groupby(cells["activation_label"])))
    for y, row in enumerate(rows.itertuples()):
        values = values_of[row.activation]
        look = looks[row.activation]
        color = look.color
        ax.plot(values, np.full(len(values), y), look.marker, ms=4.5, mew=0, alpha=0.5, color=color)
        if row.n > 1:
            ax.plot([row.ci95_low, row.ci95_high], [y, y], "-", lw=1.1, color=color)
        ax.plot([row.mean], [y], "|", ms=11, mew=2.2, color=color)
    baseline = rows[rows["activation"] == rows["baseline"]]
    if len(baseline):
        ax.axvline(baseline["mean"].iloc[0], lw=0.8, ls=":", color="black", zorder=0)
    first = rows.iloc[0]
    if is_wide(cells["primary"].astype(float)):
        ax.set_xscale("log")
    ax.set_xlabel(f"test {figure_text(first['metric'])} ({captions.direction(rows)})")
    ax.set_title(f"{figure_text(first['task'])}: seeds, mean, 95 % interval, ranks ({captions.counts(rows)})")
    return figure


def learning_curves(
    rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, looks: Mapping[str, Look]
) -> Figure | None:
    """Validation metric by epoch, and training loss beside it: mean over seeds, and the range of the seeds.

    None if all metrics.csv are lost, or were not published.
    """
    rows = rows[rows["n"] > 0]
    front = in_front(rows["activation"], rows["baseline"].iloc[0])
    metric = str(rows["metric"].iloc[0])
    curves = metrics.merge(cells[["folder", "activation_label"]], on="folder")
    if curves.empty or not {"split", "epoch", "loss", metric} <= set(curves.columns):
        return None
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, split, column in ((left, "val", metric), (right, "train", "loss")):
        part = curves[curves["split"] == split]
        for label, by_epoch in _curves(part, column, front):
            epochs = by_epoch.index.to_numpy() + 1
            look = looks[label] if label in front else Look()
            _draw_line(ax, epochs, by_epoch["mean"], look, label, label in front)
            if label in front:
                band = by_epoch["min"], by_epoch["max"]
                ax.fill_between(epochs, *band, color=look.color, alpha=0.13, lw=0, zorder=2)
        _limit(ax, part[column], higher_is_better=split == "val" and bool(rows["higher_is_better"].iloc[0]))
        ax.set(xlabel="epoch", title=f"{split} {figure_text(column)}")
        ax.grid(lw=0.4, alpha=0.5)
    _legend(figure, left, [label for label in rows["activation"] if label in front])
    title = f"{figure_text(rows['task'].iloc[0])}: mean and range over seeds ({captions.counts(rows)})"
    figure.suptitle(title, x=0.01, ha="left", size=10)
    return figure


def score_against_step_time(rows: pd.DataFrame, looks: Mapping[str, Look]) -> Figure | None:
    """Test score against the time of a training step relative to ReLU's, with the Pareto front; None if none was timed."""
    figure = _score_against(rows, "step_ratio", looks)
    if figure is not None:
        (ax,) = figure.axes
        if math.isfinite(floor := rows["cost_floor"].max()):
            ax.axvspan(1 - floor, 1 + floor, color=GRAY, alpha=0.25, lw=0, zorder=0)
        ax.set_xlabel("time of a training step relative to ReLU (gray: noise)")
    return figure


def score_against_parameters(rows: pd.DataFrame, looks: Mapping[str, Look]) -> Figure | None:
    """Test score against the number of parameters, with the Pareto front; None if none is known."""
    figure = _score_against(rows, "parameters", looks)
    if figure is not None:
        figure.axes[0].set_xlabel("parameters of the network")
    return figure


def _score_against(rows: pd.DataFrame, column: str, looks: Mapping[str, Look]) -> Figure | None:
    """Mean scores with their 95 % intervals against a cost; what is on the front is named and joined by a line."""
    rows = rows[(rows["n"] > 0) & rows[column].notna()]
    if rows.empty:
        return None
    first = rows.iloc[0]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    on_front = pareto_front(rows[column], rows["mean"], bool(first["higher_is_better"]))
    front = rows[on_front].sort_values(column)
    ax.step(front[column], front["mean"], where="post", lw=0.9, color=GRAY, zorder=1)
    named = {*in_front(rows["activation"], rows["baseline"].iloc[0]), *front["activation"]}
    for row, cost in zip(rows.itertuples(), rows[column], strict=True):
        look = looks.get(row.activation, Look())
        if row.n > 1:
            ends = [row.ci95_low, row.ci95_high]
            ax.plot([cost, cost], ends, "-", lw=0.8, alpha=0.6, color=look.color, zorder=2)
        ax.plot([cost], [row.mean], look.marker, ms=5, mew=0, color=look.color, zorder=3)
    if is_wide(rows["mean"]):
        ax.set_yscale("log")
    _name_points(ax, rows[rows["activation"].isin(named)], column, looks)
    ax.set_ylabel(f"test {figure_text(first['metric'])} ({captions.direction(rows)})")
    ax.set_title(f"{figure_text(first['task'])}: mean, 95 % interval, Pareto front ({captions.counts(rows)})")
    ax.grid(lw=0.4, alpha=0.5)
    return figure


def _name_points(ax: Axes, rows: pd.DataFrame, column: str, looks: Mapping[str, Look]) -> None:
    """Write names beside the means, from the top down; one that would lie on another goes below it."""
    ax.margins(x=0.12)
    ax.autoscale_view()  # else the transformation is that of an empty figure
    places = ax.transData.transform(rows[[column, "mean"]].to_numpy(float)) * 72 / ax.figure.dpi
    taken: list[tuple[float, float]] = []
    for k in np.argsort(-places[:, 1], kind="stable"):
        x, y = places[k] + (5, 3)
        in_reach = [below for right, below in taken if abs(right - x) < NAME_WIDTH]
        y = min([y, *(below - NAME_HEIGHT for below in in_reach if below - y < NAME_HEIGHT)])
        taken.append((x, y))
        name, point = rows["activation"].iloc[k], rows[[column, "mean"]].iloc[k]
        style: Any = {"size": 8, "color": looks.get(name, Look()).color}
        offset = (5, y - places[k, 1])
        ax.annotate(figure_text(name), point, xytext=offset, textcoords="offset points", **style)


def score_at_equal_time(
    rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, looks: Mapping[str, Look]
) -> Figure | None:
    """Validation score by training time in units of ReLU's epochs; None if no step was timed."""
    rows = rows[(rows["n"] > 0) & rows["step_ratio"].notna()]
    curves = validation_curves(rows, cells, metrics) if len(rows) else {}
    if not curves:
        return None
    first = rows.iloc[0]
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    ax = figure.subplots()
    front = in_front(rows["activation"], rows["baseline"].iloc[0])
    for label, ratio in zip(rows["activation"], rows["step_ratio"], strict=True):
        if label not in curves:
            continue
        curve, look = curves[label], looks.get(label, Look()) if label in front else Look()
        _draw_line(ax, (curve.index.to_numpy() + 1) * ratio, curve, look, label, label in front)
    ax.axvline(equal_time(rows, curves), lw=0.8, ls=":", color="black")
    _limit(ax, pd.concat(curves.values()), higher_is_better=bool(first["higher_is_better"]))
    ax.set(
        xlabel="training time in epochs of ReLU (dotted: the first one ends)",
        ylabel=f"val {figure_text(first['metric'])}",
        title=f"{figure_text(first['task'])}: equal time, mean over seeds ({captions.counts(rows)})",
    )
    _legend(figure, ax, [label for label in rows["activation"] if label in front])
    ax.grid(lw=0.4, alpha=0.5)
    return figure


def _draw_line(ax: Axes, x: np.ndarray, y: pd.Series, look: Look, label: str, front: bool) -> None:
    """Draw the line of an activation, or a marker if it has a single point."""
    marker, order = look.marker if len(x) == 1 else None, 2.5 if front else 1.5
    ax.plot(x, y, lw=1.3, color=look.color, ls=look.line, marker=marker, zorder=order, label=label)


def _legend(figure: Figure, ax: Axes, front: Sequence[str]) -> None:
    """Name the lines of ``ax`` in ``front``, in this order, and the others in one entry."""
    handles, names = ax.get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    shown = {label: by_name[label] for label in front if label in by_name}
    if others := [handle for name, handle in by_name.items() if name not in shown]:
        shown[counted(len(others), "other")] = others[0]
    figure.legend(shown.values(), map(figure_text, shown), loc="outside right center")


def _curves(part: pd.DataFrame, column: str, front: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Mean, min and max by epoch for each activation, those in ``front`` last so that they are drawn on top."""
    groups = {str(label): group for label, group in part.groupby("activation_label")}
    for label in sorted(groups, key=lambda label: front.index(label) if label in front else -1):
        yield label, groups[label].groupby("epoch")[column].agg(["mean", "min", "max"])


def _limit(ax: Axes, values: pd.Series, *, higher_is_better: bool) -> None:
    """Leave out the worst of the first epochs, which would flatten the rest; span orders of magnitude by a log axis."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = values[np.isfinite(values.astype(float))]
    if values.empty:
        return
    if is_wide(values):
        ax.set_yscale("log")
        return
    low, high = values.min(), values.max()
    if higher_is_better:
        low = values.quantile(0.1)
    else:
        high = values.quantile(0.9)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - margin, high + margin)
