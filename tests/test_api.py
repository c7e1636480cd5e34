"""The package actbench: what is trained and made from Python is what the command line trains and makes."""

import doctest
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from conftest import ACTIVATIONS, PROCESS, ROOT
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.utils import get_class
from hydra.version import VersionBase, getbase
from torch import Tensor
from toy import Late, Toy

import actbench
from actbench import fit, leaderboard, load_study, make_act_layer, make_activation, make_task
from activations.base import Activation
from activations.prelu import PReLU
from results.files import MOVED
from runners.cell import CellLockedError
from runners.code import ACTIVATIONS as FOLLOWED
from runners.code import code_hash, compiled_hash
from runners.compose import Parts, choose, compose
from tasks.networks.mlp import MLP

PAGE = ROOT / "docs" / "python.md"
FUNCTIONS = [name for name in actbench.__all__ if name[0].islower()]


class Stopping(Activation):
    """ReLU that stops its process in the third training step, once."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Stopping.calls += 1
            if Stopping.calls == 3:
                signal.raise_signal(signal.SIGINT)
        return x.relu()


def prelu_layer(num_features: int, *, channel_dim: int = 1, init: float = 0.25) -> Activation:
    return PReLU(num_features, channel_dim=channel_dim, init=init)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


smoke = partial(fit, runner="smoke")


def cell_id(*overrides: str) -> str:
    """The id of a command line's cell."""
    return Parts(*compose(*overrides)).cell().spec.id


def notebook(source: str, **names: Any) -> dict[str, Any]:
    """The names that a notebook's cell defines: code of no file."""
    space = {"__name__": "__main__", "Activation": Activation, **names}
    exec(source, space)
    return space


def test_the_names_are_those_of_the_configurations() -> None:
    assert actbench.activation_names() == ACTIVATIONS
    assert {"digits", "cifar10"} <= {*actbench.task_names()}
    assert {"mlp", "timm"} <= {*actbench.network_names()}
    assert {*actbench.__all__} <= {*dir(actbench)}
    with pytest.raises(AttributeError, match="nothing"):
        actbench.nothing  # noqa: B018


def test_the_cell_is_that_of_the_command_line(tmp_path: Path, cli) -> None:
    command = ("activation=prelu", "activation.init=0.1", "task=digits", "seed=3", "runner=smoke")
    assert cli(*command).returncode == 0
    path = next(tmp_path.glob("outputs/main/digits/prelu/*/record.json"))
    before = path.stat().st_mtime_ns
    record = fit("prelu", init=0.1, task="digits", seed=3, runner="smoke", outputs=tmp_path / "outputs")
    assert path.stat().st_mtime_ns == before, "the cell was finished"
    assert record == json.loads(path.read_text()) | {"folder": str(path.parent)}

    again = fit("prelu", init=0.1, seed=np.int64(3), runner="smoke", force=True)
    assert Path(again["folder"]) == Path("outputs/main/digits/prelu", path.parent.name)
    assert (again["primary"], again["test_loss"]) == (record["primary"], record["test_loss"])
    assert again["command"].startswith("actbench.fit('prelu', task='digits', ")


@pytest.mark.parametrize(
    ("call", "overrides"),
    [
        (partial(choose, activation=Toy), ("activation._target_=toy.Toy",)),
        (partial(choose, activation="toy.Toy"), ("activation._target_=toy.Toy",)),
        (
            partial(choose, activation=partial(Toy, start=1)),
            ("activation._target_=toy.Toy", "+activation.start=1"),
        ),
        (
            partial(choose, activation=Toy, hyper={"activation": {"penalty": 0.0}}),
            ("activation._target_=toy.Toy", "+activation.penalty=0.0"),
        ),
        (partial(choose, activation="pwlu", network="resnet8"), ("activation=pwlu", "network=resnet8")),
        (
            partial(choose, settings={"seed": 2}, overrides="task.recipe.lr=0.01"),
            ("seed=2", "task.recipe.lr=0.01"),
        ),
    ],
)
def test_ids_are_those_of_the_command_line(call: Any, overrides: tuple[str, ...]) -> None:
    assert call().cell().spec.id == cell_id(*overrides)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            partial(make_activation, "pralu", 8),
            "activation=pralu: no such activation; did you mean prelu? Legal",
        ),
        (
            partial(make_activation, "prelu", 8, inti=1),
            "activation.inti: no such name; did you mean init? Legal: init, shared",
        ),
        (
            partial(make_activation, "prelu", 8, init="big"),
            "activation=prelu: init='big': must be a number",
        ),
        (
            partial(make_activation, Toy, 8, foo=1),
            "unexpected keyword argument 'foo'; hyper-parameters: start, ",
        ),
        (partial(make_activation, "prelu", 0), "num_features=0"),
        (partial(make_activation, torch.nn.ReLU, 8), "must be a subclass of activations.base.Activation"),
        (partial(make_activation, "nowhere.Unit", 8), "activation=nowhere.Unit: "),
        (partial(make_act_layer, "prelu", init=torch.ones(2)), "activation.init="),
        (partial(make_act_layer, lambda n: None), "defined at the top level of a module"),
        (partial(make_act_layer, partial(Toy, 3)), "name the arguments"),
        (partial(make_task, "mnist"), "task=mnist: no such task"),
        (
            partial(make_task, "digits", "task.recipe.lrr=1"),
            "task.recipe.lrr: no such name; did you mean lr?",
        ),
        (
            partial(make_task, "digits", "task.recipe.lr=nan"),
            "task.recipe.lr=nan: must be a finite number > 0",
        ),
        (
            partial(make_task, "digits", val_fractoin=0.1),
            "task.val_fractoin: no such name; did you mean val_fraction",
        ),
        (partial(make_task, Toy), "task=Toy: has no default network"),
        (
            partial(make_task, "digits", network=partial(MLP, hiden=[3])),
            "network.hiden: no such name; did you mean hidden?",
        ),
        (partial(fit, "relu", seed=-1), "seed=-1: must be an integer >= 0"),
        (partial(fit, "relu", force=1), "force=1: must be true or false"),
        (partial(fit, "relu", study="../up"), "study=../up"),
        (partial(fit, "relu", runner="check"), "runner=check: trains nothing"),
        (partial(fit, "relu", runner="smok"), "runner=smok: no such runner; did you mean smoke?"),
        (partial(fit, "relu", overrides=["seed=3"]), "seed=3: must be passed as the argument seed"),
        (partial(fit, "relu", overrides="runner.device=cuda:7"), "device=cuda:7: must be one of auto"),
        (partial(fit, "relu", overrides="a b=c d"), "a b=c d"),
        (partial(load_study, "none"), "none: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as stopped:
        call()
    assert "\n" not in str(stopped.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".locks"]


def test_a_factory_and_a_class_are_trained_under_their_names() -> None:
    record = smoke(prelu_layer, init=0.5)
    assert record["activation"] == "prelu_layer"
    assert record["activation.init"] == 0.5
    assert make_activation(prelu_layer, 4, channel_dim=-1, init=0.5).weight.tolist() == [0.5] * 4
    assert smoke(partial(Toy, start=0))["activation"] == "Toy"


def test_a_study_and_its_leaderboard() -> None:
    for name in ("relu", "swish"):
        smoke(name, study="two")
    records = load_study("outputs/two")
    assert sorted(records["activation_label"]) == ["relu", "swish"]
    for study in ("outputs/two", Path("outputs", "two"), records):
        assert set(leaderboard(study, baseline="swish")["baseline"]) == {"swish"}
    with pytest.raises(ValueError, match="baseline=gelu: must be an activation of the study: relu, swish"):
        leaderboard(records, baseline="gelu")


UNIT = """
SLOPE = 0.1

def bend(x):
    return x.clamp_min(0) + SLOPE * x.clamp_max(0)

class Unit(Activation):
    def forward(self, x):
        return bend(x)
"""


def test_a_class_of_a_notebook_is_known_by_what_was_compiled() -> None:
    record = smoke(notebook(UNIT)["Unit"])
    assert (record["activation"], record["activation._target_"]) == ("Unit", "__main__.Unit")
    assert smoke(notebook(UNIT)["Unit"]) == record, "the same again, typed anew"
    for changed in (
        UNIT.replace("0.1", "0.2"),
        UNIT.replace("return bend(x)", "return bend(x) + 1"),
        UNIT.replace("max(0)", "max(1)"),
    ):
        with pytest.raises(ValueError, match=r"code .* has changed since"):
            smoke(notebook(changed)["Unit"])
    assert smoke(notebook(UNIT.replace("0.1", "0.2"))["Unit"], force=True)["primary"] is not None


def test_the_hash_of_a_notebooks_class_is_the_same_in_every_process() -> None:
    source = UNIT.replace("return bend", "assert str(x) not in {'a', 'b', 'c', 'd'}; return bend")
    script = f"""
from runners.code import compiled_hash
space = {{"__name__": "nb", "Activation": object}}
exec({source!r}, space)
print(compiled_hash(space["Unit"]))
"""
    run = partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    hashes = {run(env=env | {"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(hashes) == 1
    assert hashes.pop().startswith("2:")


def test_a_script_is_the_file_of_its_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "my-script.py"
    script.write_text("from actbench import Activation\n\nclass Unit(Activation):\n    pass\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "Unit", unit := notebook(UNIT)["Unit"], raising=False)
    code = choose(activation=unit).cell().activation_code
    assert code not in (None, compiled_hash(unit))
    # the contract counts, although the script imports it by way of actbench
    assert code == code_hash(("__main__.Unit", "activations.base.Activation"), FOLLOWED)
    assert code != code_hash(("__main__.Unit",), FOLLOWED)
    prelu = choose(activation="prelu").cell().activation_code
    assert prelu == code_hash(("activations.prelu.PReLU",), FOLLOWED), "as it was for those of the zoo"


def test_what_was_not_defined_at_the_top_level_is_refused() -> None:
    class Local(Activation):
        pass

    with pytest.raises(ValueError, match=r"activation=.*Local.*: must be a name, or a class or function"):
        smoke(Local)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C with its usual effect, which other tests of the process may have changed."""
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.usefixtures("_ctrl_c")
def test_an_interrupt_is_raised_after_the_run_was_saved() -> None:
    Stopping.calls = 0
    with pytest.raises(KeyboardInterrupt):
        smoke(Stopping)
    (path,) = Path("outputs").glob("**/record.json")
    assert json.loads(path.read_text())["status"] == "interrupted"
    record = smoke(Stopping)
    assert (record["status"], len(record["sessions"])) == ("ok", 2)
    assert Stopping.calls == 4 * record["sites"], "no step was made twice"


def test_an_error_in_training_is_raised_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        smoke(Late)
    (path,) = Path("outputs").glob("**/record.json")
    assert json.loads(path.read_text())["status"] == "failed"


def test_a_cell_that_another_holds_is_busy() -> None:
    with (
        choose(settings={"outputs": "outputs"}, runner="smoke").cell().locked(),
        pytest.raises(CellLockedError),
    ):
        smoke("relu")


def test_logging_and_streams_are_left_alone(capsys: pytest.CaptureFixture) -> None:
    log = logging.getLogger("actbench")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    before = (log.level, log.propagate, [*log.handlers])
    logging.getLogger().addHandler(handler)
    try:
        record = smoke("relu", overrides=["runner.activation_only_epochs=1"])
    finally:
        logging.getLogger().removeHandler(handler)
    assert (log.level, log.propagate, log.handlers) == before
    assert heard == ["epoch 0: nothing is trained, all parameters are frozen"], (
        "warnings, as the root logger is set"
    )
    assert "started at epoch 0" in Path(record["folder"], "log.txt").read_text()
    assert capsys.readouterr() == ("", "")


def test_a_running_hydra_application_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("answer: 42\n")
    with hydra.initialize_config_dir(str(tmp_path / "conf"), job_name="mine", version_base="1.2"):
        instances = {cls: Singleton._instances[cls] for cls in (GlobalHydra, JobRuntime, VersionBase)}
        assert make_activation("relu", 4).num_features == 4
        with pytest.raises(ValueError, match="no such activation"):
            make_activation("pralu", 4)
        assert {cls: Singleton._instances[cls] for cls in instances} == instances
        assert hydra.compose("app").answer == 42
        assert (JobRuntime.instance().get("name"), str(getbase())) == ("mine", "1.2")
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_every_function(name: str) -> None:
    function = getattr(actbench, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_the_page_runs_from_another_folder(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module, *others = (text for _, text in blocks if text.startswith("# mine.py"))
    assert not others
    (tmp_path / "mine.py").write_text(module)
    (configuration,) = (text for language, text in blocks if language == "yaml")
    (tmp_path / "conf" / "activation").mkdir(parents=True)
    (tmp_path / "conf" / "activation" / "cubic.yaml").write_text(configuration)
    first = (
        "import sys, actbench\nassert not {'torch', 'hydra', 'pandas'} & {*sys.modules}, 'a cheap import'\n"
    )
    code = first + "".join(text for language, text in blocks if language == "python" and text != module)
    settings = PROCESS | {"cwd": tmp_path, "env": PROCESS["env"] | {"PYTHONPATH": str(ROOT)}}
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], **settings, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    record = json.loads(next(tmp_path.glob("outputs/own/Parabola/Cubic/*/record.json")).read_text())
    assert (record["task.epochs"], record["activation.init"], record["network"]) == (3, 0.2, "two_layers")

    (command,) = re.findall(r"`python (-m actbench [^`]*)`", PAGE.read_text(encoding="utf-8"))
    run = subprocess.run([sys.executable, *command.split(), "runner=smoke"], **settings, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("cubic digits seed=0 top1=")


@pytest.mark.parametrize("name", sorted(target.rpartition(".")[2].lower() for target in MOVED))
def test_a_class_that_moved_keeps_the_id_of_its_cells_and_its_old_name(name: str) -> None:
    now = Parts(*compose(f"activation={name}", "task=digits"))
    new = now.config["activation"]["_target_"]
    old = {value: key for key, value in MOVED.items()}[new]
    before = Parts(*compose(f"activation={name}", "task=digits", f"activation._target_={old}"))
    assert now.cell().spec.facts == before.cell().spec.facts
    assert get_class(old) is get_class(new)


def test_nothing_is_trained_without_posix_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = choose(activation="relu", task="digits")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match=r"^training runs on Linux and macOS; on Windows use WSL$"):
        parts.cell()
