"""Equal tuning: what is tried, what is chosen and by what, and what the report says of it."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pandas as pd
import pytest
import tune as script
from conftest import PROCESS, ROOT, config, train
from test_docs import documented

import run as run_script
from activations.torch_nn import ReLU
from results.collect import read_records
from results.figures_tuning import sensitivity
from results.files import read_json, write_json
from results.leaderboard import leaderboard
from results.metrics import METRICS
from results.packed import pack
from results.report import write_report
from results.tuning import (
    COLUMNS,
    RANGES,
    Tuned,
    check_equal,
    choose,
    good_range,
    identity,
    profile,
    read_labelled,
    read_trial,
    read_tuning,
    settings_of,
)
from runners.grid import SeveralGridsError, varied
from runners.plan import planned
from runners.tuning import Plan, Tuning, tune

# In toy.Line the loss is scale^2 E[x^2] (w - 3 / scale)^2 with E[x^2] = 1/3: the error shrinks by 1 - 2/3 scale^2 lr a step.
# At lr = 1.5 / scale^2 one step is enough; at four times that it grows by a factor of three.
BEST = {1: 1.5, 2: 0.375}


def grid(folder: Path, *more: str) -> list[str]:
    """Two activations whose best learning rates are known; that of the common recipe is the best of one of them."""
    conf = folder / "conf"
    files = {
        "activation/scaled": "_target_: toy.Scaled\n_partial_: true\nscale: 1.0\n",
        "network/line": "_target_: toy.Line\n_partial_: true\n",
    }
    for name, text in files.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / f"{name}.yaml").write_text(text)
    return [
        f"hydra.searchpath=[file://{conf}]",
        f"outputs={folder / 'outputs'}",
        *("activation=scaled", "activation.scale=1,2", "task=runge", "network=line", "study=s"),
        *("task.data.function.path=toy.triple", "task.recipe.optimizer=sgd", "+task.recipe.momentum=0"),
        *("+task.recipe.nesterov=false", "task.recipe.lr=0.375", "task.recipe.schedule=constant"),
        *("runner.epochs=2", "runner.limit_batches=4", "runner.cost=0", "runner.threads=1"),
        *(more or ("tune.task.recipe.lr=[0.375,1.5]", "seed=0")),
    ]


def trained(names: list[str]) -> Callable[[Sequence[str]], bool]:
    """Train what is not finished of a grid, in this process; ``names`` receives the folders of the cells."""

    def run(overrides: Sequence[str]) -> bool:
        for one in planned(overrides):
            if one.cell.completed_record() is None:
                one.cell.run(partial(one.parts.train, one.cell))
                names.append(one.cell.folder.as_posix())
        return True

    return run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    names: list[str] = []
    assert tune(grid(folder), trained(names))
    assert (
        len(names) == 2 * 2 * 2 + 2 + 1
    )  # trials, common recipe, and the one activation that is best elsewhere
    write_report(folder / "outputs" / "s")
    return folder / "outputs" / "s"


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """The same study, to be changed."""
    shutil.copytree(study.parent, tmp_path / "outputs")
    shutil.copytree(study.parent.parent / "conf", tmp_path / "conf")
    return tmp_path / "outputs" / "s"


def test_each_activation_gets_the_learning_rate_that_is_best_for_it(study: Path) -> None:
    table = read_tuning([study])
    chosen = table[table["chosen"]]
    assert list(chosen["settings"]) == [f"task.recipe.lr={BEST[scale]}" for scale in (1, 2)]
    assert list(table.groupby("common_id").size()) == [2, 2]
    assert list(table["common"]) == [True, False] * 2
    assert (table["n"] == 2).all()
    rate = [float(text.partition("=")[2]) for text in table["settings"]]
    # after 8 steps whose batches have a mean square of 1/3, up to the noise of 64 points
    far = np.abs(1 - 2 / 3 * np.array([1, 1, 4, 4]) * rate) ** 16 * 4 * np.array([1, 1, 0.25, 0.25])
    assert (table["val"][far > 1e-3] > 1e-3).all()
    assert (table["val"][far < 1e-9] < 1e-6).all()


def test_trials_have_seeds_of_their_own_and_no_test(study: Path) -> None:
    trials = read_records(study.with_name("s-trials"))
    assert set(trials["seed"]) == {1000, 1001}
    assert set(read_records(study)["seed"]) == {0}
    assert set(trials["status"]) == {"untested"}
    assert trials["primary"].isna().all()
    assert not [name for name in trials if name.startswith("test_")]
    for folder in map(Path, trials["folder"]):
        assert set(pd.read_csv(folder / "metrics.csv")["split"]) == {"train", "val"}
        assert not (folder / "curves.npz").exists()
    with pytest.raises(ValueError, match="must not be among the seeds that are reported"):
        Tuning(grid(study.parent.parent, "tune.task.recipe.lr=[0.375,1.5]", "seed=0,1", "tune.seed=[1,1000]"))


def test_test_scores_of_trials_cannot_influence_the_choice(copy: Path) -> None:
    arguments = grid(copy.parent.parent)
    before = Tuning(arguments).rows(read_trial)
    for path in copy.with_name("s-trials").glob("*/*/*/record.json"):
        record = read_json(path)
        assert record is not None
        best = -float(record["primary_val"])  # the worst has the best test
        write_json(
            path, record | dict.fromkeys(("primary", "primary_best", "test_mse", "test_best_mse"), best)
        )
    pd.testing.assert_frame_equal(Tuning(arguments).rows(read_trial), before)
    path = next(copy.with_name("s-trials").glob("*/*/*/record.json"))
    record = json.loads(path.read_text())
    write_json(path, record | {"primary_val": record["primary_val"] + 1})
    assert not Tuning(arguments).rows(read_trial)["val"].equals(before["val"])  # validation does


def test_what_is_finished_is_not_trained_again(copy: Path) -> None:
    lost = [
        next(copy.with_name("s-trials").glob("*/*/1001-*")),
        next(folder for folder in copy.glob("*/*/0-*") if "lr: 1.5" in (folder / "config.yaml").read_text()),
    ]
    for folder in lost:
        shutil.rmtree(folder)
    before = (copy / "tuning.csv").read_text()
    names: list[str] = []
    assert tune(grid(copy.parent.parent), trained(names))
    assert names == [folder.as_posix() for folder in lost]
    again, first = (pd.read_csv(io.StringIO(text)) for text in ((copy / "tuning.csv").read_text(), before))
    pd.testing.assert_frame_equal(again.drop(columns="hours"), first.drop(columns="hours"))


def test_trials_that_were_packed_are_not_trained_again(copy: Path) -> None:
    trials = copy.with_name("s-trials")
    before = Tuning(grid(copy.parent.parent)).rows(read_trial)
    pack(trials)
    for folder in trials.glob("*/*/100?-*"):
        shutil.rmtree(folder)
    names: list[str] = []
    assert tune(grid(copy.parent.parent), trained(names))
    assert names == []
    pd.testing.assert_frame_equal(Tuning(grid(copy.parent.parent)).rows(read_trial), before)


def test_an_unfinished_trial_ends_the_choice(copy: Path) -> None:
    path = next(copy.with_name("s-trials").glob("*/*/1001-*/record.json"))
    write_json(path, json.loads(path.read_text()) | {"status": "interrupted"})
    with pytest.raises(ValueError, match=f"{path.parent}: the trial has not ended"):
        Tuning(grid(copy.parent.parent)).rows(read_trial)


@pytest.mark.parametrize(
    "more",
    [
        ("tune.task.recipe.lr=[0.1,0.375,1.5]",),
        ("tune.task.recipe.lr=[0.375,1.5]", "tune.seed=range(1000,1003)"),
    ],
)
def test_no_activation_can_have_more_trials(copy: Path, more: tuple[str, ...]) -> None:
    """Another activation is tuned later with other trials: the study already has some of that task."""
    with pytest.raises(
        ValueError, match=r"runge: scaled 2 trials \(.*\), scaled . trials \(.*\): all activations"
    ):
        Tuning(grid(copy.parent.parent, *more, "activation.scale=3", "seed=0"))
    table = read_tuning([copy])
    check_equal(table)
    with pytest.raises(ValueError, match="must have the same trials"):
        check_equal(table.drop(index=0))
    table.drop(index=0).to_csv(copy / "tuning.csv", index=False)
    with pytest.raises(ValueError, match="must have the same trials"):
        write_report(copy)


def test_activations_may_be_tuned_one_after_the_other(copy: Path) -> None:
    names: list[str] = []
    same = ("tune.task.recipe.lr=[0.375,1.5]", "seed=0")
    assert tune(grid(copy.parent.parent, *same, "activation.scale=3"), trained(names))
    assert len(names) == 2 * 2 + 1  # the common recipe is best, too
    table = read_tuning([copy])
    assert table["common_id"].nunique() == 3
    assert not table[table["common_id"] == table["common_id"].iloc[-1]]["on_edge"].eq("").all()


def test_the_report_has_both_comparisons_side_by_side(study: Path) -> None:
    table = pd.read_csv(study / "report" / "leaderboard.csv")
    assert dict(zip(table["task"], table["recipe"], strict=True)) == {
        "runge": "common",
        "runge (tuned)": "tuned",
    }
    assert set(table["activation"]) == {"scaled[scale=1]", "scaled[scale=2]"}
    assert (table["n"] == 1).all()
    both = pd.read_csv(study / "report" / "tuned.csv").set_index("activation")
    means = table.set_index(["recipe", "activation"])["mean"]
    for label in both.index:
        assert both["common_mean"][label] == means["common", label]
        assert both["tuned_mean"][label] == means["tuned", label]
    assert both["common_mean"]["scaled[scale=2]"] == both["tuned_mean"]["scaled[scale=2]"]  # the same cells
    assert both["common_mean"]["scaled[scale=1]"] > 10 * both["tuned_mean"]["scaled[scale=1]"]
    assert list(both["on_edge"]) == ["task.recipe.lr highest", "task.recipe.lr lowest"]
    page = (study / "report" / "index.html").read_text()
    for words in (
        "runge: the best task.recipe.lr of scaled[scale=2] is the lowest tried (0.375)",
        "3 cells, 3 ok: 2 activations on 1 task.",
        "2 trials of task.recipe.lr (0.375, 1.5) for each activation, with 2 seeds (1000, 1001).",
        "Validation mse on runge against task.recipe.lr, n = 2 trial seeds.",
        "the test split was not evaluated in them",
    ):
        assert words in page
    assert (study / "report" / "figures" / "sensitivity-lr-runge.svg").stat().st_size > 3000
    assert "learning rate 1.5" not in page  # the methods state the common recipe


def test_both_sides_of_the_table_have_the_same_decimals(study: Path) -> None:
    section = (study / "report" / "leaderboard.md").read_text().partition("### runge, common and tuned")[2]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| scaled")]
    assert len(rows) == 2
    assert len({len(row[column].partition(".")[2]) for row in rows for column in (2, 5)}) == 1, rows


def test_files_of_a_tuning_are_documented(study: Path) -> None:
    assert list(pd.read_csv(study / "tuning.csv")) == list(COLUMNS) == documented("tuning.csv")
    assert (
        list(pd.read_csv(study / "report" / "sensitivity.csv"))
        == list(RANGES)
        == documented("sensitivity.csv")
    )
    assert list(pd.read_csv(study / "report" / "tuned.csv")) == documented("tuned.csv")


def test_cells_that_are_no_longer_chosen_are_left_out_and_counted(copy: Path) -> None:
    table = pd.read_csv(copy / "tuning.csv")
    first = table["common_id"] == table["common_id"].iloc[0]
    table.loc[first, "chosen"] = ~table.loc[first, "chosen"].to_numpy()
    table.to_csv(copy / "tuning.csv", index=False)
    cells = read_labelled([copy])
    assert cells.left_out == 1
    assert sorted(cells.records["task_label"]) == ["runge"] * 2 + ["runge (tuned)"] * 2
    tuned = Tuned.of(cells, leaderboard(cells.records))
    assert tuned is not None
    assert "1 cell of the study with settings that were tried and not chosen: left out" in tuned.notes


def rows(*scores: object, metric: str = "top1", lr: Sequence[float] = ()) -> pd.DataFrame:
    """Trials of an activation by their validation scores; of a text like ``1 lost 50`` so many of two seeds failed."""
    lr = lr or [10.0**-k for k in range(len(scores), 0, -1)]
    table = []
    for number, (score, rate) in enumerate(zip(scores, lr, strict=True), start=1):
        lost, value = (0, score) if not isinstance(score, str) else (int(score[0]), float(score.split()[-1]))
        row = dict.fromkeys(COLUMNS, "") | {
            "trial": number,
            "settings": f"task.recipe.lr={rate}",
            "n": 2 - lost,
        }
        row |= {
            "metric": metric,
            "higher_is_better": metric == "top1",
            "diverged": lost,
            "failed": 0,
            "hours": 1.0,
        }
        row |= {"val": value, "val_low": value, "val_high": value, "common": False, "common_id": "a"}
        table.append(row)
    return pd.DataFrame(table).astype(COLUMNS)


@pytest.mark.parametrize(
    ("scores", "metric", "chosen", "ties", "edge"),
    [
        ((50, 60, 55), "top1", 2, [], ""),
        ((50, 60, 55), "mse", 1, [], "task.recipe.lr lowest"),
        ((59.6, 60, 59.4), "top1", 2, [1], ""),  # a margin of 0.5
        ((0.103, 0.1, 0.106), "mse", 2, [1], ""),  # a margin of 5 %
        ((60, 60, 50), "top1", 1, [2], "task.recipe.lr lowest"),
        ((50, "1 lost 90", 40), "top1", 1, [], "task.recipe.lr lowest"),
        (("2 lost nan", "1 lost 20", "1 lost 90"), "top1", 3, [], "task.recipe.lr highest"),
        (("2 lost nan", "2 lost nan"), "top1", None, [], ""),
    ],
)
def test_the_best_mean_is_chosen_and_a_lost_seed_is_worse(
    scores: tuple[object, ...], metric: str, chosen: int | None, ties: list[int], edge: str
) -> None:
    table = choose(rows(*scores, metric=metric)).set_index("trial")
    assert list(table.index[table["chosen"]]) == ([chosen] if chosen else [])
    assert list(table.index[table["tie"]]) == ties
    assert set(table["on_edge"]) - {""} == ({edge} - {""})


def test_the_good_range_ends_where_the_score_has_lost_the_margin() -> None:
    margin = METRICS["top1"].margin
    curve = profile(
        choose(rows(90 - 4 * margin, 90, 90 - 2 * margin, 0, lr=(0.001, 0.01, 0.1, 1))), "task.recipe.lr"
    )
    found = good_range(curve)
    assert found is not None
    # a straight line over the logarithm: a quarter of the decade below, half of the one above
    assert (np.log10(found.low), np.log10(found.high)) == pytest.approx((-2.25, -1.5))
    assert found.text == "0.75"
    found = good_range(curve.assign(val_low=curve["val"] - 2 * margin))  # seeds at the best differ by more
    assert found is not None
    assert (np.log10(found.low), np.log10(found.high)) == pytest.approx((-2.5, -1))
    wide = good_range(curve, margin=90)
    assert wide is not None
    assert wide.text == ">= 3.00"
    lost = good_range(profile(choose(rows(80, 90, "1 lost 90")), "task.recipe.lr"))
    assert lost is not None
    assert lost.high == pytest.approx(0.01)
    assert not lost.open_high


def test_a_setting_without_a_logarithm_has_no_range() -> None:
    assert good_range(profile(choose(rows(1, 2, lr=(0, 0.1))), "task.recipe.lr")) is None


@pytest.mark.parametrize(("common", "lines"), [("0.005", 1), ("null", 0), ("0", 0)])
def test_the_figure_shows_what_was_tried_and_the_common_recipe_where_it_can(common: str, lines: int) -> None:
    trials = rows(3.0, 2.0, 1.0, metric="mse", lr=(0.002, 0.005, 0.01))
    recipe = trials.iloc[[0]].assign(trial=None, n=0, common=True, settings=f"task.recipe.lr={common}")
    trials = pd.concat([choose(trials), recipe]).astype(COLUMNS).assign(task_label="t", activation_label="a")
    order = pd.DataFrame({"task": ["t"], "activation": ["a"], "tuned_rank_low": [1]})
    tuned = SimpleNamespace(trials=trials, activations=order, ranges={})
    (ax,) = sensitivity(tuned, "t", "task.recipe.lr", {}).axes  # type: ignore[arg-type]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.002", "0.005", "0.01"]
    assert len([line for line in ax.lines if line.get_linestyle() == ":"]) == lines


def test_trials_of_ranges_are_the_same_for_all_and_those_of_fewer_are_among_more() -> None:
    words = ["tune.task.recipe.lr=interval(1e-4,1e-1)", "tune.task.recipe.weight_decay=[0,1e-4]"]
    few, more = (Plan.of([*words, f"tune.trials={n}"]).points for n in (4, 16))
    assert more[:4] == few
    rates = np.log10([point["task.recipe.lr"] for point in more])
    # the bits of 1, 2, 3, ... backwards, behind the point, of the three decades
    assert rates[:6] == pytest.approx(-4 + 3 * np.array([1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8]), abs=3e-3)
    assert len({repr(point) for point in more}) == 16
    assert {point["task.recipe.weight_decay"] for point in few} == {0, 1e-4}
    both = Plan.of(["tune.task.recipe.lr=1e-3,1e-2", "tune.network.gain=choice(1,2)"]).points
    assert len(both) == 4
    assert {"task.recipe.lr": 0.001, "network.gain": 2} in both


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["activation=relu"], "nothing to tune"),
        (["tune.activation.init=[0.1,0.2]"], "tune.activation.init: cannot be tuned"),
        (["tune.task.recipe.epochs=[1,2]"], "tune.task.recipe.epochs: cannot be tuned"),
        (["tune.task.recipe.lr=[0.1]"], "tune.task.recipe.lr: must have two values or more"),
        (["tune.task.recipe.lr=[0.1,0.1]"], "each value must be there once"),
        (
            ["tune.task.recipe.lr=interval(0.1,1)"],
            "tune.task.recipe.lr: a range must have a number of trials",
        ),
        (["tune.task.recipe.lr=interval(0,1)", "tune.trials=2"], "0 < low < high"),
        (["tune.task.recipe.lr=[0.1,0.2]", "tune.trials=3"], "tune.trials=3: there are only 2"),
        (["tune.task.recipe.lr=[0.1,0.2]", "tune.trials=1"], "tune.trials=1: must be an integer >= 2"),
        (["tune.task.recipe.lr=[0.1,0.2]", "tune.seed=-1"], "tune.seed=-1: must be an integer >= 0"),
    ],
)
def test_what_cannot_be_tuned(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said.replace(".", r"\.") if said.startswith("tune") else said):
        Plan.of(arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=diabetes", "task.data.folds=5"], "task.data.folds=5: cannot be tuned"),
        (
            ["task=digits", "task.recipe.lr=0.1,0.2"],
            "task.recipe.lr: is tuned, so the grid itself must have one value",
        ),
        (["task=digits", "study=a,b"], "study=a,b: tune one study at a time"),
        (["task=digits", "tune.task.recipe.weightdecay=[1,2]"], "no such name; did you mean weight_decay?"),
    ],
)
def test_grids_that_cannot_be_tuned(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.").replace("?", r"\?")):
        Tuning([*arguments, "tune.task.recipe.lr=[0.1,0.2]", f"outputs={tmp_path}"])


def test_a_whole_number_is_the_float_of_the_common_recipe(tmp_path: Path) -> None:
    tuning = Tuning(["task=sines2d", "tune.network.gain=[1,2]", f"outputs={tmp_path}", "tune.seed=7"])
    assert [type(point["network.gain"]) for point in tuning.points] == [float, float]
    assert list(tuning.rows()["common"]) == [True, False]
    (combination,) = tuning.combinations.values()
    cells = [cell for point in tuning.points for cell in tuning.trial_cells(combination, point)]
    assert [Path(place).name[:2] for _, place in cells] == ["7-"] * 2


def test_an_identity_is_that_of_all_seeds_wherever_they_ran(tmp_path: Path) -> None:
    record = train(tmp_path, ReLU, "runner=smoke", "runner.threads=1", task="sines2d", activation="relu")
    (row,) = read_records(tmp_path / "main").to_dict("records")
    other = row | {"seed": 5, "runner.threads": 2, "runner.test": False, "task.data.root": "/elsewhere"}
    assert identity(row) == identity(other) == identity(record | row)
    assert identity(row) != identity(row | {"task.recipe.lr": 1.0})
    assert identity(row) != identity(row | {"activation": "gelu"})


def test_a_cell_without_a_test_has_no_score_in_a_report(tmp_path: Path) -> None:
    smoke = ("runner=smoke", "runner.threads=1", "runner.keep=weights")
    record = train(tmp_path, ReLU, *smoke, "runner.test=false", task="sines2d", activation="relu")
    assert record["status"] == "ok"
    assert record.keys() >= {"primary_val", "best_epoch"}
    assert "primary" not in record
    assert (tmp_path / "main" / "sines2d" / "relu").glob("*/weights_best.pt")
    table = leaderboard(read_labelled([tmp_path / "main"]).records)
    assert list(table["n"]) == [0]
    assert list(table["failures"]) == ["1 untested"]
    assert config("task=sines2d").runner.test is True


def test_settings_are_read_as_they_were_written() -> None:
    text = 'task.recipe.betas=[0.9,0.99] network.init="siren" task.recipe.clip_norm=null'
    assert settings_of(text) == {
        "task.recipe.betas": [0.9, 0.99],
        "network.init": "siren",
        "task.recipe.clip_norm": None,
    }


def test_the_command(tmp_path: Path) -> None:
    words = ["activation=relu", "task=sines2d", "tune.task.recipe.lr=[0.001,0.1]", "seeds=0,1", "tune.seed=9"]
    words += ["runner=smoke", "runner.threads=1", f"outputs={tmp_path}"]
    tuning = Tuning(words)
    with varied(lambda cell: tuning.points[:1]):
        trained([])(tuning.trial_overrides)  # one of the two, as if it had been interrupted then
    done = forked.run(["scripts/tune.py", *words], cwd=ROOT, env=PROCESS["env"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(finished before)") == 1
    assert {path.name.partition("-")[0] for path in (tmp_path / "main-trials").glob("*/*/*")} == {"9"}
    cells = sorted((tmp_path / "main" / "sines2d" / "relu").iterdir())
    assert [cell.name.partition("-")[0] for cell in cells] == ["0", "0", "1", "1"]
    record = json.loads((cells[0] / "record.json").read_text())
    assert record["command"].startswith("python scripts/tune.py activation=relu")
    assert not (tmp_path / "main-trials" / "report").exists()
    table = read_tuning([tmp_path / "main"])
    best = table.loc[table["val"].idxmin(), "settings"]
    assert list(table["settings"][table["chosen"]]) == [best]
    assert f"relu sines2d: {best} is chosen" in done.stdout
    assert set(pd.read_csv(tmp_path / "main" / "report" / "leaderboard.csv")["recipe"]) == {"common", "tuned"}


def test_several_experiments_keep_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line that runs is not the one that was typed, which has settings of the tuning."""
    ran = []

    def run() -> None:
        ran.append((run_script.ReportAfterGrid.typed, sys.argv))
        if "experiment=a,b" in sys.argv:
            raise SeveralGridsError([("experiment=a,b", "experiment=a"), ("experiment=a,b", "experiment=b")])

    monkeypatch.setattr(run_script, "run", run)
    monkeypatch.setattr(run_script.ReportAfterGrid, "typed", [])
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "experiment=a,b", "study=s"])
    typed = ["tune.py", "experiment=a,b", "tune.task.recipe.lr=[1,2]"]
    assert run_script.all_ran(typed)
    assert ran == [(typed, ["run.py", "-m", f"experiment={name}", "study=s"]) for name in ("a,b", "a", "b")]
    ran.clear()
    sys.argv = ["run.py", "-m", "experiment=a,b", "study=s"]
    run_script.all_ran()
    assert [line for line, _ in ran] == [line for _, line in ran], "else it is the line itself"


def test_the_command_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
    assert "tune.<setting>=interval(A,B)" in capsys.readouterr().out
