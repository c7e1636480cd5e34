"""Folders of images: which of them are the splits and classes, which files belong to them, and which are left out."""

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from activations.checks import check_number
from tasks.base import summarize
from tasks.data.files import LayoutError, printable

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".gif", ".pgm", ".ppm"),
)
# files that accompany images; leaving them out loses nothing
COMPANIONS = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log"),
    *(".py", ".sh", ".mat", ".npy", ".npz", ".pkl", ".zip", ".gz", ".tar", ".tgz", ".cache", ".lock"),
)
# files of file managers and archivers that are not hidden; lower case
JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "icon\r")
# names of the folder of each split, lower case
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MAX_LEFT_OUT = 0.1

log = logging.getLogger("actbench")


@dataclass
class LeftOut:
    """The files below a folder that are not part of the set.

    Args:
        folder: names are relative to it.

    Attributes:
        names: reason -> names, in the order in which they were found.
    """

    UNREAD = "of other formats"
    OUTSIDE = "in no folder of a class"
    COMPANION = "no images"

    folder: Path
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: Path, outside: bool = False) -> None:
        """Add a file; ``outside`` if it is left out for its place and not for its format."""
        lower = path.name.lower()
        reason = self.UNREAD
        if outside and lower.endswith(IMAGES):
            reason = self.OUTSIDE
        elif lower.endswith(COMPANIONS):
            reason = self.COMPANION
        self.names.setdefault(reason, []).append(printable(path.relative_to(self.folder)))

    def report(self, used: int, max_share: float) -> None:
        """Log a warning that lists the files.

        Args:
            used: number of files that are part of the set.
            max_share: maximum share of the files left out among all; companions do not count.

        Raises:
            LayoutError: a larger share.
        """
        if not self.names:
            return
        lost = sum(len(names) for reason, names in self.names.items() if reason != self.COMPANION)
        each = "; ".join(
            f"{len(names):,} {reason}, such as {names[0]}" for reason, names in sorted(self.names.items())
        )
        if lost > max_share * (used + lost):
            raise LayoutError(
                f"{lost:,} of {used + lost:,} files would be left out ({each}); must be at most {max_share:.0%}, or what "
                f"max_left_out allows; formats that are read: {', '.join(IMAGES)}"
            )
        log.warning("data: %s: files left out: %s", self.folder, each)


def check_max_left_out(value: object) -> None:
    """Raise ValueError unless ``value`` is a share."""
    check_number("max_left_out", value, minimum=0, maximum=1)


@dataclass(frozen=True)
class Listing:
    """The files of a tree, those for training first.

    Attributes:
        paths: sorted by split, class and name.
        labels: positions in ``classes``.
        num_train: number of files that are for training.
        classes: names of the folders, in composed Unicode (NFC).
        left_out: reason -> names of the files that are not among them.
    """

    paths: list[Path]
    labels: list[int]
    num_train: int
    classes: tuple[str, ...]
    left_out: Mapping[str, Sequence[str]]


def list_tree(
    folder: Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    max_left_out: float = 1.0,
) -> Listing:
    """List the images below ``folder/<split>/<class>/``, of which the first split is for training.

    Two spellings of a class's name that are equivalent in Unicode are one class.

    Args:
        folder: of the splits.
        splits: names of one or two folders in it; "." for ``folder`` itself.
        classes: names of the classes; None for all folders there are, which must be the same in all splits.
        max_left_out: maximum share of the files that may be left out, with a warning.

    Raises:
        LayoutError: a missing folder, a class without images, classes that differ, or too many files left out.
    """
    left_out = LeftOut(folder)
    if classes is None:
        folders = {split: class_folders(folder, split) for split in splits}
        classes = list(folders[splits[0]])
        if list(folders[splits[-1]]) != classes:
            (a, b), (first, second) = splits, (set(folders[split]) for split in splits)
            raise LayoutError(
                f"classes differ: only in {a}: {summarize(first - second, 5)}; "
                f"only in {b}: {summarize(second - first, 5)}"
            )
        for split in splits:
            for entry in _entries(folder / split):
                if not entry.is_dir():
                    left_out.add(Path(entry.path), outside=True)
    else:
        folders = {split: {name: [name] for name in classes} for split in splits}
    paths: list[Path] = []
    labels: list[int] = []
    for split in splits:
        num_train = len(paths) if split != splits[0] else 0
        for label, name in enumerate(classes):
            files = []
            for spelling in folders[split][name]:
                place = Path(split) / spelling
                if not (folder / place).is_dir():
                    raise LayoutError(f"has no folder {place}/")
                files += files_below(folder / place, IMAGES, left_out)
            if not files:
                raise LayoutError(f"no images in {Path(split) / name}/ (must end in {', '.join(IMAGES)})")
            paths += files
            labels += [label] * len(files)
    left_out.report(len(paths), max_left_out)
    return Listing(paths, labels, num_train or len(paths), tuple(classes), left_out.names)


def class_folders(folder: Path, split: str) -> dict[str, list[str]]:
    """Return the sorted names of the classes in ``folder/split``, and for each the folders with one of its spellings.

    Raises:
        LayoutError: no such folder, none in it, or one whose name is not UTF-8.
    """
    if not (folder / split).is_dir():
        raise LayoutError(f"has no folder {split}/")
    folders: dict[str, list[str]] = {}
    for entry in _entries(folder / split):
        if not entry.is_dir():
            continue
        if (name := printable(entry.name)) != entry.name:
            raise LayoutError(f"the name of the folder {name} in {folder / split} is not UTF-8; rename it")
        folders.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
    if not folders:
        raise LayoutError(f"no folder of a class in {folder / split}")
    for name, spellings in folders.items():
        if len(spellings) > 1:
            log.warning(
                "data: %s: %d folders are named %s in different Unicode spellings; they are one class",
                *(folder / split, len(spellings), name),
            )
    return dict(sorted(folders.items()))


def files_below(place: Path, endings: tuple[str, ...], left_out: LeftOut) -> list[Path]:
    """Return the files with one of ``endings`` in a folder and below, sorted; all others go to ``left_out``."""
    files = []
    for entry in _entries(place):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            files += files_below(path, endings, left_out)
        elif entry.name.lower().endswith(endings):
            files.append(path)
        else:
            left_out.add(path)
    return files


def find_splits(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder that holds the splits, and the name of the folder of each split.

    The former is ``folder``, or the only folder in it that holds a training split. A folder counts as a split if it
    contains folders: ``train`` may also be a class, such as that of railway carriages.

    Raises:
        LayoutError: two folders for one split, or several folders that hold training splits.
    """
    splits = _splits_in(folder)
    if "train" in splits:
        return folder, splits
    inner = {place: _splits_in(place) for place in _folders(folder)}
    holding = [place for place, there in inner.items() if "train" in there]
    if len(holding) > 1:
        names = ", ".join(printable(place.name) for place in holding)
        raise LayoutError(f"{names} each hold a training split; set root to one of them")
    return (holding[0], inner[holding[0]]) if holding else (folder, splits)


def _splits_in(folder: Path) -> dict[str, str]:
    there = [place.name for place in _folders(folder) if _folders(place)]
    return {
        split: name for split, legal in SPLITS.items() if (name := only_one(folder, there, legal)) is not None
    }


def only_one(folder: Path, there: Sequence[str], legal: Sequence[str]) -> str | None:
    """Return the name in ``there`` that is one of ``legal``, upper or lower case; None if there is none.

    Raises:
        LayoutError: two or more.
    """
    names = [name for name in there if name.lower() in legal]
    if len(names) > 1:
        raise LayoutError(f"{' and '.join(names)} in {folder} mean the same; remove or rename all but one")
    return names[0] if names else None


def _folders(place: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(place) if entry.is_dir()]


def _entries(place: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden files such as macOS ._* and other junk."""
    with os.scandir(place) as entries:
        return sorted(
            (entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in JUNK),
            key=lambda entry: entry.name,
        )
