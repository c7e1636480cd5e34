"""What a multirun does besides its cells.

It is checked before the first of them, each of its studies has a report, and its workers end if it is killed.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runners.cell import study_folder
from runners.composed import COMPONENTS, check_composed
from runners.words import one_line

LOOK_EVERY, GRACE = 1.0, 8.0  # seconds: between looks for the parent, and to end a step and save

CHECK = "runners.check.Check"


class ReportAfterGrid(Callback):
    """Hydra callback that checks a multirun and remembers which studies it writes to; run.py reports on them at the end.

    Hydra's own end-of-multirun hook is not called when a cell has failed, and then the report matters most.
    """

    # settings of their reports, in the order in which they were started
    studies: ClassVar[dict[Path, dict[str, Any]]] = {}
    typed: ClassVar[list[str]] = []  # sys.argv as it was before ``composable``

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Called by Hydra in the process that launches the cells. What it raises is no Exception: Hydra warns of those.

        Raises:
            SystemExit: a grid that cannot be, in one line.
            SeveralGrids: a grid over experiments, each of which is a grid of its own.
        """
        sys.argv = self.typed or sys.argv
        loader = GlobalHydra.instance().config_loader()
        try:
            _add_search_path(loader, config)
            if commands := _one_experiment_each(loader, config):
                for experiment, _ in commands:
                    overrides = [*config.hydra.overrides.hydra, *experiment]
                    _studies(loader, loader.load_configuration(config_name, overrides, RunMode.MULTIRUN))
                raise SeveralGrids([argv for _, argv in commands])
            studies = _studies(loader, config)
        except Exception as error:
            raise SystemExit(f"actbench: {one_line(error)}") from error
        ReportAfterGrid.studies |= studies
        if config.hydra.sweep.dir == "." and studies:  # here Hydra notes the command, in multirun.yaml
            config.hydra.sweep.dir = str(next(iter(studies)))

    @staticmethod
    def report() -> bool:
        """Write the reports, if this process launched a grid; whether all of them could be written."""
        good = True
        for study, settings in ReportAfterGrid.studies.items():
            from results.report import report  # with pandas and matplotlib behind it

            try:
                report(study, **settings)
            except (ValueError, OSError) as error:
                print(f"actbench: {one_line(error)}", file=sys.stderr)
                good = False
        return good


@cache
def end_with_parent() -> None:
    """Let a worker process of a grid end when the process that launched the grid is gone.

    A worker of joblib would wait minutes for more work, and train a cell to its end meanwhile. It is stopped as by the
    user: the trainer saves after the step under way.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


class SeveralGrids(BaseException):
    """A command line that stands for several, one after the other: ``commands``, each as ``sys.argv``."""

    def __init__(self, commands: list[list[str]]) -> None:
        self.commands = commands


def composable(argv: list[str]) -> list[str]:
    """The command line of a grid in a form that Hydra can compose before it knows the cells.

    It does so with the default components, which need not have the settings of those that the grid sweeps over, as in
    ``activation=prelu,prelu_shared activation.init=0.1``. Sweeps it leaves to the cells, so such a setting becomes a
    sweep over one value.
    """
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv):
        return argv
    return [_as_sweep(argument) for argument in argv]


def _as_sweep(argument: str) -> str:
    """A setting of a component as a sweep over its value, unless Hydra would make another value of that."""
    setting = re.fullmatch(rf"(\+{{0,2}}(?:{'|'.join(COMPONENTS)})\.[^=]*)=(.+)", argument)
    if setting is None:
        return argument
    sweep = f"{setting[1]}=choice({setting[2]})"
    try:
        same = _cells(_parsed([argument])) == _cells(_parsed([sweep]))
    except HydraException:  # null and strings in quotes are no values of a sweep
        same = False
    return sweep if same else argument


def is_grid(hydra: DictConfig) -> str | None:
    """What to say if a single run was asked of an experiment that is a grid, and not all it sweeps over was given."""
    given = {_key(override) for override in _parsed(hydra.overrides.task)}
    swept = [key for key in OmegaConf.select(hydra, "sweeper.params") or {} if key not in given]
    if not swept:
        return None
    name = f"experiment={hydra.runtime.choices.get('experiment')}"
    return (
        f"{name} is a grid over {', '.join(swept)}: python run.py -m {name} runs it; "
        f"for one of its cells add {' '.join(f'{key}=...' for key in swept)}"
    )


def report_settings(config: DictConfig) -> dict[str, Any]:
    """Return the keys of ``report`` in a configuration, as ``results.report.report`` takes them.

    Raises:
        ValueError: an unknown key, or a value that no report can have.
    """
    settings = OmegaConf.to_container(config.report, resolve=True)
    if not isinstance(settings, dict) or settings.keys() != {"baseline", "margin"}:
        raise ValueError(f"report={settings}: must have the keys baseline and margin, and no others")
    baseline, margin = settings["baseline"], settings["margin"]
    if not (baseline is None or isinstance(baseline, str)):
        raise ValueError(f"report.baseline={baseline}: must be the name of an activation, or null")
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (number and 0 <= margin < float("inf")):
        raise ValueError(f"report.margin={margin}: must be a finite number >= 0, or null")
    return {"baseline": baseline, "margin": margin}


def _studies(loader: ConfigLoader, master: DictConfig) -> dict[Path, dict[str, Any]]:
    """The folders that a grid writes to with the settings of their reports, after composing one cell for every choice of components that occurs in it.

    Raises:
        ValueError: a sweep over nothing; cells that cannot be composed, named by their choices.
    """
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    overrides = _parsed([*(f"{k}={v}" for k, v in params.items()), *master.hydra.overrides.task], loader)
    cells = _cells(overrides)
    if not cells:
        swept = [override for override in overrides if override.is_sweep_override()]
        empty = [str(override.input_line) for override in swept if not [*override.sweep_string_iterator()]]
        raise ValueError(f"{', '.join(empty)}: there is nothing of this kind to sweep over")
    swept_keys = {o.get_key_element() for o in overrides if o.is_sweep_override()}
    studies: dict[Path, dict[str, Any]] = {}
    wrong: list[tuple[str, str]] = []
    for choices, cell in _distinct(cells):
        try:
            cfg = loader.load_sweep_config(master, cell)
            check_composed(cfg, cfg.hydra)
            if trains(cfg.runner):
                studies[study_folder(cast(dict[str, Any], cfg))] = report_settings(cfg)
        except Exception as error:
            varied = " ".join(choice for choice in choices if choice.partition("=")[0] in swept_keys)
            wrong.append((varied, one_line(error)))
    if wrong:
        (first, message), *others = wrong
        where = f"{first}: " if first and not message.startswith(first) else ""
        also = f"; nor can {', '.join(varied for varied, _ in others)} be run" if others else ""
        raise ValueError(where + message + also)
    return studies


def _distinct(cells: list[list[str]]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """For each choice of components, study and outputs the first cell that has it: what can be composed hangs on these."""
    seen = set()
    for cell in cells:
        keys = [override.partition("=")[0].lstrip("+~") for override in cell]
        choices = tuple(
            o for key, o in zip(keys, cell, strict=True) if "." not in key and key not in ("seed", "force")
        )
        if choices not in seen:
            seen.add(choices)
            yield choices, cell


def _one_experiment_each(loader: ConfigLoader, master: DictConfig) -> list[tuple[list[str], list[str]]]:
    """Of a sweep over experiments, overrides and command line of each: what these sweep over is theirs alone."""
    task = list(master.hydra.overrides.task)
    for override in _parsed(task, loader):
        if override.is_sweep_override() and _key(override) == "experiment":
            line = override.input_line
            names = [f"experiment={name}" for name in override.sweep_string_iterator()]
            return [
                ([name if a == line else a for a in task], [name if a == line else a for a in sys.argv])
                for name in names
            ]
    return []


def _add_search_path(loader: Any, master: DictConfig) -> None:
    """Let ``glob`` see the folders of hydra.searchpath, of which Hydra thinks only when it composes a cell."""
    path = loader.get_search_path()
    for source in master.hydra.runtime.config_sources:
        if source.provider.startswith("hydra.searchpath"):
            place = f"{source.schema}://{source.path}"
            path.prepend(source.provider, place, SearchPathQuery(provider="schema"))
    loader.repository.initialize_sources(path)


def _parsed(overrides: Any, loader: ConfigLoader | None = None) -> list[Override]:
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def _cells(overrides: list[Override]) -> list[list[str]]:
    """The overrides of every cell, as Hydra's sweeper makes them."""
    return BasicSweeper.split_arguments(overrides, None)[0]


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def trains(runner: DictConfig) -> bool:
    """Whether a runner makes cells, which ``runner=check`` does not."""
    return bool(runner._target_ != CHECK)
