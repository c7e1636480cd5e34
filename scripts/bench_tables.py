"""Tables and bars of what bench_activations.py measured, also when it was stopped half way.

python scripts/bench_tables.py                          # of outputs/bench_activations
python scripts/bench_tables.py --output FOLDER          # where its results.csv is, and where the bars go
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from _here import ROOT

from runners.errors import format_error

MAIN = (32, 64, 32, 32)  # the size with a table of its own
PATHS = {"fused": "auto", "reference": "reference"}  # the modes of the kernels

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(usage=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "bench_activations")
    folder = parser.parse_args(arguments).output
    try:
        rows = measured(folder / "results.csv")
        for table in tables(rows):
            print(f"{table}\n")
        if any(row["kind"] == "unit" for row in rows):
            print(chart(rows, folder))
    except (ValueError, OSError) as error:
        sys.exit(f"actbench: {format_error(error)}")


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"actbench: {message}\n")


def measured(path: Path) -> list[Row]:
    """The rows of a file of bench_activations.py."""
    frame = pd.read_csv(path).astype(object)
    if missing := {"kind", "unit", "size", "layout", "threads"} - set(frame):
        raise ValueError(f"{path}: not written by bench_activations.py, there is no column {min(missing)}")
    rows = frame.where(frame.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items() if key != "note" or value} for row in rows]


def shown(size: Sequence[int]) -> str:
    """32x64x32x32."""
    return "x".join(map(str, size))


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: MAIN by number of threads, all else in one table, the training steps."""
    failed = {(row["unit"], row["size"]): row["note"] for row in rows if "note" in row}
    done = [row for row in rows if "note" not in row]
    at_main = [row for row in done if row["size"] == shown(MAIN) and row["layout"] == "contiguous"]
    for threads in dict.fromkeys(row["threads"] for row in at_main):
        yield table_of_main([row for row in at_main if row["threads"] == threads], threads)
    rest = [
        row for row in done if row["kind"] == "unit" and row["path"] != "reference" and row not in at_main
    ]
    cells: dict[str, dict[str, str]] = {}
    for row in rest:
        layout = " cl" if row["layout"] == "channels_last" else ""
        cells.setdefault(row["unit"], {})[f"{row['size']}{layout}, {row['threads']}t"] = (
            f"{row['fwd_bwd']:.2f}"
        )
    if columns := list(dict.fromkeys(column for found in cells.values() for column in found)):
        body = [[unit, *(found.get(column, "") for column in columns)] for unit, found in cells.items()]
        title = "fwd+bwd, fused, ratio to nn.ReLU (cl: channels_last, t: threads)"
        yield markdown(title, ["unit", *columns], body)
    body = [
        [row["unit"], row["layout"], str(row["threads"]), spread(row, "step")]
        for row in done
        if row["kind"] == "step"
    ]
    if body:
        columns = ["unit", "layout", "threads", "step"]
        yield markdown("training step of ResNet-20, ratio to relu's", columns, body)
    if failed:
        yield "\n".join(f"{unit} at {size}: {note}" for (unit, size), note in failed.items())


def table_of_main(rows: Sequence[Row], threads: int) -> str:
    """The full table of one size."""
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


def markdown(title: str, columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table with its title; all but the first column are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *body]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(row: Row, name: str) -> str:
    """1.21 [1.19, 1.25]."""
    return f"{row[name]:.2f} [{row[name + '_low']:.2f}, {row[name + '_high']:.2f}]"


def chart(rows: Sequence[Row], folder: Path) -> Path:
    """Write the bars of the first size, layout and number of threads; returns the PNG."""
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


if __name__ == "__main__":
    main()
