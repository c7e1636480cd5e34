"""Train cells: activation x task x seed, one or a grid of them.

python run.py activation=prelu task=digits seed=3
python run.py -m 'activation=relu,prelu,swish' task=digits 'seed=range(5)'
"""

import logging
import os
import signal
import sys
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runners.cell import Busy, Cell, CellFailed
from runners.grid import ReportAfterGrid, own_class, trains
from runners.words import one_line

DEBUG = "HYDRA_FULL_ERROR" in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands us its errors instead of printing paragraphs
logging.getLogger("hydra").addHandler(logging.NullHandler())  # nor does it log them


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(cfg: DictConfig) -> None:
    """Run one cell; what goes wrong is said in one line, and in a grid stops no other cell."""
    grid = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        run_cell(cfg, grid)
    except Exception as error:
        if DEBUG:
            raise
        said = " ".join(HydraConfig.get().overrides.task) + " failed: " if grid else ""
        print(f"actbench: {said}{one_line(error)}", file=sys.stderr, flush=True)
        raise (CellFailed() if grid else SystemExit(1)) from None


def run_cell(cfg: DictConfig, grid: bool) -> None:
    """Compose activation, task and runner of a cell and run it, unless it is finished; or look at its data."""
    choices = HydraConfig.get().runtime.choices
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    activation = own_class(cfg.activation._target_, choices["activation"]) or choices["activation"]
    # networks of other libraries are one choice and a name
    network = ":".join(map(str, filter(None, (choices["network"], config["network"].get("name")))))
    cell = Cell(config, activation=activation, task=choices["task"], network=network, grid=grid)
    if record := cell.finished():
        print(cell.line(record, note=" (finished before)"))
        return

    from hydra.utils import instantiate  # with torch behind it, which skipping a cell should not import

    def task() -> Any:
        return instantiate(cfg.task, network=instantiate(cfg.network))

    def train() -> dict[str, Any]:
        from runners.factory import checked

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
    status = 0
    try:
        try:
            run()
        except CellFailed:
            status = 1
        ReportAfterGrid.report()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if DEBUG:
            raise
        sys.exit(f"actbench: {one_line(error)}")
    sys.exit(status)


if __name__ == "__main__":
    main()
