"""Loggers beside metrics.csv: they have its rows, each once, and can neither end a cell nor change it."""

import json
import math
import random
import re
import signal
import struct
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_cell, make_factory, train
from torch import Tensor

from activations.base import Activation
from results.files import find_cells
from runners import loggers
from runners.compose import choose, component_names, plain_errors
from runners.loggers import Logger, Loggers, make_loggers

RUN = ("runner=smoke", "runner.epochs=2")


class Stopped(Activation):
    """ReLU; SIGTERM arrives in call ``at`` in training, as if somebody had sent it."""

    at: ClassVar[int] = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Stopped.at -= 1
            if Stopped.at == 0:
                signal.raise_signal(signal.SIGTERM)
        return x.relu()


class Seen(Logger):
    """Remembers its calls."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def begin(self, spec: Any, started: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append(("begin", started, len(rows)))

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        self.calls.append(("write", number, row["epoch"], row["split"]))

    def end(self, record: Mapping[str, Any]) -> None:
        self.calls.append(("end", record["status"]))


class Rude(Logger):
    """Draws from every global generator, and fails in the method ``fails``."""

    def __init__(self, fails: str) -> None:
        self.fails = fails

    def begin(self, spec: Any, started: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.call("begin")

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        self.call("write")

    def end(self, record: Mapping[str, Any]) -> None:
        self.call("end")

    def call(self, method: str) -> None:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        if self.fails == method:
            raise ConnectionError("no route to host")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Any]:
    """``stopped(*overrides)`` trains a cell that is stopped in its second epoch, and resumes it; returns its folder."""

    def run(*overrides: str) -> Path:
        Stopped.at = 1 + 3 * 5  # three sites, four steps in an epoch
        first = train(tmp_path, Stopped, *RUN, *overrides)
        assert (first["status"], first["epochs_trained"]) == ("interrupted", 1)
        assert train(tmp_path, Stopped, *RUN, *overrides)["status"] == "ok"
        return next(tmp_path.rglob("record.json")).parent

    yield run
    Stopped.at = 0


def numbers(folder: Path) -> list[tuple[str, int, float]]:
    """All numbers in metrics.csv as (split/column, epoch, float32)."""
    return sorted(
        (f"{row['split']}/{column}", int(row["epoch"]), float(np.float32(value)))
        for _, row in pd.read_csv(folder / "metrics.csv").iterrows()
        for column, value in row.items()
        if column not in ("epoch", "split") and not math.isnan(value)
    )


def test_a_resumed_cell_logs_every_row_once_in_each_session(stopped: Any) -> None:
    Seen.calls.clear()
    folder = stopped("+logger.seen._target_=test_loggers.Seen")
    epochs = [[(number + 2 * e, e, split) for number, split in enumerate(("train", "val"))] for e in range(2)]
    first, second = (call for call in Seen.calls if call[0] == "begin")
    assert first == ("begin", json.loads((folder / "record.json").read_text())["sessions"][0]["started"], 0)
    assert second == ("begin", first[1], 2)
    assert Seen.calls[1:3] == [("write", *row) for row in epochs[0]]
    assert Seen.calls[3] == ("end", "interrupted")
    assert Seen.calls[5:9] == [("write", *row) for epoch in epochs for row in epoch]
    assert {call[3] for call in Seen.calls[9:-1]} == {"test"}
    assert Seen.calls[-1] == ("end", "ok")


def test_loggers_neither_end_a_cell_nor_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("runners.logs._Terminal.printed", set())
    relu = make_factory("relu")
    rude = [
        f"+logger.{fails}={{_target_:test_loggers.Rude,fails:{fails}}}"
        for fails in ("begin", "write", "end", "never")
    ]
    assert train(tmp_path / "with", relu, *RUN, *rude)["status"] == "ok"
    said = re.findall(r"logger (\w+): has stopped.*no route to host", capsys.readouterr().err)
    assert said == ["begin", "write", "end"]
    train(tmp_path / "without", relu, *RUN)
    one, other = (next((tmp_path / name).rglob("checkpoint.pt")) for name in ("with", "without"))
    assert one.parent.name == other.parent.name  # the cell's id
    states = [torch.load(path, weights_only=True) for path in (one, other)]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    tables = [
        pd.read_csv(p.with_name("metrics.csv")).drop(columns=["seconds", "samples_per_s"])
        for p in (one, other)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_logger_that_has_not_begun_is_not_ended() -> None:
    Seen.calls.clear()
    Loggers({"ours": Seen()}).end({})
    assert Seen.calls == []


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "[tensorboard,wandb]"])
def test_a_missing_package_is_said_before_training(
    logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    parts = choose(settings={"outputs": str(tmp_path)}, overrides=[f"logger={logger}"])
    cell = parts.cell()
    package = logger.strip("[").partition(",")[0]
    message = rf"logger={package}: {package} is not installed; pip install 'actbench\[{package}\]'"
    with pytest.raises(ValueError, match=message), plain_errors():
        cell.run(lambda: parts.train(cell))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "runners.loggers.TensorBoard", "folder": "x"}, r"logger\.ours\.folder: no such name"),
        ({"_target_": "collections.OrderedDict"}, r"logger\.ours: collections\.OrderedDict must be a"),
        ({"project": "x"}, r"logger\.ours: must have a _target_"),
        ("x", r"logger\.ours: must have a _target_"),
        (
            {"_target_": "runners.loggers.WeightsAndBiases", "mode": "on"},
            "mode='on': must be one of online, offline, disabled",
        ),
    ],
)
def test_settings_that_no_logger_has(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), plain_errors():
        make_loggers({"ours": settings})


def test_loggers_are_no_part_of_an_id(tmp_path: Path) -> None:
    ids = {
        make_cell(tmp_path, *one).spec.id
        for one in ([], ["logger=tensorboard"], ["logger=[tensorboard,wandb]", "logger.wandb.project=x"])
    }
    assert len(ids) == 1


def test_files_of_a_logger_are_no_cells(tmp_path: Path) -> None:
    cell = tmp_path / "digits" / "relu" / "0-abc"
    for folder in (cell, cell / "wandb" / "run-1" / "files"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    assert list(find_cells(tmp_path)) == [cell]


def test_tensorboard_has_every_number_once(stopped: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = stopped("logger=tensorboard")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert sorted((tag, one.step, one.value) for tag in scalars for one in scalars[tag]) == numbers(folder)
    rows = pd.read_csv(folder / "metrics.csv")
    times = [one.wall_time for tag in ("train/loss", "val/loss") for one in scalars[tag]]
    trained = rows[rows["split"] != "test"]["seconds"]
    assert max(times) - min(times) == pytest.approx(trained[1:].sum(), abs=1e-5)  # the pause is not in it
    hyper = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"Stopped" in hyper or b"toy" in hyper

    train(tmp_path, Stopped, *RUN, "force=true")  # without a logger: nothing is left that says something else
    assert not list(folder.glob("events*"))


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows in a .wandb file: protocol buffers in the log format of LevelDB, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # what is left of a block is too short for a header
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record, parts = Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def test_wandb_has_every_number_once(stopped: Any) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    folder = stopped("logger=wandb", "logger.wandb.mode=offline")
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert json.loads((folder / "record.json").read_text())["cell"] in run.name
    (file,) = run.glob("*.wandb")
    found = sorted(
        (name, row["epoch"], float(np.float32(value)))
        for row in wandb_history(file)
        for name, value in row.items()
        if "/" in name
    )
    assert found == numbers(folder)


def test_every_logger_is_documented_and_has_an_extra() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = component_names("logger")
    assert names == ["tensorboard", "wandb"]
    assert {name for name in names if f"`logger={name}`" not in text} == set()
    assert {*names} <= {*project["optional-dependencies"]}
