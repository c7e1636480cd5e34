"""Launch the cells of a grid in other processes, and say in the launching process what becomes of them.

conf/hydra/launcher and docs/clusters.md have the launchers' settings.
"""

import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from tqdm import tqdm

from results.files import RECORD
from results.schema import FINISHED
from runners.cell import Cell, CellFailedError

LOOK_EVERY = 1.0  # seconds between looks at the records
ROOT = Path(__file__).resolve().parent.parent

# Class that a configuration names -> the module here with the class to use in its place, and the extra that installs it.
LAUNCHERS = {
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": ("runners.launch_joblib", None),
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": (
        "runners.launch_slurm",
        "slurm",
    ),
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": ("runners.launch_ray", "ray"),
}

# Hydra merges our settings of a launcher with the plugin's, which have the same name, and warns that it once will not.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

Cells = Mapping[tuple[str, ...], Cell | None]


class GridStoppedError(BaseException):
    """A cell failed and ``grid.fail_fast`` is true; a launcher that goes on after any Exception ends with this."""


def check_installed(hydra: DictConfig) -> None:
    """Raise ValueError if the launcher of a grid is one of an extra that is not installed."""
    target = hydra.launcher._target_
    _, extra = LAUNCHERS.get(target, (None, None))
    if extra and target not in Plugins.instance().class_name_to_class:
        name = hydra.runtime.choices["hydra/launcher"]
        raise ValueError(
            f"hydra/launcher={name}: needs the extra {extra}: pip install 'actbench[{extra}]', "
            f"in a checkout pip install -e '.[{extra}]'"
        )


def runs_elsewhere(hydra: DictConfig) -> bool:
    """Whether the cells of a grid run in processes that its launching process did not start itself."""
    return LAUNCHERS.get(hydra.launcher._target_, (None, None))[1] is not None


def watch(hydra: DictConfig, cells: Cells, *, finished: int, fail_fast: bool) -> None:
    """Have Hydra use the launcher of this package for a grid of ``cells``, beside which ``finished`` ones are done."""
    target = hydra.launcher._target_
    if target in LAUNCHERS:
        launcher = import_module(LAUNCHERS[target][0]).Launcher
        launcher.progress = Progress(cells, finished=finished, fail_fast=fail_fast)
        Plugins.instance().class_name_to_class[target] = launcher


class Watched:
    """A launcher, derived from one of Hydra's, which says what becomes of the cells.

    A worker only returns the line about its cell, or raises CellFailedError with it.
    """

    progress: ClassVar["Progress"]  # not of the object, which is sent to the workers

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells with these overrides.

        Raises:
            CellFailedError: a cell has failed or was interrupted, which has been printed.
            GridStoppedError: likewise, and no more cells are to be run.
        """
        with self.progress:
            try:
                ends = self.run_all(job_overrides, initial_job_idx)
            except BaseException as error:
                self.progress.tell_interrupted(error)
                raise
            self.progress.tell_ends(job_overrides, ends)
        if self.progress.failed:
            raise CellFailedError
        return [end for end in ends if end is not None]

    def run_all(self, job_overrides: Sequence[Sequence[str]], first_index: int) -> Sequence[JobReturn | None]:
        """Run the cells and return how each job has ended; None for one that has left nothing but what its cell wrote."""
        ends: Sequence[JobReturn] = super().launch(job_overrides, first_index)  # type: ignore[misc]
        return ends


class Progress:
    """One line for a whole grid on the terminal, and a line for each cell when it ends.

    While entered, a thread looks at the records that the cells write, wherever they run.

    Args:
        cells: of the grid, by their overrides; None for one that cannot be made.
        finished: number of cells of the grid beside these.
        fail_fast: whether the first cell that fails ends the grid.
    """

    def __init__(self, cells: Cells, *, finished: int, fail_fast: bool) -> None:
        self.cells, self.fail_fast = cells, fail_fast
        self.failed = 0
        self.finished = finished
        self.ended = threading.Event()
        self.told: set[tuple[str, ...]] = set()
        self.before = {overrides: cell and _written(cell) for overrides, cell in cells.items()}

    def __enter__(self) -> Self:
        self.bar = tqdm(
            total=self.finished + len(self.cells),
            initial=self.finished + len(self.told),
            bar_format="{n_fmt}/{total_fmt} cells{postfix}, {elapsed} elapsed, {remaining} left",
            postfix=f"{self.failed} failed",
            smoothing=0,
            disable=None,  # if stderr is not a terminal
        )
        self.ended.clear()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    @property
    def must_stop(self) -> bool:
        """Whether no more cells are to be run."""
        return self.fail_fast and self.failed > 0

    def _look(self) -> None:
        while not self.ended.wait(LOOK_EVERY):
            self._tell_ended()
            self.bar.refresh()

    def _tell_ended(self) -> None:
        """Say which cells have ended since the last look."""
        for overrides, cell in self.cells.items():
            if cell is None or overrides in self.told or (record := self._news(overrides, cell)) is None:
                continue
            if record.get("status") in FINISHED:
                self._tell(overrides, cell.summary(record))
            elif record.get("status") == "failed":
                self._tell_failed(overrides, f"{' '.join(overrides)} failed: {record.get('reason')}")

    def tell_ends(self, job_overrides: Sequence[Sequence[str]], ends: Sequence[JobReturn | None]) -> None:
        """Say of the cells whose records say nothing new how their jobs have ended."""
        self._stop()
        waiting = 0
        for overrides, end in zip(map(tuple, job_overrides), ends, strict=True):
            if overrides in self.told:
                continue
            if end is None:  # killed, or ended by a signal
                how = self._interruption(overrides)
                waiting += not how
                self._tell_failed(overrides, how)
            elif end.status == JobStatus.COMPLETED:
                self._tell(overrides, end.return_value)
            else:
                self._tell_failed(overrides, str(end._return_value))
        if waiting:
            cells = f"{waiting} cell{' was' if waiting == 1 else 's were'}"
            self.bar.write(f"actbench: {cells} not begun; the same command runs them", file=sys.stderr)

    def tell_interrupted(self, by: BaseException) -> None:
        """Say which cells have saved their state because the grid is ended by an exception, and why that is."""
        self._stop()
        for overrides, cell in self.cells.items():
            if cell is None or overrides in self.told or (record := self._news(overrides, cell)) is None:
                continue
            if record.get("reason"):
                self._tell_failed(overrides, cell.summary(record))
        if isinstance(by, GridStoppedError) and not self.failed and str(by):
            self.bar.write(f"actbench: {by}", file=sys.stderr)

    def _interruption(self, overrides: tuple[str, ...]) -> str:
        """Return the line about a cell whose process has ended without a result; empty if it was not begun."""
        cell = self.cells.get(overrides)
        if cell is None or (record := self._news(overrides, cell)) is None:
            return ""
        killed = "" if record.get("reason") else "; its process was killed, the same command resumes it"
        return cell.summary(record) + killed

    def _news(self, overrides: tuple[str, ...], cell: Cell) -> dict[str, Any] | None:
        """Return the record of a cell if it was written since the grid began; empty if it is damaged."""
        if _written(cell) in (None, self.before[overrides]):
            return None
        try:
            return cell.earlier()
        except ValueError:
            return {}

    def _stop(self) -> None:
        self.ended.set()
        self.thread.join()
        self._tell_ended()

    def _tell(self, overrides: tuple[str, ...], line: str | None) -> None:
        self.told.add(overrides)
        self.bar.update()
        if line:
            self.bar.write(line, file=sys.stdout)

    def _tell_failed(self, overrides: tuple[str, ...], line: str) -> None:
        self.failed += 1
        self.bar.set_postfix_str(f"{self.failed} failed", refresh=False)
        self._tell(overrides, None)
        if line:
            self.bar.write(f"actbench: {line}", file=sys.stderr)


def _written(cell: Cell) -> int | None:
    """When the record of a cell was written, in ns; None if there is none."""
    try:
        return (cell.folder / RECORD).stat().st_mtime_ns
    except OSError:
        return None


def failed(overrides: Sequence[str], reason: str) -> JobReturn:
    """Return the end of a job that failed outside of its cell."""
    line = f"{' '.join(overrides)} failed: {reason}"
    return JobReturn(status=JobStatus.FAILED, _return_value=CellFailedError(line))


def export_path() -> None:
    """Let processes that inherit this one's environment import this package from any folder."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), path)))
