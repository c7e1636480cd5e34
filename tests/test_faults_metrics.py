"""Metrics against independent oracles, folds of a table, and the early look at a task's data."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_cell, make_factory, make_task, train
from scipy import ndimage
from test_regression import overlaps
from test_segmentation import Answer, make_segmentation, make_set, random_set
from torch import Tensor
from toy import Toy

from tasks.confusion import Confusion
from tasks.data.pairs import VOID
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
    assert list(task.confusion.table())[0] == ["true \\ predicted", "a", "b", "c"]
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
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
    shown = {text.get_text() for text in ax.texts}
    assert bool(shown) == (classes <= 16)
    if classes == 2:
        share = 100 * counts[0] / counts[0].sum()
        assert shown >= {f"{share[0]:.0f}"}
    if classes > 16:
        first = figure.axes[1].get_yticklabels()[0].get_text()
        i, j = (names.index(name) for name in first.split(" → "))
        assert counts[i, j] == counts[~torch.eye(classes, dtype=torch.bool)].max()
