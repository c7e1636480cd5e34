"""Watching and cleaning a study: what runs, what is gone, and nothing of a running cell is touched."""

import os
import platform
import re
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import clean
import pytest
import status
import torch
from conftest import PROCESS, make_cell, train
from toy import Toy

from results.collect import add_labels, read_records
from results.files import HEARTBEAT, write_json
from results.leaderboard import leaderboard
from results.schema import RUNNING
from results.status import SILENT, STALE, duration, seconds_left, states, summary
from runners import heartbeat
from runners.cell import Cell


def ended(cell: Cell, state: str = "ok") -> None:
    """Make ``cell`` one that has ended."""
    with cell.locked():
        cell.mark_started({"primary_metric": "top1", "higher_is_better": True})
        (cell.folder / "metrics.csv").write_text("epoch,split,loss,top1\n0,train,1,50\n0,val,1,61.25\n")
        (cell.folder / "checkpoint.pt").write_bytes(b"x" * 1000)
        cell.write_record(state, primary=61.25 if state == "ok" else None)


def status_of(cell: Cell) -> str:
    (found,) = [state.status for state in states(cell.spec.study_folder) if state.folder == cell.folder]
    return found


def test_a_cell_from_its_start_to_its_end(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, activation="relu")
    with cell.locked():
        assert status_of(cell) == RUNNING
        cell.mark_started({"primary_metric": "top1"})
        (cell.folder / "metrics.csv").write_text("epoch,split,loss,top1\n0,train,1,50\n0,val,1,61.25\n")
        cell.heartbeat.progress = lambda: {"epoch": 1, "epochs": 4, "step": 5, "steps": 10, "rate": 0.5}
        cell.heartbeat._write()
        line = summary(tmp_path / "main", states(tmp_path / "main")).splitlines()[-1]
        where = f"{platform.node()}:{os.getpid()}"
        assert re.split(r"\s{2,}", line)[:3] == ["relu digits seed=0", where, "2/4"]
        assert "50 s" in line  # of 25 steps
        assert "top1=61.25" in line
        assert status_of(cell) == RUNNING  # asking did not take the lock away
        (row,) = read_records(tmp_path / "main").to_dict("records")
        assert (row["status"], row["seed"]) == (RUNNING, 0)
        table = leaderboard(add_labels(read_records(tmp_path / "main")))
        assert table["failures"].tolist() == ["1 running"]
    assert not (cell.folder / HEARTBEAT).exists()
    assert status_of(cell) == "interrupted"
    assert read_records(tmp_path / "main")["status"].tolist() == ["interrupted"]
    assert "1 cell: 1 interrupted" in summary(tmp_path / "main", states(tmp_path / "main"))


def test_a_killed_process_leaves_a_stale_cell_that_runs_again(tmp_path: Path) -> None:
    cell = make_cell(tmp_path)
    ended(cell, "interrupted")
    beat = {"host": platform.node(), "pid": os.getpid()}  # a number that another process has by now
    write_json(cell.folder / HEARTBEAT, beat)
    assert status_of(cell) == STALE
    assert "its process is gone" in summary(tmp_path / "main", states(tmp_path / "main"))
    with cell.locked():
        assert status_of(cell) == RUNNING
    assert status_of(cell) == "interrupted"


def test_a_cell_on_another_machine_is_told_by_its_heartbeat(tmp_path: Path) -> None:
    cell = make_cell(tmp_path)
    ended(cell, "interrupted")
    write_json(cell.folder / HEARTBEAT, {"host": "elsewhere", "pid": 1})
    assert status_of(cell) == RUNNING
    assert clean.clean(cell.spec.study_folder, remove=True) == (0, 0)
    silent = time.time() - SILENT - 1
    for written in (silent, time.time() + 2 * SILENT):  # the second before the clock was set back
        os.utime(cell.folder / HEARTBEAT, (written, written))
        assert status_of(cell) == STALE
    (cell.folder / HEARTBEAT).write_text("{")
    assert status_of(cell) == STALE


def test_a_finished_cell_has_no_heartbeat_whenever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes the lock of a finished cell again, so nobody would remove it."""
    cell = make_cell(tmp_path)
    beating: dict[str, bool] = {}

    def write(path: Path, values: dict) -> None:
        beating[values["status"]] = (cell.folder / HEARTBEAT).exists()
        write_json(path, values)

    monkeypatch.setattr("runners.cell.write_json", write)
    ended(cell)
    assert beating == {"interrupted": True, "ok": False}
    write_json(cell.folder / HEARTBEAT, {"host": platform.node(), "pid": 1})  # of an earlier version
    assert status_of(cell) == "ok"


def test_the_heart_beats_while_a_cell_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[dict] = []
    beat, forward = threading.Event(), Toy.forward

    def write(path: Path, values: dict) -> None:
        beats.append(values)
        beat.set()

    def after_a_beat(toy: Toy, x: torch.Tensor) -> torch.Tensor:
        """Wait, as an epoch of five steps may take less than the time between two beats."""
        beat.clear()
        beat.wait(5)
        return forward(toy, x)

    monkeypatch.setattr(heartbeat, "EVERY", 0.02)
    monkeypatch.setattr(heartbeat, "write_json", write)
    monkeypatch.setattr(Toy, "forward", after_a_beat)
    train(tmp_path, Toy, "runner.epochs=3", "runner.limit_batches=5", "runner.pictures=false", task="sines2d")
    told = [beat for beat in beats if "epoch" in beat]
    assert {(beat["epochs"], beat["steps"], beat["pid"]) for beat in told} == {(3, 5, os.getpid())}
    assert told[-1]["epoch"] == 3
    assert told[-1]["rate"] > 0
    assert "epoch" not in beats[0]


def test_only_what_nobody_needs_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make = partial(make_cell, tmp_path)
    done, diverged, stopped, running = (make(f"seed={seed}") for seed in range(4))
    ended(done)
    ended(diverged, "diverged")
    ended(stopped, "interrupted")
    ended(running)
    study = done.spec.study_folder
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **PROCESS, check=True)
    orphan = f".x.{int(process.stdout)}@{platform.node()}.tmp"
    orphans = [study / "report" / orphan, done.folder / "pictures" / orphan]
    for path in orphans:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    write_json(stopped.folder / HEARTBEAT, {"host": platform.node(), "pid": 1})
    superfluous = {*orphans, stopped.folder / HEARTBEAT}
    superfluous |= {cell.folder / "checkpoint.pt" for cell in (done, diverged)}
    with running.locked():
        before = {path: path.stat().st_size for path in study.rglob("*") if path.is_file()}
        count, size = clean.clean(study, remove=False)
        assert {Path(line.partition(": ")[0]) for line in capsys.readouterr().out.splitlines()} == superfluous
        assert (count, size) == (5, sum(before[path] for path in superfluous))
        assert all(path.exists() for path in before)
        assert clean.clean(study, remove=True) == (count, size)
        after = {path for path in study.rglob("*") if path.is_file()}
    assert {path for path in before.keys() - after if path.parent.name != ".locks"} == superfluous
    assert done.completed_record() is not None
    assert clean.clean(study, remove=True)[0] == 1  # of the one that ran


def test_both_scripts_say_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (status, clean):
        monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "none")])
        with pytest.raises(SystemExit, match="none: no such folder"):
            script.main()
    monkeypatch.setattr(sys, "argv", ["status.py", "x", "--watch", "0"])
    with pytest.raises(SystemExit):
        status.main()


def test_watching_needs_no_torch() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import status, clean; print({'torch', 'pandas'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], **PROCESS, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("beat", "seconds"),
    [
        ({"epoch": 1, "epochs": 4, "step": 5, "steps": 10, "rate": 0.5}, 50),
        ({"epoch": 1, "epochs": 4, "step": 5, "steps": 10, "rate": 0}, None),
        ({"epoch": "x", "epochs": 4, "step": 5, "steps": 10, "rate": 1}, None),
        ({}, None),
    ],
)
def test_time_left(beat: dict, seconds: float | None) -> None:
    assert seconds_left(beat) == seconds


def test_durations() -> None:
    assert duration(7199) == "120 min"
    assert duration(7200) == "2.0 h"
