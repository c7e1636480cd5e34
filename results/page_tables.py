"""The tables of the page: their columns, what explains each of them, and how values are written and sorted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.escape import counted
from results.leaderboard import difference, number_format, rank_range, table_caption, versus_baseline
from results.over_tasks import OverTasks
from results.parts import Column, Table, Value, formatted, value_of, verdict_value
from results.published import CARD, card_cells
from results.schema import is_missing

Row = Mapping[str, Any]
Label = Callable[[str], Markup]  # writes the name of an activation
NOTHING = Value("", math.inf)


@dataclass(frozen=True)
class _Column:
    """A column of a table with activations.

    Attributes:
        title: ``{baseline}`` stands for the baseline's name, ``{versus}`` for what is compared with it.
        value: the cell of a row, given the format of the table's scores.
        about, number, shown: see ``results.parts.Column``.
        key: the column is left out where all of this is missing.
    """

    title: str
    value: Callable[[Row, str], Value]
    about: str = ""
    number: bool = True
    shown: bool = True
    key: str | None = None


def _plain(key: str, digits: int = 4, sign: str = "") -> Callable[[Row, str], Value]:
    return lambda row, form: value_of(row[key], digits, sign)


def _score(key: str) -> Callable[[Row, str], Value]:
    return lambda row, form: formatted(row[key], form)


def _ratio(key: str) -> Callable[[Row, str], Value]:
    return lambda row, form: formatted(row[key], ".2f")


def _ranks(row: Row, form: str) -> Value:
    low, high = row["rank_low"], row["rank_high"]
    return NOTHING if math.isnan(low) else Value(rank_range(int(low), int(high)), float(low + high / 1e4))


def _range(low_key: str, high_key: str) -> Callable[[Row, str], Value]:
    def value(row: Row, form: str) -> Value:
        low, high = row[low_key], row[high_key]
        return NOTHING if math.isnan(low) else Value(f"{low:{form}} to {high:{form}}", low)

    return value


def _with_interval(key: str) -> Callable[[Row, str], Value]:
    def value(row: Row, form: str) -> Value:
        mean, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
        if math.isnan(mean) or math.isnan(low):
            return formatted(mean, ".2f")
        return Value(f"{mean:.2f} ({low:.2f}, {high:.2f})", mean)

    return value


def _difference(row: Row, form: str) -> Value:
    text = difference(row, form)
    return Value(text, row["delta"]) if text else NOTHING


def _for_another_test_set(row: Row, form: str) -> Value:
    ends = {"delta_low": row["test_low"], "delta_high": row["test_high"]}
    return NOTHING if math.isnan(row["test_low"]) else _difference({**row, **ends}, form)


def _verdict(row: Row, form: str) -> Value:
    return verdict_value(row["verdict"])


def _count(verdict: str) -> Callable[[Row, str], Value]:
    return lambda row, form: NOTHING if row["is_baseline"] else value_of(row[verdict])


_TASK = _Column("task", lambda row, form: Value(row["task"]), number=False)
_ACTIVATION = _Column("activation", lambda row, form: row["label"], number=False)
_PARAMETERS = _Column("parameters", _plain("parameters", 9), "of the whole network")
_SECONDS = _Column("s/epoch", _plain("seconds_per_epoch"), "median over cells; beside other work where cells ran beside it", key="seconds_per_epoch")  # fmt: skip
_STEP_RATIO = _Column("step vs relu", _ratio("step_ratio"), "time of a training step against that with ReLU, measured interleaved", key="step_ratio")  # fmt: skip

LEADERBOARD = [
    _Column("rank", _ranks, "ranks that the activation may have; all together hold with 95 %"),
    _ACTIVATION,
    _Column("n", _plain("n"), "seeds with a score"),
    _Column("mean", _score("mean"), "of the test scores"),
    _Column("std", _score("std"), "sample standard deviation over seeds"),
    _Column("95 % interval", _range("ci95_low", "ci95_high"), "of the mean"),
    _Column("{versus}", _difference, "mean over common seeds"),
    _Column("for another test set", _for_another_test_set, "95 % interval of the difference, for other seeds and another test set of the same size", shown=False, key="test_low"),
    _Column("verdict", _verdict, "against the baseline", number=False),
    _Column("seeds needed", _plain("seeds_needed"), "to decide, if mean and spread stay the same; empty above 1,000", key="seeds_needed"),
    _Column("p adjusted", _plain("p_adjusted", 2), "p-value times the number of comparisons", shown=False),
    _Column("p sign flip", _plain("p_sign_flip", 2), "exact, of this comparison alone", shown=False),
    _Column("effect size", _plain("effect_size", 3, "+"), "difference / standard deviation of the differences, of logarithms where ratios are compared", shown=False),
    _Column("p improvement", _plain("p_improvement", 2), "share of common seeds on which it is better", shown=False),
    _Column("seed correlation", _plain("seed_correlation", 2), "of both scores over common seeds: what pairing gains", shown=False),
    _Column("best val", _score("mean_best_val"), "mean test score with the weights of the best validation epoch", shown=False),
    _PARAMETERS,
    _Column("s/epoch", _plain("seconds_per_epoch", 3), _SECONDS.about),
    _STEP_RATIO,
    _Column("failures", _plain("failures"), "cells that are not ok", number=False, key="failures"),
]  # fmt: skip
COST = [
    _TASK,
    _ACTIVATION,
    _Column("parameters", _plain("parameters", 9), "of the whole network", key="parameters"),
    _Column("FLOPs", _plain("flops"), "of one forward pass of one sample", key="flops"),
    _SECONDS,
    _STEP_RATIO,
    _Column("inference vs relu", _ratio("inference_ratio"), "time of a forward pass against that with ReLU, measured interleaved", key="inference_ratio"),
    _Column("noise floor", _plain("cost_floor"), "a ratio within 1 -+ this is noise", key="cost_floor"),
    _Column("saved bytes", _plain("saved_bytes"), "kept by the sites for the backward pass", key="saved_bytes"),
    _Column("peak memory, MB", _plain("peak_memory_mb"), "of a training step", key="peak_memory_mb"),
]  # fmt: skip
OVER_TASKS = [
    _Column("rank", _ranks, "ranks that the activation may have over tasks"),
    _ACTIVATION,
    _Column("mean rank (95 % interval)", _with_interval("mean_rank"), "over blocks of task and seed; for other tasks and seeds"),
    _Column("P(better than {baseline})", _with_interval("p_improvement"), "probability of a better score on a random task and seed"),
    *(_Column(verdict, _count(verdict), "tasks with this verdict") for verdict in ("better", "equal", "undecided", "worse")),
    _Column("diverged", _plain("diverged"), "cells"),
    _Column("reversed without", _plain("reversed_without"), "activations without which it changes places with another", number=False),
]  # fmt: skip
ON_ALL_TASKS = [  # of one activation
    _TASK,
    _Column("rank", _ranks),
    _Column("mean", _score("mean")),
    _Column("difference or ratio", _difference),
    _Column("verdict", _verdict, number=False),
    _Column("parameters", _plain("parameters", 9)),
    _Column("s/epoch", _plain("seconds_per_epoch", 3)),
    _Column("failures", _plain("failures"), number=False),
]


def _table(
    caption: str,
    columns: Sequence[_Column],
    rows: pd.DataFrame,
    label: Label,
    forms: Sequence[str] | str = ".2f",
    baseline: str = "",
    versus: str = "",
    head: int = 1,
) -> Table:
    """Return a table of ``columns``; ``forms`` is the format of all scores, or of each row's."""
    columns = [column for column in columns if column.key is None or _any(rows, column.key)]
    heads = [
        Column(c.title.format(baseline=baseline, versus=versus), c.about, c.number, c.shown) for c in columns
    ]
    forms = [forms] * len(rows) if isinstance(forms, str) else forms
    cells = []
    for row, form in zip(rows.to_dict("records"), forms, strict=True):
        name = row["activation"]
        facts = {**row, "label": Value(label(name), name), "is_baseline": name == baseline}
        cells.append([column.value(facts, form) for column in columns])
    return Table(caption, heads, cells, head)


def _any(rows: pd.DataFrame, key: str) -> bool:
    """Return whether a column is there with something in it."""
    return key in rows and bool((rows[key].notna() & (rows[key].astype(str) != "")).any())


def leaderboard_table(task: str, rows: pd.DataFrame, label: Label) -> Table:
    """Return the leaderboard of a task."""
    first, caption = rows.iloc[0], f"{task}: {table_caption(rows)}"
    versus = versus_baseline(first)
    return _table(caption, LEADERBOARD, rows, label, number_format(rows), first["baseline"] or "", versus)


def cost_tables(table: pd.DataFrame, label: Label) -> list[Table]:
    """Return the table of what each activation costs on each task; nothing where no cost is known."""
    rows = table[table["n"] > 0]
    if rows.empty or not any(column.key and _any(table, column.key) for column in COST):
        return []
    return [_table("Cost by task and activation: medians over the cells that ended ok.", COST, rows, label)]


def over_tasks_table(over: OverTasks, label: Label) -> Table:
    """Return the table of the activations over all tasks."""
    caption = f"Over {counted(len(over.tasks), 'task')}."
    if not math.isnan(over.p_equal):
        caption += (
            " Ranks hold together with about 95 %, tasks in the place of seeds. That all activations are alike has "
            f"p = {over.p_equal:.2g} (Friedman's test by permutations)."
        )
    return _table(caption, OVER_TASKS, over.activations, label, baseline=over.baseline or "the baseline")


def activation_table(
    activation: str, table: pd.DataFrame, label: Label, number_formats: Mapping[str, str]
) -> Table:
    """Return what the leaderboards of all tasks say of one activation; ``number_formats`` are those of the tasks' scores."""
    rows = table[table["activation"] == activation]
    forms = [number_formats[task] for task in rows["task"]]
    return _table(f"{activation} on all tasks.", ON_ALL_TASKS, rows, label, forms, head=0)


def published_table(card: pd.DataFrame) -> Table:
    """Return the published numbers that can be compared with those of the study."""
    heads = [Column(name, number=name == "n") for name in CARD]
    rows = [[value_of(value) for value in card_cells(row)] for row in card.to_dict("records")]
    caption = "Published numbers and ours with 95 % intervals (reproduction.csv has all columns)."
    return Table(caption, heads, rows, head=1)


def failures_table(bad: pd.DataFrame) -> Table:
    """Return the cells without a score, and why they have none."""
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
    titles = ("task", "activation", "seed", "status", "reason", "folder")
    heads = [Column(title, number=title == "seed") for title in titles]
    return Table(f"{counted(len(rows), 'cell')} without a score.", heads, rows, head=1)
