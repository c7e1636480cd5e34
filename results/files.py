"""The files that join running and judging: their names, and writing them so that no reader sees half of one."""

import csv
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

CONFIG, METRICS, RECORD, CHECKPOINT = "config.yaml", "metrics.csv", "record.json", "checkpoint.pt"
DAMAGED, GIVEN_UP = "checkpoint.damaged.pt", "checkpoint.given_up.pt"
CURVES, LOG, PICTURES, REPORT = "curves.npz", "log.txt", "pictures", "report"
EXAMPLES = "examples.npz"
WEIGHTS, BEST_WEIGHTS = "weights.pt", "weights_best.pt"
ONNX, BEST_ONNX = "network.onnx", "network_best.onnx"
CLASSES, CONFUSION = "classes.csv", "confusion.csv"
# what training a cell anew deletes, the record first
RESULTS = (
    *(RECORD, CHECKPOINT, METRICS, CLASSES, CONFUSION, CURVES, EXAMPLES),
    *(WEIGHTS, BEST_WEIGHTS, ONNX, BEST_ONNX),
)
# of loggers beside metrics.csv: event files of TensorBoard, and the folder of Weights & Biases
EVENTS, WANDB = "events.out.tfevents.*", "wandb"
HEARTBEAT = "heartbeat.json"  # only while the cell runs
# of a study: a file for each cell, never removed, whose lock its process holds; costs that its cells share
LOCKS, COSTS = ".locks", ".costs"
PAGE = "index.html"  # in REPORT
TUNING = "tuning.csv"  # of a study whose settings are tuned: every trial's score, and which of them is chosen
# what runner=check writes, in a folder of the study's that holds no cells
CHECKS, SUMMARY, SHEET = "check", "summary.txt", "contact_sheet.png"
LAST_COLUMNS = ("lr", "seconds", "samples_per_s")

TARGET = "activation._target_"
# of a cell's configuration: what determines its result, and what of that changes none
DETERMINING = ("activation", "task", "network", "runner", "seed")
NOT_DETERMINING = (
    "task.data.cache",
    "task.data.download",
    "task.data.in_memory",
    "task.data.max_left_out",
    "runner.cost",
    "runner.keep",
    "runner.pictures",
)

# Settings that cells of earlier versions do not have, and the values that stand for what those did: at such a value a
# setting is no part of an id, so that cells keep theirs.
ADDED = {
    "task.data.background": "[255, 255, 255]",
    "task.data.folds": None,
    "task.data.palette": None,
    "task.data.train": "quarter",
    "task.data.values": None,
    "task.primary": "mse",
    "network.activations": "[]",
    "network.gain": 1.0,
    "network.init": "torch",
    "network.omega": 30.0,
    "network.first_bias": None,
    "network.shared": "call",
    "runner.sync_batch_norm": True,
    "runner.test": True,
}

# Classes that have moved: a configuration with the new place has the id that it had with the old one.
MOVED = {
    f"activations.torch_nn.{name}": f"activations.torch_fused.{name}"
    for name in ("CELU", "ELU", "GELU", "Mish", "SELU", "Softplus", "Tanh")
}
_MOVED_FROM = {new: old for old, new in MOVED.items()}

# Where a cell is computed is in its record and no part of its id, in which these values, the defaults, stand for any.
WHERE = {"runner.device": "auto", "runner.threads": None}
ROOT = "task.data.root"

TEMPORARY = ".{name}.{pid}@{host}.tmp"
ABANDONED = 3600  # seconds after which a temporary file of another machine is nobody's


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names; lists, and numbers that JSON lacks, become text."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value)):
            values[f"{prefix}{name}"] = json.dumps(value)
        else:
            values[f"{prefix}{name}"] = value
    return values


def words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as arguments of a command line.

    Examples:
        >>> words({"task.recipe.lr": 0.03, "task.recipe.betas": [0.9, 0.99], "task.recipe.clip_norm": None})
        ['task.recipe.lr=0.03', 'task.recipe.betas=[0.9,0.99]', 'task.recipe.clip_norm=null']
    """
    return [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in settings.items()]


def facts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the result of a cell with this configuration, by dotted names.

    Raises:
        KeyError: a part of it is missing.
    """
    values = flat({key: config[key] for key in DETERMINING})
    if (target := values.get(TARGET)) in _MOVED_FROM:
        values[TARGET] = _MOVED_FROM[target]
    return {
        name: value
        for name, value in values.items()
        if name not in NOT_DETERMINING and (name not in ADDED or value != ADDED[name])
    }


def place_of(record: Mapping[str, Any]) -> str:
    """Return the folder of a record's cell in that of its study.

    Raises:
        KeyError: the record does not say it.
    """
    return f"{record['task']}/{record['activation']}/{record['seed']}-{record['cell']}"


def identity_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a cell among the facts of it: the same wherever it is computed.

    Examples:
        >>> identity_of({"activation.init": 0.1, "runner.threads": 4, "task.data.root": "./photos/"})
        {'activation.init': 0.1, 'runner.threads': None, 'task.data.root': 'photos'}
    """
    values = {name: WHERE.get(name, value) for name, value in facts.items()}
    if isinstance(root := values.get(ROOT), str):
        values[ROOT] = os.path.normpath(root)
    return values


def cell_folders(study: Path, packed: Iterable[str] = ()) -> list[Path]:
    """The folders of all cells that began, below ``study`` and sorted; names of components may have slashes.

    Args:
        packed: places of cells that have no folder any more.

    Raises:
        ValueError: no such folder, or no cell in it.
    """
    if not study.is_dir():
        raise ValueError(f"{study}: no such folder; a study is a folder under outputs/")
    folders = sorted({*find_cells(study), *(study / place for place in packed)})
    if not folders:
        raise ValueError(f"{study}: no cells in this folder")
    return folders


def find_cells(study: Path) -> Iterator[Path]:
    """Yield the folders of all cells that began, below ``study``."""
    names = {CONFIG, RECORD, METRICS, CHECKPOINT, HEARTBEAT}
    for root, folders, files in os.walk(study):
        folder = Path(root)
        if names & {*files} and len(folder.relative_to(study).parts) > 2:
            folders.clear()  # a logger may keep files of the same names in there
            yield folder


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that becomes ``path`` at the end, or vanishes on an error.

    A process killed at any moment leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid(), host=platform.node()))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a failed write, unlike a failed open, does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write several files, the first of them last; if one cannot be written, all of them stay as they were."""
    for folder in {path.parent for path in files}:
        remove_leftovers(folder)
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(atomic_write(path)).write_bytes(content)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; those of running ones stay.

    Where the writer cannot be asked for, as it ran on another machine, its file is left for an hour.
    """
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another has removed it
            if is_abandoned(path):
                path.unlink()


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that writes a temporary file is gone, as far as that can be known.

    Raises:
        FileNotFoundError: so is the file.
    """
    writer = re.fullmatch(r"\..*\.(\d+)@(.*)\.tmp", temporary.name)
    if writer and writer[2] == platform.node() and os.name == "posix":
        pid = int(writer[1])
        if pid != os.getpid() and not _is_running(pid):
            return True
    return age(temporary) > ABANDONED


def age(path: Path) -> float:
    """Seconds between the last change of a file and now.

    A change in the future is as old as it is far away: the clock was set back, and the file may be of any age.

    Raises:
        FileNotFoundError: no such file.
    """
    return abs(time.time() - path.stat().st_mtime)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with atomic_write(path) as temporary:
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
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged (no JSON object)")
    return values
