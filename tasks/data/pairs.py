"""Files of images and of their masks: which belong together, and how a pair is read."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.base import summarize
from tasks.data.files import WHITE, Color, LayoutError, printable, read_image, unreadable, upright
from tasks.data.tree import IMAGES, LeftOut, files_below, only_one

if TYPE_CHECKING:
    from PIL.Image import Image

VOID = 255  # in every store: a pixel without a class
ILLEGAL = 254  # while a mask is read: a value that is no class

# endings of masks; a JPEG is refused when it is read, so that the user learns why
MASKS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")
# names of the two folders of a split, lower case; messages mention the first of each
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("labels", "label", "masks", "mask", "annotations")

Pairs = Sequence[tuple[Path, Path]]  # image, mask


@dataclass(frozen=True)
class ReadMask:
    """Read a mask's file: the class of every pixel or VOID, (H, W) uint8.

    Args:
        table: (256,), the meaning of each number in a mask: a class, VOID or ILLEGAL.
        colors: the meaning of each color, for masks of colors; None for masks of numbers.
        others: the meaning of all other colors: VOID or ILLEGAL.

    Raises:
        ValueError: a file that is not a mask, or that holds an illegal number or color; the message names it.
    """

    table: np.ndarray
    colors: Mapping[tuple[int, int, int], int] | None = None
    others: int = ILLEGAL

    def __call__(self, path: Path) -> np.ndarray:
        if self.colors is not None:
            return self._of_colors(path)
        numbers = read_mask(path)
        classes = self.table[numbers]
        if (bad := numbers[classes == ILLEGAL]).size:
            raise ValueError(f"{printable(path)}: value {bad[0]} is no class; must be one of {self._legal()}")
        return classes

    def _of_colors(self, path: Path) -> np.ndarray:
        codes, classes = self._codes
        pixels = _read_colors(path) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
        places = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
        known = codes[places] == pixels
        if not known.all() and self.others == ILLEGAL:
            code = int(pixels[~known][0])
            color = [code >> 16, code >> 8 & 255, code & 255]
            legal = ", ".join(str(list(color)) for color in self.colors or ())
            raise ValueError(
                f"{printable(path)}: the color {color} is not in palette; must be one of {legal}; "
                "void: others makes all other colors void"
            )
        return np.where(known, classes[places], np.uint8(self.others))

    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the colors as numbers, sorted, and their classes."""
        assert self.colors is not None
        table = sorted((r << 16 | g << 8 | b, number) for (r, g, b), number in self.colors.items())
        return np.array([code for code, _ in table], np.uint32), np.array([n for _, n in table], np.uint8)

    def _legal(self) -> str:
        """Return the legal numbers in words, with those that mean void last."""
        classes, void = (
            ", ".join(str(value) for value in np.flatnonzero(which))
            for which in (self.table < ILLEGAL, self.table == VOID)
        )
        return classes + (f", and {void} for void" if void else "")


@dataclass(frozen=True)
class ReadPairs:
    """Read the image and the mask at a position, uint8 (4, H, W), for a store.

    Args:
        pairs: files of images and of masks.
        size: (H, W) of every sample.
        resize: whether images are resized to ``size`` (bilinear, antialiased) and masks sampled (nearest neighbor); else
            they must have that size.
        read_mask: reads the mask.
        background: color beneath transparent pixels of the images.

    Raises:
        ValueError: an unreadable file, an image and a mask of different size, or what ``read_mask`` raises; the message
            names the file.
    """

    pairs: Pairs
    size: tuple[int, int]
    resize: bool
    read_mask: ReadMask
    background: Color = WHITE

    def __call__(self, position: int) -> np.ndarray:
        from PIL import Image
        from PIL.Image import Resampling

        path, mask_path = self.pairs[position]
        image, mask = read_image(path, background=self.background), self.read_mask(mask_path)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"{printable(mask_path)}: the mask is {mask.shape[1]} x {mask.shape[0]}, "
                f"its image {image.width} x {image.height}"
            )
        if mask.shape != self.size:
            if not self.resize:
                raise ValueError(
                    f"{printable(path)}: is {image.width} x {image.height}, must be {self.size[1]} x {self.size[0]} as "
                    f"{printable(self.pairs[0][0])}; size=[H,W] resizes all"
                )
            image = image.resize(self.size[::-1], Resampling.BILINEAR)
            mask = np.asarray(Image.fromarray(mask).resize(self.size[::-1], Resampling.NEAREST))
        return np.concatenate((np.asarray(image).transpose(2, 0, 1), mask[None]))


@dataclass(frozen=True)
class CountNumbers:
    """Count how often each number occurs in the masks at some positions, (n, 256), and return their palettes.

    A palette is (256, 3) uint8; None where the mask has none.

    Args:
        masks: the files.
        read_mask: for masks of colors, of which the classes are counted; None for masks of numbers.
    """

    masks: Sequence[Path]
    read_mask: ReadMask | None = None

    def __call__(self, positions: list[int]) -> tuple[np.ndarray, list[np.ndarray | None]]:
        counts, palettes = [], []
        for position in positions:
            palette: np.ndarray | None = None
            if self.read_mask is not None:
                numbers = self.read_mask(self.masks[position])
            else:
                numbers, palette = read_numbers(self.masks[position])
            counts.append(np.bincount(numbers.ravel(), minlength=256))
            palettes.append(palette)
        return np.stack(counts), palettes


def read_mask(path: Path) -> np.ndarray:
    """Return the numbers in a mask's file, (H, W) uint8; the indices if it has a palette."""
    return read_numbers(path)[0]


def read_numbers(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the numbers in a mask's file, (H, W) uint8, and its palette, (256, 3) uint8, or None.

    The numbers are the values of gray of 1 to 16 bits and of color of three equal channels, and the indices of an image
    with a palette. The mask is turned by its EXIF orientation.

    Raises:
        ValueError: the file is not an image, or is truncated; it is a JPEG; it has colors, transparent pixels or values
            above 255.
    """
    image, unit = _open_mask(path)
    palette = None
    if image.mode == "P":
        colors = np.zeros((256, 3), dtype=np.uint8)
        entries = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        colors[: len(entries)] = entries
        palette = colors
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        values = _opaque(path, values)
        if (colored := (values != values[..., :1]).any(-1)).any():
            raise ValueError(
                f"{printable(path)}: a mask of mode {image.mode} with the color {values[colored][0].tolist()}; must "
                "contain class numbers, unless the meaning of colors is set: palette={name: [red,green,blue], ...}"
            )
        values = values[..., 0]
    elif image.mode not in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
        raise ValueError(
            f"{printable(path)}: a mask of mode {image.mode}; must be an 8-bit PNG of class numbers, gray or with a palette"
        )
    if values.dtype.itemsize > 1 and ((wrong := values[(values < 0) | (values > 255)]).size):
        raise ValueError(
            f"{printable(path)}: a mask of mode {image.mode} with the value {wrong[0]}; class numbers must be <= 255"
        )
    return values.astype(np.uint8) // unit, palette


def _read_colors(path: Path) -> np.ndarray:
    """Return the colors in a mask's file, (H, W, 3) uint32."""
    image, _ = _open_mask(path)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{printable(path)}: a mask of mode {image.mode}; must have colors of 8 bits")
    if image.has_transparency_data:
        return _opaque(path, np.asarray(image.convert("RGBA"))).astype(np.uint32)
    return np.asarray(image.convert("RGB")).astype(np.uint32)


def _open_mask(path: Path) -> tuple["Image", int]:
    """Return the mask as an image, upright, and the value that Pillow gives a 1 in it."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = upright(opened)
            image.load()
            lossy = opened.format in ("JPEG", "MPO") or opened.info.get("compression") == "jpeg"
        unit = _unit(path)
    except unreadable() as error:
        raise ValueError(f"{printable(path)}: not a readable image ({error})") from None
    if lossy:
        values = np.unique(np.asarray(image.convert("L"))).tolist()
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise ValueError(
            f"{printable(path)}: a mask saved as JPEG, which changes class numbers (it has the values {shown}); "
            "save masks as PNG"
        )
    return image, unit


def _opaque(path: Path, values: np.ndarray) -> np.ndarray:
    """Return pixels (H, W, channels) without the alpha channel of LA and RGBA, which must be opaque."""
    if values.shape[-1] in (2, 4):
        if (values[..., -1] < 255).any():
            raise ValueError(
                f"{printable(path)}: a mask with transparent pixels, which have no meaning; save it without alpha"
            )
        values = values[..., :-1]
    return values


def _unit(path: Path) -> int:
    """Return the value that Pillow gives a 1 in a mask: it scales gray of 2 and 4 bits to 0 ... 255."""
    with path.open("rb") as file:
        start = file.read(26)
    if not start.startswith(b"\x89PNG") or start[25] != 0:  # a palette's indices stay as they are
        return 1
    return {2: 85, 4: 17}.get(start[24], 1)


def pairs_in(folder: Path, left_out: LeftOut) -> Pairs:
    """Return the images and masks of a split, matched by name; other files go to ``left_out``.

    Raises:
        LayoutError: no files, or images and masks that do not match.
    """
    there = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    images_name = only_one(folder, there, IMAGE_FOLDERS) or IMAGE_FOLDERS[0]
    masks_name = only_one(folder, there, MASK_FOLDERS) or MASK_FOLDERS[0]
    images = _by_name(folder / images_name, IMAGES, left_out)
    masks = _by_name(folder / masks_name, MASKS, left_out)
    places = (f"{folder.name}/{images_name}/", f"{folder.name}/{masks_name}/")
    if not images and not masks:
        raise LayoutError(f"no images in {places[0]} and no masks in {places[1]}")
    if alone := [*(images.keys() - masks.keys()), *(masks.keys() - images.keys())]:
        raise LayoutError(
            f"{len(images)} images in {places[0]} and {len(masks)} masks in {places[1]}, matched by name; without a "
            f"partner: {printable(summarize(alone))}"
        )
    return [(images[name], masks[name]) for name in sorted(images)]


def _by_name(folder: Path, endings: tuple[str, ...], left_out: LeftOut) -> dict[str, Path]:
    """Return the files below ``folder`` by name, without the ending and in composed Unicode (NFC)."""
    files: dict[str, Path] = {}
    for path in files_below(folder, endings, left_out) if folder.is_dir() else ():
        name = unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix("")))
        if name in files:
            raise LayoutError(
                f"{files[name].name} and {path.name} in {folder} have the same name without the ending"
            )
        files[name] = path
    return files


def names_in(path: Path) -> list[str]:
    """Read one name per line; empty lines and lines that begin with # do not count."""
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from None
    if not (names := [line.strip() for line in lines if line.strip() and line[0] != "#"]):
        raise LayoutError(f"{path}: contains no names of images")
    return names
