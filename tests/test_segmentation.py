"""Segmentation: scores against torchmetrics, masks that move with their images, sets of masks, pictures, and what is refused."""

import http.server
import struct
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_cell, make_factory, make_task, train
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn
from toy import Toy

from runners import seeding
from runners.train import build_network
from tasks.base import Recipe
from tasks.data import shapes
from tasks.data.augment import Compose, CropFlip, RandomResizedCrop
from tasks.data.hashing import content_hash
from tasks.data.masks import VOC, camvid, mask_folder, oxford_pets, voc2012
from tasks.data.pairs import VOID, read_mask
from tasks.data.sets import MaskSet
from tasks.data.store import Memory
from tasks.networks.unet import UNet
from tasks.segmentation import Segmentation

TINY = ("task.data.train=64", "task.data.val=16", "task.data.test=16", "task.data.size=16", "network.width=4")


def make_set(images: Tensor, labels: Tensor, classes: int = 4, **splits: Tensor | None) -> MaskSet:
    samples = torch.cat([images, labels[:, None]], dim=1).to(torch.uint8)
    every = torch.arange(len(samples))
    parts = {"train": every, "val": every, "test": every} | splits
    return MaskSet(store=Memory(samples), **parts, classes=tuple("abcdefgh"[:classes]), fingerprint="made")


def random_set(count: int = 12, classes: int = 4, void: float = 0.2, size: int = 8, **splits) -> MaskSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=generator)
    labels = torch.randint(classes, (count, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = VOID
    return make_set(images, labels, classes, **splits)


def make_segmentation(data: MaskSet, **kwargs) -> Segmentation:
    recipe = Recipe(**({"epochs": 1, "batch_size": 4, "lr": 0.1} | kwargs.pop("recipe", {})))
    return Segmentation(**({"recipe": recipe, "data": data, "network": Pixelwise} | kwargs))


class Pixelwise(nn.Module):
    """A 1 x 1 convolution."""

    def __init__(self, act_layer: object, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(input_shape[0], num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Answer(nn.Module):
    """Gives classes out, whatever comes in."""

    def __init__(self, classes: int, *answers: Tensor) -> None:
        super().__init__()
        self.scores = iter([nn.functional.one_hot(a.long(), classes).movedim(-1, 1).float() for a in answers])

    def forward(self, x: Tensor) -> Tensor:
        return next(self.scores)


# scores ------------------------------------------------------------------------------------------------------------


def test_scores_are_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    task = make_segmentation(random_set(classes=5))
    torch.manual_seed(0)
    network = task.build_network(Toy)
    settings = {"num_classes": 5, "ignore_index": VOID, "validate_args": False}
    mean = MulticlassJaccardIndex(average="macro", **settings)
    single = MulticlassJaccardIndex(average="none", **settings)
    accuracy = MulticlassAccuracy(average="micro", **settings)
    for input, target in task.batches("test"):
        for metric in (mean, single, accuracy):
            metric.update(network(input).argmax(1), target)
    scores = task.evaluate(network, "test")
    assert scores["miou"] == pytest.approx(100 * mean.compute().item(), rel=1e-5)
    assert scores["pixel_accuracy"] == pytest.approx(100 * accuracy.compute().item(), rel=1e-5)
    ious = [scores[f"iou/{name}"] for name in "abcde"]
    assert ious == pytest.approx((100 * single.compute()).tolist(), rel=1e-5)


def test_counts_are_of_the_split_and_not_of_its_batches() -> None:
    """Class b is one pixel of the first batch, missed, and all of the second, found."""
    labels = torch.zeros(2, 8, 8)
    labels[0, 0, 0], labels[1] = 1, 1
    task = make_segmentation(make_set(torch.zeros(2, 3, 8, 8), labels, 2), recipe={"batch_size": 1})
    scores = task.evaluate(Answer(2, torch.zeros(1, 8, 8), torch.ones(1, 8, 8)), "test")
    assert scores["iou/a"] == pytest.approx(100 * 63 / 64)
    assert scores["iou/b"] == pytest.approx(100 * 64 / 65)
    assert scores["miou"] == pytest.approx(50 * (63 / 64 + 64 / 65))  # by batches it is near 75
    assert scores["pixel_accuracy"] == pytest.approx(100 * 127 / 128)


def test_void_does_not_count() -> None:
    labels = torch.randint(2, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    answer = labels.clone()
    answer[0, 0] = 1 - answer[0, 0]
    labels[0, 0] = VOID  # where it would be wrong
    task = make_segmentation(make_set(torch.zeros(3, 3, 8, 8), labels, 2))
    scores = task.evaluate(Answer(2, answer), "test")
    assert scores["miou"] == scores["pixel_accuracy"] == 100


def test_classes_that_do_not_occur() -> None:
    """c is in the truth, d in the prediction alone: 0. a and b are right. e is nowhere and does not count."""
    labels = torch.tensor([[[0, 1, 2, VOID]]]).expand(1, 4, 4)
    answer = torch.tensor([[[0, 1, 3, 4]]]).expand(1, 4, 4)  # 4 on void
    task = make_segmentation(make_set(torch.zeros(1, 3, 4, 4), labels, 5))
    scores = task.evaluate(Answer(5, answer), "test")
    assert scores["miou"] == 50
    assert {name: value for name, value in scores.items() if "/" in name} == {
        f"{metric}/{name}": value
        for metric in ("iou", "dice", "boundary_iou")
        for name, value in {"a": 100, "b": 100, "c": 0, "d": 0}.items()
    }


def test_loss_is_a_mean_over_labelled_pixels() -> None:
    task = make_segmentation(random_set())
    torch.manual_seed(0)
    network = task.build_network(Toy)
    outputs, targets = zip(*[(network(x), y) for x, y in task.batches("test")], strict=True)
    each = [
        nn.functional.cross_entropy(output, target, ignore_index=VOID)
        for output, target in zip(outputs, targets, strict=True)
    ]
    for output, target, expected in zip(outputs, targets, each, strict=True):
        torch.testing.assert_close(task.loss(output, target, training=True), expected)
    whole = nn.functional.cross_entropy(torch.cat(outputs), torch.cat(targets), ignore_index=VOID)
    assert task.evaluate(network, "test")["loss"] == pytest.approx(whole.item(), rel=1e-6)


def test_a_batch_of_void_trains_nothing() -> None:
    task = make_segmentation(random_set())
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    target = torch.full((2, 8, 8), VOID)
    loss = task.loss(output, target, training=True)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))
    assert task.metrics(output, target, training=True)["pixel_accuracy"].item() == 0


def test_a_split_of_void_is_refused() -> None:
    task = make_segmentation(random_set(void=1.0))
    with pytest.raises(ValueError, match="every pixel of the test split is void"):
        task.evaluate(task.build_network(Toy), "test")


def test_evaluation_stops_at_the_limit() -> None:
    task = make_segmentation(random_set(void=0.0))
    task.limit_batches = 1
    network = Answer(4, torch.zeros(4, 8, 8))  # a second batch would be one too many
    first = (next(iter(task.batches("test")))[1] == 0).double().mean().item()
    assert task.evaluate(network, "test")["pixel_accuracy"] == pytest.approx(100 * first)


def test_labels_are_smoothed_in_training_only() -> None:
    plain, smooth = (
        make_segmentation(random_set(), recipe={"label_smoothing": value}) for value in (0.0, 0.2)
    )
    torch.manual_seed(0)
    network = plain.build_network(Toy)
    assert plain.evaluate(network, "test") == smooth.evaluate(network, "test")
    input, target = next(iter(plain.batches("test")))
    with torch.inference_mode():
        for training in (True, False):
            losses = {task.loss(network(input), target, training=training).item() for task in (plain, smooth)}
            assert len(losses) == 1 + training


# splits and batches ------------------------------------------------------------------------------------------------


def test_missing_splits_are_held_out_by_a_fixed_rule() -> None:
    def index(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        data = random_set(50, val=None, test=None)
        return make_segmentation(data, val_fraction=0.25, test_fraction=0.2).index

    one, two = index(0), index(1)
    assert {split: len(part) for split, part in one.items()} == {"train": 30, "val": 10, "test": 10}
    assert torch.cat(list(one.values())).sort().values.tolist() == list(range(50))
    assert all(torch.equal(one[split], two[split]) for split in one)
    given = make_segmentation(random_set(50, val=None)).index
    assert torch.equal(given["test"], torch.arange(50))


def test_batches_depend_on_their_generator_alone() -> None:
    task = make_segmentation(random_set(), augment=CropFlip(2))
    runs = []
    for seed in (0, 0, 1):
        torch.rand(3)
        runs.append([part for batch in task.batches("train", seeding.generator(seed)) for part in batch])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert [tuple(x.shape) for x in runs[0]] == [(4, 3, 8, 8), (4, 8, 8)] * 3
    assert runs[0][1].dtype == torch.int64


def test_images_are_normalized_by_the_training_split() -> None:
    task = make_segmentation(random_set(40, val=None, test=None))
    pixels = task.store.samples[task.index["train"], :3].double()
    torch.testing.assert_close(
        (1 / task.scale).flatten().double(), pixels.std((0, 2, 3), correction=0), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        (-task.shift / task.scale).flatten().double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0
    )


def test_image_and_mask_move_as_one() -> None:
    """Each pixel of the image tells the label that belongs to it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (32, 12, 15), generator=generator)
    labels[labels == 6] = VOID
    data = make_set(labels[:, None].expand(-1, 3, -1, -1), labels, 6)
    task = make_segmentation(data, augment=Compose(crop=CropFlip(padding=3, flip=True)))
    moved = 0
    for images, targets in task.batches("train", generator):
        values = (images - task.shift) / task.scale
        assert torch.equal(values[:, 0].round().long(), targets)
        moved += sum(not (targets[i] == labels).all((1, 2)).any() for i in range(len(targets)))
    assert moved > 20


def test_image_and_mask_are_resized_as_one() -> None:
    """Halves of two brightnesses: away from the seam each pixel tells its label, and no new label appears."""
    labels = torch.zeros(16, 40, 40)
    for i, row in enumerate(labels):
        row[: 8 + i] = 1
        row[8 + i :, 20:] = VOID
    data = make_set((100 * labels[:, None].clamp_max(2)).expand(-1, 3, -1, -1), labels, 2)
    crop = RandomResizedCrop([24, 20], scale=[0.3, 0.9], masks=1)
    task = make_segmentation(data, augment=crop)
    for images, targets in task.batches("train", torch.Generator().manual_seed(0)):
        assert images.shape == (4, 3, 24, 20)
        assert targets.shape == (4, 24, 20)
        values = ((images - task.shift) / task.scale)[:, 0]
        expected = 100.0 * targets.clamp_max(2)
        assert set(targets.unique().tolist()) <= {0, 1, VOID}
        wrong = (values - expected).abs() > 1
        assert wrong.double().mean() < 0.12  # two rows and two columns at most, where halves meet
        assert wrong.flatten(1).any(1).sum() > 0  # the image is interpolated indeed


def test_an_augmentation_that_mixes_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^augment.masks=0: must be 1"):
        make_segmentation(random_set(), augment=RandomResizedCrop(6))
    with pytest.raises(ValueError, match=r"^augment: mixes the masks' values"):
        make_segmentation(random_set(), augment=lambda samples, generator: samples // 2)


# generated scenes --------------------------------------------------------------------------------------------------


def test_scenes_are_the_same_everywhere() -> None:
    """The definition of the task: numpy's PCG64 and operations that IEEE 754 rounds exactly. May never change."""
    assert content_hash(shapes.scenes("train", 20, 48).tobytes()) == "91ea01c06ecbb047"


def test_a_scene_depends_on_split_and_number_alone() -> None:
    many, few = shapes.scenes("val", 40, 32), shapes.scenes("val", 3, 32)
    assert np.array_equal(many[:3], few)
    assert not np.array_equal(shapes.scenes("test", 3, 32), few)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert np.array_equal(shapes.scenes.__wrapped__("val", 3, 32), few)
    assert len({scene.tobytes() for scene in many}) == 40


def test_scenes_have_all_classes_and_only_those() -> None:
    labels = shapes.scenes("train", 200, 48)[:, 3]
    share = np.bincount(labels.ravel(), minlength=6) / labels.size
    assert len(share) == len(shapes.CLASSES) == 6
    assert 0.5 < share[0] < 0.8
    assert share[1:].min() > 0.04
    assert share[1:].max() / share[1:].min() < 1.5


def test_outlines_have_about_one_area() -> None:
    y, x = np.mgrid[-2:2:401j, -2:2:401j]
    areas = {name: outline(x, y).mean() * 16 for name, outline in shapes.OUTLINES.items()}
    assert all(0.95 * np.pi < area < 1.05 * np.pi for area in areas.values()), areas


def test_color_does_not_tell_the_class() -> None:
    """The best guess from a pixel's color, by nearest class mean, is hardly better than chance."""
    scenes = shapes.scenes("train", 400, 48).transpose(1, 0, 2, 3).reshape(4, -1)
    pixels, labels = scenes[:3].astype(float), scenes[3]
    means = np.stack([pixels[:, labels == label].mean(1) for label in range(6)])
    assert np.ptp(means, axis=0).max() < 15  # of 255; the colors of one class spread by 50
    assert pixels[:, labels == 1].std(1).min() > 40


def test_masks_are_exact() -> None:
    """A scene of plain surfaces without light and noise has one color for each surface, and edges where the mask has them."""
    numbers = np.random.default_rng(0).random((7 + shapes.SURFACE + 5 * shapes.OBJECT, 8, 1, 1))
    numbers[1:3], numbers[3] = 0.5, -0.2  # even light, no noise
    numbers[7 + 4] = 0  # plain background
    for k in range(5):
        numbers[7 + shapes.SURFACE + k * shapes.OBJECT + 6 + 4] = 0
    made = shapes._scenes(numbers, np.random.default_rng(0).random((8, 3, 48, 48)))
    for scene in made:
        colors, owner = np.unique(scene[:3].reshape(3, -1), axis=1, return_inverse=True)
        assert 3 <= colors.shape[1] <= 6
        for color in range(colors.shape[1]):
            assert len(np.unique(scene[3].ravel()[owner.ravel() == color])) == 1


# folders -----------------------------------------------------------------------------------------------------------


def save_pair(
    folder: Path, name: str, labels: np.ndarray, image: Image.Image | None = None, **options
) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels.astype(np.uint8))
    if options.get("palette"):
        mask = mask.convert("P")
        mask.putdata(labels.ravel().tolist())
        mask.putpalette(np.random.default_rng(0).integers(256, size=768).astype(np.uint8).tobytes())
    mask.save(folder / "labels" / f"{name}.png")
    height, width = labels.shape
    noise = np.random.default_rng(len(name)).integers(256, size=(height, width, 3), dtype=np.uint8)
    (image or Image.fromarray(noise)).save(folder / "images" / f"{name}.{options.get('ending', 'png')}")


def make_folder(
    root: Path, splits: tuple[str, ...] = ("train", "val", "test"), count: int = 6, **options
) -> Path:
    """Masks of classes 0, 1, 2 and void 255."""
    rng = np.random.default_rng(0)
    for split in splits:
        for i in range(count):
            save_pair(root / split, f"{split}{i}", rng.choice([0, 1, 2, 255], (10, 12)), **options)
    return root


def open_folder(root: Path, **kwargs) -> MaskSet:
    settings = {"class_names": ["a", "b", "c"], "ignore_index": 255, "cache": str(root.parent / "cache")}
    return mask_folder(str(root), **(settings | kwargs))


def samples_of(data: MaskSet) -> Tensor:
    return torch.cat(list(data.store.batches([torch.arange(len(data.store))])))


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_becomes_samples_of_four_planes(tmp_path: Path, palette: bool, in_memory: bool) -> None:
    root = make_folder(tmp_path / "set", palette=palette)
    data = open_folder(root, in_memory=in_memory)
    assert data.classes == ("a", "b", "c")
    assert [part.tolist() for part in (data.train, data.val, data.test)] == [
        list(range(6)),
        list(range(6, 12)),
        list(range(12, 18)),
    ]
    samples = samples_of(data)
    assert samples.shape == (18, 4, 10, 12)
    for position, name in ((0, "train/{}/train0"), (7, "val/{}/val1"), (17, "test/{}/test5")):
        image = Image.open(root / (name.format("images") + ".png")).convert("RGB")
        mask = Image.open(root / (name.format("labels") + ".png"))
        assert mask.mode == ("P" if palette else "L")
        assert np.array_equal(samples[position, :3].permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(samples[position, 3], np.asarray(mask))


def test_camvid_is_a_folder_of_eleven_classes(tmp_path: Path) -> None:
    labels = np.arange(12).reshape(3, 4)
    for split in ("train", "val", "test"):
        for i in range(2):
            save_pair(tmp_path / "set" / split, f"x{i}", labels, ending="jpg")
    data = camvid(str(tmp_path / "set"), cache=str(tmp_path / "cache"))
    assert (data.classes[0], data.classes[10], len(data.classes)) == ("sky", "bicyclist", 11)
    assert samples_of(data)[0, 3].flatten().tolist() == [*range(11), VOID]


def test_a_folder_without_val_and_test(tmp_path: Path) -> None:
    data = open_folder(make_folder(tmp_path / "set", ("train",), count=20))
    assert (data.val, data.test) == (None, None)
    index = make_segmentation(data).index
    assert {split: len(part) for split, part in index.items()} == {"train": 14, "val": 2, "test": 4}


def test_the_fingerprint_is_of_the_data(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    first = open_folder(root).fingerprint
    assert open_folder(root, in_memory=False).fingerprint == first
    assert open_folder(make_folder(tmp_path / "elsewhere")).fingerprint == first
    assert open_folder(root, size=[5, 6]).fingerprint != first
    assert open_folder(root, class_names=["a", "b", "d"]).fingerprint != first
    assert open_folder(make_folder(tmp_path / "fewer", count=5)).fingerprint != first
    same_size = [make_folder(tmp_path / name) / "test" / "labels" / "test0.png" for name in ("one", "other")]
    for value, mask in zip((1, 2), same_size, strict=True):
        Image.fromarray(np.full((10, 12), value, np.uint8)).save(mask)
        mask.write_bytes(mask.read_bytes().ljust(200, b"\0"))  # what follows the image is not looked at
    assert same_size[0].stat().st_size == same_size[1].stat().st_size
    assert open_folder(tmp_path / "one").fingerprint != open_folder(tmp_path / "other").fingerprint


def test_sizes_become_one(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    left = np.tile([0] * 20 + [2] * 10, (40, 1))
    save_pair(root / "train", "wide", left, Image.fromarray((left * 100).astype(np.uint8)))
    with pytest.raises(ValueError, match=r"wide\.png: is 30 x 40, must be 12 x 10 .*size="):
        open_folder(root)
    data = open_folder(root, size=[8, 9])
    assert data.store.shape == (4, 8, 9)
    image, mask = samples_of(data)[6, 0], samples_of(data)[6, 3]
    assert torch.equal(mask, torch.tensor([0] * 6 + [2] * 3).expand(8, 9))
    assert torch.equal(image[:, [0, 8]], torch.tensor([0, 200]).expand(8, 2))
    assert ((image > 0) & (image < 200)).any()  # interpolated at the seam


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1", "CMYK"])
def test_images_of_any_kind_become_colors(tmp_path: Path, mode: str) -> None:
    root = make_folder(tmp_path / "set")
    gray = np.tile(np.array([0, 255], dtype=np.uint8), (10, 6))
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    image = wide if mode == "I;16" else Image.fromarray(gray).convert("RGB").convert(mode)
    save_pair(root / "train", "kind", np.zeros((10, 12)), image, ending="jpg" if mode == "CMYK" else "png")
    sample = samples_of(open_folder(root))[0]
    assert sample[:3].float().sub(torch.from_numpy(gray).float()).abs().max() <= 3  # of a JPEG


# what is refused ---------------------------------------------------------------------------------------------------


def out_of_range(root: Path) -> None:
    save_pair(root / "val", "val3", np.full((10, 12), 7))


def other_size(root: Path) -> None:
    Image.new("L", (11, 10)).save(root / "train" / "labels" / "train2.png")


def mask_missing(root: Path) -> None:
    (root / "test" / "labels" / "test4.png").unlink()


def image_missing(root: Path) -> None:
    for i in range(5):
        (root / "train" / "images" / f"train{i}.png").unlink()


def two_of_a_name(root: Path) -> None:
    Image.new("RGB", (12, 10)).save(root / "val" / "images" / "val1.jpg")


def nothing_in(root: Path) -> None:
    for path in (root / "val").glob("*/*"):
        path.unlink()


def colors(root: Path) -> None:
    Image.new("RGB", (12, 10), (9, 8, 7)).save(root / "train" / "labels" / "train0.png")


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((10, 12), 300, dtype=np.uint16)).save(root / "train" / "labels" / "train0.png")


def cut_image(root: Path) -> None:
    path = root / "test" / "images" / "test1.png"
    path.write_bytes(path.read_bytes()[:200])


def cut_mask(root: Path) -> None:
    path = root / "test" / "labels" / "test1.png"
    path.write_bytes(path.read_bytes()[:60])


def no_image(root: Path) -> None:
    (root / "train" / "images" / "train5.png").write_text("words")


def no_train(root: Path) -> None:
    (root / "train").rename(root / "learn")


REFUSED = {
    out_of_range: r"val/labels/val3\.png: value 7 is no class; must be one of 0, 1, 2, and 255 for void",
    other_size: r"train/labels/train2\.png: the mask is 11 x 10, its image 12 x 10",
    mask_missing: r"6 images in test/images/ and 5 masks in test/labels/, .*; without a partner: test4$",
    image_missing: r"1 images in train/images/ and 6 .* partner: train0, train1, train2 and 2 more$",
    two_of_a_name: r"val1\.jpg and val1\.png in .*val/images have the same name",
    nothing_in: r"no images in val/images/ and no masks in val/labels/",
    colors: r"train/labels/train0\.png: a mask of mode RGB with the color \[9, 8, 7\]; .*palette",
    sixteen_bits: r"train/labels/train0\.png: a mask of mode I;16 with the value 300; .* <= 255",
    cut_image: r"test/images/test1\.png: not a readable image",
    cut_mask: r"test/labels/test1\.png: not a readable image",
    no_image: r"train/images/train5\.png: not a readable image",
    no_train: r"root=.*set: has no folder train/; must contain \{train,val,test\}/\{images,labels\}/",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_a_folder_that_cannot_be(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(root := make_folder(tmp_path / "set"))
    with pytest.raises(ValueError, match=REFUSED[damage]) as caught:
        open_folder(root)
    assert "\n" not in str(caught.value)


def test_a_streamed_mask_that_cannot_be_is_said_at_the_beginning(tmp_path: Path) -> None:
    out_of_range(root := make_folder(tmp_path / "set"))
    with pytest.raises(ValueError, match=REFUSED[out_of_range]):
        open_folder(root, in_memory=False)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_masks_of_few_bits_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    labels = np.arange(40).reshape(5, 8) % min(1 << bits, 20)
    row = np.unpackbits(labels.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits :].reshape(5, -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in row)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 8, 5, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), labels)


def test_files_that_are_no_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "set")
    (root / "train" / "images" / "more").mkdir()
    (root / "train" / "images" / "more" / "x.heic").touch()
    (root / "val" / "labels" / "x.txt").touch()
    (root / "val" / "labels" / "._x.png").touch()
    open_folder(root)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.endswith(
        "files left out: 1 no images, such as val/labels/x.txt; 1 of other formats, such as train/images/more/x.heic"
    )


@pytest.mark.parametrize("setting", ["root", "cache"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_folder_without_a_name(tmp_path: Path, setting: str, value: object) -> None:
    settings = {"root": str(make_folder(tmp_path / "set")), "cache": str(tmp_path / "cache")} | {
        setting: value
    }
    with pytest.raises(ValueError, match=rf"^{setting}={value}: must be the name of a folder$"):
        camvid(**settings)
    with pytest.raises(ValueError, match=rf"^{setting}={value}: must be the name of a folder$"):
        mask_folder(**settings, class_names=["a", "b", "c"], ignore_index=255)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ignore_index": 2}, r"ignore_index=2: must be from 3 to 255"),
        ({"ignore_index": 256}, r"ignore_index=256: must be from 3 to 255"),
        ({"ignore_index": -1}, r"ignore_index=-1: must be an integer >= 0"),
        ({"ignore_index": None}, r"value 255 is no class; must be one of 0, 1, 2$"),
        (
            {"class_names": ["a", "a"]},
            r"class_names=\['a', 'a'\]: must be a list of 2 to 254 different names",
        ),
        ({"class_names": "abc"}, r"class_names=abc: must be a list"),
        ({"class_names": ["a"]}, r"class_names=\['a'\]: must be a list"),
        ({"size": [0, 4]}, r"size=\[0, 4\]: must be a list of 2 integers >= 1"),
        ({"in_memory": "yes"}, r"in_memory='yes': must be one of auto, true, false"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, kwargs: dict, message: str) -> None:
    root = make_folder(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        open_folder(root, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"val_fraction": 0}, r"^val_fraction=0: must be a number > 0 and < 1"),
        ({"test_fraction": 0.01}, r"^test_fraction=0\.01: cannot choose 0 of 12 samples"),
        ({"augment": CropFlip(8)}, r"padding=8: must be below the images' size, 8 x 8"),
        (
            {"augment": RandomResizedCrop(9, masks=1)},
            r"^augment.size=9 x 9: .* 8 x 8",
        ),
    ],
)
def test_shares_and_crops_that_cannot_be(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_segmentation(random_set(val=None, test=None), **kwargs)


@pytest.mark.parametrize("case", ["range", "crop", "network"])
def test_one_line_on_the_command_line(tmp_path: Path, cli: Callable, case: str) -> None:
    root = make_folder(tmp_path / "set")
    folder = ("task=mask_folder", "task.data.class_names=[a,b,c]", "runner=smoke", f"task.data.root={root}")
    if case == "range":
        out_of_range(root)
    given, message = {
        "range": (folder, "val3.png: value 7 is no class; must be one of 0, 1, 2, and 255 for void"),
        "crop": (folder, "task.augment.crop.size=96 x 96: must be at most that of the images, 10 x 12"),
        "network": (
            ("task=shapes", "network=resnet8", "runner=smoke", *TINY[:4]),
            "the network's output for a sample is (6,), must be (6, 16, 16)",
        ),
    }[case]
    run: subprocess.CompletedProcess = cli(
        *given, *(() if case == "network" else (f"task.data.cache={tmp_path}/cache",))
    )
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert message in run.stderr
    assert not [*(tmp_path / "outputs").glob("*/[!.]*")]  # but for locks


# sets of torchvision -----------------------------------------------------------------------------------------------


def make_voc(root: Path) -> None:
    base, rng = root / "VOCdevkit" / "VOC2012", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for split, names in (("train", ["2007_1", "2007_2", "2008_5"]), ("val", ["2007_3", "2009_4"])):
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            labels = rng.choice([*range(21), 255], (14, 17)).astype(np.uint8)
            save_pair(root / "made", name, labels, palette=True, ending="jpg")
            (root / "made" / "images" / f"{name}.jpg").rename(base / "JPEGImages" / f"{name}.jpg")
            (root / "made" / "labels" / f"{name}.png").rename(base / "SegmentationClass" / f"{name}.png")


def make_pets(root: Path) -> None:
    base, rng = root / "oxford-iiit-pet", np.random.default_rng(0)
    for folder in ("images", "annotations/trimaps"):
        (base / folder).mkdir(parents=True)
    for split, names in (("trainval", ["Bengal_1", "pug_2", "pug_3"]), ("test", ["Bengal_7", "pug_1"])):
        lines = [f"{name} {1 + (name[0] == 'p')} {1 + (name[0] == 'p')} 1" for name in names]
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for name in names:
            save_pair(root / "made", name, rng.choice([1, 2, 3], (14, 17)), ending="jpg")
            (root / "made" / "images" / f"{name}.jpg").rename(base / "images" / f"{name}.jpg")
            (root / "made" / "labels" / f"{name}.png").rename(
                base / "annotations" / "trimaps" / f"{name}.png"
            )


def test_voc_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    make_voc(tmp_path)
    data = voc2012(str(tmp_path), size=[14, 17], cache=str(tmp_path / "cache"))
    assert (data.classes, len(data.classes), data.val) == (VOC, 21, None)
    assert [len(data.train), len(data.test)] == [3, 2]
    theirs = [
        *VOCSegmentation(str(tmp_path), image_set="train"),
        *VOCSegmentation(str(tmp_path), image_set="val"),
    ]
    for sample, (image, mask) in zip(samples_of(data), theirs, strict=True):
        assert np.array_equal(sample[:3].permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(sample[3], np.asarray(mask))


def test_pets_are_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    make_pets(tmp_path)
    data = oxford_pets(str(tmp_path), size=[14, 17], cache=str(tmp_path / "cache"))
    assert (data.classes, data.val) == (("background", "pet"), None)
    assert [len(data.train), len(data.test)] == [3, 2]
    theirs = [
        pair
        for split in ("trainval", "test")
        for pair in OxfordIIITPet(str(tmp_path), split=split, target_types="segmentation")
    ]
    meaning = np.array([0, 1, 0, VOID])  # of a trimap's pet, background and border
    for sample, (image, trimap) in zip(samples_of(data), theirs, strict=True):
        assert np.array_equal(sample[:3].permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(sample[3], meaning[np.asarray(trimap)])


@pytest.mark.parametrize("source", [voc2012, oxford_pets])
def test_a_set_that_is_not_there(tmp_path: Path, source: Callable) -> None:
    with pytest.raises(ValueError, match=r"root=.*none: no such folder; must contain .* download=true"):
        source(str(tmp_path / "none"), size=[8, 8], cache=str(tmp_path / "cache"))
    (make_voc if source is voc2012 else make_pets)(tmp_path)
    path = next(tmp_path.glob("**/2007_2.jpg"), None) or next(tmp_path.glob("**/pug_2.jpg"))
    path.unlink()
    with pytest.raises(ValueError, match=f"no file .*{path.name}"):
        source(str(tmp_path), size=[8, 8], cache=str(tmp_path / "cache"))
    next(path for path in tmp_path.glob("**/*.txt") if path.stem.startswith("train")).write_text("\n")
    with pytest.raises(ValueError, match=r"\.txt: contains no names of images"):
        source(str(tmp_path), size=[8, 8], cache=str(tmp_path / "cache"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Archives in the formats of VOC and Pets, served on this machine; torchvision is told address and checksums."""
    from torchvision.datasets import OxfordIIITPet, voc

    place, packed = tmp_path / "served", {}
    place.mkdir()
    make_voc(tmp_path / "voc")
    make_pets(tmp_path / "pets")
    for archive, folder in (
        ("voc.tar", tmp_path / "voc" / "VOCdevkit"),
        ("images.tar.gz", tmp_path / "pets" / "oxford-iiit-pet" / "images"),
        ("annotations.tar.gz", tmp_path / "pets" / "oxford-iiit-pet" / "annotations"),
    ):
        with tarfile.open(place / archive, "w:gz" if archive.endswith("gz") else "w") as tar:
            tar.add(folder, arcname=folder.name)
        packed[archive] = md5((place / archive).read_bytes()).hexdigest()

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """torchvision asks for the file twice and hangs up on the first answer."""

    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        facts = voc.DATASET_YEAR_DICT["2012"] | {"url": f"{at}/voc.tar", "md5": packed["voc.tar"]}
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2012", facts)
        names = ("images.tar.gz", "annotations.tar.gz")
        monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", [(f"{at}/{name}", packed[name]) for name in names])
        yield
        server.shutdown()


@pytest.mark.parametrize("source", [voc2012, oxford_pets])
@pytest.mark.usefixtures("served")
def test_a_set_is_downloaded_when_asked(tmp_path: Path, source: Callable) -> None:
    settings = {"size": [14, 17], "cache": str(tmp_path / "cache")}
    found = source(str(tmp_path / "root"), download=True, **settings)
    assert len(found.store) == 5
    again = source(str(tmp_path / "root"), **settings)
    assert torch.equal(samples_of(again), samples_of(found))


# pictures and training ---------------------------------------------------------------------------------------------


def test_pictures() -> None:
    task = make_task("shapes", *TINY)
    network = build_network(make_factory("relu"), task, 0)
    (figure,) = task.pictures(network).values()
    assert len(figure.axes) == 5 * 4
    assert [ax.get_title() for ax in figure.axes[::4]] == [f"test image {i}" for i in (0, 3, 7, 11, 15)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == list(shapes.CLASSES)
    data = samples_of(SimpleNamespace(store=task.store))[task.index["test"][3]]
    assert np.array_equal(figure.axes[4].images[0].get_array(), data[:3].permute(1, 2, 0))


def test_a_picture_shows_truth_prediction_and_mistakes() -> None:
    from matplotlib.colors import to_rgb

    labels = torch.zeros(1, 6, 6)
    labels[0, :3], labels[0, 5] = 1, VOID
    answer = torch.zeros(1, 6, 6)
    answer[0, :2] = 1
    task = make_segmentation(make_set(torch.full((1, 3, 6, 6), 255), labels, 2))
    (figure,) = task.pictures(Answer(2, answer)).values()
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    color = {text.get_text(): to_rgb(patch.get_facecolor()) for text, patch in
              zip(figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True)}  # fmt: skip
    expected = [color[name] for name in ("b", "b", "b", "a", "a", "void")]
    np.testing.assert_allclose(drawn[1][:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(drawn[2][:, 0], [color[name] for name in "bbaaaa"], rtol=1e-6)
    np.testing.assert_allclose(drawn[3][:, 0, 0], [1, 1, 0, 1, 1, 1])
    assert figure.axes[2].get_title() == "prediction, mIoU 66.7"  # 2/3 of either class


def test_a_cell_writes_pictures_and_classes(tmp_path: Path) -> None:
    record = train(tmp_path, make_factory("relu"), *TINY, "runner.epochs=2", task="shapes")
    assert record["status"] == "ok"
    folder = make_cell(tmp_path, *TINY, "runner.epochs=2", task="shapes").folder
    assert (folder / "pictures" / "predictions.png").stat().st_size > 10_000
    lines = (folder / "classes.csv").read_text().splitlines()
    assert lines[0] == "epoch,class,iou,dice,boundary_iou"
    assert {line.split(",")[1] for line in lines[1:]} <= set(shapes.CLASSES)
    assert 0 < record["primary"] <= 100
    assert record["test_miou"] == record["primary"]


def test_a_small_training_beats_the_majority_class() -> None:
    """A U-Net learns to tell bright patches from the dark around them, which a quarter of all pixels are."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 4, 4, generator=generator) < 0.25).long()
    labels = labels.repeat_interleave(5, 1).repeat_interleave(5, 2)
    images = 80 * labels[:, None] + torch.randint(120, (60, 3, 20, 20), generator=generator)
    train, val = torch.arange(60).split([40, 20])
    data = make_set(images, labels, 2, train=train, val=val)
    task = make_segmentation(data, network=partial(UNet, width=4), recipe={"batch_size": 8})
    network = build_network(make_factory("relu"), task, 0)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for epoch in range(8):
        network.train()
        for input, target in task.batches("train", seeding.generator(0, "data", epoch)):
            loss = task.loss(network(input), target, training=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    majority = 50 * (labels[val] == 0).double().mean().item()
    assert task.evaluate(network, "val")["miou"] > 90 > 2 * majority


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_resnet50"])
def test_networks_of_torchvision(tmp_path: Path, name: str) -> None:
    network = ("network=torchvision", f"network.name={name}")
    settings = (
        *TINY[:3],
        "task.data.size=32",
        "task.recipe.batch_size=2",
        "runner=smoke",
        "runner.limit_batches=1",
    )
    record = train(tmp_path, make_factory("swish"), *network, *settings, task="shapes")
    assert record["status"] == "ok"


def test_augmentation_from_the_configuration_keeps_masks_whole(tmp_path: Path) -> None:
    from conftest import config

    for name in ("camvid", "oxford_pets", "voc2012", "mask_folder"):
        augment = instantiate(config(f"task={name}").task.augment)
        samples = torch.randint(256, (4, 4, 200, 250), dtype=torch.uint8)
        samples[:, 3] = VOID * torch.randint(2, (4, 200, 250))
        out = augment(samples, torch.Generator().manual_seed(0))
        assert set(out[:, 3].unique().tolist()) == {0, VOID}
