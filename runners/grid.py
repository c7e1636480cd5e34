"""What a multirun does in addition to its cells.

It is checked before the first cell, each of its studies gets a report, and its workers end if it is killed.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from results.files import words
from results.terminal import print_anything
from runners.cell import Cell, study_folder
from runners.compose import Parts
from runners.composed import COMPONENTS, check_composed
from runners.errors import format_error
from runners.launch import check_installed, watch
from runners.loggers import make_loggers

CHECK_INTERVAL, GRACE = 1.0, 8.0  # seconds between checks for the parent, and to end a step and save

CHECK = "runners.check.Check"

Settings = Mapping[str, Any]  # values by dotted names
Variants = Callable[[Sequence[str]], Sequence[Settings]]


class ReportAfterGrid(Callback):
    """Hydra callback that checks a multirun and remembers its studies, on which run.py reports at the end.

    Hydra's own end-of-multirun hook is not called when a cell has failed, and then the report matters most.
    """

    # settings of their reports, in the order in which they were started
    studies: ClassVar[dict[Path, dict[str, Any]]] = {}
    typed: ClassVar[list[str]] = []  # sys.argv as it was before ``composable``
    variants: ClassVar[list[Variants]] = []  # at most one: see ``varied``

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Check the grid; Hydra calls this in the process that launches the cells.

        What it raises is not derived from Exception, as Hydra only warns of those.

        Raises:
            SystemExit: a grid that cannot run, in one line.
            SeveralGridsError: a grid over experiments, each of which is a grid of its own.
        """
        sys.argv = self.typed or sys.argv
        loader = GlobalHydra.instance().config_loader()
        try:
            check_installed(config.hydra)
            add_search_path(loader, config)
            if experiments := one_experiment_each(loader, config):
                for experiment, _ in experiments:
                    overrides = [*config.hydra.overrides.hydra, *experiment]
                    _studies(loader, loader.load_configuration(config_name, overrides, RunMode.MULTIRUN))
                raise SeveralGridsError([named for _, named in experiments])
            studies = _studies(loader, config)
            if studies:
                print_anything()
                finished, cells = leave_out_finished(loader, config)
                fail_fast = bool(OmegaConf.select(config, "grid.fail_fast"))
                watch(config.hydra, cells, finished=finished, fail_fast=fail_fast)
        except Exception as error:
            raise SystemExit(f"actbench: {format_error(error)}") from error
        ReportAfterGrid.studies |= studies
        # the folder of Hydra's multirun.yaml, which has the command; a grid that trains nothing has a study, too
        if config.hydra.sweep.dir == ".":
            own = study_folder(cast(dict[str, Any], config))
            config.hydra.sweep.dir = str(next(iter(studies), own))

    @staticmethod
    def report() -> bool:
        """Write the reports, if this process launched a grid, and return whether all of them could be written."""
        good = True
        for study, settings in ReportAfterGrid.studies.items():
            from results.report import report  # imported here, as it imports pandas and matplotlib

            try:
                report(study, **settings)
            except (ValueError, OSError) as error:
                print(f"actbench: {format_error(error)}", file=sys.stderr)
                good = False
        return good


@cache
def end_with_parent() -> None:
    """End this process, if it is a worker of a grid, when the process that launched the grid has ended.

    A worker of joblib would first train its cell to the end and then wait minutes for more work. It receives SIGTERM, so
    that the trainer saves after the current step.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        # A process that ends at once would leave tqdm's own lock, a semaphore, behind.
        tqdm.set_lock(threading.RLock())
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def end_workers() -> None:
    """End the worker processes of a grid, after the step under way and with their cells saved."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def is_worker() -> bool:
    """Whether this is a worker process of a grid."""
    return multiprocessing.parent_process() is not None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


class SeveralGridsError(BaseException):
    """A command line means several, to run one after the other: an argument of it, and what each has in its place."""

    def __init__(self, experiments: list[tuple[str, str]]) -> None:
        self.experiments = experiments


def is_chosen(config: Mapping[str, Any], status: str | None) -> bool:
    """Whether a grid runs an unfinished cell whose record has this ``status``, None if it has none."""
    failed = status == "failed"
    return {"retry": True, "skip": not failed, "only": failed}[config["grid"]["failed"]]


def asks_for_grid(argv: list[str]) -> bool:
    """Return whether a command line is that of a grid."""
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv))


def composable(argv: list[str]) -> list[str]:
    """Return the command line of a grid in a form that Hydra can compose before it knows the cells.

    Hydra composes it with the default components, which may not have the settings of those that the grid sweeps over, as
    in ``activation=prelu,prelu_shared activation.init=0.1``. It does not apply sweeps to them, so such a setting becomes
    a sweep over one value.
    """
    if not asks_for_grid(argv):
        return argv
    return [_as_sweep(argument) for argument in argv]


def _as_sweep(argument: str) -> str:
    """Turn a setting of a component into a sweep over its value, unless Hydra would read another value from that."""
    setting = re.fullmatch(rf"(\+{{0,2}}(?:{'|'.join(COMPONENTS)})\.[^=]*)=(.+)", argument)
    if setting is None:
        return argument
    sweep = f"{setting[1]}=choice({setting[2]})"
    try:
        same = _cells(_parsed([argument])) == _cells(_parsed([sweep]))
    except HydraException:  # null and quoted strings cannot be values of a sweep
        same = False
    return sweep if same else argument


def is_grid(hydra: DictConfig) -> str | None:
    """Return the message if a single run names an experiment that is a grid, and does not set all that it sweeps over."""
    overridden = {_key(override) for override in _parsed(hydra.overrides.task)}
    swept = [key for key in OmegaConf.select(hydra, "sweeper.params") or {} if key not in overridden]
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
    """Return the folders that a grid writes to and the settings of their reports, after composing a cell for every choice of components in it.

    Raises:
        ValueError: a sweep over nothing; cells that cannot be composed (the message names their choices).
    """
    swept = [override for override in _overrides(loader, master) if override.is_sweep_override()]
    cells = [cell for cell, _ in cells_of(loader, master)]
    swept_keys = {override.get_key_element() for override in swept}
    studies: dict[Path, dict[str, Any]] = {}
    failures: list[tuple[str, str]] = []
    for choices, cell in _distinct(cells):
        try:
            cfg = loader.load_sweep_config(master, cell)
            check_composed(cfg, cfg.hydra)
            make_loggers(cfg.get("logger"))
            if trains(cfg.runner):
                studies[study_folder(cast(dict[str, Any], cfg))] = report_settings(cfg)
        except Exception as error:
            varied = " ".join(choice for choice in choices if choice.partition("=")[0] in swept_keys)
            failures.append((varied, format_error(error)))
    if failures:
        (first, message), *others = failures
        where = f"{first}: " if first and not message.startswith(first) else ""
        also = f"; also invalid: {', '.join(varied for varied, _ in others)}" if others else ""
        raise ValueError(where + message + also)
    return studies


def cells_of(loader: ConfigLoader, master: DictConfig) -> list[tuple[list[str], Settings]]:
    """Return the overrides of every cell of a grid, as Hydra's sweeper makes them, and the settings of its variant.

    Raises:
        ValueError: a sweep over nothing.
    """
    overrides = _overrides(loader, master)
    if cells := [*_launched(overrides)]:
        return cells
    raise _over_nothing([override for override in overrides if override.is_sweep_override()])


def _over_nothing(sweeps: list[Override]) -> ValueError:
    """Return the error that names those of the sweeps that are empty."""
    empty = [str(sweep.input_line) for sweep in sweeps if not [*sweep.sweep_string_iterator()]]
    return ValueError(f"{', '.join(empty)}: matches nothing to sweep over")


def _overrides(loader: ConfigLoader, master: DictConfig) -> list[Override]:
    """Those of the command line and those of an experiment's sweep, which the former override."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    return _parsed([*(f"{k}={v}" for k, v in params.items()), *master.hydra.overrides.task], loader)


def composed(loader: ConfigLoader, master: DictConfig) -> Iterator[tuple[list[str], DictConfig, DictConfig]]:
    """The overrides of each cell of a grid, its configuration, and Hydra's own part of that.

    Hydra composes only one of the cells that differ in nothing but seed and variant: a tenth of a second for each is long
    in a grid of a thousand.

    Raises:
        ValueError: a sweep over nothing.
    """
    known: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
    for overrides, settings in cells_of(loader, master):
        plain_overrides = overrides[: len(overrides) - len(settings)]
        seeds = [override.partition("=")[2] for override in plain_overrides if override.startswith("seed=")]
        others = without_seed(plain_overrides)
        plain = len(seeds) == 1 and seeds[0].isdecimal()
        if others not in known or not plain:
            cfg = loader.load_sweep_config(master, plain_overrides)
            with open_dict(cfg):
                known[others] = cfg, cfg.pop("hydra")
        cfg, own = known[others]
        cfg = cfg.copy()
        if plain:
            cfg.seed = int(seeds[0])
        for name, value in settings.items():
            OmegaConf.update(cfg, name, value)
        yield overrides, cfg, own


def without_seed(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of a cell but that of its seed."""
    return tuple(override for override in overrides if not override.startswith("seed="))


def leave_out_finished(
    loader: ConfigLoader, master: DictConfig
) -> tuple[int, dict[tuple[str, ...], Cell | None]]:
    """Say which cells of a grid are finished, or are not to be run, and keep Hydra from composing them.

    Return how many those are, and the other cells by their overrides; None for one that cannot be made.
    """
    skipped: set[tuple[str, ...]] = set()
    others: dict[tuple[str, ...], Cell | None] = {}
    for overrides, cfg, own in composed(loader, master):
        others[tuple(overrides)] = None
        try:
            parts = Parts(cfg, own)
            others[tuple(overrides)] = cell = parts.cell(grid=True)
            record, note = cell.completed_record(), " (finished before)"
            if record is None and not is_chosen(parts.config, (earlier := cell.earlier()).get("status")):
                record, note = earlier, " (left as it is)"
        except Exception:  # is said when it is the cell's turn
            continue
        if record is None:
            continue
        skipped.add(tuple(overrides))
        del others[tuple(overrides)]
        if record:
            print(cell.summary(record, note=note))

    def split(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        cells = [cell for cell, _ in _launched(overrides) if tuple(cell) not in skipped]
        size = max_batch_size or len(cells) or 1
        return [cells[first : first + size] for first in range(0, len(cells), size)]

    # Hydra has executed the module again when it looked for plugins
    sweeper = Plugins.instance().class_name_to_class[f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"]
    sweeper.split_arguments = staticmethod(split)  # type: ignore[attr-defined]
    # It would compose every cell once more, a tenth of a second each: _studies has composed all choices of components.
    sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[attr-defined]
    return len(skipped), others


def _distinct(cells: list[list[str]]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the first cell for each choice of components, study and outputs, on which alone depends whether it composes."""
    seen = set()
    for cell in cells:
        keys = [override.partition("=")[0].lstrip("+~") for override in cell]
        choices = tuple(
            o for key, o in zip(keys, cell, strict=True) if "." not in key and key not in ("seed", "force")
        )
        if choices not in seen:
            seen.add(choices)
            yield choices, cell


def one_experiment_each(loader: ConfigLoader, master: DictConfig) -> list[tuple[list[str], tuple[str, str]]]:
    """Return the overrides of each experiment in a sweep over experiments, as each sweeps over its own keys.

    The sweep is on the command line, or in the experiment that is named there. Beside the overrides stand the argument that
    names it and the one that names the experiment alone.

    Raises:
        ValueError: the sweep matches no experiment.
    """
    task = list(master.hydra.overrides.task)
    swept = OmegaConf.select(master, "hydra.sweeper.params.experiment")
    for override in _parsed(task, loader):
        if _key(override) == "experiment":
            line = str(override.input_line)
            sweep = override if swept is None else _parsed([f"experiment={swept}"], loader)[0]
            if not sweep.is_sweep_override():
                return []
            names = [f"experiment={name}" for name in sweep.sweep_string_iterator()]
            if not names:
                raise _over_nothing([sweep])
            return [([name if a == line else a for a in task], (line, name)) for name in names]
    return []


def add_search_path(loader: Any, master: DictConfig) -> None:
    """Make ``glob`` find the folders of hydra.searchpath, which Hydra uses only when it composes a cell."""
    path = loader.get_search_path()
    for source in master.hydra.runtime.config_sources:
        if source.provider.startswith("hydra.searchpath"):
            place = f"{source.schema}://{source.path}"
            path.prepend(source.provider, place, SearchPathQuery(provider="schema"))
    loader.repository.initialize_sources(path)


def _parsed(overrides: Any, loader: ConfigLoader | None = None) -> list[Override]:
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


@contextmanager
def varied(variants: Variants) -> Iterator[None]:
    """Meanwhile, launch every cell of a grid once with each of the settings that ``variants`` returns for its overrides.

    So the cells of a grid need not be all combinations of what it sweeps over.
    """
    ReportAfterGrid.variants.append(variants)
    try:
        yield
    finally:
        ReportAfterGrid.variants.pop()


def _launched(overrides: list[Override]) -> Iterator[tuple[list[str], Settings]]:
    """Yield the overrides of every cell, those of its variant last, and the settings of the variant."""
    for cell in _cells(overrides):
        for settings in ReportAfterGrid.variants[-1](cell) if ReportAfterGrid.variants else ({},):
            yield [*cell, *words(settings)], settings


def _cells(overrides: list[Override]) -> list[list[str]]:
    """Return the overrides of every cell, as Hydra's sweeper makes them."""
    return BasicSweeper.split_arguments(overrides, None)[0]


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def trains(runner: DictConfig) -> bool:
    """Return whether a runner trains cells, which ``runner=check`` does not."""
    return bool(runner._target_ != CHECK)
