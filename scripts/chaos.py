"""Kill, race, fill, tear and move small studies, and check that each comes to the undisturbed one's result, bit for bit.

python scripts/chaos.py [--kills 50] [--only kills,races,parent,disk,torn,clock]    # minutes; for POSIX systems

A line for each scenario, with figures; the exit status is not 0 if anything is trained twice, mixed or left over.
"""

import argparse
import csv
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _faults import FULL, KILLED, POINTS, REMOVING, Fault, Process
from _here import ROOT, command_line

from results.files import (
    CHECKPOINT,
    CLASSES,
    CONFIG,
    CONFUSION,
    CURVES,
    DAMAGED,
    EXAMPLES,
    GIVEN_UP,
    HEARTBEAT,
    METRICS,
    PAGE,
    RECORD,
    REPORT,
    find_cells,
)

# imported once, for all processes
SHARED = (
    *("hydra.main", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("pandas", "scipy.stats"),
    *("sklearn.datasets", "torch.utils.data", "runners.train", "tasks.classification", "results.report"),
)

EPOCHS = 3
SETTINGS = (
    "task=digits",
    f"runner.epochs={EPOCHS}",
    "runner.limit_batches=3",
    "runner.cost=0.01",
    "runner.threads=1",
)
ONE = ("activation=pwlu", "seed=0", *SETTINGS)  # the one cell of the scenarios that need no more
RACERS = 16

# every kind of file that is written, the most important first; of a report three stand for all
KINDS = (
    *(RECORD, METRICS, CHECKPOINT, CURVES, HEARTBEAT, CONFIG, PAGE),
    *(EXAMPLES, CLASSES, CONFUSION, "confusion.png", "digits-*.json", "leaderboard.csv", "scores-*.svg"),
)
PART = 8  # of the bytes of a finished cell's file are written before a kill; early versions of it are smaller
SEVERAL = (RECORD, METRICS, CHECKPOINT)  # are written several times by a process

# what differs between two runs of a cell that are otherwise equal: times, and what was measured
VOLATILE = {
    *("started", "written", "command", "study", "sessions", "train_seconds", "loop_seconds"),
    *("seconds_per_epoch", "step_ms", "inference_ms", "step_ratio", "inference_ratio", "cost_floor"),
    *("cost_rounds", "seconds", "samples_per_s", "git_commit"),
}
COMPARED = ("task", "activation", "n", "mean", "std", "rank_low", "rank_high", "verdict", "failures")
DAY = 86_400.0


class Lab:
    """A folder of studies that are disturbed, and the undisturbed ones that they are compared with.

    Args:
        folder: where the studies lie; an empty one.
        seeds: of each of the two activations.
        seed: of what happens at random.
    """

    def __init__(self, folder: Path, seeds: int, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.grid, self.cells = ("-m", "activation=relu,pwlu", f"seed=range({seeds})", *SETTINGS), 2 * seeds
        self.problems: list[str] = []
        self.reference, self.seconds = folder / "undisturbed", 0.0
        self.processes: list[Process] = []

    def expect(self, condition: bool, problem: str) -> None:
        """Note a problem unless ``condition`` holds."""
        if not condition:
            self.problems.append(problem)

    def start(
        self, study: str, *overrides: str, outputs: Path | None = None, script: str = "run.py", **how: Any
    ) -> Process:
        """Start run.py on a study; of another script, ``overrides`` is the whole command line."""
        settings = [f"outputs={outputs or self.folder}", f"study={study}"] if script == "run.py" else []
        arguments = [str(ROOT / script), *(o for o in overrides if o == "-m"), *settings]
        arguments += [o for o in overrides if o != "-m"]
        output = self.folder / f"process{len(self.processes)}.txt"
        self.processes.append(Process(arguments, **({"output": output, "cwd": self.folder} | how)))
        return self.processes[-1]

    def finish(self, study: str, *overrides: str, **how: Any) -> Process:
        """Run to the end what must end well."""
        process = self.start(study, *overrides, **how)
        status = process.wait()
        self.expect(status == 0, f"{study}: exit status {status}: {process.err.strip()[-300:]}")
        return process

    def refused(self, message: str, study: str, *overrides: str, **how: Any) -> None:
        """Run to the end what must end with one line that contains ``message``."""
        process = self.start(study, *overrides, **how)
        status, lines = process.wait(), process.err.splitlines()
        good = status == 1 and len(lines) == 1 and message in lines[0]
        self.expect(
            good, f"{study}: one line with {message!r} expected, not status {status}: {process.err[-300:]}"
        )

    def run_undisturbed(self) -> None:
        """Run the study that the others are compared with."""
        since = time.monotonic()
        self.finish(self.reference.name, *self.grid)
        self.seconds = time.monotonic() - since

    def copy(self, study: str, outputs: Path | None = None) -> Path:
        """Return a copy of the undisturbed study, with the times of its files."""
        return shutil.copytree(self.reference, (outputs or self.folder) / study)

    def check(self, study: Path, reference: Path | None = None) -> None:
        """Note what of a study is missing, left over or not the same as in the undisturbed one."""
        reference = reference or self.reference
        before, now = (set(relative(folder)) for folder in (reference, study))
        self.expect(not now - before, f"{study.name}: left over: {', '.join(map(str, sorted(now - before)))}")
        self.expect(not before - now, f"{study.name}: missing: {', '.join(map(str, sorted(before - now)))}")
        for cell in find_cells(reference):
            self.check_cell(study / cell.relative_to(reference), cell)
        tables = [rows_of(folder / REPORT / "leaderboard.csv", COMPARED) for folder in (reference, study)]
        self.expect(tables[0] == tables[1], f"{study.name}: another leaderboard")

    def check_cell(self, cell: Path, reference: Path | None = None, beside: Iterable[str] = ()) -> None:
        """Note what of a cell is not the same as in the undisturbed one.

        Args:
            beside: files that it has in addition.
        """
        reference = reference or self.reference.joinpath(*cell.parts[-3:])
        files = [{*relative(folder)} for folder in (reference, cell)]
        extra = files[0] ^ files[1] ^ {Path(name) for name in beside}
        self.expect(not extra, f"{cell}: missing or left over: {', '.join(map(str, sorted(extra)))}")
        for name, read in (
            (RECORD, lambda path: json.loads(path.read_text())),
            (CHECKPOINT, lambda path: torch.load(path, weights_only=True)),
            (METRICS, rows_of),
            (CLASSES, rows_of),
            (CURVES, arrays_of),
            (EXAMPLES, arrays_of),
            (CONFIG, settings_of),
        ):
            try:
                equal = same(read(cell / name), read(reference / name))
            except Exception as error:
                self.problems.append(f"{cell / name}: {type(error).__name__}: {error}")
            else:
                self.expect(equal, f"{cell / name}: differs from the undisturbed one")

    def check_training(self, journal: Path, cells: int | None = None) -> int:
        """Note cells of which an epoch was saved twice, or never; returns the number of saved epochs."""
        marks = Counter((line[0], Path(line[1:]).name) for line in journal.read_text().splitlines())
        names = {name for _, name in marks}
        cells = cells or self.cells
        self.expect(len(names) == cells, f"{journal.stem}: {len(names)} cells trained instead of {cells}")
        for name in sorted(names):
            # a kill may come between a renaming and its line, on either side of it
            saved, begun = marks["=", name], marks["+", name]
            self.expect(
                saved <= EPOCHS <= begun,
                f"{journal.stem}: {name}: {saved} of {EPOCHS} epochs saved in {begun} attempts",
            )
        return sum(marks["=", name] for name in names)


# scenarios ---------------------------------------------------------------------------------------------------------


def kills(lab: Lab, count: int) -> str:
    """SIGKILL two workers at random times and inside every kind of write."""
    queue: deque[Fault | float] = deque(planned(lab, count))
    places: Counter[str] = Counter()
    studies = 0
    while queue and not lab.problems:
        study, journal = f"kills{studies}", lab.folder / f"kills{studies}.journal"
        studies += 1
        workers: list[tuple[Process, Fault | float, float]] = []
        done = False
        while workers or (queue and not done):
            while len(workers) < 2 and queue and not done:
                fault = queue.popleft()
                at = fault if isinstance(fault, Fault) else None
                worker = lab.start(study, *lab.grid, journal=journal, fault=at)
                workers.append((worker, fault, time.monotonic()))
            for entry in workers.copy():
                process, fault, since = entry
                if not isinstance(fault, Fault) and time.monotonic() - since > fault:
                    process.kill()
                if (status := process.poll()) is None:
                    continue
                workers.remove(entry)
                if status in KILLED:
                    places[str(fault) if isinstance(fault, Fault) else "random"] += 1
                    continue
                queue.append(fault)
                lab.expect(status == 0, f"{study}: exit status {status}: {process.err[-300:]}")
                done = is_complete(lab.folder / study, lab.cells) or bool(lab.problems)
            time.sleep(0.01)
        lab.finish(study, *lab.grid, journal=journal)
        lab.check(lab.folder / study)
        lab.check_training(journal)
    at_random = places.pop("random", 0)
    kinds = len({name.rpartition(" ")[0] for name in places})
    return (
        f"{places.total() + at_random} kills of two workers ({at_random} at random, {places.total()} inside {kinds} "
        f"kinds of write) in {studies} studies of {lab.cells} cells"
    )


def planned(lab: Lab, count: int) -> Iterator[Fault | float]:
    """Yield ``count`` kills: in turn inside a write and after so many seconds."""
    order = [(kind, point) for point in ("halfway", *(p for p in POINTS if p != "halfway")) for kind in KINDS]
    order.insert(len(KINDS), (HEARTBEAT, REMOVING))
    for number in range(count):
        if number % 2:
            yield lab.random.uniform(0.05, lab.seconds / 2)
            continue
        kind, point = order[number // 2 % len(order)]
        sizes = [path.stat().st_size for path in lab.reference.rglob(kind)]
        nth = lab.random.randint(1, EPOCHS) if kind in SEVERAL else 1
        yield Fault(kind, point, nth=nth, size=min(sizes, default=100) // PART)


def races(lab: Lab) -> str:
    """Start many grids over the same cells at once: each cell is trained by one of them."""
    journal = lab.folder / "races.journal"
    racers = [lab.start("races", *lab.grid, journal=journal) for _ in range(RACERS)]
    for racer in racers:
        status = racer.wait(600)
        lab.expect(status == 0, f"races: exit status {status}: {racer.err[-300:]}")
    trained = [
        line for racer in racers for line in racer.out.splitlines() if " top1=" in line and line[-1] != ")"
    ]
    lab.expect(
        len(trained) == len(set(trained)) == lab.cells, f"races: {len(trained)} cells trained: {trained}"
    )
    lab.finish("races", *lab.grid)
    lab.check(lab.folder / "races")
    lab.check_training(journal)
    return f"{RACERS} racers on {lab.cells} cells: {len(trained)} trained"


def parent(lab: Lab) -> str:
    """Kill the process that launched joblib's workers: they save and end, and the grid goes on later."""
    grid = ("-m", "activation=relu,pwlu", "seed=0", *SETTINGS[:1], "runner.epochs=150", *SETTINGS[2:])
    lab.finish("long", *grid)
    command = [sys.executable, str(ROOT / "run.py"), "-m", f"outputs={lab.folder}", "study=parent", *grid[1:]]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.verbose=0"]
    launched = subprocess.Popen(
        [*command, *launcher], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    study = lab.folder / "parent"
    deadline = time.monotonic() + 200
    while len([*study.rglob(METRICS)]) < 2 and launched.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = descendants(launched.pid)
    launched.kill()
    launched.wait()
    since = time.monotonic()
    while (alive := workers & running()) and time.monotonic() < since + 30:
        time.sleep(0.1)
    ended = time.monotonic() - since
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    lab.expect(len(workers) >= 2, f"parent: {len(workers)} workers were running")
    lab.expect(not alive, f"parent: {len(alive)} workers still run after {ended:.0f} s")
    records = [json.loads(path.read_text()) for path in study.rglob(RECORD)]
    reasons = {str(record["reason"]).partition(" ")[0] for record in records}
    lab.expect(len(records) == 2 and reasons == {"SIGTERM"}, f"parent: {records}")
    lab.finish("parent", *grid)
    lab.check(study, lab.folder / "long")
    return f"kill -9 of joblib's parent: {len(workers)} processes ended in {ended:.1f} s, 2 cells saved and resumed"


def disk(lab: Lab) -> str:
    """Let the disk be full in an epoch, a checkpoint, a record, curves and a report."""
    with small_disk(lab.folder / "disk") as mounted:
        outputs = lab.folder / "disk"
        outputs.mkdir(exist_ok=True)
        filler = outputs / "filler" if mounted else None
        message = "No space left" if mounted else "File too large"
        cases = ((METRICS, 2), (CHECKPOINT, 2), (RECORD, 1), (RECORD, 2), (CURVES, 1))
        for number, (kind, nth) in enumerate(cases):
            study = f"full{number}"
            journal = lab.folder / f"{study}.journal"
            fault = Fault(kind, FULL, nth=nth, size=20, filler=filler)
            lab.refused(message, study, *ONE, outputs=outputs, fault=fault, journal=journal)
            lab.expect(not [*(outputs / study).rglob("*.tmp")], f"{study}: left over: a temporary file")
            (outputs / "filler").unlink(missing_ok=True)
            lab.finish(study, *ONE, outputs=outputs, journal=journal)
            lab.check_cell(one_of(outputs / study))
            lab.check_training(journal, cells=1)
            shutil.rmtree(outputs / study)
        whole = lab.copy("fullreport", outputs)
        before = contents(whole)
        fault = Fault(PAGE, FULL, size=20, filler=filler)
        lab.refused(message, whole.name, *lab.grid, outputs=outputs, fault=fault)
        (outputs / "filler").unlink(missing_ok=True)
        lab.expect(contents(whole) == before, "fullreport: the report before, or a cell, has changed")
        lab.finish(whole.name, *lab.grid, outputs=outputs)
        lab.check(whole)
    means = "a tmpfs" if mounted else "RLIMIT_FSIZE, as no tmpfs can be mounted"
    return f"full at {len(cases)} writes of a cell and in a report, by {means}"


def torn(lab: Lab) -> str:
    """Tear files, put others of their kind in their place, and let arrays claim to be huge: nothing is trained again."""
    whole = lab.finish("undisturbed", str(lab.reference), script="scripts/report.py").memory
    study = lab.copy("torn")
    cell = study.joinpath(*one_of(lab.reference).parts[-3:])
    undisturbed = one_of(lab.reference)
    count = 0

    # Of a finished cell: record and configuration are needed, the rest is for the report.
    for name in (RECORD, CONFIG):
        tear(cell / name)
        before = contents(cell)
        lab.refused(str(Path(*cell.parts[-4:]) / name), "torn", *ONE)
        lab.expect(contents(cell) == before, f"torn {name}: a file of the cell has changed")
        shutil.copy2(undisturbed / name, cell / name)
        count += 1
    tear(cell / RECORD)
    lab.finish("torn", "-m", *ONE, "force=true")
    lab.check_cell(cell)
    for damaged in ({METRICS: tear}, {CURVES: tear, EXAMPLES: tear}, {CURVES: claim, EXAMPLES: claim}):
        for name, damage in damaged.items():
            damage(cell / name)
            count += 1
        before = contents(cell)
        process = lab.finish("torn", *ONE)
        lab.expect("(finished before)" in process.out, f"torn {', '.join(damaged)}: trained again")
        process = lab.finish("torn", str(study), script="scripts/report.py")
        lab.expect(contents(cell) == before, f"torn {', '.join(damaged)}: the report has changed the cell")
        text = (study / REPORT / "leaderboard.md").read_text()
        for name in damaged.keys() - {EXAMPLES}:  # without it there is one interval less, an empty field
            lab.expect(f"/{name}" in text.replace("\\", ""), f"torn {name}: the report does not say it")
        grown = (process.memory - whole) / 1e6
        lab.expect(grown < 300, f"torn {', '.join(damaged)}: the report took {grown:.0f} MB more")
        if CURVES in damaged:
            lab.refused(CURVES, "torn", str(cell), script="scripts/plot_cell.py")
        for name in damaged:
            shutil.copy2(undisturbed / name, cell / name)
    lab.finish("torn", str(study), script="scripts/report.py")
    lab.check(study)

    # Of a cell that was killed: its checkpoint is kept aside until the user decides.
    for damage in (tear, other_content):
        name = f"torn-{damage.__name__}"
        kill_one(lab, name, Fault(CHECKPOINT, "renamed", nth=2))
        tear(one_of(lab.folder / name) / HEARTBEAT)
        lab.finish(name, str(lab.folder / name), script="scripts/status.py")
        damage(one_of(lab.folder / name) / CHECKPOINT)
        count += 2
        for _ in range(2):
            lab.refused(f"kept as {DAMAGED}; force=true", name, *ONE)
        lab.finish(name, *ONE, "force=true")
        lab.check_cell(one_of(lab.folder / name), beside=[GIVEN_UP])
    return f"{count} torn, exchanged or huge files: each said in one line"


def clock(lab: Lab) -> str:
    """Set the clock back, change the time zone and move the folder between the epochs of a cell."""
    journal, first, second = lab.folder / "clock.journal", lab.folder / "here", lab.folder / "there"
    kill_one(lab, "clock", Fault(CHECKPOINT, "renamed"), journal=journal, outputs=first)
    for path in [*first.rglob("*")]:  # To a clock that was set back, files come from the future.
        os.utime(path, (time.time() + 365 * DAY,) * 2)
    how: dict[str, Any] = {"env": {"TZ": "Pacific/Kiritimati"}, "prepare": set_back}
    kill_one(lab, "clock", Fault(CHECKPOINT, "renamed"), journal=journal, outputs=first, **how)
    first.rename(second)
    lab.finish("clock", *ONE, outputs=second, journal=journal, env={"TZ": "America/Adak"}, cwd=ROOT.parent)
    cell = one_of(second / "clock")
    lab.check_cell(cell)
    lab.check_training(journal, cells=1)

    third = second.rename(lab.folder / "elsewhere")
    cell, before = one_of(third / "clock"), contents(third)
    stray = third / "clock" / REPORT / ".index.html.1@another.example.tmp"
    stray.parent.mkdir()
    stray.touch()
    os.utime(stray, (time.time() + 365 * DAY,) * 2)
    for zone in ("Pacific/Kiritimati", "America/Adak"):
        process = lab.finish("clock", *ONE, outputs=third, env={"TZ": zone}, prepare=set_back)
        lab.expect("(finished before)" in process.out, f"clock: trained again in {zone}")
    lab.expect(
        {k: v for k, v in contents(third).items() if k in before} == before, "clock: a file has changed"
    )
    lab.finish("clock", str(third / "clock"), script="scripts/report.py")
    lab.expect(not stray.exists(), f"clock: left over: {stray}")
    return "clock set back by a day and a year, 3 time zones, folder moved twice: 1 cell, 3 epochs"


SCENARIOS: dict[str, Callable[..., str]] = {
    function.__name__: function for function in (kills, races, parent, disk, torn, clock)
}


# what they share ---------------------------------------------------------------------------------------------------


def kill_one(lab: Lab, study: str, fault: Fault, **how: Any) -> None:
    """Kill a process that trains the one cell."""
    status = lab.start(study, *ONE, fault=fault, **how).wait()
    lab.expect(status in KILLED, f"{study}: not killed at {fault}")


def one_of(study: Path) -> Path:
    """Return the folder of the cell that ``ONE`` trains."""
    (cell,) = (study / "digits" / "pwlu").glob("0-*")
    return cell


def is_complete(study: Path, cells: int) -> bool:
    """Return whether all cells of a grid are finished and reported."""
    texts = [path.read_text() for path in study.glob(f"*/*/*/{RECORD}")]
    return (
        sum(json.loads(text)["status"] == "ok" for text in texts) == cells
        and (study / REPORT / PAGE).exists()
    )


def relative(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, relative to it."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return content and time of all files of a folder but what Hydra writes at each start of a grid."""
    return {
        path: ((folder / path).read_bytes(), (folder / path).stat().st_mtime_ns)
        for path in relative(folder)
        if path.name != "multirun.yaml"
    }


def rows_of(path: Path, names: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Return the rows of a table, of some columns or all."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: row[name] for name in names or row} for row in csv.DictReader(file)]


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file."""
    with np.load(path) as arrays:
        return dict(arrays)


def settings_of(path: Path) -> list[str]:
    """Return the lines of a configuration that do not say where the study is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(("study:", "outputs:", "force:"))]


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal to the last bit, but for what is ``VOLATILE``."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (one.keys() | other.keys()) - VOLATILE
        return all(n in one and n in other and same(one[n], other[n]) for n in names)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return bool(one == other)


def tear(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_content(path: Path) -> None:
    """Put a valid file of torch with other content in place of a checkpoint."""
    torch.save({"weight": torch.zeros(2)}, path)


def claim(path: Path) -> None:
    """Put arrays of a few bytes in place of those in a file that claim to have 4e9 numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (4_000_000_000,)}
    )
    names = list(arrays_of(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", header.getvalue())


def set_back() -> None:
    """Set this process's clock back by a day after half a second."""
    true, since = time.time, time.monotonic()
    time.time = lambda: true() - (DAY if time.monotonic() > since + 0.5 else 0.0)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 16 MB on ``folder``, and say whether that was possible."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "actbench", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def descendants(pid: int) -> set[int]:
    """Return the processes that ``pid`` started, and those that they did."""
    parents = _parents()
    below: set[int] = set()
    while new := {child for child, above in parents.items() if above in {pid, *below}} - below:
        below |= new
    return below


def running() -> set[int]:
    """Return all processes."""
    return {*_parents()}


def _parents() -> dict[int, int]:
    """Return the parent of each process that has not ended."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    fields = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid): int(above) for pid, above, state in fields if not state.startswith("Z")}


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__, "chaos.py --kills 50")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="number of SIGKILLs (50)")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="of each of two activations (4)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens at random (0)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="an empty folder for the studies, which stay there"
    )
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"--only {unknown[0]}: must be some of {', '.join(SCENARIOS)}")
    for name in ("kills", "seeds"):
        if (count := getattr(arguments, name)) < 1:
            parser.error(f"--{name} {count}: must be an integer >= 1")
    if arguments.keep is None:
        with tempfile.TemporaryDirectory(prefix="actbench-chaos-") as folder:
            good = run(Path(folder).resolve(), names, arguments)
    else:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        if any(arguments.keep.iterdir()):
            parser.error(f"--keep {arguments.keep}: must be an empty folder")
        good = run(arguments.keep.resolve(), names, arguments)
    sys.exit(not good)


def run(folder: Path, names: list[str], arguments: argparse.Namespace) -> bool:
    """Run the scenarios, print a line for each, and return whether all is well."""
    torch.set_num_threads(1)  # what forks must not have threads
    for module in SHARED:
        importlib.import_module(module)
    lab, good = Lab(folder, arguments.seeds, arguments.seed), True
    lab.run_undisturbed()
    if lab.problems:
        names = []
        print("\n".join(["undisturbed FAILED", *lab.problems]))
    for name in names:
        since = time.monotonic()
        lab.problems.clear()
        try:
            figures = SCENARIOS[name](lab, *([arguments.kills] if name == "kills" else []))
        except (OSError, ValueError, TimeoutError) as error:
            figures = "stopped"
            lab.problems.append(f"{type(error).__name__}: {error}")
        finally:
            for process in lab.processes:
                process.kill()
        verdict = "ok    " if not lab.problems else "FAILED"
        print(f"{name:7} {verdict} {figures}; {time.monotonic() - since:.0f} s", flush=True)
        for problem in lab.problems:
            print(f"  {problem}", flush=True)
        good &= not lab.problems
    return good and bool(names)


if __name__ == "__main__":
    main()
