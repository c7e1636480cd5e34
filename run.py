"""Train cells: activation x task x seed, one or a grid of them.

python run.py activation=prelu task=digits seed=3
python run.py -m 'activation=relu,prelu,swish' task=digits 'seed=range(5)'
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from results.terminal import print_anything
from runners import parallel
from runners.cell import CellFailedError, CellLockedError
from runners.compose import CONF, Parts
from runners.errors import format_error
from runners.grid import (
    ReportAfterGrid,
    SeveralGridsError,
    asks_for_grid,
    composable,
    end_with_parent,
    end_workers,
    is_chosen,
    is_grid,
    is_worker,
    trains,
)
from runners.launch import GridStoppedError, runs_elsewhere

DEBUG = "HYDRA_FULL_ERROR" in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
logging.getLogger("hydra").addHandler(logging.NullHandler())  # nor does Hydra log them


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> str | None:
    """Run one cell, and return a line about it for the process that launched it.

    An error is printed as one line, and does not stop the other cells of a grid.
    """
    hydra_cfg = cast(DictConfig, HydraConfig.get())
    grid = hydra_cfg.mode == RunMode.MULTIRUN
    if grid:
        end_with_parent()
    print_anything()  # in joblib's processes as well, which start here
    told = is_worker() and trains(cfg.runner)  # by the process that launched this one
    try:
        # Paths are relative to the command line's folder, whatever hydra.job.chdir is.
        os.chdir(hydra_cfg.runtime.cwd)
        line = run_cell(cfg, hydra_cfg, grid)
    except Exception as error:
        if DEBUG:
            raise
        prefix = " ".join(hydra_cfg.overrides.task) + " failed: " if grid else ""
        line = f"{prefix}{format_error(error)}"
        if not told:
            parallel.current().complain(line)
        if not grid:
            raise SystemExit(1) from None
        stops = OmegaConf.select(cfg, "grid.fail_fast") and not runs_elsewhere(hydra_cfg)
        raise (GridStoppedError(line) if stops else CellFailedError(line)) from None
    if line and not told:
        print(line, flush=True)
    return line


def run_cell(cfg: DictConfig, hydra_cfg: DictConfig, grid: bool) -> str | None:
    """Run a composed cell, unless it is finished; or inspect its data. Returns the line that says what became of it."""
    if not grid and (message := is_grid(hydra_cfg)):
        raise ValueError(message)
    parts, world = Parts(cfg, hydra_cfg), parallel.current()
    cell = world.follow(parts.cell(grid=grid))
    if not world.leads:  # rank 0 decides, and says the rest
        if world.tell(False) and (number := parts.train(cell).get("signal")):
            world.end_together()
            sys.exit(128 + number)
        return None
    if record := cell.completed_record():
        return cell.summary(record, note=" (finished before)")
    if grid and not is_chosen(parts.config, (record := cell.earlier()).get("status")):
        return cell.summary(record, note=" (left as it is)") if record else None
    if not trains(cfg.runner):
        parts.runner()(parts.task, cell)
        return None

    def train() -> dict[str, Any]:
        world.tell(True)
        return parts.train(cell)

    try:
        record = cell.run(train)
    except CellLockedError as error:
        return str(error)
    line = cell.summary(record, note="" if cell.started else " (finished before)")
    if "signal" in record:
        if is_worker():
            os._exit(128 + record["signal"])  # else it would go on with the next cell
        print(line, flush=True)
        world.end_together()
        sys.exit(128 + record["signal"])
    return line


def main(work: Callable[[], bool] | None = None) -> None:
    """Run the command line; an error becomes one line, and a grid ends with its report.

    Args:
        work: runs the cells instead, and returns whether none has failed; None for those of the command line.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    good = False
    try:
        with suppress(GridStoppedError), parallel.joined() as world:
            if world.size > 1 and asks_for_grid(sys.argv):
                raise ValueError("torchrun: trains a single cell; a grid is started without it")
            good = (work or all_ran)()
        good &= ReportAfterGrid.report()
    except Exception as error:
        if DEBUG:
            raise
        parallel.current().complain(format_error(error))
        sys.exit(1)
    sys.exit(0 if good else 1)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End with the workers that a grid may have; a cell that trains in this process handles signals itself."""
    end_workers()
    sys.exit(128 + number)


def all_ran(typed: Sequence[str] = ()) -> bool:
    """Run all cells of the command line, and return whether none has failed.

    Args:
        typed: the command line that records state, if it is another than ``sys.argv``.
    """
    given = sys.argv
    ReportAfterGrid.typed, sys.argv = list(typed) or given, composable(given)
    try:
        run()
    except CellFailedError:
        return False
    except SeveralGridsError as several:
        good = True
        for line, name in several.experiments:
            sys.argv = [name if argument == line else argument for argument in given]
            good &= all_ran(typed)
        return good
    return True


if __name__ == "__main__":
    main()
