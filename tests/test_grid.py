"""Grids through the real command line: many cells, failures among them, twice, and at the same time."""

import io
import json
import multiprocessing
import re
import signal
import sys
import time
from pathlib import Path

import forked
import pandas as pd
import pytest
from conftest import PROCESS, ROOT, command, make_cell
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus

from runners.cell import CellFailedError
from runners.compose import compose
from runners.grid import end_workers, is_worker
from runners.launch import LAUNCHERS, Progress, check_installed

GRID = ("-m", "activation=relu,prelu,swish", "task=digits", "seed=range(2)", "runner=smoke", "study=grid")


def records(tmp_path: Path) -> pd.DataFrame:
    paths = (tmp_path / "outputs").glob("*/*/*/*/record.json")
    return pd.DataFrame([json.loads(path.read_text()) for path in paths])


def modified(tmp_path: Path) -> dict[str, int]:
    files = (tmp_path / "outputs" / "grid" / "digits").rglob("*")
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file()}


def test_a_grid_its_report_and_the_same_again(tmp_path: Path, cli) -> None:
    first = cli(*GRID)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    found = records(tmp_path)
    assert len(found) == 6
    assert set(found["status"]) == {"ok"}
    for _, record in found.iterrows():
        folder = f"{tmp_path}/outputs/grid/digits/{record['activation']}/{record['seed']}-{record['cell']}"
        line = f"{record['activation']} digits seed={record['seed']} top1={record['primary']:.4g} {folder}"
        assert line in first.stdout.splitlines()
    report = tmp_path / "outputs" / "grid" / "report"
    assert first.stdout.splitlines()[-1] == f"page: {report / 'index.html'}"
    table = pd.read_csv(report / "leaderboard.csv")
    assert sorted(table["activation"]) == ["prelu", "relu", "swish"]
    assert set(table["n"]) == {2}
    for kind in ("scores", "learning_curves"):
        for suffix in ("svg", "png"):
            assert (report / "figures" / f"{kind}-digits.{suffix}").stat().st_size > 5000

    before = modified(tmp_path)
    start = time.monotonic()
    again = cli(*GRID)
    assert again.returncode == 0
    assert modified(tmp_path) == before
    assert again.stdout.count("(finished before)") == 6
    assert time.monotonic() - start < 60

    forced = cli(*GRID, "force=true", "activation=relu")
    assert forced.returncode == 0
    changed = {path for path, when in modified(tmp_path).items() if before.get(path) != when}
    assert {Path(path).parts[-3] for path in changed} == {"relu"}
    scores = ["activation", "seed", "primary"]
    pd.testing.assert_frame_equal(
        found[scores].sort_values(scores).reset_index(drop=True),
        records(tmp_path)[scores].sort_values(scores).reset_index(drop=True),
    )


def test_a_finished_cell_is_skipped_without_torch_or_data(tmp_path: Path, cli) -> None:
    arguments = ("activation=relu", "task=digits", "runner=smoke")
    assert cli(*arguments).returncode == 0
    poisoned = tmp_path / "poison"
    for name in ("torch", "torchvision", "sklearn", "pandas", "matplotlib", "scipy"):
        (poisoned / name).mkdir(parents=True)
        (poisoned / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    again = cli(*arguments, env=PROCESS["env"] | {"PYTHONPATH": str(poisoned)})
    assert again.returncode == 0, again.stderr
    assert again.stdout.rstrip().endswith("(finished before)")


def test_digits_do_not_import_torchvision_or_the_report(tmp_path: Path, cli) -> None:
    poisoned = tmp_path / "poison"
    for name in ("torchvision", "pandas", "matplotlib", "scipy"):
        (poisoned / name).mkdir(parents=True)
        (poisoned / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    run = cli("runner=smoke", env=PROCESS["env"] | {"PYTHONPATH": str(poisoned)})
    assert run.returncode == 0, run.stderr


def test_one_failing_cell_stops_no_other(tmp_path: Path, cli) -> None:
    run = cli("-m", "activation=prelu", "activation.init=0.1,nan,0.3", "runner=smoke", "study=grid")
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    line = "activation.init=nan runner=smoke study=grid failed: activation=prelu: init=nan: "
    assert line in run.stderr
    found = records(tmp_path).set_index("activation.init")["status"]
    assert sorted(found) == ["failed", "ok", "ok"]
    table = pd.read_csv(tmp_path / "outputs" / "grid" / "report" / "leaderboard.csv")
    assert sorted(table["activation"]) == ["prelu[init=0.1]", "prelu[init=0.3]", "prelu[init=NaN]"]
    assert table.set_index("activation")["failures"]["prelu[init=NaN]"] == "1 failed"
    text = (tmp_path / "outputs" / "grid" / "report" / "leaderboard.md").read_text()
    assert "init=nan: " in text

    bad = cli("-m", "seed=-1,0", "runner=smoke", "study=grid")  # no cell at all
    assert bad.returncode != 0
    assert "seed=-1: must be an integer >= 0" in bad.stderr
    assert bad.stdout.splitlines()[-1].startswith("page: ")

    again = cli("-m", "activation=prelu", "activation.init=0.1,nan,0.3", "runner=smoke", "study=grid")
    assert again.returncode != 0
    assert again.stdout.count("(finished before)") == 2  # the failed cell is tried again
    left = cli(
        *("-m", "activation=prelu", "activation.init=0.1,nan,0.3", "runner=smoke", "study=grid"),
        "grid.failed=skip",
    )
    assert left.returncode == 0
    assert left.stdout.count("(left as it is)") == 1

    fast = (
        "activation=prelu",
        "activation.init=0.1,nan,0.2",
        "runner=smoke",
        "study=fast",
        "grid.fail_fast=true",
    )
    stopped = cli("-m", *fast)
    assert stopped.returncode != 0
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout.splitlines()[-1].startswith("page: ")
    found = records(tmp_path).query("study == 'fast'").set_index("activation.init")["status"]
    assert sorted(found) == ["failed", "ok"]  # and the last one was not begun


def test_a_diverged_cell_is_a_result(tmp_path: Path, cli) -> None:
    arguments = ("task=sines2d", "task.recipe.lr=1e30", "runner.epochs=2")
    run = cli(*arguments)
    assert run.returncode == 0, run.stderr
    assert "diverged (loss not finite in epoch 0)" in run.stdout
    assert "(finished before)" in cli(*arguments).stdout


def test_two_identical_grids_at_the_same_time(tmp_path: Path) -> None:
    arguments = command(
        tmp_path, "-m", "activation=relu,prelu", "seed=range(2)", "runner.epochs=3", "study=grid"
    )
    pair = [forked.Script(arguments[1:], cwd=ROOT, env=PROCESS["env"]) for _ in range(2)]
    ends = [script.finish() for script in pair]
    assert [end.returncode for end in ends] == [0, 0], ends
    found = records(tmp_path)
    assert len(found) == 4
    assert set(found["status"]) == {"ok"}
    trained = [
        re.findall(r"^(\w+ digits seed=\d) top1=[^ ]+ [^ ]+$", end.stdout, re.MULTILINE) for end in ends
    ]
    assert sorted(trained[0] + trained[1]) == sorted(
        f"{name} digits seed={seed}" for name in ("relu", "prelu") for seed in (0, 1)
    ), "every cell is trained exactly once"
    table = pd.read_csv(tmp_path / "outputs" / "grid" / "report" / "leaderboard.csv")
    assert list(table["n"]) == [2, 2]


def test_cells_in_parallel_processes_give_the_same_scores(tmp_path: Path, cli) -> None:
    grid = ("-m", "activation=relu,prelu", "runner=smoke", "runner.threads=1")
    one = cli(*grid, "study=one")
    two = cli(
        *grid, "study=two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.verbose=0"
    )
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    scores = records(tmp_path).pivot(index="activation", columns="study", values="test_loss")
    assert scores["one"].equals(scores["two"].rename("one"))


def test_workers_are_ended_with_the_grid() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    end_workers()
    assert worker.exitcode == -signal.SIGTERM
    assert not is_worker()


@pytest.mark.parametrize(("name", "extra"), [("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, hydra = compose(f"hydra/launcher={name}")
    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", {})
    with pytest.raises(ValueError, match=rf"hydra/launcher={name}: needs .*'actbench\[{extra}\]'"):
        check_installed(hydra)
    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", dict.fromkeys(LAUNCHERS))
    check_installed(hydra)


def test_the_launching_process_says_what_becomes_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Trained, failed, interrupted, killed, not begun, another process's, impossible."""
    cells = {(f"seed={seed}",): make_cell(tmp_path, f"seed={seed}") for seed in range(6)} | {
        ("seed=-1",): None
    }
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    ended = [JobReturn(status=JobStatus.COMPLETED)] * 2
    other = JobReturn(status=JobStatus.COMPLETED, _return_value="another process is training it")
    bad = JobReturn(status=JobStatus.FAILED, _return_value=CellFailedError("seed=-1 failed: must be >= 0"))
    with Progress(cells, finished=3, fail_fast=False) as progress:
        cells["seed=0",].write_record("ok", primary=0.5, primary_metric="top1")
        cells["seed=1",].write_record("failed", reason="disk full")
        cells["seed=2",].write_record("interrupted", reason="SIGTERM in epoch 1")
        cells["seed=3",].write_record("interrupted")
        progress.tell_ends([list(key) for key in cells], [*ended, None, None, None, other, bad])
    out = capsys.readouterr().out.splitlines()
    assert out == [f"toy digits seed=0 top1=0.5 {cells['seed=0',].folder}", "another process is training it"]
    said = re.split(r"[\r\n]+", screen.getvalue())
    lines = [line for line in said if line.startswith("actbench: ")]
    assert lines == [
        "actbench: seed=1 failed: disk full",
        f"actbench: toy digits seed=2 interrupted (SIGTERM in epoch 1) {cells['seed=2',].folder}",
        f"actbench: toy digits seed=3 interrupted {cells['seed=3',].folder}; its process was killed, the same command "
        "resumes it",
        "actbench: seed=-1 failed: must be >= 0",
        "actbench: 1 cell was not begun; the same command runs them",
    ]
    shown = [line for line in said if "cells" in line and line not in lines]
    assert shown[0].startswith("3/10 cells, 0 failed, 00:0")
    assert shown[-1].startswith("10/10 cells, 5 failed, ")
    assert not progress.must_stop
