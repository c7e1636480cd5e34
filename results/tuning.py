"""Tuned settings: what is chosen for each activation, by validation alone, and how sensitive it is to them.

A *trial* is one choice of values for the settings that are tuned. Its cells have seeds of their own and belong to the study
``<study>-trials``; ``tuning.csv`` of the study itself has a row for each trial of each activation on each task, and
says which of them is chosen. Every activation of a task has the same trials. No test score of a trial is read here.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import pandas as pd

from results.collect import INCIDENTAL, add_labels, read_studies, setting_text
from results.escape import counted
from results.files import ADDED, DETERMINING, RECORD, TUNING, write_all
from results.metrics import METRICS, UNKNOWN
from results.packed import read_packed
from results.schema import COMMON, FINISHED, TUNED, is_missing, read_record

COLUMNS = {
    "task": "object",
    "activation": "object",
    "trial": "Int64",
    "settings": "object",
    "common": "bool",
    "metric": "object",
    "higher_is_better": "object",
    "val": "float",
    "val_low": "float",
    "val_high": "float",
    "n": "int",
    "diverged": "int",
    "failed": "int",
    "chosen": "bool",
    "tie": "bool",
    "on_edge": "object",
    "hours": "float",
    "trial_seeds": "object",
    "id": "object",
    "common_id": "object",
}
TESTS = "runner.test"  # differs between a trial and the reported cell with the same settings


def identity(values: Mapping[str, Any]) -> str:
    """Return a hash of all that determines a result but the seed, from a record or the row of a table of records.

    Cells with the same identity are seeds of one another. Trials have that of the reported cells with their settings.
    """
    kept = {name: setting_text(value) for name, value in values.items() if _identifies(name, value)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def _identifies(name: str, value: Any) -> bool:
    component, _, setting = str(name).partition(".")
    if is_missing(value) or name in (*INCIDENTAL, TESTS):
        return False
    if not setting:
        return component in ("activation", "task")
    default = name in ADDED and setting_text(value) == setting_text(ADDED[name])
    return component in DETERMINING and not default


def settings_of(text: str) -> dict[str, Any]:
    """Return the settings that ``results.files.words`` wrote, separated by spaces.

    Examples:
        >>> settings_of('task.recipe.lr=0.03 network.init="siren"')
        {'task.recipe.lr': 0.03, 'network.init': 'siren'}
    """
    return {name: json.loads(value) for name, _, value in (word.partition("=") for word in text.split(" "))}


def read_trial(cells: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """Return what the cells of a trial say of it: validation scores, failures and hours.

    Args:
        cells: the study of each, one for each seed, and its place there.

    Raises:
        ValueError: a cell that has not ended, or whose record is damaged.
    """
    records = []
    for study, place in cells:
        record = read_record(study / place / RECORD) or read_packed(study).get(place)
        if record is None or record["status"] not in (*FINISHED, "failed"):
            raise ValueError(f"{study / place}: the trial has not ended; the same command goes on with it")
        records.append(record)
    scores = [float(record["primary_val"]) for record in records if record["status"] == "ok"]
    said = next((record for record in records if record.get("primary_metric")), {})
    statuses = [record["status"] for record in records]
    return {
        "metric": said.get("primary_metric"),
        "higher_is_better": said.get("higher_is_better"),
        "val": float(np.mean(scores)) if scores else math.nan,
        "val_low": min(scores, default=math.nan),
        "val_high": max(scores, default=math.nan),
        "n": len(scores),
        "diverged": statuses.count("diverged"),
        "failed": statuses.count("failed"),
        "hours": sum(record.get("loop_seconds") or 0.0 for record in records) / 3600,
    }


def choose(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of an activation on a task with ``chosen``, ``tie`` and ``on_edge`` filled in.

    The best mean validation score is chosen, and of equal ones the first. A trial that lost a seed, because it diverged or
    failed, is worse than all that lost fewer; none is chosen if no seed has a score. A tie is within the metric's margin
    of the best.
    """
    rows = rows.assign(chosen=False, tie=False, on_edge="")
    trials = rows[rows["trial"].notna() & (rows["n"] > 0)]
    if trials.empty:
        return rows
    order = _ranked(trials)
    best = order.iloc[0]
    rows.loc[best.name, "chosen"] = True
    margin = METRICS.get(best["metric"], UNKNOWN).margin_at(best["val"])
    tied = (order["lost"] == best["lost"]) & (order["loss"] <= best["loss"] + margin)
    rows.loc[[index for index in order.index[tied] if index != best.name], "tie"] = True
    rows.loc[best.name, "on_edge"] = ", ".join(_edges(rows, settings_of(best["settings"])))
    return rows


def _ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return trials with ``lost``, the number of seeds without a score, and ``loss``, best first."""
    return trials.assign(lost=_lost(trials), loss=_loss(trials)).sort_values(["lost", "loss"], kind="stable")


def _edges(rows: pd.DataFrame, chosen: Mapping[str, Any]) -> Iterator[str]:
    for name, value in chosen.items():
        tried = [settings_of(text)[name] for text in rows["settings"][rows["trial"].notna()]]
        if all(map(is_number, tried)) and min(tried) < max(tried) and value in (min(tried), max(tried)):
            yield f"{name} {'lowest' if value == min(tried) else 'highest'}"


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lost(rows: pd.DataFrame) -> pd.Series:
    return rows["diverged"] + rows["failed"]


def _loss(rows: pd.DataFrame) -> pd.Series:
    """The mean validation score, turned so that lower is better."""
    return rows["val"] * np.where(rows["higher_is_better"].astype(bool), -1.0, 1.0)


def read_tuning(studies: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of ``tuning.csv`` in all of ``studies``; empty where none has such a file.

    Raises:
        ValueError: a damaged file, or activations of a task with other trials than the rest.
    """
    frames = [_read_file(path) for study in studies if (path := study / TUNING).exists()]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    check_equal(table)
    return table


def _read_file(path: Path) -> pd.DataFrame:
    try:
        names = dict.fromkeys(("settings", "trial_seeds", "id", "common_id"), str)  # some look like numbers
        table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
        if missing := [name for name in COLUMNS if name not in table]:
            raise ValueError(f"no column {missing[0]}")
        table = table[list(COLUMNS)].astype(COLUMNS)
        for text in table["settings"]:
            settings_of(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    return table.assign(on_edge=table["on_edge"].fillna(""))


def write_tuning(study: Path, rows: pd.DataFrame) -> None:
    """Write ``rows`` into the study's ``tuning.csv``, whose rows of other activations and tasks stay."""
    table = merged(read_tuning([study]), rows)[list(COLUMNS)]
    write_all({study / TUNING: table.to_csv(index=False).encode()})


def merged(before: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return ``rows``, and those of ``before`` that are of other activations or tasks.

    Raises:
        ValueError: two activations of a task would have other trials.
    """
    others = before[~before["common_id"].isin(rows["common_id"])]
    table = pd.concat([others, rows], ignore_index=True) if len(others) else rows.reset_index(drop=True)
    check_equal(table)
    return table


def check_equal(table: pd.DataFrame) -> None:
    """Check that all activations of a task have the same trials with the same seeds.

    Raises:
        ValueError: one has other trials, or more of them.
    """
    for task, of_task in table[table["trial"].notna()].groupby("task", sort=True):
        first: tuple[str, list[tuple[str, str]]] | None = None
        for _, rows in of_task.groupby("common_id", sort=False):
            activation = str(rows["activation"].iloc[0])
            trials = sorted(zip(rows["settings"], rows["trial_seeds"].astype(str), strict=True))
            first = first or (activation, trials)
            if trials != first[1]:
                had = [
                    f"{name} {counted(len(each), 'trial')} ({_named(each)})"
                    for name, each in (first, (activation, trials))
                ]
                raise ValueError(
                    f"{task}: {had[0]}, {had[1]}: all activations of a task must have the same trials; tune them in one "
                    "command, or choose another study=NAME"
                )


def _named(trials: Sequence[tuple[str, str]]) -> str:
    values = "; ".join(dict.fromkeys(settings for settings, _ in trials))
    return f"{values}; seeds {trials[0][1]}"


class Cells(NamedTuple):
    """The cells of studies.

    Attributes:
        records: with labels (``results.collect.add_labels``), and with ``recipe`` and ``common_id`` (``with_tuned``).
        tuning: the rows of ``tuning.csv``.
        left_out: number of cells with settings that were tried, and are not those chosen.
    """

    records: pd.DataFrame
    tuning: pd.DataFrame
    left_out: int


def read_labelled(studies: Sequence[Path]) -> Cells:
    """Read the cells of studies, with labels.

    Where settings were tuned, the name of a task ends with ``(tuned)`` in the rows of cells whose activation has the
    settings chosen for it. A cell is there twice if these are the settings of the common recipe.

    Raises:
        ValueError: as of ``results.collect.read_studies`` and ``read_tuning``.
    """
    records, tuning = read_studies(studies), read_tuning(studies)
    found = add_labels(with_tuned(records, tuning))
    return Cells(found, tuning, len(records) - found["folder"].nunique())


def with_tuned(records: pd.DataFrame, tuning: pd.DataFrame) -> pd.DataFrame:
    """Return the cells at the common recipe and then those with chosen settings, told apart by ``recipe``.

    ``common_id`` is the ``identity`` that a cell has, or would have, at the common recipe. The tuned settings of tuned
    cells are replaced by those of the common recipe, as they are no difference between activations. Cells with settings
    that were tried and not chosen, or are no longer, are left out.
    """
    if tuning.empty:
        return records.assign(recipe=COMMON, common_id=None)
    ids = [identity(row) for row in records.to_dict("records")]
    known = set(tuning["id"]) - set(tuning["common_id"])
    common = [(k, found) for k, found in enumerate(ids) if found not in known]
    chosen = tuning[tuning["chosen"]].drop_duplicates("id").set_index("id")["common_id"].to_dict()
    tuned = [(k, chosen[found]) for k, found in enumerate(ids) if found in chosen]
    table = records.iloc[[k for k, _ in (*common, *tuned)]].reset_index(drop=True)
    table["recipe"] = pd.Series([COMMON] * len(common) + [TUNED] * len(tuned), dtype=object)
    table["common_id"] = pd.Series([found for _, found in (*common, *tuned)], dtype=object)
    # the tuned settings as the common recipe has them
    settings = {row.common_id: settings_of(row.settings) for row in tuning[tuning["common"]].itertuples()}
    for name in dict.fromkeys(name for each in settings.values() for name in each):
        values = table[name].tolist() if name in table else [None] * len(table)
        for k, (_, found) in enumerate(tuned, start=len(common)):
            if name in settings.get(found, {}):
                value = settings[found][name]
                values[k] = json.dumps(value) if isinstance(value, list) else value
        table[name] = pd.Series(values, dtype=object)
    return table


@dataclass(frozen=True)
class GoodRange:
    """The values of a setting around the best one whose mean validation score cannot be told from the best.

    That is: it differs from the best mean by no more than the metric's margin, or by no more than the seeds at the best
    value differ from one another, whichever is more. Between trials the score is interpolated along the logarithm of
    the setting.

    Attributes:
        low, high: ends of the range.
        open_low, open_high: whether it reaches the lowest or highest value tried, and may be wider.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        """Return the width in powers of ten; a lower bound if an end is open."""
        return math.log10(self.high / self.low)

    @property
    def text(self) -> str:
        """Return the width as a table shows it, as in ``0.8`` or ``>= 0.8``."""
        return f"{'>= ' if self.open_low or self.open_high else ''}{self.decades:.2f}"


def good_range(curve: pd.DataFrame, margin: float | None = None) -> GoodRange | None:
    """Return the good range of a setting; None where it has no logarithm or no score.

    Args:
        curve: of ``profile``.
        margin: the largest difference that does not matter; None for the metric's own.
    """
    values = curve["value"].tolist()
    if len(values) < 2 or not all(is_number(value) and value > 0 for value in values):
        return None
    curve = curve.sort_values("value")
    loss = _loss(curve).where(_lost(curve) == 0).to_numpy(dtype=float)
    if np.isnan(loss).all():
        return None
    best = int(np.nanargmin(loss))
    row = curve.iloc[best]
    margin = METRICS.get(row["metric"], UNKNOWN).margin_at(row["val"], margin)
    worse = np.where(np.isnan(loss), math.inf, loss - loss[best])
    tolerance = max(margin, row["val_high"] - row["val_low"])
    x = np.log10(curve["value"].to_numpy(dtype=float))
    low, high = _reach(x[::-1], worse[::-1], len(x) - 1 - best, tolerance), _reach(x, worse, best, tolerance)
    return GoodRange(10**low, 10**high, bool(low == x[0]), bool(high == x[-1]))


def _reach(x: np.ndarray, worse: np.ndarray, start: int, tolerance: float) -> float:
    """Return how far from ``x[start]`` onwards ``worse`` stays within ``tolerance``."""
    k = start
    while k + 1 < len(x) and worse[k + 1] <= tolerance:
        k += 1
    if k + 1 == len(x) or math.isinf(worse[k + 1]):
        return float(x[k])
    return float(x[k] + (x[k + 1] - x[k]) * (tolerance - worse[k]) / (worse[k + 1] - worse[k]))


def profile(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return, for each value of a setting, the best of an activation's trials with it, in the order of the values."""
    trials = rows[rows["trial"].notna()]
    values = [settings_of(text)[name] for text in trials["settings"]]
    texts = [json.dumps(value) for value in values]  # lists cannot be compared
    table = trials.assign(value=pd.Series(values, index=trials.index, dtype=object), text=texts)
    table = _ranked(table).drop_duplicates("text")
    numbers = all(map(is_number, values))
    return table.sort_values("value" if numbers else "trial", kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class Tuned:
    """What a report says of tuned settings.

    Attributes:
        trials: rows of ``tuning.csv`` with ``task_label`` and ``activation_label``.
        activations: a row for each task and activation with both comparisons; the columns of ``report/tuned.csv``.
        ranges: good range by task, activation and setting, where there is one.
        hours: by task: of the trials, of the cells at the common recipe, and of those with chosen settings beside them.
        tuned_names: by task, the name of the task where each activation has the settings chosen for it.
        warnings: sentences on what must not be overlooked.
        notes: sentences on what is missing.
    """

    trials: pd.DataFrame
    activations: pd.DataFrame
    ranges: Mapping[tuple[str, str, str], GoodRange]
    hours: Mapping[str, tuple[float, float, float]]
    tuned_names: Mapping[str, str]
    warnings: Sequence[str]
    notes: Sequence[str]

    @property
    def sensitivity(self) -> pd.DataFrame:
        """The good ranges as a table, ``report/sensitivity.csv``."""
        rows = [
            (*key, found.low, found.high, found.open_low, found.open_high, found.decades)
            for key, found in self.ranges.items()
        ]
        return pd.DataFrame(rows, columns=list(RANGES))

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks on which settings were tuned."""
        return sorted(self.trials["task_label"].unique())

    @classmethod
    def of(cls, cells: Cells, table: pd.DataFrame, margin: float | None = None) -> "Tuned | None":
        """Compare both recipes; None where nothing was tuned.

        Args:
            cells: of ``read_labelled``.
            table: the leaderboard of the records.
            margin: as for ``good_range``.
        """
        records = cells.records
        common = records[records["recipe"] == COMMON]
        labels = common.drop_duplicates("common_id").set_index("common_id")[
            ["task_label", "activation_label"]
        ]
        trials = cells.tuning.join(labels, on="common_id", how="inner")
        if trials.empty:
            return None
        groups = [
            (str(task), str(activation), rows)
            for (task, activation), rows in trials.groupby(["task_label", "activation_label"], sort=True)
        ]
        names = _tuned_names(records, labels["task_label"])
        return cls(
            trials=trials,
            activations=pd.DataFrame([_both(*group, table, names[group[0]]) for group in groups]),
            ranges={key: found for group in groups for key, found in _ranges(*group, margin)},
            hours={
                str(task): _hours(records, str(task), names[str(task)], rows)
                for task, rows in trials.groupby("task_label")
            },
            tuned_names=names,
            warnings=[*_warnings(records, groups, names)],
            notes=[*_notes(groups, cells.left_out)],
        )


RANGES = ("task", "activation", "setting", "low", "high", "open_low", "open_high", "decades")
COMPARED = ("mean", "std", "n", "rank_low", "rank_high", "verdict")


def names_of(rows: pd.DataFrame) -> list[str]:
    """Return the settings that trials differ in, in the order of the command."""
    return list(dict.fromkeys(name for text in rows["settings"] for name in settings_of(text)))


def is_grid(rows: pd.DataFrame) -> bool:
    """Return whether the trials of an activation are all combinations of some values, and not single points."""
    trials = [settings_of(text) for text in rows["settings"][rows["trial"].notna()]]
    counts = [len({json.dumps(trial[name]) for trial in trials}) for name in names_of(rows)]
    return len(trials) == math.prod(counts)


def _ranges(
    task: str, activation: str, rows: pd.DataFrame, margin: float | None
) -> Iterator[tuple[tuple[str, str, str], GoodRange]]:
    """Yield good ranges; single points have none, as other settings differ between them as well."""
    for name in names_of(rows) if is_grid(rows) else ():
        if found := good_range(profile(rows, name), margin):
            yield (task, activation, name), found


def _both(
    task: str, activation: str, rows: pd.DataFrame, table: pd.DataFrame, tuned_name: str
) -> dict[str, Any]:
    """Return a row of ``Tuned.activations``."""
    tried, chosen = rows[rows["trial"].notna()], rows[rows["chosen"]]
    result: dict[str, Any] = {
        "task": task,
        "activation": activation,
        "trials": len(tried),
        "trial_seeds": tried["trial_seeds"].iloc[0],
        "settings": chosen["settings"].iloc[0] if len(chosen) else None,
        "val": chosen["val"].iloc[0] if len(chosen) else math.nan,
        "ties": int(tried["tie"].sum()),
        "on_edge": chosen["on_edge"].iloc[0] if len(chosen) else "",
        "trials_lost": int((_lost(tried) > 0).sum()),
        "hours": tried["hours"].sum(),
    }
    for recipe, label in ((COMMON, task), (TUNED, tuned_name)):
        of = table[(table["task"] == label) & (table["activation"] == activation)]
        result |= {f"{recipe}_{name}": of[name].iloc[0] if len(of) else None for name in COMPARED}
    return result


def _tuned_names(records: pd.DataFrame, labels: pd.Series) -> dict[str, str]:
    """Return ``Tuned.tuned_names``; ``labels`` are names of tasks by ``common_id``."""
    tuned = records[records["recipe"] == TUNED].drop_duplicates("common_id")
    names = dict(zip(tuned["common_id"].map(labels), tuned["task_label"], strict=True))
    return {task: f"{task} ({TUNED})" for task in labels} | names


def _hours(
    records: pd.DataFrame, task: str, tuned_name: str, rows: pd.DataFrame
) -> tuple[float, float, float]:
    common = records[records["task_label"] == task]
    tuned = records[(records["task_label"] == tuned_name) & ~records["folder"].isin(common["folder"])]
    seconds = (
        pd.to_numeric(cells["loop_seconds"]).sum() if "loop_seconds" in cells else 0.0
        for cells in (common, tuned)
    )
    at_common, at_tuned = (float(each) / 3600 for each in seconds)
    return float(rows["hours"].sum()), at_common, at_tuned


def _warnings(
    records: pd.DataFrame, groups: Sequence[tuple[str, str, pd.DataFrame]], tuned_names: Mapping[str, str]
) -> Iterator[str]:
    edges: dict[tuple[str, str, str], list[str]] = {}  # task, setting and end: activations
    for task, activation, rows in groups:
        for row in rows[rows["chosen"]].itertuples():
            for edge in filter(None, row.on_edge.split(", ")):
                name, _, side = edge.rpartition(" ")
                value = settings_of(row.settings)[name]
                edges.setdefault((task, name, f"the {side} tried ({value:g})"), []).append(activation)
    for (task, name, end), activations in edges.items():
        yield f"{task}: the best {name} of {', '.join(activations)} is {end}; better values may lie beyond it"
    for task in dict.fromkeys(task for task, _, _ in groups):
        tried = {
            seed for label, _, rows in groups if label == task for seed in rows["trial_seeds"].iloc[0].split()
        }
        cells = records[records["task_label"].isin([task, tuned_names[task]])]
        if both := sorted(tried & set(map(str, cells["seed"]))):
            yield f"{task}: seeds {', '.join(both)} are reported, and settings were chosen by them"


def _notes(groups: Sequence[tuple[str, str, pd.DataFrame]], left_out: int) -> Iterator[str]:
    if left_out:
        yield f"{counted(left_out, 'cell')} of the study with settings that were tried and not chosen: left out"
    for task, activation, rows in groups:
        tried = rows[rows["trial"].notna()]
        if not tried["chosen"].any():
            yield f"{task}: no trial of {activation} has a score, so no settings were chosen for it"
        for row in tried[_lost(tried) > 0].itertuples():
            lost = [
                f"{count} {word}"
                for word, count in (("diverged", row.diverged), ("failed", row.failed))
                if count
            ]
            yield f"{task}: {activation} with {row.settings}: {', '.join(lost)} of {counted(row.n + row.diverged + row.failed, 'seed')}"
