"""What a report says of tuned settings: both comparisons side by side, what tuning cost, and how it was done."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.collect import setting_text
from results.escape import counted, markdown, markdown_table
from results.leaderboard import number_format, rank_range
from results.parts import Column, Heading, Items, Table, Text, Value, formatted, value_of, verdict_value
from results.schema import COMMON, TUNED
from results.tuning import Tuned, names_of, settings_of

ABOUT = (
    "Every activation at the recipe that all have in common, and at the settings that are best for it: two comparisons, each "
    "with verdicts of its own. All activations of a task had the same trials. The best mean validation score decided, of seeds "
    "that are not reported; no test score of a trial exists. The good range is where the validation score cannot be told from the "
    "best one, in powers of ten: it differs by at most the margin, or by no more than the seeds at the best setting."
)
HEADS = (
    ("activation", "", False),
    ("common: rank", "ranks that the activation may have at the common recipe", True),
    ("mean", "of the test scores at the common recipe", True),
    ("verdict", "against the baseline, both at the common recipe", False),
    ("tuned: rank", "ranks that the activation may have, each at its own settings", True),
    ("mean", "of the test scores at the settings chosen", True),
    ("verdict", "against the baseline, each at its own settings", False),
    ("chosen", "settings with the best mean validation score", False),
    ("ties", "other trials within the margin of the best", True),
    ("on the edge", "the value chosen is the lowest or highest that was tried", False),
)


def tuning_parts(tuned: Tuned, label: Callable[[str], Markup]) -> list[Any]:
    """Return the parts of the page's section; ``label`` writes the name of an activation."""
    parts: list[Any] = [Text([ABOUT])]
    for task in tuned.tasks:
        parts += [Heading(task), Text([price(tuned, task)], "lead"), _table(tuned, task, label)]
    return [*parts, *([Items(tuned.notes)] if tuned.notes else [])]


def price(tuned: Tuned, task: str) -> str:
    """Return what was tried on a task, and what it took."""
    trials, common, chosen = tuned.hours[task]
    return (
        f"{_trials(tuned, task)} The trials took {_hours(trials)}; the cells at the common recipe {_hours(common)}, and those "
        f"at chosen settings {_hours(chosen)} more."
    )


def _trials(tuned: Tuned, task: str) -> str:
    rows = tuned.trials[(tuned.trials["task_label"] == task) & tuned.trials["trial"].notna()]
    first = rows[rows["common_id"] == rows["common_id"].iloc[0]]
    seeds = first["trial_seeds"].iloc[0].split()
    names = names_of(first)
    tried = {
        name: sorted({setting_text(settings_of(text)[name]) for text in first["settings"]}, key=_place)
        for name in names
    }
    named = (f"{name} ({', '.join(tried[name])})" for name in names)
    return (
        f"{counted(len(first), 'trial')} of {' and '.join(named)} for each activation, with "
        f"{counted(len(seeds), 'seed')} ({', '.join(seeds)})."
    )


def _place(text: str) -> tuple[float, str]:
    """Return by what values are sorted: numbers first, by their value."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 0.1 else f"{60 * hours:.2g} min"


def _table(tuned: Tuned, task: str, label: Callable[[str], Markup]) -> Table:
    rows = tuned.activations[tuned.activations["task"] == task]
    ranges = [name for of, _, name in tuned.ranges if of == task]
    settings = list(dict.fromkeys(ranges))
    form = _form(rows)
    columns = [
        *(Column(title, about, number) for title, about, number in HEADS),
        *(
            Column(
                f"good range of {_short(name)}", "decades; >= where it reaches an end of what was tried", True
            )
            for name in settings
        ),
        Column("trials' hours", "", True),
    ]
    cells = [
        [
            Value(label(row["activation"]), row["activation"]),
            *_side(row, COMMON, form),
            *_side(row, TUNED, form),
            value_of(_chosen(row["settings"])),
            value_of(row["ties"]),
            Value(", ".join(map(_short, row["on_edge"].split(", "))), css="worse" if row["on_edge"] else ""),
            *(_range(tuned, task, row["activation"], name) for name in settings),
            value_of(row["hours"], 2),
        ]
        for row in rows.sort_values(["tuned_rank_low", "common_rank_low"]).to_dict("records")
    ]
    return Table(
        f"{task}: at the common recipe, and tuned ({tuned.tuned_names[task]}).", columns, cells, head=0
    )


def _form(rows: pd.DataFrame) -> str:
    """Return how the scores of both sides of the table are written, so that they can be compared."""
    sides = [
        rows[[f"{side}_mean", f"{side}_std"]].set_axis(["mean", "std"], axis=1) for side in (COMMON, TUNED)
    ]
    return number_format(pd.concat(sides).astype(float))


def _side(row: dict[str, Any], recipe: str, form: str) -> Iterator[Value]:
    low, high = row[f"{recipe}_rank_low"], row[f"{recipe}_rank_high"]
    if low is None or math.isnan(low):
        yield from (Value("", math.inf), Value("", math.inf), Value(""))
        return
    yield Value(rank_range(int(low), int(high)), low + high / 1e4)
    yield formatted(float(row[f"{recipe}_mean"]), form)
    yield verdict_value(str(row[f"{recipe}_verdict"]))


def _chosen(settings: Any) -> str:
    """Return settings without the groups that they are in."""
    if not isinstance(settings, str):
        return "none"
    return ", ".join(f"{_short(name)}={value}" for name, value in settings_of(settings).items())


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _range(tuned: Tuned, task: str, activation: str, name: str) -> Value:
    found = tuned.ranges.get((task, activation, name))
    return Value(found.text, found.decades) if found else Value("", math.inf)


def to_markdown(tuned: Tuned) -> str:
    """Return the section of leaderboard.md."""
    lines = ["## Tuning", "", ABOUT, ""]
    lines += [f"- **{markdown(line)}**" for line in tuned.warnings]
    for task in tuned.tasks:
        table = _table(tuned, task, lambda name: Markup(name))
        lines += ["", f"### {markdown(task)}, common and tuned", "", markdown(price(tuned, task)), ""]
        heads = [markdown(column.title) for column in table.columns]
        align = "".join("r" if column.number else "l" for column in table.columns)
        lines += markdown_table(heads, align, ([markdown(value.text) for value in row] for row in table.rows))
    return "\n".join([*lines, "", *(f"- {markdown(line)}" for line in tuned.notes)])


def about_tuning(tuned: Tuned) -> Iterator[str]:
    """Yield paragraphs for a methods section, one for each task."""
    for task in tuned.tasks:
        yield (
            f"{tuned.tuned_names[task]}: as {task}, but each activation has the settings that were best for it in validation. "
            f"{_trials(tuned, task)} The settings with the best mean validation score at the last weights were chosen; seeds that "
            "diverged or failed made a trial worse than all that lost fewer. The seeds of the trials are not among those that "
            "are reported, and the test split was not evaluated in them."
        )
