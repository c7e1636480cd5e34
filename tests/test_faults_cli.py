"""Command lines as people type them: nothing is accepted that does nothing, and what can be meant is run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROCESS, ROOT, TASKS, config, execute, make_factory, make_task
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from results.collect import read_records
from results.report import write_report
from runners.composed import RUNTIME_ARGUMENTS, check_component
from runners.factory import validate_act_layer
from runners.grid import composable

STEEP = "_target_: activations.prelu.PReLU\n_partial_: true\nshared: false\ninit: 0.9\n"

# command line without outputs=..., and what is said of it in one line
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "added at the top": (
        ("+lr=0.001",),
        "lr: no such name; did you mean task.recipe.lr? Legal: activation, force, grid, logger, network, outputs, report, runner, seed, study, task",
    ),
    "added at the top, in a grid": (
        ("-m", "+epochs=1,50"),
        "+epochs=1: epochs: no such name; did you mean task.recipe.epochs or runner.epochs? Legal: activation,",
    ),
    "unknown at the top": (("lr=0.1",), "lr: no such name; did you mean task.recipe.lr? Legal: activation,"),
    "added group": (("+activation@other=relu",), "other: no such name; Legal: activation, force,"),
    "deleted setting": (("~seed",), "seed: is missing"),
    "deleted component": (("~network",), "network: is missing; must be set, such as network=mlp"),
    "deleted class": (
        ("~activation._target_",),
        "activation=relu: its configuration must have _target_ and _partial_",
    ),
    "a list": (
        ("activation=[relu,prelu]",),
        "activation=[relu,prelu]: must be one activation; python run.py -m activation=relu,prelu compares several",
    ),
    "a grid without -m": (
        ("activation=relu,prelu",),
        "activation=relu,prelu: several values are a grid: add --multirun",
    ),
    "a range without -m": (("seed=range(3)",), "seed=range(3): several values are a grid: add --multirun"),
    "null": (("task=null",), "are names, as in activation=relu"),
    "a plus too many": (("+experiment=demo",), "experiment has a value already: experiment=demo, without +"),
    "an experiment without -m": (
        ("experiment=demo",),
        "experiment=demo is a grid over seed, activation, task: python run.py -m experiment=demo runs it",
    ),
    "an unknown experiment among others": (
        ("-m", "experiment=demo,dem"),
        "experiment=dem: no such experiment",
    ),
    "a setting that one of the grid lacks": (
        ("-m", "activation=prelu,pwlu", "activation.init=0.1"),
        "activation=pwlu: activation.init: no such name; did you mean fix_init? Legal: fix_init,",
    ),
    "a grid over nothing": (
        ("-m", "seed=range(0)"),
        "seed=range(0): matches nothing to sweep over",
    ),
    "a glob of nothing": (
        ("-m", "activation=glob(zz*)"),
        "activation=glob(zz*): matches nothing",
    ),
    "a grid over a wrong study": (("-m", "study=a,../up"), "study=../up: must consist of letters"),
    "out of its folder": (
        ("activation=../activation/relu",),
        "activation=../activation/relu: must be the name of a configuration in activation/",
    ),
    "unknown in a sub-folder": (
        ("activation=mine/relu",),
        "activation=mine/relu: no such activation; ",
    ),
    "no outputs": (("outputs=",), "outputs=: must be the name of a folder"),
    "no outputs of a grid": (("-m", "outputs="), "outputs=: must be the name of a folder"),
    "outputs of null": (("outputs=null",), "outputs=null: must be the name of a folder"),
    "a tilde": (("outputs=~/x",), """put the value in quotes, as in 'outputs="~/x"'"""),
    "half a seed": (("seed=1.5",), "seed=1.5: must be an integer >= 0"),
    "not a bool": (("hydra.job.chdir=maybe",), "hydra.job.chdir=maybe: Value 'maybe' is not a valid bool"),
}


# what composes, and which names in it nothing reads or somebody misses
UNREAD: dict[tuple[str, ...], str] = {
    ("+task.lr=1",): "task.lr: no such name; Legal: augment, data, eval_crop, recipe, test_fraction,",
    ("+task.recipe.lrr=1",): "task.recipe.lrr: no such name; did you mean lr?",
    ("+task.data.rot=1",): "task.data.rot: no such name; Legal: none",
    ("+task.network=1",): "task.network: no such name; Legal: augment,",
    ("+runner.epoch=1",): "runner.epoch: no such name; did you mean epochs? Legal: ",
    ("+network.model.width=1",): "network.model.width: no such name; Legal: path",
    ("+network.act_layer=1",): "network.act_layer: no such name; Legal: ",
    ("task=sines2d", "+task.data.function.name=1"): "task.data.function.name: no such name; Legal: path",
    (
        "activation=gct",
        "+activation.base.channel_dim=2",
    ): "activation.base.channel_dim: no such name; Legal: none",
    ("~task.recipe.lr",): "task.recipe.lr: is missing; Recipe takes it",
    ("~network.model",): "network.model: is missing; build takes it",
}


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run run.py in ``folder``, with ``outputs`` there."""
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return execute(line, folder, PROCESS["env"] | environment if environment else None)


def found(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("record.json"))


@pytest.mark.parametrize("case", REFUSED)
def test_one_line(case: str, tmp_path: Path) -> None:
    arguments, message = REFUSED[case]
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("actbench: ")
    assert message in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overrides", UNREAD)
def test_names_that_no_component_reads(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(UNREAD[overrides])}"):
        check_all(*overrides)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_in_full(name: str) -> None:
    check_all(f"task={name}")


def check_all(*overrides: str) -> None:
    composed = OmegaConf.to_container(config(*overrides), resolve=True)
    for component in RUNTIME_ARGUMENTS:
        check_component(component, composed.get(component))


def test_the_network_decides_what_a_site_is() -> None:
    for name in ("channel_dim", "num_features"):
        with pytest.raises(ValueError, match=f"^activation.{name}: no hyper-parameter; the network sets it"):
            validate_act_layer(make_factory("relu", f"+activation.{name}=2"), "relu")


def test_unknown_names_are_said_without_torch(tmp_path: Path) -> None:
    (tmp_path / "poison" / "torch").mkdir(parents=True)
    (tmp_path / "poison" / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    for arguments in (
        ("+lr=1",),
        ("-m", "activation=prelu,pwlu", "activation.init=0.1"),
        ("experiment=demo",),
    ):
        ended = run(tmp_path, *arguments, PYTHONPATH=str(tmp_path / "poison"))
        assert "torch was imported" not in ended.stderr
        assert ended.stderr.startswith("actbench: ")


def test_a_key_that_others_refer_to_is_read(tmp_path: Path) -> None:
    ended = run(tmp_path, "+rate=0.05", "task.recipe.lr=${rate}", "runner=smoke")
    assert ended.returncode == 0, ended.stderr
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["task.recipe.lr"] == 0.05


def test_experiments_and_studies_have_a_report_each(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    for name, activations in (("one", "relu,prelu_shared"), ("two", "prelu")):
        params = f"hydra:\n  sweeper:\n    params:\n      activation: {activations}\n"
        (folder / f"{name}.yaml").write_text(f"# @package _global_\nstudy: {name}\n{params}")
    # relu, the default, has no init; prelu and prelu_shared have
    (folder / "one.yaml").write_text(
        (folder / "one.yaml").read_text().replace("relu,prelu_shared", "prelu_shared,prelu")
    )
    both = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      experiment: one,two\n"
    (folder / "both.yaml").write_text(both)
    arguments = ("--config-dir=own", "-m", "experiment=both", "activation.init=0.1", "runner=smoke")
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    reports = [line for line in ended.stdout.splitlines() if line.startswith("leaderboard: ")]
    assert reports == [f"leaderboard: outputs/{name}/report/leaderboard.md" for name in ("one", "two")]
    tables = {
        name: pd.read_csv(tmp_path / "outputs" / name / "report" / "leaderboard.csv")
        for name in ("one", "two")
    }
    assert sorted(tables["one"]["activation"]) == ["prelu", "prelu_shared"]
    assert sorted(tables["two"]["activation"]) == ["prelu"]
    assert set(tables["one"]["limit_batches"]) == {4}
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["one", "two"]
    command = json.loads(next((tmp_path / "outputs" / "two").rglob("record.json")).read_text())["command"]
    assert command.endswith("--config-dir=own -m experiment=two activation.init=0.1 runner=smoke")

    ended = run(tmp_path, "-m", "study=a,b", "runner=smoke")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    reports = [line for line in ended.stdout.splitlines() if line.startswith("leaderboard: ")]
    assert reports == [f"leaderboard: outputs/{name}/report/leaderboard.md" for name in ("a", "b")]
    assert ended.stdout.count("limited to 4 batches a pass: not a score") == 2
    assert (
        "- **digits: limited to 4 batches a pass: not a score**"
        in (tmp_path / "outputs" / "a" / "report" / "leaderboard.md").read_text()
    )

    (folder / "none.yaml").write_text(both.replace("one,two", "glob(one/*)"))
    none = run(tmp_path, "--config-dir=own", "-m", "experiment=none", "runner=smoke")
    assert none.returncode == 1
    assert none.stderr == "actbench: experiment=glob(one/*): matches nothing to sweep over\n"

    one = run(tmp_path, "--config-dir=own", "experiment=two", "activation=tanh", "runner=smoke")
    assert one.returncode == 0, one.stderr  # all that it sweeps over is given


@pytest.mark.parametrize("how", ["--config-dir=own", "hydra.searchpath=[file://own]"])
def test_configurations_of_ones_own(tmp_path: Path, how: str) -> None:
    for place in ("activation/steep.yaml", "activation/mine/steep.yaml"):
        (tmp_path / "own" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / place).write_text(STEEP)
    (tmp_path / "own" / "task" / "mine").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine" / "d.yaml").write_text(
        "defaults: [/task/digits@_here_, _self_]\nval_fraction: 0.25\n"
    )
    grid = ("activation=mine/steep,steep", "task=mine/d,digits", "runner=smoke", "hydra.job.chdir=true")
    ended = run(tmp_path, "-m", how, *grid)
    assert ended.returncode == 0, ended.stderr
    study = tmp_path / "outputs" / "main"
    cells = [
        f"{task}/{activation}" for task in ("digits", "mine/d") for activation in ("mine/steep", "steep")
    ]
    assert [path.rpartition("/")[0] for path in found(study)] == cells
    table = pd.read_csv(study / "report" / "leaderboard.csv")
    assert sorted(f"{row.task}/{row.activation}" for row in table.itertuples()) == cells
    assert table.groupby("task")["mean"].nunique().to_dict() == {"digits": 1, "mine/d": 1}  # the same unit

    shutil.copytree(study / "digits", study / "old" / "digits")
    assert [*read_records(study)["status"]].count("ok") == 4  # a copy is not another seed

    globbed = run(tmp_path, "-m", how, "activation=glob(st*)", "runner=smoke")
    assert globbed.stdout.startswith("steep digits seed=0 "), globbed.stderr
    assert globbed.stdout.splitlines()[0].endswith("(finished before)")


@pytest.mark.parametrize(
    ("value", "alike"),
    [(v, True) for v in ("0.1", "[1,2]", "{a:1}", "true", "1e-3", "/tmp/x y", "${seed}", "first:2")]
    + [(v, False) for v in ("null", "'1'", "'a b'", "'${seed}'", "")],
)
def test_a_setting_of_a_grid_stays_what_it_is(value: str, alike: bool) -> None:
    """Hydra turns ``choice('1')`` into the number 1 and cannot read ``choice(null)``."""
    argv = ["run.py", "-m", "activation=relu,prelu", f"task.data.root={value}", "seed=1", "--config-dir=x"]
    changed = composable(argv)
    assert changed[3] == (f"task.data.root=choice({value})" if alike else argv[3])
    assert [*changed[:3], argv[3], *changed[4:]] == argv
    before, after = (
        BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(line[2:5]), None)
        for line in (argv, changed)
    )
    assert before == after
    assert composable([argv[0], *argv[2:]]) == [argv[0], *argv[2:]]  # no grid


@pytest.mark.parametrize("launcher", [(), ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")])
def test_paths_are_those_of_the_command_line(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    chdir = ("hydra.job.chdir=true", "hydra.run.dir=elsewhere")
    ended = run(tmp_path, *launcher, *chdir, "runner=smoke", "study=s")
    assert ended.returncode == 0, ended.stderr
    assert [path[:17] for path in found(tmp_path)] == ["outputs/s/digits/"]
    again = run(tmp_path, "runner=smoke", "study=s")
    assert again.stdout.endswith("(finished before)\n")


def test_a_terminal_of_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "activation"
    folder.mkdir(parents=True)
    (folder / "größe.yaml").write_text(STEEP, encoding="utf-8")
    arguments = ("--config-dir=own", "-m", 'activation="größe"', "runner=smoke")
    ended = run(tmp_path, *arguments, LC_ALL="C.UTF-8", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("gr??e digits seed=0 ")
    report = tmp_path / "outputs" / "main" / "report"
    assert "| größe |" in (report / "leaderboard.md").read_text(encoding="utf-8")
    script = [sys.executable, str(ROOT / "scripts" / "report.py"), str(report.parent)]
    environment = PROCESS["env"] | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(script, **(PROCESS | {"env": environment}))
    assert printed.returncode == 0, printed.stderr
    assert "gr??e" in printed.stdout


def test_no_home(tmp_path: Path) -> None:
    """Where neither HOME nor the list of users says where a home is, ``~`` is a line and all else runs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
    )
    environment = {key: value for key, value in PROCESS["env"].items() if key != "HOME"}
    environment["PYTHONPATH"] = str(tmp_path)
    for arguments, said in (
        (
            ("task=cifar10", 'task.data.root="~/x"'),
            "ACTBENCH_CACHE=FOLDER or task.data.cache=FOLDER is the folder",
        ),
        (
            ("runner=smoke", 'outputs="~/x"'),
            "~: this user has no home folder and HOME is not set; use absolute paths",
        ),
    ):
        command = [sys.executable, str(ROOT / "run.py"), *arguments]
        ended = subprocess.run(command, **(PROCESS | {"cwd": tmp_path, "env": environment}))
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1
        assert said in ended.stderr


def test_scripts_run_the_code_beside_them(tmp_path: Path) -> None:
    """A second checkout, of which the first is installed or on PYTHONPATH."""
    second, alone = tmp_path / "second", tmp_path / "alone"
    for package in ("activations", "results", "runners", "tasks"):
        shutil.copytree(ROOT / package, second / package, ignore=shutil.ignore_patterns("*.so", "ditac_fig1"))
    for folder in (second, alone):
        shutil.copytree(ROOT / "scripts", folder / "scripts")
    (second / "results" / "report.py").write_text("def report(*arguments):\n    print('the second')\n")
    settings: dict[str, Any] = PROCESS | {"env": PROCESS["env"] | {"PYTHONPATH": str(ROOT)}, "cwd": tmp_path}
    own = subprocess.run([sys.executable, second / "scripts" / "report.py", "."], **settings)
    assert (own.stdout, own.stderr) == ("the second\n", "")
    foreign = subprocess.run([sys.executable, alone / "scripts" / "report.py", "none"], **settings)
    assert (
        foreign.stderr.splitlines()[0]
        == f"actbench: {alone}/scripts/report.py runs the code in {ROOT}, not in {alone}"
    )
    for script in (ROOT / "scripts").glob("*.py"):
        assert _begins_with_here(script), script


def _begins_with_here(script: Path) -> bool:
    """Whether a script imports _here, or a script that does, before any code of the project."""
    for name in re.findall(r"^(?:import|from) (\w+)", script.read_text(), re.MULTILINE):
        if name in ("_here", "activations", "results", "runners", "tasks"):
            return name == "_here"
        if (other := script.with_name(f"{name}.py")).exists():
            return _begins_with_here(other)
    return True


def test_limited_batches_come_from_the_whole_of_a_split() -> None:
    task = make_task("digits")
    task._eval_batch = lambda: 40
    order = task.labels[task.index["test"]].argsort(stable=True)
    task.index["test"] = task.index["test"][order]  # one class after the other
    task.limit_batches = 2
    labels = torch.cat([target for _, target in task.batches("test")])
    assert len(labels) == 80
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() >= 7  # 539 images of ten classes of about equal size
    assert counts.max() <= 9
    again = torch.cat([target for _, target in task.batches("test")])
    assert torch.equal(labels, again)

    turns = torch.arange(1000) % 10  # ten classes that take turns
    assert torch.bincount(task.spread(turns, 50), minlength=10).min() > 2
    task.limit_batches = None
    assert task.spread(turns, 50) is turns
    task.limit_batches = 20
    assert task.spread(turns, 50) is turns


def test_limited_batches_of_a_regression_are_of_its_whole_range() -> None:
    task = make_task("step", "task.data.test_grid=20000")
    task.limit_batches = 1
    x = torch.cat([x for x, _ in task.batches("test")])
    low, high = (task.points["test"][0].min(), task.points["test"][0].max())
    assert len(x) == 4096
    np.testing.assert_allclose([x.min(), x.max()], [low, high], atol=0.002)


def test_a_report_marks_what_is_no_score(tmp_path: Path) -> None:
    for task, limit in (("short", 3), ("full", None)):
        folder = tmp_path / task / "relu" / "0-abc"
        folder.mkdir(parents=True)
        record = {
            "activation": "relu",
            "task": task,
            "seed": 0,
            "cell": "abc",
            "status": "ok",
            "primary": 1.0,
        }
        record |= {"primary_metric": "top1", "higher_is_better": True, "parameters": 1, "flops": 1}
        record |= {"primary_best": 1.0, "seconds_per_epoch": 1.0, "runner.limit_batches": limit}
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "metrics.csv").write_text("epoch,split,loss,top1\n0,train,1,1\n0,val,1,1\n")
    path, table = write_report(tmp_path)
    assert "- **short: limited to 3 batches a pass: not a score**" in path.read_text()
    assert "full: limited" not in path.read_text()
    assert table.set_index("task")["limit_batches"].fillna(0).to_dict() == {"short": 3, "full": 0}
