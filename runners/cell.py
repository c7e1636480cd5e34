"""A cell: what identifies it, and what it writes into its folder."""

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import BaseFileLock, FileLock, Timeout

from activations.checks import check_bool, check_int
from results import files
from results.files import (
    facts_of,
    identity_of,
    read_json,
    remove_leftovers,
    write_csv,
    write_json,
    write_text,
)
from results.packed import read_packed
from results.schema import FINISHED, read_record
from runners import code
from runners.errors import format_error
from runners.heartbeat import Heartbeat
from runners.loggers import Loggers
from runners.logs import cell_log

LOCK_PATIENCE = 0.2  # seconds: whoever asks whether a cell runs holds its lock for an instant

log = logging.getLogger("actbench")


@dataclass(frozen=True)
class CellSpec:
    """What identifies a cell: activation x task x seed x overrides.

    The id is a hash of the names and of what determines the result in the configuration, without study and output
    folder, device and threads. So the folder of a cell is known before it runs, and the same command always comes back to
    it.

    Args:
        activation, task, network: names for folders and tables.
        seed: of data order, augmentation and initial weights.
        study_folder: where the cells of the study are.
        config: the resolved configuration as plain dicts; empty for a cell that was put together by hand.
        spellings: values to hash instead of those in ``config``, by dotted names: of ``lr=1`` and ``lr=1.0`` the same.

    Examples:
        >>> spec = CellSpec("relu", "digits", "small_cnn", seed=3, study_folder=Path("outputs/main"))
        >>> spec.folder.parent.as_posix()
        'outputs/main/digits/relu'
        >>> str(spec)
        'relu digits seed=3'
    """

    activation: str
    task: str
    network: str
    seed: int
    study_folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    spellings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        activation: str,
        task: str,
        network: str,
        spellings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make the spec of a resolved configuration.

        Raises:
            ValueError: an illegal seed, study or folder.
        """
        check_int("seed", config["seed"], minimum=0)
        return cls(activation, task, network, config["seed"], study_folder(config), config, spellings or {})

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What determines the result of the cell, by dotted names."""
        return facts_of(self.config) if self.config else {}

    @cached_property
    def id(self) -> str:
        """Hash of names and identity; that of all ``facts``, as it was once, if the study has a cell of that id."""
        spelled = {name: self.spellings.get(name, value) for name, value in self.facts.items()}
        now = self._hash(identity_of(spelled))
        before = self._hash(self.facts)
        return before if before != now and self._has(self._place(before)) else now

    def _hash(self, facts: Mapping[str, Any]) -> str:
        text = json.dumps([self.activation, self.task, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def _place(self, id_: str) -> str:
        return f"{self.task}/{self.activation}/{self.seed}-{id_}"

    def _has(self, place: str) -> bool:
        """Whether the study has a cell in this place."""
        return (self.study_folder / place).exists() or place in read_packed(self.study_folder)

    @property
    def place(self) -> str:
        """The folder of the cell in that of its study."""
        return self._place(self.id)

    @property
    def folder(self) -> Path:
        """The folder of the cell."""
        return self.study_folder / self.place

    def __str__(self) -> str:
        return f"{self.activation} {self.task} seed={self.seed}"


class Cell:
    """The folder of one training run: lock, record and log, and what happens to them when something goes wrong.

    Args:
        spec: what identifies the cell.
        force: train again although the cell is finished.
        grid: whether this is one cell of many, so that a failure must not stop the others.
        caller: the Python call that asks for the cell, for its record; warnings then go to the caller's logging. None for
            the command line.
        source: the activation's class or function, if it was passed and not looked up by its ``_target_``.

    Raises:
        ValueError: ``force`` is not true or false.
    """

    def __init__(
        self,
        spec: CellSpec,
        *,
        force: bool = False,
        grid: bool = False,
        caller: str | None = None,
        source: Callable[..., Any] | None = None,
    ) -> None:
        check_bool("force", force)
        self.spec, self.folder = spec, spec.folder
        self.force, self.grid, self.caller, self.source = force, grid, caller, source
        self.heartbeat = Heartbeat(self.folder)
        self.loggers = Loggers()
        self._record: dict[str, Any] = {}

    def __str__(self) -> str:
        return str(self.spec)

    @property
    def started(self) -> bool:
        """Whether this object, and no earlier run or other process, has written the cell's record."""
        return bool(self._record)

    @property
    def activation_code(self) -> str | None:
        """Hash of the activation's code as it is now; None if it cannot be found."""
        if self.source is not None and not code.is_importable(self.source):
            return code.compiled_hash(self.source)
        targets = code.targets_of(self.spec.config.get("activation"))
        # Every activation depends on the contract, whichever way its file imports that.
        return code.code_hash((*targets, code.CONTRACT), code.ACTIVATIONS) if targets else None

    @property
    def harness_code(self) -> str | None:
        """Hash of the code of runner, task and network as it is now; only activations call compiled kernels."""
        parts = {name: self.spec.config.get(name) for name in ("runner", "task", "network")}
        return code.code_hash(code.targets_of(parts), code.HARNESS, compiled=False)

    def completed_record(self) -> dict[str, Any] | None:
        """Return the record of an earlier run that need not be repeated, else None.

        Raises:
            ValueError: the record is damaged, the folder belongs to another configuration, or the activation's code has
                changed since.
        """
        if self.force:
            return None
        try:
            record = read_record(self.folder / files.RECORD)
        except ValueError as error:
            raise ValueError(f"{error}; force=true trains this cell again") from None
        if record is None:  # what was packed is published, whatever has become of the code
            return read_packed(self.spec.study_folder).get(self.spec.place)
        if record["status"] not in FINISHED:
            return None
        self._require_same_config()
        before, now = record.get("activation_code"), self.activation_code
        if before and now and before.startswith(code.SCHEME) and before != now:
            path = code.file_of(self.spec.config["activation"]["_target_"]) or "in no file"
            raise ValueError(
                f"{self}: the activation's code ({path}, or what it imports) has changed since this cell was trained "
                f"in {self.folder}; force=true trains it again"
            )
        return record

    def earlier(self) -> dict[str, Any]:
        """Return the record of an earlier run, whatever its status; empty if there is none.

        Raises:
            ValueError: it is damaged, which does not matter to ``force``.
        """
        try:
            return read_json(self.folder / files.RECORD) or {}
        except ValueError:
            if self.force:
                return {}
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cell's folder for this process alone, and log to its log.txt meanwhile.

        Raises:
            CellLockedError: another process holds it.
            ValueError: the folder belongs to another configuration.
        """
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        lock = self._acquire_lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._require_same_config()
            for leftover in self.folder.glob(".*.tmp"):  # no other process writes here
                leftover.unlink()
            # Other processes may be writing in these.
            for shared in (self.folder / files.PICTURES, self.spec.study_folder / files.COSTS):
                remove_leftovers(shared)
            with cell_log(self.folder / files.LOG, to_caller=self.caller is not None), self.heartbeat:
                yield
        finally:
            if new and not self.started:  # stopped before training began: leave no trace
                (self.folder / files.LOG).unlink(missing_ok=True)
                # A folder that is not empty stays: the study's, or one in which another process has put files.
                with suppress(OSError):
                    for folder in new:
                        folder.rmdir()
            lock.release()

    def _acquire_lock(self) -> BaseFileLock:
        """Return the lock of the cell, acquired.

        Its file is never removed, so it does not lie in the cell's folder, which may be: a process that opened the
        file before it was removed would hold that lock while the next one holds another.
        """
        path = self.spec.study_folder / files.LOCKS / self.spec.id
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout:
            raise CellLockedError(f"{self}: another process is training it in {self.folder}") from None
        return lock

    def cost_file(self, depends: Mapping[str, Any]) -> Path:
        """Return the file with the measured cost of all cells that agree in ``depends``."""
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{self.spec.task}-{self.spec.activation}-{key}.json".replace("/", "-")
        return self.spec.study_folder / files.COSTS / name

    def mark_started(self, facts: Mapping[str, Any]) -> None:
        """Write the first record, which says ``interrupted`` until the run ends: if it is killed, that is true."""
        import yaml

        if self.force:
            self._delete_previous_outputs()
        write_text(self.folder / files.CONFIG, yaml.safe_dump(dict(self.spec.config), sort_keys=False))
        self.write_record("interrupted", **facts)

    def write_record(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write record.json and return its content.

        Args:
            status: one of ``results.schema.STATUSES``.
            facts: are added to those of earlier calls.
        """
        if not self._record:
            self._record = {
                "activation": self.spec.activation,
                "task": self.spec.task,
                "network": self.spec.network,
                "seed": self.spec.seed,
                "cell": self.spec.id,
                "study": self.spec.study_folder.name,
                "started": _now(),
                "command": self.caller or shlex.join(["python", *sys.argv]),
            }
        self._record |= {"status": status, "reason": None, "written": _now()} | facts
        if status in FINISHED:  # from now on nobody takes the lock again and cleans up
            self.heartbeat.end()
        write_json(self.folder / files.RECORD, self._record | self.spec.facts)
        return self._record

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv with all ``rows`` of the run, and pass new ones on to the loggers."""
        write_csv(self.folder / files.METRICS, rows)
        self.loggers.write(rows)

    def run(self, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call ``train``, which trains the cell and returns its record; an error becomes the reason of a failed record.

        If a single run fails before training starts, only the message is printed and no folder is left. In a grid the
        failure is recorded, unless the result of an earlier run is there.

        Raises:
            CellLockedError: another process holds the cell.
            Exception: what ``train`` raises.
        """
        with self.locked():
            if record := self.completed_record():
                return record  # another process has finished it since the caller looked
            try:
                return train()
            except ProcessLostError as error:
                if self.started:
                    self.write_record("interrupted", reason=str(error))
                raise
            except Exception as error:
                log.debug("traceback", exc_info=True)
                if self.started or (self.grid and self.earlier().get("status") not in FINISHED):
                    self.write_record("failed", reason=format_error(error))
                raise
            finally:
                self.loggers.end(self._record)

    def summary(self, record: Mapping[str, Any], note: str = "") -> str:
        """Return one line with the score, or the reason why there is none, and the folder."""
        metric = record.get("primary_metric")
        if (score := record.get("primary")) is not None:
            result = f"{metric}={score:.4g}"
        elif (score := record.get("primary_val")) is not None:  # with runner.test=false
            result = f"val {metric}={score:.4g}"
        else:
            result = record["status"]
        if record.get("reason"):
            result += f" ({record['reason']})"
        return f"{self} {result} {self.folder}{note}"

    def _require_same_config(self) -> None:
        """Raise ValueError if the folder holds the config.yaml of another cell."""
        path = self.folder / files.CONFIG
        if not path.exists():
            return
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            before = identity_of(facts_of(yaml.load(path.read_text(encoding="utf-8"), loader)))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
            raise ValueError(f"{path}: damaged; remove the folder, or choose another study=NAME") from None
        now = identity_of(self.spec.facts)
        for name in dict.fromkeys([*now, *before]):
            if now.get(name) != before.get(name):
                raise ValueError(
                    f"{path}: holds another configuration ({name}={before.get(name)} there, {now.get(name)} now); "
                    "remove the folder, or choose another study=NAME"
                )

    def _delete_previous_outputs(self) -> None:
        """Delete the results of an earlier run, the record first: a kill never leaves it beside other results."""
        for name in files.RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        damaged = self.folder / files.DAMAGED
        if damaged.exists():  # It stays for the user under a name that no longer blocks the cell.
            damaged.replace(self.folder / files.GIVEN_UP)
        for events in self.folder.glob(files.EVENTS):
            events.unlink()
        for folder in (files.PICTURES, files.WANDB):
            shutil.rmtree(self.folder / folder, ignore_errors=True)


class CellLockedError(RuntimeError):
    """Another process is training the same cell."""


class ProcessLostError(ConnectionError):
    """Another of the processes that train a cell together has ended.

    Args:
        size: number of processes.
        message: what it said, if it ended by an error; then it has printed that itself.
    """

    def __init__(self, size: int, message: str | None = None) -> None:
        why = message or "it was killed, or its machine was lost"
        super().__init__(
            f"another of the {size} processes has ended ({why}); the same command resumes the cell"
        )


class CellFailedError(Exception):
    """A cell of a grid failed, which has been printed and recorded; all that is left is the exit status."""


def study_folder(config: Mapping[str, Any]) -> Path:
    """Return the folder of a configuration's study, ``<outputs>/<study>``.

    Raises:
        ValueError: a study or outputs that is not the name of a folder.
    """
    outputs, study = (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else value  # study=2024
        for value in (config["outputs"], config["study"])
    )
    if not isinstance(study, str) or not re.fullmatch(r"\w[\w.+-]*", study):
        raise ValueError(f"study={study}: must consist of letters, digits and . + - _")
    if not isinstance(outputs, str) or not outputs.strip():
        raise ValueError(f"outputs={'null' if outputs is None else outputs}: must be the name of a folder")
    return Path(outputs).expanduser() / study


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
