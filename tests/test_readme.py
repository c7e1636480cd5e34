"""What the README tells a reader to do, done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = ROOT / "README.md"
TREE = ("activations", "conf", "results", "runners", "tasks")


def section(title: str, page: Path = README) -> str:
    """The text below a title."""
    return page.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str, page: Path = README) -> list[str]:
    """The code blocks of a section."""
    return re.findall(rf"```{language}\n(.*?)```", section(title, page), flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree in which the files of the README may be written."""
    for name in TREE:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "data"))
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a Python command of the copy, without the code of this checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_activation_is_added_in_two_files(checkout: Path) -> None:
    title = "Add an activation in two files"
    ((code,), (settings,)) = blocks(title, "python"), blocks(title, "yaml")
    files = re.findall(r"^`([\w/.]+)`:$", section(title), flags=re.MULTILINE)
    assert files == ["activations/cubic.py", "conf/activation/cubic.yaml"]
    for file, text in zip(files, (code, settings), strict=True):
        (checkout / file).write_text(text, encoding="utf-8")
    trained = run(checkout, "run.py", "activation=cubic", "task=digits", "runner=smoke")
    assert trained.returncode == 0, trained.stderr
    assert re.match(r"cubic digits seed=0 top1=[\d.]+ outputs/main/digits/cubic/0-", trained.stdout)
    contract = run(checkout, "-m", "pytest", "-q", "tests/test_activations.py", "-k", "cubic")
    assert contract.returncode == 0, contract.stdout
    assert re.search(r"\b\d\d passed", contract.stdout), contract.stdout


CODE = [*blocks("From Python", "python"), *blocks("From Python", "python", ROOT / "docs" / "networks.md")]


@pytest.mark.parametrize("code", CODE, ids=["fit", "swap", "torchvision", "timm"])
def test_python_of_the_documentation_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    assert capsys.readouterr().out.strip()
