"""Images with a class for every pixel: CamVid and other folders, Oxford-IIIT Pet, PASCAL VOC 2012."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations.checks import check_bool, check_int, check_list
from tasks.data.cache import CacheEntry, key_of_files, save
from tasks.data.files import (
    WHITE,
    Color,
    LayoutError,
    checked_color,
    data_root,
    named_folder,
    printable,
    read_image,
)
from tasks.data.images import TorchvisionDownload
from tasks.data.pairs import ILLEGAL, VOID, CountNumbers, Pairs, ReadMask, ReadPairs, names_in, pairs_in
from tasks.data.sets import MaskSet
from tasks.data.store import open_store, over_all
from tasks.data.survey import survey_files
from tasks.data.tree import MAX_LEFT_OUT, LeftOut, check_max_left_out, find_splits

MAX_CLASSES = 254
CLASS_NAMES = ("background", "object")  # the default
VOID_NAME, OTHERS = "void", "others"  # reserved names in values and palette

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
    """A folder {train,val,test}/{images,labels}/; an image and its mask have the same name except for the ending.

    The folders of splits may have one of the names of ``tree.SPLITS``, those in them one of ``pairs.IMAGE_FOLDERS`` and
    ``pairs.MASK_FOLDERS``. The content of the masks is declared in one of three ways: class numbers from 0
    (``class_names``), other numbers (``values``) or colors (``palette``).

    Args:
        root: the folder. Where ``val`` or ``test`` is missing, the task holds out a part of ``train``.
        class_names: names of the values 0, 1, 2, ... of the masks, 2 to 254 of them; None for background and object,
            or where ``values`` or ``palette`` names them.
        ignore_index: the value of void pixels, <= 255 and not the value of a class, or None. Not used with ``palette``.
        values: number -> name of its class, such as {0: background, 255: object}; the name void is that of void pixels,
            and several numbers may have the same name. The classes are in the order of the numbers. A number that is
            named here is a class even if it equals ``ignore_index``.
        palette: name of a class -> its color [red, green, blue]; for the name void also ``others``, which means all
            other colors. The classes are in the order of their names.
        size: [H, W] to resize all samples to, for evaluation as well; None if they have one size already.
        background: color beneath transparent pixels of the images.
        max_left_out: maximum share of the files that may be left out.
        in_memory: true, false or auto; see ``open_store``.
        cache: folder for the decoded samples, 4 bytes per pixel.

    Raises:
        ValueError: a missing or empty folder, images without masks or masks without images, too many files left out, a
            file that ``ReadPairs`` cannot read, or masks of a single class.
    """
    check_max_left_out(max_left_out)
    classes, read_mask = _meaning(class_names, ignore_index, values, palette)
    ground = checked_color("background", background)
    with data_root(root) as folder:
        base, names = find_splits(folder) if folder.is_dir() else (folder, {})
        if "train" not in names:
            reason = "has no folder train/" if folder.is_dir() else "no such folder"
            raise LayoutError(f"{reason}; must contain {{train,val,test}}/{{images,labels}}/")
        left_out = LeftOut(folder)
        splits = {split: pairs_in(base / name, left_out) for split, name in names.items()}
        left_out.report(2 * sum(map(len, splits.values())), max_left_out)
        if "test" not in splits:
            log.warning(
                "data: %s: no folder of a test split (test, testing): it is a part of %s (task.test_fraction)",
                *(base, names["train"]),
            )
        return _mask_set(
            folder,
            splits,
            classes,
            read_mask,
            size=size,
            in_memory=in_memory,
            cache=cache,
            background=ground,
            left_out=left_out.names,
            folders=names,
        )


def _meaning(
    class_names: Sequence[str] | None,
    ignore_index: int | None,
    values: Mapping[int, str] | None,
    palette: Mapping[str, Sequence[int] | str] | None,
) -> tuple[tuple[str, ...], ReadMask]:
    """Return the classes, and the reader of their masks."""
    ways = {"class_names": class_names, "values": values, "palette": palette}
    if len(used := [name for name, value in ways.items() if value is not None]) > 1:
        raise ValueError(f"{used[0]}: must be null if {used[1]} is set, as both declare the classes")
    if ignore_index is not None:
        check_int("ignore_index", ignore_index, minimum=0)
    if palette is not None:
        return _of_palette(palette)
    if values is None:
        classes = _class_names("class_names", CLASS_NAMES if class_names is None else class_names)
        table = {number: number for number in range(len(classes))}
        minimum = len(classes)
    else:
        numbers = _checked_values(values)
        names = dict.fromkeys(name for name in numbers.values() if name != VOID_NAME)
        classes = _class_names("values", list(names))
        table = {n: VOID if name == VOID_NAME else classes.index(name) for n, name in numbers.items()}
        minimum = 0
    if ignore_index is not None:
        if not minimum <= ignore_index <= 255:
            raise ValueError(
                f"ignore_index={ignore_index}: must be from {minimum} to 255, or null"
                + (f"; the {minimum} classes have the values 0 to {minimum - 1}" if minimum else "")
            )
        table.setdefault(ignore_index, VOID)
    return classes, _numbers(table)


def _checked_values(values: object) -> dict[int, str]:
    """Return the setting ``values`` in the order of the numbers."""
    numbers = dict(values) if isinstance(values, Mapping) else {}
    if not numbers or any(isinstance(n, bool) or n not in range(256) for n in numbers):
        raise ValueError(
            f"values={values}: must be class names by numbers from 0 to 255, such as {{0: background, 255: object}}"
        )
    return {int(number): str(numbers[number]) for number in sorted(numbers)}


def _of_palette(palette: object) -> tuple[tuple[str, ...], ReadMask]:
    """Return the classes in the order of their names, and the reader of their colors."""
    colors: dict[tuple[int, int, int], int] = {}
    others = ILLEGAL
    if not isinstance(palette, Mapping):
        raise ValueError(f"palette={palette}: must be colors by class names, such as {{road: [128,64,128]}}")
    entries = {str(name): color for name, color in palette.items()}
    classes = _class_names("palette", sorted(entries.keys() - {VOID_NAME}))
    for name, color in entries.items():
        if name == VOID_NAME and color == OTHERS:
            others = VOID
            continue
        key = checked_color(f"palette.{name}", color)
        if key in colors:
            raise ValueError(f"palette.{name}={list(key)}: another class has this color already")
        colors[key] = VOID if name == VOID_NAME else classes.index(name)
    return classes, ReadMask(np.empty(0, dtype=np.uint8), colors, others)


def _numbers(table: Mapping[int, int]) -> ReadMask:
    """Return the reader of masks whose numbers have the meanings in ``table``: a class or VOID."""
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

    The masks of its own test split are not public. 21 classes with the background; the outlines are void (255).

    Args:
        root: the folder that holds ``VOCdevkit/VOC2012``.
        size: [H, W] to resize all samples to, for evaluation as well.
        download: whether torchvision may download the archive (2 GB) into ``root``.
        in_memory, cache: see ``mask_folder``.
    """
    base, tar = Path("VOCdevkit/VOC2012"), "VOCtrainval_11-May-2012.tar"
    source = TorchvisionDownload("VOCSegmentation", f"{base}/SegmentationClass", (tar,), 2000)
    with data_root(root) as folder:
        _ensure(source, folder, download, year="2012", image_set="train")
        images, masks = folder / base / "JPEGImages", folder / base / "SegmentationClass"
        splits = {}
        for split, name in (("train", "train"), ("test", "val")):
            names = names_in(folder / base / "ImageSets" / "Segmentation" / f"{name}.txt")
            splits[split] = [(images / f"{name}.jpg", masks / f"{name}.png") for name in names]
        read_mask = _numbers({value: value for value in range(len(VOC))} | {255: VOID})
        return _mask_set(folder, splits, VOC, read_mask, size=size, in_memory=in_memory, cache=cache)


def oxford_pets(
    root: str, *, size: Sequence[int], download: bool = False, in_memory: bool | str = "auto", cache: str
) -> MaskSet:
    """Oxford-IIIT Pet (Parkhi et al., CVPR 2012): cats and dogs, 3,680 images to train on and 3,669 to test.

    Two classes, background and pet. The border of the trimaps, a seam several pixels wide in which either may be,
    is void.

    Args:
        root: the folder that holds ``oxford-iiit-pet``, with ``images`` and ``annotations`` in it.
        size: [H, W] to resize all samples to, for evaluation as well.
        download: whether torchvision may download the archives (800 MB) into ``root``.
        in_memory, cache: see ``mask_folder``.
    """
    base = Path("oxford-iiit-pet")
    archives = (f"{base}/images.tar.gz", f"{base}/annotations.tar.gz")
    source = TorchvisionDownload("OxfordIIITPet", f"{base}/annotations/trimaps", archives, 800)
    with data_root(root) as folder:
        _ensure(source, folder, download, target_types="segmentation")
        images, lists = folder / base / "images", folder / base / "annotations"
        splits = {}
        for split, name in (("train", "trainval"), ("test", "test")):
            names = [line.split()[0] for line in names_in(lists / f"{name}.txt")]
            splits[split] = [(images / f"{name}.jpg", lists / "trimaps" / f"{name}.png") for name in names]
        read_mask = _numbers({2: 0, 1: 1, 3: VOID})
        classes = ("background", "pet")
        return _mask_set(folder, splits, classes, read_mask, size=size, in_memory=in_memory, cache=cache)


def _ensure(source: TorchvisionDownload, folder: Path, download: bool, **kwargs: Any) -> None:
    """Unpack or download the set; ``kwargs`` are torchvision's."""
    check_bool("download", download)
    source.ensure(folder, download, lambda: source.open(folder, download, **kwargs))


def _mask_set(
    folder: Path,
    splits: Mapping[str, Pairs],
    classes: tuple[str, ...],
    read_mask: ReadMask,
    *,
    size: Sequence[int] | None,
    in_memory: bool | str,
    cache: str,
    background: Color = WHITE,
    left_out: Mapping[str, Sequence[str]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> MaskSet:
    """Return the set of the files in ``splits``.

    Raises:
        LayoutError: a missing file, masks with different palettes or of a single class.
        ValueError: a file that ``ReadPairs`` cannot read.
    """
    if size is not None:
        check_list("size", size, length=2, integers=True, minimum=1)
    pairs = [pair for split in splits.values() for pair in split]
    files = [path for pair in pairs for path in pair]
    if missing := next((path for path in files if not path.is_file()), None):
        raise LayoutError(f"no file {printable(missing)}")
    height, width = map(int, size or reversed(read_image(pairs[0][0]).size))
    meaning = read_mask.table.tobytes().hex()
    if read_mask.colors is not None:
        meaning = f"{sorted(read_mask.colors.items())} {read_mask.others}"
    kind = f"{'of' if size is None else 'to'} {height} x {width} {meaning}"
    key = key_of_files(f"masks-2 {kind} {background}", folder, files)
    entry = CacheEntry(named_folder("cache", cache), key)
    sizes = {split: len(part) for split, part in splits.items()}
    parts = dict(zip(sizes, torch.arange(len(pairs)).split(list(sizes.values())), strict=True))
    pixels = _count_pixels([mask for _, mask in pairs], read_mask, entry)
    _check_two_classes(pixels, parts["train"], classes, read_mask)
    store = open_store(
        ReadPairs(pairs, (height, width), size is not None, read_mask, background),
        *(len(pairs), (4, height, width)),
        in_memory=in_memory,
        cache=entry,
    )
    survey = survey_files(
        files,
        [0, 1] * len(pairs),
        classes,
        f"masks-1 {kind} {classes} {sizes}",
        entry,
        background=background,
        step=2,
        left_out=left_out,
        splits=folders,
    )
    return MaskSet(
        store=store,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        classes=classes,
        fingerprint=survey.fingerprint,
        cache=entry,
        survey=survey,
        pixels=_by_class(pixels, read_mask, len(classes)),
    )


def _count_pixels(masks: Sequence[Path], read_mask: ReadMask, cache: CacheEntry) -> Tensor:
    """Count how often each number, or with a palette each class, occurs in each of ``masks``: (N, 256) int64.

    Raises:
        ValueError: a file that is no mask, or masks with different palettes.
    """
    colored = read_mask.colors is not None

    def build(entry: Path) -> None:
        results = over_all(CountNumbers(masks, read_mask if colored else None), len(masks), "reading masks")
        counts = np.concatenate([part for part, _ in results])
        _check_palettes(masks, counts, [palette for _, part in results for palette in part])
        save(entry, counts=counts.astype(np.int32))

    return torch.from_numpy(cache.arrays("numbers", build)["counts"]).long()


def _check_palettes(masks: Sequence[Path], counts: np.ndarray, palettes: Sequence[np.ndarray | None]) -> None:
    """Raise LayoutError if palettes give a number that is used different colors: the number then has no meaning."""
    colors: dict[int, tuple[Path, list[int]]] = {}
    for path, count, palette in zip(masks, counts, palettes, strict=True):
        if palette is None:
            continue
        for number in np.flatnonzero(count).tolist():
            color = palette[number].tolist()
            first, before = colors.setdefault(number, (path, color))
            if color != before:
                raise LayoutError(
                    f"masks have different palettes: {number} is {before} in {printable(first)} and {color} in "
                    f"{printable(path)}; declare the colors, palette={{name: [red,green,blue], ...}}, or save all masks "
                    "with one palette"
                )


def _check_two_classes(pixels: Tensor, train: Tensor, classes: Sequence[str], read_mask: ReadMask) -> None:
    """Raise LayoutError if the training masks have fewer than two classes: every network would be perfect at once."""
    by_class = _by_class(pixels, read_mask, len(classes))[train].sum(0)
    used = [name for name, count in zip(classes, by_class[:-1].tolist(), strict=True) if count]
    values = pixels.sum(0).nonzero().flatten().tolist()
    numbers = read_mask.colors is None
    if numbers and values == [0, 255] and read_mask.table[255] >= ILLEGAL:
        as_void = f"255 as void (ignore_index=255) leaves one class, {classes[0]}"
        raise LayoutError(
            f"the masks have only the values 0 and 255, and "
            f"{as_void if read_mask.table[255] == VOID else '255 is no class'}; if it is a class, set "
            "values={0: background, 255: object}"
        )
    illegal = numbers and (read_mask.table[values] == ILLEGAL).any()
    if len(used) < 2 and not illegal:  # an illegal value is reported with its file when the file is read
        raise LayoutError(
            f"the training masks have {f'only one class, {used[0]}' if used else 'no class'}"
            f"{', and void' if by_class[-1] else ''}; must have two classes or more"
        )


def _by_class(pixels: Tensor, read_mask: ReadMask, num_classes: int) -> Tensor:
    """Convert counts of numbers, (N, 256), to counts of classes, void last: (N, num_classes + 1)."""
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
    """Validate class names: 2 to 254 of them, all different."""
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not 2 <= len(names) <= MAX_CLASSES or len(set(map(str, names))) != len(names):
        raise ValueError(f"{setting}={names}: must be a list of 2 to {MAX_CLASSES} different names")
    return tuple(map(str, names))
