"""The runner that trains nothing: an early look at a task's data."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from results.files import CHECKS, SHEET, SUMMARY, replacing, write_text
from runners import seeding
from runners.cell import Cell
from tasks.base import Task
from tasks.look import LISTED

log = logging.getLogger("actbench")


@dataclass(frozen=True)
class Check:
    """Say what a task's data are, write it down with a contact sheet, and train nothing."""

    def __call__(self, make_task: Callable[[], Task], cell: Cell) -> Path:
        """Look at the data of ``cell``, whose activation does not matter; the folder that the look is in.

        That lies beside the cells of the study and holds neither a configuration nor a record, so that no report takes
        it for one of them.
        """
        with _heard() as said:
            task = make_task()
        task.split_for(cell.seed)
        look = task.look(seeding.generator(cell.seed, "data", 0))
        title = f"{cell.task}: {type(task).__name__}, judged by {task.primary_metric}"
        remarks = "\n".join(f"note: {message}" for message in said)
        settings = {name: value for name, value in cell.facts.items() if name.startswith("task.")}
        id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        folder = cell.study_folder / CHECKS / cell.task / f"{cell.seed}-{id}"
        write_text(folder / SUMMARY, "\n".join(filter(None, [title, look.text(), remarks])) + "\n")
        if look.figure is not None:
            with replacing(folder / SHEET) as temporary:
                look.figure.savefig(temporary, format="png", dpi=130)
        print("\n".join(filter(None, [title, look.text(LISTED), remarks])))
        print(folder / (SUMMARY if look.figure is None else SHEET), flush=True)
        return folder


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is logged meanwhile, which a cell writes to its log.txt."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
