"""Images with a class for every pixel: CamVid and other folders, Oxford-IIIT Pet, PASCAL VOC 2012."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.base import check_bool, check_list, check_whole
from tasks.data.cache import cached, key_of_files, save
from tasks.data.files import WHITE, Color, checked_color, named_folder, printable, read_image
from tasks.data.images import Published
from tasks.data.pairs import ILLEGAL, VOID, CountNumbers, Pairs, ReadMask, ReadPairs, names_in, pairs_in
from tasks.data.store import Store, open_store, over_all
from tasks.data.survey import Survey, survey_files
from tasks.data.tree import MAX_LEFT_OUT, LeftOut, check_max_left_out, find_splits

MOST_CLASSES = 254
CLASS_NAMES = ("background", "object")  # where the user names none
VOID_NAME, OTHERS = "void", "others"  # words in values and palette

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv monitor",
)


log = logging.getLogger("actbench")


@dataclass(frozen=True)
class MaskSet:
    """Images and masks of one size.

    Attributes:
        store: samples of 4 planes: red, green, blue, and the class or VOID.
        train, val, test: positions of the splits; ``val`` and ``test`` are None where the source has none.
        classes: names, in the order of the numbers.
        fingerprint: hash of the content, the same wherever and however it is stored.
        kept: where the cache may keep what is computed from them, see ``store.mean_std``.
        survey: what is known of the files; None of a set that is none of files.
        pixels: (N, classes + 1) int64, how many pixels of each mask's file have each class, void last; None of a set
            that is none of files.
    """

    store: Store
    train: Tensor
    val: Tensor | None
    test: Tensor | None
    classes: tuple[str, ...]
    fingerprint: str
    kept: tuple[Path, str] | None = None
    survey: Survey | None = None
    pixels: Tensor | None = None


def mask_folder(
    root: str,
    *,
    class_names: Sequence[str] | None,
    ignore_index: int | None,
    values: Mapping[int, str] | None = None,
    palette: Mapping[str, Sequence[int] | str] | None = None,
    size: Sequence[int] | None = None,
    background: Color = WHITE,
    max_left_out: float = MAX_LEFT_OUT,
    in_memory: bool | str = "auto",
    cache: str,
) -> MaskSet:
    """A folder {train,val,test}/{images,labels}/; image and mask have the same name but its ending.

    The folders of splits may have one of the names of ``tree.SPLITS``, those in them one of ``pairs.IMAGE_FOLDERS`` and
    ``pairs.MASK_FOLDERS``. What the masks hold is said in one of three ways: class numbers from 0 (``class_names``),
    other numbers (``values``) or colors (``palette``).

    Args:
        root: the folder. Where ``val`` or ``test`` is missing, the task holds out a part of ``train``.
        class_names: names of the values 0, 1, 2, ... of the masks, 2 to 254 of them; None for background and object,
            or where ``values`` or ``palette`` names them.
        ignore_index: the value of pixels that do not count, at most 255 and none of a class (above them, or not in
            ``values``), or None. ``palette`` does without.
        values: number -> name of its class, such as {0: background, 255: object}; the name void is that of pixels that
            do not count, and several numbers may have one name. The classes are in the order of the numbers. A number
            that is named here is not void for being ``ignore_index``.
        palette: name of a class -> its color [red, green, blue]; for the name void also ``others``, which are all
            colors not named. The classes are in the order of their names.
        size: [H, W] to resize all to, evaluation included; None if they are of one size already.
        background: color beneath transparent pixels of the images.
        max_left_out: largest share of the files that may be left out.
        in_memory, cache: see ``store.open_store``; 4 bytes a pixel.

    Raises:
        ValueError: a folder missing or empty, images without masks or the other way round, too many files left out, any
            file that ``ReadPairs`` cannot make a sample of, or masks of one class alone.
    """
    check_max_left_out(max_left_out)
    classes, read_mask = _meaning(class_names, ignore_index, values, palette)
    folder = named_folder("task.data.root", root)
    base, names = find_splits(root, folder) if folder.is_dir() else (folder, {})
    if "train" not in names:
        raise ValueError(
            f"task.data.root={root}: {'has no folder train/' if folder.is_dir() else 'no such folder'}; "
            "needed is {train,val,test}/{images,labels}/"
        )
    left_out = LeftOut(folder)
    splits = {split: pairs_in(root, base / name, left_out) for split, name in names.items()}
    left_out.report(root, 2 * sum(map(len, splits.values())), max_left_out)
    if "test" not in splits:
        log.warning(
            "data: %s: no folder of a test split (test, testing): it is a part of %s (task.test_fraction)",
            *(base, names["train"]),
        )
    return _mask_set(
        root,
        splits,
        classes,
        read_mask,
        size,
        in_memory,
        cache,
        background=checked_color("task.data.background", background),
        left_out=left_out.names,
        folders=names,
    )


def _meaning(
    class_names: Sequence[str] | None,
    ignore_index: int | None,
    values: Mapping[int, str] | None,
    palette: Mapping[str, Sequence[int] | str] | None,
) -> tuple[tuple[str, ...], ReadMask]:
    """The classes, and the reader that finds them in a mask."""
    given = {"class_names": class_names, "values": values, "palette": palette}
    if len(used := [name for name, value in given.items() if value is not None]) > 1:
        raise ValueError(
            f"task.data.{used[0]} and task.data.{used[1]} both say what the classes are; set one to null"
        )
    if ignore_index is not None:
        check_whole("task.data.ignore_index", ignore_index, 0)
    if palette is not None:
        return _of_palette(palette)
    if values is None:
        classes = _class_names("class_names", CLASS_NAMES if class_names is None else class_names)
        table = {number: number for number in range(len(classes))}
        least = len(classes)
    else:
        numbers = _checked_values(values)
        names = dict.fromkeys(name for name in numbers.values() if name != VOID_NAME)
        classes = _class_names("values", list(names))
        table = {n: VOID if name == VOID_NAME else classes.index(name) for n, name in numbers.items()}
        least = 0
    if ignore_index is not None:
        if not least <= ignore_index <= 255:
            raise ValueError(
                f"task.data.ignore_index={ignore_index}: {least} to 255 are legal, or null"
                + (f"; {least} classes have the values 0 to {least - 1}" if least else "")
            )
        table.setdefault(ignore_index, VOID)
    return classes, _numbers(table)


def _checked_values(values: object) -> dict[int, str]:
    """``values`` in the order of their numbers."""
    numbers = dict(values) if isinstance(values, Mapping) else {}
    if not numbers or any(isinstance(n, bool) or n not in range(256) for n in numbers):
        raise ValueError(
            f"task.data.values={values}: class names by numbers of 0 to 255 are needed, such as "
            "{0: background, 255: object}"
        )
    return {int(number): str(numbers[number]) for number in sorted(numbers)}


def _of_palette(palette: object) -> tuple[tuple[str, ...], ReadMask]:
    """Classes in the order of their names, and the reader of their colors."""
    colors: dict[tuple[int, int, int], int] = {}
    others = ILLEGAL
    if not isinstance(palette, Mapping):
        raise ValueError(
            f"task.data.palette={palette}: colors by class names are needed, such as {{road: [128,64,128]}}"
        )
    given = {str(name): color for name, color in palette.items()}
    classes = _class_names("palette", sorted(given.keys() - {VOID_NAME}))
    for name, color in given.items():
        if name == VOID_NAME and color == OTHERS:
            others = VOID
            continue
        key = checked_color(f"task.data.palette.{name}", color)
        if key in colors:
            raise ValueError(f"task.data.palette.{name}={list(key)}: another class has this color already")
        colors[key] = VOID if name == VOID_NAME else classes.index(name)
    return classes, ReadMask(np.empty(0, dtype=np.uint8), colors, others)


def _numbers(table: Mapping[int, int]) -> ReadMask:
    """The reader of masks whose numbers mean what ``table`` says: a class or VOID."""
    full = np.full(256, ILLEGAL, dtype=np.uint8)
    full[list(table)] = list(table.values())
    return ReadMask(full)


def camvid(
    root: str, *, size: Sequence[int] | None = None, in_memory: bool | str = "auto", cache: str
) -> MaskSet:
    """CamVid (Brostow, Fauqueur, Cipolla 2009) with the 11 classes of SegNet (arXiv 1511.00561), void = 11.

    Args:
        root: the folder of ``mask_folder``'s layout.
        size, in_memory, cache: see ``mask_folder``.
    """
    return mask_folder(
        root,
        class_names=CAMVID,
        ignore_index=len(CAMVID),
        size=size,
        max_left_out=1.0,
        in_memory=in_memory,
        cache=cache,
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
    read_mask = _numbers({value: value for value in range(len(VOC))} | {255: VOID})
    return _mask_set(root, splits, VOC, read_mask, size, in_memory, cache)


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
    read_mask = _numbers({2: 0, 1: 1, 3: VOID})
    return _mask_set(root, splits, ("background", "pet"), read_mask, size, in_memory, cache)


def _mask_set(
    root: str,
    splits: Mapping[str, Pairs],
    classes: tuple[str, ...],
    read_mask: ReadMask,
    size: Sequence[int] | None,
    in_memory: bool | str,
    cache: str,
    *,
    background: Color = WHITE,
    left_out: Mapping[str, Sequence[str]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> MaskSet:
    """The set of the files in ``splits``."""
    if size is not None:
        check_list("task.data.size", size, "whole and at least 1", lambda v: v >= 1 and v == int(v), length=2)
    pairs = [pair for split in splits.values() for pair in split]
    files = [path for pair in pairs for path in pair]
    if missing := next((path for path in files if not path.is_file()), None):
        raise ValueError(f"task.data.root={root}: no file {printable(missing)}")
    height, width = map(int, size or reversed(read_image(pairs[0][0]).size))
    meaning = read_mask.table.tobytes().hex()
    if read_mask.colors is not None:
        meaning = f"{sorted(read_mask.colors.items())} {read_mask.others}"
    kind = f"{'of' if size is None else 'to'} {height} x {width} {meaning}"
    place = named_folder("task.data.cache", cache)
    key = key_of_files(f"masks-2 {kind} {background}", named_folder("task.data.root", root), files)
    sizes = {split: len(part) for split, part in splits.items()}
    parts = dict(zip(sizes, torch.arange(len(pairs)).split(list(sizes.values())), strict=True))
    pixels = _count_pixels(root, [mask for _, mask in pairs], read_mask, (place, key))
    _check_two_classes(root, pixels, parts["train"], classes, read_mask)
    store = open_store(
        ReadPairs(pairs, (height, width), size is not None, read_mask, background),
        *(len(pairs), (4, height, width)),
        in_memory=in_memory,
        cache=place,
        key=key,
    )
    survey = survey_files(
        files,
        [0, 1] * len(pairs),
        classes,
        f"masks-1 {kind} {classes} {sizes}",
        (place, key),
        background=background,
        step=2,
        left_out=left_out,
        splits=folders,
    )
    return MaskSet(
        store,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        classes=classes,
        fingerprint=survey.fingerprint,
        kept=(place, key),
        survey=survey,
        pixels=_by_class(pixels, read_mask, len(classes)),
    )


def _count_pixels(root: str, masks: Sequence[Path], read_mask: ReadMask, kept: tuple[Path, str]) -> Tensor:
    """How often each number, or with a palette each class, occurs in each of ``masks``: (N, 256) int64.

    Raises:
        ValueError: a file that is no mask, or masks with different palettes.
    """
    colored = read_mask.colors is not None

    def build(entry: Path) -> None:
        results = over_all(CountNumbers(masks, read_mask if colored else None), len(masks), "reading masks")
        counts = np.concatenate([part for part, _ in results])
        _check_palettes(root, masks, counts, [palette for _, part in results for palette in part])
        save(entry, counts=counts.astype(np.int32))

    return torch.from_numpy(cached(kept[0], f"numbers-{kept[1]}", build)["counts"]).long()


def _check_palettes(
    root: str, masks: Sequence[Path], counts: np.ndarray, palettes: Sequence[np.ndarray | None]
) -> None:
    """Refuse palettes that give one number, where it is used, different colors: the number then means nothing."""
    colors: dict[int, tuple[Path, list[int]]] = {}
    for path, count, palette in zip(masks, counts, palettes, strict=True):
        if palette is None:
            continue
        for number in np.flatnonzero(count).tolist():
            color = palette[number].tolist()
            first, before = colors.setdefault(number, (path, color))
            if color != before:
                raise ValueError(
                    f"task.data.root={root}: masks have different palettes: {number} is {before} in {printable(first)} "
                    f"and {color} in {printable(path)}; say what the colors mean, "
                    "task.data.palette={name: [red,green,blue], ...}, or save all with one palette"
                )


def _check_two_classes(
    root: str, pixels: Tensor, train: Tensor, classes: Sequence[str], read_mask: ReadMask
) -> None:
    """Refuse masks whose training part has fewer than two classes: every network would be perfect at once.

    Raises:
        ValueError: with the ways to read the masks.
    """
    by_class = _by_class(pixels, read_mask, len(classes))[train].sum(0)
    there = [name for name, count in zip(classes, by_class[:-1].tolist(), strict=True) if count]
    found = pixels.sum(0).nonzero().flatten().tolist()
    numbers = read_mask.colors is None
    if numbers and found == [0, 255] and read_mask.table[255] >= ILLEGAL:
        as_void = f"255 as void (task.data.ignore_index=255) leaves one class, {classes[0]}"
        raise ValueError(
            f"task.data.root={root}: the masks have the values 0 and 255 alone, and "
            f"{as_void if read_mask.table[255] == VOID else '255 is no class'}; where it is one, set "
            "task.data.values={0: background, 255: object}"
        )
    illegal = numbers and (read_mask.table[found] == ILLEGAL).any()
    if len(there) < 2 and not illegal:  # an illegal value is said with its file when the file is read
        raise ValueError(
            f"task.data.root={root}: the training masks have {f'one class alone, {there[0]}' if there else 'no class'}"
            f"{', and void' if by_class[-1] else ''}; two classes or more are needed"
        )


def _by_class(pixels: Tensor, read_mask: ReadMask, num_classes: int) -> Tensor:
    """Counts of numbers, (N, 256), as counts of classes, void last: (N, num_classes + 1)."""
    # masks of colors are counted by class
    table = np.arange(256) if read_mask.colors is not None else read_mask.table
    counts = torch.zeros(len(pixels), num_classes + 1, dtype=torch.int64)
    for number, meaning in enumerate(table.tolist()):
        if meaning < num_classes:
            counts[:, meaning] += pixels[:, number]
        elif meaning == VOID:
            counts[:, num_classes] += pixels[:, number]
    return counts


def _class_names(setting: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, as they should be."""
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not 2 <= len(names) <= MOST_CLASSES or len(set(map(str, names))) != len(names):
        raise ValueError(
            f"task.data.{setting}={names}: a list of 2 to {MOST_CLASSES} different names is needed"
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
