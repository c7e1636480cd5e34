"""The report of a study: leaderboard and figures, from the files of its cells alone."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from results import cost, over_tasks, published
from results.collect import UNKNOWN, add_labels, read_metrics, read_records
from results.escape import markdown
from results.files import REPORT, write_all
from results.leaderboard import BASELINE, leaderboard, rank_range, to_markdown
from results.over_tasks import compare_tasks
from results.published import reproduction
from results.schema import FINISHED, PROVENANCE, is_missing

EXPLANATION = """\
Means are test scores at the last weights. Two activations are compared on the seeds that both finished or lost to
divergence: the same data order, augmentation and initial weights. **better** and **worse**: the interval of the seed-by-seed
differences excludes 0. **equal**: it lies within the smallest difference that matters. **undecided**: neither; the
number of seeds that would decide is given where it is at most 1,000. All intervals of differences in a table hold together with
95 %. The ranks an activation may have, as in 2-5, hold together for all activations with 95 %: the lowest is 1 plus the
number of activations that are better, the highest leaves out those that are worse. In a difference, a diverged seed counts as
the worst score of the table, and what diverged on more of the common seeds than another is never called better than it.
Verdicts are about seeds: they hold for this test set, this network and this recipe. Where a metric is a mean over test samples,
the sentence below a table says what of its verdicts would hold for another test set of the same size.
"""
# what of a session may change the numbers, beside where it ran
SHOULD_AGREE = (*PROVENANCE, "data_fingerprint")
MOST_NAMED = 3


def write_report(
    study: Path, baseline: str | None = None, margin: float | None = None
) -> tuple[Path, pd.DataFrame]:
    """Write ``report/leaderboard.csv``, ``leaderboard.md`` and ``figures/``; returns the .md and the table.

    Args:
        baseline: the activation that others are compared with; None for relu, where there is one.
        margin: the largest difference that does not matter, in the unit of the metric; None for each metric's own.

    Raises:
        ValueError: no study in this folder, or no such activation in it.
    """
    records = add_labels(read_records(study))
    labels = sorted(records["activation_label"].unique())
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline {baseline}: no such activation in {study}; legal: {', '.join(labels)}")
    table = leaderboard(records, baseline or BASELINE, margin)
    table["limit_batches"] = table["task"].map(_limits(records))
    folder = study / REPORT

    # matplotlib takes a second to import, and an error above should not wait for it
    from results.figures import draw_figures, draw_over_tasks

    ok = records[records["status"] == "ok"]
    metrics, damaged = read_metrics(ok["folder"])
    figures = draw_figures(table, records, metrics)
    over, card = compare_tasks(records, table), reproduction(records)
    tables = {"leaderboard": table, "reproduction": card}
    if over:
        figures |= draw_over_tasks(over)
        tables |= {"over_tasks": over.activations, "pairs": over.pairs}
    parts = [
        f"# Study {markdown(study.name)}",
        f"{len(records)} cells, {len(ok)} ok.",
        "\n".join(f"- **{line}**" for line in _no_scores(table)),
        to_markdown(table),
        EXPLANATION,
        *_costs(table, ok, metrics),
        over_tasks.to_markdown(over) if over else "",
        published.to_markdown(card),
        *_provenance(records),
        *_failures(records),
        *_section("Cells without curves", (f"- {markdown(line)}" for line in damaged)),
        *(f"![{Path(name).stem}](figures/{name})" for name in figures if name.endswith(".png")),
    ]
    path = folder / "leaderboard.md"
    # nothing has been written so far: an error above leaves the last report as it was
    write_all(
        {
            path: ("\n\n".join(part.strip() for part in parts if part) + "\n").encode(),
            **{folder / f"{name}.csv": rows.to_csv(index=False).encode() for name, rows in tables.items()},
            **{folder / "figures" / name: content for name, content in figures.items()},
        }
    )
    return path, table


def report(study: Path, baseline: str | None = None, margin: float | None = None) -> None:
    """Write the report and print the table and, last, where it is."""
    path, table = write_report(study, baseline, margin)
    columns = [
        "task",
        "ranks",
        "activation",
        "n",
        "mean",
        "std",
        "delta",
        "verdict",
        "step_ratio",
        "failures",
    ]
    shown = table.assign(ranks=list(map(rank_range, table["rank_low"], table["rank_high"])))[columns].rename(
        columns={"step_ratio": "step vs relu"}
    )
    with pd.option_context("display.width", 160, "display.max_columns", None, "display.max_rows", None):
        print(shown.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    for line in _no_scores(table):
        print(line)
    print(f"leaderboard: {path}")


def _limits(records: pd.DataFrame) -> pd.Series:
    """The number of batches in a pass of the tasks where that is limited, as with ``runner=smoke``."""
    known = records.reindex(columns=["task_label", "runner.limit_batches"]).dropna()
    return known.groupby("task_label")["runner.limit_batches"].first().astype(float)


def _no_scores(table: pd.DataFrame) -> list[str]:
    """A line for each of these tasks."""
    limits = table.dropna(subset=["limit_batches"]).groupby("task")["limit_batches"].first()
    return [f"{task}: limited to {limit:g} batches a pass: not a score" for task, limit in limits.items()]


def _costs(table: pd.DataFrame, ok: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    """A section for each task in which the cost was measured, and what is said of all."""
    tables = {
        task: cost.cost_table(rows, ok[ok["task_label"] == task], metrics)
        for task, rows in table.groupby("task", sort=True)
    }
    sections = [text for task, costs in tables.items() if (text := cost.to_markdown(str(task), costs))]
    return [*sections, cost.EXPLANATION] if sections else []


def _provenance(records: pd.DataFrame) -> list[str]:
    """What the numbers depend on, and a warning where it was not the same for all cells of a task."""
    lines = []
    finished = records[records["status"].isin(FINISHED)]
    for column in SHOULD_AGREE:
        if column not in finished or finished[column].isna().all():
            continue
        by_task = {task: _values(cells[column]) for task, cells in finished.groupby("task_label")}
        mixed = {task: values for task, values in by_task.items() if len(values) > 1}
        for task, values in mixed.items():
            said = ", ".join(map(markdown, values))
            lines.append(f"- **{markdown(task)}: cells differ in {column}**: {said}")
        if not mixed and column != "data_fingerprint":
            values = sorted({value for values in by_task.values() for value in values})
            lines.append(f"- {column}: {', '.join(map(markdown, values))}")
    for task, cells in records.groupby("task_settings"):
        if len(names := _unique(cells["task_label"])) > 1:
            lines.append(
                f"- **{markdown(task)}: cells differ in data or metric**, which are never averaged: "
                f"{', '.join(map(markdown, names))}"
            )
    for activation, cells in records.groupby("activation_settings"):
        codes = cells["activation_code"][cells["status"].isin(FINISHED)]
        if (unsaid := codes.isna().sum()) and unsaid < len(codes):
            lines.append(
                f"- **{markdown(activation)}: {unsaid} of {len(codes)} cells do not say by which code**"
            )
        if codes.nunique() > 1:
            names = _unique(cells["activation_label"])
            lines.append(
                f"- **{markdown(activation)}: its code changed between cells**; on one task they are never averaged: "
                f"{', '.join(map(markdown, names))}"
            )
    return _section("Where the numbers come from", [*lines, *_sessions(finished)])


def _sessions(records: pd.DataFrame) -> list[str]:
    """A warning where a cell was stopped and went on in another way."""
    differing: dict[tuple[str, str], tuple[list[str], list[str]]] = {}  # task, column: cells, values
    for cell in records.itertuples():
        if not isinstance(cell.sessions, list) or len(cell.sessions) < 2:
            continue
        sessions = pd.DataFrame(cell.sessions)
        for column in sessions.columns.intersection(PROVENANCE):
            if len(found := _values(sessions[column])) > 1:
                cells, values = differing.setdefault((cell.task_label, column), ([], []))
                cells.append(markdown(f"{cell.activation_label} seed={cell.seed}"))
                values += found
    return [
        f"- **{markdown(task)}: {column} changed while a cell was trained** "
        f"({_some(cells)}): {', '.join(map(markdown, _unique(values)))}"
        for (task, column), (cells, values) in differing.items()
    ]


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _values(column: pd.Series) -> list[str]:
    """The different values as text; one that is missing beside others is a difference as well."""
    return _unique(UNKNOWN if is_missing(value) else str(value) for value in column)


def _unique(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(map(str, values)))


def _failures(records: pd.DataFrame) -> list[str]:
    lines = [
        f"- {markdown(row.activation_label)} {markdown(row.task_label)} seed={markdown(row.seed)}: {row.status}: "
        f"{markdown('killed' if is_missing(row.reason) else row.reason)} ({markdown(row.folder)})"
        for row in records[records["status"] != "ok"].itertuples()
    ]
    return _section("Cells without a score", lines)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    text = "\n".join(lines)
    return [f"## {title}", text] if text else []
