"""A run can be stopped anywhere, by anything, and comes to the same end."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import forked
import pandas as pd
import pytest
import torch
from conftest import PROCESS, ROOT, command, make_factory, make_task, train
from toy import Toy

from results.files import atomic_write
from runners import checkpoint, seeding
from runners.checkpoint import RunState
from runners.train import _Stop

# a unit of its own by _target_, with phases and randomness; epochs enough to be hit in the middle, and short ones
LIMITS = ("runner.limit_batches=4", "runner.cost=0", "runner.pictures=false", "runner.threads=1")
RUN = ("activation._target_=toy.Toy", "task.recipe.epochs=40", "seed=2", *LIMITS)


def start(tmp_path: Path, name: str) -> forked.Script:
    env = PROCESS["env"] | {"PYTHONPATH": str(Path(__file__).parent)}
    return forked.Script(command(tmp_path / name, *RUN)[1:], cwd=ROOT, env=env)


def finish(script: forked.Script) -> tuple[int, str, str]:
    end = script.finish()
    return end.returncode, end.stdout, end.stderr


def folder(tmp_path: Path, name: str) -> Path:
    return next((tmp_path / name / "outputs" / "main" / "digits" / "Toy").iterdir())


def stop_in_the_middle(tmp_path: Path, name: str, number: signal.Signals) -> tuple[int, str, str]:
    """Start a run and send it a signal once it has saved some epochs."""
    script = start(tmp_path, name)
    metrics = tmp_path / name / "outputs" / "main" / "digits" / "Toy"
    while script.poll() is None:
        found = list(metrics.glob("*/metrics.csv"))
        if found and len(found[0].read_text().splitlines()) > 8:
            script.send_signal(number)
            break
        time.sleep(0.01)
    return finish(script)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("uninterrupted")
    status, _, err = finish(start(tmp_path, "run"))
    assert status == 0, err
    return folder(tmp_path, "run")


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, metrics and scores, to the last bit."""
    states = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (one, other)]
    for key, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][key]), key
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    for key, value in states[0]["progress"]["best"]["weights"].items():
        assert torch.equal(value, states[1]["progress"]["best"]["weights"][key]), key
    tables = [
        pd.read_csv(path / "metrics.csv").drop(columns=["seconds", "samples_per_s"]) for path in (one, other)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    records = [json.loads((path / "record.json").read_text()) for path in (one, other)]
    for key in ("status", "cell", "primary", "primary_best", "best_epoch", "test_loss", "epochs_trained"):
        assert records[0][key] == records[1][key], key
    assert records[0]["status"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_comes_to_the_same_end(
    tmp_path: Path, uninterrupted: Path, number: signal.Signals
) -> None:
    status, out, err = stop_in_the_middle(tmp_path, "run", number)
    path = folder(tmp_path, "run")
    record = json.loads((path / "record.json").read_text())
    assert record["status"] == "interrupted"
    assert (path / "checkpoint.pt").exists()
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert number.name in record["reason"]
        assert out.splitlines()[-1].startswith("Toy digits seed=2 interrupted")
        assert "Toy" in out.splitlines()[-1]

    status, out, err = finish(start(tmp_path, "run"))
    assert status == 0, err
    assert "resumed at epoch" in (path / "log.txt").read_text()
    assert not list(path.glob(".*.tmp"))
    assert_same_end(path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_batch_systems_stop_a_run_as_well(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with _Stop() as stop:
        signal.raise_signal(number)
    assert stop.received is number
    assert signal.getsignal(number) is before


def test_a_run_killed_again_and_again_comes_to_the_same_end(tmp_path: Path, uninterrupted: Path) -> None:
    for delay in (0.0, 0.3, 0.7):  # wherever that may be: importing, training, saving
        script = start(tmp_path, "run")
        while script.poll() is None and not list((tmp_path / "run").glob("**/record.json")):
            time.sleep(0.01)
        time.sleep(delay)
        script.send_signal(signal.SIGKILL)
        finish(script)
    status, _, err = finish(start(tmp_path, "run"))
    assert status == 0, err
    assert_same_end(folder(tmp_path, "run"), uninterrupted)


def test_replacing_leaves_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as temporary:
        temporary.write_text("half, then a lone surrogate: \udc00", encoding="utf-8")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_random_states_are_restored() -> None:
    import random

    import numpy as np

    def draw() -> tuple:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    seeding.seed_everything(1, "x")
    draw()
    states = seeding.random_states()
    first = draw()
    seeding.set_random_states(states)
    assert draw() == first


def state_of(network: torch.nn.Module, fingerprint: str = "data") -> RunState:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return RunState(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), fingerprint)


def test_a_damaged_checkpoint_is_kept_aside_and_said_until_force(tmp_path: Path) -> None:
    train(tmp_path, make_factory("relu"), "runner=smoke", activation="relu")
    path = next(tmp_path.glob("**/checkpoint.pt"))
    whole = path.read_bytes()
    (path.parent / "record.json").unlink()
    path.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"damaged checkpoint .* force=true"):
            train(tmp_path, make_factory("relu"), "runner=smoke", activation="relu")
        assert (path.parent / "checkpoint.damaged.pt").read_bytes() == whole[: len(whole) // 2]
        assert not path.exists()
    record = train(tmp_path, make_factory("relu"), "runner=smoke", "force=true", activation="relu")
    assert record["status"] == "ok"
    assert (path.parent / "checkpoint.given_up.pt").exists()


@pytest.mark.parametrize("damage", ["empty", "byte", "text"])
def test_every_kind_of_damage_is_found(tmp_path: Path, damage: str) -> None:
    network = torch.nn.Linear(50, 50)
    path = tmp_path / "checkpoint.pt"
    state_of(network).save(path)
    data = bytearray(path.read_bytes())
    if damage == "byte":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes({"empty": b"", "byte": bytes(data), "text": b"not a checkpoint"}[damage])
    with pytest.raises(ValueError, match="damaged checkpoint"):
        state_of(network).resume(path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    state_of(network).save(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="have changed since; force=true"):
        state_of(network, "others").resume(tmp_path / "c.pt")


def test_training_killed_before_the_test_only_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, Toy, "runner.epochs=2", "runner.limit_batches=3")
    cell = next(tmp_path.glob("**/record.json")).parent
    (cell / "record.json").unlink()
    from tasks.classification import Classification

    splits = []
    original = Classification.evaluate

    def evaluate(self, network, split):
        splits.append(split)
        return original(self, network, split)

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    second = train(tmp_path, Toy, "runner.epochs=2", "runner.limit_batches=3")
    assert set(splits) == {"test"}
    assert second["primary"] == first["primary"]
    rows = pd.read_csv(cell / "metrics.csv")
    assert list(rows["split"])[:4] == ["train", "val"] * 2
    assert (rows["split"] == "test").sum() in (1, 2)
    shutil.rmtree(cell)


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    """weights_only: a checkpoint from somebody else must not run anything."""
    train(tmp_path, Toy, "runner=smoke")
    state = torch.load(next(tmp_path.glob("**/checkpoint.pt")), weights_only=True)
    assert set(state) == {"network", "frozen", "optimizer", "scaler", "fingerprint", "progress", "random"}
    assert checkpoint.Progress(**state["progress"]).epoch == 1
    assert state["fingerprint"].startswith(make_task("digits").fingerprint)


def test_weights_are_kept_for_others(tmp_path: Path) -> None:
    limits = ("runner.epochs=2", "runner.limit_batches=3", "runner.pictures=false")
    train(tmp_path, make_factory("prelu"), "runner.keep=weights", *limits, activation="prelu")
    folder = next(tmp_path.glob("**/record.json")).parent
    network = make_task("digits").build_network(make_factory("prelu"))
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    best = torch.load(folder / "weights_best.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved["network"][name])
        assert torch.equal(best[name], saved["progress"]["best"]["weights"][name])
    task = make_task("digits", f"network.weights={folder / 'weights.pt'}")
    for name, value in task.build_network(make_factory("prelu")).state_dict().items():
        assert torch.equal(value, saved["network"][name])
    with pytest.raises(ValueError, match=r"belongs to another network: missing none; unknown .*weight"):
        task.build_network(make_factory("relu"))
