"""Grids in several processes: of joblib, and of a real Slurm and a real Ray, which each test starts and stops itself.

``make test-cluster`` installs what they need.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import PROCESS, ROOT
from test_resume import assert_same_end

pytestmark = pytest.mark.cluster

# long enough to be hit in the middle
CELL = (
    "activation=prelu",
    "task.recipe.epochs=25",
    "runner.threads=1",
    "runner.cost=0",
    "runner.pictures=false",
)
GRID = ("activation=relu,prelu", "seed=range(2)", "runner=smoke", "runner.threads=1")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
RAY = ("hydra/launcher=ray",)


class Grid:
    """``python run.py -m`` in a process of its own, with outputs in a folder."""

    def __init__(self, outputs: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        line = [sys.executable, "run.py", "-m", *arguments, f"outputs={outputs}"]
        settings = {"env": PROCESS["env"] | (env or {}), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.outputs = outputs
        self.process = subprocess.Popen(line, cwd=ROOT, text=True, **settings)

    def finish(self, status: int) -> str:
        """Return what the grid has said on stdout; its exit status must be ``status``."""
        try:
            out, self.err = self.process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == status, out + self.err
        assert "Traceback" not in self.err
        return out

    def training(self) -> tuple[Path, int]:
        """Return folder and process of the only cell when it is in the middle."""
        while self.process.poll() is None:
            found = list(self.outputs.glob("*/*/*/*/metrics.csv"))
            if (
                found
                and len(found[0].read_text().splitlines()) > 8
                and (found[0].parent / "heartbeat.json").exists()
            ):
                return found[0].parent, json.loads((found[0].parent / "heartbeat.json").read_text())["pid"]
            time.sleep(0.05)
        raise AssertionError(self.process.communicate())


def only_cell(outputs: Path) -> Path:
    return next(outputs.glob("*/*/*/*/record.json")).parent


def records(outputs: Path) -> dict[str, tuple[float, int]]:
    """Scores, and when they were written, by cell."""
    found = {}
    for path in outputs.glob("*/*/*/*/record.json"):
        record = json.loads(path.read_text())
        found[record["cell"]] = record["test_loss"], path.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed")
    Grid(outputs, *CELL).finish(0)
    return only_cell(outputs)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of the grid in one process."""
    outputs = tmp_path_factory.mktemp("scores")
    Grid(outputs, *GRID).finish(0)
    return {cell: loss for cell, (loss, _) in records(outputs).items()}


def check_grid(
    outputs: Path, scores: dict[str, float], *launcher: str, env: dict[str, str] | None = None
) -> str:
    """A grid has the scores of one process and a report; run again, it trains nothing. Returns what it said at first."""
    first = Grid(outputs, *GRID, *launcher, env=env).finish(0)
    trained = records(outputs)
    assert {cell: loss for cell, (loss, _) in trained.items()} == scores
    assert len(re.findall(r"^(?:relu|prelu) digits seed=\d top1=\S+ \S+$", first, re.M)) == 4
    assert first.splitlines()[-1] == f"page: {outputs / 'main' / 'report' / 'index.html'}"
    again = Grid(outputs, *GRID, *launcher, env=env).finish(0)
    assert again.count("(finished before)") == 4
    assert records(outputs) == trained
    return first


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of one node, this machine; yields the environment in which its commands reach it."""
    if find_spec("submitit") is None:
        pytest.skip("the extra slurm is not installed: make test-cluster")
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    if not all(map(shutil.which, programs)):
        if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
            pytest.skip("installing Slurm needs Debian and root")
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "slurm-wlm", "munge"]):
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        if not all(map(shutil.which, programs)):
            pytest.skip(f"Slurm could not be installed: {run.stderr.strip().splitlines()[-1:]}")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm needs root")
    # a path that is short enough for sockets
    folder = Path("/tmp") / f"actbench-slurm-{os.getpid()}"
    folder.mkdir(mode=0o755)
    host = socket.gethostname().partition(".")[0]
    (folder / "key").write_bytes(os.urandom(64))
    (folder / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=3
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 NodeHostname={host} CPUs={os.cpu_count()} RealMemory=1024 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    env = PROCESS["env"] | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    lines = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge", f"--key-file={folder}/key", *files],
        ["slurmctld", "-D", "-f", env["SLURM_CONF"]],
        ["slurmd", "-D", "-f", env["SLURM_CONF"]],
    )
    daemons = []
    try:
        for line in lines:
            with (folder / f"{line[0]}.log").open("w") as log:
                daemons.append(subprocess.Popen(line, env=env, stdout=log, stderr=log))
            time.sleep(1)
        wait_for(lambda: "idle" in ask(env, "sinfo", "--noheader", "--format=%T"), seconds=60)
        yield {"SLURM_CONF": env["SLURM_CONF"]}
        subprocess.run(["scancel", "--user=root"], env=env, check=False)
        wait_for(lambda: not ask(env, "squeue", "--noheader"), seconds=60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(60)
        shutil.rmtree(folder)


def ask(env: dict[str, str], *command: str) -> str:
    run = subprocess.run(command, env=PROCESS["env"] | env, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def wait_for(condition: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_grid_on_slurm(tmp_path: Path, slurm: dict[str, str], scores: dict[str, float]) -> None:
    out = check_grid(tmp_path, scores, *SLURM, env=slurm)
    assert re.search(r"^Slurm job \d+: 4 cells; ", out, re.M)


@pytest.mark.parametrize("how", ["scancel", "SIGKILL"])
def test_a_job_of_slurm_that_is_ended_is_resumed_by_the_same_command(
    tmp_path: Path, slurm: dict[str, str], undisturbed: Path, how: str
) -> None:
    grid = Grid(tmp_path, *CELL, *SLURM, env=slurm)
    cell, pid = grid.training()
    if how == "scancel":
        ask(slurm, "scancel", "--user=root")
    else:
        os.kill(pid, signal.SIGKILL)
    out = grid.finish(1)
    assert out.splitlines()[-1].startswith("page: ")
    record = json.loads((cell / "record.json").read_text())
    assert record["status"] == "interrupted"
    assert ("SIGTERM" in str(record["reason"])) == (how == "scancel")
    Grid(tmp_path, *CELL, *SLURM, env=slurm).finish(0)
    assert "resumed at epoch" in (cell / "log.txt").read_text()
    assert_same_end(cell, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_job_of_slurm_that_is_preempted_is_requeued_and_resumed(
    tmp_path: Path, slurm: dict[str, str], undisturbed: Path, name: str
) -> None:
    grid = Grid(tmp_path, *CELL, *SLURM, env=slurm)
    cell, _ = grid.training()
    job = ask(slurm, "squeue", "--noheader", "--format=%i")
    ask(slurm, "scancel", f"--signal={name.removeprefix('SIG')}", job)
    wait_for(lambda: ask(slurm, "squeue", "--noheader", "--format=%T") == "PENDING", seconds=60)
    assert name in json.loads((cell / "record.json").read_text())["reason"]
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else it waits for two minutes
    grid.finish(0)
    assert "resumed at epoch" in (cell / "log.txt").read_text()
    assert_same_end(cell, undisturbed)


def test_ending_the_process_that_launched_a_job_of_slurm_leaves_the_job(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    grid = Grid(tmp_path, *CELL, *SLURM, env=slurm)
    cell, _ = grid.training()
    grid.process.send_signal(signal.SIGINT)
    grid.finish(130)
    wait_for(lambda: json.loads((cell / "record.json").read_text())["status"] == "ok", seconds=300)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_grid_of_joblib_that_is_ended_leaves_no_worker_and_is_resumed(
    tmp_path: Path, undisturbed: Path, number: int
) -> None:
    grid = Grid(tmp_path, *CELL, "seed=0,1,2", *JOBLIB)
    grid.training()
    wait_for(lambda: len(pids(tmp_path)) == 2, seconds=60)
    workers = pids(tmp_path)
    grid.process.send_signal(number)
    grid.process.wait(10)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=10)
    grid.finish(-number if number == signal.SIGKILL else 128 + number)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/*/*/record.json")]
    assert [record["status"] for record in found] == ["interrupted"] * 2
    assert all("SIG" in record["reason"] for record in found)
    Grid(tmp_path, *CELL, "seed=0", *JOBLIB).finish(0)
    cell = next(tmp_path.glob("*/*/*/0-*"))
    assert "resumed at epoch" in (cell / "log.txt").read_text()
    assert_same_end(cell, undisturbed)


def test_a_worker_of_joblib_that_is_killed(tmp_path: Path) -> None:
    grid = Grid(tmp_path, *CELL, "seed=0,1,2,3", *JOBLIB)
    _, pid = grid.training()
    os.kill(pid, signal.SIGKILL)
    out = grid.finish(1)
    assert out.splitlines()[-1].startswith("page: ")
    assert re.search(
        r"^actbench: prelu digits seed=\d interrupted \S+; its process was killed, ", grid.err, re.M
    )
    assert "cells were not begun; the same command runs them" in grid.err


def pids(outputs: Path) -> set[int]:
    """The processes that train a cell."""
    return {json.loads(path.read_text())["pid"] for path in outputs.glob("*/*/*/*/heartbeat.json")}


@pytest.fixture
def ray() -> None:
    if find_spec("ray") is None or find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("the extra ray is not installed: make test-cluster")


def test_a_grid_on_ray(tmp_path: Path, ray: None, scores: dict[str, float]) -> None:
    check_grid(tmp_path, scores, *RAY)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_task_of_ray_whose_worker_is_ended_goes_on_in_another(
    tmp_path: Path, ray: None, undisturbed: Path, number: int
) -> None:
    grid = Grid(tmp_path, *CELL, *RAY)
    cell, pid = grid.training()
    os.kill(pid, number)
    grid.finish(0)
    assert "resumed at epoch" in (cell / "log.txt").read_text()
    assert_same_end(cell, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_grid_on_ray_that_is_ended_leaves_no_worker_and_is_resumed(
    tmp_path: Path, ray: None, undisturbed: Path, number: int
) -> None:
    grid = Grid(tmp_path, *CELL, *RAY)
    cell, pid = grid.training()
    grid.process.send_signal(number)
    grid.finish(-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds=10)
    record = json.loads((cell / "record.json").read_text())
    assert record["status"] == "interrupted"
    Grid(tmp_path, *CELL, *RAY).finish(0)
    assert_same_end(cell, undisturbed)
