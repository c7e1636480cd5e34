"""What all tests share: components composed from conf/ as run.py composes them, and the command line itself."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

# For test_triton.py, and before anything imports Triton, which reads it while it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import forked
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from activations.base import Activation
from runners.cell import Cell, CellSpec
from runners.compose import CONF, component_names, compose
from runners.loggers import make_loggers

if "PYTEST_XDIST_WORKER" in os.environ:  # workers and the processes that they start share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
ACTIVATIONS, TASKS = component_names("activation"), component_names("task")
# The first configuration of each class, for what depends on the class alone; test_activations.py has all of them.
_TARGETS = {
    name: re.search(r"^_target_: (\S+)", (CONF / "activation" / f"{name}.yaml").read_text(), re.M)
    for name in ACTIVATIONS
}
CLASSES = sorted({found[1]: name for name, found in reversed(_TARGETS.items()) if found}.values())


# Whose kernels compute on the CPU: our own in C++, or none. Those for a GPU have test_triton.py.
CPU_MODES = ("auto", "reference")


@cache
def config(*overrides: str) -> DictConfig:
    """The composed configuration for a command line."""
    return compose(*overrides)[0]


def activation_config(name: str, *overrides: str) -> DictConfig:
    """What ``config`` has as activation, a tenth of a second faster: the file, those that it is derived from, the overrides."""
    node = OmegaConf.load(CONF / "activation" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    for base in reversed(node.pop("defaults", ["_self_"])[:-1]):
        node = OmegaConf.merge(activation_config(base), node)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.removeprefix("activation.")
        OmegaConf.update(node, key, override.value(), force_add=override.is_add())
    OmegaConf.set_struct(node, True)
    return node


@cache
def make_factory(name: str, *overrides: str) -> partial:
    """An activation's factory, as a task receives it."""
    factory = instantiate(activation_config(name, *overrides))
    return partial(factory.func, **factory.keywords)


def make_task(name: str, *overrides: str) -> Any:
    """A task as run.py builds it."""
    composed = config(f"task={name}", *overrides)
    return instantiate(composed.task, network=instantiate(composed.network))


def make_cell(outputs: Path, *overrides: str, activation: str = "toy", task: str = "digits") -> Cell:
    """A cell whose outputs go to a temporary folder."""
    composed = config(f"task={task}", f"outputs={outputs}", *overrides)
    tree = OmegaConf.to_container(composed, resolve=True)
    spec = CellSpec.from_config(tree, activation=activation, task=task, network="network")
    return Cell(spec, force=tree["force"])


def train(
    outputs: Path, factory: Callable, *overrides: str, task: str = "digits", **names: str
) -> dict[str, Any]:
    """Train a cell in this process; returns its record."""
    overrides = ("runner.cost=0", *overrides)
    cell = make_cell(outputs, *overrides, task=task, **names)
    cell.loggers = make_loggers(cell.spec.config.get("logger"))
    runner = instantiate(config(f"task={task}", f"outputs={outputs}", *overrides).runner)
    return cell.run(lambda: runner(factory, make_task(task, *overrides), cell))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(unit: Activation) -> Activation:
    """The unit in float64, with parameters that are all different."""
    unit.double()
    torch.manual_seed(1)
    for parameter in unit.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.2)
    return unit


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """``cli(*overrides)`` runs run.py as a user would, with outputs in ``tmp_path / "outputs"``."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return execute(command(tmp_path, *arguments), ROOT, env)

    return run


def execute(line: list[Any], folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command line of Python: forked, but where an environment of its own or joblib needs a fresh interpreter."""
    if env is not None or any(str(argument).startswith("hydra/launcher") for argument in line):
        settings = {"cwd": folder, "timeout": 300, "env": env or PROCESS["env"]}
        return subprocess.run(line, **(PROCESS | settings))
    return forked.run(line[1:], cwd=folder, env=PROCESS["env"])


def command(tmp_path: Path, *arguments: str) -> list[str]:
    """The command line of a run whose outputs go to ``tmp_path / "outputs"``."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    rest = [argument for argument in arguments if not argument.startswith("-")]
    return [sys.executable, "run.py", *flags, f"outputs={tmp_path / 'outputs'}", *rest]


PROCESS: dict[str, Any] = {
    "cwd": ROOT,
    "env": {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"},
    "capture_output": True,
    "text": True,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, lest one worker wait for the other at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_wheel", "test_resume", "test_grid"))


@pytest.fixture(autouse=True)
def _same_threads_as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
