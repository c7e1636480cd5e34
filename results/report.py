"""The report of a study: leaderboard and figures, from the files of its cells alone."""

from pathlib import Path

import pandas as pd

from results.collect import add_labels, read_metrics, read_records
from results.files import REPORT, replacing, write_text
from results.leaderboard import BASELINE, leaderboard, rank_range, to_markdown

EXPLANATION = """\
Means are test scores at the last weights. Two activations are compared on the seeds that both finished or lost to
divergence: the same data order, augmentation and initial weights. **better** and **worse**: the interval of the seed-by-seed
differences excludes 0. **equal**: it lies within the smallest difference that matters. **undecided**: neither; the
number of seeds that would decide is given where it is at most 1,000. All intervals of differences in a table hold together with
95 %. The ranks an activation may have, as in 2-5, hold together for all activations with 95 %: the lowest is 1 plus the
number of activations that are better, the highest leaves out those that are worse. In a difference, a diverged seed counts as
the worst score of the table, and what diverged on more of the common seeds than another is never called better than it.
Verdicts are about seeds: they hold for this test set, this network and this recipe.
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
        to_markdown(table),
        EXPLANATION,
        *_provenance(records),
        *_failures(records),
        *(f"![{path.stem}](figures/{path.name})" for path in pictures),
    ]
    path = folder / "leaderboard.md"
    write_text(path, "\n\n".join(part.strip() for part in parts) + "\n")
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
        "seconds_per_epoch",
        "failures",
    ]
    shown = table.assign(ranks=list(map(rank_range, table["rank_low"], table["rank_high"])))[columns].rename(
        columns={"seconds_per_epoch": "s/epoch"}
    )
    with pd.option_context("display.width", 160, "display.max_columns", None, "display.max_rows", None):
        print(shown.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    print(f"leaderboard: {path}")


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
