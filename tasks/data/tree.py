"""Folders of images: which of them are the splits and classes, which files belong to them, and which are left out."""

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.base import check_range, some
from tasks.data.files import printable

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".gif", ".pgm", ".ppm"),
)
# files beside images that are none: leaving them out loses nothing
COMPANIONS = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log"),
    *(".py", ".sh", ".mat", ".npy", ".npz", ".pkl", ".zip", ".gz", ".tar", ".tgz", ".cache", ".lock"),
)
# made by file managers and archivers, beside the hidden ones; lower case
JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "icon\r")
# names of a split's folder, lower case
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MAX_LEFT_OUT = 0.1

log = logging.getLogger("actbench")


@dataclass
class LeftOut:
    """The files below a folder that are part of no set.

    Args:
        folder: their names are given relative to it.

    Attributes:
        names: by the reason; the names of a reason are in the order in which they were found.
    """

    UNREAD = "of other formats"
    OUTSIDE = "in no folder of a class"
    COMPANION = "no images"

    folder: Path
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: Path, outside: bool = False) -> None:
        """Note a file; ``outside`` if it is left out for its place and not for its format."""
        lower = path.name.lower()
        reason = self.UNREAD
        if outside and lower.endswith(IMAGES):
            reason = self.OUTSIDE
        elif lower.endswith(COMPANIONS):
            reason = self.COMPANION
        self.names.setdefault(reason, []).append(printable(path.relative_to(self.folder)))

    def report(self, root: str, used: int, most: float) -> None:
        """Warn of the files.

        Args:
            root: as the user gave it.
            used: number of files that are part of the set.
            most: largest legal share of those left out among all; companions do not count.

        Raises:
            ValueError: more than that.
        """
        if not self.names:
            return
        lost = sum(len(names) for reason, names in self.names.items() if reason != self.COMPANION)
        each = "; ".join(
            f"{len(names):,} {reason}, such as {names[0]}" for reason, names in sorted(self.names.items())
        )
        if lost > most * (used + lost):
            raise ValueError(
                f"task.data.root={root}: {lost:,} of {used + lost:,} files would be left out ({each}); legal are "
                f"at most {most:.0%}, or the share that task.data.max_left_out allows; formats that are read: "
                f"{', '.join(IMAGES)}"
            )
        log.warning("data: %s: files left out: %s", self.folder, each)


def check_max_left_out(value: object) -> None:
    """Raise ValueError unless ``value`` is a share."""
    check_range("task.data.max_left_out", value, "in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass(frozen=True)
class Listing:
    """The files of a tree, those for training first.

    Attributes:
        paths: sorted by split, class and name.
        labels: positions in ``classes``.
        num_train: so many of them are for training.
        classes: names of the folders, in composed Unicode (NFC).
        left_out: the files that are not among them, by the reason.
    """

    paths: list[Path]
    labels: list[int]
    num_train: int
    classes: tuple[str, ...]
    left_out: Mapping[str, Sequence[str]]


def list_tree(
    root: str,
    folder: Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    max_left_out: float = 1.0,
) -> Listing:
    """The images below ``folder/<split>/<class>/``, of which the first split is for training.

    Two spellings of a class's name that Unicode calls equivalent are one class.

    Args:
        root: as the user gave it, for messages.
        folder: to look in.
        splits: one or two folders in it; "." for ``folder`` itself.
        classes: names to look for; None for all folders there are, which must be the same in all splits.
        max_left_out: largest share of the files that may be left out; what is left out is a warning.

    Raises:
        ValueError: a folder missing, a class without images, classes that differ, or too many files left out.
    """
    left_out = LeftOut(folder)
    if classes is None:
        found = {split: class_folders(root, folder, split) for split in splits}
        classes = list(found[splits[0]])
        if list(found[splits[-1]]) != classes:
            (a, b), (first, second) = splits, (set(found[split]) for split in splits)
            raise ValueError(
                f"task.data.root={root}: classes differ: only in {a}: {some(first - second, 5)}; "
                f"only in {b}: {some(second - first, 5)}"
            )
        for split in splits:
            for entry in _entries(folder / split):
                if not entry.is_dir():
                    left_out.add(Path(entry.path), outside=True)
    else:
        found = {split: {name: [name] for name in classes} for split in splits}
    paths: list[Path] = []
    labels: list[int] = []
    for split in splits:
        num_train = len(paths) if split != splits[0] else 0
        for label, name in enumerate(classes):
            files = []
            for spelling in found[split][name]:
                place = Path(split) / spelling
                if not (folder / place).is_dir():
                    raise ValueError(f"task.data.root={root}: has no folder {place}/")
                files += files_below(folder / place, IMAGES, left_out)
            if not files:
                raise ValueError(
                    f"task.data.root={root}: no images in {Path(split) / name}/ ({', '.join(IMAGES)} are looked for)"
                )
            paths += files
            labels += [label] * len(files)
    left_out.report(root, len(paths), max_left_out)
    return Listing(paths, labels, num_train or len(paths), tuple(classes), left_out.names)


def class_folders(root: str, folder: Path, split: str) -> dict[str, list[str]]:
    """Name of each class in ``folder/split``, sorted, and the folders that have it in one of its spellings.

    Raises:
        ValueError: no such folder, none in it, or one whose name is not UTF-8.
    """
    if not (folder / split).is_dir():
        raise ValueError(f"task.data.root={root}: has no folder {split}/")
    found: dict[str, list[str]] = {}
    for entry in _entries(folder / split):
        if not entry.is_dir():
            continue
        if (name := printable(entry.name)) != entry.name:
            raise ValueError(
                f"task.data.root={root}: the name of the folder {name} in {folder / split} is not UTF-8; rename it"
            )
        found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
    if not found:
        raise ValueError(f"task.data.root={root}: no folder of a class in {folder / split}")
    for name, spellings in found.items():
        if len(spellings) > 1:
            log.warning(
                "data: %s: %d folders are named %s in different Unicode spellings; they are one class",
                *(folder / split, len(spellings), name),
            )
    return dict(sorted(found.items()))


def files_below(place: Path, endings: tuple[str, ...], left_out: LeftOut) -> list[Path]:
    """Files with one of ``endings`` in a folder and in those within it, sorted; all others are noted."""
    found = []
    for entry in _entries(place):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            found += files_below(path, endings, left_out)
        elif entry.name.lower().endswith(endings):
            found.append(path)
        else:
            left_out.add(path)
    return found


def find_splits(root: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The folder that holds the splits, and the folder's name of each split that is there.

    That is ``folder``, or the only folder in it that holds a training split. A folder counts as a split if there are
    folders in it: ``train`` may also be a class, such as that of railway carriages.

    Raises:
        ValueError: two folders for one split, or several folders that hold training splits.
    """
    splits = _splits_in(root, folder)
    if "train" in splits:
        return folder, splits
    inner = {place: _splits_in(root, place) for place in _folders(folder)}
    holding = [place for place, there in inner.items() if "train" in there]
    if len(holding) > 1:
        names = ", ".join(printable(place.name) for place in holding)
        raise ValueError(
            f"task.data.root={root}: {names} each hold a training split; name one of them as the root"
        )
    return (holding[0], inner[holding[0]]) if holding else (folder, splits)


def _splits_in(root: str, folder: Path) -> dict[str, str]:
    there = [place.name for place in _folders(folder) if _folders(place)]
    return {
        split: name
        for split, legal in SPLITS.items()
        if (name := only_one(root, folder, there, legal)) is not None
    }


def only_one(root: str, folder: Path, there: Sequence[str], legal: Sequence[str]) -> str | None:
    """The name among those ``there`` that is one of ``legal``, in any case; None if there is none.

    Raises:
        ValueError: two or more.
    """
    names = [name for name in there if name.lower() in legal]
    if len(names) > 1:
        raise ValueError(
            f"task.data.root={root}: {' and '.join(names)} in {folder} stand for the same; only one may be there"
        )
    return names[0] if names else None


def _folders(place: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(place) if entry.is_dir()]


def _entries(place: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden entries and other junk."""
    with os.scandir(place) as entries:
        return sorted(
            (entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in JUNK),
            key=lambda entry: entry.name,
        )
