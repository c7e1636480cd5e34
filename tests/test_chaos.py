"""Kills inside writes, by scripts/chaos.py; what it takes for a fault is one, and what it takes for none is none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from chaos import Lab, planned
from conftest import PROCESS, ROOT, train
from toy import Toy


@pytest.mark.slow  # 19 s of processor time, most of it for the reports of three grids
def test_workers_that_are_killed_inside_writes_come_to_the_same_end(tmp_path: Path) -> None:
    command = [
        "scripts/chaos.py",
        "--only",
        "kills",
        "--kills",
        4,
        "--seeds",
        1,
        "--keep",
        tmp_path / "studies",
    ]
    run = forked.run(command, cwd=ROOT, env=PROCESS["env"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ok     4 kills of two workers (2 at random, 2 inside 2 kinds of write)" in run.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    train(folder, Toy, "runner=smoke", "study=undisturbed")
    (cell,) = folder.glob("undisturbed/digits/toy/*")
    return cell


def worse(cell: Path) -> None:
    record = json.loads((cell / "record.json").read_text())
    (cell / "record.json").write_text(json.dumps(record | {"primary": record["primary"] * (1 + 1e-15)}))


def another_bit(cell: Path) -> None:
    state = torch.load(cell / "checkpoint.pt", weights_only=True)
    weight = next(value for value in state["network"].values() if value.is_floating_point())
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    torch.save(state, cell / "checkpoint.pt")


def another_curve(cell: Path) -> None:
    with np.load(cell / "curves.npz") as arrays:
        values = dict(arrays)
    np.savez(cell / "curves.npz", **values | {"x": values["x"] + 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cell: None, None),
        (worse, "record.json: differs"),
        (another_bit, "checkpoint.pt: differs"),
        (another_curve, "curves.npz: differs"),
        (lambda cell: (cell / ".record.json.1@here.tmp").touch(), "left over: .record.json.1@here.tmp"),
        (lambda cell: (cell / "metrics.csv").unlink(), "left over: metrics.csv"),
        (lambda cell: (cell / "record.json").write_text("{"), "record.json: JSONDecodeError"),
    ],
)
def test_what_differs_is_noted(
    undisturbed: Path, tmp_path: Path, change: Callable[[Path], None], said: str | None
) -> None:
    lab = Lab(undisturbed.parents[3], seeds=1, seed=0)
    cell = shutil.copytree(undisturbed, tmp_path / Path(*undisturbed.parts[-3:]))
    change(cell)
    lab.check_cell(cell)
    assert [said in problem for problem in lab.problems][:1] == ([True] if said else []), lab.problems


@pytest.mark.parametrize(
    ("saved", "begun", "good"), [(3, 3, True), (3, 4, True), (2, 3, True), (4, 4, False), (2, 2, False)]
)
def test_an_epoch_that_is_saved_twice_is_noted(tmp_path: Path, saved: int, begun: int, good: bool) -> None:
    """A kill may come between a renaming and its line in the journal."""
    journal = tmp_path / "x.journal"
    journal.write_text("+digits/relu/0-a\n" * begun + "=digits/relu/0-a\n" * saved)
    lab = Lab(tmp_path, seeds=1, seed=0)
    lab.check_training(journal, cells=1)
    assert bool(lab.problems) is not good
    lab.problems.clear()
    lab.check_training(journal)
    assert "1 cells trained instead of 2" in lab.problems[0]


def test_half_of_the_kills_are_inside_writes_of_every_kind(tmp_path: Path) -> None:
    kills = [*planned(Lab(tmp_path, seeds=1, seed=0), 50)]
    inside = [kill for kill in kills if not isinstance(kill, float)]
    assert len(inside) == 25
    assert len(set(map(str, inside))) == 25
    assert {"record.json halfway", "heartbeat.json removing", "index.html halfway"} <= set(map(str, inside))
