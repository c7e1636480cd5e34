"""What the id of a cell depends on and what not; docs/identity.md tells it."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from results.files import ADDED, WHERE, facts_of, identity_of
from runners.cell import CellSpec
from runners.code import ACTIVATIONS, HARNESS, _source, code_hash
from runners.compose import CONF, Parts, compose
from runners.composed import spellings_of

# Ids that version 0.1 gave; cells in outputs/ have them, so they never change.
IDS = {
    ("activation=relu",): "3d220cd36d",
    ("activation=pwlu", "task=sines2d", "seed=3"): "23c29a2c94",
    ("activation=prelu", "activation.init=0.1", "runner=smoke"): "30e372655b",
    ("activation=gelu", "task=cifar10", "task.data.root=/data/cifar10"): "58bb3228d6",
    ("activation=swish", "task=shapes", "runner.epochs=2"): "c3a218675f",
}


@cache
def cell_id(*overrides: str) -> str:
    return Parts(*compose(*overrides)).cell().spec.id


@pytest.mark.parametrize("overrides", IDS)
def test_ids_of_earlier_versions_stay(overrides: tuple[str, ...]) -> None:
    assert cell_id(*overrides) == IDS[overrides]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((), ("runner.threads=1",)),
        (("runner.threads=1",), ("runner.threads=2", "runner.device=cpu")),
        ((), ("study=another", "outputs=elsewhere", "force=true", "grid.failed=skip", "report.margin=0.1")),
        ((), ("runner.cost=0", "runner.pictures=false", "runner.keep=weights")),
        ((), ("activation=./relu.yaml", "task=digits", "seed=0", "task.recipe.lr=1e-1")),
        (("task.recipe.lr=1",), ("task.recipe.lr=1.0",)),
        (("activation=prelu", "activation.init=0"), ("activation=./prelu", "activation.init=0.0")),
        (("task.recipe.clip_norm=1",), ("task.recipe.clip_norm=1.0",)),
        (("task.recipe.epochs=30",), ("task.recipe.epochs=30.0",)),
        (("task=cifar10_small", "task.recipe.weight_decay=0"), ("task=cifar10_small", "task.recipe.weight_decay=0.0")),
        (("task=cifar10", "task.data.root=data/cifar10"), ("task=cifar10", "task.data.root=./data//cifar10/")),
        (("task=imagenette", "task.data.cache=/tmp", "task.data.in_memory=false"), ("task=imagenette",)),
    ],
)  # fmt: skip
def test_what_changes_no_result_changes_no_id(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert cell_id(*one) == cell_id(*other)


@pytest.mark.parametrize(
    "overrides",
    [
        ("activation=prelu",),
        ("activation=prelu", "activation.init=0.1"),
        ("activation=prelu", "activation.init=1"),
        ("task.recipe.lr=0.2",),
        ("task.recipe.lr=1",),
        ("task=cifar10",),
        ("task=cifar10", "task.data.root=data/others"),
        ("network=mlp",),
        ("network.sites=first:1",),
        ("runner.epochs=3",),
        ("runner.limit_batches=4",),
        ("runner.kernels=reference",),
        ("runner.amp=bf16",),
        ("seed=1",),
    ],
)
def test_what_may_change_a_result_changes_the_id(overrides: tuple[str, ...]) -> None:
    *chosen, changed = overrides
    assert cell_id(*overrides) != cell_id(*chosen), changed


def test_a_changed_default_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the cell that has the new value by an override, as the id is of all settings."""
    monkeypatch.setattr("runners.compose.CONF", shutil.copytree(CONF, tmp_path / "conf"))
    path = tmp_path / "conf" / "activation" / "prelu.yaml"
    assert "init: 0.25" in path.read_text()
    path.write_text(path.read_text().replace("init: 0.25", "init: 0.5"))
    changed = Parts(*compose("activation=prelu")).cell().spec.id
    assert changed == cell_id("activation=prelu", "activation.init=0.5") != cell_id("activation=prelu")


@pytest.mark.parametrize(
    "overrides",
    [
        ("runner.threads=2",),
        ("runner.device=cpu",),
        ("task.recipe.lr=1",),
        ("activation=prelu", "activation.init=1"),
    ],
)
def test_a_cell_that_has_the_id_of_an_earlier_version_keeps_it(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    def spec() -> CellSpec:
        return Parts(*compose(*overrides, f"outputs={tmp_path}")).cell().spec

    now = spec()
    settings = json.dumps([now.activation, now.task, now.facts], sort_keys=True)  # as they were written
    before = hashlib.sha256(settings.encode()).hexdigest()[:10]
    assert before != now.id
    now.folder.with_name(f"0-{before}").mkdir(parents=True)
    assert spec().id == before
    assert spec().folder.is_dir()


def test_where_a_cell_is_computed_is_in_its_record() -> None:
    spec = Parts(*compose("runner.threads=3")).cell().spec
    assert spec.facts["runner.threads"] == 3
    assert identity_of(spec.facts) == spec.facts | {"runner.threads": None}
    assert spec.facts.keys() >= WHERE.keys()


def test_the_folder_is_that_of_a_cell_computed_elsewhere(tmp_path: Path) -> None:
    one, other, another = (
        Parts(*compose(f"outputs={tmp_path}", *overrides)).cell()
        for overrides in (("runner.threads=1",), ("runner.threads=2",), ("task.recipe.lr=1",))
    )
    with one.locked():
        one.mark_started({"num_threads": 1})
    with other.locked():
        other.mark_started({"num_threads": 2})
    assert (one.folder, other.earlier()["runner.threads"]) == (other.folder, 2)
    other.folder.rename(another.folder)
    with (
        pytest.raises(ValueError, match=r"another configuration \(task\.recipe\.lr=0\.1 there, 1 now\)"),
        another.locked(),
    ):
        pass


def test_spellings_are_those_of_the_files() -> None:
    overrides = ("task=cifar10_small", "task.recipe.lr=1", "task.recipe.batch_size=64.0", "runner.epochs=7")
    parts = Parts(*compose("activation=prelu", "+activation.other=2.0", *overrides))
    assert parts.spec().spellings == {"task.recipe.lr": 1.0, "task.recipe.batch_size": 64}
    assert type(parts.spec().spellings["task.recipe.lr"]) is float
    cfg, hydra_cfg = compose("task.recipe.lr=1e300")
    assert spellings_of(dict(cfg), {"task": "digits"}, hydra_cfg) == {}


@pytest.mark.parametrize("name", ADDED)
def test_settings_that_were_added_are_no_part_of_earlier_ids(name: str) -> None:
    config: dict[str, Any] = {part: {} for part in ("activation", "task", "network", "runner")} | {"seed": 0}
    before = facts_of(config)
    *path, last = name.split(".")
    inner = config
    for part in path:
        inner = inner.setdefault(part, {})
    inner[last] = ADDED[name]
    assert facts_of(config) == before
    inner[last] = "another"
    assert facts_of(config) == before | {name: "another"}


def test_code_counts_as_it_was_when_it_was_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was imported, that is, and not as somebody edits it while a run goes on."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_unit.py").write_text("a = 1\n")
    before = code_hash(("edited_unit.Unit",), ACTIVATIONS)
    (tmp_path / "edited_unit.py").write_text("a = 2\n")
    for packages in (ACTIVATIONS, HARNESS):
        assert code_hash(("edited_unit.Unit",), packages) == before
    code_hash.cache_clear()
    _source.cache_clear()
    assert code_hash(("edited_unit.Unit",), ACTIVATIONS) != before
