"""What the benchmarks share: layouts, ratios and tables; and the tables and bars of bench_activations.py."""

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import _here  # noqa: F401  # before the code that it finds
import pandas as pd
import torch

from results.escape import markdown_table

MAIN = (32, 64, 32, 32)  # the size with a table of its own
PATHS = {"fused": "auto", "reference": "reference"}  # the modes of the kernels
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Row = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"actbench: {message}\n")


def ratio(title: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return a line with the median and the quartiles of the ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{title}: {middle:.3f} [{low:.3f}, {high:.3f}]"


def rounded(value: float) -> float:
    """Return a number with four digits."""
    return float(f"{value:.4g}")


def shown(size: Sequence[int]) -> str:
    """Return a size as in ``32x64x32x32``."""
    return "x".join(map(str, size))


def spread(row: Row, name: str) -> str:
    """Return a median with its quartiles, as in ``1.21 [1.19, 1.25]``."""
    return f"{row[name]:.2f} [{row[name + '_low']:.2f}, {row[name + '_high']:.2f}]"


def markdown(title: str, columns: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table with its title; all but the first column are numbers."""
    return f"{title}\n\n" + "\n".join(markdown_table(columns, "l" + "r" * (len(columns) - 1), body))


def markdown_by_unit(title: str, cells: Sequence[tuple[str, str, str]]) -> str:
    """Return a table with a row for each unit, from the unit, column and text of each cell."""
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    texts = {(unit, column): text for unit, column, text in cells}
    units = dict.fromkeys(unit for unit, _, _ in cells)
    body = ([unit, *(texts.get((unit, column), "") for column in columns)] for unit in units)
    return markdown(title, ["unit", *columns], body)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a results.csv of bench_activations.py, also when that was stopped half way."""
    frame = pd.read_csv(path).astype(object)
    if missing := {"kind", "unit", "size", "layout", "threads"} - set(frame):
        raise ValueError(f"{path}: not written by bench_activations.py, there is no column {min(missing)}")
    rows = frame.where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items() if key != "note" or value} for row in rows]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield tables of MAIN by number of threads, of all else, and of the training steps; then what failed."""
    done = [row for row in rows if "note" not in row]
    at_main = [row for row in done if row["size"] == shown(MAIN) and row["layout"] == "contiguous"]
    for threads in dict.fromkeys(row["threads"] for row in at_main):
        yield table_of_main([row for row in at_main if row["threads"] == threads], threads)
    cells = []
    for row in done:
        if row["kind"] == "unit" and row["path"] != "reference" and row not in at_main:
            layout = " cl" if row["layout"] == "channels_last" else ""
            column = f"{row['size']}{layout}, {row['threads']}t"
            cells.append((row["unit"], column, f"{row['fwd_bwd']:.2f}"))
    if cells:
        yield markdown_by_unit("fwd+bwd, fused, ratio to nn.ReLU (cl: channels_last, t: threads)", cells)
    steps = [row for row in done if row["kind"] == "step"]
    body = [[row["unit"], row["layout"], str(row["threads"]), spread(row, "step")] for row in steps]
    if body:
        columns = ["unit", "layout", "threads", "step"]
        yield markdown("training step of ResNet-20, ratio to relu's", columns, body)
    if failed := {f"{row['unit']} at {row['size']}: {row['note']}": None for row in rows if "note" in row}:
        yield "\n".join(failed)


def table_of_main(rows: Sequence[Row], threads: int) -> str:
    """Return the full table of one size."""
    body = []
    for unit in dict.fromkeys(row["unit"] for row in rows):
        paths = {row["path"]: row for row in rows if row["unit"] == unit}
        ours = paths.get("fused") or paths.get("torch")
        cells = [""] * 5
        if ours:
            numbers = [f"{ours[name]:.2f}" for name in ("copies", "peak", "saved")]
            cells = [f"{ours['fwd']:.2f}", spread(ours, "fwd_bwd"), *numbers]
        cells.insert(2, spread(paths["reference"], "fwd_bwd") if "reference" in paths else "")
        body.append([unit, *cells])
    columns = ["unit", "forward", "fwd+bwd", "fwd+bwd, reference", "copies", "peak", "saved"]
    return markdown(f"{MAIN}, contiguous, threads: {threads}, ratio to nn.ReLU", columns, body)


def chart(rows: Sequence[Row], folder: Path) -> Path:
    """Write the bars of the first size, layout and number of threads, and return the PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    from results.figures import STYLE, save
    from results.palette import COLORS, GRAY

    done = [row for row in rows if row["kind"] == "unit" and "note" not in row]
    if not done:
        raise ValueError("no unit could be measured; results.csv says why")
    one = next((row for row in done if row["size"] == shown(MAIN)), done[0])
    done = [row for row in done if all(row[key] == one[key] for key in ("size", "layout", "threads"))]
    drawn = {path: {row["unit"]: row for row in done if row["path"] == path} for path in (*PATHS, "torch")}
    best = drawn["reference"] | drawn["fused"] | drawn["torch"]
    names = sorted(best, key=lambda name: best[name]["fwd_bwd"])
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 0.2 * len(names)), layout="constrained")
        ax = figure.subplots()
        looks = {"fused": (-0.19, COLORS[0]), "reference": (0.19, GRAY), "torch": (0.0, COLORS[2])}
        for path, (offset, color) in looks.items():
            for name, row in drawn[path].items():
                value, y = row["fwd_bwd"], names.index(name) + offset
                ax.barh(y, value - 1, 0.38, left=1, color=color, label=path)  # from ReLU, which is 1
                ax.plot([row["fwd_bwd_low"], row["fwd_bwd_high"]], [y, y], lw=0.7, color="black")
        ax.axvline(1, lw=0.8, color="black")
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.set_xticks([tick for tick in (0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200) if low <= tick <= high])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(range(len(names)), [f"{name}  {best[name]['fwd_bwd']:.2f}" for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="x", lw=0.4, alpha=0.5)
        ax.set_axisbelow(True)
        ax.set_xlabel("forward + backward, ratio to nn.ReLU; the lines in the bars: quartiles")
        ax.set_title(f"{one['size']}, {one['layout']}, threads: {one['threads']}")
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        ax.legend(handles.values(), handles.keys(), loc="upper right")
        return save(figure, folder, "activations")
