"""Image sets from trees of files of any size: Imagenette, subsets of ImageNet, any folder of classes."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tasks.base import check_bool, check_whole
from tasks.data.cache import key_of_files
from tasks.data.files import WHITE, Color, ReadImages, checked_color, named_folder
from tasks.data.images import ImageSet, Published
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

IMAGENETTE = {  # the names that fastai gives them
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
# torchvision's name for the size, shorter side (the full set has no common one), megabytes to download
IMAGENETTE_SIZES = (("160px", 160, 99), ("320px", 320, 341), ("full", 1 << 30, 1557))

log = logging.getLogger("actbench")


def imagenette(
    root: str, *, download: bool = False, stored: int = 160, in_memory: bool | str = "auto", cache: str
) -> ImageSet:
    """Imagenette (Howard, https://github.com/fastai/imagenette): ten classes of ImageNet; the test is its ``val``.

    Args:
        root: the folder that holds ``train`` and ``val``, or the folder (or archive) ``imagenette2-160`` and so on.
        download: let torchvision download the smallest size that has ``stored`` pixels into ``root``.
        stored: side of the square that is kept of each image.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images, 1 GB at 160.

    Raises:
        ValueError: nothing usable in ``root``, another class than the ten, or an unreadable image.
    """
    check_bool("task.data.download", download)
    check_whole("task.data.stored", stored, 1)
    folder = named_folder("task.data.root", root)
    if not (folder / "train").is_dir():
        sizes = [(size, mb) for size, side, mb in IMAGENETTE_SIZES if side >= stored]
        folders = {size: "imagenette2" + f"-{size[:-2]}" * (size != "full") for size, _ in sizes}
        there = [name for name in folders.values() if (folder / name).is_dir()]
        if not there:
            size, megabytes = sizes[0]
            _unpack_imagenette(folder, folders[size], size, megabytes, download)
            there = [folders[size]]
        folder /= there[0]
    files = list_tree(root, folder, ("train", "val"))
    if unknown := set(files.classes) - IMAGENETTE.keys():
        raise ValueError(
            f"task.data.root={root}: {min(unknown)} is none of Imagenette's ten classes; "
            "task=image_folder takes any folders"
        )
    names = [f"{IMAGENETTE[wnid]} ({wnid})" for wnid in files.classes]
    return _image_set(folder, files, names, stored, True, in_memory, cache)


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
            with a wnid at the beginning of each line, and after it, if you like, a name. ``#`` begins a comment.
        stored: side of the square that is kept of each image.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images, 0.26 GB for each class at 256.

    Raises:
        ValueError: folders or a wnid not found, more classes than there are, or an unreadable image.
    """
    check_whole("task.data.stored", stored, 1)
    folder = named_folder("task.data.root", root)
    there = list(class_folders(root, folder, "train"))
    named = _chosen(classes, there)
    if missing := [wnid for wnid in named if wnid not in there]:
        raise ValueError(
            f"task.data.classes: no folder {missing[0]} in {folder / 'train'}, which has {len(there)}, from "
            f"{there[0]} to {there[-1]}"
        )
    files = list_tree(root, folder, ("train", "val"), sorted(named))
    names = [named[wnid] for wnid in files.classes]
    return _image_set(folder, files, names, stored, True, in_memory, cache)


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
    """Any folder of classes: {train,test}/<class>/, {train,val}/<class>/ or just <class>/, at any depth below them.

    The folders of splits may have any of the names of ``tree.SPLITS``, and may be in the only folder of ``root`` that
    holds a training split. Where there are both ``test`` and ``val``, ``val`` is left alone: validation is carved from
    ``train``. Without either, so is the test (``task.test_fraction``).

    Args:
        root: the folder.
        stored: side of the square that is kept of each image.
        enlarge: whether images smaller than that are enlarged; else they are an error.
        background: color beneath transparent pixels.
        max_left_out: largest share of the files that may be left out, as they are of another format or in no folder of a
            class; lists and descriptions do not count.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded images.

    Raises:
        ValueError: no such folder, a class without images, classes that differ between the splits, too many files left
            out, an unreadable image, or one that is too small.
    """
    check_whole("task.data.stored", stored, 1)
    check_bool("task.data.enlarge", enlarge)
    check_max_left_out(max_left_out)
    ground = checked_color("task.data.background", background)
    folder = named_folder("task.data.root", root)
    if not folder.is_dir():
        raise ValueError(f"task.data.root={root}: no such folder; one with a folder for each class is needed")
    base, there = find_splits(root, folder)
    if there and "train" not in there:
        raise ValueError(
            f"task.data.root={root}: has {' and '.join(there.values())} but no training split (train, training)"
        )
    held_out = there.get("test", there.get("val"))
    splits = tuple(filter(None, (there.get("train", "."), held_out)))
    if held_out is None:
        log.warning(
            "data: %s: no folder of a test split (test, testing, val, valid, validation): it is a part of %s "
            "(task.test_fraction)",
            *(base, there.get("train", "all images")),
        )
    else:
        log.info("data: training on %s/%s, test on %s", base, *splits)
    files = list_tree(root, base, splits, max_left_out=max_left_out)
    names = dict(zip(("train", "test"), splits, strict=False))
    return _image_set(
        base, files, files.classes, stored, enlarge, in_memory, cache, background=ground, splits=names
    )


def _image_set(
    folder: Path,
    files: Listing,
    names: Sequence[str],
    stored: int,
    enlarge: bool,
    in_memory: bool | str,
    cache: str,
    *,
    background: Color = WHITE,
    splits: Mapping[str, str] | None = None,
) -> ImageSet:
    read = ReadImages(files.paths, stored, enlarge, background)
    # a set that was enlarged may have small images
    kind = f"images-3 {stored} {'enlarge' if enlarge else 'refuse'} {background}"
    kept = named_folder("task.data.cache", cache), key_of_files(kind, folder, files.paths)
    store = open_store(read, len(files.paths), read.shape, in_memory=in_memory, cache=kept[0], key=kept[1])
    count, num_train = len(files.paths), files.num_train
    survey = survey_files(
        files.paths,
        files.labels,
        files.classes,
        f"stored {stored}, {num_train} to train",
        kept,
        background=background,
        left_out=files.left_out,
        splits=splits or {"train": "train", "test": "val"},
    )
    return ImageSet(
        store,
        torch.tensor(files.labels),
        train=torch.arange(num_train),
        test=torch.arange(num_train, count) if num_train < count else None,
        classes=tuple(names),
        fingerprint=survey.fingerprint,
        kept=kept,
        survey=survey,
    )


def _chosen(classes: int | Sequence[str] | str, there: Sequence[str]) -> dict[str, str]:
    """Wnid -> name of the classes that the user asks for."""
    at = "task.data.classes"
    if isinstance(classes, str):
        path = Path(classes).expanduser()
        if not path.is_file():
            raise ValueError(f"{at}={classes}: no such file; legal are a file, a list of wnids or a number")
        lines = [line.partition("#")[0].split(maxsplit=1) for line in path.read_text().splitlines()]
        chosen = {wnid: " ".join(name).strip() or wnid for wnid, *name in filter(None, lines)}
    elif isinstance(classes, Sequence):
        chosen = {str(wnid): str(wnid) for wnid in classes}
    else:
        check_whole(at, classes, 2)
        if classes > len(there):
            raise ValueError(f"{at}={classes}: there are {len(there)} in train/")
        chosen = {wnid: wnid for wnid in there[:classes]}
    if wrong := [wnid for wnid in chosen if not re.fullmatch(r"n\d{8}", wnid)]:
        raise ValueError(f"{at}: {wrong[0]} is no wnid, which is n and eight digits, such as n01440764")
    if len(chosen) < 2:
        raise ValueError(f"{at}={classes}: two classes or more are needed")
    return chosen


def _unpack_imagenette(folder: Path, name: str, size: str, megabytes: int, download: bool) -> None:
    """Download or unpack ``folder/name``; it appears as a whole, as half of it would pass for all."""
    tree = "train/ and val/ with a folder of images for each class, or "
    published = Published("Imagenette", name, (f"{name}.tgz",), megabytes, tree)

    def load() -> None:
        with TemporaryDirectory(dir=folder, prefix=".actbench-") as temporary:
            if published.packed(folder):  # and need not be downloaded again unless it is damaged
                (Path(temporary) / f"{name}.tgz").symlink_to((folder / f"{name}.tgz").resolve())
            published.load(folder, download, into=Path(temporary), size=size)
            (Path(temporary) / name).rename(folder / name)

    published.fetch(folder, download, load)
