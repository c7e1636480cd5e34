"""One cell on several processes: the same end as on one, one writer, and one line when something goes wrong.

The processes talk by gloo, on CPUs. torchrun itself is not started: it sets the variables that these tests set, and ends the
others when one has ended.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pytest
import torch
from conftest import PROCESS, ROOT, command

SIZE = 2
STORES: list[Any] = []  # kept while the processes need them
SHORT = ("runner.epochs=2", "runner.cost=0", "runner.pictures=false", "runner.threads=1")

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


def start(tmp_path: Path, *overrides: str, size: int = SIZE) -> list[forked.Script]:
    """Start ``run.py`` on ``size`` processes, as torchrun does, whose own process holds the store; on one, without it."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)
    env = PROCESS["env"] | {"PYTHONPATH": str(Path(__file__).parent), "GLOO_SOCKET_IFNAME": "lo"}
    together = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    together["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    ranks = [together | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(size)] if size > 1 else [{}]
    line = command(tmp_path, *overrides)[1:]
    return [forked.Script(line, cwd=ROOT, env=env | rank) for rank in ranks]


def finish(scripts: list[forked.Script]) -> list[tuple[int, str, str]]:
    ends = [script.finish() for script in scripts]
    return [(end.returncode, end.stdout, end.stderr) for end in ends]


def said(ends: list[tuple[int, str, str]]) -> list[str]:
    """What the processes print on stderr, less the remarks of torch's own logger, which ``run.py`` turns off before it imports torch."""
    text = "\n".join(err for _, _, err in ends)
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("actbench: ")]


def run(tmp_path: Path, *overrides: str, size: int = SIZE) -> Path:
    """Train a cell and return its folder."""
    ends = finish(start(tmp_path, *overrides, size=size))
    assert [status for status, _, _ in ends] == [0] * size, ends
    assert [len(out.splitlines()) for _, out, _ in ends] == [1] + [0] * (size - 1)
    return cell(tmp_path)


def cell(tmp_path: Path) -> Path:
    (record,) = tmp_path.glob("**/record.json")
    return record.parent


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def metrics(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv").drop(columns=["seconds", "samples_per_s"])


def assert_same_to_rounding(one: Path, several: Path, tolerance: float) -> None:
    """Weights, statistics and metrics, relative to the largest value of each tensor, or to 0.05 if that is more.

    Such as FReLU's biases, which a norm makes idle, are noise around 0.
    """
    weights, others = (state(folder)["network"] for folder in (one, several))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        scale = max(0.05, value.double().abs().max().item())
        difference = (others[name].double() - value.double()).abs().max().item() / scale
        assert difference <= tolerance, f"{name}: {difference:.1e}"
    pd.testing.assert_frame_equal(metrics(one), metrics(several), rtol=20 * tolerance, atol=1e-4)
    assert one.name == several.name  # the cell's id


def test_two_processes_come_to_the_end_of_one(tmp_path: Path) -> None:
    """With batch norm and PWLU's statistics over both, Adam's bias correction, and batches that do not divide evenly."""
    settings = (
        *("task=digits", "activation=pwlu", *SHORT, "runner.limit_batches=5", "logger=tensorboard"),
        *("task.recipe.optimizer=adam", "task.recipe.lr=0.003", "task.recipe.batch_size=63"),
    )
    one, two = run(tmp_path / "one", *settings, size=1), run(tmp_path / "two", *settings)
    assert_same_to_rounding(one, two, 2e-5)
    record, alone = (json.loads((folder / "record.json").read_text()) for folder in (two, one))
    assert record["num_processes"] == SIZE
    assert alone["num_processes"] is None  # as cells from before there were several
    assert record["sessions"][0]["num_processes"] == SIZE
    assert record["status"] == "ok"
    assert "runner.sync_batch_norm" not in record  # so that cells from before it keep their ids
    assert (two / "log.txt").read_text().count("started at epoch 0") == 1
    # Only one process logs: the others would replace what it has written.
    events = [[path.stat().st_size for path in folder.rglob("events.*")] for folder in (one, two)]
    assert events[0] == pytest.approx(events[1], rel=0.05), events
    assert len(events[1]) == 1
    assert not list(tmp_path.glob("**/heartbeat.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("task=digits", "activation=frelu"),
        ("task=digits", "activation=ditac", "task.recipe.clip_norm=0.1"),  # a penalty
        ("task=digits", "activation=prelu", "task.recipe.mixup=0.2", "runner.activation_only_epochs=1"),
        # not Adam, whose steps follow the sign of gradients however small
        (
            *("task=shapes_small", "activation=prelu", "runner.limit_batches=2"),
            *("task.recipe.optimizer=sgd", "task.recipe.lr=0.05"),
        ),
        ("task=sines2d", "activation=pwlu", "runner.limit_batches=30"),
        ("task=diabetes", "activation=pwlu_channel"),
        # few steps, as its kinks amplify rounding with every step: 0.108 after 16 on a processor with bf16 instructions
        (
            *("task=digits", "activation=npwlu", "runner.limit_batches=4"),
            *("runner.amp=bf16", "runner.channels_last=true"),
        ),
    ],
    ids=" ".join,
)
def test_every_kind_of_task_and_unit(settings: tuple[str, ...], tmp_path: Path) -> None:
    one, two = (
        run(tmp_path / str(size), *SHORT, "runner.limit_batches=8", *settings, size=size) for size in (1, 2)
    )
    assert_same_to_rounding(one, two, 0.1 if "runner.amp=bf16" in settings else 2e-4)


@pytest.mark.slow
def test_norms_of_their_own_part(tmp_path: Path) -> None:
    """The record of rank 0's statistics: other ones than those of the whole batch, and part of the cell's id."""
    settings = ("task=digits", "activation=pwlu", *SHORT, "runner.limit_batches=5")
    whole = run(tmp_path / "whole", *settings)
    parts = run(tmp_path / "parts", *settings, "runner.sync_batch_norm=false")
    assert whole.name != parts.name
    norms, others = (state(folder)["network"] for folder in (whole, parts))
    name = "features.1.running_mean"
    assert 1e-4 < (norms[name] - others[name]).abs().max() < 0.5
    assert json.loads((parts / "record.json").read_text())["runner.sync_batch_norm"] is False


LONG = ("activation._target_=toy.Toy", "task.recipe.epochs=8", "runner.threads=1", "runner.cost=0", "seed=2")


def wait_for(folder: Path, lines: int, scripts: list[forked.Script]) -> None:
    """Wait until metrics.csv has so many lines."""
    while all(script.poll() is None for script in scripts):
        found = list(folder.glob("**/metrics.csv"))
        if found and len(found[0].read_text().splitlines()) > lines:
            return
        time.sleep(0.01)
    pytest.fail(f"ended early: {finish(scripts)}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("undisturbed"), *LONG)


def assert_same_bits(one: Path, other: Path) -> None:
    states = [state(folder) for folder in (one, other)]
    for key, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][key]), key
    for mine, theirs in zip(*(s["random_of_others"] for s in states), strict=True):
        assert torch.equal(mine["torch"], theirs["torch"])
    pd.testing.assert_frame_equal(metrics(one), metrics(other), check_exact=True)


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_bits(tmp_path: Path, undisturbed: Path) -> None:
    """The unit draws random numbers in training, other ones in each process."""
    scripts = start(tmp_path, *LONG)
    wait_for(tmp_path, 2, scripts)
    for script in scripts:
        script.send_signal(signal.SIGKILL)
    assert [status for status, _, _ in finish(scripts)] == [-signal.SIGKILL] * SIZE
    folder = run(tmp_path, *LONG)
    assert "resumed at epoch" in (folder / "log.txt").read_text()
    assert_same_bits(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(SIZE))
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    rank: int, tmp_path: Path, undisturbed: Path
) -> None:
    scripts = start(tmp_path, *LONG)
    wait_for(tmp_path, 2, scripts)
    scripts[rank].send_signal(signal.SIGTERM)
    ends = finish(scripts)
    assert [status for status, _, _ in ends] == [128 + signal.SIGTERM] * SIZE
    assert "SIGTERM in epoch" in ends[0][1]
    assert ends[1][1] == ""
    assert not said(ends)
    assert json.loads((cell(tmp_path) / "record.json").read_text())["status"] == "interrupted"
    assert_same_bits(run(tmp_path, *LONG), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(SIZE))
def test_the_loss_of_a_process_ends_the_other_in_one_line(rank: int, tmp_path: Path) -> None:
    scripts = start(tmp_path, *LONG)
    wait_for(tmp_path, 2, scripts)
    scripts[rank].send_signal(signal.SIGKILL)
    ends = finish(scripts)
    assert ends[1 - rank][:2] == (1, "")
    (line,) = said(ends)
    assert "another of the 2 processes has ended" in line
    record = json.loads((cell(tmp_path) / "record.json").read_text())
    assert record["status"] == "interrupted"
    if rank == 1:
        assert "was killed" in record["reason"]
    assert run(tmp_path, *LONG).joinpath("record.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("task.recipe.lr=-1",), "lr=-1"),
        (("activation=pralu",), "activation=pralu"),
        (("task.recipe.batch_size=1", "runner.epochs=1"), "batch_size=1: must be >= 2"),
        (("-m", "seed=0,1"), "a grid is started without it"),
        (("runner.device=cuda",), "device=cuda"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(settings: tuple[str, ...], words: str, tmp_path: Path) -> None:
    ends = finish(start(tmp_path, *settings))
    assert all(status != 0 for status, _, _ in ends)
    assert not any(out for _, out, _ in ends)
    (line,) = said(ends)
    assert words in line


@pytest.mark.slow
def test_a_finished_cell_is_said_once_and_a_locked_one_too(tmp_path: Path) -> None:
    settings = ("task=digits", "runner=smoke", "runner.threads=1")
    run(tmp_path, *settings)
    ends = finish(start(tmp_path, *settings))
    assert [status for status, _, _ in ends] == [0] * SIZE
    assert ends[0][1].strip().endswith("(finished before)")
    assert ends[1][1] == ""
    assert not said(ends)
    scripts = start(tmp_path, *LONG)
    wait_for(tmp_path / "outputs/main/digits/Toy", 2, scripts)
    ends = finish(start(tmp_path, *LONG))
    assert "another process is training it" in ends[0][1]
    assert [status for status, _, _ in ends] == [0] * SIZE
    for script in scripts:
        script.send_signal(signal.SIGKILL)
    finish(scripts)


def test_environment_of_other_launchers_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of torchrun, and variables of a batch system, are a process that is alone."""
    from runners import parallel

    for variables in ({"WORLD_SIZE": "4"}, dict.fromkeys(parallel.ENVIRONMENT, "1")):
        with monkeypatch.context() as patch:
            for name in parallel.ENVIRONMENT:
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            with parallel.joined() as world:
                assert (world.rank, world.size, world.leads) == (0, 1, True)
    assert "TORCH_CPP_LOG_LEVEL" not in os.environ
