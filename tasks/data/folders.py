"""Image sets from trees of files of any size: Imagenette, subsets of ImageNet, any folder of classes."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from activations.checks import check_bool, check_int
from tasks.data.cache import CacheEntry, key_of_files
from tasks.data.files import WHITE, Color, LayoutError, ReadImages, checked_color, data_root, named_folder
from tasks.data.images import TorchvisionDownload
from tasks.data.sets import ImageSet, labeled_set
from tasks.data.store import open_store
from tasks.data.survey import survey_files
from tasks.data.tree import (
    MAX_LEFT_OUT,
    Listing,
    check_max_left_out,
    class_folders,
    find_splits,
    list_tree,
)

IMAGENETTE = {  # names of fastai
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
# torchvision's name for the size, ending of the folder, shorter side (the full set has no common one), megabytes
IMAGENETTE_SIZES = (("160px", "-160", 160, 99), ("320px", "-320", 320, 341), ("full", "", 1 << 30, 1557))

log = logging.getLogger("actbench")


def imagenette(
    root: str, *, download: bool = False, stored: int = 160, in_memory: bool | str = "auto", cache: str
) -> ImageSet:
    """Imagenette (Howard, https://github.com/fastai/imagenette): ten classes of ImageNet; the test is its ``val``.

    Args:
        root: the folder that holds ``train`` and ``val``, or the folder (or archive) ``imagenette2-160`` and so on.
        download: whether torchvision may download the smallest size that has ``stored`` pixels into ``root``.
        stored: side of the square that is stored of each image, in pixels.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images, 1 GB at 160.

    Raises:
        ValueError: no such files in ``root``, another class than the ten, or an unreadable image.
    """
    check_bool("download", download)
    check_int("stored", stored, minimum=1)
    with data_root(root) as folder:
        if not (folder / "train").is_dir():
            folder /= _unpacked_imagenette(folder, stored, download)
        files = list_tree(folder, ("train", "val"))
        if unknown := set(files.classes) - IMAGENETTE.keys():
            raise LayoutError(
                f"{min(unknown)} is none of Imagenette's ten classes; task=image_folder accepts any folders"
            )
        names = [f"{IMAGENETTE[wnid]} ({wnid})" for wnid in files.classes]
        return _image_set(folder, files, names, stored=stored, in_memory=in_memory, cache=cache)


def imagenet_subset(
    root: str,
    *,
    classes: int | Sequence[str] | str,
    stored: int = 256,
    in_memory: bool | str = "auto",
    cache: str,
) -> ImageSet:
    """Some classes of an ImageNet tree {train,val}/<wnid>/ (arXiv 1409.0575); the test is its ``val``.

    Args:
        root: the folder that holds ``train`` and ``val``.
        classes: a number K, for the first K wnids of ``train`` in alphabetical order; a list of wnids; or a file
            with a wnid at the beginning of each line, and optionally a name after it. ``#`` begins a comment.
        stored: side of the square that is stored of each image, in pixels.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images, 0.26 GB for each class at 256.

    Raises:
        ValueError: a folder or wnid that does not exist, more classes than there are, or an unreadable image.
    """
    check_int("stored", stored, minimum=1)
    with data_root(root) as folder:
        available = list(class_folders(folder, "train"))
        named = _chosen(classes, available)
        if missing := [wnid for wnid in named if wnid not in available]:
            raise ValueError(
                f"classes: no folder {missing[0]} in {folder / 'train'}, which has {len(available)}, from "
                f"{available[0]} to {available[-1]}"
            )
        files = list_tree(folder, ("train", "val"), sorted(named))
        names = [named[wnid] for wnid in files.classes]
        return _image_set(folder, files, names, stored=stored, in_memory=in_memory, cache=cache)


def image_folder(
    root: str,
    *,
    stored: int = 160,
    enlarge: bool = False,
    background: Color = WHITE,
    max_left_out: float = MAX_LEFT_OUT,
    in_memory: bool | str = "auto",
    cache: str,
) -> ImageSet:
    """Any folder of classes: {train,test}/<class>/, {train,val}/<class>/ or just <class>/, with images at any depth.

    The folders of splits may have any of the names of ``tree.SPLITS``, and may be in the only folder of ``root`` that
    holds a training split. Where there are both ``test`` and ``val``, ``val`` is not used: validation is held out of
    ``train``. Without either, so is the test (``test_fraction`` of the task).

    Args:
        root: the folder.
        stored: side of the square that is stored of each image, in pixels.
        enlarge: whether images smaller than that are enlarged; else they are an error.
        background: color beneath transparent pixels.
        max_left_out: maximum share of the files that may be left out, as they have another format or are in no folder
            of a class; lists and descriptions do not count.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images.

    Raises:
        ValueError: no such folder, a class without images, classes that differ between the splits, too many files left
            out, an unreadable image, or one that is too small.
    """
    check_int("stored", stored, minimum=1)
    check_bool("enlarge", enlarge)
    check_max_left_out(max_left_out)
    ground = checked_color("background", background)
    with data_root(root) as folder:
        if not folder.is_dir():
            raise LayoutError("no such folder; must contain a folder for each class")
        base, names = find_splits(folder)
        if names and "train" not in names:
            raise LayoutError(f"has {' and '.join(names.values())} but no training split (train, training)")
        held_out = names.get("test", names.get("val"))
        splits = tuple(filter(None, (names.get("train", "."), held_out)))
        if held_out is None:
            log.warning(
                "data: %s: no folder of a test split (test, testing, val, valid, validation): it is a part of %s "
                "(task.test_fraction)",
                *(base, names.get("train", "all images")),
            )
        else:
            log.info("data: training on %s/%s, test on %s", base, *splits)
        files = list_tree(base, splits, max_left_out=max_left_out)
        return _image_set(
            base,
            files,
            files.classes,
            stored=stored,
            enlarge=enlarge,
            in_memory=in_memory,
            cache=cache,
            background=ground,
            splits=dict(zip(("train", "test"), splits, strict=False)),
        )


def _image_set(
    folder: Path,
    files: Listing,
    names: Sequence[str],
    *,
    stored: int,
    enlarge: bool = True,
    in_memory: bool | str,
    cache: str,
    background: Color = WHITE,
    splits: Mapping[str, str] | None = None,
) -> ImageSet:
    read = ReadImages(files.paths, stored, enlarge, background)
    # part of the key, as a set that was enlarged may have small images
    kind = f"images-3 {stored} {'enlarge' if enlarge else 'refuse'} {background}"
    entry = CacheEntry(named_folder("cache", cache), key_of_files(kind, folder, files.paths))
    store = open_store(read, len(files.paths), read.shape, in_memory=in_memory, cache=entry)
    survey = survey_files(
        files.paths,
        files.labels,
        files.classes,
        f"stored {stored}, {files.num_train} to train",
        entry,
        background=background,
        left_out=files.left_out,
        splits=splits or {"train": "train", "test": "val"},
    )
    return labeled_set(
        store,
        torch.tensor(files.labels),
        files.num_train,
        classes=tuple(names),
        fingerprint=survey.fingerprint,
        cache=entry,
        survey=survey,
    )


def _chosen(classes: int | Sequence[str] | str, available: Sequence[str]) -> dict[str, str]:
    """Return wnid -> name of the classes that the setting ``classes`` names."""
    if isinstance(classes, str):
        path = Path(classes).expanduser()
        if not path.is_file():
            raise ValueError(f"classes={classes}: no such file; must be a file, a list of wnids or a number")
        lines = [line.partition("#")[0].split(maxsplit=1) for line in path.read_text().splitlines()]
        chosen = {wnid: " ".join(name).strip() or wnid for wnid, *name in filter(None, lines)}
    elif isinstance(classes, Sequence):
        chosen = {str(wnid): str(wnid) for wnid in classes}
    else:
        check_int("classes", classes, minimum=2, maximum=len(available))
        chosen = {wnid: wnid for wnid in available[:classes]}
    if wrong := [wnid for wnid in chosen if not re.fullmatch(r"n\d{8}", wnid)]:
        raise ValueError(f"classes: {wrong[0]} is no wnid, which is n and eight digits, such as n01440764")
    if len(chosen) < 2:
        raise ValueError(f"classes={classes}: must name two classes or more")
    return chosen


def _unpacked_imagenette(root: Path, stored: int, download: bool) -> str:
    """Return the folder below ``root`` with the smallest size that has ``stored`` pixels, unpacked or downloaded.

    It appears as a whole, as half of it could be mistaken for all of it.
    """
    sizes = {
        size: (f"imagenette2{suffix}", mb) for size, suffix, side, mb in IMAGENETTE_SIZES if side >= stored
    }
    if unpacked := [name for name, _ in sizes.values() if (root / name).is_dir()]:
        return unpacked[0]
    size, (name, megabytes) = next(iter(sizes.items()))
    tree = "train/ and val/ with a folder of images for each class, or "
    source = TorchvisionDownload("Imagenette", name, (f"{name}.tgz",), megabytes, tree)

    def load() -> None:
        with TemporaryDirectory(dir=root, prefix=".actbench-") as temporary:
            if source.has_archives(root):  # torchvision then downloads it only if it is damaged
                (Path(temporary) / f"{name}.tgz").symlink_to((root / f"{name}.tgz").resolve())
            source.open(root, download, into=Path(temporary), size=size)
            (Path(temporary) / name).rename(root / name)

    source.ensure(root, download, load)
    return name
