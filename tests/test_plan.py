"""What a grid is made of is known before it runs, and what it will take is measured."""

import re
import sys
from pathlib import Path

import plan as script
import pytest
from conftest import ROOT, config
from omegaconf import OmegaConf

from runners import plan as plan_module
from runners.cell import Cell
from runners.compose import Parts, compose
from runners.composed import check_composed
from runners.grid import is_chosen
from runners.plan import Estimate, Planned, estimate, planned, report


def grid(tmp_path: Path, *overrides: str) -> list[Planned]:
    return planned(
        [f"outputs={tmp_path}", "activation=relu,prelu", "task=sines2d", "seed=range(3)", *overrides]
    )


def put(cell: Cell, status: str) -> None:
    with cell.locked():
        cell.mark_started({})
        cell.write_record(status, primary=1.0, primary_metric="mse", higher_is_better=False)


def test_cells_of_a_plan_are_those_that_run(tmp_path: Path) -> None:
    cells = [one.cell for one in grid(tmp_path, "activation.init=0.5", "activation=prelu")]
    for seed, cell in enumerate(cells):
        words = (
            f"outputs={tmp_path}",
            "activation=prelu",
            "task=sines2d",
            "activation.init=0.5",
            f"seed={seed}",
        )
        assert cell.folder == Parts(*compose(*words)).cell().folder
    assert len(cells) == 3
    assert len(planned(["experiment=demo"])) == 7 * 5 * 3
    assert {one.cell.spec.seed for one in planned(["seed=7", f"outputs={tmp_path}"])} == {7}


@pytest.mark.parametrize(
    ("experiment", "cells"), [("reference", 175), ("regressions", 80), ("ditac_fig1", 15)]
)
def test_committed_cells_are_not_trained_again(experiment: str, cells: int) -> None:
    found = planned([f"experiment={experiment}", "seed=0", f"outputs={ROOT / 'results'}"])
    assert [*report(found, workers=1, measure=False)] == [f"{cells} cells: {cells} done"]


def test_the_reference_study_has_every_part_of_its_group() -> None:
    folder = ROOT / "conf" / "experiment"
    swept = OmegaConf.load(folder / "reference.yaml").hydra.sweeper.params.experiment
    parts = sorted(f"reference/{path.stem}" for path in (folder / "reference").iterdir())
    assert sorted(name.strip() for name in swept.split(",")) == parts


def test_every_cell_is_counted_by_what_becomes_of_it(tmp_path: Path) -> None:
    cells = grid(tmp_path)
    for one, status in zip(cells, ("ok", "diverged", "failed", "interrupted"), strict=False):
        put(one.cell, status)
    with cells[4].cell.locked():
        (line,) = report(grid(tmp_path), workers=1, measure=False)
    assert line == "6 cells: 2 done, 1 running, 1 to do, 1 interrupted, 1 failed"
    (line,) = report(grid(tmp_path, "force=true"), workers=1, measure=False)
    assert line == "6 cells: 4 to do, 1 interrupted, 1 failed"


def test_the_total_is_that_of_the_cells_that_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(parts: Parts, cell: Cell) -> Estimate:
        if cell.spec.activation == "prelu":
            raise ValueError("no data")
        return Estimate(step_ms=2.0, seconds=100.0, memory_mb=7.0)

    monkeypatch.setattr(plan_module, "estimate", known)
    cells = grid(tmp_path)
    put(cells[0].cell, "failed")
    lines = list(report(grid(tmp_path), workers=2, measure=True))
    assert lines[2].split() == ["relu", "sines2d", "3", "2", "100", "s", "7", "MB"]
    assert lines[3].split()[:3] == ["prelu", "sines2d", "3"]
    assert lines[3].endswith("cannot be run: no data")
    assert lines[-1] == "in all 2 min with 2 workers; 3 cells cannot be run"  # 150 s
    assert list(report(grid(tmp_path), workers=9, measure=True))[-1].startswith("in all 100 s")
    only = list(report(grid(tmp_path, "grid.failed=only"), workers=1, measure=True))
    assert [line.split()[2] for line in only[2:-1]] == ["1"]


def test_an_estimate_is_measured(tmp_path: Path) -> None:
    one = grid(tmp_path, "runner.limit_batches=2", "runner.epochs=3", "runner.threads=1")[0]
    found = estimate(one.parts, one.cell)
    assert found.seconds >= 3 * 2 * found.step_ms / 1e3
    assert 0.01 < found.memory_mb < 5
    assert not one.cell.folder.exists()


@pytest.mark.parametrize(
    ("failed", "chosen"),
    [("retry", [True, True, True]), ("skip", [True, True, False]), ("only", [False, False, True])],
)
def test_which_cells_a_grid_runs(failed: str, chosen: list[bool]) -> None:
    statuses = (None, "interrupted", "failed")
    assert [is_chosen({"grid": {"failed": failed}}, status) for status in statuses] == chosen


@pytest.mark.parametrize("override", ["grid.failed=again", "grid.fail_fast=1", "grid.fail_fast=null"])
def test_settings_of_a_grid_are_checked(override: str) -> None:
    with pytest.raises(ValueError, match=re.escape(override).replace("null", "None") + ": must be one of "):
        check_composed(*compose(override))
    check_composed(*compose("grid.failed=only", "grid.fail_fast=true"))
    assert config().grid.failed == "retry"


def test_errors_of_the_script_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (("activation=nothing", "no such activation"), ("runner=check", "trains nothing")):
        monkeypatch.setattr(sys, "argv", ["plan.py", words])
        with pytest.raises(SystemExit, match=said):
            script.main()
