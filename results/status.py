"""Which cells of a study run, where, and how far they are; from the files alone, while they are written."""

import csv
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from results.escape import shown
from results.files import HEARTBEAT, LOCKS, METRICS, RECORD, age, cell_folders, read_json
from results.schema import FINISHED, RUNNING, STATUSES, read_record

# seconds without a heartbeat after which a cell on another machine counts as dead; they come every five
SILENT = 60.0
STALE = "stale"


@dataclass(frozen=True)
class State:
    """What a cell's files say of it.

    Attributes:
        folder: the cell's.
        status: ``running``; ``stale``, if its process is gone; else that of its record, ``failed`` if that is damaged.
        record: what its record holds; empty without one.
        beat: the heartbeat of a running or stale cell; ``age`` is in seconds.
    """

    folder: Path
    status: str
    record: Mapping[str, Any]
    beat: Mapping[str, Any]


def states(study: Path) -> list[State]:
    """The state of every cell of a study.

    Raises:
        ValueError: no such folder, or no cell in it.
    """
    return [state_of(study, folder) for folder in cell_folders(study)]


def state_of(study: Path, folder: Path) -> State:
    """The state of the cell in ``folder``."""
    status = "interrupted"
    record: dict[str, Any] = {}
    try:
        record = read_record(folder / RECORD) or {}
        status = str(record.get("status", status))
    except (ValueError, OSError):
        status = "failed"
    beat = heartbeat(folder)
    if beat is not None:
        here = beat.get("host") == platform.node()
        alive = is_held(study, folder) if here else beat["age"] < SILENT
        if alive or status not in FINISHED:
            status = RUNNING if alive else STALE
    return State(folder, status, record, beat or {})


def heartbeat(folder: Path) -> dict[str, Any] | None:
    """The heartbeat of a cell, with its ``age`` in seconds; None if there is none."""
    path = folder / HEARTBEAT
    try:
        silent = age(path)
        beat = read_json(path)
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        beat, silent = {}, SILENT
    return None if beat is None else beat | {"age": silent}


def is_held(study: Path, folder: Path) -> bool:
    """Whether a process of this machine holds the cell; asking takes its lock for an instant."""
    lock = cell_lock(study, folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def cell_lock(study: Path, folder: Path) -> FileLock:
    """The lock that a process holds while it trains the cell in ``folder``, which ends with the cell's id."""
    path = study / LOCKS / folder.name.rpartition("-")[2]
    path.parent.mkdir(exist_ok=True)
    return FileLock(path)


def last_score(state: State) -> str:
    """The primary metric, or the loss, of the last validation, as in ``top1=97.3``; empty before the first one."""
    try:
        with (state.folder / METRICS).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("split") == "val"]
    except (OSError, ValueError):
        return ""
    if not rows:
        return ""
    metric = state.record.get("primary_metric")
    name = metric if metric in rows[-1] else "loss"
    try:
        return f"{name}={float(rows[-1][name]):.4g}"
    except (KeyError, TypeError, ValueError):
        return ""


def seconds_left(beat: Mapping[str, Any]) -> float | None:
    """Seconds until a running cell has trained all epochs at its rate so far; None if that is not known."""
    try:
        total, done = beat["epochs"] * beat["steps"], beat["epoch"] * beat["steps"] + beat["step"]
        return (total - done) / beat["rate"] if beat["rate"] > 0 else None
    except (KeyError, TypeError):
        return None


def summary(study: Path, found: list[State]) -> str:
    """The study in a few lines: how many cells are in which state, and a line for each that runs or is stale."""
    counts = Counter(state.status for state in found)
    named = [f"{counts[name]} {name}" for name in (RUNNING, STALE, *STATUSES) if counts[name]]
    lines = [f"{study}: {len(found)} cell{'' if len(found) == 1 else 's'}: {', '.join(named)}"]
    active = [state for state in found if state.status in (RUNNING, STALE)]
    if active:
        head = ("cell", "where", "epoch", "steps/s", "left", "last validation", "heard")
        lines += _aligned([head, *map(_row, active)])
    return "\n".join(lines)


def _row(state: State) -> tuple[str, ...]:
    beat = state.beat
    task, *activation = state.folder.parts[-3:-1]
    name = " ".join(map(shown, (*activation, task, f"seed={state.folder.name.partition('-')[0]}")))
    if state.record:
        name = (
            f"{shown(state.record['activation'])} {shown(state.record['task'])} seed={state.record['seed']}"
        )
    where = f"{shown(beat.get('host', '?'))}:{beat.get('pid', '?')}"
    epoch = "starts"
    if "epoch" in beat:
        testing = beat["epoch"] == beat["epochs"]
        epoch = "test" if testing else f"{beat['epoch'] + 1}/{beat['epochs']}"
    rate = f"{beat['rate']:.3g}" if beat.get("rate") else ""
    left = seconds_left(beat)
    heard = f"{beat['age']:.0f} s ago" + (", its process is gone" if state.status == STALE else "")
    return name, where, epoch, rate, "" if left is None else duration(left), last_score(state), heard


def duration(seconds: float) -> str:
    """A time for readers.

    Examples:
        >>> duration(42), duration(600), duration(45000)
        ('42 s', '10 min', '12.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
