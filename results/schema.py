"""What a record must hold, so that all who read one can rely on it."""

import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from results.files import read_json

STATUSES = ("ok", "diverged", "failed", "interrupted")
RUNNING = "running"  # in a table, of a cell whose record says interrupted so far
UNTESTED = (
    "untested"  # likewise, of one that is ok without an evaluation of its test split (runner.test=false)
)
# the recipe of a table: the same for all activations, or with the settings that were best for each (results.tuning)
COMMON, TUNED = "common", "tuned"
FINISHED = ("ok", "diverged")  # of a run that came to its end
# in a record and in each of its sessions: where and by what the numbers were computed
PROVENANCE = (
    "git_commit",
    "machine",
    "cpu",
    "platform",
    "python",
    "torch",
    "numpy",
    "device",
    "num_threads",
    "num_processes",
    "kernels",
)

# in a record: measured against the same network with ReLU
COSTS = ("step_ratio", "inference_ratio", "cost_floor", "saved_bytes", "peak_memory_mb")

Kind = tuple[str, Callable[[Any], bool]]  # in words, and whether a value is of it


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # It is neither nan nor a whole number that no float can hold.
    return number and abs(value) <= sys.float_info.max


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _is_session(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_scalar, value.values()))


TEXT: Kind = ("a name", _is_text)
NUMBER: Kind = ("a finite number", _is_number)
BOOL: Kind = ("true or false", lambda value: isinstance(value, bool))
WHOLE: Kind = (
    "a whole number of at least 0",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
STATUS: Kind = (f"one of {', '.join(STATUSES)}", lambda value: isinstance(value, str) and value in STATUSES)

ALWAYS: Mapping[str, Kind] = {"activation": TEXT, "task": TEXT, "seed": WHOLE, "status": STATUS}
IF_OK: Mapping[str, Kind] = {"primary": NUMBER, "primary_metric": TEXT, "higher_is_better": BOOL}
IF_THERE: Mapping[str, Kind] = {
    **IF_OK,
    "network": TEXT,
    "cell": TEXT,
    "reason": ("text", lambda value: isinstance(value, str)),
    "activation_code": TEXT,
    "data_fingerprint": TEXT,
    **dict.fromkeys(("primary_best", "primary_val", "parameters", "flops", "seconds_per_epoch"), NUMBER),
    **dict.fromkeys(COSTS, NUMBER),
    "sessions": (
        "a list of sessions",
        lambda value: isinstance(value, list) and all(map(_is_session, value)),
    ),
}
# all other values are told as they are
OTHERS: Kind = ("one value", _is_scalar)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in ``path``, or None if there is no such file.

    Raises:
        ValueError: the file is damaged, or a value in it is missing or not of its kind.
    """
    record = read_json(path)
    if record is not None:
        check_record(record, path)
    return record


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """Check what a record in ``path`` holds.

    Raises:
        ValueError: a value in it is missing or not of its kind.
    """
    needed = {**ALWAYS, **(IF_OK if record.get("status") == "ok" else {})}
    if record.get("runner.test") is False:
        needed.pop("primary", None)
    for name in {**needed, **record}:
        value = record.get(name)
        if name in needed or (name in IF_THERE and value is not None):
            words, fits = needed.get(name) or IF_THERE[name]
        else:
            words, fits = OTHERS
        if not fits(value):
            given = f"{name}={reprlib.repr(value)}" if name in record else f"no {name}"
            raise ValueError(f"{path}: damaged ({given}: {words} is needed)")


def is_missing(value: object) -> bool:
    """Whether a table's cell holds nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))
