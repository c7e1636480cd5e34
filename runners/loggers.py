"""Loggers that follow metrics.csv: TensorBoard, Weights & Biases, or a class of the user's.

Each file in conf/logger/ names one. metrics.csv stays the truth: a report reads nothing that a logger writes, and what a
logger lacks at the start of a session it receives again.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from activations.checks import check_choice
from results.files import EVENTS, WANDB
from runners.composed import check_component

if TYPE_CHECKING:
    from runners.cell import CellSpec

Row = Mapping[str, Any]

Mode = Literal["online", "offline", "disabled"]
SCALARS = (bool, int, float, str)
UPLOAD = 300.0  # seconds that a cell waits at its end until its last rows are uploaded

log = logging.getLogger("actbench")


class Logger:
    """What a class that conf/logger/ names must do; its settings are arguments of its constructor.

    Whatever a method raises ends this logger with a warning, and the cell goes on.
    """

    def begin(self, spec: "CellSpec", started: str, rows: Sequence[Row]) -> None:
        """Start a session, or continue the run of an earlier one.

        Args:
            spec: names, seed, settings (``facts``) and ``folder`` of the cell.
            started: when the first session of the run started. It tells the runs of a cell from each other: a session
                that resumes one has the same, and one that trains the cell anew another.
            rows: of earlier sessions. ``write`` is called for each of them, and then for new ones.
        """
        raise NotImplementedError

    def write(self, number: int, row: Row) -> None:
        """Log a row of metrics.csv.

        Args:
            number: of the row, from 0.
            row: column -> value, without those that are empty. ``epoch`` is the number of the epoch from 0, ``split``
                is train, val or test.
        """
        raise NotImplementedError

    def end(self, record: Mapping[str, Any]) -> None:
        """End the session. ``record`` is the content of record.json, without settings; empty if there is none."""
        raise NotImplementedError


class Loggers:
    """The loggers of a cell. None of them can end the cell, or change a number that it computes.

    Args:
        loggers: name -> logger.
    """

    def __init__(self, loggers: Mapping[str, Logger] | None = None) -> None:
        self.waiting, self.active = dict(loggers or {}), dict[str, Logger]()
        self._written = 0

    def begin(self, spec: "CellSpec", started: str, rows: Sequence[Row]) -> None:
        """Begin a session and log the rows of earlier ones; see ``Logger.begin``."""
        self.active, self.waiting = self.waiting, {}
        self._call("begin", spec, started, rows)
        self.write(rows)

    def write(self, rows: Sequence[Row]) -> None:
        """Log those of all ``rows`` that are new."""
        for number in range(self._written, len(rows)):
            self._call("write", number, rows[number])
        self._written = len(rows)

    def end(self, record: Mapping[str, Any]) -> None:
        """End the session, if one has begun."""
        self._call("end", record)
        self.active.clear()

    def _call(self, method: str, *arguments: Any) -> None:
        if not self.active:
            return
        from runners import seeding  # imports torch

        states = seeding.random_states()
        for name, logger in [*self.active.items()]:
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                del self.active[name]
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                log.warning("logger %s: has stopped; metrics.csv goes on (%s)", name, reason)
                log.debug("traceback", exc_info=True)
        seeding.set_random_states(states)


def make_loggers(config: Mapping[str, Any] | None) -> Loggers:
    """Make the loggers of a configuration, name -> ``_target_`` and settings; None for none.

    Raises:
        ValueError: a name or a setting that is not legal, or a package that is not installed.
    """
    from hydra.utils import instantiate

    loggers = {}
    for name, settings in (config or {}).items():
        if not isinstance(settings, Mapping) or "_target_" not in settings:
            raise ValueError(f"logger.{name}: must have a _target_, the path of a class")
        check_component("logger", {name: settings})
        loggers[name] = instantiate(settings)
        if not isinstance(loggers[name], Logger):
            raise ValueError(f"logger.{name}: {settings['_target_']} must be a runners.loggers.Logger")
    return Loggers(loggers)


class TensorBoard(Logger):
    """TensorBoard: a scalar ``<split>/<column>`` at the epoch of each row, and the settings in the tab HPARAMS.

    The event file lies in the folder of the cell and is written anew by each session. Its times are those of training
    and evaluation, without the pauses between sessions.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self) -> None:
        _require("tensorboard")

    def begin(self, spec: "CellSpec", started: str, rows: Sequence[Row]) -> None:
        """Replace the event files of earlier sessions."""
        from torch.utils.tensorboard import SummaryWriter

        for events in spec.folder.glob(EVENTS):
            events.unlink()
        self.facts = _facts(spec)
        self.time = time.time() - sum(row["seconds"] for row in rows)
        # A TensorBoard that has the earlier files open forgets their points, too.
        self.writer = SummaryWriter(str(spec.folder), purge_step=0)

    def write(self, number: int, row: Row) -> None:
        """Write the numbers of a row."""
        self.time += row["seconds"]
        for column, value in row.items():
            if column != "epoch" and isinstance(value, int | float):
                self.writer.add_scalar(f"{row['split']}/{column}", value, row["epoch"], walltime=self.time)
        self.writer.flush()

    def end(self, record: Mapping[str, Any]) -> None:
        """Write the settings, beside which TensorBoard shows the test score, and close the file."""
        from torch.utils.tensorboard.summary import hparams

        if record.get("status") == "ok":
            facts = {name: value for name, value in self.facts.items() if isinstance(value, SCALARS)}
            assert self.writer.file_writer is not None  # it is open
            for summary in hparams(facts, {f"test/{record['primary_metric']}": None}):
                self.writer.file_writer.add_summary(summary)
        self.writer.close()


class WeightsAndBiases(Logger):
    """Weights & Biases: a run for each cell, with the settings as its config and the record as its summary.

    A row is a step, its columns are ``<split>/<column>``, and ``epoch`` is the x axis. A resumed cell continues its run:
    online with the rows that the server lacks, offline in a new folder with all rows that replaces the earlier one.

    Args:
        project: name of the project.
        entity: user or team; None for the account's default.
        mode: online, offline or disabled; None for that of WANDB_MODE, or else online.

    Raises:
        ValueError: an unknown mode, or the package is not installed.
    """

    def __init__(
        self, *, project: str = "actbench", entity: str | None = None, mode: Mode | None = None
    ) -> None:
        if mode is not None:
            check_choice("mode", mode, get_args(Mode))
        _require("wandb")
        self.project, self.entity, self.mode = project, entity, mode

    def begin(self, spec: "CellSpec", started: str, rows: Sequence[Row]) -> None:
        """Start or continue the run."""
        import wandb

        digest = hashlib.sha256(f"{spec.study_folder.name} {started}".encode()).hexdigest()
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=f"{spec.id}-{digest[:8]}",
            name=str(spec),
            group=f"{spec.task}/{spec.activation}",
            config=_facts(spec),
            dir=str(spec.folder),
            resume="allow",
            reinit="create_new",  # not the run that the calling program may have
            settings=wandb.Settings(console="off", silent=True, finish_timeout=UPLOAD),
        )
        for folder in (spec.folder / WANDB).glob("offline-run-*"):
            if not Path(self.run.dir).resolve().is_relative_to(folder.resolve()):
                shutil.rmtree(folder)
        self.run.define_metric("*", step_metric="epoch")
        log.info("wandb: %s", self.run.dir if self.run.offline else self.run.url)

    def write(self, number: int, row: Row) -> None:
        """Log a row, unless the server has it."""
        if number >= self.run.step:
            values = {
                f"{row['split']}/{column}": value
                for column, value in row.items()
                if column not in ("epoch", "split")
            }
            self.run.log({"epoch": row["epoch"], **values}, step=number, commit=True)

    def end(self, record: Mapping[str, Any]) -> None:
        """Write the summary and wait until everything is uploaded."""
        self.run.summary.update({name: value for name, value in record.items() if isinstance(value, SCALARS)})
        self.run.finish(exit_code=0 if record.get("status") == "ok" else 1)


def _facts(spec: "CellSpec") -> dict[str, Any]:
    """Names and settings of a cell, as in its record."""
    names = {"activation": spec.activation, "task": spec.task, "network": spec.network, "seed": spec.seed}
    return names | {"cell": spec.id, "study": spec.study_folder.name} | spec.facts


def _require(package: str) -> None:
    """Raise ValueError unless a package is installed; its logger and its extra have the same name."""
    if find_spec(package) is None:
        raise ValueError(f"logger={package}: {package} is not installed; pip install 'actbench[{package}]'")
