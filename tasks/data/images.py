"""Sets of small images that live in memory as one tensor: digits, CIFAR-10, CIFAR-100, Fashion-MNIST."""

import gzip
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

from activations.checks import check_bool
from tasks.data.cache import CacheEntry, cached, key_of_files, save
from tasks.data.files import WHITE, LayoutError, ReadImages, data_root, named_folder, sklearn_file
from tasks.data.hashing import content_hash
from tasks.data.sets import ImageSet, labeled_set
from tasks.data.store import Memory, Stream, decode
from tasks.data.survey import Survey, survey_files
from tasks.data.tree import list_tree

CIFAR_TREE = "train/ and test/ with a folder of images for each class, or "


@lru_cache(maxsize=1)
def digits() -> ImageSet:
    """The 1,797 images of 8 x 8 pixels (0 to 16) that scikit-learn ships: UCI optical digits, test part.

    The file is read directly, since importing scikit-learn's loader takes longer than training on it.

    Examples:
        >>> len(digits().train), digits().classes
        (1797, ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
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
        download: whether torchvision may download the archive (170 MB) into ``root``.
        cache: folder for the decoded images, about 185 MB.

    Raises:
        ValueError: no such files in ``root``, not ten classes, or images of another size than 32 x 32.
    """
    source = TorchvisionDownload(
        "CIFAR10", "cifar-10-batches-py", ("cifar-10-python.tar.gz",), 170, CIFAR_TREE
    )
    return _cifar(source, "CIFAR-10", 10, root, download, cache)


def cifar100(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """CIFAR-100 with its 100 fine classes; arguments and errors as of ``cifar10``, in ``cifar-100-python``."""
    source = TorchvisionDownload(
        "CIFAR100", "cifar-100-python", ("cifar-100-python.tar.gz",), 169, CIFAR_TREE
    )
    return _cifar(source, "CIFAR-100", 100, root, download, cache)


def fashion_mnist(root: str, *, download: bool = False, cache: str) -> ImageSet:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), 28 x 28 and gray, from torchvision's files.

    Args:
        root: the folder that holds ``FashionMNIST/raw`` and in it the four files, compressed or not.
        download: whether torchvision may download the files (31 MB) into ``root``.
        cache: folder for the images as one array, 55 MB.

    Raises:
        ValueError: no such files in ``root``.
    """
    check_bool("download", download)
    raw = "FashionMNIST/raw"
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    # torchvision unpacks the last of the four files last
    unpacked, archives = f"{raw}/{names[-1]}-ubyte", tuple(f"{raw}/{name}-ubyte.gz" for name in names)
    with data_root(root) as folder:
        return _of_torchvision(
            TorchvisionDownload("FashionMNIST", unpacked, archives, 31), folder, download, cache
        )


@dataclass(frozen=True)
class TorchvisionDownload:
    """A data set that torchvision can download.

    Attributes:
        name: torchvision's class.
        unpacked: a file or folder below the root that exists when everything is unpacked.
        archives: files below the root; if all of them exist, nothing is downloaded.
        megabytes: to download.
        tree: folders that can be used instead, in words, or nothing.
    """

    name: str
    unpacked: str
    archives: tuple[str, ...]
    megabytes: int
    tree: str = ""

    def has_archives(self, folder: Path) -> bool:
        """Return whether all archives exist."""
        return all((folder / archive).is_file() for archive in self.archives)

    def ensure(self, folder: Path, download: bool, load: Callable[[], object]) -> None:
        """Unpack the archives if they exist, or call ``load`` to download, unless everything is unpacked already.

        Raises:
            LayoutError: there is nothing to unpack, and ``download`` is false or the folder is not writable.
        """
        unpacked = folder / self.unpacked
        if unpacked.exists() and not os.access(folder, os.W_OK):
            return  # a read-only folder: assume that it is complete
        if not (download or self.has_archives(folder) or unpacked.exists()):
            missing = [archive for archive in self.archives if not (folder / archive).is_file()]
            if not folder.is_dir():
                state = "no such folder"
            elif len(missing) < len(self.archives):
                state = f"has no {', '.join(missing)}"
            else:
                state = "has none of them" if any(folder.iterdir()) else "is empty"
            raise LayoutError(
                f"{state}; must contain {self.tree}torchvision's {self.unpacked} or {', '.join(self.archives)}, "
                f"which download=true fetches ({self.megabytes} MB)"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".actbench.lock").acquire()
        except OSError as error:
            if unpacked.exists():  # the lock belongs to another user
                return
            raise LayoutError(f"cannot write there ({error.strerror})") from None
        with lock:  # the cells of a grid must not download at the same time
            if not unpacked.exists():
                if self.has_archives(folder) and not download:
                    self.unpack(folder)
                else:
                    load()
            if not unpacked.exists():
                raise LayoutError(f"no {self.unpacked} in {', '.join(self.archives)}")

    def unpack(self, folder: Path) -> None:
        """Unpack the archives in their folder; the content of each appears as a whole.

        torchvision would compare their checksums first and try to download others.

        Raises:
            LayoutError: an archive is damaged or cannot be unpacked there.
        """
        from torchvision.datasets.utils import extract_archive

        for archive in self.archives:
            path = folder / archive
            try:
                with TemporaryDirectory(dir=path.parent, prefix=".actbench-") as temporary:
                    extract_archive(str(path), temporary)
                    for entry in sorted(Path(temporary).iterdir()):
                        _put_in_place(entry, path.parent / entry.name)
            except (EOFError, OSError, TarError, zlib.error) as error:
                raise LayoutError(f"cannot unpack {archive} ({error})") from None

    def open(self, folder: Path, download: bool, into: Path | None = None, **kwargs: Any) -> Any:
        """Return torchvision's data set in ``folder`` (or ``into``), downloaded only where ``download`` allows it.

        Raises:
            LayoutError: torchvision failed.
        """
        from torchvision import datasets  # imported here, as that takes seconds

        def read() -> Any:
            return getattr(datasets, self.name)(str(into or folder), download=download, **kwargs)

        try:
            try:
                return read()
            except (RuntimeError, EOFError, OSError):
                if download or not self.has_archives(folder):
                    raise
                self.unpack(folder)  # once more: an earlier attempt was interrupted
                return read()
        except (RuntimeError, EOFError, OSError) as error:
            raise LayoutError(f"torchvision failed: {' '.join(str(error).split())}") from None


def _put_in_place(entry: Path, place: Path) -> None:
    """Move a file or folder to ``place``; files of a folder that exists there are replaced."""
    if entry.is_dir() and place.is_dir():
        for inner in sorted(entry.iterdir()):
            _put_in_place(inner, place / inner.name)
    else:
        entry.replace(place)


def _cifar(
    source: TorchvisionDownload, title: str, num_classes: int, root: str, download: bool, cache: str
) -> ImageSet:
    """Return CIFAR-10 or -100 from either kind of files."""
    check_bool("download", download)
    with data_root(root) as folder:
        is_tree = (folder / "train").is_dir() or (folder / "test").is_dir()
        image_set = _of_tree(folder, cache) if is_tree else _of_torchvision(source, folder, download, cache)
        if len(image_set.classes) != num_classes:
            raise LayoutError(f"{title} has {num_classes} classes, this folder has {len(image_set.classes)}")
        if image_set.store.shape != (3, 32, 32):
            height, width = image_set.store.shape[1:]
            raise LayoutError(f"{title} has images of 32 x 32, this folder of {height} x {width}")
    return image_set


def _of_tree(folder: Path, cache: str) -> ImageSet:
    """Return the images of one size in a tree {train,test}/<class>/, which are decoded once."""
    files = list_tree(folder, ("train", "test"))
    read = ReadImages(files.paths)

    def build(entry: Path) -> None:
        decode(Stream(read, len(files.paths), read.shape), entry / "images.npy", planar=True)
        images = np.load(entry / "images.npy", mmap_mode="r")
        save(entry, **_facts(images, np.array(files.labels), files.num_train, files.classes))

    key = key_of_files("image-folder-3", folder, files.paths)
    entry = CacheEntry(named_folder("cache", cache), key)
    arrays = cached(entry.folder, key, build)
    survey = survey_files(
        files.paths,
        files.labels,
        files.classes,
        "as stored",
        entry,
        background=WHITE,
        left_out=files.left_out,
        splits={"train": "train", "test": "test"},
    )
    return _image_set(arrays, survey)


def _of_torchvision(source: TorchvisionDownload, folder: Path, download: bool, cache: str) -> ImageSet:
    """Return the arrays that torchvision reads from its files."""

    def read(train: bool) -> Any:
        return source.open(folder, download, train=train)

    def build(entry: Path) -> None:
        train, test = read(True), read(False)
        images = np.concatenate([train.data, test.data])
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        images = np.ascontiguousarray(images)
        labels = np.concatenate([train.targets, test.targets]).astype(np.int64)
        save(entry, images=images, **_facts(images, labels, len(train.data), train.classes))

    source.ensure(folder, download, lambda: read(True))
    unpacked = folder / source.unpacked
    files = unpacked if unpacked.is_dir() else unpacked.parent
    paths = sorted(path for path in files.iterdir() if path.is_file())
    key = key_of_files(f"{source.name.lower()}-1", folder, paths)
    return _image_set(cached(named_folder("cache", cache), key, build))


def _facts(
    images: np.ndarray, labels: np.ndarray, num_train: int, classes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what is stored of a set beside its images; the first ``num_train`` are for training."""
    return {
        "labels": labels,
        "num_train": np.array(num_train),
        "classes": np.array(classes),
        "fingerprint": np.array(content_hash(str(images.shape), np.ascontiguousarray(images), labels)),
    }


def _image_set(arrays: dict[str, np.ndarray], survey: Survey | None = None) -> ImageSet:
    return labeled_set(
        Memory(torch.from_numpy(arrays["images"])),
        torch.from_numpy(arrays["labels"]),
        int(arrays["num_train"]),
        classes=tuple(arrays["classes"].tolist()),
        fingerprint=str(arrays["fingerprint"]),
        survey=survey,
    )
