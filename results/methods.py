"""The text of a methods section, written from the settings in the records."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from results.collect import FOLDS
from results.escape import counted
from results.explain import head_of
from results.leaderboard import how_compared
from results.schema import is_missing

STATISTICS = (
    "All activations of a task are trained by the same recipe; a seed fixes initial weights, order of the data and "
    "augmentation, the same for every activation{splits}. Scores are those of the last weights on the test split, by which "
    "nothing is selected. Differences, of errors those of their logarithms, are paired by seed; each activation has a variance of its own, estimated from the residuals of the "
    "activation x seed layout, and Welch's degrees of freedom. Intervals of the differences to the baseline hold together with 95 % "
    "(Bonferroni over the comparisons of a table), and so do the sets of ranks (over all pairs). An activation is called equal to the "
    "baseline if its interval lies within the smallest difference that matters. A diverged seed counts as the worst score of "
    "its table; if all seeds diverged, their number is compared."
)


def methods(records: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """Yield a paragraph for each task, then one about the statistics."""
    for task, cells in records.groupby("task_label", sort=True):
        yield " ".join(_about(str(task), cells, table[table["task"] == task]))
    folds = FOLDS in records and records[FOLDS].notna().any()
    tested = ", and where there are folds the one that is tested on"
    yield STATISTICS.format(splits=tested if folds else "; splits do not depend on it")


def _about(task: str, cells: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    get = _getter(cells)
    head = head_of("task", str(cells["task"].iloc[0]))[:1]
    yield f"{task}: {head[0] if head else 'data of ' + str(get('task.data._target_') or 'an unknown source') + '.'}"
    data = _settings(cells, "task.data.", skip=("_target_", "cache", "download", "root", "in_memory"))
    if data:
        yield f"Settings of the data: {data}."
    shares = [
        f"{get(f'task.{part}_fraction')} for {words}"
        for part, words in (("val", "validation"), ("test", "the test"))
        if get(f"task.{part}_fraction") is not None
    ]
    if shares:
        yield f"Where the data have no split of their own, shares of {' and '.join(shares)} are held out."
    augment = sorted(
        {
            column.split(".")[2]
            for column in cells.columns
            if column.startswith("task.augment.") and column.count(".") > 2 and get(column) is not None
        }
    )
    yield f"Augmentation: {', '.join(augment) if augment else 'none'}."
    network = get("network") or "unknown"
    settings = _settings(cells, "network.", skip=("_target_", "_partial_", "path", "activations", "shared"))
    sites = get("sites")
    yield f"Network: {network}{f' ({settings})' if settings else ''}{f', {sites} activations' if sites else ''}."
    yield from _recipe(get)
    n = sorted(cells["seed"].map(str).unique(), key=lambda seed: (len(seed), seed))
    yield f"{counted(len(rows), 'activation')}, seeds {', '.join(n) if len(n) <= 12 else f'{n[0]} to {n[-1]} ({len(n)})'}."
    yield from how_compared(rows.iloc[0])


def _recipe(get: Callable[[str], Any]) -> Iterator[str]:
    optimizer = get("task.recipe.optimizer")
    if optimizer is None:
        return
    named = {"lr": "learning rate", "momentum": "momentum", "betas": "betas", "weight_decay": "weight decay"}
    parts = []
    for key, words in (named | {"clip_norm": "gradient norm clipped at"}).items():
        value = get(f"task.recipe.{key}")
        if value is not None and key != ("betas" if optimizer == "sgd" else "momentum"):
            parts.append(f"{words} {value}")
    yield f"Optimizer: {optimizer}, {', '.join(parts)}."
    epochs, steps = get("epochs"), get("steps")
    length = f"{epochs or get('task.recipe.epochs')} epochs" + (f" ({steps} steps)" if steps else "")
    yield f"{length} of batch size {get('task.recipe.batch_size')}."
    warmup = get("task.recipe.warmup")
    schedule = f"Schedule of the learning rate: {get('task.recipe.schedule')}"
    ramp = f", warm-up over {float(warmup):.0%} of the steps" if _is_positive(warmup) else ""
    yield f"{schedule}{ramp}."
    for key, words in (("label_smoothing", "Label smoothing"), ("mixup", "Mixup")):
        if _is_positive(get(f"task.recipe.{key}")):
            yield f"{words} {get(f'task.recipe.{key}')}."
    for key, words in (
        ("amp", "mixed precision"),
        ("limit_batches", "batches per pass limited to"),
        ("activation_only_epochs", "epochs in which activations alone are trained:"),
    ):
        value = get(f"runner.{key}")
        if value not in (None, "off", 0):
            yield f"{words.capitalize()} {value}."


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _getter(cells: pd.DataFrame) -> Callable[[str], Any]:
    """A function from a column to the one value of these cells, or all of them as text; None without any."""

    def get(column: str) -> Any:
        if column not in cells:
            return None
        known = [value for value in cells[column].unique() if not is_missing(value)]
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in known]
        return values[0] if len(values) == 1 else " or ".join(map(str, values)) or None

    return get


def _settings(cells: pd.DataFrame, prefix: str, skip: tuple[str, ...]) -> str:
    get = _getter(cells)
    found = ((column, get(column)) for column in cells.columns if column.startswith(prefix))
    return ", ".join(
        f"{column.removeprefix(prefix)} {value}"
        for column, value in found
        if value is not None and column.rpartition(".")[2] not in skip
    )
