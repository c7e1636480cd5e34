"""The report of a study: leaderboard and figures, from the files of its cells alone."""

from pathlib import Path

import pandas as pd

from results.collect import add_labels, read_metrics, read_records
from results.files import REPORT, replacing, write_text
from results.leaderboard import BASELINE, leaderboard, to_markdown

EXPLANATION = """\
Ranks go by the mean test score at the last weights; `=` marks ties: an activation shares a rank with the best of its
group unless the 95 % t interval of their seed-by-seed differences excludes 0. Below two common seeds nothing can be
told apart. The difference to the baseline is paired by seed: the same data order, augmentation and initial weights.
Intervals are for one comparison each; with many activations some exclude 0 by chance.
"""
# one value of these for all cells, or the reader must know
SHOULD_AGREE = (
    "git_commit",
    "machine",
    "cpu",
    "torch",
    "device",
    "num_threads",
    "kernels",
    "data_fingerprint",
)


def write_report(study: Path, baseline: str | None = None) -> tuple[Path, pd.DataFrame]:
    """Write ``report/leaderboard.csv``, ``leaderboard.md`` and ``figures/``; returns the .md and the table.

    Args:
        baseline: the activation that others are compared with; None for relu, where there is one.

    Raises:
        ValueError: no study in this folder, or no such activation in it.
    """
    records = add_labels(read_records(study))
    labels = sorted(records["activation_label"].unique())
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline {baseline}: no such activation in {study}; legal: {', '.join(labels)}")
    table = leaderboard(records, baseline or BASELINE)
    table["limit_batches"] = table["task"].map(_limits(records))
    folder = study / REPORT
    with replacing(folder / "leaderboard.csv") as temporary:
        table.to_csv(temporary, index=False)

    # matplotlib takes a second to import, and an error above should not wait for it
    from results.figures import write_figures

    ok = records[records["status"] == "ok"]
    pictures = write_figures(folder / "figures", table, records, read_metrics(ok["folder"]))
    parts = [
        f"# Study {study.name}",
        f"{len(records)} cells, {len(ok)} ok.",
        "\n".join(f"- **{line}**" for line in _no_scores(table)),
        to_markdown(table),
        EXPLANATION,
        *_provenance(records),
        *_failures(records),
        *(f"![{path.stem}](figures/{path.name})" for path in pictures),
    ]
    path = folder / "leaderboard.md"
    write_text(path, "\n\n".join(part.strip() for part in parts if part) + "\n")
    return path, table


def report(study: Path, baseline: str | None = None) -> None:
    """Write the report and print the table and, last, where it is."""
    path, table = write_report(study, baseline)
    columns = [
        "task",
        "rank",
        "activation",
        "n",
        "mean",
        "std",
        "delta",
        "verdict",
        "seconds_per_epoch",
        "failures",
    ]
    shown = table[columns].rename(columns={"seconds_per_epoch": "s/epoch"})
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


def _provenance(records: pd.DataFrame) -> list[str]:
    """What the numbers depend on, and a warning where it was not the same for all cells of a task."""
    lines = []
    for column in SHOULD_AGREE:
        if column not in records:
            continue
        by_task = (
            records.groupby("task_label")[column]
            .unique()
            .map(lambda values: [str(v) for v in values if pd.notna(v)])
        )
        mixed = {task: values for task, values in by_task.items() if len(values) > 1}
        for task, values in mixed.items():
            lines.append(f"- **{task}: cells differ in {column}**: {', '.join(values)}")
        if not mixed and column != "data_fingerprint":
            lines.append(
                f"- {column}: {', '.join(sorted({value for values in by_task for value in values}))}"
            )
    if "activation_code" in records:
        versions = records.groupby("activation_label")["activation_code"].nunique()
        lines += [f"- **{label}: its code changed between cells**" for label in versions[versions > 1].index]
    return ["## Where the numbers come from", "\n".join(lines)] if lines else []


def _failures(records: pd.DataFrame) -> list[str]:
    failed = records[records["status"] != "ok"]
    if failed.empty:
        return []
    lines = [
        f"- {row.activation_label} {row.task_label} seed={row.seed}: {row.status}: {row.reason or 'killed'} ({row.folder})"
        for row in failed.itertuples()
    ]
    return ["## Cells without a score", "\n".join(lines)]
