"""The wheel: built, installed into an environment of its own, and used from another folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import PROCESS, ROOT
from filelock import FileLock

from activations.kernels import library

if not library.described().startswith("fused"):
    pytest.skip(library.described(), allow_module_level=True)

SWAP = """
import actbench
import torch, torchvision
from activations.kernels import library
from activations.prelu import PReLU
from activations.swap import replace_activations
network = torchvision.models.resnet18()
replace_activations(network, PReLU, sites="all", example_input=torch.randn(2, 3, 64, 64))
print(sum(isinstance(module, PReLU) for module in network.modules()), library.available(), PReLU.__module__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the first of the workers that needs it; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    with FileLock(folder.with_suffix(".lock")):
        if not (built := [*folder.glob("*.whl")]):
            built = [build_wheel(folder)]
    return built[0]


COMPILER = """
import shutil, sys
output = sys.argv[sys.argv.index("-o") + 1]
shutil.copy(f"{folder}/{{output.rpartition('/')[2].partition('.')[0]}}.so", output)
"""


def build_wheel(folder: Path) -> Path:
    """Build it with kernels that this checkout has already, for which a minute was spent when it was installed."""
    compiler = folder / "compiler" / "ziglang"
    compiler.mkdir(parents=True)
    (compiler / "__init__.py").touch()
    (compiler / "__main__.py").write_text(COMPILER.format(folder=library.FOLDER))
    # a copy, as building leaves files beside setup.py
    source = folder / "source"
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        if (ROOT / name).exists() and not name.startswith(("tests/", "docs/", "results/ditac_fig1/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": str(compiler.parent)}
    subprocess.run([*build, str(source)], check=True, timeout=600, env=environment)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that has the wheel, and torch and the like from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # the folder of this environment is added without running its .pth files, which would bring the checkout along
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    return folder / "bin" / "python"


def use(python: Path, folder: Path, *arguments: str) -> str:
    settings = PROCESS | {"cwd": folder, "timeout": 300}
    settings["env"] = {key: value for key, value in PROCESS["env"].items() if key != "PYTHONPATH"}
    run = subprocess.run([str(python), *arguments], **settings)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_wheel_has_one_name_one_tag_and_all_files(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"actbench"}
    for pattern in (
        "conf/**/*.yaml",
        "activations/kernels/csrc/*",
        "tasks/**/*.py",
        "results/published/*",
        "run.py",
    ):
        for path in ROOT.glob(pattern):
            assert f"actbench/{path.relative_to(ROOT)}" in names


def test_a_cell_is_trained_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = ["-m", "actbench", "activation=prelu", "task=digits", "runner=smoke"]
    folder = Path(use(installed, tmp_path, *command).split()[-1])
    record = json.loads((tmp_path / folder / "record.json").read_text())
    assert record["status"] == "ok"
    assert record["git_commit"] is None
    assert record["kernels"].startswith("fused")
    assert "finished before" in use(installed, tmp_path, *command)
    report = use(installed, tmp_path, "-m", "actbench", "report", "outputs/main")
    assert "outputs/main/report/leaderboard.md" in report


def test_activations_of_a_torchvision_model_are_replaced(installed: Path, tmp_path: Path) -> None:
    assert use(installed, tmp_path, "-c", SWAP).split() == ["17", "True", "activations.prelu"]
