"""Images with a class for every pixel: CamVid and other folders, Oxford-IIIT Pet, PASCAL VOC 2012."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.base import check_bool, check_list, check_whole
from tasks.data.cache import key_of_files
from tasks.data.files import EXTENSIONS, fingerprint_of_files, named_folder, read_image, warn_of_others
from tasks.data.images import Published
from tasks.data.pairs import ILLEGAL, VOID, Pairs, ReadPairs, names_in, pairs_in
from tasks.data.store import Store, open_store

MOST_CLASSES = 254

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv monitor",
)


@dataclass(frozen=True)
class MaskSet:
    """Images and masks of one size.

    Attributes:
        store: samples of 4 planes: red, green, blue, and the class or VOID.
        train, val, test: positions of the splits; ``val`` and ``test`` are None where the source has none.
        classes: names, in the order of the numbers.
        fingerprint: hash of the content, the same wherever and however it is stored.
        kept: where the cache may keep what is computed from them, see ``store.mean_std``.
    """

    store: Store
    train: Tensor
    val: Tensor | None
    test: Tensor | None
    classes: tuple[str, ...]
    fingerprint: str
    kept: tuple[Path, str] | None = None


def mask_folder(
    root: str,
    *,
    class_names: Sequence[str],
    ignore_index: int | None,
    size: Sequence[int] | None = None,
    in_memory: bool | str = "auto",
    cache: str,
) -> MaskSet:
    """A folder {train,val,test}/{images/*.{jpg,png},labels/*.png}; image and mask have the same name but its ending.

    Args:
        root: the folder. Where ``val`` or ``test`` is missing, the task holds out a part of ``train``.
        class_names: names of the values 0, 1, 2, ... of the masks; 2 to 254 of them.
        ignore_index: the value of pixels that do not count, above those of the classes and at most 255, or None.
        size: [H, W] to resize all to, evaluation included; None if they are of one size already.
        in_memory, cache: see ``store.open_store``; 4 bytes a pixel.

    Raises:
        ValueError: a folder missing or empty, images without masks or the other way round, any file that
            ``ReadPairs`` cannot make a sample of.
    """
    names, number = _class_names(class_names), len(class_names)
    if ignore_index is not None:
        check_whole("task.data.ignore_index", ignore_index, 0)
        if not number <= ignore_index <= 255:
            raise ValueError(
                f"task.data.ignore_index={ignore_index}: {number} to 255 are legal, or null; {number} classes have "
                f"the values 0 to {number - 1}"
            )
    folder = named_folder("task.data.root", root)
    if not (folder / "train").is_dir():
        raise ValueError(
            f"task.data.root={root}: {'has no folder train/' if folder.is_dir() else 'no such folder'}; "
            "needed is {train,val,test}/{images,labels}/"
        )
    splits = {
        split: pairs_in(root, folder / split)
        for split in ("train", "val", "test")
        if (folder / split).is_dir()
    }
    endings = {"images": EXTENSIONS, "labels": (".png",)}
    warn_of_others(
        folder, [(folder / split / name, ending) for split in splits for name, ending in endings.items()]
    )
    values = {number: number for number in range(number)}
    if ignore_index is not None:
        values[ignore_index] = VOID
    return _mask_set(root, splits, names, values, size, in_memory, cache)


def camvid(
    root: str, *, size: Sequence[int] | None = None, in_memory: bool | str = "auto", cache: str
) -> MaskSet:
    """CamVid (Brostow, Fauqueur, Cipolla 2009) with the 11 classes of SegNet (arXiv 1511.00561), void = 11.

    Args:
        root: the folder of ``mask_folder``'s layout.
        size, in_memory, cache: see ``mask_folder``.
    """
    return mask_folder(
        root, class_names=CAMVID, ignore_index=len(CAMVID), size=size, in_memory=in_memory, cache=cache
    )


def voc2012(
    root: str, *, size: Sequence[int], download: bool = False, in_memory: bool | str = "auto", cache: str
) -> MaskSet:
    """The segmentation part of PASCAL VOC 2012: 1,464 images to train on, 1,449 of its ``val`` as the test.

    The masks of its own test are not public. 21 classes with the background; void is the outlines (255).

    Args:
        root: the folder that holds ``VOCdevkit/VOC2012``.
        size: [H, W] to resize all to, evaluation included.
        download: let torchvision download the archive (2 GB) into ``root`` if it is not there.
        in_memory, cache: see ``mask_folder``.
    """
    base, tar = Path("VOCdevkit/VOC2012"), "VOCtrainval_11-May-2012.tar"
    published = Published("VOCSegmentation", f"{base}/SegmentationClass", (tar,), 2000, tree="")
    base = _fetched(published, root, download, year="2012", image_set="train") / base
    splits = {}
    for split, name in (("train", "train"), ("test", "val")):
        ids = names_in(root, base / "ImageSets" / "Segmentation" / f"{name}.txt")
        splits[split] = [
            (base / "JPEGImages" / f"{id}.jpg", base / "SegmentationClass" / f"{id}.png") for id in ids
        ]
    values = {value: value for value in range(len(VOC))} | {255: VOID}
    return _mask_set(root, splits, VOC, values, size, in_memory, cache)


def oxford_pets(
    root: str, *, size: Sequence[int], download: bool = False, in_memory: bool | str = "auto", cache: str
) -> MaskSet:
    """Oxford-IIIT Pet (Parkhi et al., CVPR 2012): cats and dogs, 3,680 images to train on and 3,669 to test.

    Two classes, background and pet. The border of the trimaps, a seam several pixels wide in which either may be,
    is void.

    Args:
        root: the folder that holds ``oxford-iiit-pet``, with ``images`` and ``annotations`` in it.
        size: [H, W] to resize all to, evaluation included.
        download: let torchvision download the archives (800 MB) into ``root`` if they are not there.
        in_memory, cache: see ``mask_folder``.
    """
    base = Path("oxford-iiit-pet")
    archives = (f"{base}/images.tar.gz", f"{base}/annotations.tar.gz")
    published = Published("OxfordIIITPet", f"{base}/annotations/trimaps", archives, 800, tree="")
    base = _fetched(published, root, download, target_types="segmentation") / base
    splits = {}
    for split, name in (("train", "trainval"), ("test", "test")):
        ids = [line.split()[0] for line in names_in(root, base / "annotations" / f"{name}.txt")]
        splits[split] = [
            (base / "images" / f"{id}.jpg", base / "annotations" / "trimaps" / f"{id}.png") for id in ids
        ]
    return _mask_set(root, splits, ("background", "pet"), {2: 0, 1: 1, 3: VOID}, size, in_memory, cache)


def _mask_set(
    root: str,
    splits: Mapping[str, Pairs],
    classes: tuple[str, ...],
    values: Mapping[int, int],
    size: Sequence[int] | None,
    in_memory: bool | str,
    cache: str,
) -> MaskSet:
    """The set of the files in ``splits``; ``values`` says what becomes of each value of a mask."""
    if size is not None:
        check_list("task.data.size", size, "whole and at least 1", lambda v: v >= 1 and v == int(v), length=2)
    pairs = [pair for split in splits.values() for pair in split]
    files = [path for pair in pairs for path in pair]
    if missing := next((path for path in files if not path.is_file()), None):
        raise ValueError(f"task.data.root={root}: no file {missing}")
    table = np.full(256, ILLEGAL, dtype=np.uint8)
    table[list(values)] = list(values.values())
    height, width = map(int, size or reversed(read_image(pairs[0][0]).size))
    kind = f"masks-1 {'of' if size is None else 'to'} {height} x {width} {table.tobytes().hex()}"
    place, key = (
        named_folder("task.data.cache", cache),
        key_of_files(kind, named_folder("task.data.root", root), files),
    )
    store = open_store(
        ReadPairs(pairs, (height, width), size is not None, table),
        *(len(pairs), (4, height, width)),
        in_memory=in_memory,
        cache=place,
        key=key,
    )
    sizes = {split: len(part) for split, part in splits.items()}
    parts = dict(zip(sizes, torch.arange(len(pairs)).split(list(sizes.values())), strict=True))
    facts = f"{kind} {classes} {sizes}"
    return MaskSet(
        store,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        classes=classes,
        fingerprint=fingerprint_of_files(files, [0, 1] * len(pairs), classes, facts, (place, key)),
        kept=(place, key),
    )


def _class_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, as they should be."""
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not 2 <= len(names) <= MOST_CLASSES or len(set(map(str, names))) != len(names):
        raise ValueError(
            f"task.data.class_names={names}: a list of 2 to {MOST_CLASSES} different names is needed"
        )
    return tuple(map(str, names))


def _fetched(published: Published, root: str, download: bool, **kwargs: Any) -> Path:
    """The root folder, with the set in it."""
    check_bool("task.data.download", download)
    folder = named_folder("task.data.root", root)
    published.fetch(folder, download, lambda: published.load(folder, download, **kwargs))
    return folder


def hash_of(data: bytes | memoryview) -> str:
    """A fingerprint."""
    return hashlib.sha256(data).hexdigest()[:16]
