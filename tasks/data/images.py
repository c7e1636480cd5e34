"""Sets of small images that live in memory as one tensor: digits, CIFAR-10, CIFAR-100, Fashion-MNIST."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tarfile import TarError
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from tasks.base import check_bool
from tasks.data.cache import cached, key_of_files, save
from tasks.data.files import WHITE, ReadImages, named_folder, sklearn_file
from tasks.data.splits import stratified
from tasks.data.store import Memory, Store, Stream, decode, mean_std
from tasks.data.survey import Survey, survey_files
from tasks.data.tree import list_tree

STATISTICS_IMAGES = 50_000  # at most; more would take minutes to stream and change nothing
CIFAR_TREE = "train/ and test/ with a folder of images for each class, or "


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with labels.

    Attributes:
        store: the images, (C, H, W) uint8 each.
        labels: (N,) int64.
        train, test: positions of the splits; ``test`` is None where the source has no test split.
        classes: names, in the order of the labels.
        fingerprint: hash of the content, the same wherever and however the images are stored.
        kept: folder and key of the cache, if reading all images takes long.
        survey: what is known of the files; None of a set that is not read from image files.
    """

    store: Store
    labels: Tensor
    train: Tensor
    test: Tensor | None
    classes: tuple[str, ...]
    fingerprint: str
    kept: tuple[Path, str] | None = None
    survey: Survey | None = None

    def mean_std(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, of at most 50,000 of the images at ``index`` (stratified)."""
        if len(index) > STATISTICS_IMAGES:
            index = index[stratified(self.labels[index], STATISTICS_IMAGES)[1]]
        return mean_std(self.store, index, self.store.shape[0], self.kept)


@lru_cache(maxsize=1)
def digits() -> ImageSet:
    """The 1,797 images of 8 x 8 pixels (0 to 16) that scikit-learn ships: UCI optical digits, test part.

    The file is read directly, since importing scikit-learn's loader takes longer than training on it.
    """
    with gzip.open(sklearn_file("data/digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    classes = [str(digit) for digit in range(10)]
    return _image_set({"images": images} | _facts(images, labels, len(labels), classes))


def cifar10(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """CIFAR-10 from torchvision's files or from a folder tree {train,test}/<class>/*.{jpg,png}.

    Args:
        root: the folder that holds either ``train`` and ``test``, or ``cifar-10-batches-py`` (or its archive).
        download: let torchvision download the archive (170 MB) into ``root`` if it is not there.
        cache: folder for the decoded images, about 185 MB.

    Raises:
        ValueError: nothing usable in ``root``, not ten classes, or images of another size than 32 x 32.
    """
    published = Published("CIFAR10", "cifar-10-batches-py", ("cifar-10-python.tar.gz",), 170, CIFAR_TREE)
    return _cifar(published, "CIFAR-10", 10, root, download, cache)


def cifar100(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """CIFAR-100 with its 100 fine classes; arguments and errors as of ``cifar10``, in ``cifar-100-python``."""
    published = Published("CIFAR100", "cifar-100-python", ("cifar-100-python.tar.gz",), 169, CIFAR_TREE)
    return _cifar(published, "CIFAR-100", 100, root, download, cache)


def fashion_mnist(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), 28 x 28 and grey, from torchvision's files.

    Args:
        root: the folder that holds ``FashionMNIST/raw`` and in it the four files, packed or not.
        download: let torchvision download the files (31 MB) into ``root`` if they are not there.
        cache: folder for the images as one array, 55 MB.

    Raises:
        ValueError: nothing usable in ``root``.
    """
    check_bool("task.data.download", download)
    raw = "FashionMNIST/raw"
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    # the last of the four is the last that torchvision unpacks
    unpacked, archives = f"{raw}/{names[-1]}-ubyte", tuple(f"{raw}/{name}-ubyte.gz" for name in names)
    published = Published("FashionMNIST", unpacked, archives, 31, tree="")
    return _of_torchvision(published, named_folder("task.data.root", root), download, cache)


@dataclass(frozen=True)
class Published:
    """A data set that torchvision can download.

    Attributes:
        name: torchvision's class.
        unpacked: what is there, below the root, once all is unpacked.
        archives: files below the root; if all are there, nothing has to be downloaded.
        megabytes: to download.
        tree: the folders that serve as well, in words, or nothing.
    """

    name: str
    unpacked: str
    archives: tuple[str, ...]
    megabytes: int
    tree: str

    def packed(self, folder: Path) -> bool:
        """Whether all archives are there."""
        return all((folder / archive).is_file() for archive in self.archives)

    def fetch(self, folder: Path, download: bool, load: Callable[[], object]) -> None:
        """Unpack the archives if they are there, or call ``load`` to download, unless all is unpacked already.

        Raises:
            ValueError: there is nothing to unpack, and nothing may be downloaded, or not into this folder.
        """
        unpacked = folder / self.unpacked
        if unpacked.exists() and not os.access(folder, os.W_OK):
            return  # all of it: nobody can be unpacking here
        if not (download or self.packed(folder) or unpacked.exists()):
            missing = [archive for archive in self.archives if not (folder / archive).is_file()]
            if not folder.is_dir():
                state = "no such folder"
            elif len(missing) < len(self.archives):
                state = f"has no {', '.join(missing)}"
            else:
                state = "has none of them" if any(folder.iterdir()) else "is empty"
            raise ValueError(
                f"task.data.root={folder}: {state}; needed are "
                f"{self.tree}torchvision's {self.unpacked} or {', '.join(self.archives)}, "
                f"which task.data.download=true fetches ({self.megabytes} MB)"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(folder / ".actbench.lock").acquire()
        except OSError as error:
            if unpacked.exists():  # and the lock is another user's
                return
            raise ValueError(f"task.data.root={folder}: cannot write there ({error.strerror})") from None
        with held:  # the cells of a grid must not download side by side
            if not unpacked.exists():
                if self.packed(folder) and not download:
                    self.unpack(folder)
                else:
                    load()
            if not unpacked.exists():
                raise ValueError(f"task.data.root={folder}: no {self.unpacked} in {', '.join(self.archives)}")

    def unpack(self, folder: Path) -> None:
        """Unpack the archives where they lie; what is in one appears as a whole.

        torchvision would compare their checksums first and ask the network for others.

        Raises:
            ValueError: an archive is damaged or cannot be unpacked there.
        """
        from torchvision.datasets.utils import extract_archive

        for archive in self.archives:
            path = folder / archive
            try:
                with TemporaryDirectory(dir=path.parent, prefix=".actbench-") as temporary:
                    extract_archive(str(path), temporary)
                    for made in sorted(Path(temporary).iterdir()):
                        _put_in_place(made, path.parent / made.name)
            except (EOFError, OSError, TarError, zlib.error) as error:
                raise ValueError(f"task.data.root={folder}: cannot unpack {archive} ({error})") from None

    def load(self, folder: Path, download: bool, into: Path | None = None, **kwargs: Any) -> Any:
        """torchvision's data set in ``folder`` (or ``into``); the network is asked only where ``download`` allows it.

        Raises:
            ValueError: torchvision could not.
        """
        from torchvision import datasets  # takes seconds to import, so only where it is needed

        def read() -> Any:
            return getattr(datasets, self.name)(str(into or folder), download=download, **kwargs)

        try:
            try:
                return read()
            except (RuntimeError, EOFError, OSError):
                if download or not self.packed(folder):
                    raise
                self.unpack(folder)  # again: an earlier attempt was stopped in its middle
                return read()
        except (RuntimeError, EOFError, OSError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"task.data.root={folder}: torchvision says: {said}") from None


def _put_in_place(made: Path, place: Path) -> None:
    """Move a file or folder to where others of its name may be, whose files it replaces."""
    if made.is_dir() and place.is_dir():
        for inner in sorted(made.iterdir()):
            _put_in_place(inner, place / inner.name)
    else:
        made.replace(place)


def _cifar(
    published: Published, title: str, num_classes: int, root: str, download: bool, cache: str
) -> ImageSet:
    """CIFAR-10 or -100 from either kind of files."""
    check_bool("task.data.download", download)
    folder = named_folder("task.data.root", root)
    image_set = (
        _of_tree(root, folder, cache)
        if (folder / "train").is_dir() or (folder / "test").is_dir()
        else _of_torchvision(published, folder, download, cache)
    )
    if len(image_set.classes) != num_classes:
        raise ValueError(
            f"task.data.root={root}: {title} has {num_classes} classes, this folder has {len(image_set.classes)}"
        )
    if image_set.store.shape != (3, 32, 32):
        height, width = image_set.store.shape[1:]
        raise ValueError(
            f"task.data.root={root}: {title} has images of 32 x 32, this folder of {height} x {width}"
        )
    return image_set


def _of_tree(root: str, folder: Path, cache: str) -> ImageSet:
    """Images of one size in a tree {train,test}/<class>/, decoded once."""
    files = list_tree(root, folder, ("train", "test"))
    read = ReadImages(files.paths)

    def build(entry: Path) -> None:
        decode(Stream(read, len(files.paths), read.shape), entry / "images.npy", planar=True)
        images = np.load(entry / "images.npy", mmap_mode="r")
        save(entry, **_facts(images, np.array(files.labels), files.num_train, files.classes))

    place, key = named_folder("task.data.cache", cache), key_of_files("image-folder-3", folder, files.paths)
    arrays = cached(place, key, build)
    survey = survey_files(
        files.paths,
        files.labels,
        files.classes,
        "as stored",
        (place, key),
        background=WHITE,
        left_out=files.left_out,
        splits={"train": "train", "test": "test"},
    )
    return _image_set(arrays, survey)


def _of_torchvision(published: Published, folder: Path, download: bool, cache: str) -> ImageSet:
    """Arrays as torchvision reads them from its files."""

    def load(train: bool) -> Any:
        return published.load(folder, download, train=train)

    def build(entry: Path) -> None:
        train, test = load(True), load(False)
        images = np.concatenate([train.data, test.data])
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        images = np.ascontiguousarray(images)
        labels = np.concatenate([train.targets, test.targets]).astype(np.int64)
        save(entry, images=images, **_facts(images, labels, len(train.data), train.classes))

    published.fetch(folder, download, lambda: load(True))
    unpacked = folder / published.unpacked
    files = unpacked if unpacked.is_dir() else unpacked.parent
    paths = sorted(path for path in files.iterdir() if path.is_file())
    key = key_of_files(f"{published.name.lower()}-1", folder, paths)
    return _image_set(cached(named_folder("task.data.cache", cache), key, build))


def _facts(
    images: np.ndarray, labels: np.ndarray, num_train: int, classes: Sequence[str]
) -> dict[str, np.ndarray]:
    """What is stored of a set beside its images; the first ``num_train`` are for training."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.data)
    return {
        "labels": labels,
        "num_train": np.array(num_train),
        "classes": np.array(classes),
        "fingerprint": np.array(digest.hexdigest()[:16]),
    }


def _image_set(arrays: dict[str, np.ndarray], survey: Survey | None = None) -> ImageSet:
    images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    num_train = int(arrays["num_train"])
    return ImageSet(
        Memory(images),
        labels,
        train=torch.arange(num_train),
        test=torch.arange(num_train, len(labels)) if num_train < len(labels) else None,
        classes=tuple(arrays["classes"].tolist()),
        fingerprint=str(arrays["fingerprint"]),
        survey=survey,
    )
