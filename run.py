"""Train cells: activation x task x seed, one or a grid of them.

python run.py activation=prelu task=digits seed=3
python run.py -m 'activation=relu,prelu,swish' task=digits 'seed=range(5)'
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from results.terminal import print_anything
from runners.cell import Busy, Cell, CellFailed
from runners.composed import check_components, check_composed, own_class
from runners.grid import ReportAfterGrid, SeveralGrids, composable, end_with_parent, is_grid, trains
from runners.words import one_line

CONF = Path(__file__).resolve().parent / "conf"  # absolute, as python -m actbench imports this file
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
        raise (CellFailed() if grid else SystemExit(1)) from None


def run_cell(cfg: DictConfig, hydra_cfg: DictConfig, grid: bool) -> None:
    """Compose activation, task and runner of a cell and run it, unless it is finished; or look at its data."""
    if not grid and (said := is_grid(hydra_cfg)):
        raise ValueError(said)
    names = check_composed(cfg, hydra_cfg)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    activation = names["activation"]
    activation = own_class(cfg.activation._target_, activation, hydra_cfg) or activation
    # networks of other libraries are one choice and a name
    network = ":".join(map(str, filter(None, (names["network"], config["network"].get("name")))))
    cell = Cell(config, activation=activation, task=names["task"], network=network, grid=grid)
    if record := cell.finished():
        print(cell.line(record, note=" (finished before)"))
        return

    from hydra.utils import instantiate  # with torch behind it, which skipping a cell should not import

    def task() -> Any:
        return instantiate(cfg.task, network=instantiate(cfg.network))

    def train() -> dict[str, Any]:
        from runners.factory import checked

        check_components(config)
        runner, act_layer = instantiate(cfg.runner), checked(instantiate(cfg.activation), activation)
        return runner(act_layer, task(), cell)

    if not trains(cfg.runner):
        instantiate(cfg.runner)(task, cell)
        return
    try:
        record = cell.attempt(train)
    except Busy as busy:
        print(busy)
        return
    print(cell.line(record), flush=True)
    if "signal" in record:
        sys.exit(128 + record["signal"])


def main() -> None:
    """Run the command line; an error becomes one line, and a grid ends with its report."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    good = False
    try:
        good = all_ran()
        good &= ReportAfterGrid.report()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if DEBUG:
            raise
        sys.exit(f"actbench: {one_line(error)}")
    sys.exit(not good)


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
