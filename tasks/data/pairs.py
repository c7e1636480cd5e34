"""Files of images and of their masks: which belong together, and what a pair becomes."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.base import some
from tasks.data.files import WHITE, Color, printable, read_image, unreadable, upright
from tasks.data.tree import IMAGES, LeftOut, files_below, only_one

if TYPE_CHECKING:
    from PIL.Image import Image

VOID = 255  # in every store: a pixel without a class
ILLEGAL = 254  # while a mask is read: a value that its classes do not account for

# what masks are looked for as; a JPEG is refused when it is read, so that the user is told why
MASKS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")
# names of the two folders of a split, lower case; the first of each is what is asked for
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("labels", "label", "masks", "mask", "annotations")

Pairs = Sequence[tuple[Path, Path]]  # image, mask


@dataclass(frozen=True)
class ReadMask:
    """File -> class of every pixel or VOID, (H, W) uint8.

    Args:
        table: (256,), what becomes of a mask's number: a class, VOID or ILLEGAL.
        colors: what becomes of a color instead, for masks of colors; None for masks of numbers.
        others: what becomes of colors that are not among them: VOID or ILLEGAL.

    Raises:
        ValueError: a file that is not a mask, or that holds an illegal number or color; named.
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
            raise ValueError(
                f"{printable(path)}: value {bad[0]} is no class; legal values are {self._legal()}"
            )
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
                f"{printable(path)}: the color {color} is not in task.data.palette; legal are {legal}; "
                "void: others makes all other colors void"
            )
        return np.where(known, classes[places], np.uint8(self.others))

    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Colors as numbers, sorted, and their classes."""
        assert self.colors is not None
        table = sorted((r << 16 | g << 8 | b, number) for (r, g, b), number in self.colors.items())
        return np.array([code for code, _ in table], np.uint32), np.array([n for _, n in table], np.uint8)

    def _legal(self) -> str:
        """The numbers that mean something, with what they mean unless it is a class."""
        classes, void = (
            ", ".join(str(value) for value in np.flatnonzero(which))
            for which in (self.table < ILLEGAL, self.table == VOID)
        )
        return classes + (f", and {void} for void" if void else "")


@dataclass(frozen=True)
class ReadPairs:
    """Position -> image and mask, uint8 (4, H, W): what a store reads.

    Args:
        pairs: files of images and of masks.
        size: (H, W) of every sample. Where ``resize`` is set the image is resized to it (bilinear, antialiased)
            and the mask sampled (nearest neighbour), else both have it already.
        read_mask: see ``ReadMask``.
        background: color beneath transparent pixels of the images.

    Raises:
        ValueError: an unreadable file, an image and a mask of different size, or what ``read_mask`` refuses; named.
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
                    f"{printable(path)}: images of one size are needed, this one is {image.width} x {image.height}, "
                    f"{printable(self.pairs[0][0])} {self.size[1]} x {self.size[0]}; task.data.size=[H,W] resizes all"
                )
            image = image.resize(self.size[::-1], Resampling.BILINEAR)
            mask = np.asarray(Image.fromarray(mask).resize(self.size[::-1], Resampling.NEAREST))
        return np.concatenate((np.asarray(image).transpose(2, 0, 1), mask[None]))


@dataclass(frozen=True)
class CountNumbers:
    """Positions -> how often each number occurs in the masks there, (n, 256), and their palettes.

    A palette is (256, 3) uint8; None where the mask has none.

    Args:
        masks: the files.
        read_mask: for masks of colors: what is counted then are classes. None for masks of numbers.
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
    """The numbers in a mask's file, (H, W) uint8; of a palette image its indices."""
    return read_numbers(path)[0]


def read_numbers(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers in a mask's file, (H, W) uint8, and its palette, (256, 3) uint8, or None.

    Gray of 1 to 8 bits has its values, as has gray of 16 bits and color of three equal channels; an image with a
    palette has its indices. The mask is turned as its EXIF orientation says.

    Raises:
        ValueError: the file is not an image, or not all of one; it is a JPEG; it has colors, transparent pixels or
            values above 255.
    """
    image, unit = _open_mask(path)
    palette = None
    if image.mode == "P":
        colors = np.zeros((256, 3), dtype=np.uint8)
        given = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        colors[: len(given)] = given
        palette = colors
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        values = _opaque(path, values)
        if (colored := (values != values[..., :1]).any(-1)).any():
            raise ValueError(
                f"{printable(path)}: a mask of mode {image.mode} with the color {values[colored][0].tolist()}; class "
                "numbers are needed, or what each color means: task.data.palette={name: [red,green,blue], ...}"
            )
        values = values[..., 0]
    elif image.mode not in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
        raise ValueError(
            f"{printable(path)}: a mask of mode {image.mode}; an 8-bit PNG of class numbers is needed, gray or with a "
            "palette"
        )
    if values.dtype.itemsize > 1 and ((wrong := values[(values < 0) | (values > 255)]).size):
        raise ValueError(
            f"{printable(path)}: a mask of mode {image.mode} with the value {wrong[0]}; class numbers up to 255 are needed"
        )
    return values.astype(np.uint8) // unit, palette


def _read_colors(path: Path) -> np.ndarray:
    """The colors in a mask's file, (H, W, 3) uint32."""
    image, _ = _open_mask(path)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{printable(path)}: a mask of mode {image.mode}; colors of 8 bits are needed")
    if image.has_transparency_data:
        return _opaque(path, np.asarray(image.convert("RGBA"))).astype(np.uint32)
    return np.asarray(image.convert("RGB")).astype(np.uint32)


def _open_mask(path: Path) -> tuple["Image", int]:
    """The mask as an image, upright, and what Pillow makes of a 1 in it."""
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
            f"{printable(path)}: a mask saved as JPEG, which changes class numbers (here are the values {shown}); "
            "save masks as PNG"
        )
    return image, unit


def _opaque(path: Path, values: np.ndarray) -> np.ndarray:
    """(H, W, channels) without the alpha channel of LA and RGBA, which must be opaque."""
    if values.shape[-1] in (2, 4):
        if (values[..., -1] < 255).any():
            raise ValueError(
                f"{printable(path)}: a mask with transparent pixels, which mean nothing; save it without alpha"
            )
        values = values[..., :-1]
    return values


def _unit(path: Path) -> int:
    """What Pillow makes of a 1 in a mask: it stretches gray of 2 and 4 bits to 0 ... 255."""
    with path.open("rb") as file:
        start = file.read(26)
    if not start.startswith(b"\x89PNG") or start[25] != 0:  # a palette's indices stay as they are
        return 1
    return {2: 85, 4: 17}.get(start[24], 1)


def pairs_in(root: str, folder: Path, left_out: LeftOut) -> Pairs:
    """Images and masks of a split, matched by name; other files are noted in ``left_out``."""
    there = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    images_name = only_one(root, folder, there, IMAGE_FOLDERS) or IMAGE_FOLDERS[0]
    masks_name = only_one(root, folder, there, MASK_FOLDERS) or MASK_FOLDERS[0]
    images = _by_name(root, folder / images_name, IMAGES, left_out)
    masks = _by_name(root, folder / masks_name, MASKS, left_out)
    places = (f"{folder.name}/{images_name}/", f"{folder.name}/{masks_name}/")
    if not images and not masks:
        raise ValueError(f"task.data.root={root}: no images in {places[0]} and no masks in {places[1]}")
    if alone := [*(images.keys() - masks.keys()), *(masks.keys() - images.keys())]:
        raise ValueError(
            f"task.data.root={root}: {len(images)} images in {places[0]} and {len(masks)} masks in {places[1]}, "
            f"matched by name; without a partner: {printable(some(alone))}"
        )
    return [(images[name], masks[name]) for name in sorted(images)]


def _by_name(root: str, folder: Path, endings: tuple[str, ...], left_out: LeftOut) -> dict[str, Path]:
    """Files by their names below ``folder``, without the ending and in composed Unicode (NFC)."""
    found: dict[str, Path] = {}
    for path in files_below(folder, endings, left_out) if folder.is_dir() else ():
        name = unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix("")))
        if name in found:
            raise ValueError(
                f"task.data.root={root}: {found[name].name} and {path.name} in {folder} have one mask"
            )
        found[name] = path
    return found


def names_in(root: str, path: Path) -> list[str]:
    """What stands in a list of names."""
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise ValueError(f"task.data.root={root}: {path}: {error.strerror}") from None
    if not (names := [line.strip() for line in lines if line.strip() and line[0] != "#"]):
        raise ValueError(f"task.data.root={root}: {path}: names no images")
    return names
