"""The report as one HTML page that needs nothing else: verdicts, tables, figures, learned shapes, methods."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from results.collect import counts
from results.escape import counted, shown
from results.examples import sentence
from results.explain import explain
from results.figures import Drawing
from results.leaderboard import number_formats
from results.methods import methods
from results.over_tasks import OverTasks
from results.page_tables import (
    activation_table,
    cost_tables,
    failures_table,
    leaderboard_table,
    over_tasks_table,
    published_table,
)
from results.page_tuning import about_tuning, tuning_parts
from results.palette import Look
from results.parts import Entry, Figure, Grid, Heading, Items, Section, Text
from results.published import ABOUT as ABOUT_PUBLISHED
from results.published import not_comparable
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

    @cached_property
    def number_formats(self) -> dict[str, str]:
        """How scores of each task are written."""
        return number_formats(self.table)

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
        parts += [Heading(task, f"task-{k}"), leaderboard_table(task, rows, report.label)]
        for j, drawing in enumerate(drawing for drawing in report.drawings if drawing.task == task):
            parts.append(_figure(drawing, f"f{k}-{j}-"))
    yield Section("tasks", "Tasks", parts)


def _figure(drawing: Drawing, prefix: str) -> Figure:
    caption = shown(drawing.caption)
    return Figure(inline(drawing.svg, prefix, caption.partition(".")[0]), caption)


def tuning(report: Report) -> Iterator[Section]:
    """Both comparisons side by side: at the common recipe, and each activation at its own best settings."""
    if report.tuned is not None:
        figures = [_figure(drawing, f"t{k}-") for k, drawing in enumerate(report.sensitivity)]
        yield Section("tuning", "Tuning", [*tuning_parts(report.tuned, report.label), *figures])


def cost(report: Report) -> Iterator[Section]:
    """Yield what each activation costs on each task."""
    yield Section("cost", "Cost", cost_tables(report.table, report.label))


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
    ranks = report.table.groupby("activation", sort=False)["rank_low"].mean()
    for label in map(str, ranks.sort_values(kind="stable").index):
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
        if str(column).startswith("activation.") and not is_missing(value)
        if column != "activation._target_" and not str(column).endswith("_partial_")
    ]
    if settings:
        parts.append(Text([f"Settings: {', '.join(settings)}."]))
    charts = report.shapes.first_sites.get(label)
    if charts:
        parts.append(Grid(charts, "Before training (dotted) and after it (mean over seeds and channels of the first site), over the distribution of its inputs."))  # fmt: skip
    parts.append(activation_table(label, report.table, report.label, report.number_formats))
    said = ", ".join(
        f"{verdict} on {', '.join(of['task']) if len(of) < 3 else counted(len(of), 'task')}"
        for verdict, of in rows[rows["verdict"] != ""].groupby("verdict", sort=False)
    )
    title = report.label(label) + Markup(" <small>{}</small>").format(said)
    return Entry(title, parts, f"{label} {text.head} {said}")


def failures(report: Report) -> Iterator[Section]:
    """Every cell without a score, and every file that could not be read."""
    bad = report.records[report.records["status"] != "ok"].drop_duplicates("folder")
    parts: list[Any] = [] if bad.empty else [failures_table(bad)]
    if report.damaged:
        about = "Files that could not be read; the scores of their cells stand."
        parts += [Text([about]), Items(report.damaged)]
    yield Section("failures", "Failures", parts or [Text(["Every cell ended ok."])])


def about_methods(report: Report) -> Iterator[Section]:
    """A text for an appendix, the commands and the versions."""
    common = report.records[report.records["recipe"] == COMMON]
    about = [*methods(common, report.table), *(about_tuning(report.tuned) if report.tuned else ())]
    yield Section("methods", "Methods", [Text(about)])
    known = (command for command in report.records.get("command", []) if not is_missing(command))
    commands = list(dict.fromkeys(map(str, known)))
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
    table = over_tasks_table(over, report.label)
    notes = [Items(over.notes)] if over.notes else []
    figures = [_figure(drawing, f"s{k}-") for k, drawing in enumerate(drawings)]
    yield Section("over-tasks", "Over tasks", [table, *notes, *figures])


def published(report: Report) -> Iterator[Section]:
    """Published numbers beside those of the study; how they compare, or why they do not."""
    if report.card.empty:
        return
    comparable = report.card[report.card["verdict"] != "not comparable"]
    parts: list[Any] = [Text([ABOUT_PUBLISHED], "lead")]
    if len(comparable):
        parts.append(published_table(comparable))
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
