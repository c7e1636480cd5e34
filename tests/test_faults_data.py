"""Data as people have them: whatever lies in the folders, no score is silently of something else."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROCESS, make_cell, make_task
from hydra.errors import InstantiationException
from PIL import Image
from torch import Tensor

from runners.errors import format_error
from tasks.data.cache import CacheEntry
from tasks.data.files import read_image
from tasks.data.folders import image_folder, imagenet_subset
from tasks.data.images import cifar10
from tasks.data.masks import mask_folder
from tasks.data.pairs import VOID, read_mask
from tasks.data.sets import ImageSet, MaskSet
from tasks.data.store import Stream, open_store

HEIGHT, WIDTH = 10, 12
LABELS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2  # of two classes


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def gray(values: np.ndarray, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(values.astype(dtype))


def make_masks(
    root: Path, *masks: Image.Image, splits: Sequence[str] = ("train", "test"), ending: str = "png"
) -> Path:
    """A folder with the same masks in every split."""
    for split in splits:
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, mask in enumerate(masks):
            noise(len(split) + 10 * i).save(root / split / "images" / f"{i}.png")
            mask.save(root / split / "labels" / f"{i}.{ending}")
    return root


def open_masks(root: Path, **kwargs: object) -> MaskSet:
    settings = {"class_names": None, "ignore_index": 255, "cache": str(root.parent / "cache")}
    return mask_folder(str(root), **(settings | kwargs))


def classes_of(data: MaskSet, position: int = 0) -> np.ndarray:
    return next(iter(data.store.batches([torch.tensor([position])])))[0, -1].numpy()


def make_classes(
    root: Path, splits: Sequence[str] = ("train", "test"), classes: Sequence[str] = "ab", count: int = 3
) -> Path:
    """A folder of classes; no two images are alike."""
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise(1000 * s + 100 * c + i).save(folder / f"{i}.png")
    return root


def open_classes(root: Path, **kwargs: object) -> ImageSet:
    settings = {"stored": 8, "in_memory": True, "cache": str(root.parent / "cache")}
    return image_folder(str(root), **(settings | kwargs))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [255, None])
@pytest.mark.parametrize("class_names", [None, ["ground", "road", "sky"]])
def test_masks_of_0_and_255_are_refused_with_both_readings(
    tmp_path: Path, ignore_index: int | None, class_names: list[str] | None
) -> None:
    root = make_masks(tmp_path / "set", gray(255 * LABELS))
    with pytest.raises(
        ValueError, match=r"only the values 0 and 255, and 255 .*values=\{0: background, 255: object\}$"
    ) as caught:
        open_masks(root, ignore_index=ignore_index, class_names=class_names)
    said = "as void (ignore_index=255) leaves one class" if ignore_index else "is no class"
    assert said in str(caught.value)


def test_values_say_what_numbers_mean(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "set", gray(255 * LABELS))
    data = open_masks(root, values={255: "object", 0: "background"})
    assert data.classes == ("background", "object")
    assert np.array_equal(classes_of(data), LABELS)
    assert data.pixels.tolist() == [[60, 60, 0]] * 2

    many = make_masks(tmp_path / "many", gray(np.array([[10, 20], [30, 255]]).repeat(5, 0).repeat(6, 1)))
    data = open_masks(many, values={10: "a", 20: "b", 30: "a"})  # 255 is still ignore_index
    assert data.classes == ("a", "b")
    assert classes_of(data)[::5, ::6].tolist() == [[0, 1], [0, VOID]]
    data = open_masks(many, values={10: "a", 20: "void", 30: "b", 255: "c"})
    assert data.classes == ("a", "b", "c")
    assert classes_of(data)[::5, ::6].tolist() == [[0, VOID], [1, 2]]
    with pytest.raises(
        ValueError, match=r"0\.png: value 20 is no class; must be one of 10, 30, and 255 for void"
    ):
        open_masks(many, values={10: "a", 30: "b"})


def test_no_training_on_one_class(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "set", gray(0 * LABELS))
    gray(LABELS).save(root / "test" / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"training masks have only one class, background; .* two classes"):
        open_masks(root)
    make_masks(tmp_path / "void", gray(3 + 252 * LABELS))
    with pytest.raises(ValueError, match=r"training masks have only one class, d, and void; .* two classes"):
        open_masks(tmp_path / "void", class_names=["a", "b", "c", "d"])


PALETTE = {"road": [128, 64, 128], "grass": [0, 128, 0]}


def in_colors(labels: np.ndarray, *colors: Sequence[int]) -> Image.Image:
    return Image.fromarray(np.array(colors, dtype=np.uint8)[labels])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_palette_says_what_colors_mean(tmp_path: Path, mode: str, in_memory: bool) -> None:
    mask = in_colors(LABELS, PALETTE["road"], PALETTE["grass"])
    mask = mask.quantize(4) if mode == "P" else mask.convert(mode)
    data = open_masks(make_masks(tmp_path / "set", mask), palette=PALETTE, in_memory=in_memory)
    assert data.classes == ("grass", "road")
    assert np.array_equal(classes_of(data), 1 - LABELS)
    assert data.pixels[0].tolist() == [60, 60, 0]


def test_colors_that_are_not_declared(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[0, :3] = 2
    mask = in_colors(labels, PALETTE["road"], PALETTE["grass"], [1, 2, 3])
    root = make_masks(tmp_path / "set", mask)
    with pytest.raises(ValueError, match=r"labels/0\.png: .* the color \[\d+, \d+, \d+\]; .*palette="):
        open_masks(root)
    with pytest.raises(ValueError, match=r"labels/0\.png: the color \[1, 2, 3\] is not in palette"):
        open_masks(root, palette=PALETTE)
    for void in ("others", [1, 2, 3]):
        data = open_masks(root, palette=PALETTE | {"void": void})
        assert data.classes == ("grass", "road")
        assert np.array_equal(classes_of(data), np.array([1, 0, VOID])[labels])


def with_palette(labels: np.ndarray, *colors: Sequence[int]) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([value for color in colors for value in color])
    return image


def test_palettes_that_differ(tmp_path: Path) -> None:
    black, red = [0, 0, 0], [200, 0, 0]
    one, other = with_palette(LABELS, black, red), with_palette(1 - LABELS, red, black)
    root = make_masks(tmp_path / "set", one, other)
    with pytest.raises(
        ValueError,
        match=r"different palettes: 0 is \[0, 0, 0\] in .*/0\.png and \[200, 0, 0\] in .*/1\.png; .*palette=",
    ):
        open_masks(root)
    data = open_masks(root, palette={"background": black, "object": red})
    assert np.array_equal(classes_of(data, 0), LABELS)
    assert np.array_equal(classes_of(data, 1), LABELS)
    # colors of numbers that do not occur may differ
    same = make_masks(tmp_path / "same", one, with_palette(LABELS, black, red, [9, 9, 9]))
    assert np.array_equal(classes_of(open_masks(same), 1), LABELS)


NUMBERS = {
    "16 bits": lambda: gray(LABELS, np.uint16),
    "32 bits": lambda: gray(LABELS, np.int32),
    "1 bit": lambda: Image.fromarray(LABELS == 1),
    "gray and opaque": lambda: Image.merge("LA", (gray(LABELS), gray(0 * LABELS + 255))),
    "gray stored as color": lambda: gray(LABELS).convert("RGB"),
    "gray stored as color with alpha": lambda: gray(LABELS).convert("RGBA"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_however_they_are_stored(tmp_path: Path, kind: str) -> None:
    mask = NUMBERS[kind]()
    mask.save(tmp_path / ("mask.tif" if kind == "32 bits" else "mask.png"))
    assert np.array_equal(read_mask(next(tmp_path.iterdir())), LABELS)


NO_NUMBERS = {
    "16 bits": (
        lambda: gray(65535 * LABELS, np.uint16),
        r"mode I;16 with the value 65535; .* <= 255",
    ),
    "transparent": (
        lambda: Image.merge("LA", (gray(LABELS), gray(255 * LABELS))),
        "a mask with transparent pixels",
    ),
    "print": (lambda: gray(LABELS).convert("RGB").convert("CMYK"), "a mask of mode CMYK"),
    "float": (lambda: gray(LABELS, np.float32), "a mask of mode F"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_masks_without_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    make, words = NO_NUMBERS[kind]
    make().save(path := tmp_path / "mask.tif")
    with pytest.raises(ValueError, match=f"^{path}: .*{words}"):
        read_mask(path)


def test_masks_saved_as_jpeg_are_refused(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "set", gray(255 * np.tri(HEIGHT, WIDTH)), ending="jpg")
    words = r"labels/0\.jpg: a mask saved as JPEG, .* values 0, [^)]*, \.\.\.\); save masks as PNG"
    with pytest.raises(ValueError, match=words):
        open_masks(root, values={0: "background", 255: "object"})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"values": {0: "a", 256: "b"}}, r"values=.*256.*: must be class names by numbers from 0 to 255"),
        ({"values": [0, 255]}, r"values=\[0, 255\]: must be class names by numbers"),
        ({"values": {0: "a", 255: "void"}}, r"values=\['a'\]: must be a list of 2 to 254"),
        ({"values": {0: "a", 1: "b"}, "class_names": ["a", "b"]}, "^class_names: must be null if values is set"),
        ({"palette": {"a": [0, 0, 0], "b": [0, 0, 300]}}, r"palette\.b=\[0, 0, 300\]: must be a list of 3"),
        ({"palette": {"a": [0, 0, 0], "b": "others"}}, r"palette\.b='others': must be a list of 3"),
        ({"palette": {"a": [0, 0, 0], "b": [0, 0, 0]}}, r"palette\.b=\[0, 0, 0\]: another class has this color"),
        ({"palette": "road"}, r"palette=road: must be colors by class names"),
        ({"background": [0, 0]}, r"background=\[0, 0\]: must be a list of 3 integers"),
        ({"max_left_out": 2}, r"max_left_out=2: must be a number >= 0 and <= 1"),
    ],
)  # fmt: skip
def test_declarations_that_cannot_be(tmp_path: Path, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_masks(make_masks(tmp_path / "set", gray(LABELS)), **kwargs)


def test_declarations_on_the_command_line(tmp_path: Path) -> None:
    root = make_masks(tmp_path / "set", *[gray(255 * LABELS)] * 4)
    given = (
        f"task.data.root={root}",
        f"task.data.cache={tmp_path}/cache",
        "task.augment=null",
        "task.val_fraction=0.3",
    )
    values = "task.data.values={0: background, 255: object}"
    task = make_task("mask_folder", *given, values)
    assert task.classes == ("background", "object")
    cell = make_cell(tmp_path, *given, values, task="mask_folder")
    assert cell.spec.facts["task.data.values.255"] == "object"
    palette = "task.data.palette={white: [255,255,255], black: [0,0,0]}"
    assert make_task("mask_folder", *given, palette).classes == ("black", "white")
    with pytest.raises(InstantiationException) as caught:
        make_task("mask_folder", *given)
    assert "only the values 0 and 255" in format_error(caught.value)


# orientation -------------------------------------------------------------------------------------------------------

# EXIF's number -> how the stored pixels have to be turned (CIPA DC-008, tag 274)
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: np.rot90,
}


def tagged(image: Image.Image, path: Path, number: int) -> Path:
    exif = Image.Exif()
    exif[274] = number
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("number", TURNED)
def test_images_are_as_viewers_show_them(tmp_path: Path, number: int, ending: str) -> None:
    noise(0).save(plain := tmp_path / f"plain.{ending}")
    stored = np.asarray(Image.open(plain).convert("RGB"))
    path = tagged(noise(0), tmp_path / f"tagged.{ending}", number)
    assert np.array_equal(np.asarray(read_image(path)), TURNED[number](stored))


@pytest.mark.parametrize("number", TURNED)
def test_masks_are_as_viewers_show_them(tmp_path: Path, number: int) -> None:
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    path = tagged(gray(labels), tmp_path / "mask.png", number)
    assert np.array_equal(read_mask(path), TURNED[number](labels))


def test_a_turned_picture_and_its_upright_mask_fit(tmp_path: Path, caplog) -> None:
    """As a phone stores what was taken upright: 12 x 10 pixels that are shown 10 x 12, whose mask was drawn as shown."""
    root = make_masks(tmp_path / "set", gray(LABELS.T))
    for split in ("train", "test"):
        tagged(noise(3), root / split / "images" / "0.png", 6)
    with caplog.at_level(logging.INFO, "actbench"):
        data = open_masks(root)
    assert data.store.shape == (4, WIDTH, HEIGHT)
    sample = next(iter(data.store.batches([torch.tensor([0])])))[0]
    assert np.array_equal(sample[:3].permute(1, 2, 0).numpy(), np.rot90(np.asarray(noise(3)), -1))
    assert np.array_equal(sample[3].numpy(), LABELS.T)
    assert data.survey.turned == 2
    assert "2 files are turned as their EXIF orientation says" in caplog.text


def test_orientation_is_part_of_the_fingerprint_where_there_is_any(tmp_path: Path) -> None:
    """That of other files is the hash that it has always been."""
    root = make_classes(tmp_path / "plain")

    def usual() -> str:
        digest = hashlib.sha256(b"stored 8, 6 to train\0a\0b")
        for split in ("train", "test"):
            for label, name in enumerate("ab"):
                for path in sorted((root / split / name).iterdir()):
                    content = path.read_bytes()
                    digest.update(f"{path.name}\0{label}\0{len(content)}\n".encode() + content)
        return digest.hexdigest()[:16]

    assert open_classes(root).fingerprint == usual()
    tagged(noise(0), root / "train" / "a" / "0.png", 3)
    found = open_classes(root)
    assert found.survey.turned == 1
    assert found.fingerprint != usual()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # said by Pillow, not by us
def test_damaged_metadata_do_not_matter(tmp_path: Path) -> None:
    noise(0).save(path := tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path).size == (WIDTH, HEIGHT)
    noise(0).save(path, exif=b"Exif\0\0nonsense")
    assert read_image(path).size == (WIDTH, HEIGHT)


def test_a_photograph_is_turned_and_composed(tmp_path: Path) -> None:
    pixels = np.asarray(noise(0))
    alpha = np.full((HEIGHT, WIDTH, 1), 255, dtype=np.uint8)
    alpha[:5] = 0
    path = tagged(Image.fromarray(np.concatenate([pixels, alpha], axis=2)), tmp_path / "me.png", 6)
    for options, ground in (((), 255), (("task.data.background=[0,0,0]",), 0)):
        task = make_task("photograph", f"task.data.file={path}", *options)
        expected = np.rot90(np.where(alpha > 0, pixels, ground), -1).reshape(-1, 3)
        targets = torch.empty(HEIGHT * WIDTH, 3)
        for split, part in (("train", task.data.train), ("val", task.data.val), ("test", task.data.test)):
            targets[task.data.index[split]] = part[1]
        assert np.array_equal((targets * 255).round().numpy(), expected)


# transparency ------------------------------------------------------------------------------------------------------

INK = np.zeros((HEIGHT, WIDTH), dtype=bool)
INK[2:5, 3:9] = True


def icon(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A black figure on a transparent ground that is black beneath, and how to save it."""
    black, ink = gray(0 * LABELS), gray(255 * INK)
    if mode in ("LA", "RGBA"):
        return Image.merge(mode, [black] * (len(mode) - 1) + [ink]), {}
    if mode == "P":
        return with_palette(INK.astype(int), [0, 0, 0], [0, 0, 0]), {"transparency": b"\x00\xff"}
    if mode == "I;16":
        return gray(np.where(INK, 0, 7), np.uint16), {"transparency": 7}
    if mode == "L":
        return gray(np.where(INK, 0, 7)), {"transparency": 7}
    return Image.fromarray(np.where(INK[..., None], 0, [1, 2, 3]).astype(np.uint8)), {
        "transparency": (1, 2, 3)
    }


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "I;16", "L", "RGB"])
def test_transparent_pixels_show_the_background(tmp_path: Path, mode: str) -> None:
    image, options = icon(mode)
    image.save(path := tmp_path / "icon.png", **options)
    assert np.array_equal(np.asarray(read_image(path))[..., 0], np.where(INK, 0, 255))
    turned = np.asarray(read_image(path, background=(10, 20, 30)))
    assert np.array_equal(turned, np.where(INK[..., None], 0, [10, 20, 30]))


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) * 2
    pixels = np.concatenate([np.asarray(noise(0)), alpha], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "image.png")
    expected = (alpha * pixels[..., :3] + (255 - alpha) * np.array([200, 100, 0])) / 255
    assert np.abs(np.asarray(read_image(path, background=(200, 100, 0))) - expected).max() <= 1


def test_the_background_is_declared_and_part_of_the_fingerprint(tmp_path: Path, caplog) -> None:
    root = make_classes(tmp_path / "set")
    icon("RGBA")[0].save(root / "train" / "a" / "0.png")
    with caplog.at_level(logging.INFO, "actbench"):
        white = open_classes(root)
    assert "1 images are transparent, composed over [255, 255, 255]" in caplog.text
    black = open_classes(root, background=[0, 0, 0])
    assert (white.store.samples[0].max(), black.store.samples[0].max()) == (255, 0)
    assert white.survey.transparent == black.survey.transparent == 1
    assert white.fingerprint != black.fingerprint
    # an alpha channel that hides nothing is none
    noise(0).convert("RGBA").save(root / "train" / "a" / "0.png")
    assert open_classes(root).survey.transparent == 0
    assert open_classes(root).fingerprint == open_classes(root, background=[0, 0, 0]).fingerprint


def test_pixels_of_other_ranges_are_refused(tmp_path: Path) -> None:
    for values, dtype in ((LABELS, np.float32), (100_000 * LABELS, np.int32), (-LABELS, np.int32)):
        gray(values, dtype).save(path := tmp_path / "image.tif")
        with pytest.raises(
            ValueError, match=rf"^{path}: not a readable image \(.*; must have 8 or 16 bits\)"
        ):
            read_image(path)


# folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "used"),
    [
        (("train", "valid"), ("train", "valid")),
        (("Train", "Test", "Valid"), ("Train", "Test")),
        (("training", "validation"), ("training", "validation")),
        (("TRAINING", "testing"), ("TRAINING", "testing")),
        (("data/train", "data/valid"), ("train", "valid")),
    ],
)
def test_names_of_splits(tmp_path: Path, caplog, splits: Sequence[str], used: Sequence[str]) -> None:
    root = make_classes(tmp_path / "set", splits)
    (root / "__MACOSX" / "train" / "a").mkdir(parents=True)
    data = open_classes(root)
    assert data.survey.splits == dict(zip(("train", "test"), used, strict=True))
    assert (len(data.train), len(data.test)) == (6, 6)
    assert data.store.samples.shape[0] == 12
    assert warned(caplog) == []


@pytest.mark.parametrize(
    "splits", [("training", "Validation", "testing"), ("set/Train", "set/valid", "set/Test")]
)
def test_names_of_splits_of_masks(tmp_path: Path, splits: Sequence[str]) -> None:
    root = make_masks(tmp_path / "set", gray(LABELS), splits=splits)
    for split in splits:
        (root / split / "images").rename(root / split / "Images")
        (root / split / "labels").rename(root / split / "masks")
    data = open_masks(root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1, 1, 1]


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "set", ("train", "val", "valid"))
    with pytest.raises(ValueError, match=r"val and valid in .*set mean the same"):
        open_classes(root)
    root = make_masks(tmp_path / "masks", gray(LABELS), splits=("train", "test", "Testing"))
    with pytest.raises(ValueError, match=r"Testing and test in .*masks mean the same"):
        open_masks(root)


def test_splits_without_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has valid and test but no training split"):
        open_classes(make_classes(tmp_path / "set", ("test", "valid")))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = open_classes(make_classes(tmp_path / "set", ("",), ("bus", "train", "test")))
    assert data.classes == ("bus", "test", "train")


def test_a_test_split_that_was_carved_is_said(tmp_path: Path, caplog) -> None:
    assert open_classes(make_classes(tmp_path / "set", ("train",))).test is None
    assert open_masks(make_masks(tmp_path / "masks", gray(LABELS), splits=("train",))).test is None
    lines = warned(caplog)
    assert len(lines) == 2
    assert all("no folder of a test split" in line and "it is a part of train" in line for line in lines)


FORMATS = ["jpeg", "JPG", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"]


def test_common_formats_and_folders_in_a_class_are_read(tmp_path: Path, caplog) -> None:
    root = make_classes(tmp_path / "set", count=1)
    for i, ending in enumerate(FORMATS):
        noise(500 + i).save(root / "train" / "a" / f"{i}.{ending}")
    (root / "train" / "b" / "more" / "deep").mkdir(parents=True)
    noise(600).save(root / "train" / "b" / "more" / "1.png")
    noise(601).save(root / "train" / "b" / "more" / "deep" / "1.png")
    for name in (".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "train" / "a" / name).write_text("junk")
    data = open_classes(root)
    assert data.labels[data.train].tolist() == [0] * (1 + len(FORMATS)) + [1] * 3
    assert warned(caplog) == []
    assert data.survey.left_out == {}


def test_more_than_a_tenth_left_out_is_an_error_unless_allowed(tmp_path: Path, caplog) -> None:
    root = make_classes(tmp_path / "set", count=5)
    (root / "train" / "a" / "0.xml").touch()  # what is no image does not count
    for i in range(2):
        (root / "train" / "a" / f"{i}.heic").touch()
    found = open_classes(root)
    assert found.survey.left_out == {
        "no images": ["train/a/0.xml"],
        "of other formats": ["train/a/0.heic", "train/a/1.heic"],
    }
    (line,) = warned(caplog)
    assert line.endswith("1 no images, such as train/a/0.xml; 2 of other formats, such as train/a/0.heic")
    noise(900).save(root / "train" / "loose.png")
    with pytest.raises(
        ValueError, match=r"3 of 23 files would be left out \(1 in no folder of a class, such as train/loose"
    ):
        open_classes(root)
    assert len(open_classes(root, max_left_out=0.2).labels) == 20

    masks = make_masks(tmp_path / "masks", gray(LABELS))
    (masks / "train" / "images" / "0.heic").touch()
    with pytest.raises(ValueError, match=r"1 of 5 files would be left out .*max_left_out"):
        open_masks(masks)
    assert len(open_masks(masks, max_left_out=1).store) == 2


def test_warnings_reach_the_terminal_once(tmp_path: Path, capsys) -> None:
    root = make_classes(tmp_path / "set", ("train",))
    for seed in range(2):  # two cells of a grid
        cell = make_cell(tmp_path / "outputs", f"seed={seed}", task="digits")
        with cell.locked():
            cell.mark_started({})
            open_classes(root)
        assert "no folder of a test split" in (cell.folder / "log.txt").read_text()
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(
        f"actbench: data: {root}: no folder of a test split (test, testing, val, valid, validation)"
    )
    assert printed.out == ""


def test_copies_of_training_images_are_counted(tmp_path: Path, caplog, monkeypatch) -> None:
    root = make_classes(tmp_path / "set", count=10)
    for i in range(3):
        content = (root / "train" / "a" / f"{i}.png").read_bytes()
        (root / "test" / "b" / f"copy{i}.png").write_bytes(content)
    given = (f"task.data.root={root}", f"task.data.cache={tmp_path}/cache", "task.data.stored=8")
    given = (*given, "task.augment=null", "task.eval_crop=null", "task.val_fraction=0.1")
    task = make_task("image_folder", *given)
    trained = set(task.index["train"].tolist())
    assert task.copies["test"] == len(trained & {0, 1, 2}) > 0
    assert warned(caplog) == [
        f"data: {task.copies['test']} of 23 test images are, byte for byte, also training images"
    ]
    originals = task.data.survey.originals
    assert originals[-3:].tolist() == [0, 1, 2]
    assert torch.equal(originals[:-3], torch.arange(40))

    # not looked for again, until a file changes
    monkeypatch.setattr("tasks.data.survey._traits", None)
    assert make_task("image_folder", *given).copies == task.copies

    monkeypatch.undo()
    masks = make_masks(tmp_path / "masks", *[gray(LABELS)] * 4)
    (masks / "test" / "images" / "2.png").write_bytes((masks / "train" / "images" / "1.png").read_bytes())
    given = (
        f"task.data.root={masks}",
        f"task.data.cache={tmp_path}/cache",
        "task.augment=null",
        "task.val_fraction=0.3",
    )
    caplog.clear()
    task = make_task("mask_folder", *given)
    expected = int(1 in task.index["train"].tolist())
    assert task.copies["test"] == expected
    assert task.data.survey.originals.tolist() == [0, 1, 2, 3, 4, 5, 1, 7]


NFC, NFD = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))


def test_spellings_of_a_class_are_one_class(tmp_path: Path, caplog) -> None:
    root = make_classes(tmp_path / "across", ("train",), (NFC, "b"))
    make_classes(root, ("test",), (NFD, "b"))
    data = open_classes(root)
    assert data.classes == ("b", NFC)
    assert data.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert warned(caplog) == []

    within = make_classes(tmp_path / "within", ("train", "test"), (NFC, NFD, "b"))
    data = open_classes(within)
    assert data.classes == ("b", NFC)
    assert data.labels[data.train].tolist() == [0] * 3 + [1] * 6
    assert [f"2 folders are named {NFC}" in line for line in warned(caplog)] == [True, True]

    masks = make_masks(tmp_path / "masks", gray(LABELS))
    (masks / "train" / "images" / "0.png").rename(masks / "train" / "images" / f"{NFC}.png")
    (masks / "train" / "labels" / "0.png").rename(masks / "train" / "labels" / f"{NFD}.png")
    assert len(open_masks(masks).store) == 2


@pytest.mark.parametrize("ending", ["gif", "tif"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, ending: str, caplog) -> None:
    root = make_classes(tmp_path / "set")
    frames = [noise(i).quantize(64).convert("RGB") for i in (70, 71)]
    frames[0].save(root / "train" / "a" / f"x.{ending}", save_all=True, append_images=frames[1:])
    data = open_classes(root)
    assert warned(caplog) == ["data: 1 images have several frames or pages; the first is used"]
    assert data.survey.sequences == 1
    found = np.asarray(read_image(root / "train" / "a" / f"x.{ending}"))
    assert (
        np.abs(found.astype(int) - np.asarray(frames[0])).mean()
        < 1
        < np.abs(found - np.asarray(frames[1]).astype(int)).mean()
    )


@pytest.mark.parametrize("source", ["image_folder", "cifar10", "root", "file"])
def test_names_that_are_not_utf8(tmp_path: Path, source: str) -> None:
    bad = "caf\udce9"
    root = make_classes(
        tmp_path / (bad if source == "root" else "set"), classes=("a", "b" if source == "root" else bad)
    )
    get = partial(cifar10) if source == "cifar10" else partial(image_folder, stored=8)
    if source == "file":  # of a file it does not matter
        root = make_classes(tmp_path / "files")
        (root / "train" / "a" / "0.png").rename(root / "train" / "a" / f"{bad}.png")
        (root / "train" / "a" / f"{bad}.txt").touch()
        assert len(get(str(root), cache=str(tmp_path / "cache")).labels) == 12
        return
    where = r"root=.*caf\\xe9: the name is" if source == "root" else r"the folder caf\\xe9 in .*train is"
    with pytest.raises(ValueError, match=where + " not UTF-8; rename") as caught:
        get(str(root), cache=str(tmp_path / "cache"))
    str(caught.value).encode()
    assert not (tmp_path / "cache").exists()


def test_chosen_classes_are_found_in_all_splits(tmp_path: Path) -> None:
    wnids = ("n01440764", "n02102040")
    root = make_classes(tmp_path / "set", ("train", "val"), wnids)
    (root / "train" / wnids[0] / "notes.txt").touch()
    data = imagenet_subset(str(root), classes=2, stored=8, cache=str(tmp_path / "cache"))
    assert (len(data.train), len(data.test)) == (6, 6)
    assert data.survey.left_out == {"no images": [f"train/{wnids[0]}/notes.txt"]}


# workers -----------------------------------------------------------------------------------------------------------


class Dies:
    """A reader whose process is ended by a signal, as that of a worker is when memory or /dev/shm is full."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, position: int) -> np.ndarray:
        if position == 70:
            os.kill(os.getpid(), self.number)
        return np.zeros((3, 4, 4), dtype=np.uint8)


def test_a_worker_that_died_ends_the_run_with_a_line() -> None:
    """As by writing to a full /dev/shm. It takes five seconds: so often does DataLoader look at its workers."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = Stream(Dies(signal.SIGBUS), 400, (3, 4, 4)).batches(torch.arange(400).split(20))
    words = r"worker .*/dev/shm has .* MB free: .*in_memory=true"
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before  # else it would raise anywhere in the training
    with pytest.raises(ValueError, match=words) as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_a_full_dev_shm_is_said(monkeypatch, tmp_path: Path) -> None:
    def full(self: Tensor) -> Tensor:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    monkeypatch.setattr(Tensor, "share_memory_", full)
    read = Dies(0)
    with pytest.raises(ValueError, match=r"No space left on device \(28\)\); /dev/shm has .*in_memory=true"):
        list(Stream(read, 60, (3, 4, 4)).batches(torch.arange(60).split(20)))
    # what it advises needs none
    kept = open_store(read, 60, (3, 4, 4), in_memory=True, cache=CacheEntry(tmp_path, "kept"))
    assert kept.samples.shape == (60, 3, 4, 4)


def test_a_cell_whose_worker_dies(tmp_path: Path) -> None:
    """The real command line, streaming: the files have been read once, then a worker is killed."""
    root = make_classes(tmp_path / "set", count=16)
    program = f"""
import os, runpy, signal, sys
from torch.utils.data import get_worker_info
from tasks.data.files import ReadImages
from tasks.data import store
original = ReadImages.__call__
def dying(self, position):
    if isinstance(sys._getframe(1).f_locals.get("self"), store._Batches) and position > 20 and get_worker_info():
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, position)
ReadImages.__call__ = dying
sys.argv = ["run.py", "outputs={tmp_path / "outputs"}", "task=image_folder", "task.data.root={root}", "runner=smoke",
    "task.data.cache={tmp_path / "cache"}", "network=small_cnn", "task.data.stored=10", "task.eval_crop.size=10",
    "task.data.in_memory=false", "runner.pictures=false"]
runpy.run_path("run.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], **(PROCESS | {"timeout": 100}))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("actbench: a worker that reads the images failed")
