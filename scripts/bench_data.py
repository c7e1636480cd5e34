"""Throughput of the data pipelines, relative to torchvision's usual ones on the same cores.

python scripts/bench_data.py                                    # all rows, on generated images: about ten minutes
python scripts/bench_data.py decode imagenette --imagenette F   # some rows, on your images
    rows: decode, cifar10, imagenette, camvid, wait; folders: --cifar10, --imagenette, --camvid, as task.data.root

Times of one machine mean nothing elsewhere, so speeds are ratios whose two sides were measured alternately within one
run: the median over the rounds, in brackets the quartiles. torchvision's pipeline has a worker process for each core.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from _bench import ratio
from bench_loop import BareLoop
from torch.utils.data import DataLoader, Dataset

from runners import seeding
from runners.compose import choose
from tasks.data.files import ReadImages
from tasks.data.folders import IMAGENETTE
from tasks.data.store import Stream, decode
from tasks.data.tree import IMAGES

ROUNDS = 7
DECODED = 13_000  # images, about as many as Imagenette has
CORES = os.cpu_count() or 1


def main() -> None:
    """Measure the chosen rows and print them."""
    rows: dict[str, Callable[[Path, Path], Iterator[str]]] = {
        "decode": first_decode,
        "cifar10": cifar10,
        "imagenette": imagenette,
        "camvid": camvid,
        "wait": waiting,
    }
    sources = {"decode": "imagenette", "wait": "cifar10"}
    generators = {"cifar10": make_cifar10, "imagenette": make_imagenette, "camvid": make_camvid}
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("rows", nargs="*")
    for name in generators:
        parser.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.rows) - rows.keys():
        sys.exit(f"actbench: {', '.join(sorted(unknown))}: must be one of {', '.join(rows)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {CORES} workers")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        for row in arguments.rows or rows:
            source = sources.get(row, row)
            if user_folder := getattr(arguments, source):
                folder = checked_folder(source, user_folder)
            elif not (folder := temporary / source).exists():
                generators[source](folder)
            for line in rows[row](folder, temporary / "cache"):
                print(line, flush=True)


def checked_folder(source: str, folder: Path) -> Path:
    """Return the folder with the images in ``folder``, which is never written to; exit if there are none."""
    folder = folder.expanduser()
    if not folder.is_dir():
        sys.exit(f"actbench: --{source} {folder}: no such folder")
    if source == "imagenette" and not (folder / "train").is_dir():
        folder /= "imagenette2-160"
    packed = source == "cifar10" and any(folder.glob("cifar-10-batches-py/data_batch_*"))
    images = (path for path in (folder / "train").rglob("*") if path.suffix.lower() in IMAGES)
    if not packed and next(images, None) is None:
        sys.exit(f"actbench: --{source} {folder}: no images in train/")
    return folder


def first_decode(folder: Path, cache: Path) -> Iterator[str]:
    """Yield speed, number of busy cores and peak memory of decoding files to one array."""
    paths = sorted(path for path in (folder / "train").glob("*/[!.]*") if path.suffix.lower() in IMAGES)
    paths = (paths * (DECODED // len(paths) + 1))[:DECODED]
    read = ReadImages(paths, stored=160)
    cache.mkdir(exist_ok=True)
    size = len(paths) * int(np.prod(read.shape))
    with Peak() as peak:
        before, since = os.times(), time.perf_counter()
        decode(Stream(read, len(paths), read.shape), cache / "samples.npy")
        seconds, after = time.perf_counter() - since, os.times()
    worked = sum(after[:4]) - sum(before[:4])  # of this process and its workers, in user and system mode
    (cache / "samples.npy").unlink()
    yield (
        f"first decode of {len(paths):,} images: {len(paths) / seconds:,.0f} images/s, "
        f"cores at work {worked / seconds:.2f} of {CORES}, "
        f"peak memory {peak.growth / size:.3f} of the result's size"
    )


def cifar10(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the throughput on CIFAR-10: shift and flip of images in memory."""
    from PIL import Image
    from torchvision import transforms

    task = make_task("cifar10", folder, cache)
    index = task.index["train"]
    images, labels = task.store.samples[index].permute(0, 2, 3, 1).contiguous().numpy(), task.labels[index]
    usual = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
        ]
    )

    class Usual(Dataset):
        """torchvision.datasets.CIFAR10 without its files."""

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return usual(Image.fromarray(images[index])), int(labels[index])

    yield compare("CIFAR-10", task, Usual(), 60)


def imagenette(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the throughput on Imagenette at 128: crops of stored images, relative to decoding files every time."""
    from torchvision import datasets, transforms

    task = make_task("imagenette", folder, cache)
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(128, (0.35, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    yield compare("Imagenette at 128", task, datasets.ImageFolder(str(folder / "train"), usual), 30)


def camvid(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the throughput on CamVid: image and mask in one."""
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    task = make_task("camvid", folder, cache)
    crop = task.augment.steps[0]
    usual = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(crop.size, crop.scale, crop.ratio),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize((0.41, 0.43, 0.43), (0.3, 0.3, 0.3)),
        ]
    )
    files = [sorted((folder / "train" / kind).iterdir()) for kind in ("images", "labels")]

    class Usual(Dataset):
        """As in torchvision's reference scripts for segmentation: files, read every time."""

        def __len__(self) -> int:
            return len(files[0])

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = (Image.open(paths[index]) for paths in files)
            return usual(image.convert("RGB"), tv_tensors.Mask(mask))

    yield compare("CamVid", task, Usual(), 60)


def waiting(folder: Path, cache: Path) -> Iterator[str]:
    """Yield the share of a training step that waits for its batch."""
    loop = BareLoop(make_task("cifar10", folder, cache), steps=8)
    shares = []
    for _ in range(ROUNDS):
        loop.epoch()
        shares.append(100 * loop.waited[-1] / loop.seconds[-1])
    low, middle, high = statistics.quantiles(shares, n=4)
    yield f"waiting for data, ResNet-20 on CIFAR-10: {middle:.2f} % of a step [{low:.2f}, {high:.2f}]"


def compare(name: str, task: Any, usual: Dataset, batches: int) -> str:
    """Return one row: images per second of the task's batches and of a DataLoader of ``usual``, measured alternately."""
    loader = DataLoader(
        usual,
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=CORES,
        drop_last=True,
        persistent_workers=True,
    )
    # No second epoch is begun, as its start takes time.
    batches = min(batches, len(loader) - 1, task.steps_per_epoch - 1)
    if batches < 1:
        sys.exit(f"actbench: {name}: must have at least two batches of {task.batch_size} training images")

    def seconds_per_image(stream: Iterator[Any]) -> float:
        next(stream)  # workers start, pages are touched
        start = time.perf_counter()
        images = sum(len(next(stream)[0]) for _ in range(batches))
        return (time.perf_counter() - start) / images

    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(seconds_per_image(iter(loader)))
        ours.append(seconds_per_image(task.batches("train", seeding.generator(0))))
    rates = " and ".join(f"{1 / statistics.median(times):,.0f}" for times in (ours, theirs))
    return ratio(f"{name}, images/s: ours / torchvision ({rates})", theirs, ours)


def make_task(name: str, folder: Path, cache: Path) -> Any:
    """Return a task as run.py builds it."""
    return choose(task=name, overrides=[f"task.data.root={folder}", f"task.data.cache={cache}"]).task()


class Peak:
    """Watch the memory of this process and its children while entered; shared pages count once. Linux only.

    Attributes:
        growth: maximum minus memory at the beginning, in bytes.
    """

    def __enter__(self) -> Self:
        self.first = self.maximum = self._now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self.growth = self.maximum - self.first

    def _watch(self) -> None:
        while not self.over.wait(0.1):
            self.maximum = max(self.maximum, self._now())

    def _now(self) -> int:
        """Return the sum of the proportional set sizes."""
        children = Path("/proc/self/task").glob("*/children")
        processes = ["self", *(pid for path in children for pid in path.read_text().split())]
        total = 0
        for process in processes:
            try:
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            except OSError:  # the process has ended
                continue
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total


def make_cifar10(folder: Path) -> None:
    """Write fewer files than the real ones, as decoding them is not measured."""
    make_images(folder, {"train": 500, "test": 50}, [f"class{i}" for i in range(10)], (32, 32))


def make_imagenette(folder: Path) -> None:
    """Write files as large as those of imagenette2-160."""
    make_images(folder, {"train": 200, "val": 20}, list(IMAGENETTE), (213, 160))


def make_camvid(folder: Path) -> None:
    """Write images of 240 x 180 and masks of 11 classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 360), ("val", 50), ("test", 50)):
        make_images(folder / split, {"images": count}, ["."], (240, 180))
        (folder / split / "labels").mkdir()
        for i in range(count):
            mask = Image.fromarray(rng.integers(0, 11, (9, 12), dtype=np.uint8))
            mask.resize((240, 180), Image.Resampling.NEAREST).save(folder / split / "labels" / f"{i}.png")


def make_images(folder: Path, splits: dict[str, int], classes: list[str], size: tuple[int, int]) -> None:
    """Write smooth pictures with a little noise: JPEG files of about 10 kB at 213 x 160, like photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
                noisy = smooth + rng.normal(0, 8, smooth.shape).astype(np.float32)
                picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                picture.save(folder / split / name / f"{i}.jpg", quality=75)


if __name__ == "__main__":
    main()
