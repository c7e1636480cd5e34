"""Metrics against independent oracles, folds of a table, and the early look at a task's data."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, TASKS, config, make_cell, make_factory, make_task, train
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage
from test_regression import overlaps
from test_segmentation import TINY, Answer, make_segmentation, make_set, random_set
from torch import Tensor
from toy import Toy

from results.collect import add_labels, read_records
from results.leaderboard import leaderboard
from runners.cell import CellSpec
from runners.check import Check
from runners.errors import format_error
from tasks.base import Recipe
from tasks.classification import Classification
from tasks.confusion import Confusion
from tasks.data.files import sklearn_file
from tasks.data.pairs import VOID
from tasks.data.sets import ImageSet
from tasks.data.store import Memory
from tasks.regression import Regression
from tasks.segmentation import boundary

# boundary IoU and Dice -----------------------------------------------------------------------------------------


def blobs(count: int, height: int, width: int, classes: int, void: float, seed: int) -> Tensor:
    """Maps of smooth regions, (count, height, width), some of them void."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(classes, count, height, width)), (0, 0, 3, 3))
    labels = noise.argmax(0)
    if void:
        holes = ndimage.gaussian_filter(rng.normal(size=labels.shape), (0, 2, 2))
        labels[holes > np.quantile(holes, 1 - void)] = VOID
    return torch.from_numpy(labels)


def near_edge(mask: np.ndarray, void: np.ndarray) -> np.ndarray:
    """The paper's boundary of one binary mask: what d erosions by 3 x 3 take away; void may be anything."""
    reach = max(1, round(0.02 * math.hypot(*mask.shape)))
    kept = ndimage.binary_erosion(mask | void, np.ones((3, 3)), iterations=reach, border_value=0)
    return mask & ~kept


@pytest.mark.parametrize("void", [0.0, 0.2])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (120, 160)])  # d = 1 and 4
def test_boundaries_are_those_of_erosion(height: int, width: int, void: float) -> None:
    labels = blobs(3, height, width, 4, void, seed=0)
    found = boundary(labels[:, None].byte())[:, 0]
    for one, edges in zip(labels.numpy(), found.numpy(), strict=True):
        for k in range(4):
            expected = near_edge(one == k, one == VOID)
            assert expected.any()
            np.testing.assert_array_equal(edges & (one == k), expected)


@pytest.mark.parametrize("void", [0.0, 0.2])
def test_boundary_iou_and_dice_are_of_the_whole_split(void: float) -> None:
    """Against erosions and sets of pixels, mask by mask; the batches are unequal."""
    from torchmetrics.functional.classification import multiclass_f1_score

    truth, guess = blobs(5, 60, 80, 4, void, seed=1), blobs(5, 60, 80, 4, 0, seed=2)
    guess = truth.where((torch.rand(5, 60, 80) < 0.8) & (truth != VOID), guess)
    task = make_segmentation(make_set(torch.zeros(5, 3, 60, 80), truth), recipe={"batch_size": 2})
    scores = task.evaluate(Answer(4, guess[:2], guess[2:4], guess[4:]), "test")
    both, either = np.zeros(4), np.zeros(4)
    for one, other in zip(truth.numpy(), guess.numpy(), strict=True):
        hidden = one == VOID
        for k in range(4):
            a = near_edge(one == k, hidden)
            b = near_edge((other == k) & ~hidden, hidden)
            both[k] += (a & b).sum()
            either[k] += (a | b).sum()
    expected = 100 * both / either
    assert [scores[f"boundary_iou/{name}"] for name in "abcd"] == pytest.approx(expected.tolist())
    assert scores["boundary_iou"] == pytest.approx(expected.mean())
    known = truth != VOID
    dice = 100 * multiclass_f1_score(guess[known], truth[known], 4, average="none")
    assert [scores[f"dice/{name}"] for name in "abcd"] == pytest.approx(dice.tolist(), rel=1e-5)
    assert scores["dice"] == pytest.approx(dice.mean().item(), rel=1e-5)


def test_what_void_hides_costs_nothing() -> None:
    """A prediction that is right wherever truth is known has all scores at 100, whatever it says elsewhere."""
    truth = blobs(2, 60, 80, 3, 0.3, seed=3)
    guess = truth.where(truth != VOID, torch.randint(3, truth.shape))
    task = make_segmentation(make_set(torch.zeros(2, 3, 60, 80), truth, 3))
    scores = task.evaluate(Answer(3, guess), "test")
    assert {value for name, value in scores.items() if name != "loss"} == {100}


def test_boundary_iou_tells_what_iou_hides() -> None:
    """A large square found one pixel too small: IoU 92, of its boundary (one pixel wide) nothing."""
    truth = torch.zeros(1, 60, 60)
    truth[0, 5:55, 5:55] = 1
    guess = torch.zeros(1, 60, 60)
    guess[0, 6:54, 6:54] = 1
    task = make_segmentation(make_set(torch.zeros(1, 3, 60, 60), truth, 2))
    scores = task.evaluate(Answer(2, guess), "test")
    # d = round(0.02 * 84.9) = 2: rings of two pixels, of which one is common
    assert scores["iou/b"] == pytest.approx(100 * 48**2 / 50**2)
    rings = 50**2 - 46**2, 48**2 - 44**2
    common = 48**2 - 46**2
    assert scores["boundary_iou/b"] == pytest.approx(100 * common / (sum(rings) - common))


# confusion -----------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_and_scores_of_classes_are_scikit_learns(tmp_path) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    overrides = ["runner.epochs=2", "runner.limit_batches=null", "runner.pictures=true"]
    record = train(tmp_path, Toy, *overrides)
    folder = make_cell(tmp_path, *overrides).folder
    table = pd.read_csv(folder / "confusion.csv", index_col=0)
    assert table.index.tolist() == [*range(10)]
    assert table.columns.tolist() == [str(digit) for digit in range(10)]
    truth, guess = (np.repeat(part.ravel(), table.to_numpy().ravel()) for part in np.mgrid[:10, :10])
    np.testing.assert_array_equal(confusion_matrix(truth, guess), table)
    assert table.to_numpy().sum() == 539
    assert 100 * np.trace(table.to_numpy()) / 539 == pytest.approx(record["primary"])  # of the last weights
    rows = pd.read_csv(folder / "classes.csv")
    assert rows.columns.tolist() == ["epoch", "class", "acc", "precision", "f1"]
    last = rows[rows["epoch"] == 1]
    precision, recall, f1, _ = precision_recall_fscore_support(truth, guess, zero_division=np.nan)
    for name, expected in (("acc", recall), ("precision", precision), ("f1", f1)):
        np.testing.assert_allclose(last[name], 100 * expected, err_msg=name)
    assert (folder / "pictures" / "confusion.png").stat().st_size > 10_000


def test_the_confusion_of_masks_counts_pixels_without_void() -> None:
    data = random_set(classes=3, void=0.3)
    task = make_segmentation(data)
    torch.manual_seed(0)
    network = task.build_network(Toy)
    expected = np.zeros((3, 3), dtype=int)
    for input, target in task.batches("test"):
        np.add.at(expected, (target[target != VOID], network(input).argmax(1)[target != VOID]), 1)
    task.evaluate(network, "test")
    assert next(task.confusion.table()) == ["true \\ predicted", "a", "b", "c"]
    np.testing.assert_array_equal([row[1:] for row in list(task.confusion.table())[1:]], expected)


@pytest.mark.parametrize("classes", [2, 10, 21, 100, 300])
def test_confusion_figures_are_readable(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, (classes, classes), generator=generator) + 50 * torch.eye(classes).long()
    counts[1] = 0  # a class that does not occur
    names = tuple(f"class number {k}" for k in range(classes))
    figure = Confusion(counts, names, "images").figure()
    assert overlaps(figure) == []
    ax = figure.axes[0]
    for axis in (ax.xaxis, ax.yaxis):
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        assert labels[0].get_text() == names[0]
        assert min(label.get_fontsize() for label in labels) >= 5
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    shown = {text.get_text() for text in ax.texts}
    assert bool(shown) == (classes <= 16)
    if classes == 2:
        share = 100 * counts[0] / counts[0].sum()
        assert shown >= {f"{share[0]:.0f}"}
    if classes > 16:
        first = figure.axes[1].get_yticklabels()[0].get_text()
        i, j = (names.index(name) for name in first.split(" → "))
        assert counts[i, j] == counts[~torch.eye(classes, dtype=torch.bool)].max()


# folds of a table ----------------------------------------------------------------------------------------------


def of_seed(seed: int, *overrides: str) -> Regression:
    task = make_task("diabetes", *overrides)
    task.split_for(seed)
    return task


def test_folds_part_the_patients_and_every_fold_is_like_the_whole() -> None:
    whole = make_task("diabetes")
    tasks = [of_seed(seed, "task.data.folds=5") for seed in range(5)]
    tests = [task.data.index["test"] for task in tasks]
    assert torch.cat(tests).sort().values.tolist() == list(range(442))
    assert {len(test) for test in tests} == {88, 89}
    table = np.loadtxt(sklearn_file("data/diabetes_target.csv.gz"))
    tenth = table.argsort(kind="stable").argsort() * 10 // 442
    for task, test in zip(tasks, tests, strict=True):
        assert np.bincount(tenth[test], minlength=10).min() >= 8  # of 8.8
        assert sorted(torch.cat(list(task.data.index.values())).tolist()) == list(range(442))
        assert len(task.data.index["val"]) == round(0.2 * (442 - len(test)))
        train = torch.cat(task.data.train, dim=1)  # scaled by what is trained on here
        assert train.mean(0).abs().max() < 1e-5
        assert task.fingerprint == whole.fingerprint  # one set: its seeds are averaged
        assert task.steps_per_epoch == len(train) // 32
        target = task.points["test"][1].double()
        assert task.variance["test"] == pytest.approx(target.var(0, correction=0).item())


def test_the_fold_of_a_seed_is_fixed() -> None:
    three, eight = (of_seed(seed, "task.data.folds=5").data.index for seed in (3, 8))
    assert all(torch.equal(three[name], eight[name]) for name in three)
    torch.manual_seed(1)
    again = of_seed(3, "task.data.folds=5").data.index
    assert all(torch.equal(three[name], again[name]) for name in three)


def test_without_folds_no_seed_changes_a_split() -> None:
    for name in ("diabetes", "sines2d", "digits"):
        task = make_task(name)
        before = [x.clone() for x, _ in task.batches("test")]
        task.split_for(3)
        assert all(torch.equal(a, b) for a, (b, _) in zip(before, task.batches("test"), strict=True))


@pytest.mark.parametrize("folds", ["1", "45", "2.5", "true", "many"])
def test_folds_that_cannot_be_are_refused(folds: str) -> None:
    with pytest.raises(InstantiationException) as caught:
        make_task("diabetes", f"task.data.folds={folds}")
    assert "must be an integer >= 2 and <= 44" in format_error(caught.value)


def test_cross_validated_cells_are_seeds_of_one_another_and_say_so(tmp_path) -> None:
    """At a seed all activations are tested on one fold; the table names the folds though nothing else varies."""
    overrides = ("task.data.folds=3", "runner.epochs=1")
    for name in ("relu", "tanh"):
        for seed in range(3):
            settings = (*overrides, f"seed={seed}")
            train(tmp_path, make_factory(name), *settings, task="diabetes", activation=name)
    records = add_labels(read_records(tmp_path / "main"))
    assert records["task_label"].unique().tolist() == ["diabetes[data.folds=3]"]
    assert records["data_fingerprint"].nunique() == 1
    assert records.groupby("seed")["test_mse"].nunique().tolist() == [2, 2, 2]
    table = leaderboard(records, "relu")
    assert table["n"].tolist() == [3, 3]
    train(
        tmp_path, make_factory("relu"), "runner.epochs=1", task="diabetes", activation="relu"
    )  # not one of them
    labels = add_labels(read_records(tmp_path / "main"))["task_label"]
    assert sorted(labels.unique()) == ["diabetes[data.folds=3]", "diabetes[data.folds=null]"]


def test_an_option_that_is_newer_than_cells_leaves_their_ids_alone(tmp_path) -> None:
    """Nor does it keep a finished cell from being found, nor hide itself once it is used."""
    composed = OmegaConf.to_container(config("task=diabetes", f"outputs={tmp_path}"), resolve=True)
    old = copy.deepcopy(composed)
    del old["task"]["data"]["folds"]
    used = copy.deepcopy(composed)
    used["task"]["data"]["folds"] = 5
    ids = [
        CellSpec.from_config(tree, activation="relu", task="diabetes", network="mlp").id
        for tree in (old, composed, used)
    ]
    assert ids[0] == ids[1] != ids[2]
    record = train(tmp_path, make_factory("relu"), "runner.epochs=1", task="diabetes")
    cell = make_cell(tmp_path, "runner.epochs=1", task="diabetes")
    stored = yaml.safe_load((cell.folder / "config.yaml").read_text())
    del stored["task"]["data"]["folds"]  # as it was written then
    (cell.folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert cell.completed_record()["primary"] == record["primary"]


# an early look -------------------------------------------------------------------------------------------------


def look_at(tmp_path, capsys, *overrides: str, task: str = "digits") -> tuple[Path, list[str]]:
    """The folder of a look, and the lines that it prints."""
    cell = make_cell(tmp_path, *overrides, task=task)
    folder = Check()(lambda: make_task(task, *overrides), cell)
    return folder, capsys.readouterr().out.splitlines()


WITHOUT_DOWNLOAD = [name for name in TASKS if "root" not in config(f"task={name}").task.data]


@pytest.mark.parametrize("task", WITHOUT_DOWNLOAD)
def test_every_task_can_be_looked_at(task: str, tmp_path, capsys) -> None:
    overrides = TINY[:4] if task == "shapes" else ()
    folder, lines = look_at(tmp_path, capsys, *overrides, task=task)
    assert lines[-1] == str(folder / "contact_sheet.png")
    with Image.open(lines[-1]) as sheet:
        assert sheet.width > 600
    assert lines[:-1] == (folder / "summary.txt").read_text().splitlines()
    text = "\n".join(lines)
    assert make_task(task, *overrides).fingerprint in text
    for name in ("splits", "data"):
        assert f"\n{name} " in text
    with pytest.raises(ValueError, match="no cells"):
        read_records(tmp_path / "main")


def paint(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_a_look_at_a_folder_of_classes(tmp_path, capsys) -> None:
    """Counts of classes and splits, values, and test images that are training images, one of them of another class."""
    root = tmp_path / "data"
    for split, count in (("train", 20), ("test", 5)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count + k):
                paint(root / split / name / f"{i}.png", (10 * i, 100 * k, 200 if split == "test" else 0))
    paint(
        root / "test" / "cat" / "again.png", (30, 0, 0)
    )  # a cat of train, or of val, which is carved from it
    paint(root / "test" / "dog" / "wrong.png", (40, 0, 0))
    paint(root / "train" / "dog" / "twice.png", (50, 100, 0))
    overrides = [
        *(f"task.data.root={root}", f"task.data.cache={tmp_path}/cache", "task.data.stored=10"),
        *("task.eval_crop.size=8", "task.val_fraction=0.2", "task.recipe.batch_size=4"),
    ]
    _, lines = look_at(tmp_path, capsys, *overrides, task="image_folder")
    task = make_task("image_folder", *overrides)
    table = {
        line.split()[0]: line.split()[1:] for line in lines if line.startswith(("class ", "cat ", "dog "))
    }
    assert table["class"] == ["train", "val", "test"]
    for k, name in enumerate(("cat", "dog")):
        index = task.index
        assert table[name] == [str(int((task.labels[index[s]] == k).sum())) for s in ("train", "val", "test")]
    assert [int(n) for n in table["cat"]][2] == 6
    assert f"{len(task.store)} images of 10 x 10 pixels" in lines[1]
    assert "evaluated at 8 x 8" in lines[1]
    said = next(line for line in lines if line.startswith("copies"))
    files = [tuple(task.store.samples[i, :, 0, 0].tolist()) for i in range(len(task.store))]
    trained = {files[i]: int(task.labels[i]) for i in task.index["train"].tolist()}
    copies = [i for i in task.index["test"].tolist() if files[i] in trained]
    other = sum(trained[files[i]] != task.labels[i] for i in copies)
    assert f"test images that are in train, too: {len(copies)}" in said
    assert len(copies) >= 1
    assert (f"({other} with another class there)" in said) == bool(other)
    values = next(line for line in lines if line.startswith("values, test"))
    assert "0 to 200" in values


def test_a_look_at_masks_tells_shares_and_void(tmp_path, capsys) -> None:
    for split in ("train", "val", "test"):
        for i in range(4):
            paint(tmp_path / "data" / split / "images" / f"{i}.png", (60 * i, 0, 90), (20, 10))
            mask = np.zeros((10, 20), dtype=np.uint8)
            mask[:, :5] = 255
            mask[i:5, 10:] = 1 if i < 2 else 0
            (tmp_path / "data" / split / "labels").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / "data" / split / "labels" / f"{i}.png")
    overrides = [
        *(f"task.data.root={tmp_path}/data", f"task.data.cache={tmp_path}/cache", "task.recipe.batch_size=2"),
        "task.augment.crop.size=[8,8]",
    ]
    folder, lines = look_at(tmp_path, capsys, *overrides, task="mask_folder")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.endswith("4") or "%" in line}
    objects = 100 * (50 + 40) / 800
    assert rows["object"] == [f"{objects:.2f}", "%", "2"] * 3
    assert rows["void"] == ["25.00", "%", "4"] * 3
    assert rows["background"] == [f"{75 - objects:.2f}", "%", "4"] * 3
    said = next(line for line in lines if line.startswith("copies"))
    assert "test images that are in train, too: 4" in said
    assert "another mask" not in said
    cached = sorted(path.name for path in (tmp_path / "cache").iterdir())
    again, _ = look_at(tmp_path, capsys, *overrides, task="mask_folder")
    assert again == folder
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == cached  # nothing is read anew
    assert any(name.startswith("look-") for name in cached)


@pytest.mark.parametrize("classes", [2, 25, 100, 150])
def test_sheets_of_many_classes_are_readable(classes: int) -> None:
    samples = torch.randint(256, (10 * classes, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(classes).repeat_interleave(10)
    names = tuple(f"class number {k}" for k in range(classes))
    every = torch.arange(len(samples))
    test = every % 10 == 9  # one of each class: fewer than there is room for
    data = ImageSet(
        store=Memory(samples.to(torch.uint8)),
        labels=labels,
        train=every[~test],
        test=every[test],
        classes=names,
        fingerprint="x",
    )
    recipe = Recipe(epochs=1, batch_size=20, lr=0.1)
    task = Classification(recipe=recipe, data=data, network=Toy, val_fraction=0.2)
    figure = task.look(torch.Generator().manual_seed(0)).figure
    assert overlaps(figure) == []
    shown = [label for ax in figure.axes for label in ax.get_yticklabels() if label.get_text()]
    assert len(shown) == min(classes, 120)
    assert shown[0].get_text() == names[0]
    assert shown[-1].get_text() == names[-1]
    boxes = [label.get_window_extent() for label in shown]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 : i + 40])
    first = figure.axes[0].images[0].get_array()
    shown = torch.from_numpy(255 * np.asarray(first[0, 0])).round()
    assert torch.equal(shown, samples[task.index["train"][0], :, 0, 0].float())  # as it is in the set


def test_the_command_line_looks_trains_nothing_and_reports_nothing(tmp_path, cli) -> None:
    done = cli("-m", "task=digits,diabetes", "runner=check", "activation=relu,tanh")
    assert (done.returncode, done.stderr) == (0, "")
    outputs = tmp_path / "outputs"
    last = done.stdout.splitlines()[-1]
    assert last.startswith(str(outputs / "main" / "check" / "diabetes"))
    assert Path(last).is_file()
    assert not [*outputs.rglob("config.yaml"), *outputs.rglob("record.json"), *outputs.rglob("report")]
    assert len([*outputs.rglob("contact_sheet.png")]) == 2
    assert (outputs / "main" / "multirun.yaml").is_file()
    assert not (ROOT / "multirun.yaml").exists()
    failed = cli("-m", "task=camvid,digits", f"task.data.root={tmp_path}/none", "runner=check")
    assert failed.returncode == 1
    wrong = cli("task=camvid", f"task.data.root={tmp_path}/none", "runner=check")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert f"task.data.root={tmp_path}/none: no such folder" in wrong.stderr
    assert not [*outputs.rglob("record.json"), *outputs.rglob("report")]
