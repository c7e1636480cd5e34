"""Find what a study's cells no longer need: checkpoints of finished cells, files of killed processes.

python scripts/clean.py outputs/<study> [--yes]     # without --yes it only says what it would remove
"""

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

from _here import command_line, one_line_errors
from filelock import Timeout

from results.files import CHECKPOINT, HEARTBEAT, RECORD, cell_folders, is_abandoned
from results.schema import FINISHED, RUNNING, read_record
from results.status import cell_lock, state_of


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "clean.py outputs/main --yes")
    parser.add_argument("study", type=Path, help="the study's folder, outputs/<study>")
    parser.add_argument("--yes", action="store_true", help="remove the files")
    arguments = parser.parse_args()
    with one_line_errors():
        count, size = clean(arguments.study, remove=arguments.yes)
    said = "removed" if arguments.yes else "can be removed: --yes removes them"
    print(f"{count} file{'' if count == 1 else 's'}, {size / 1e6:.1f} MB, {said}")


def clean(study: Path, *, remove: bool) -> tuple[int, int]:
    """Print what can be removed, or remove it; returns the number of files and their bytes.

    Raises:
        ValueError: no study in this folder.
    """
    count = size = 0
    for path, why in superfluous(study, remove=remove):
        with suppress(FileNotFoundError):  # another process was faster
            bytes_ = path.stat().st_size
            if remove:
                path.unlink()
            print(f"{path}: {why}")
            count, size = count + 1, size + bytes_
    return count, size


def superfluous(study: Path, *, remove: bool) -> Iterator[tuple[Path, str]]:
    """Each file that nobody needs and why; to remove a cell's its lock is held, so that it cannot start meanwhile."""
    for folder in cell_folders(study):
        if state_of(study, folder).status == RUNNING:
            continue
        lock = cell_lock(study, folder)
        # Another process may just have started the cell, and hold its lock.
        with suppress(Timeout), lock.acquire(timeout=0) if remove else nullcontext():
            yield from _of_cell(folder)
    for path in sorted(study.rglob(".*.tmp")):
        with suppress(FileNotFoundError):
            if is_abandoned(path):
                yield path, "left by a process that was killed"


def _of_cell(folder: Path) -> Iterator[tuple[Path, str]]:
    if (folder / HEARTBEAT).exists():
        yield folder / HEARTBEAT, "its process is gone"
    with suppress(ValueError, OSError):  # a damaged record says nothing
        record = read_record(folder / RECORD) or {}
        if record.get("status") in FINISHED and (folder / CHECKPOINT).exists():
            yield folder / CHECKPOINT, "the cell is finished"


if __name__ == "__main__":
    main()
