"""Damaged, copied, renamed and mixed files of cells: named, never pooled, never a traceback, nothing lost."""

import fcntl
import gzip
import html
import importlib
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import PROCESS, ROOT, command, config, make_cell, make_task, train
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import nn
from toy import Toy

from activations.kernels import library
from results import figures, files
from results.collect import add_labels, read_metrics, read_records
from results.escape import figure_text, markdown
from results.files import atomic_write, remove_leftovers, write_all, write_csv, write_json
from results.leaderboard import leaderboard
from results.learned import read_learned, write_cell_figures
from results.report import write_report
from results.schema import read_record
from runners import code
from runners import record as record_module
from runners.cell import Cell, CellLockedError
from runners.checkpoint import RunState, fingerprint
from runners.code import ACTIVATIONS, HARNESS, code_hash, targets_of
from tasks.data.images import cifar10, fashion_mnist

SCORES = {"relu": [80.0, 81.0, 82.0, 83.0, 84.0], "prelu": [85.1, 86.0, 87.2, 88.0, 89.1]}


def settings(name: str, sites: str = "all", root: str | None = None) -> dict[str, Any]:
    """A configuration as a cell keeps it."""
    return {
        "activation": {"_target_": f"activations.{name}.Unit", "_partial_": True},
        "task": {"_target_": "tasks.Task", "recipe": {"lr": 0.1}, "data": {"root": root}},
        "network": {"_target_": "networks.Network", "depth": 8, "sites": sites},
        "runner": {"_target_": "runners.Train", "threads": None},
    }


def write_cell(
    folder: Path, name: str, seed: int, score: float, config: dict[str, Any], **facts: Any
) -> Path:
    """A finished cell in the format of today."""
    cell = folder / facts.get("task", "digits") / name / f"{seed}-{facts.get('cell', 'abc')}"
    record = {
        "activation": name,
        "task": "digits",
        "network": "resnet8",
        "seed": seed,
        "cell": "abc",
        "status": "ok",
        "reason": None,
        "primary_metric": "top1",
        "higher_is_better": True,
        "primary": score,
        "primary_best": score,
        "parameters": 10,
        "flops": 10,
        "seconds_per_epoch": 0.5,
        "data_fingerprint": "3f2a11",
        "git_commit": "c0ffee",
    }
    write_json(cell / "record.json", record | files.facts_of(config | {"seed": seed}) | facts)
    rows = [
        {"epoch": epoch, "split": split, "loss": 1.0, "top1": score, "seconds": 1.0}
        for epoch in range(2)
        for split in ("train", "val")
    ]
    write_csv(cell / "metrics.csv", rows)
    (cell / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
    return cell


def make_study(folder: Path, sites: str = "all", **facts: Any) -> Path:
    for name, scores in SCORES.items():
        for seed, score in enumerate(scores):
            write_cell(folder, name, seed, score, settings(name, sites), **facts)
    return folder


def change(cell: Path, **facts: Any) -> None:
    """Other values in a record; ``...`` takes one out."""
    record = json.loads((cell / "record.json").read_text()) | facts
    kept = {name: value for name, value in record.items() if value is not ...}
    (cell / "record.json").write_text(json.dumps(kept))


def table_of(study: Path) -> pd.DataFrame:
    return leaderboard(add_labels(read_records(study)))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take most of their time."""
    monkeypatch.setattr(figures, "draw_figures", lambda *tables: [])


# damaged records ------------------------------------------------------------------------------------------------


DAMAGED = {
    "half": (b'{"a', "damaged"),
    "empty": (b"", "damaged"),
    "a list": (b"[]", "no JSON object"),
    "binary": (b"\xff\xfe\x00", "damaged"),
    "deep": (b"[" * 200_000, "damaged"),
    "nothing in it": (b"{}", "no activation: a name is needed"),
    "no activation": ({"activation": None}, "activation=None: a name is needed"),
    "fields missing": ({"primary_metric": ...}, "no primary_metric: a name is needed"),
    "score missing": ({"primary": ...}, "no primary: a finite number is needed"),
    "a word for a score": ({"primary": "abc"}, "primary='abc': a finite number is needed"),
    "no score": ({"primary": float("nan")}, "primary=nan: a finite number is needed"),
    "an endless score": ({"primary": 10**400}, "a finite number is needed"),
    "true for a score": ({"primary": True}, "primary=True: a finite number is needed"),
    "unknown status": ({"status": "OK"}, "status='OK': one of ok, diverged, failed, interrupted is needed"),
    "a list for a status": ({"status": ["ok"]}, "one of ok, diverged, failed, interrupted is needed"),
    "a word for a seed": ({"seed": "0"}, "seed='0': a whole number of at least 0 is needed"),
    "a word for a direction": ({"higher_is_better": "yes"}, "higher_is_better='yes': true or false is needed"),
    "a word for a cost": ({"parameters": "many"}, "parameters='many': a finite number is needed"),
    "a setting in a setting": ({"task.recipe.lr": {"a": 1}}, "one value is needed"),
    "sessions of another kind": ({"sessions": [1]}, "a list of sessions is needed"),
    "a name of two lines": ({"activation": "re\nlu"}, "a name is needed"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_of_the_baseline_is_a_row_and_takes_no_verdict(tmp_path: Path, damage: str) -> None:
    content, said = DAMAGED[damage]
    study = make_study(tmp_path / "s")
    cell = study / "digits" / "relu" / "0-abc"
    if isinstance(content, bytes):
        (cell / "record.json").write_bytes(content)
    else:
        change(cell, **content)
    records = add_labels(read_records(study))
    row = records[records["folder"] == str(cell)].iloc[0]
    assert (row["activation"], row["task"], row["seed"], row["status"]) == ("relu", "digits", 0, "failed")
    assert said in row["reason"]
    assert str(cell / "record.json") in row["reason"]
    table = leaderboard(records).set_index("activation")
    assert table["n"].to_dict() == {"prelu": 5, "relu": 4}
    assert table["verdict"].to_dict() == {"prelu": "better", "relu": "baseline"}
    assert table.loc["relu", "failures"] == "1 failed"


@pytest.mark.parametrize("sites", ["same", "other"])
def test_a_damaged_baseline_without_a_configuration_takes_no_verdict(tmp_path: Path, sites: str) -> None:
    # a setting of later versions: its default stands for cells that have settings, but not this one
    study = make_study(tmp_path / "s", **{"task.primary": "mse"})
    if (
        sites == "other"
    ):  # relu stands at two kinds of sites, and of the damaged cell it is not known at which
        for seed in range(2):
            write_cell(study, "relu", seed, 70.0, settings("relu", "first:2"), cell="def")
    cell = study / "digits" / "relu" / "0-abc"
    (cell / "record.json").write_text('{"a')
    (cell / "config.yaml").unlink()
    table = table_of(study).set_index("activation")
    assert set(table["task"]) == {"digits"}
    assert table.filter(like="prelu", axis=0)["verdict"].tolist() == ["better"]
    assert table["failures"].tolist().count("1 failed") == 1


def test_a_damaged_cell_keeps_its_settings_and_its_network(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for seed in range(2):
        other = settings("relu") | {"network": {"_target_": "other.Network", "sites": "all"}}
        write_cell(study, "relu", seed, 60.0, other, network="unet", cell="def")
    (study / "digits" / "relu" / "1-def" / "record.json").write_text("{")
    records = add_labels(read_records(study)).set_index("folder")
    assert records.loc[str(study / "digits" / "relu" / "1-def"), "task_label"] == "digits on unet"
    assert set(records["task_label"]) == {"digits on unet", "digits on resnet8"}


def test_a_cell_that_lost_record_and_configuration_is_a_row(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for name in ("record.json", "config.yaml"):
        (study / "digits" / "relu" / "2-abc" / name).unlink()
    table = table_of(study).set_index("activation")
    assert (table.loc["relu", "n"], table.loc["relu", "failures"]) == (4, "1 failed")


def test_a_report_of_nothing_but_damage(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for record in study.glob("*/*/*/record.json"):
        record.write_text("{")
    text = write_report(study)[0].read_text()
    assert "10 cells, 0 ok." in text
    assert text.count("record.json: damaged") == 10


@pytest.mark.usefixtures("no_figures")
def test_records_of_all_ages_and_without_costs_are_reported(tmp_path: Path) -> None:
    """What a record may lack is no fault."""
    study = make_study(tmp_path / "s")
    for record in study.glob("*/*/*/record.json"):
        gone = ("reason", "network", "primary_best", "parameters", "flops", "seconds_per_epoch", "git_commit")
        change(record.parent, **dict.fromkeys(gone, ...))
    write_report(study)
    assert table_of(study)["n"].tolist() == [5, 5]


def test_a_record_that_cannot_be_relied_on_is_said_before_training(tmp_path: Path) -> None:
    train(tmp_path, Toy, "runner=smoke")
    cell = make_cell(tmp_path, "runner=smoke")
    change(cell.folder, primary="abc")
    with pytest.raises(
        ValueError, match=r"record\.json: damaged \(primary='abc': a finite number is needed\)"
    ):
        cell.completed_record()


def test_force_trains_a_cell_whose_record_is_damaged_in_a_grid_as_well(tmp_path: Path) -> None:
    train(tmp_path, Toy, "runner=smoke")
    cell, forced = make_cell(tmp_path, "runner=smoke"), make_cell(tmp_path, "runner=smoke", "force=true")
    (cell.folder / "record.json").write_text('{"status": "ok"')
    for ask in (cell.completed_record, cell.earlier):
        with pytest.raises(ValueError, match=r"record\.json: damaged"):
            ask()
    assert (forced.completed_record(), forced.earlier()) == (None, {})


# metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "No columns to parse from file"),
        (b"epoch,split,loss,top1\n", "no rows"),
        (b"epoch,split,loss,top1\n0,val,abc,1\n", "loss=abc in row 1: a number is needed"),
        (b"epoch,split,loss,top1\n0,val,1,1\n1,val,1,x\n", "top1=x in row 2: a number is needed"),
        (b"epoch,split,loss,top1\n0,val,True,1\n", "loss=True in row 1: a number is needed"),
        (b"epoch,loss\n0,1\n", "no column split"),
        (b"\xff\xfe\x00\x01", "damaged"),
        (b"a,b\n1,2\n1,2,3,4\n", "damaged"),
        (b"epoch,split,loss,top1\n0,val,1,81.25\n1,val,1,8", "its last line is cut off"),
        (None, "no such file"),
    ],
)
def test_damaged_metrics_are_named_and_the_scores_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    drawn = []
    curves = figures.learning_curves
    monkeypatch.setattr(figures, "scores", lambda *tables: Figure())
    monkeypatch.setattr(figures, "learning_curves", lambda *tables: drawn.append(curves(*tables)) or Figure())
    study = make_study(tmp_path / "s")
    path = study / "digits" / "relu" / "0-abc" / "metrics.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    written, table = write_report(study)
    assert table["n"].tolist() == [5, 5]
    lines = written.read_text().partition("## Cells without curves")[2].strip().splitlines()
    assert lines[0].startswith(f"- {path}: ")
    assert said in lines[0]
    assert len(drawn) == 1
    assert sorted(line.get_label() for line in drawn[0].axes[0].get_lines()) == ["prelu", "relu"]


def test_without_any_metrics_there_is_no_figure_of_curves(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for path in study.glob("*/*/*/metrics.csv"):
        path.unlink()
    written, _ = write_report(study)
    names = {path.stem for path in (written.parent / "figures").iterdir()}
    assert "scores-digits" in names
    assert "learning_curves-digits" not in names


def test_metrics_without_a_finite_value_are_drawn(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    for path in study.glob("*/*/*/metrics.csv"):
        path.write_text("epoch,split,loss,top1\n0,train,inf,\n0,val,inf,\n1,val,inf,\n")
    write_report(study)
    assert read_metrics([])[0].empty


# names -----------------------------------------------------------------------------------------------------------

NASTY = "a|b <script>x</script> [l](http://h) `c` *d* _e_ $f$ \\| g_h"


def test_names_are_text_in_markdown() -> None:
    text = markdown(NASTY)
    assert "<" not in text
    assert not re.search(r"(?<!\\)[|`*$]", text.replace("\\\\", ""))
    assert "](" not in text
    assert re.search(r"(?<!\\)_", text)[0] == "_"  # of g_h alone
    assert text.endswith("g_h")
    assert "\\_e\\_" in text
    assert markdown("x\n# y") == "x # y"
    assert markdown("prelu[init=0.25 sites=one_per_block]") == "prelu[init=0.25 sites=one_per_block]"
    # what Markdown takes away again gives the name
    assert html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)) == NASTY


def test_names_that_are_markup_stay_names_in_the_report(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", sites="re:features.(2$|5\\b$)")
    for name, seed in product(("relu", "prelu"), range(2)):
        facts = settings(name, "<b>|x|</b>")
        write_cell(study, name, seed, 80.0 + seed, facts, cell="def", primary_metric="top1")
    path, table = write_report(study)
    text = path.read_text()
    assert "<b>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "rank" not in line]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {12}
    svg = html.unescape((path.parent / "figures" / "scores-digits.svg").read_text())
    for label in table["activation"]:
        assert label in svg
    assert "prelu[sites=re:features.(2$|5\\b$)]" in set(table["activation"])


def test_tasks_whose_names_make_one_file_name_have_two_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scores", "learning_curves"):
        monkeypatch.setattr(figures, name, lambda *tables: Figure())
    study = make_study(tmp_path / "s")
    for task, score in (("digits", 50.0), ("mine$x$", 60.0), ("mine<x>", 70.0)):
        write_cell(study, "relu", 7, score, settings("relu"), task=task, primary_metric=f"m_{{{task}$")
    path, _ = write_report(study)
    names = sorted(figure.name for figure in (path.parent / "figures").glob("scores-*.png"))
    assert len(names) == len(set(names)) == 4  # digits by two metrics, and two of one file name
    assert "scores-mine_x.png" in names
    assert "scores-mine_x-2.png" in names


def test_names_of_sites_and_classes_are_drawn_as_they_are(tmp_path: Path) -> None:
    assert figure_text("a$b") == r"a\$b"
    cell = tmp_path / "$t_{$" / "a$b_{$" / "0-abc"
    cell.mkdir(parents=True)
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    arrays = {f"curve/{site}": np.maximum(x, 0)[None] for site in ("$f_{$", "b")}
    arrays["diagnostic/b/$d_{$"] = np.ones(3)
    np.savez_compressed(cell / "curves.npz", x=x, **arrays)
    assert len(write_cell_figures(cell)) == 2
    svg = html.unescape((cell / "pictures" / "curves.svg").read_text())
    assert "$f_{$" in svg
    assert "a$b_{$" in svg


def test_names_of_classes_are_drawn_as_they_are() -> None:
    task = make_task("shapes", "task.data.train=8", "task.data.val=4", "task.data.test=4")
    task.classes = tuple(f"$c_{{{i}$" for i in range(len(task.classes)))
    network = nn.Conv2d(3, len(task.classes), 1)
    for figure in task.pictures(network).values():
        figure.savefig(io.BytesIO(), format="svg")


# copies, data, code ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_copied_folder_is_no_further_seed(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    cells = study / "digits" / "relu"
    for copy in ("9-abc", "0-abc (copy)"):
        shutil.copytree(cells / "0-abc", cells / copy)
    shutil.copytree(cells / "1-abc", study / "digits" / "gelu" / "1-abc")
    path, table = write_report(study)
    assert table.set_index("activation")["n"].to_dict() == {"prelu": 5, "relu": 5, "gelu": 0}
    text = path.read_text()
    for name in ("relu/9-abc", "relu/0-abc (copy)", "gelu/1-abc"):
        line = next(line for line in text.splitlines() if line.endswith(f"{name})"))
        assert "this folder is a copy or was renamed" in line


def test_two_cells_of_one_seed_are_both_named_and_not_counted(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", cell=None)
    twin = study / "digits" / "relu" / "0-xyz"
    shutil.copytree(study / "digits" / "relu" / "0-None", twin)
    change(twin, primary=95.0)
    records = add_labels(read_records(study))
    named = records[records["reason"].astype(str).str.contains("the same seed is in")]
    assert sorted(Path(folder).name for folder in named["folder"]) == ["0-None", "0-xyz"]
    assert str(twin) in named[named["folder"] != str(twin)]["reason"].iloc[0]
    relu = leaderboard(records).set_index("activation").loc["relu"]
    assert (relu["n"], relu["mean"], relu["failures"]) == (4, 82.5, "2 failed")


def with_data(study: Path, of_seed: dict[int, tuple[str, str | None]]) -> pd.DataFrame:
    """The records, where a seed's cells have another root and fingerprint."""
    for name, scores in SCORES.items():
        for seed, (root, data) in of_seed.items():
            given = {"data_fingerprint": ... if data is None else data}
            write_cell(study, name, seed, scores[seed], settings(name, root=root))
            change(study / "digits" / name / f"{seed}-abc", **given)
    return add_labels(read_records(study))


@pytest.mark.usefixtures("no_figures")
def test_cells_of_other_data_are_in_tables_of_their_own(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    of_seed = {seed: (f"/data/{'ab'[seed > 2]}", ["3f2a11", "3f2b22"][seed > 2]) for seed in range(5)}
    records = with_data(study, of_seed)
    assert set(records["task_label"]) == {"digits (data a)", "digits (data b)"}
    (study / "digits" / "relu" / "4-abc" / "record.json").write_text(
        "{"
    )  # its configuration says where its data are
    records = add_labels(read_records(study))
    assert set(records["task_label"]) == {"digits (data a)", "digits (data b)"}
    table = leaderboard(records)
    assert table.groupby("task")["n"].unique().map(list).to_dict() == {
        "digits (data a)": [3],
        "digits (data b)": [2, 1],
    }
    text = write_report(study)[0].read_text()
    assert "- **digits: cells differ in data or metric**, which are never averaged: digits (data a)" in text


def test_data_are_named_by_their_hash_where_the_folder_is_the_same(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    records = with_data(study, {0: ("/d", "3f2a11"), 1: ("/d", "3f2a22"), 2: ("/d", None)})
    labels = records[records["activation"] == "relu"].set_index("seed")["task_label"]
    assert labels.to_dict() == {
        0: "digits (data 3f2a1)",
        1: "digits (data 3f2a2)",
        2: "digits (data unknown)",
        3: "digits (data 3f2a1)",
        4: "digits (data 3f2a1)",
    }


@pytest.mark.usefixtures("no_figures")
def test_the_same_data_in_two_folders_are_pooled(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    records = with_data(study, {0: ("/here", "3f2a11"), 1: ("/there", "3f2a11"), 2: ("/there", None)})
    assert set(records["task_label"]) == {"digits"}
    assert leaderboard(records)["n"].tolist() == [5, 5]
    text = write_report(study)[0].read_text()
    assert "- **digits: cells differ in data_fingerprint**: 3f2a11, unknown" in text


def test_scores_of_two_metrics_are_not_averaged(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s")
    change(study / "digits" / "relu" / "0-abc", primary_metric="top5")
    table = table_of(study)
    assert set(table["task"]) == {"digits (top1)", "digits (top5)"}
    assert table[table["task"] == "digits (top1)"].set_index("activation")["n"].to_dict() == {
        "prelu": 5,
        "relu": 4,
    }


@pytest.mark.usefixtures("no_figures")
def test_seeds_of_edited_code_are_not_averaged(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", activation_code="2:aaaa11")
    for seed in (3, 4):
        change(study / "digits" / "prelu" / f"{seed}-abc", activation_code="2:aaaa22")
    path, table = write_report(study)
    rows = table.set_index("activation")
    assert rows["n"].to_dict() == {"prelu[code=aaaa2]": 2, "prelu[code=aaaa1]": 3, "relu": 5}
    assert set(rows["baseline"]) == {"relu"}
    assert "- **prelu: its code changed between cells**" in path.read_text()
    change(study / "digits" / "prelu" / "0-abc", activation_code=..., **{"activation.init": 0.1})
    assert "prelu[init=0.1]" in set(table_of(study)["activation"])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's own package with an activation in it, importable."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text("def half(x):\n    return x / 2\n")
    (folder / "other.py").write_text("")
    (folder / "unit.py").write_text(
        "from activations.base import Activation\n\n\nclass Unit(Activation):\n"
        "    def forward(self, x):\n        from . import helper\n\n        return helper.half(x.relu())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def fresh_hash(*targets: str, packages: tuple[str, ...] = ACTIVATIONS, compiled: bool = True) -> str | None:
    """As another process would find it."""
    code._source.cache_clear()
    code_hash.cache_clear()
    importlib.invalidate_caches()
    return code_hash(targets, packages, compiled=compiled)


def test_the_hash_of_the_code_follows_what_an_activation_imports(package: Path) -> None:
    before = fresh_hash("mine.unit.Unit")
    assert "mine.unit" not in sys.modules
    (package / "other.py").write_text("changed = True\n")
    assert fresh_hash("mine.unit.Unit") == before
    unit = package / "unit.py"
    unit.write_text(
        '"""Said."""\n\n# and said\n' + unit.read_text().replace("half(x.relu())", "half(x.relu())  # said")
    )
    assert fresh_hash("mine.unit.Unit") == before  # words are no code
    unit.write_text(unit.read_text().replace("x.relu()", "x.relu6()"))
    edited = fresh_hash("mine.unit.Unit")
    assert edited != before
    (package / "helper.py").write_text("def half(x):\n    return x / 3\n")
    assert fresh_hash("mine.unit.Unit") not in (before, edited)
    assert fresh_hash("mine.unit.Unit", "torch.nn.GELU") == fresh_hash("mine.unit.Unit")
    assert fresh_hash("nowhere.Unit") is None


def test_strings_are_code_and_words_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "alone.py"
    texts = {
        "as it is": 'A = "# no comment"\nB = """\nx\n"""\n\n\ndef f():\n    """Doc."""\n    return 1\n',
        "other words": 'A = "# no comment"  # one\nB = """\nx\n"""\ndef f():\n    """Other."""\n    return 1\n',
        "a raw docstring": 'A = "# no comment"\nB = """\nx\n"""\n\n\ndef f():\n    r"""Doc."""\n    return 1\n',
        "other string": 'A = "# comment"\nB = """\nx\n"""\n\n\ndef f():\n    """Doc."""\n    return 1\n',
        "other text": 'A = "# no comment"\nB = """\n# x\n"""\n\n\ndef f():\n    """Doc."""\n    return 1\n',
        "other code": 'A = "# no comment"\nB = """\nx\n"""\n\n\ndef f():\n    """Doc."""\n    return 2\n',
    }
    hashes = {}
    for name, text in texts.items():
        path.write_text(text)
        hashes[name] = fresh_hash("alone.f")
    assert hashes["as it is"] == hashes.pop("other words") == hashes.pop("a raw docstring")
    assert len(set(hashes.values())) == len(hashes)


def test_files_beside_one_without_a_package_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lonely_unit.py").write_text("import lonely_helper, numpy\n")
    (tmp_path / "lonely_helper.py").write_text("a = 1\n")
    before = fresh_hash("lonely_unit.Unit")
    (tmp_path / "lonely_helper.py").write_text("a = 2\n")
    assert fresh_hash("lonely_unit.Unit") != before


def test_kernels_and_the_task_belong_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path) or read(path))
    assert fresh_hash("activations.torch_nn.ReLU")
    names = {str(path.relative_to(ROOT)) for path in seen if path.is_relative_to(ROOT)}
    assert {"activations/torch_nn.py", "activations/base.py"} <= names
    assert not [name for name in names if name.startswith(("activations/ditac", "activations/kernels"))]
    seen.clear()
    assert fresh_hash("activations.prelu.PReLU")
    names = {str(path.relative_to(ROOT)) for path in seen if path.is_relative_to(ROOT)}
    assert {"activations/kernels/library.py", "activations/kernels/csrc/pointwise.cpp"} <= names
    assert not [name for name in names if name.startswith(("runners", "tasks"))]
    seen.clear()
    task = OmegaConf.to_container(config("task=digits").task, resolve=True)
    targets = targets_of({"task": task, "runner": {"_target_": "runners.train.Train"}})
    assert "tasks.data.images.digits" in targets
    assert fresh_hash(*targets, packages=HARNESS, compiled=False)
    names = {str(path.relative_to(ROOT)) for path in seen if path.is_relative_to(ROOT)}
    assert {"runners/train.py", "runners/optim.py", "activations/base.py", "tasks/data/images.py"} <= names
    assert not [name for name in names if "csrc" in name], "an edited kernel is the activation's affair"


def cell_of(tmp_path: Path, *overrides: str) -> Cell:
    return make_cell(
        tmp_path, "activation._target_=mine.unit.Unit", "runner=smoke", *overrides, activation="Unit"
    )


def test_a_finished_cell_of_edited_code_is_not_finished(package: Path, tmp_path: Path) -> None:
    fresh_hash("mine.unit.Unit")
    from mine.unit import Unit

    overrides = ("activation._target_=mine.unit.Unit", "runner=smoke")
    record = train(tmp_path, Unit, *overrides, activation="Unit")
    assert record["status"] == "ok"
    assert cell_of(tmp_path).completed_record()["primary"] == record["primary"]
    (package / "helper.py").write_text("def half(x):\n    return x / 3\n")
    fresh_hash("mine.unit.Unit")
    said = rf"the activation's code \({re.escape(str(package / 'unit.py'))}, .* has changed .*; force=true"
    with pytest.raises(ValueError, match=said):
        cell_of(tmp_path).completed_record()
    assert cell_of(tmp_path, "force=true").completed_record() is None
    change(cell_of(tmp_path).folder, activation_code="0123456789abcdef")  # a hash of the kind before
    assert cell_of(tmp_path).completed_record()
    change(cell_of(tmp_path).folder, activation_code=...)
    assert cell_of(tmp_path).completed_record()


def test_files_that_git_does_not_know_are_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*args: str) -> None:
        person = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *person, *args], check=True, capture_output=True)

    git("init")
    (tmp_path / "activations").mkdir()
    (tmp_path / "activations" / "relu.py").write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(record_module, "ROOT", tmp_path)
    (tmp_path / "notes.txt").write_text("")
    clean = record_module._git_commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    for folder in ("activations", "conf/activation", "tasks/mine"):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        assert record_module._git_commit() == f"{clean}+changes"
        path.unlink()


@pytest.mark.usefixtures("no_figures")
def test_versions_and_missing_commits_are_compared(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", numpy="2.1", python="3.11", platform="Linux")
    other = study / "digits" / "relu" / "0-abc"
    change(other, numpy="2.2", python="3.12", platform="macOS", git_commit=None)
    text = write_report(study)[0].read_text()
    for said in ("numpy**: 2.1, 2.2", "python**: 3.11, 3.12", "platform**: Linux, macOS"):
        assert f"- **digits: cells differ in {said}" in text
    assert "- **digits: cells differ in git_commit**: c0ffee, unknown" in text
    (other / "record.json").write_text("{")  # which has no score, so nothing that could differ
    assert "differ in git_commit" not in write_report(study)[0].read_text()


# sessions and checkpoints ------------------------------------------------------------------------------------------


class Stumbling(Toy):
    """Fails in the second epoch, as long as it is told to."""

    stumbles = True

    def start_epoch(self, epoch: int, epochs: int) -> None:
        if epoch == 1 and self.stumbles:
            raise RuntimeError("stumbled")
        super().start_epoch(epoch, epochs)


def stumble(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """A run that has stopped after its first epoch; returns what goes on with it."""
    run = partial(train, tmp_path, Stumbling, "runner.epochs=2", "runner.limit_batches=2")
    with pytest.raises(RuntimeError, match="stumbled"):
        run()
    return run


@pytest.mark.usefixtures("no_figures")
def test_every_session_of_a_run_is_recorded_and_differences_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    again = stumble(tmp_path)
    monkeypatch.setattr(Stumbling, "stumbles", False)
    torch.set_num_threads(1)
    with library.using("reference"):
        record = again()
    first, second = record["sessions"]
    assert [(s["epoch"], s["step"], s["num_threads"]) for s in (first, second)] == [(0, 0, 2), (1, 0, 1)]
    assert second["kernels"] == "reference (asked for)" != first["kernels"]
    assert {"started", "git_commit", "machine", "cpu", "torch"} <= first.keys()
    assert read_record(next(tmp_path.glob("**/record.json")))["sessions"] == [first, second]
    text = write_report(tmp_path / "main")[0].read_text()
    assert "- **digits: num_threads changed while a cell was trained** (toy seed=0): 2, 1" in text
    assert "kernels changed while a cell was trained" in text


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("harness_code", "the sources of runner, task or network"),
        ("activation_code", "the activation's sources"),
    ],
)
def test_a_run_does_not_go_on_with_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, said: str
) -> None:
    again = stumble(tmp_path)
    monkeypatch.setattr(Stumbling, "stumbles", False)
    with monkeypatch.context() as patch:
        patch.setattr(Cell, part, property(lambda cell: "2:other"))
        with pytest.raises(ValueError, match=f"checkpoint.pt: {said} have changed since; force=true"):
            again()
    assert again()["status"] == "ok"  # with the code of before it goes on


def state_of(network: nn.Module) -> RunState:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return RunState(network, optimizer, scaler, fingerprint("data", "a", "b"))


def without(state: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return state


@pytest.mark.parametrize(
    "other",
    [
        lambda state: {"weight": torch.zeros(2)},
        lambda state: torch.zeros(3),
        lambda state: [1, 2],
        lambda state: without(state, "progress"),
        lambda state: state | {"progress": {"epochs": 1}},
        lambda state: without(state, "network", "weight"),
        lambda state: without(state, "random", "numpy"),
        lambda state: without(state, "optimizer", "param_groups"),
        lambda state: state | {"fingerprint": 3},
        lambda state: state | {"network": nn.Linear(3, 3).state_dict()},
    ],
)
def test_a_torch_file_of_other_content_is_a_damaged_checkpoint(
    tmp_path: Path, other: Callable[[dict[str, Any]], object]
) -> None:
    path = tmp_path / "checkpoint.pt"
    state_of(nn.Linear(2, 2)).save(path)
    torch.save(other(torch.load(path, weights_only=True)), path)
    with pytest.raises(ValueError, match=r"damaged checkpoint \(.*\); kept as .*; force=true"):
        state_of(nn.Linear(2, 2)).resume(path)
    assert (tmp_path / "checkpoint.damaged.pt").exists()


@pytest.mark.parametrize("kind", ["declared", "zeros", "format", "no array"])
def test_curves_that_claim_to_be_huge_are_damaged(tmp_path: Path, kind: str) -> None:
    header = io.BytesIO()
    count = 4_000_000_000
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (count,)})
    content = {
        "declared": header.getvalue(),
        "zeros": header.getvalue() + bytes(1000),
        "format": b"\x93NUMPY\x09\x00" + bytes(100),
        "no array": b"text",
    }[kind]
    with zipfile.ZipFile(tmp_path / "curves.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=r"curves\.npz: damaged \(.*\); train the cell again"):
        read_learned(tmp_path)
    run = (
        subprocess.run([sys.executable, "scripts/plot_cell.py", str(tmp_path)], **PROCESS)
        if kind == "declared"
        else None
    )
    assert run is None or (run.returncode != 0 and len(run.stderr.splitlines()) == 1)


# files that processes leave --------------------------------------------------------------------------------------


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path, dead: int) -> None:
    here = platform.node()
    names = {
        f".a.png.{dead}@{here}.tmp": False,
        f".b.png.{os.getppid()}@{here}.tmp": True,
        f".c.png.{os.getpid()}@{here}.tmp": True,
        f".d.png.{dead}@another.example.tmp": True,
        f".e.png.{dead}@another.old.tmp": False,
        f".f.png.{dead}.tmp": False,  # as they were called before
        f".h.png.{dead}@another.future.tmp": False,  # the clock was set back
        "g.png": True,
    }
    for name in names:
        (tmp_path / name).touch()
        if name.startswith((".e", ".f")):
            os.utime(tmp_path / name, (1, 1))
        if name.startswith(".h"):
            os.utime(tmp_path / name, (2 * time.time(),) * 2)
    remove_leftovers(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
    with atomic_write(tmp_path / "x") as temporary:
        temporary.touch()
        remove_leftovers(tmp_path)
        assert temporary.exists()


@pytest.mark.usefixtures("no_figures")
def test_reports_pictures_and_cells_are_cleaned_when_they_are_written_again(
    tmp_path: Path, dead: int
) -> None:
    study = make_study(tmp_path / "s")
    path, _ = write_report(study)
    name = f".x.png.{dead}@{platform.node()}.tmp"
    places = [path.parent / name]
    cell = make_cell(tmp_path)
    places += [cell.folder / name, cell.folder / "pictures" / name, tmp_path / "main" / ".costs" / name]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    write_report(study)
    with cell.locked():
        pass
    assert not [place for place in places if place.exists()]


def test_a_report_is_written_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "s")
    path, _ = write_report(study)
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    change(study / "digits" / "relu" / "0-abc", primary=10.0)

    def fails(*args: object) -> None:
        raise ValueError("no figure")

    with monkeypatch.context() as patch:
        patch.setattr(figures, "learning_curves", fails)
        with pytest.raises(ValueError, match="no figure"):
            write_report(study)
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError):
        write_all({tmp_path / "a": b"new", tmp_path / "b": None})
    assert (tmp_path / "a").read_text() == "old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_cell_that_never_began_leaves_no_folder_and_the_lock_as_it_was(tmp_path: Path) -> None:
    """A process that opened the lock's file while such a cell held it is kept out by the next holder."""
    cell, other = make_cell(tmp_path), make_cell(tmp_path)
    with cell.locked(), pytest.raises(CellLockedError), other.locked():
        pass
    assert not cell.folder.parents[1].exists()
    with cell.locked():
        waiting = os.open(tmp_path / "main" / ".locks" / cell.spec.id, os.O_RDWR)
    with other.locked(), pytest.raises(BlockingIOError):
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(waiting)
    with cell.locked():
        cell.write_record("failed")
    assert cell.folder.exists()


def children(pid: int) -> dict[int, str]:
    """Processes whose parent is ``pid``, with their command lines."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found[int(status.parent.name)] = (status.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # has ended meanwhile
            continue
    return found


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
def test_workers_of_a_killed_grid_end_and_save(tmp_path: Path) -> None:
    grid = ("-m", "activation=relu,tanh", "runner.threads=1", "runner.epochs=5000", "hydra/launcher=joblib")
    process = subprocess.Popen(
        command(tmp_path, *grid, "hydra.launcher.n_jobs=2", "hydra.launcher.verbose=0"),
        **{key: PROCESS[key] for key in ("cwd", "env")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("outputs/main/digits/*/*/metrics.csv"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        workers = [pid for pid, line in children(process.pid).items() if "popen_loky" in line]
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        while any(map(is_running, workers)):
            assert time.monotonic() < killed + 15
            time.sleep(0.1)
    finally:
        for pid in [*children(process.pid), process.pid]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    for path in tmp_path.glob("outputs/main/digits/*/*/record.json"):
        record = json.loads(path.read_text())
        assert record["status"] == "interrupted"
        assert record["reason"].startswith("SIGTERM in epoch")  # saved, not only killed


# torchvision's archives --------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def put_fashion(raw: Path) -> np.ndarray:
    """The four files, packed by somebody else: the checksums are not the published ones."""
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part, data in (("train", pixels[:20]), ("t10k", pixels[20:])):
        images = struct.pack(">4i", 0x803, *data.shape) + data.tobytes()
        labels = struct.pack(">2i", 0x801, len(data)) + bytes(i % 10 for i in range(len(data)))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return pixels


@pytest.mark.usefixtures("no_network")
def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    pixels = put_fashion(raw)
    found = fashion_mnist(str(tmp_path / "root"), cache=str(tmp_path / "cache"))
    assert np.array_equal(found.store.samples[:, 0].numpy(), pixels)
    assert not [path.name for path in raw.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("no_network")
def test_the_files_that_are_missing_are_named(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", str(tmp_path / "cache")
    put_fashion(root / "FashionMNIST" / "raw")
    (root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(
        ValueError, match=r"has no FashionMNIST/raw/t10k-images-idx3-ubyte\.gz; must contain "
    ):
        fashion_mnist(str(root), cache=cache)
    (root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(ValueError, match=r"cannot unpack FashionMNIST/raw/t10k-images-idx3-ubyte\.gz \("):
        fashion_mnist(str(root), cache=cache)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("content", ["other", "none"])
def test_another_archive_is_said_without_the_network(tmp_path: Path, content: str) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"short")
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "cifar-10-python.tar.gz", "w:gz") as tar:
        if content == "other":
            tar.add(tmp_path / "cifar-10-batches-py", arcname="cifar-10-batches-py")
    said = (
        "torchvision failed: " if content == "other" else "no cifar-10-batches-py in cifar-10-python.tar.gz"
    )
    with pytest.raises(ValueError, match=said):
        cifar10(str(tmp_path / "root"), cache=str(tmp_path / "cache"))


def test_what_was_unpacked_by_half_is_unpacked_again(tmp_path: Path, no_network: None) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    put_fashion(raw)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")  # the last of the four, and the others are missing
    assert len(fashion_mnist(str(tmp_path / "root"), cache=str(tmp_path / "cache")).labels) == 30
