"""The report of one or several studies: leaderboard, figures and the page, from the files of their cells alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from results import cost, learned_numbers, over_tasks, page_tuning, published
from results.collect import UNKNOWN, counts, read_metrics
from results.escape import markdown
from results.files import PAGE, REPORT, find_cells, write_all
from results.leaderboard import (
    BASELINE,
    difference,
    leaderboard,
    number_formats,
    rank_range,
    to_latex,
    to_markdown,
)
from results.over_tasks import compare_tasks
from results.palette import looks
from results.published import reproduction
from results.schema import COMMON, FINISHED, PROVENANCE, is_missing
from results.tuning import Tuned, read_labelled

EXPLANATION = """\
Means are test scores at the last weights. Two activations are compared on the seeds that both finished or lost to
divergence: the same data order, augmentation and initial weights. Errors are compared by their ratios, on a logarithmic scale. **better**
and **worse**: the interval of the seed-by-seed differences excludes 0, that of ratios 1. **equal**: it lies within the smallest difference that matters. **undecided**: neither; the
number of seeds that would decide is given where it is at most 1,000. All intervals of differences in a table hold together with
95 %. The ranks an activation may have, as in 2-5, hold together for all activations with 95 %: the lowest is 1 plus the
number of activations that are better, the highest leaves out those that are worse. In a difference, a diverged seed counts as
the worst score of the table, and what diverged on more of the common seeds than another is never called better than it; what
diverged on every seed is compared by their number.
Verdicts are about seeds: they hold for this test set, this network and this recipe. Where a metric is a mean over test samples,
the sentence below a table says what of its verdicts would hold for another test set of the same size.
"""
# what of a session may change the numbers, beside where it ran
SHOULD_AGREE = (*PROVENANCE, "data_fingerprint")
MAX_NAMED = 3
NEVER = ", which are never averaged"


def write_report(
    study: Path | Sequence[Path],
    baseline: str | None = None,
    margin: float | None = None,
    name: str | None = None,
) -> tuple[Path, pd.DataFrame]:
    """Write ``report/``: ``index.html``, ``leaderboard.md``, ``.csv`` and ``.tex``, the tables over tasks, of published
    numbers and of what was learned, ``figures/``; returns the .md and the leaderboard.

    Args:
        study: its folder; several are reported as one, in a folder ``name`` beside the first.
        baseline: the activation that others are compared with; None for relu, where there is one.
        margin: the largest difference that does not matter, in the unit of the metric, a share of errors; None for each
            metric's own.

    Raises:
        ValueError: no study in this folder, no such activation in it, a cell that is in several studies, several
            studies without a name.
    """
    studies = [study] if isinstance(study, Path) else list(study)
    if len(studies) > 1 and name is None:
        raise ValueError(f"{', '.join(map(str, studies))}: several studies must have a name for their report")
    cells = read_labelled(studies)
    records = cells.records
    target = studies[0] if name is None else merged(studies, name)
    labels = sorted(records["activation_label"].unique())
    if baseline is not None and baseline not in labels:
        where = " or ".join(map(str, studies))
        raise ValueError(f"baseline {baseline}: no such activation in {where}; legal: {', '.join(labels)}")
    table = leaderboard(records, baseline or BASELINE, margin)
    table["limit_batches"] = table["task"].map(_limits(records))
    tuned = Tuned.of(cells, table, margin)
    common, at_common = records[records["recipe"] == COMMON], table[table["recipe"] == COMMON]
    folder, study_name = target / REPORT, target.resolve().name

    # matplotlib takes a second to import, and an error above should not wait for it
    from results.figures import draw_figures, draw_over_tasks, draw_sensitivity
    from results.page import Report, page
    from results.shapes import read_shapes

    ok = records[records["status"] == "ok"]
    metrics, damaged = read_metrics(ok["folder"])
    seen = looks(table)
    drawings = draw_figures(table, records, metrics, seen)
    costs = _costs(table, ok, metrics)
    del metrics  # the largest of all
    over, card = compare_tasks(common, at_common), reproduction(common)
    tables = {"leaderboard": table, "reproduction": card}
    sensitivity = draw_sensitivity(tuned, seen) if tuned else []
    if tuned:
        tables |= {"tuned": tuned.activations, "sensitivity": tuned.sensitivity}
    if over:
        drawings += draw_over_tasks(over, seen)
        tables |= {"over_tasks": over.activations, "pairs": over.pairs}
    figures = [*drawings, *sensitivity]
    shapes = read_shapes(records, seen)
    damaged += shapes.damaged
    if shapes.rows:
        tables["learned"] = learned_numbers.table(shapes.rows)
    provenance = [*_provenance(records)]
    parts = [
        f"# Study {markdown(study_name)}",
        f"{counts(records)}.",
        "\n".join(f"- **{markdown(line)}**" for line in _no_scores(table)),
        to_markdown(table),
        EXPLANATION,
        page_tuning.to_markdown(tuned) if tuned else "",
        *costs,
        over_tasks.to_markdown(over) if over else "",
        published.to_markdown(card),
        *_section("Where the numbers come from", (line.markdown for line in provenance)),
        *_failures(records),
        *_section("Cells without curves", (f"- {markdown(line)}" for line in damaged)),
        *(f"![{drawing.name}](figures/{drawing.name}.png)" for drawing in figures),
    ]
    about = Report(
        name=study_name,
        records=records,
        table=table,
        drawings=drawings,
        shapes=shapes,
        warnings=[
            *_no_scores(table),
            *(tuned.warnings if tuned else ()),
            *(line.text for line in provenance if line.warns),
        ],
        provenance=[line.text for line in provenance],
        damaged=damaged,
        looks=seen,
        over=over,
        card=card,
        tuned=tuned,
        sensitivity=sensitivity,
    )
    path = folder / "leaderboard.md"
    # nothing has been written so far: an error above leaves the last report as it was
    write_all(
        {
            path: ("\n\n".join(part.strip() for part in parts if part) + "\n").encode(),
            folder / PAGE: page(about),
            **{folder / f"{name}.csv": rows.to_csv(index=False).encode() for name, rows in tables.items()},
            folder / "leaderboard.tex": to_latex(table).encode(),
            **{folder / "figures" / f"{d.name}.svg": d.svg for d in figures},
            **{folder / "figures" / f"{d.name}.png": d.png for d in figures},
        }
    )
    return path, table


def merged(studies: Sequence[Path], name: str) -> Path:
    """Return the folder of the report of several studies, which holds no cells itself unless it is one of them.

    Raises:
        ValueError: ``name`` is that of a folder elsewhere, or of another study.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"--name {name}: must be the name of a folder, without a path")
    folder = studies[0].parent / name
    if folder.resolve() not in [study.resolve() for study in studies] and any(find_cells(folder)):
        raise ValueError(f"--name {name}: {folder} is a study already, whose report this would replace")
    return folder


def report(
    study: Path | Sequence[Path],
    baseline: str | None = None,
    margin: float | None = None,
    name: str | None = None,
) -> None:
    """Write the report and print the table and, last, where it is."""
    path, table = write_report(study, baseline, margin, name)
    columns = [
        "task",
        "ranks",
        "activation",
        "n",
        "mean",
        "std",
        "vs baseline",
        "verdict",
        "step_ratio",
        "failures",
    ]
    forms = number_formats(table)
    compared = [difference(row, forms[row["task"]]) for row in table.to_dict("records")]
    ranks = list(map(rank_range, table["rank_low"], table["rank_high"]))
    shown = table.assign(ranks=ranks, **{"vs baseline": compared})[columns].rename(
        columns={"step_ratio": "step vs relu"}
    )
    with pd.option_context("display.width", 160, "display.max_columns", None, "display.max_rows", None):
        print(shown.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    for line in _no_scores(table):
        print(line)
    print(f"leaderboard: {path}")
    print(f"page: {path.with_name(PAGE)}")


def _limits(records: pd.DataFrame) -> pd.Series:
    """The number of batches in a pass of the tasks where that is limited, as with ``runner=smoke``."""
    known = records.reindex(columns=["task_label", "runner.limit_batches"]).dropna()
    return known.groupby("task_label")["runner.limit_batches"].first().astype(float)


def _no_scores(table: pd.DataFrame) -> list[str]:
    """A line for each of these tasks."""
    limits = table.dropna(subset=["limit_batches"]).groupby("task")["limit_batches"].first()
    return [f"{task}: limited to {limit:g} batches a pass: not a score" for task, limit in limits.items()]


def _costs(table: pd.DataFrame, ok: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    """Return a section for each task on which the cost was measured, and the explanation of all."""
    tables = {
        task: cost.cost_table(rows, ok[ok["task_label"] == task], metrics)
        for task, rows in table.groupby("task", sort=True)
    }
    sections = [text for task, costs in tables.items() if (text := cost.to_markdown(str(task), costs))]
    return [*sections, cost.EXPLANATION] if sections else []


@dataclass(frozen=True)
class Line:
    """A line of the report, ``subject said note: values``; of one that ``warns`` the first two stand out."""

    subject: str
    said: str
    values: Sequence[str]
    note: str = ""
    warns: bool = False

    @property
    def text(self) -> str:
        """The line as plain text."""
        return f"{self.subject}{self.said}{self.note}: {', '.join(self.values)}"

    @property
    def markdown(self) -> str:
        """The line as an item of a list."""
        head = markdown(self.subject) + self.said
        note = " " * self.note.startswith(" ") + markdown(self.note)
        return f"- {f'**{head}**' if self.warns else head}{note}: {', '.join(map(markdown, self.values))}"


def _provenance(records: pd.DataFrame) -> Iterator[Line]:
    """What the numbers depend on, and a warning where it was not the same for all cells of a task."""
    finished = records[records["status"].isin(FINISHED)]
    for column in SHOULD_AGREE:
        if column not in finished or finished[column].isna().all():
            continue
        by_task = {task: _values(cells[column]) for task, cells in finished.groupby("task_label")}
        mixed = {task: values for task, values in by_task.items() if len(values) > 1}
        for task, values in mixed.items():
            yield Line(str(task), f": cells differ in {column}", values, warns=True)
        if not mixed and column != "data_fingerprint":
            yield Line(column, "", sorted({value for values in by_task.values() for value in values}))
    for task, cells in records.groupby("task_settings"):
        if len(names := _unique(cells["task_label"])) > 1:
            yield Line(str(task), ": cells differ in data or metric", names, NEVER, warns=True)
    for activation, cells in records.groupby("activation_settings"):
        codes = cells["activation_code"][cells["status"].isin(FINISHED)]
        names = _unique(cells["activation_label"])
        if (unsaid := codes.isna().sum()) and unsaid < len(codes):
            said = f": {unsaid} of {len(codes)} cells do not say by which code"
            yield Line(str(activation), said, names, warns=True)
        if codes.nunique() > 1:
            said = ": its code changed between cells"
            yield Line(str(activation), said, names, NEVER, warns=True)
    yield from _sessions(finished)


def _sessions(records: pd.DataFrame) -> Iterator[Line]:
    """A warning where a cell was stopped and went on in another way."""
    differing: dict[tuple[str, str], tuple[list[str], list[str]]] = {}  # task, column: cells, values
    for cell in records[["sessions", "task_label", "activation_label", "seed"]].itertuples():
        if not isinstance(cell.sessions, list) or len(cell.sessions) < 2:
            continue
        sessions = pd.DataFrame(cell.sessions)
        for column in sessions.columns.intersection(PROVENANCE):
            if len(found := _values(sessions[column])) > 1:
                cells, values = differing.setdefault((cell.task_label, column), ([], []))
                cells.append(f"{cell.activation_label} seed={cell.seed}")
                values += found
    for (task, column), (cells, values) in differing.items():
        said = f": {column} changed while a cell was trained"
        yield Line(task, said, _unique(values), f" ({_some(cells)})", warns=True)


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _values(column: pd.Series) -> list[str]:
    """The different values as text; one that is missing beside others is a difference as well."""
    return _unique(UNKNOWN if is_missing(value) else str(value) for value in column)


def _unique(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(map(str, values)))


def _failures(records: pd.DataFrame) -> list[str]:
    lines = [
        f"- {markdown(row.activation_label)} {markdown(row.task_label)} seed={markdown(row.seed)}: {row.status}: "
        f"{markdown('killed' if is_missing(row.reason) else row.reason)} ({markdown(row.folder)})"
        for row in records[records["status"] != "ok"].drop_duplicates("folder").itertuples()
    ]
    return _section("Cells without a score", lines)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    text = "\n".join(lines)
    return [f"## {title}", text] if text else []
