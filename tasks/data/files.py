"""Image files: which there are in a folder of classes, and what a file becomes."""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from tasks.base import some
from tasks.data.cache import cached, save

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png")

log = logging.getLogger("actbench")


def named_folder(setting: str, value: object) -> Path:
    """The folder that the user names.

    Raises:
        ValueError: ``value`` is null, a number or empty.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{setting}={value}: a folder's name is needed")
    return Path(value).expanduser()


def warn_of_others(folder: Path, places: Iterable[tuple[Path, tuple[str, ...]]]) -> None:
    """Log how many entries of ``places`` have none of the endings looked for there; hidden ones do not count.

    Folders in folders, and images of other formats, would be missing from a set without a word.
    """
    others = [
        Path(entry.path)
        for place, endings in places
        if place.is_dir()
        for entry in os.scandir(place)
        if entry.name[0] != "." and not entry.name.lower().endswith(endings)
    ]
    if others:
        first = min(others).relative_to(folder)
        log.warning("data: %s: %d entries are no images and left out, such as %s", folder, len(others), first)


class ReadImages:
    """Position -> image, uint8 (3, H, W): what a store reads.

    Args:
        paths: the files, one or more.
        stored: resize to this shorter side and cut out the middle square, as torchvision's Resize and
            CenterCrop do; None for images that all have one size.
        enlarge: whether images smaller than ``stored`` are enlarged.

    Raises:
        ValueError: an unreadable file, or one whose size does not fit; named.
    """

    def __init__(self, paths: Sequence[Path], stored: int | None = None, enlarge: bool = True) -> None:
        self.paths = paths
        self.stored = stored
        self.enlarge = enlarge
        width, height = read_image(paths[0]).size if stored is None else (stored, stored)
        self.shape = (3, height, width)

    def __call__(self, position: int) -> np.ndarray:
        path = self.paths[position]
        image = read_image(path, self.stored)
        if self.stored is not None:
            if min(image.size) < self.stored and not self.enlarge:
                raise ValueError(
                    f"{path}: {image.width} x {image.height} is smaller than task.data.stored={self.stored}; "
                    "task.data.enlarge=true enlarges such images"
                )
            image = _middle(image, self.stored)
        elif (image.height, image.width) != self.shape[1:]:
            raise ValueError(
                f"{path}: images of one size are needed, this one is {image.width} x {image.height}, "
                f"{self.paths[0]} {self.shape[2]} x {self.shape[1]}"
            )
        return np.asarray(image).transpose(2, 0, 1)


def read_image(path: Path, stored: int | None = None) -> "Image":
    """The image in a file as 8-bit RGB.

    Grey becomes three equal channels, 16-bit grey is scaled (PIL's own conversion clips it at 255), a palette is
    looked up, CMYK is converted, transparency is dropped: colours are as they are beneath it.

    Args:
        path: a file.
        stored: shorter side that is wanted of it: a JPEG at least four times as large is decoded at a half, a
            quarter or an eighth of its size, but not below twice ``stored``.

    Raises:
        ValueError: the file is not an image, or not all of one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if stored is not None:
                image.draft(None, (2 * stored, 2 * stored))
            if image.mode.startswith("I"):
                grey = (np.asarray(image).astype(np.int64) + 128) // 257
                return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")  # at once, PIL warns
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from None


def _middle(image: "Image", side: int) -> "Image":
    """Shorter side to ``side``, then the square in the middle."""
    from PIL.Image import Resampling

    short = min(image.size)
    if short != side:
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class Listing:
    """The files of a tree, those for training first.

    Attributes:
        paths: sorted by split, class and name.
        labels: positions in ``classes``.
        num_train: so many of them are for training.
        classes: names of the folders.
    """

    paths: list[Path]
    labels: list[int]
    num_train: int
    classes: tuple[str, ...]


def list_tree(
    root: str, folder: Path, splits: Sequence[str], classes: Sequence[str] | None = None
) -> Listing:
    """The images in ``folder/<split>/<class>/``, of which the first split is for training.

    Args:
        root: as the user gave it, for messages.
        folder: to look in.
        splits: one or two folders in it; "." for ``folder`` itself.
        classes: names to look for; None for all folders there are, which must be the same in all splits.

    Raises:
        ValueError: a folder missing, a class without images, or classes that differ.
    """
    if classes is None:
        found = {split: class_folders(root, folder, split) for split in splits}
        classes = found[splits[0]]
        if found[splits[-1]] != classes:
            (a, b), (first, second) = splits, (set(found[split]) for split in splits)
            raise ValueError(
                f"task.data.root={root}: classes differ: only in {a}: {some(first - second, 5)}; "
                f"only in {b}: {some(second - first, 5)}"
            )
    paths: list[Path] = []
    labels: list[int] = []
    for split in splits:
        num_train = len(paths) if split != splits[0] else 0
        for label, name in enumerate(classes):
            files = _images_in(root, folder, Path(split) / name)
            paths += files
            labels += [label] * len(files)
    warn_of_others(folder, [(folder / split / name, EXTENSIONS) for split in splits for name in classes])
    return Listing(paths, labels, num_train or len(paths), tuple(classes))


def class_folders(root: str, folder: Path, split: str) -> list[str]:
    """Names of the folders in ``folder/split``, sorted; hidden ones do not count.

    Raises:
        ValueError: no such folder, or none in it.
    """
    if not (folder / split).is_dir():
        raise ValueError(f"task.data.root={root}: has no folder {split}/")
    names = sorted(
        entry.name for entry in os.scandir(folder / split) if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise ValueError(f"task.data.root={root}: no folder of a class in {folder / split}")
    return names


def _images_in(root: str, folder: Path, place: Path) -> list[Path]:
    if not (folder / place).is_dir():
        raise ValueError(f"task.data.root={root}: has no folder {place}/")
    names = sorted(
        entry.name
        for entry in os.scandir(folder / place)
        if entry.name.lower().endswith(EXTENSIONS)
        and entry.name[0] != "."  # macOS leaves such beside each file
    )
    if not names:
        raise ValueError(
            f"task.data.root={root}: no images in {place}/ ({', '.join(EXTENSIONS)} are looked for)"
        )
    return [folder / place / name for name in names]


def fingerprint_of_files(
    paths: Sequence[Path], labels: Sequence[int], names: Sequence[str], kind: str, kept: tuple[Path, str]
) -> str:
    """Hash of ``kind``, the classes' names, and every file's name, label and content: the same wherever they are.

    Args:
        paths, labels: the files, one by one.
        names: of the classes.
        kind: what is made of the files.
        kept: folder and key of the cache to keep it in, as reading all files may take a minute.
    """

    def build(entry: Path) -> None:
        digest = hashlib.sha256(os.fsencode("\0".join((kind, *names))))
        for path, label in zip(tqdm(paths, desc="hashing", leave=False, disable=None), labels, strict=True):
            digest.update(os.fsencode(path.name))  # names need not be UTF-8
            digest.update(f"\0{label}\0{os.stat(path).st_size}\n".encode())
            digest.update(path.read_bytes())
        save(entry, fingerprint=digest.hexdigest()[:16])

    key = hashlib.sha256(f"{kept[1]} {kind}".encode()).hexdigest()[:20]
    return str(cached(kept[0], f"fingerprint-{key}", build)["fingerprint"])


def sklearn_file(name: str) -> Path:
    """A file below scikit-learn's ``datasets``, found without importing scikit-learn, which takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError("task.data: scikit-learn, which ships the data, is not installed")
    return Path(spec.origin).parent / "datasets" / name
