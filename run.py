"""Train cells: activation x task x seed, one or a grid of them.

python run.py activation=prelu task=digits seed=3
python run.py -m 'activation=relu,prelu,swish' task=digits 'seed=range(5)'
"""

import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from results.terminal import print_anything
from runners.cell import Busy, CellFailed
from runners.compose import CONF, Parts
from runners.grid import (
    GridStopped,
    ReportAfterGrid,
    SeveralGrids,
    composable,
    end_with_parent,
    end_workers,
    is_chosen,
    is_grid,
    is_worker,
    trains,
)
from runners.words import one_line

DEBUG = "HYDRA_FULL_ERROR" in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands us its errors instead of printing paragraphs
logging.getLogger("hydra").addHandler(logging.NullHandler())  # nor does it log them


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> None:
    """Run one cell; what goes wrong is said in one line, and in a grid stops no other cell."""
    hydra_cfg = cast(DictConfig, HydraConfig.get())
    grid = hydra_cfg.mode == RunMode.MULTIRUN
    if grid:
        end_with_parent()
    print_anything()  # here, as joblib's processes begin here
    try:
        os.chdir(hydra_cfg.runtime.cwd)  # paths are those of the command line, whatever hydra.job.chdir says
        run_cell(cfg, hydra_cfg, grid)
    except Exception as error:
        if DEBUG:
            raise
        said = " ".join(hydra_cfg.overrides.task) + " failed: " if grid else ""
        print(f"actbench: {said}{one_line(error)}", file=sys.stderr, flush=True)
        if not grid:
            raise SystemExit(1) from None
        raise (GridStopped() if OmegaConf.select(cfg, "grid.fail_fast") else CellFailed()) from None


def run_cell(cfg: DictConfig, hydra_cfg: DictConfig, grid: bool) -> None:
    """Run a composed cell, unless it is finished; or look at its data."""
    if not grid and (said := is_grid(hydra_cfg)):
        raise ValueError(said)
    parts = Parts(cfg, hydra_cfg)
    cell = parts.cell(grid=grid)
    if record := cell.finished():
        print(cell.line(record, note=" (finished before)"))
        return
    if grid and not is_chosen(parts.config, (record := cell.earlier()).get("status")):
        if record:
            print(cell.line(record, note=" (left as it is)"))
        return
    if not trains(cfg.runner):
        parts.runner()(parts.task, cell)
        return
    try:
        record = cell.attempt(partial(parts.train, cell))
    except Busy as busy:
        print(busy)
        return
    print(cell.line(record), flush=True)
    if "signal" in record:
        if is_worker():
            os._exit(128 + record["signal"])  # else it would go on with the next cell
        sys.exit(128 + record["signal"])


def main() -> None:
    """Run the command line; an error becomes one line, and a grid ends with its report."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    good = False
    try:
        with suppress(GridStopped):
            good = all_ran()
        good &= ReportAfterGrid.report()
    except Exception as error:
        if DEBUG:
            raise
        sys.exit(f"actbench: {one_line(error)}")
    sys.exit(not good)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End with the workers that a grid may have; a cell that trains in this process handles signals itself."""
    end_workers()
    sys.exit(128 + number)


def all_ran() -> bool:
    """Whether every cell of the command line ended well."""
    ReportAfterGrid.typed, sys.argv = sys.argv, composable(sys.argv)
    try:
        run()
    except CellFailed:
        return False
    except SeveralGrids as several:
        good = True
        for sys.argv in several.commands:
            good &= all_ran()
        return good
    return True


if __name__ == "__main__":
    main()
