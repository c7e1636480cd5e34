"""Packed studies: the two files hold what the folders held, reports read them, grids skip their cells."""

import json
import shutil
from pathlib import Path

import pytest
from test_train import Toy, make_cell, train

from actbench import fit
from results.collect import read_metrics, read_records
from results.files import find_cells, place_of
from results.packed import ARCHIVE, TABLE, pack, read_packed, unpack
from results.schema import read_record
from runners.plan import planned


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two cells, packed and without its folders, and their records in ``before.json``."""
    root = tmp_path_factory.mktemp("packed")
    for seed in (0, 1):
        train(root, Toy, "runner=smoke", f"seed={seed}")
    (folder,) = {cell.parents[2] for cell in find_cells(root)}
    before = {
        cell.relative_to(folder).as_posix(): read_record(cell / "record.json") for cell in find_cells(folder)
    }
    metrics, _ = read_metrics(str(folder / place) for place in sorted(before))
    assert pack(folder) == 2
    first = [(folder / name).read_bytes() for name in (TABLE, ARCHIVE)]
    assert pack(folder) == 2
    assert [(folder / name).read_bytes() for name in (TABLE, ARCHIVE)] == first, "same cells, same bytes"
    for place in before:
        shutil.rmtree(folder / place)
    (root / "before.json").write_text(json.dumps(before))
    metrics.drop(columns="folder").to_csv(root / "metrics.csv", index=False)
    return folder


def test_packed_records_are_those_of_the_folders(study: Path) -> None:
    before = json.loads((study.parent / "before.json").read_text())
    assert read_packed(study) == before
    assert {place_of(record) for record in before.values()} == before.keys()
    assert list(read_records(study)["status"]) == ["ok", "ok"]


def test_packed_metrics_are_read(study: Path) -> None:
    metrics, damaged = read_metrics(read_records(study).sort_values("seed")["folder"])
    text = metrics.drop(columns="folder").to_csv(index=False)
    assert (text, damaged) == ((study.parent / "metrics.csv").read_text(), [])


def test_a_packed_cell_is_not_trained_again(study: Path) -> None:
    root = study.parent
    assert train(root, Toy, "runner=smoke", "seed=1")["seed"] == 1
    assert not [*find_cells(study)]
    cell = make_cell(root, "runner=smoke", "seed=1", "force=true")
    assert cell.completed_record() is None, "force=true trains it all the same"


def test_a_folder_goes_before_what_was_packed(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / study.name
    shutil.copytree(study, copy)
    (place, record), other = read_packed(copy).items()
    (copy / place).mkdir(parents=True)
    (copy / place / "record.json").write_text(json.dumps(record | {"primary": 12.5}))
    assert list(read_records(copy)["primary"]) == [12.5, other[1]["primary"]]
    pack(copy)
    assert read_packed(copy)[place]["primary"] == 12.5


@pytest.mark.parametrize("name", [TABLE, ARCHIVE])
def test_damaged_files_are_named(study: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / study.name
    shutil.copytree(study, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        read_packed(copy), unpack(copy)


@pytest.mark.parametrize("value", ["", "a", "1", "null", "[1]", "NaN", 1, 0.1, True, None, [{"a": "1,2"}]])
def test_values_survive_the_table(tmp_path: Path, value: object) -> None:
    from results.packed import _text, _value

    assert _value(_text(value)) == value
    assert type(_value(_text(value))) is type(value)


def test_a_copied_folder_is_not_packed(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / study.name
    shutil.copytree(study, copy)
    place, record = next(iter(read_packed(copy).items()))
    folder = copy / place.replace("/0-", "/7-")
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{folder}: its record is that of another folder"):
        pack(copy)


def test_a_packed_cell_without_a_test_has_no_score(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / study.name
    shutil.copytree(study, copy)
    place, record = next(iter(read_packed(copy).items()))
    (copy / place).mkdir(parents=True)
    untested = {name: value for name, value in record.items() if name != "primary"} | {"runner.test": False}
    (copy / place / "record.json").write_text(json.dumps(untested))
    before = list(read_records(copy)["status"])
    pack(copy)
    shutil.rmtree(copy / place)
    assert list(read_records(copy)["status"]) == before == ["untested", "ok"]


def test_a_packed_cell_is_the_result_of_fit_and_done_in_a_plan(tmp_path: Path) -> None:
    settings = {"task": "digits", "runner": "smoke", "study": "packed", "outputs": tmp_path}
    record = fit("relu", **settings)
    study = tmp_path / "packed"
    pack(study)
    folder = Path(record["folder"])
    shutil.rmtree(folder)
    assert fit("relu", **settings) == record

    words = ["activation=relu", "task=digits", "runner=smoke", "study=packed", f"outputs={tmp_path}"]
    (one,) = planned(words)
    assert one.kind == "done"
    (again,) = planned([*words, "force=true"])
    assert again.kind == "to do"
    folder.mkdir()
    interrupted = {name: value for name, value in record.items() if name != "folder"} | {
        "status": "interrupted"
    }
    (folder / "record.json").write_text(json.dumps(interrupted))
    (one,) = planned(words)
    assert one.kind == "interrupted", "as it will be trained"
