"""A cell: its identity, its folder, its record, and what becomes of it when something goes wrong."""

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from filelock import BaseFileLock, FileLock, Timeout

from results.files import (
    BEST_WEIGHTS,
    CHECKPOINT,
    CLASSES,
    CONFIG,
    CONFUSION,
    COSTS,
    CURVES,
    DAMAGED,
    GIVEN_UP,
    LOCKS,
    LOG,
    METRICS,
    PICTURES,
    RECORD,
    WEIGHTS,
    facts_of,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from results.schema import FINISHED, read_record
from runners.code import (
    ACTIVATIONS,
    CONTRACT,
    HARNESS,
    SCHEME,
    code_hash,
    compiled_hash,
    file_of,
    is_importable,
    targets_of,
)
from runners.heartbeat import Heartbeat
from runners.words import one_line

LOCK_PATIENCE = 0.2  # seconds: whoever asks whether a cell runs holds its lock for an instant

log = logging.getLogger("actbench")


class Cell:
    """One training run: activation x task x seed x overrides.

    Its id is a hash of the resolved configuration without study and output folder, so the folder of a
    cell is known before it runs, and the same command always comes back to it.

    Args:
        config: the resolved configuration as plain dicts.
        activation, task, network: names for folders and tables.
        grid: whether this is one of many, so that a failure must not stop the others.
        caller: the Python call that asks for the cell, for its record; warnings then go to the caller's logging. None if
            it is the command line.
        source: the activation's class or function, if it was given and not looked up by its ``_target_``.

    Raises:
        ValueError: a seed, study, folder or force that cannot be.
    """

    def __init__(
        self,
        config: dict[str, Any],
        *,
        activation: str,
        task: str,
        network: str,
        grid: bool = False,
        caller: str | None = None,
        source: Callable[..., Any] | None = None,
    ) -> None:
        self.config, self.caller, self.source = config, caller, source
        self.activation, self.task, self.network, self.grid = activation, task, network, grid
        self.seed, self.force = config["seed"], config["force"]
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed}: a whole number of at least 0 is needed")
        if not isinstance(self.force, bool):
            raise ValueError(f"force={self.force}: legal values are true, false")
        self.facts = facts_of(config)
        self.id = hashlib.sha256(
            json.dumps([activation, task, self.facts], sort_keys=True).encode()
        ).hexdigest()[:10]
        self.study_folder = study_folder(config)
        self.folder = self.study_folder / task / activation / f"{self.seed}-{self.id}"
        self.heartbeat = Heartbeat(self.folder)
        self._record: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.activation} {self.task} seed={self.seed}"

    @property
    def activation_code(self) -> str | None:
        """Hash of the activation's code as it is now; None if it cannot be found."""
        if self.source is not None and not is_importable(self.source):
            return compiled_hash(self.source)
        targets = targets_of(self.config["activation"])
        # every activation is of the contract, whichever way its file imports that
        return code_hash((*targets, CONTRACT), ACTIVATIONS) if targets else None

    @property
    def harness_code(self) -> str | None:
        """Hash of the code of runner, task and network as it is now."""
        parts = {name: self.config[name] for name in ("runner", "task", "network")}
        return code_hash(targets_of(parts), HARNESS)

    def finished(self) -> dict[str, Any] | None:
        """The record of an earlier run that needs no repeating, else None.

        Raises:
            ValueError: the record is damaged, or the activation's code has changed since.
        """
        if self.force:
            return None
        record = read_record(self.folder / RECORD)
        if record is None or record["status"] not in FINISHED or not self._check_same_config():
            return None
        before, now = record.get("activation_code"), self.activation_code
        if before and now and before.startswith(SCHEME) and before != now:
            path = file_of(self.config["activation"]["_target_"]) or "in no file"
            raise ValueError(
                f"{self}: the activation's code ({path}, or what it imports) has changed since this cell was trained "
                f"in {self.folder}; force=true trains it again"
            )
        return record

    def earlier(self) -> dict[str, Any]:
        """The record of an earlier run, however that ended; empty without one."""
        return read_json(self.folder / RECORD) or {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the cell's folder for this process alone, and log to its log.txt meanwhile.

        Raises:
            Busy: another process holds it.
            ValueError: the folder belongs to another configuration.
        """
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        lock = self._locked()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_same_config()
            for leftover in self.folder.glob(".*.tmp"):  # nobody else writes here
                leftover.unlink()
            remove_leftovers(self.folder / PICTURES)  # but here a figure may be drawn just now
            with self._logging(), self.heartbeat:
                yield
        finally:
            if new and not self._record:  # stopped before it began: leave no trace
                (self.folder / LOG).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: the study's folder, and what others have moved into
                    for folder in new:
                        folder.rmdir()
            lock.release()

    def _locked(self) -> BaseFileLock:
        """The lock of the cell, acquired.

        Its file is never removed, so it does not lie in the cell's folder, which may be: a process that opened the
        file before it was removed would hold that lock while the next one holds another.
        """
        path = self.study_folder / LOCKS / self.id
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout:
            raise Busy(f"{self}: another process is training it in {self.folder}") from None
        return lock

    def cost_file(self, depends: Mapping[str, Any]) -> Path:
        """Where the measured cost of all cells is kept that agree in ``depends``."""
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]
        return self.study_folder / COSTS / f"{self.task}-{self.activation}-{key}.json".replace("/", "-")

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
                "study": self.study_folder.name,
                "started": _now(),
                "command": self.caller or shlex.join(["python", *sys.argv]),
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
                if self._record or (self.grid and self.earlier().get("status") not in FINISHED):
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
            there = facts_of(
                yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            )
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
            raise ValueError(f"{path}: damaged; remove the folder, or choose another study=NAME") from None
        for name in dict.fromkeys([*self.facts, *there]):
            if self.facts.get(name) != there.get(name):
                raise ValueError(
                    f"{path}: holds another configuration ({name}={there.get(name)} there, "
                    f"{self.facts.get(name)} now); remove the folder, or choose another study=NAME"
                )
        return True

    def _set_aside(self) -> None:
        """Make room for a fresh run; the record goes first, so that no kill leaves it beside other results."""
        for name in (RECORD, CHECKPOINT, METRICS, CLASSES, CONFUSION, CURVES, WEIGHTS, BEST_WEIGHTS):
            (self.folder / name).unlink(missing_ok=True)
        if (self.folder / DAMAGED).exists():  # stays for its owner, and blocks no more
            (self.folder / DAMAGED).replace(self.folder / GIVEN_UP)
        shutil.rmtree(self.folder / PICTURES, ignore_errors=True)

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Everything goes to log.txt; warnings go to the terminal, or with all else that the caller wants to the caller."""
        level, propagate = log.level, log.propagate
        handler = _LogFile(self.folder / LOG, delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        others = _Terminal() if self.caller is None else _Caller(log.getEffectiveLevel())
        log.addHandler(handler)
        log.addHandler(others)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.removeHandler(others)
            log.setLevel(level)
            log.propagate = propagate
            with suppress(OSError):
                handler.close()


class _LogFile(logging.FileHandler):
    """A log that cannot be written is no reason to fail; a full disk is told of by files that matter."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of opening it
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass  # of writing to it


class _Terminal(logging.StreamHandler):
    """Warnings on stderr, each once: the cells of a grid share data and so have the same to say."""

    seen: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("actbench: %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        first = message not in self.seen
        self.seen.add(message)
        return first


class _Caller(logging.Handler):
    """What the logger would have handed on, had its level stayed as it was."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.parent is not None:
            log.parent.handle(record)


class Busy(RuntimeError):
    """Another process is training the same cell."""


class CellFailed(Exception):
    """A cell of a grid failed; said and recorded already, so all that is left is the exit status."""


def study_folder(config: Mapping[str, Any]) -> Path:
    """The folder of a configuration's study, ``<outputs>/<study>``.

    Raises:
        ValueError: a study or outputs that name no folder.
    """
    outputs, study = (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else value  # study=2024
        for value in (config["outputs"], config["study"])
    )
    if not isinstance(study, str) or not re.fullmatch(r"\w[\w.+-]*", study):
        raise ValueError(f"study={study}: letters, digits and . + - _ are legal in a folder's name")
    if not isinstance(outputs, str) or not outputs.strip():
        raise ValueError(f"outputs={'null' if outputs is None else outputs}: the name of a folder is needed")
    return Path(outputs).expanduser() / study


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
