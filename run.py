"""Train cells: activation x task x seed, one or a grid of them.

python run.py activation=prelu task=digits seed=3
python run.py -m 'activation=relu,prelu,swish' task=digits 'seed=range(5)'
"""

import os
import sys
from typing import Any, cast

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runners.cell import Busy, Cell, CellFailed
from runners.grid import ReportAfterGrid
from runners.words import one_line

DEBUG = "HYDRA_FULL_ERROR" in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands us its errors instead of printing paragraphs


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> None:
    """Run one cell; what goes wrong in a single one ends the program here, before Hydra adds words of its own."""
    try:
        run_cell(cfg, HydraConfig.get())
    except Exception as error:
        if DEBUG or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(f"actbench: {one_line(error)}")


def run_cell(cfg: DictConfig, hydra_config: HydraConf) -> None:
    """Compose activation, task and runner of a cell and run it, unless it is finished."""
    choices = hydra_config.runtime.choices
    own_class = any(override.startswith("activation._target_=") for override in hydra_config.overrides.task)
    cell = Cell(
        cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)),
        activation=cfg.activation._target_.rpartition(".")[2] if own_class else choices["activation"],
        task=choices["task"],
        grid=hydra_config.mode == RunMode.MULTIRUN,
    )
    if record := cell.finished():
        print(cell.line(record, note=" (finished before)"))
        return

    def train() -> dict[str, Any]:
        from hydra.utils import (
            instantiate,  # with torch behind it, which skipping a finished cell should not import
        )

        from runners.factory import checked

        runner, act_layer = instantiate(cfg.runner), checked(instantiate(cfg.activation), cell.activation)
        return runner(act_layer, instantiate(cfg.task), cell)

    try:
        record = cell.attempt(train)
    except Busy as busy:
        print(busy)
        return
    print(cell.line(record), flush=True)
    if record["status"] == "interrupted":
        sys.exit(128 + record["signal"])


def main() -> None:
    """Run the command line; an error becomes one line, and a grid ends with its report."""
    status = 0
    try:
        run()
    except CellFailed:
        status = 1
    except (Exception, KeyboardInterrupt) as error:
        if DEBUG:
            raise
        sys.exit(f"actbench: {one_line(error)}")
    if ReportAfterGrid.study_folder is not None:
        from results.report import report

        report(ReportAfterGrid.study_folder)
    sys.exit(status)


if __name__ == "__main__":
    main()
