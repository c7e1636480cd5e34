"""The runner that trains nothing and shows a task's data instead."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from results.files import CHECKS, SHEET, SUMMARY, atomic_write, write_text
from runners import seeding
from runners.cell import Cell
from runners.logs import collected
from tasks.base import Task
from tasks.look import MAX_ROWS


@dataclass(frozen=True)
class Check:
    """Print a summary of a task's data, and write it with a contact sheet; nothing is trained."""

    def __call__(self, make_task: Callable[[], Task], cell: Cell) -> Path:
        """Inspect the data of ``cell`` and return the folder that the summary is in.

        The activation of the cell does not matter. The folder lies beside the cells of the study and holds neither a
        configuration nor a record, so that no report takes it for a cell.
        """
        spec = cell.spec
        with collected() as messages:
            task = make_task()
        task.split_for(spec.seed)
        look = task.look(seeding.generator(spec.seed, "data", 0))
        title = f"{spec.task}: {type(task).__name__}, judged by {task.primary_metric}"
        remarks = "\n".join(f"note: {message}" for message in messages)
        settings = {name: value for name, value in spec.facts.items() if name.startswith("task.")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        folder = spec.study_folder / CHECKS / spec.task / f"{spec.seed}-{digest[:10]}"
        write_text(folder / SUMMARY, "\n".join(filter(None, [title, look.text(), remarks])) + "\n")
        if look.figure is not None:
            with atomic_write(folder / SHEET) as temporary:
                look.figure.savefig(temporary, format="png", dpi=130)
        print("\n".join(filter(None, [title, look.text(MAX_ROWS), remarks])))
        print(folder / (SUMMARY if look.figure is None else SHEET), flush=True)
        return folder
