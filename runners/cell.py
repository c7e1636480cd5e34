"""A cell: its identity, its folder, its record, and what becomes of it when something goes wrong."""

import hashlib
import json
import logging
import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from results.files import (
    CHECKPOINT,
    CLASSES,
    CONFIG,
    CONFUSION,
    CURVES,
    DAMAGED,
    GIVEN_UP,
    LOG,
    METRICS,
    PICTURES,
    RECORD,
    TEMPORARY,
    read_json,
    write_json,
    write_text,
)
from runners.words import one_line

DETERMINING = ("activation", "task", "network", "runner", "seed")
NOT_DETERMINING = (
    "task.data.cache",
    "task.data.download",
    "task.data.in_memory",
    "runner.pictures",
)  # these change no result
# newer than cells that are there: while null no part of an id, so that these keep theirs
ADDED = ("task.data.folds",)
FINISHED = ("ok", "diverged")
LOCK = ".lock"

log = logging.getLogger("actbench")


class Cell:
    """One training run: activation x task x seed x overrides.

    Its id is a hash of the resolved configuration without study and output folder, so the folder of a
    cell is known before it runs, and the same command always comes back to it.

    Args:
        config: the resolved configuration as plain dicts.
        activation, task, network: names for folders and tables.
        grid: whether this is one of many, so that a failure must not stop the others.

    Raises:
        ValueError: a seed, study or force that cannot be.
    """

    def __init__(
        self, config: dict[str, Any], *, activation: str, task: str, network: str, grid: bool = False
    ) -> None:
        self.config = config
        self.activation, self.task, self.network, self.grid = activation, task, network, grid
        self.seed, self.study, self.force = config["seed"], config["study"], config["force"]
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed}: a whole number of at least 0 is needed")
        if not isinstance(self.study, str) or not re.fullmatch(r"\w[\w.+-]*", self.study):
            raise ValueError(f"study={self.study}: letters, digits and . + - _ are legal in a folder's name")
        if not isinstance(self.force, bool):
            raise ValueError(f"force={self.force}: legal values are true, false")
        self.facts = {
            name: value
            for name, value in _flat({key: config[key] for key in DETERMINING}).items()
            if name not in NOT_DETERMINING
        }
        told = {name: value for name, value in self.facts.items() if name not in ADDED or value is not None}
        text = json.dumps([activation, task, told], sort_keys=True)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.study_folder = Path(config["outputs"]) / self.study
        self.folder = self.study_folder / task / activation / f"{self.seed}-{self.id}"
        self._record: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.activation} {self.task} seed={self.seed}"

    def finished(self) -> dict[str, Any] | None:
        """The record of an earlier run that needs no repeating, else None."""
        if self.force:
            return None
        record = read_json(self.folder / RECORD)
        return record if record and record.get("status") in FINISHED and self._check_same_config() else None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the cell's folder for this process alone, and log to its log.txt meanwhile.

        Raises:
            Busy: another process holds it.
            ValueError: the folder belongs to another configuration.
        """
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(f"{self}: another process is training it in {self.folder}") from None
        try:
            self._check_same_config()
            for leftover in self.folder.glob(TEMPORARY.format(name="*", pid="*")):
                leftover.unlink()
            with self._logging():
                yield
        finally:
            untouched = new and not self._record  # stopped before it began: leave no trace
            if untouched:
                (self.folder / LOG).unlink(missing_ok=True)
            lock.release()
            if untouched:
                (self.folder / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: others have moved in
                    for folder in new:
                        folder.rmdir()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """From here on the cell has a record; until it ends the record says ``interrupted``, which a kill makes true."""
        import yaml

        if self.force:
            self._set_aside()
        write_text(self.folder / CONFIG, yaml.safe_dump(self.config, sort_keys=False))
        self.write_record("interrupted", **facts)

    def write_record(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write record.json with ``facts`` added to what is known already."""
        if not self._record:
            self._record = {
                "activation": self.activation,
                "task": self.task,
                "network": self.network,
                "seed": self.seed,
                "cell": self.id,
                "study": self.study,
                "started": _now(),
                "command": shlex.join(["python", *sys.argv]),
            }
        self._record |= {"status": status, "reason": None, "written": _now()} | facts
        write_json(self.folder / RECORD, self._record | self.facts)
        return self._record

    def attempt(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """``work()``, which trains and returns the record; what it raises becomes the record's reason.

        Before training has begun, a single run that cannot be is only told so and leaves nothing behind. In a
        grid it is a row like any other, unless that row holds the result of an earlier run.
        """
        with self.opened():
            if record := self.finished():
                return record  # by another process, since we looked
            try:
                return work()
            except Exception as error:
                log.debug("traceback", exc_info=True)
                earlier = read_json(self.folder / RECORD) or {}
                if self._record or (self.grid and earlier.get("status") not in FINISHED):
                    self.write_record("failed", reason=one_line(error))
                raise

    def line(self, record: Mapping[str, Any], note: str = "") -> str:
        """One line that says what came out and where it is."""
        metric = record.get("primary_metric")
        score = record.get("primary")
        result = f"{metric}={score:.4g}" if score is not None else record["status"]
        if record.get("reason"):
            result += f" ({record['reason']})"
        return f"{self} {result} {self.folder}{note}"

    def _check_same_config(self) -> bool:
        """True; a folder whose config.yaml is not this cell's must not be added to."""
        path = self.folder / CONFIG
        if not path.exists():
            return True
        import yaml

        try:
            stored = yaml.load(
                path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
            there = _flat({key: stored[key] for key in DETERMINING})
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: damaged; remove the folder, or choose another study=NAME") from None
        for name in dict.fromkeys([*self.facts, *there]):
            if name not in NOT_DETERMINING and self.facts.get(name) != there.get(name):
                raise ValueError(
                    f"{path}: holds another configuration ({name}={there.get(name)} there, "
                    f"{self.facts.get(name)} now); remove the folder, or choose another study=NAME"
                )
        return True

    def _set_aside(self) -> None:
        """Make room for a fresh run; the record goes first, so that no kill leaves it beside other results."""
        for name in (RECORD, CHECKPOINT, METRICS, CLASSES, CONFUSION, CURVES):
            (self.folder / name).unlink(missing_ok=True)
        if (self.folder / DAMAGED).exists():  # stays for its owner, and blocks no more
            (self.folder / DAMAGED).replace(self.folder / GIVEN_UP)
        shutil.rmtree(self.folder / PICTURES, ignore_errors=True)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        handler = _LogFile(self.folder / LOG, delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            with suppress(OSError):
                handler.close()


class _LogFile(logging.FileHandler):
    """A log that cannot be written is no reason to fail; a full disk is told of by files that matter."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of opening it
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass  # of writing to it


class Busy(Exception):
    """Another process is training the same cell."""


class CellFailed(Exception):
    """A cell of a grid failed; said and recorded already, so all that is left is the exit status."""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names; lists, and numbers that JSON lacks, become text."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value)):
            flat[prefix + name] = json.dumps(value)
        else:
            flat[prefix + name] = value
    return flat


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
