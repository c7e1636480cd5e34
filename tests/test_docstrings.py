"""The examples in the docstrings of tasks and runners run as they stand."""

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

USED = """tasks.base tasks.classification tasks.segmentation tasks.regression tasks.data.images tasks.data.points
tasks.data.shapes tasks.data.tables tasks.networks.mlp tasks.networks.resnet tasks.networks.small_cnn tasks.networks.unet"""
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("tasks", "runners")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_modules_that_users_call_have_examples() -> None:
    assert set(USED.split()) <= set(MODULES)
