"""Image sets as one uint8 tensor: digits, CIFAR-10, folders of images."""

import gzip
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from tasks.base import check_bool
from tasks.data.cache import cached, key_of_files

Arrays = dict[str, np.ndarray]
EXTENSIONS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with labels.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        train, test: positions of the splits; ``test`` is None where the source has no test split.
        classes: names, in the order of the labels.
        fingerprint: hash of images and labels, the same wherever and however they are stored.
    """

    images: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor | None
    classes: tuple[str, ...]
    fingerprint: str


@lru_cache(maxsize=1)
def digits() -> ImageSet:
    """The 1,797 images of 8 x 8 pixels (0 to 16) that scikit-learn ships: UCI optical digits, test part.

    The file is read directly, since importing scikit-learn's loader takes longer than training on it.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError("task=digits: scikit-learn, which ships the data, is not installed")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    return _image_set(_arrays(images, labels, len(labels), [str(digit) for digit in range(10)]))


def cifar10(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """CIFAR-10 from torchvision's files or from a folder tree {train,test}/<class>/*.{jpg,png}.

    Args:
        root: the folder that holds either ``train`` and ``test``, or ``cifar-10-batches-py`` (or its archive).
        download: let torchvision download the archive (170 MB) into ``root`` if it is not there.
        cache: folder for the decoded images, about 185 MB.

    Raises:
        ValueError: nothing usable in ``root``, not ten classes, or images of another size than 32 x 32.
    """
    check_bool("task.data.download", download)
    folder = Path(root).expanduser()
    image_set = (
        image_folder(root, cache=cache)
        if (folder / "train").is_dir() or (folder / "test").is_dir()
        else _torchvision_cifar10(folder, download, cache)
    )
    if len(image_set.classes) != 10:
        raise ValueError(
            f"task.data.root={root}: CIFAR-10 has 10 classes, this folder has {len(image_set.classes)}"
        )
    if image_set.images.shape[1:] != (3, 32, 32):
        height, width = image_set.images.shape[2:]
        raise ValueError(
            f"task.data.root={root}: CIFAR-10 has images of 32 x 32, this folder of {height} x {width}"
        )
    return image_set


def image_folder(root: str, *, cache: str) -> ImageSet:
    """Images of one size in a tree {train,test}/<class>/*.{jpg,png}, decoded once to RGB and cached.

    Args:
        root: the folder that holds ``train`` and ``test``.
        cache: folder for the decoded images.

    Raises:
        ValueError: a folder missing or empty, classes that differ, an unreadable image, images of several sizes.
    """
    folder = Path(root).expanduser()
    files: dict[str, list[Path]] = {}
    classes: dict[str, list[str]] = {}
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            raise ValueError(f"task.data.root={root}: has no folder {split}/")
        classes[split] = sorted(entry.name for entry in os.scandir(folder / split) if entry.is_dir())
        files[split] = [path for name in classes[split] for path in _images_in(folder / split / name)]
        if not files[split]:
            raise ValueError(
                f"task.data.root={root}: no images in {split}/<class>/ ({', '.join(EXTENSIONS)} are looked for)"
            )
    if classes["train"] != classes["test"]:
        only = {
            s: sorted(set(classes[s]) - set(classes[o])) for s, o in (("train", "test"), ("test", "train"))
        }
        raise ValueError(
            f"task.data.root={root}: classes differ: only in train: {', '.join(only['train']) or 'none'}; "
            f"only in test: {', '.join(only['test']) or 'none'}"
        )

    paths = files["train"] + files["test"]
    number = {name: label for label, name in enumerate(classes["train"])}

    def build() -> Arrays:
        labels = np.array([number[path.parent.name] for path in paths], dtype=np.int64)
        return _arrays(_decode(paths), labels, len(files["train"]), classes["train"])

    return _image_set(cached(Path(cache).expanduser(), key_of_files("image-folder-1", folder, paths), build))


def _images_in(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(EXTENSIONS))


def _decode(paths: list[Path]) -> np.ndarray:
    """All images as one (N, 3, H, W) array; the threads overlap reading and decoding."""
    from PIL import Image

    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: not a readable image ({error})") from None

    first = read(paths[0])
    images = np.empty((len(paths), 3, *first.shape[:2]), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            decoded = tqdm(pool.map(read, paths), total=len(paths), desc="decoding", unit="img", disable=None)
            for i, (path, image) in enumerate(zip(paths, decoded, strict=True)):
                if image.shape != first.shape:
                    sizes = (
                        f"{image.shape[1]} x {image.shape[0]}, {paths[0]} {first.shape[1]} x {first.shape[0]}"
                    )
                    raise ValueError(f"{path}: images of one size are needed, this one is {sizes}")
                images[i] = image.transpose(2, 0, 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def _torchvision_cifar10(folder: Path, download: bool, cache: str) -> ImageSet:
    batches, archive = folder / "cifar-10-batches-py", folder / "cifar-10-python.tar.gz"
    if not download and not batches.is_dir() and not archive.is_file():
        state = "is empty" if folder.is_dir() and not any(folder.iterdir()) else "has none of them"
        raise ValueError(
            f"task.data.root={folder}: {state if folder.is_dir() else 'no such folder'}; needed are train/ and "
            f"test/ with a folder of images for each class, or torchvision's {batches.name}/, "
            "which task.data.download=true fetches (170 MB)"
        )

    def load(*, train: bool) -> Any:
        from torchvision.datasets import CIFAR10  # takes seconds to import, so only where it is needed

        try:
            return CIFAR10(str(folder), train=train, download=download or archive.is_file())
        except (RuntimeError, EOFError, OSError) as error:
            raise ValueError(
                f"task.data.root={folder}: torchvision says: {' '.join(str(error).split())}"
            ) from None

    def build() -> Arrays:
        train, test = load(train=True), load(train=False)
        images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
        labels = np.array(train.targets + test.targets, dtype=np.int64)
        return _arrays(np.ascontiguousarray(images), labels, len(train.data), train.classes)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".actbench.lock"):  # the cells of a grid must not download side by side
        if not batches.is_dir():
            load(train=True)  # downloads, or unpacks the archive
    paths = sorted(path for path in batches.iterdir() if path.is_file())
    return _image_set(cached(Path(cache).expanduser(), key_of_files("cifar10-1", folder, paths), build))


def _arrays(images: np.ndarray, labels: np.ndarray, num_train: int, classes: Sequence[str]) -> Arrays:
    """What is stored of a set; the first ``num_train`` images are for training."""
    return {
        "images": images,
        "labels": labels,
        "num_train": np.array(num_train),
        "classes": np.array(classes),
        "fingerprint": np.array(_fingerprint(images, labels)),
    }


def _image_set(arrays: Arrays) -> ImageSet:
    images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    num_train = int(arrays["num_train"])
    return ImageSet(
        images,
        labels,
        train=torch.arange(num_train),
        test=torch.arange(num_train, len(labels)) if num_train < len(labels) else None,
        classes=tuple(arrays["classes"].tolist()),
        fingerprint=str(arrays["fingerprint"]),
    )


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()[:16]
