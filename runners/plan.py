"""What a grid is made of, and what it will take, before anything is trained."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from results.files import HEARTBEAT, RECORD
from results.packed import read_packed
from results.schema import FINISHED, RUNNING
from results.status import STALE, duration, state_of
from runners.cell import Cell
from runners.compose import CONF, Parts, fresh_hydra
from runners.errors import format_error
from runners.grid import (
    add_search_path,
    composable,
    composed,
    is_chosen,
    one_experiment_each,
    trains,
)

STEPS = 5  # that are timed

# what becomes of a cell when the grid is run now, in the order of the table
DONE, TO_DO, INTERRUPTED, FAILED = "done", "to do", "interrupted", "failed"
KINDS = (DONE, RUNNING, TO_DO, INTERRUPTED, FAILED)


@dataclass
class Planned:
    """A cell of a grid.

    Attributes:
        cell: its identity and folder.
        parts: what its configuration names.
        overrides: arguments of the command line of this cell alone.
    """

    cell: Cell
    parts: Parts
    overrides: Sequence[str] = ()

    @cached_property
    def kind(self) -> str:
        """``done``, ``running``, ``to do`` (new), ``interrupted`` (goes on) or ``failed`` (is tried again)."""
        folder, spec = self.cell.folder, self.cell.spec
        if not (folder / RECORD).exists() and not (folder / HEARTBEAT).exists():
            packed = not self.cell.force and spec.place in read_packed(spec.study_folder)
            return DONE if packed else TO_DO
        status = state_of(spec.study_folder, folder).status
        if status in FINISHED:
            return TO_DO if self.cell.force else DONE
        return INTERRUPTED if status == STALE else status

    @property
    def combination(self) -> str:
        """Activation and task with the settings that may change what a step takes, which the seed does not."""
        facts = {name: value for name, value in self.cell.spec.facts.items() if name != "seed"}
        return f"{self.cell.spec.activation} {self.cell.spec.task} {sorted(facts.items(), key=str)}"


@dataclass(frozen=True)
class Estimate:
    """What a cell of a combination takes.

    Attributes:
        step_ms: a training step, data included.
        seconds: the whole training with validation and test, without starting up.
        memory_mb: weights, optimizer state and the peak of a step; Python, torch and the data come on top.
    """

    step_ms: float
    seconds: float
    memory_mb: float


def planned(overrides: Sequence[str]) -> list[Planned]:
    """The cells of the grid that ``python run.py -m`` makes of ``overrides``.

    Raises:
        ValueError: overrides that cannot be composed, or that train nothing.
        HydraException: likewise; ``runners.errors.format_error`` says it to a user.
    """
    with fresh_hydra(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        typed = composable(["--multirun", *overrides])[1:]
        master = loader.load_configuration("config", typed, RunMode.MULTIRUN)
        add_search_path(loader, master)
        masters = [master]
        if experiments := one_experiment_each(loader, master):
            masters = [
                loader.load_configuration("config", chosen, RunMode.MULTIRUN) for chosen, _ in experiments
            ]
        return [cell for master in masters for cell in _planned(loader, master)]


def _planned(loader: Any, master: DictConfig) -> Iterator[Planned]:
    for overrides, cfg, own in composed(loader, master):
        if not trains(cfg.runner):
            raise ValueError(
                f"runner={own.runtime.choices.runner}: trains nothing, so there is nothing to plan"
            )
        parts = Parts(cfg, own)
        yield Planned(parts.cell(grid=True), parts, overrides)


def estimate(parts: Parts, cell: Cell) -> Estimate:
    """Measure a few steps of a cell's training and one validation in full; nothing is written.

    Raises:
        ValueError: a component that cannot be made.
    """
    import torch

    from runners import seeding

    runner, act_layer, task = parts.runner(), parts.act_layer(), parts.task()
    epochs, steps = runner.set_up(task, cell.spec.seed)
    data = iter(task.batches("train", seeding.generator(cell.spec.seed, "data", 0)))
    batch = next(data)
    start = time.perf_counter()
    waited = sum(1 for _ in islice(data, STEPS))
    per_batch = (time.perf_counter() - start) / max(1, waited)
    measured = runner.measured(act_layer, task, batch, cell.spec.seed, epochs)
    step = statistics.median(measured.timed(measured.step) for _ in range(STEPS))
    evaluation = measured.timed(lambda: task.evaluate(measured.network, "val"))
    state = [value for one in measured.optimizer.state.values() for value in one.values()]
    held = (*measured.network.parameters(), *measured.network.buffers(), *state)
    memory = measured.peak_bytes() + sum(t.nbytes for t in held if isinstance(t, torch.Tensor))
    step += per_batch
    return Estimate(1e3 * step, epochs * (steps * step + evaluation) + 2 * evaluation, memory / 1e6)


def report(cells: Sequence[Planned], *, workers: int, measure: bool) -> Iterator[str]:
    """Lines that say what the grid is and what it will take.

    Args:
        workers: cells that are trained at a time.
        measure: whether to say what it will take.
    """
    counts = Counter(planned.kind for planned in cells)
    yield f"{len(cells)} cell{'' if len(cells) == 1 else 's'}: " + ", ".join(
        f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]
    )
    groups: dict[str, list[Planned]] = {}
    for one in cells:
        if one.kind not in (DONE, RUNNING) and is_chosen(one.parts.config, one.kind):
            groups.setdefault(one.combination, []).append(one)
    if not groups or not measure:
        return
    yield f"{'activation':<20} {'task':<20} {'cells':>5} {'ms a step':>10} {'a cell':>10} {'memory':>10}"
    total = longest = 0.0
    unknown = 0
    for group in groups.values():
        cell = group[0].cell
        head = f"{cell.spec.activation:<20} {cell.spec.task:<20} {len(group):>5} "
        try:
            found = estimate(group[0].parts, cell)
        except Exception as error:  # such as data that are not there: its cells will fail
            unknown += len(group)
            yield head + f"cannot be run: {format_error(error)}"
            continue
        total += found.seconds * len(group)
        longest = max(longest, found.seconds)
        yield (
            head + f"{found.step_ms:>10.3g} {duration(found.seconds):>10} {f'{found.memory_mb:.0f} MB':>10}"
        )
    said = f"{duration(max(total / workers, longest))} with {workers} worker{'' if workers == 1 else 's'}"
    yield f"in all {said}" + (f"; {unknown} cells cannot be run" if unknown else "")
