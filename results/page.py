"""The report as one HTML page that needs nothing else: verdicts, tables, figures, learned shapes, methods."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from results.collect import counts
from results.escape import counted, shown
from results.examples import sentence
from results.explain import explain
from results.figures import Drawing
from results.leaderboard import decimals, rank_range, table_caption
from results.methods import methods
from results.over_tasks import OverTasks
from results.page_tuning import about_tuning, tuning_parts
from results.palette import Look
from results.parts import (
    Column,
    Entry,
    Figure,
    Grid,
    Heading,
    Items,
    Section,
    Table,
    Text,
    Value,
    fixed,
    value_of,
    verdict_value,
)
from results.published import ABOUT as ABOUT_PUBLISHED
from results.published import CARD, card_cells, not_comparable
from results.schema import COMMON, is_missing
from results.shapes import ABOUT, Shapes
from results.svg import inline, swatch
from results.tuning import Tuned
from results.verdicts import sentences

HERE = Path(__file__).resolve().parent
TEMPLATE, STYLE, SCRIPT = "page.html", "page.css", "page.js"


@dataclass(frozen=True)
class Report:
    """All that is known of a study when its report is written.

    Attributes:
        name: of the study.
        records: one row per cell, with labels (``results.collect``).
        table: the leaderboard of all tasks.
        drawings: figures of the tasks; one without a task is of the study.
        shapes: what the activations learned.
        warnings: sentences that stand on top.
        provenance: where the numbers come from, one line each.
        damaged: files that could not be read, one line each.
        over: comparison over tasks, if there is one.
        card: published numbers beside those of the study (``results.published``).
        tuned: comparison of the common recipe with settings tuned for each activation, if there is one.
        sensitivity: figures of the scores against the tuned settings.
    """

    name: str
    records: pd.DataFrame
    table: pd.DataFrame
    drawings: Sequence[Drawing]
    shapes: Shapes
    warnings: Sequence[str] = ()
    provenance: Sequence[str] = ()
    damaged: Sequence[str] = ()
    over: OverTasks | None = None
    card: pd.DataFrame = field(default_factory=pd.DataFrame)
    looks: Mapping[str, Look] = field(default_factory=dict)
    tuned: Tuned | None = None
    sensitivity: Sequence[Drawing] = ()

    def label(self, activation: str) -> Markup:
        """Return an activation's name behind the line that stands for it in figures."""
        look = self.looks.get(activation, Look())
        return swatch(look.color, look.dash) + escape(shown(activation))

    def tasks(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield every task with its rows of the leaderboard."""
        for task, rows in self.table.groupby("task", sort=True):
            yield str(task), rows


def page(report: Report) -> bytes:
    """Return the page; names are text in it, whatever they hold."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_text,
    )
    records = report.records[report.records["recipe"] == COMMON]
    names = (records[name].nunique() for name in ("activation_label", "task_label"))
    lead = f"{counts(report.records)}: {' on '.join(map(counted, names, ('activation', 'task')))}."
    sections = [section for make in SECTIONS for section in make(report) if section.parts]
    written = environment.get_template(TEMPLATE).render(
        title=f"Study {report.name}",
        lead=lead,
        sections=sections,
        css=Markup((HERE / STYLE).read_text(encoding="utf-8")),
        js=Markup((HERE / SCRIPT).read_text(encoding="utf-8")),
    )
    return written.encode(errors="backslashreplace")


def _text(value: Any) -> Any:
    return value if isinstance(value, Markup | int | float) else shown(value)


def verdicts(report: Report) -> Iterator[Section]:
    """Sentences: who may be best on each task, and how the others compare with the baseline."""
    parts: list[Any] = [Items(report.warnings, "warn")] if report.warnings else []
    for task, rows in report.tasks():
        parts += [Heading(task), Text([sentences(rows)], "verdict")]
        if other_test := sentence(rows):
            parts.append(Text([other_test], "lead"))
    parts.append(
        Text(["Verdicts are about seeds: they hold for this test set, this network and this recipe."], "lead")
    )
    yield Section("verdicts", "Verdicts", parts)


def tasks(report: Report) -> Iterator[Section]:
    """Table and figures of every task."""
    parts: list[Any] = []
    for k, (task, rows) in enumerate(report.tasks()):
        parts += [Heading(task, f"task-{k}"), leaderboard_table(report, task, rows)]
        for j, drawing in enumerate(drawing for drawing in report.drawings if drawing.task == task):
            parts.append(_figure(drawing, f"f{k}-{j}-"))
    yield Section("tasks", "Tasks", parts)


def _figure(drawing: Drawing, prefix: str) -> Figure:
    caption = shown(drawing.caption)
    return Figure(inline(drawing.svg, prefix, caption.partition(".")[0]), caption)


def leaderboard_table(report: Report, task: str, rows: pd.DataFrame) -> Table:
    """Return the leaderboard of a task."""
    digits, first = decimals(rows), rows.iloc[0]
    baseline = first["baseline"] or "no baseline"
    chosen = [(column, make) for column, make in LEADERBOARD if column.key is None or _any(rows, column.key)]
    columns, makers = [column for column, _ in chosen], [make for _, make in chosen]
    cells = [[make(report, row, digits) for make in makers] for row in rows.to_dict("records")]
    heads = [
        Column(column.title.format(baseline=baseline), column.about, column.number, column.shown)
        for column in columns
    ]
    return Table(f"{task}: {table_caption(rows)}", heads, cells, head=1)


def _any(rows: pd.DataFrame, key: str) -> bool:
    """Whether a column is there with something in it."""
    return key in rows and bool((rows[key].notna() & (rows[key].astype(str) != "")).any())


@dataclass(frozen=True)
class _Head:
    """A column of the leaderboard, left out where all of ``key`` is missing."""

    title: str
    about: str
    number: bool = True
    shown: bool = True
    key: str | None = None


Row = Mapping[str, Any]


def _plain(key: str, digits: int = 4, sign: str = "") -> Callable[[Report, Row, int], Value]:
    return lambda report, row, decimals: value_of(row[key], digits, sign)


def _ranks(report: Report, row: Row, decimals: int) -> Value:
    return Value(
        rank_range(row["rank_low"], row["rank_high"]), float(row["rank_low"] + row["rank_high"] / 1e4)
    )


def _interval(report: Report, row: Row, decimals: int) -> Value:
    low, high = row["ci95_low"], row["ci95_high"]
    return (
        Value("", math.inf) if math.isnan(low) else Value(f"{low:.{decimals}f} to {high:.{decimals}f}", low)
    )


def _difference(report: Report, row: Row, decimals: int) -> Value:
    delta, low, high = row["delta"], row["delta_low"], row["delta_high"]
    if math.isnan(low):
        return fixed(delta, decimals, "+")
    return Value(f"{delta:+.{decimals}f} ({low:+.{decimals}f}, {high:+.{decimals}f})", delta)


def _other_test(report: Report, row: Row, decimals: int) -> Value:
    low, high = row["test_low"], row["test_high"]
    return (
        Value("", math.inf) if math.isnan(low) else Value(f"{low:+.{decimals}f} to {high:+.{decimals}f}", low)
    )


def _verdict(report: Report, row: Row, decimals: int) -> Value:
    return verdict_value(row["verdict"])


LEADERBOARD: list[tuple[_Head, Callable[[Report, Row, int], Value]]] = [
    (_Head("rank", "ranks that the activation may have; all together hold with 95 %"), _ranks),
    (_Head("activation", "", number=False), lambda report, row, decimals: Value(report.label(row["activation"]), row["activation"])),
    (_Head("n", "seeds with a score"), _plain("n")),
    (_Head("mean", "of the test scores"), lambda report, row, decimals: fixed(row["mean"], decimals)),
    (_Head("std", "sample standard deviation over seeds"), lambda report, row, decimals: fixed(row["std"], decimals)),
    (_Head("95 % interval", "of the mean"), _interval),
    (_Head("vs {baseline} (simultaneous 95 % interval)", "mean difference over common seeds"), _difference),
    (_Head("for another test set", "95 % interval of the difference, for other seeds and another test set of the same size", shown=False, key="test_low"), _other_test),
    (_Head("verdict", "against the baseline", number=False), _verdict),
    (_Head("seeds needed", "to decide, if mean and spread stay the same; empty above 1,000", key="seeds_needed"), _plain("seeds_needed")),
    (_Head("p adjusted", "p-value times the number of comparisons", shown=False), _plain("p_adjusted", 2)),
    (_Head("p sign flip", "exact, of this comparison alone", shown=False), _plain("p_sign_flip", 2)),
    (_Head("effect size", "difference / standard deviation of the differences", shown=False), _plain("effect_size", 3, "+")),
    (_Head("p improvement", "share of common seeds on which it is better", shown=False), _plain("p_improvement", 2)),
    (_Head("seed correlation", "of both scores over common seeds: what pairing gains", shown=False), _plain("seed_correlation", 2)),
    (_Head("best val", "mean test score with the weights of the best validation epoch", shown=False), lambda report, row, decimals: fixed(row["mean_best_val"], decimals)),
    (_Head("parameters", "of the whole network"), _plain("parameters", 9)),
    (_Head("s/epoch", "median over cells; beside other work where cells ran beside it"), _plain("seconds_per_epoch", 3)),
    (_Head("step vs relu", "time of a training step against that with ReLU, measured interleaved", key="step_ratio"), lambda report, row, decimals: fixed(row["step_ratio"], 2)),
    (_Head("failures", "cells that are not ok", number=False, key="failures"), _plain("failures")),
]  # fmt: skip


def tuning(report: Report) -> Iterator[Section]:
    """Both comparisons side by side: at the common recipe, and each activation at its own best settings."""
    if report.tuned is not None:
        figures = [_figure(drawing, f"t{k}-") for k, drawing in enumerate(report.sensitivity)]
        yield Section("tuning", "Tuning", [*tuning_parts(report.tuned, report.label), *figures])


COST = {
    "parameters": ("parameters", "of the whole network"),
    "flops": ("FLOPs", "of one forward pass of one sample"),
    "seconds_per_epoch": ("s/epoch", "median over cells; beside other work where cells ran beside it"),
    "step_ratio": ("step vs relu", "time of a training step against that with ReLU, measured interleaved"),
    "inference_ratio": (
        "inference vs relu",
        "time of a forward pass against that with ReLU, measured interleaved",
    ),
    "cost_floor": ("noise floor", "a ratio within 1 -+ this is noise"),
    "step_ms": ("step, ms", "time of a training step"),
    "saved_bytes": ("saved bytes", "kept by the sites for the backward pass"),
    "peak_memory_mb": ("peak memory, MB", "of a training step"),
}


def cost(report: Report) -> Iterator[Section]:
    """What each activation costs on each task."""
    known = [name for name in COST if _any(report.table, name)]
    columns = [Column("task"), Column("activation"), *(Column(*COST[name], number=True) for name in known)]
    rows = [
        [
            Value(row["task"]),
            Value(report.label(row["activation"]), row["activation"]),
            *(_cost(name, row[name]) for name in known),
        ]
        for row in report.table.to_dict("records")
        if row["n"]
    ]
    caption = "Cost by task and activation: medians over the cells that ended ok."
    yield Section("cost", "Cost", [Table(caption, columns, rows, head=1)] if known and rows else [])


def _cost(name: str, value: float) -> Value:
    return fixed(value, 2) if name.endswith("_ratio") else value_of(value, 4 if name != "parameters" else 9)


def learned(report: Report) -> Iterator[Section]:
    """What the units learned, by depth; agreement between seeds; pictures of the tasks."""
    parts: list[Any] = []
    for task, _ in report.tasks():
        shapes = report.shapes.by_task.get(task, {})
        pictures = report.shapes.images.get(task, {})
        if shapes or pictures:
            parts.append(Heading(task))
        for activation, shape in shapes.items():
            grids: list[Any] = [Grid(*grid) for grid in shape.grids]
            title = report.label(activation) + Markup(" <small>{}</small>").format(shape.summary)
            parts.append(Entry(title, [*grids, *([Items(shape.flags)] if shape.flags else [])]))
        for name, images in pictures.items():
            grid = [(activation, image, f"seed {seed}") for activation, seed, image in images]
            caption = f"Test split of {task}, last weights, one seed of each activation."
            parts.append(Entry(f"Pictures: {name}", [Grid(grid, caption)]))
    if parts:
        parts.insert(0, Text([ABOUT]))
    yield Section("learned", "What the units learned", parts)


def explorer(report: Report) -> Iterator[Section]:
    """One entry per activation: formula, paper, parameters, shape, cost and verdicts."""
    entries = []
    labels = (
        report.table.groupby("activation", sort=False)["rank_low"].mean().sort_values(kind="stable").index
    )
    for label in map(str, labels):
        cells = report.records[report.records["activation_label"] == label]
        entries.append(_entry(report, label, cells, report.table[report.table["activation"] == label]))
    yield Section("explorer", "Activations", entries, search=True)


def _entry(report: Report, label: str, cells: pd.DataFrame, rows: pd.DataFrame) -> Entry:
    # a damaged cell may lack its settings
    first = cells.sort_values("status", key=lambda status: status != "ok", kind="stable").iloc[0]
    name = str(first["activation"])
    target = first.get("activation._target_")
    text = explain(name, target if isinstance(target, str) else None)
    parts: list[Any] = [Text([text.head])] if text.head else [Text([f"No description of {name} was found."])]
    if text.formula:
        parts.append(Text([text.formula], "formula"))
    if text.source:
        parts.append(Text([text.source], "lead"))
    if text.links:
        links = (Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(link) for link in text.links)
        parts.append(Items([*links]))
    settings = [
        f"{column.partition('.')[2]} = {_setting(value)}"
        for column, value in first.items()
        if str(column).startswith("activation.")
        and not str(column).endswith("_partial_")
        and not is_missing(value)
        and column != "activation._target_"
    ]
    if settings:
        parts.append(Text([f"Settings: {', '.join(settings)}."]))
    charts = report.shapes.first_sites.get(label)
    if charts:
        parts.append(Grid(charts, "Before training (dotted) and after it (mean over seeds and channels of the first site), over the distribution of its inputs."))  # fmt: skip
    columns = [Column("task"), Column("rank", number=True), Column("mean", number=True), Column("difference", number=True), Column("verdict"), Column("parameters", number=True), Column("s/epoch", number=True), Column("failures")]  # fmt: skip
    lines = []
    for row in rows.to_dict("records"):
        digits = decimals(report.table[report.table["task"] == row["task"]])
        lines.append([Value(row["task"]), _ranks(report, row, digits), fixed(row["mean"], digits), _difference(report, row, digits), _verdict(report, row, digits), value_of(row["parameters"], 9), value_of(row["seconds_per_epoch"], 3), value_of(row["failures"])])  # fmt: skip
    parts.append(Table(f"{label} on all tasks.", columns, lines, head=0))
    said = ", ".join(
        f"{verdict} on {', '.join(of['task']) if len(of) < 3 else counted(len(of), 'task')}"
        for verdict, of in rows[rows["verdict"] != ""].groupby("verdict", sort=False)
    )
    title = report.label(label) + Markup(" <small>{}</small>").format(said)
    return Entry(title, parts, f"{label} {text.head} {said}")


def failures(report: Report) -> Iterator[Section]:
    """Every cell without a score, and every file that could not be read."""
    bad = report.records[report.records["status"] != "ok"].drop_duplicates("folder")
    rows = [
        [
            Value(row.task_label),
            Value(row.activation_label),
            value_of(row.seed),
            Value(row.status),
            Value("killed" if is_missing(row.reason) else str(row.reason), css="wide"),
            Value(row.folder, css="wide"),
        ]
        for row in bad.itertuples()
    ]
    parts: list[Any] = []
    if rows:
        heads = [Column("task"), Column("activation"), Column("seed", number=True), Column("status"), Column("reason"), Column("folder")]  # fmt: skip
        parts.append(Table(f"{counted(len(rows), 'cell')} without a score.", heads, rows, head=1))
    if report.damaged:
        parts += [
            Text(["Files that could not be read; the scores of their cells stand."]),
            Items(report.damaged),
        ]
    yield Section("failures", "Failures", parts or [Text(["Every cell ended ok."])])


def about_methods(report: Report) -> Iterator[Section]:
    """A text for an appendix, the commands and the versions."""
    common = report.records[report.records["recipe"] == COMMON]
    about = [*methods(common, report.table), *(about_tuning(report.tuned) if report.tuned else ())]
    yield Section("methods", "Methods", [Text(about)])
    commands = list(
        dict.fromkeys(
            str(command) for command in report.records.get("command", []) if not is_missing(command)
        )
    )
    parts: list[Any] = []
    if commands:
        code = [Markup("<code>{}</code>").format(shown(command)) for command in commands[:20]]
        more = [f"and {len(commands) - 20} more"] if len(commands) > 20 else []
        parts += [Text(["Commands that trained the cells:"]), Items([*code, *more])]
    if report.provenance:
        parts += [Text(["Where the numbers come from:"]), Items(report.provenance)]
    yield Section("origin", "Commands and versions", parts)


def over_tasks(report: Report) -> Iterator[Section]:
    """What is said of the study over its tasks, and its figures."""
    over = report.over
    if over is None:
        return
    drawings = (drawing for drawing in report.drawings if not drawing.task)
    caption = f"Over {counted(len(over.tasks), 'task')}."
    if not math.isnan(over.p_equal):
        caption += (
            " Ranks hold together with about 95 %, tasks in the place of seeds. That all activations are alike has "
            f"p = {over.p_equal:.2g} (Friedman's test by permutations)."
        )
    rows = [[make(report, row) for _, make in OVER_TASKS] for row in over.activations.to_dict("records")]
    baseline = over.baseline or "the baseline"
    columns = [
        Column(head.title.format(baseline=baseline), head.about, head.number, head.shown)
        for head, _ in OVER_TASKS
    ]
    table = Table(caption, columns, rows, head=1)
    notes = [Items(over.notes)] if over.notes else []
    figures = [_figure(drawing, f"s{k}-") for k, drawing in enumerate(drawings)]
    yield Section("over-tasks", "Over tasks", [table, *notes, *figures])


def _ranks_over_tasks(report: Report, row: Row) -> Value:
    low, high = row["rank_low"], row["rank_high"]
    return (
        Value("", math.inf) if math.isnan(low) else Value(rank_range(int(low), int(high)), low + high / 1e4)
    )


def _with_interval(name: str) -> Callable[[Report, Row], Value]:
    def make(report: Report, row: Row) -> Value:
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        if math.isnan(value):
            return Value("", math.inf)
        return Value(f"{value:.2f}" if math.isnan(low) else f"{value:.2f} ({low:.2f}, {high:.2f})", value)

    return make


def _verdicts(name: str) -> Callable[[Report, Row], Value]:
    def make(report: Report, row: Row) -> Value:
        is_baseline = report.over is not None and row["activation"] == report.over.baseline
        return Value("", math.inf) if is_baseline else value_of(row[name])

    return make


OVER_TASKS: list[tuple[_Head, Callable[[Report, Row], Value]]] = [
    (_Head("rank", "ranks that the activation may have over tasks"), _ranks_over_tasks),
    (_Head("activation", "", number=False), lambda report, row: Value(report.label(row["activation"]), row["activation"])),
    (_Head("mean rank (95 % interval)", "over blocks of task and seed; for other tasks and seeds"), _with_interval("mean_rank")),
    (_Head("P(better than {baseline})", "probability of a better score on a random task and seed"), _with_interval("p_improvement")),
    (_Head("better", "tasks with this verdict"), _verdicts("better")),
    (_Head("equal", "tasks with this verdict"), _verdicts("equal")),
    (_Head("undecided", "tasks with this verdict"), _verdicts("undecided")),
    (_Head("worse", "tasks with this verdict"), _verdicts("worse")),
    (_Head("diverged", "cells"), lambda report, row: value_of(row["diverged"])),
    (_Head("reversed without", "activations without which it changes places with another", number=False), lambda report, row: value_of(row["reversed_without"])),
]  # fmt: skip


def published(report: Report) -> Iterator[Section]:
    """Published numbers beside those of the study; how they compare, or why they do not."""
    if report.card.empty:
        return
    comparable = report.card[report.card["verdict"] != "not comparable"]
    parts: list[Any] = [Text([ABOUT_PUBLISHED], "lead")]
    if len(comparable):
        heads = [Column(name, number=name == "n") for name in CARD]
        rows = [[value_of(value) for value in card_cells(row)] for row in comparable.to_dict("records")]
        caption = "Published numbers and ours with 95 % intervals (reproduction.csv has all columns)."
        parts.append(Table(caption, heads, rows, head=1))
    yield Section("published", "Published numbers", [*parts, Items([*not_comparable(report.card)])])


SECTIONS: Sequence[Callable[[Report], Iterator[Section]]] = (
    verdicts,
    over_tasks,
    tuning,
    tasks,
    published,
    cost,
    learned,
    explorer,
    failures,
    about_methods,
)


def _setting(value: object) -> str:
    """A setting's value; whole numbers are floats in a column that not all activations have."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
