"""The files that join running and judging: their names, and writing them so that no reader sees half of one."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG, METRICS, RECORD, CHECKPOINT = "config.yaml", "metrics.csv", "record.json", "checkpoint.pt"
DAMAGED, GIVEN_UP = "checkpoint.damaged.pt", "checkpoint.given_up.pt"
CURVES, LOG, PICTURES, REPORT = "curves.npz", "log.txt", "pictures", "report"
CLASSES, CONFUSION = "classes.csv", "confusion.csv"
# what runner=check writes, in a folder of the study's that holds no cells
CHECKS, SUMMARY, SHEET = "check", "summary.txt", "contact_sheet.png"
LAST_COLUMNS = ("lr", "seconds", "samples_per_s")

TEMPORARY = ".{name}.{pid}.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` at the end, or vanishes on an error.

    A process killed at any moment leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid()))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a failed write, unlike a failed open, does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values``; numbers that are not finite become null, which JSON has a word for."""
    finite = {
        name: None if isinstance(value, float) and value - value != 0 else value
        for name, value in values.items()
    }
    write_text(path, json.dumps(finite, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` with a column for every name that occurs, in order of appearance; absent values are empty.

    What the training took stands last, behind the metrics of all splits.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in LAST_COLUMNS] + [c for c in LAST_COLUMNS if c in names]
    write_table(path, [columns, *([row.get(name) for name in columns] for row in rows)])


def write_table(path: Path, lines: Iterable[Iterable[object]]) -> None:
    """Write ``lines`` of values as they come; None is empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def read_json(path: Path) -> dict[str, Any] | None:
    """The values in ``path``, or None if there is no such file.

    Raises:
        ValueError: the file is there and is not what ``write_json`` writes.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged (no JSON object)")
    return values
