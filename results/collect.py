"""Read what the cells of a study wrote, and tell apart what differs between them."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from results.files import CONFIG, METRICS, RECORD, read_json

UNINFORMATIVE = ("_partial_",)


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
            frame = pd.read_csv(path)
            frame.insert(0, "folder", folder)
            frames.append(frame)
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["folder", "epoch", "split"])
    )


def add_labels(records: pd.DataFrame) -> pd.DataFrame:
    """Add ``task_label`` and ``activation_label``: names that differ wherever configurations differ.

    Only cells with the same two labels may be seeds of one another. An activation that occurs with several
    settings gets those that vary behind its name, as in ``prelu[init=0.1]``; so does a task, to which all
    settings of task and runner belong.
    """
    records = records.copy()
    records["activation_label"] = _labels(records, "activation", ("activation.",))
    records["task_label"] = _labels(records, "task", ("task.", "runner."))
    return records


def _labels(records: pd.DataFrame, name: str, prefixes: tuple[str, ...]) -> pd.Series:
    columns = [
        column
        for column in records.columns
        if column.startswith(prefixes) and column.rpartition(".")[2] not in UNINFORMATIVE
    ]
    labels = records[name].astype(str)
    for _, group in records.groupby(name):
        # a cell without settings failed before it had any; it tells nothing of what varies
        known = group[group[columns].notna().any(axis=1)] if columns else group.iloc[:0]
        varying = [column for column in columns if known[column].astype(str).nunique() > 1]
        for index, row in known.iterrows():
            settings = " ".join(f"{c.partition('.')[2]}={_shown(row[c])}" for c in varying)
            if settings:
                labels[index] = f"{row[name]}[{settings}]"
    return labels


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
