"""Classification: what the network sees, mixed and smoothed labels, and metrics over a whole split."""

import re
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_task, train
from scipy import stats
from test_data import make_folders
from torch import Tensor, nn
from torch.nn import functional as F
from toy import Toy

from runners.errors import format_error
from tasks import classification
from tasks.classification import Tally, mixup
from tasks.data import sets
from tasks.data.augment import Compose, Cutout, check_augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Fixed(nn.Module):
    """The output that a table has for each input, in order."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.outputs[self.seen - len(x) : self.seen]


# metrics -------------------------------------------------------------------------------------------------------


def test_metrics_are_torchmetrics_over_the_whole_split(monkeypatch) -> None:
    from torchmetrics.functional import classification as theirs

    monkeypatch.setattr(classification, "EVAL_BATCH", 100)  # several batches, the last one smaller
    task = make_task("digits")
    labels = task.labels[task.index["test"]]
    logits = torch.randn(539, 10, generator=generator()) + 2 * F.one_hot(labels, 10)
    found = task.evaluate(Fixed(logits), "test")
    expected = {
        "loss": F.cross_entropy(logits, labels),
        "top1": 100 * theirs.multiclass_accuracy(logits, labels, 10, average="micro"),
        "top5": 100 * theirs.multiclass_accuracy(logits, labels, 10, average="micro", top_k=5),
        "ece": 100 * theirs.multiclass_calibration_error(logits, labels, 10, n_bins=15, norm="l1"),
    }
    classes = 100 * theirs.multiclass_accuracy(logits, labels, 10, average="none")
    expected |= {f"acc/{digit}": accuracy for digit, accuracy in enumerate(classes)}
    for name, metric in (("precision", theirs.multiclass_precision), ("f1", theirs.multiclass_f1_score)):
        scores = 100 * metric(logits, labels, 10, average="none")
        expected |= {f"{name}/{digit}": score for digit, score in enumerate(scores)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-5), name


def test_calibration_error_by_hand() -> None:
    """Confidences 0.9 (3 of 4 right), 0.52 (1 of 2 right): (4 |0.75 - 0.9| + 2 |0.5 - 0.52|) / 6."""
    sure, unsure = (torch.tensor([p, 1 - p]).log() for p in (0.9, 0.52))
    tally = Tally(3, torch.device("cpu"))
    tally.add(F.pad(torch.stack([sure, sure, unsure]), (0, 1), value=-100), torch.tensor([0, 0, 1]))
    tally.add(F.pad(torch.stack([sure, sure, unsure]), (0, 1), value=-100), torch.tensor([0, 1, 0]))
    assert tally.ece() == pytest.approx(100 * (4 * 0.15 + 2 * 0.02) / 6, rel=1e-6)
    found = tally.of_classes(
        ("cat", "dog", "T-shirt/top")
    )  # of them the third does not occur, nothing is taken for the second
    assert found == {
        "acc/cat": 100,
        "precision/cat": pytest.approx(400 / 6),
        "f1/cat": 80,
        "acc/dog": 0,
        "f1/dog": 0,
    }


def test_certainty_belongs_to_the_last_bin() -> None:
    tally = Tally(2, torch.device("cpu"))
    tally.add(torch.tensor([[1000.0, 0.0], [1000.0, 0.0]]), torch.tensor([0, 1]))
    assert tally.ece() == pytest.approx(50)


# mixup and label smoothing -------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_labels_by_the_same_shares() -> None:
    n = 4000
    pictures = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 1, 2, 2)
    mixed, labels = mixup(pictures, torch.eye(n, dtype=torch.int64), 0.4, generator())
    assert labels.sum(1).allclose(torch.ones(n))
    assert (labels > 0).sum(1).max() == 2
    own = labels.diagonal()
    other = labels - torch.diag(own)
    partner = other.argmax(1)
    paired = other.sum(1) > 1e-6
    expected = own * torch.arange(n) + other.sum(1) * torch.where(paired, partner, torch.arange(n))
    assert mixed[:, 0, 1, 1].allclose(expected, rtol=1e-4, atol=1e-2)
    assert len(partner[paired].unique()) == paired.sum()  # of a permutation
    chosen = own[partner != torch.arange(n)].double().numpy()
    assert stats.kstest(chosen, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_mixup_draws_from_its_generator_alone() -> None:
    pictures, labels = torch.rand(8, 1, 2, 2), torch.eye(8, dtype=torch.int64)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = (mixup(pictures, labels, 1.0, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_a_recipe_with_mixup_mixes_training_batches_only() -> None:
    plain, mixing = make_task("digits"), make_task("digits", "task.recipe.mixup=0.3")
    (x, y), (x_mixed, y_mixed) = (next(task.batches("train", generator())) for task in (plain, mixing))
    assert y.shape == (64,)
    assert y_mixed.shape == (64, 10)
    state = generator()
    torch.randperm(1006, generator=state)  # the order of the images
    again = mixup(x, F.one_hot(y, 10), 0.3, state)
    assert torch.equal(x_mixed, again[0])
    assert torch.equal(y_mixed, again[1])
    assert next(mixing.batches("val"))[1].ndim == 1

    output = torch.randn(64, 10, generator=generator(), requires_grad=True)
    by_hand = -(y_mixed * output.log_softmax(1)).sum(1).mean()
    assert mixing.loss(output, y_mixed, training=True).item() == pytest.approx(by_hand.item(), rel=1e-5)
    agree = 100 * (output.argmax(1) == y_mixed.argmax(1)).float().mean()
    assert mixing.metrics(output, y_mixed, training=True)["top1"].item() == pytest.approx(
        agree.item(), rel=1e-5
    )


def test_labels_are_smoothed_in_training_only() -> None:
    task = make_task("digits", "task.recipe.label_smoothing=0.1")
    output, target = torch.randn(64, 10, generator=generator()), torch.arange(64) % 10
    smooth = 0.9 * F.one_hot(target, 10) + 0.1 / 10
    by_hand = -(smooth * output.log_softmax(1)).sum(1).mean()
    plain = F.cross_entropy(output, target).item()
    assert task.loss(output, target, training=True).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert task.loss(output, target, training=False).item() == pytest.approx(plain)  # with gradients enabled


def test_top5_is_for_evaluation_whether_or_not_gradients_are_enabled() -> None:
    task = make_task("digits")
    output, target = torch.randn(64, 10, generator=generator()), torch.arange(64) % 10
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert set(task.metrics(output, target, training=False)) == {"top1", "top5"}
            assert set(task.metrics(output, target, training=True)) == {"top1"}


@pytest.mark.parametrize("value", ["-0.1", "nan", "true"])
def test_a_wrong_mixup_is_said(value: str) -> None:
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException, match=r"mixup=.*must be a .*number >= 0"):
        make_task("digits", f"task.recipe.mixup={value}")


def test_digits_are_learned_with_all_of_it(tmp_path: Path) -> None:
    """Chance is 10."""
    overrides = ["task.recipe.mixup=0.2", "task.recipe.label_smoothing=0.1", "runner.epochs=8"]
    record = train(tmp_path, Toy, *overrides)
    assert record["primary"] > 85
    assert 0 < record["test_ece"] < 100
    assert next(tmp_path.glob("**/classes.csv")).read_text().count("\n") >= 11


# crops and stores ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """Overrides for a folder of 3 classes."""
    root = make_folders(tmp_path / "tree", {"train": 14, "test": 5}, "abc", (48, 40))
    return [
        *(f"task.data.root={root}", f"task.data.cache={tmp_path / 'cache'}", "task.data.stored=36"),
        *("task.eval_crop.size=24", "network=small_cnn", "task.recipe.batch_size=8"),
    ]


def test_training_sees_random_crops_and_evaluation_the_middle(tree: list[str]) -> None:
    task = make_task("image_folder", *tree, "task.augment.crop.flip=false")
    assert task.input_shape == (3, 24, 24)
    assert {split: len(index) for split, index in task.index.items()} == {"train": 38, "val": 4, "test": 15}
    state = generator(4)
    order = torch.randperm(38, generator=state)
    chosen = task.store.samples[task.index["train"][order[:8]]]
    crops = task.augment(chosen, state)
    x, y = next(task.batches("train", generator(4)))
    normalized = crops.float() * task.scale + task.shift
    assert torch.equal(x, normalized)
    assert torch.equal(y, task.labels[task.index["train"][order[:8]]])

    x = torch.cat([x for x, _ in task.batches("test")])
    middle = task.eval_crop(task.store.samples[task.index["test"]])
    assert torch.equal(x, middle.float() * task.scale + task.shift)
    assert x.is_contiguous()

    plain = make_task("image_folder", *tree, "task.augment=null")
    x, _ = next(plain.batches("train", generator(4)))
    assert torch.equal(x, plain.eval_crop(chosen).float() * task.scale + task.shift)


@pytest.mark.parametrize("seed", [0, 1])
def test_memory_and_stream_are_bitwise_equal_and_resume(seed: int, tree: list[str]) -> None:
    mixed = [*tree, "task.recipe.mixup=0.2", "task.augment.cutout.size=6"]
    memory, stream = (
        make_task("image_folder", *mixed, f"task.data.in_memory={kind}") for kind in ("true", "false")
    )
    assert type(memory.store) is not type(stream.store)
    assert memory.fingerprint == stream.fingerprint
    for split in ("train", "val", "test"):
        batches = [list(task.batches(split, generator(seed))) for task in (memory, stream)]
        assert len(batches[0]) == {"train": 4, "val": 1, "test": 1}[split]
        for (x, y), (x_streamed, y_streamed) in zip(*batches, strict=True):
            assert torch.equal(x, x_streamed)
            assert torch.equal(y, y_streamed)
    resumed = list(islice(stream.batches("train", generator(seed)), 2, None))
    whole = list(memory.batches("train", generator(seed)))
    assert all(
        torch.equal(a, b)
        for one, two in zip(resumed, whole[2:], strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_a_streamed_run_ends_with_the_same_weights(tree: list[str], tmp_path: Path) -> None:
    weights, scores = [], []
    for in_memory in ("true", "false"):
        overrides = [*tree, f"task.data.in_memory={in_memory}", "runner.epochs=2"]
        record = train(tmp_path / in_memory, Toy, *overrides, task="image_folder")
        assert record["status"] == "ok"
        path = next((tmp_path / in_memory).glob("**/checkpoint.pt"))
        weights.append(torch.load(path, weights_only=True)["network"])
        scores.append((record["primary"], record["test_loss"]))
    assert scores[0] == scores[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_statistics_of_a_large_set_are_those_of_a_part_of_it(monkeypatch) -> None:
    monkeypatch.setattr(sets, "MAX_STATISTICS_IMAGES", 300)
    task = make_task("digits")
    index = task.index["train"]
    part = index[sets.stratified(task.labels[index], 300)[1]]
    assert task.scale.item() == pytest.approx(1 / task.store.samples[part].double().std(correction=0).item())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.eval_crop.size=40"], r"^task\.augment\.crop\.size=40 x 40: .* 36 x 36"),
        (["task.augment.crop.size=30"], "^task.augment: makes training images of 30 x 30, .* 24 x 24"),
        (["task.augment.crop.scale=[0.5,2]"], r"^task\.augment\.crop\.scale=\[0\.5, 2\]: .*> 0 and <= 1"),
        (["task.data.in_memory=perhaps"], r"^task\.data\.in_memory='perhaps': must be one of auto, true, false"),
        (["task.data.stored=41"], r"48 x 40 is smaller than stored=41; enlarge=true enlarges"),
        (["task.data.stored=0"], r"^task\.data\.stored=0: must be an integer >= 1"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_said(overrides: list[str], words: str, tree: list[str]) -> None:
    from hydra.errors import InstantiationException

    given = [old for old in tree if old.partition("=")[0] not in {new.partition("=")[0] for new in overrides}]
    with pytest.raises(InstantiationException) as caught:
        make_task("image_folder", *given, *overrides)
    assert re.search(words, format_error(caught.value))


def test_large_images_are_evaluated_in_smaller_batches() -> None:
    sizes = {}
    for side in (32, 128, 224, 4096):
        sizes[side] = classification.Classification._eval_batch(SimpleNamespace(input_shape=(3, side, side)))
    assert sizes == {32: 512, 128: 64, 224: 20, 4096: 1}


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (5, "^augment=5: must be an augmentation"),
        (Cutout(2, masks=1), "^augment.masks=1: must be 0"),
        (Compose(crop=None, cutout=Cutout(2, masks=1)), "^augment.cutout.masks=1: must be 0"),
    ],
)
def test_augmentations_that_do_not_suit_images(augment: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_augment("augment", augment, masks=0)
    check_augment("augment", Compose(crop=None, cutout=Cutout(2)), masks=0)
    check_augment("augment", None, masks=0)
