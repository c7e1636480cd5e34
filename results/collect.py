"""Read what the cells of a study wrote, and tell apart what differs between them."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from results.files import CONFIG, METRICS, RECORD, read_json

ABSENT = "null"
UNKNOWN = "unknown"
# where and how a cell was computed: said in the report, but seeds may differ in it
INCIDENTAL = ("task.data.root", "runner.device", "runner.threads")
# where in a network an activation stands is told with the activation: that is what is compared
SITES = "network.sites"
# seeds that vary the split as well are never shown as if they did not
FOLDS = "task.data.folds"


def read_records(study: Path) -> pd.DataFrame:
    """One row per cell, whatever became of it; ``folder`` says where it is.

    A cell whose record cannot be read is a row with status ``failed`` and the reason.

    Raises:
        ValueError: no such folder, or no cell in it.
    """
    if not study.is_dir():
        raise ValueError(f"{study}: no such folder; a study is a folder under outputs/")
    records = []
    for config in sorted(study.glob(f"*/*/*/{CONFIG}")) + sorted(study.glob(f"*/*/*/{RECORD}")):
        folder = config.parent
        if config.name == CONFIG and (folder / RECORD).exists():
            continue
        task, activation, cell = folder.relative_to(study).parts
        seed = cell.partition("-")[0]
        try:
            record = read_json(folder / RECORD)
            reason = "no record"
        except ValueError as error:
            record, reason = None, str(error)
        if record is None or not {"activation", "task", "seed", "status"} <= record.keys():
            record = {"activation": activation, "task": task, "seed": int(seed) if seed.isdecimal() else seed}
            record |= {"status": "failed", "reason": reason}
        record.setdefault("network", UNKNOWN)
        records.append(record | {"folder": str(folder)})
    if not records:
        raise ValueError(f"{study}: no cells in this folder")
    return pd.DataFrame(records)


def read_metrics(folders: Iterable[str]) -> pd.DataFrame:
    """The metrics.csv of several cells below each other, with the cell's ``folder`` in a column."""
    frames = []
    for folder in folders:
        path = Path(folder) / METRICS
        if path.exists():
            try:
                frame = pd.read_csv(path)
            except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: damaged ({error})") from None
            frame.insert(0, "folder", folder)
            frames.append(frame)
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["folder", "epoch", "split"])
    )


def add_labels(records: pd.DataFrame) -> pd.DataFrame:
    """Add ``task_label`` and ``activation_label``: names that differ wherever configurations differ.

    Only cells with the same two labels may be seeds of one another. An activation that occurs with several
    settings gets those that vary behind its name, as in ``prelu[init=0.1]``, and so does one that stands at other
    sites; so does a task, to which all settings of task and runner belong. A task that occurs with several
    networks is named with each, as in ``cifar10 on resnet32``.
    """
    for incidental in (False, True):
        labelled = records.assign(
            activation_label=_labels(records, "activation", ("activation.", SITES), incidental),
            task_label=_labels(records, "task", ("task.", "runner."), incidental),
        )
        networks = _labels(records, "network", ("network.",), incidental)
        known = networks.where(networks != UNKNOWN)
        several = known.groupby(labelled["task_label"]).transform("nunique") > 1
        labelled.loc[several, "task_label"] += " on " + networks[several]
        if not labelled.duplicated(["task_label", "activation_label", "seed"]).any():
            break  # else the same seed was run in several ways: then these matter, too
    return labelled


def _labels(records: pd.DataFrame, name: str, prefixes: tuple[str, ...], incidental: bool) -> pd.Series:
    columns = [
        column
        for column in records.columns
        if column.startswith(prefixes)
        and (column != SITES or SITES in prefixes)
        and column.rpartition(".")[2] != "_partial_"
        and (incidental or column not in INCIDENTAL)
    ]
    shown = {column: [_shown(value) for value in records[column]] for column in columns}
    settings = pd.DataFrame(shown, index=records.index, dtype=object)
    labels = {}
    for value, group in settings.groupby(records[name].astype(str)):
        # a cell without any settings failed before it had them; it tells nothing of what varies
        known = group[(group != ABSENT).any(axis=1)]
        # what is compared with others at other sites says where it stands, though it is at one kind only
        varying = [c for c in columns if (settings if c == SITES else known)[c].nunique() > 1]
        for index, row in group.iterrows():
            told = varying if index in known.index else []
            telling = [c for c in columns if c in told or (c == FOLDS and row[c] != ABSENT)]
            given = [f"{column.partition('.')[2]}={row[column]}" for column in telling]
            labels[index] = f"{value}[{' '.join(given)}]" if given else str(value)
    return pd.Series(labels, dtype=object)


def _shown(value: object) -> str:
    """A setting's value in full: two that differ must not look the same, and none is a value as well."""
    if value is None or value != value:
        return ABSENT
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
