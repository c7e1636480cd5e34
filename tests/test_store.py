"""Image files, folders of them, and the two ways to keep samples, which must give the same bytes."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import forked
import joblib
import numpy as np
import pytest
import torch
from conftest import PROCESS, ROOT
from PIL import Image
from test_data import WNIDS, make_folders, usual

from tasks.data import store
from tasks.data.cache import CacheEntry
from tasks.data.files import ReadImages, read_image
from tasks.data.folders import image_folder, imagenet_subset, imagenette
from tasks.data.store import Memory, Stream, available_memory, mean_std, open_store

# files ---------------------------------------------------------------------------------------------------------

GRAY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
COLOUR = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return np.rint(share * pixels + (1 - share) * 255)


def palette(**transparency: bytes) -> tuple[Image.Image, np.ndarray]:
    image = Image.new("P", (20, 12))
    image.putdata((GRAY // 60).flatten().tolist())
    colors = np.array([[255, 0, 0], [0, 128, 0], [3, 4, 5], [250, 251, 252]], dtype=np.uint8)
    image.putpalette(colors.flatten().tolist())
    image.info.update(transparency)
    return image, colors[GRAY // 60]


def sixteen_bits() -> tuple[Image.Image, np.ndarray]:
    values = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    return Image.fromarray(values), np.repeat(np.rint(values / 257).astype(np.uint8)[:, :, None], 3, axis=2)


KINDS = {
    "color": lambda: (Image.fromarray(COLOUR), COLOUR),
    "gray": lambda: (Image.fromarray(GRAY), np.repeat(GRAY[:, :, None], 3, axis=2)),
    "black and white": lambda: (
        Image.fromarray(GRAY > 99),
        np.repeat(np.where(GRAY > 99, 255, 0)[:, :, None], 3, axis=2),
    ),
    "gray, 16 bits": sixteen_bits,
    "gray and transparency": lambda: (
        Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(255 - GRAY))),
        over_white(np.repeat(GRAY[:, :, None], 3, axis=2), 255 - GRAY),
    ),
    "color and transparency": lambda: (
        Image.fromarray(np.concatenate([COLOUR, GRAY[:, :, None]], axis=2)),
        over_white(COLOUR, GRAY),
    ),
    "palette": palette,
    "palette and transparency": lambda: (
        palette(transparency=b"\x00\x80\xff\x40")[0],
        over_white(palette()[1], np.array([0, 128, 255, 64])[GRAY // 60]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_8_bit_color(kind: str, tmp_path: Path) -> None:
    image, expected = KINDS[kind]()
    image.save(tmp_path / "image.png")
    found = read_image(tmp_path / "image.png")
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= (
        "transparency" in kind
    )  # rounded otherwise


def test_a_print_becomes_color(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "red.jpg")).astype(int) - [255, 0, 0]).max() <= 5


@pytest.mark.parametrize("name", ["half.jpg", "half.png", "text.jpg", "empty.png"])
def test_an_unreadable_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if name.startswith("half"):
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("no image" if name.startswith("text") else "")
    with pytest.raises(ValueError, match=f"^{path}: not a readable image"):
        read_image(path)


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (37, 101), (32, 32), (20, 25)])
def test_images_are_stored_as_torchvision_resizes_and_crops(size: tuple[int, int], tmp_path: Path) -> None:
    folder = make_folders(tmp_path, {"train": 2}, ["a"], size) / "train" / "a"
    read = ReadImages(sorted(folder.iterdir()), stored=32)
    for i, path in enumerate(read.paths):
        assert np.array_equal(read(i), usual(path, 32))
    if min(size) < 32:
        with pytest.raises(ValueError, match=r"0\.JPEG: 20 x 25 is smaller than stored=32"):
            ReadImages(read.paths, stored=32, enlarge=False)(0)


def test_large_photographs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path) -> None:
    """Which changes their pixels a little."""
    path = make_folders(tmp_path, {"train": 1}, ["a"], (600, 500)) / "train" / "a" / "0.JPEG"
    assert read_image(path, stored=31).size == (75, 63)  # 500 / 8 is twice 31
    assert read_image(path, stored=160).size == (600, 500)
    error = np.abs(ReadImages([path], stored=32)(0).astype(int) - usual(path, 32))
    assert error.mean() < 1


# stores --------------------------------------------------------------------------------------------------------


class ReadNumbers:
    """Samples that tell their position; one of them cannot be read."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __call__(self, position: int) -> np.ndarray:
        if position == self.broken:
            raise ValueError(f"number {position}: not readable")
        return np.full((2, 3, 4), position, dtype=np.uint8)


def both(tmp_path: Path, count: int = 150) -> list[store.Store]:
    return [
        open_store(
            ReadNumbers(),
            count,
            (2, 3, 4),
            in_memory=in_memory,
            cache=CacheEntry(tmp_path / "cache", "numbers"),
        )
        for in_memory in (True, False)
    ]


def test_both_stores_give_the_same_batches(tmp_path: Path) -> None:
    memory, stream = both(tmp_path)
    assert isinstance(memory, Memory)
    assert isinstance(stream, Stream)
    assert (len(memory), memory.shape) == (len(stream), stream.shape) == (150, (2, 3, 4))
    chunks = torch.randperm(150, generator=torch.Generator().manual_seed(0)).split(40)
    for chunk, a, b in zip(chunks, memory.batches(chunks), stream.batches(chunks), strict=True):
        assert a.dtype == b.dtype == torch.uint8
        assert torch.equal(a, b)
        assert a[:, 1, 2, 3].tolist() == chunk.tolist()
    assert list(stream.batches([])) == []


def test_batches_may_be_left_early_and_written_to(tmp_path: Path) -> None:
    chunks = torch.arange(150).split(10)
    for kind in both(tmp_path):
        first = next(iter(kind.batches(chunks)))
        first.zero_()
        assert next(iter(kind.batches(chunks)))[9].unique().tolist() == [9]


def test_streaming_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    list(Stream(ReadNumbers(), 8, (2, 3, 4)).batches(torch.arange(8).split(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_in_a_worker_is_as_short_as_outside(tmp_path: Path) -> None:
    stream = Stream(ReadNumbers(broken=70), 150, (2, 3, 4))
    batches = stream.batches(torch.arange(150).split(60))
    assert len(next(batches)) == 60
    with pytest.raises(ValueError, match=r"^number 70: not readable$"):
        next(batches)
    with pytest.raises(ValueError, match=r"^number 70: not readable$"):
        open_store(ReadNumbers(70), 150, (2, 3, 4), in_memory=True, cache=CacheEntry(tmp_path, "broken"))
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("available", "kind", "words"), [(7200, Memory, "kept in memory"), (7199, Stream, "streamed")]
)
def test_a_set_that_fits_in_half_of_the_memory_is_kept_there(
    available: int, kind: type, words: str, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(store, "available_memory", lambda: available)
    with caplog.at_level(logging.INFO, "actbench"):
        opened = open_store(
            ReadNumbers(), 150, (2, 3, 4), in_memory="auto", cache=CacheEntry(tmp_path, "numbers")
        )
    assert isinstance(opened, kind)
    assert f"150 samples of 2 x 3 x 4, 0.00 GB decoded, 0.00 GB available: {words}" in caplog.text
    with pytest.raises(ValueError, match=r"in_memory='maybe': must be one of auto, true, false"):
        open_store(ReadNumbers(), 150, (2, 3, 4), in_memory="maybe", cache=CacheEntry(tmp_path, "numbers"))


@pytest.mark.parametrize("word", ["auto", "Auto", "AUTO"])
def test_words_may_be_capital(word: str, tmp_path: Path) -> None:
    opened = open_store(ReadNumbers(), 150, (2, 3, 4), in_memory=word, cache=CacheEntry(tmp_path, "numbers"))
    assert isinstance(opened, Memory)
    with pytest.raises(ValueError, match=r"in_memory='none': must be one of auto, true, false"):
        open_store(ReadNumbers(), 150, (2, 3, 4), in_memory=None, cache=CacheEntry(tmp_path, "numbers"))


def test_streamed_samples_are_checked_once(tmp_path: Path, monkeypatch) -> None:
    settings = {"in_memory": False, "cache": CacheEntry(tmp_path, "numbers")}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^number 149: not readable$"):
            open_store(ReadNumbers(149), 150, (2, 3, 4), **settings)
    open_store(ReadNumbers(), 150, (2, 3, 4), **settings)
    monkeypatch.setattr(store, "_check", None)  # must not be asked again
    open_store(ReadNumbers(), 150, (2, 3, 4), **settings)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, 128 + 150 * 2 * 3 * 4)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ValueError, match=r"^cache=.*\(No space left on device\)$"):
        open_store(ReadNumbers(), 150, (2, 3, 4), in_memory=True, cache=CacheEntry(tmp_path, "numbers"))


def open_tree(root: Path, cache: Path, in_memory: bool) -> int:
    return len(image_folder(str(root), stored=32, in_memory=in_memory, cache=str(cache)).labels)


def test_stores_open_in_a_worker_of_joblib(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "tree", {".": 3}, "ab")
    jobs = [joblib.delayed(open_tree)(root, tmp_path / "cache", kind) for kind in (True, False)]
    assert joblib.Parallel(n_jobs=2)(jobs) == [6, 6]


def test_available_memory_is_the_kernels_and_the_containers(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  3000 kB\nMemFree: 100 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(store, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(store, "CGROUP", tmp_path)
    assert available_memory() == 2000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, expected in (("max", 2000 * 1024), ("5000", 4000), ("9000000", 2000 * 1024)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert available_memory() == expected
    monkeypatch.setattr(store, "MEMINFO", tmp_path / "none")
    assert available_memory() > 1e6


def test_statistics_are_those_of_the_chosen_samples_and_planes(tmp_path: Path, monkeypatch) -> None:
    samples = torch.randint(
        0, 256, (200, 4, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    samples[:, 2] = 77
    index = torch.randperm(200)[:150].sort().values
    mean, std = mean_std(Memory(samples), index, 3)
    chosen = samples[index, :3].double()
    assert torch.allclose(mean.double(), chosen.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(std[:2].double(), chosen[:, :2].std((0, 2, 3), correction=0), rtol=1e-6)
    assert std[2] == 1

    kept = mean_std(Memory(samples), index, 3, CacheEntry(tmp_path, "key"))
    monkeypatch.setattr(store, "_moments", None)  # must not be asked again
    for again in (kept, mean_std(Memory(samples), index, 3, CacheEntry(tmp_path, "key"))):
        assert torch.equal(again[0], mean)
        assert torch.equal(again[1], std)
    for other in ((index[1:], 3, "key"), (index, 2, "key"), (index, 3, "other")):
        with pytest.raises(TypeError):
            mean_std(Memory(samples), *other[:2], CacheEntry(tmp_path, other[2]))


def test_decoding_takes_little_more_memory_than_its_result(tmp_path: Path) -> None:
    """Of the process and its workers together, pages that they share counted once."""
    program = """
import _here
import os, sys, threading, time
from pathlib import Path
import numpy as np, torch
from tasks.data.store import Stream, decode
from bench_data import Peak

def read(position):
    return np.full((3, 96, 96), position % 251, dtype=np.uint8)

count = 8000  # 221 MB
stream = Stream(read, count, (3, 96, 96))
decode(Stream(read, 64, (3, 96, 96)), Path(sys.argv[1]) / "warm.npy")
with Peak() as peak:
    decode(stream, Path(sys.argv[1]) / "samples.npy")
print(peak.growth / (count * 3 * 96 * 96))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], **(PROCESS | {"cwd": Path("scripts").resolve()})
    )
    assert run.returncode == 0, run.stderr
    samples = np.load(tmp_path / "samples.npy", mmap_mode="r")
    assert samples[[0, 250, 251, 7999], 95, 95, 2].tolist() == [0, 250, 0, 7999 % 251]
    assert float(run.stdout) < 1.25  # the workers' own memory is large beside so small a tensor


# folders -------------------------------------------------------------------------------------------------------


def subset(root: Path, classes: int | str | Sequence[str], tmp_path: Path) -> object:
    return imagenet_subset(str(root), classes=classes, stored=32, cache=str(tmp_path / "cache"))


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "imagenet", {"train": 3, "val": 2}, [*WNIDS, "n09999999"])


def test_classes_of_imagenet_by_number_list_and_file(imagenet: Path, tmp_path: Path) -> None:
    some = subset(imagenet, 2, tmp_path)
    assert some.classes == WNIDS[:2]
    assert some.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert (some.train.tolist(), some.test.tolist()) == (list(range(6)), list(range(6, 10)))

    listed = subset(imagenet, [WNIDS[2], WNIDS[0]], tmp_path)  # in any order
    assert listed.classes == (WNIDS[0], WNIDS[2])
    expected = usual(imagenet / "val" / WNIDS[2] / "1.JPEG", 32)
    assert np.array_equal(listed.store.samples[-1].numpy(), expected)

    path = tmp_path / "classes.txt"
    path.write_text(f"# two of them\n{WNIDS[2]} cassette player  # with a name\n\n  {WNIDS[0]}\n")
    of_file = subset(imagenet, str(path), tmp_path)
    assert of_file.classes == (WNIDS[0], "cassette player")
    assert torch.equal(of_file.store.samples, listed.store.samples)
    assert of_file.fingerprint == listed.fingerprint != some.fingerprint


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (5, r"^classes=5: must be an integer >= 2 and <= 4"),
        (1, r"classes=1: must be an integer >= 2"),
        ([WNIDS[0], "n01234567"], r"classes: no folder n01234567 in .*train, which has 4, from n01440764 to n09999999"),
        ([WNIDS[0], "tench"], r"classes: tench is no wnid, which is n and eight digits"),
        ([WNIDS[0]], "two classes or more"),
        ("{tmp}/none.txt", r"none\.txt: no such file; must be a file, a list of wnids or a number"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_are_said(classes: object, words: str, imagenet: Path, tmp_path: Path) -> None:
    classes = classes.format(tmp=tmp_path) if isinstance(classes, str) else classes
    with pytest.raises(ValueError, match=words):
        subset(imagenet, classes, tmp_path)


def test_any_folder_of_classes(tmp_path: Path) -> None:
    def found(root: Path) -> tuple:
        images = image_folder(str(root), stored=32, cache=str(tmp_path / "cache"))
        return images.classes, len(images.train), None if images.test is None else len(images.test)

    make_folders(tmp_path / "one", {".": 5}, "ab")
    make_folders(tmp_path / "one", {".": 1}, [".hidden"])
    make_folders(tmp_path / "val", {"train": 3, "val": 2}, "ab")
    make_folders(tmp_path / "all", {"train": 3, "val": 2, "test": 4}, "ab")
    make_folders(tmp_path / "train", {"train": 3}, "ab")
    assert found(tmp_path / "one") == (("a", "b"), 10, None)
    assert found(tmp_path / "val") == (("a", "b"), 6, 4)
    assert found(tmp_path / "all") == (("a", "b"), 6, 8)
    assert found(tmp_path / "train") == (("a", "b"), 6, None)


def test_hidden_and_other_files_do_not_count(tmp_path: Path, caplog) -> None:
    root = make_folders(tmp_path / "tree", {"train": 2, "test": 1}, "ab")
    for name in ("._0.jpg", "x.heic", "notes.txt"):
        (root / "train" / "a" / name).touch()
    (root / "test" / "b" / "more").mkdir()
    found = image_folder(str(root), stored=32, max_left_out=0.2, cache=str(tmp_path / "cache"))
    assert len(found.labels) == 6
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.endswith(
        "tree: files left out: 1 no images, such as train/a/notes.txt; 1 of other formats, such as train/a/x.heic"
    )


def test_images_that_were_enlarged_are_not_found_when_they_may_not_be(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "small", {".": 2}, "ab", (20, 40))
    image_folder(str(root), stored=32, enlarge=True, cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"smaller than stored=32"):
        image_folder(str(root), stored=32, cache=str(tmp_path / "cache"))


@pytest.mark.parametrize("row", ["decode", "camvid"])
def test_the_benchmark_makes_nothing_in_a_users_folder(row: str, tmp_path: Path) -> None:
    option = "--camvid" if row == "camvid" else "--imagenette"
    (tmp_path / "empty").mkdir()
    for name, words in (("none", "no such folder"), ("empty", "no images in train/")):
        command = ["bench_data.py", row, option, tmp_path / name]
        run = forked.run(command, cwd=ROOT / "scripts", env=PROCESS["env"])
        assert run.returncode == 1
        assert run.stderr.startswith("actbench: ")
        assert words in run.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_trees_that_cannot_be_are_said(tmp_path: Path) -> None:
    def said(root: Path, words: str, get: object = image_folder) -> None:
        with pytest.raises(ValueError, match=words):
            get(str(root), stored=32, cache=str(tmp_path / "cache"))

    said(tmp_path / "none", "none: no such folder; must contain a folder for each class")
    (tmp_path / "empty").mkdir()
    said(tmp_path / "empty", "no folder of a class in .*empty")
    (make_folders(tmp_path / "class", {"train": 2, "val": 1}, "ab") / "train" / "c").mkdir()
    (tmp_path / "class" / "val" / "c").mkdir()
    said(tmp_path / "class", r"no images in train/c/ \(must end in \.jpg, \.jpeg, .* \.ppm\)")
    make_folders(tmp_path / "differ", {"train": 2}, "abc")
    make_folders(tmp_path / "differ", {"test": 2}, "acd")
    said(tmp_path / "differ", "classes differ: only in train: b; only in test: d")
    said(
        make_folders(tmp_path / "small", {".": 2}, "ab", (20, 40)),
        "20 x 40 is smaller than stored=32",
    )
    make_folders(tmp_path / "foreign", {"train": 2, "val": 2}, ["n01440764", "n09999999"])
    said(tmp_path / "foreign", "n09999999 is none of Imagenette's ten classes", imagenette)
    make_folders(tmp_path / "flat", {"train": 2}, WNIDS)
    make_folders(tmp_path / "flat", {"val": 2}, WNIDS[:2])
    with pytest.raises(ValueError, match=f"flat: has no folder val/{WNIDS[2]}/"):
        subset(tmp_path / "flat", 3, tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_that_cannot_be_read_is_named_in_both_modes(in_memory: bool, tmp_path: Path) -> None:
    root = make_folders(tmp_path / "tree", {".": 3}, "ab")
    bad = root / "b" / "1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])

    def read_all() -> None:
        found = image_folder(str(root), stored=32, in_memory=in_memory, cache=str(tmp_path / "cache"))
        list(found.store.batches([torch.arange(6)]))

    with pytest.raises(ValueError, match=f"^{bad}: not a readable image"):
        read_all()
