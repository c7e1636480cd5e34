"""Tune settings of the recipe, with the same trials for every activation, and train the cells that are reported.

The trials are cells of the study ``<study>-trials``, with seeds of their own and without a test. The best mean validation
score decides (``results.tuning``). The reported cells are those of the grid at its common recipe, and the same with the
settings chosen for each activation on each task.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from omegaconf import DictConfig, OmegaConf

from activations.checks import check_int
from results.collect import FOLDS
from results.files import flat, words
from results.tuning import COLUMNS, choose, identity, merged, read_trial, read_tuning, write_tuning
from runners.cell import Cell
from runners.errors import no_such_name
from runners.grid import ReportAfterGrid, varied, without_seed
from runners.plan import Planned, planned

PREFIX, TRIALS, SEEDS = "tune.", "tune.trials", "tune.seed"
FIRST_SEED = 1000  # of two trial seeds, unless tune.seed is set
TUNABLE = r"task\.recipe\.\w+|network\.(gain|init|omega|first_bias)"
BUDGET = ("task.recipe.epochs", "task.recipe.batch_size")  # epochs and steps are the same for all
# of the trials, whose scores are all that is needed; ``runner.test`` alone is part of a cell's id
WITHOUT_TEST = ("runner.test=false", "runner.pictures=false", "runner.cost=0", "runner.keep=nothing")

Values = list[Any] | tuple[float, float]  # single values, or the ends of a range


@dataclass(frozen=True)
class Plan:
    """What is tuned.

    Attributes:
        overrides: of the grid that is reported.
        tuned: values of each setting.
        trials: number of trials; None for all combinations of values.
        seeds: of the trials.
    """

    overrides: list[str]
    tuned: dict[str, Values]
    trials: int | None
    seeds: list[int]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "Plan":
        """Read a command line, which is that of a grid with arguments ``tune.<setting>=VALUES`` added.

        Raises:
            ValueError: a setting that cannot be tuned, or values that it cannot have.
        """
        overrides: list[str] = []
        tuned: dict[str, Values] = {}
        trials: Any = None
        seeds: list[Any] = [FIRST_SEED, FIRST_SEED + 1]
        for override in OverridesParser.create().parse_overrides(list(arguments)):
            key, line = override.get_key_element(), str(override.input_line)
            if key == TRIALS:
                trials = override.value()
                check_int(TRIALS, trials, minimum=2)
            elif key == SEEDS:
                seeds = [*_values(override)]
                for seed in seeds:
                    check_int(SEEDS, seed, minimum=0)
            elif key.startswith(PREFIX):
                name = key.removeprefix(PREFIX)
                if name in BUDGET or not re.fullmatch(TUNABLE, name):
                    legal = "task.recipe.<setting> except epochs and batch_size, network.gain, init, omega and first_bias"
                    raise ValueError(f"{key}: cannot be tuned; legal: tune.trials, tune.seed, and of {legal}")
                tuned[name] = _values(override)
            elif key == "seeds":
                overrides.append(line.replace("seeds=", "seed=", 1))
            else:
                overrides.append(line)
        plan = cls(overrides, tuned, trials, seeds)
        plan._check()
        return plan

    def _check(self) -> None:
        if not self.tuned:
            raise ValueError(
                "nothing to tune: add tune.<setting>=VALUES, as in 'tune.task.recipe.lr=[1e-3,1e-2]'"
            )
        for name, values in {SEEDS: self.seeds, **self.tuned}.items():
            if isinstance(values, list) and len({repr(value) for value in values}) < max(1, len(values)):
                raise ValueError(f"{PREFIX * (name != SEEDS)}{name}={values}: each value must be there once")
            if isinstance(values, tuple):
                if self.trials is None:
                    raise ValueError(f"{PREFIX}{name}: a range must have a number of trials, {TRIALS}=N")
                if not 0 < values[0] < values[1]:
                    raise ValueError(f"{PREFIX}{name}={values}: a range must have ends 0 < low < high")
        lists = [len(values) for values in self.tuned.values() if isinstance(values, list)]
        combinations = math.prod(lists) if len(lists) == len(self.tuned) else None
        if combinations is not None and combinations < (self.trials or 2):
            raise ValueError(
                f"{TRIALS}={self.trials}: there are only {combinations} combinations"
                if self.trials
                else f"{', '.join(PREFIX + name for name in self.tuned)}: must have two values or more"
            )

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The settings of every trial: all combinations, or the first points of Halton's quasi-random sequence.

        More trials of the same ranges are further points, so that those of fewer are kept.
        """
        if self.trials is None:
            return [dict(zip(self.tuned, point, strict=True)) for point in product(*self.tuned.values())]
        from scipy.stats import qmc

        sequence = qmc.Halton(len(self.tuned), scramble=False)
        sequence.fast_forward(1)  # the first point is the lower end of everything
        points: dict[str, dict[str, Any]] = {}
        while len(points) < self.trials:
            shares = zip(self.tuned.items(), sequence.random(1)[0], strict=True)
            point = {name: _at(share, values) for (name, values), share in shares}
            points.setdefault(repr(point), point)
        return list(points.values())


def _values(override: Override) -> Values:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return float(value.start or 0), float(value.end or 0)
    if override.is_sweep_override():
        value = [_plain(each) for each in override.sweep_iterator()]
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _at(share: float, values: Values) -> Any:
    """Return the value at a share of a list, or of a range on a logarithmic scale, with three digits."""
    if isinstance(values, list):
        return values[int(share * len(values))]
    low, high = values
    return float(f"{low * (high / low) ** share:.3g}")


@dataclass
class Combination:
    """What settings are chosen for: the cells of a grid that differ in nothing but their seeds.

    Attributes:
        first: one of them.
        common: the tuned settings as the common recipe has them.
        keys: overrides of all of them without their seeds, which differ if two ways lead to the same cell.
    """

    first: Planned
    common: dict[str, Any]
    keys: set[tuple[str, ...]]

    def identity(self, settings: Mapping[str, Any]) -> str:
        """Return the identity of its cells with these ``settings``."""
        return identity(_facts(self.first.cell) | flat(settings))


def _facts(cell: Cell) -> dict[str, Any]:
    return {"activation": cell.spec.activation, "task": cell.spec.task, **cell.spec.facts}


class Tuning:
    """A grid whose settings are tuned.

    Args:
        arguments: of ``Plan.of``.

    Raises:
        ValueError: as of ``Plan.of``; a grid that is not one study, or whose seeds are among those of the trials; earlier
            trials of the same task that are others.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.plan = Plan.of(arguments)
        cells = planned(self.plan.overrides)
        studies = {one.cell.spec.study_folder for one in cells}
        if len(studies) > 1:
            raise ValueError(
                f"study={','.join(sorted(study.name for study in studies))}: tune one study at a time"
            )
        (self.study,) = studies
        if both := sorted({one.cell.spec.seed for one in cells} & set(self.plan.seeds)):
            named = ", ".join(map(str, both))
            raise ValueError(f"{SEEDS}={named}: must not be among the seeds that are reported")
        self.combinations = self._combinations(cells)
        self.points = self._points()
        merged(read_tuning([self.study]), self.rows())  # has the same trials for all, or an error

    def _combinations(self, cells: Sequence[Planned]) -> dict[str, Combination]:
        found: dict[str, Combination] = {}
        for one in cells:
            common = {name: _selected(one.parts.cfg, name) for name in self.plan.tuned}
            key = identity(_facts(one.cell))
            found.setdefault(key, Combination(one, common, set())).keys.add(without_seed(one.overrides))
            if (folds := OmegaConf.select(one.parts.cfg, FOLDS)) is not None:
                raise ValueError(
                    f"{FOLDS}={folds}: cannot be tuned, as trials would see what other folds test on"
                )
        if len({each.identity(self.plan.points[0]) for each in found.values()}) < len(found):
            names = ", ".join(self.plan.tuned)
            raise ValueError(f"{names}: is tuned, so the grid itself must have one value of it")
        return found

    def _points(self) -> list[dict[str, Any]]:
        """The trials' settings; a whole number is a float where the common recipe has one, as in an lr of 1 or 1.0."""
        common = [each.common for each in self.combinations.values()]
        floats = {name for name in self.plan.tuned if any(isinstance(each[name], float) for each in common)}
        return [
            {
                name: float(value) if name in floats and type(value) is int else value
                for name, value in point.items()
            }
            for point in self.plan.points
        ]

    @property
    def trial_study(self) -> str:
        """The study of the trials, beside the one that is reported."""
        return f"{self.study.name}-trials"

    @property
    def trial_overrides(self) -> list[str]:
        """The grid of the trials, each of whose cells is trained with all ``points``."""
        typed = [line for line in self.plan.overrides if not re.match(r"\+{0,2}(seed|study)=", line)]
        seeds = ",".join(map(str, self.plan.seeds))
        return [*typed, f"study={self.trial_study}", f"seed={seeds}", *WITHOUT_TEST]

    def trial_cells(self, combination: Combination, settings: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """Return study and place of a trial's cells, one for each seed, as ``trial_overrides`` lead to them."""
        parts = combination.first.parts
        config = OmegaConf.create(parts.config)
        for name, value in {"study": self.trial_study, "runner.test": False, **settings}.items():
            OmegaConf.update(config, name, value)
        values = cast(dict[str, Any], OmegaConf.to_container(config))
        specs = [parts.spec(values | {"seed": seed}) for seed in self.plan.seeds]
        return [(spec.study_folder, spec.place) for spec in specs]

    def rows(
        self, read: Callable[[Sequence[tuple[Path, str]]], dict[str, Any]] = lambda cells: {}
    ) -> pd.DataFrame:
        """Return the rows of ``tuning.csv``.

        Args:
            read: what the cells of a trial say of it, ``results.tuning.read_trial``.
        """
        blank = {"n": 0, "diverged": 0, "failed": 0, "chosen": False, "tie": False, "on_edge": ""}
        groups = []
        for common_id, combination in self.combinations.items():
            spec = combination.first.cell.spec
            facts = {"task": spec.task, "activation": spec.activation, "common_id": common_id}
            facts["trial_seeds"] = " ".join(map(str, self.plan.seeds))
            rows = []
            for number, point in enumerate(self.points, start=1):
                trial_id = combination.identity(point)
                row = {"trial": number, "id": trial_id, "common": trial_id == common_id}
                row["settings"] = " ".join(words(point))
                rows.append(blank | facts | row | read(self.trial_cells(combination, point)))
            if not any(row["common"] for row in rows):
                row = {"settings": " ".join(words(combination.common)), "id": common_id, "common": True}
                rows.append(blank | facts | row)
            groups.append(choose(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)))
        return pd.concat(groups, ignore_index=True)

    def variants(self, rows: pd.DataFrame) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """Return, by the ``_key`` of a cell, the settings that it is reported with: the common recipe's and those chosen."""
        found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for common_id, combination in self.combinations.items():
            chosen = rows[(rows["common_id"] == common_id) & rows["chosen"] & ~rows["common"]]
            settings = [{}, *(self.points[int(trial) - 1] for trial in chosen["trial"])]
            found |= dict.fromkeys(combination.keys, settings)
        return found


def tune(arguments: Sequence[str], run: Callable[[Sequence[str]], bool]) -> bool:
    """Train the trials, choose, and train the reported cells; returns whether no cell has failed.

    Args:
        arguments: of ``Plan.of``.
        run: trains the grid of a command line, and returns whether none of its cells has failed.

    Raises:
        ValueError: as of ``Tuning``; a trial that has not ended.
    """
    tuning = Tuning(arguments)
    try:
        with varied(lambda cell: tuning.points):
            good = run(tuning.trial_overrides)
    finally:
        ReportAfterGrid.studies.clear()  # trials have no scores to report
    rows = tuning.rows(read_trial)
    write_tuning(tuning.study, rows)
    for row in rows[rows["chosen"]].itertuples():
        print(
            f"{row.activation} {row.task}: {row.settings} is chosen, val {row.metric}={row.val:.4g}",
            flush=True,
        )
    variants = tuning.variants(rows)
    with varied(lambda cell: variants[without_seed(cell)]):
        return good & run(tuning.plan.overrides)


def _selected(cfg: DictConfig, name: str) -> Any:
    """Return the value of a setting.

    Raises:
        ValueError: there is no such setting.
    """
    place, _, key = name.rpartition(".")
    parent = OmegaConf.select(cfg, place)
    if key not in parent:
        raise ValueError(no_such_name(f"{PREFIX}{name}", parent))
    value = parent[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
