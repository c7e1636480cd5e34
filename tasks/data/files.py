"""Image files: what a file becomes."""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.base import check_list

if TYPE_CHECKING:
    from PIL.Image import Image

Color = Sequence[int]  # red, green, blue, each from 0 to 255

WHITE = (255, 255, 255)
UPRIGHT = 1  # EXIF's number for a picture that is stored as it is shown


def named_folder(setting: str, value: object) -> Path:
    """The folder that the user names.

    Raises:
        ValueError: ``value`` is null, a number, empty or not UTF-8.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{setting}={value}: a folder's name is needed")
    if (name := printable(value)) != str(value):
        raise ValueError(f"{setting}={name}: the name is not UTF-8; rename the folder")
    return Path(value).expanduser()


def printable(path: str | os.PathLike[str]) -> str:
    """The name with every byte that is not UTF-8 as ``\\xNN``, which any terminal and log file takes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def checked_color(setting: str, value: object) -> tuple[int, int, int]:
    """The color [red, green, blue] that the user gives.

    Raises:
        ValueError: not three whole numbers from 0 to 255.
    """
    check_list(setting, value, "(whole, from 0 to 255)", lambda v: v in range(256), length=3)
    red, green, blue = (int(v) for v in value)  # type: ignore[attr-defined]  # just checked
    return red, green, blue


class ReadImages:
    """Position -> image, uint8 (3, H, W): what a store reads.

    Args:
        paths: the files, one or more.
        stored: resize to this shorter side and cut out the middle square, as torchvision's Resize and
            CenterCrop do; None for images that all have one size.
        enlarge: whether images smaller than ``stored`` are enlarged.
        background: color beneath transparent pixels.

    Raises:
        ValueError: an unreadable file, or one whose size does not fit; named.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        stored: int | None = None,
        enlarge: bool = True,
        background: Color = WHITE,
    ) -> None:
        self.paths = paths
        self.stored = stored
        self.enlarge = enlarge
        self.background = background
        width, height = read_image(paths[0]).size if stored is None else (stored, stored)
        self.shape = (3, height, width)

    def __call__(self, position: int) -> np.ndarray:
        path = self.paths[position]
        image = read_image(path, self.stored, self.background)
        if self.stored is not None:
            if min(image.size) < self.stored and not self.enlarge:
                raise ValueError(
                    f"{printable(path)}: {image.width} x {image.height} is smaller than task.data.stored={self.stored}; "
                    "task.data.enlarge=true enlarges such images"
                )
            image = _middle(image, self.stored)
        elif (image.height, image.width) != self.shape[1:]:
            raise ValueError(
                f"{printable(path)}: images of one size are needed, this one is {image.width} x {image.height}, "
                f"{printable(self.paths[0])} {self.shape[2]} x {self.shape[1]}"
            )
        return np.asarray(image).transpose(2, 0, 1)


def read_image(path: Path, stored: int | None = None, background: Color = WHITE) -> "Image":
    """The image in a file as 8-bit RGB, as viewers show it.

    It is turned as its EXIF orientation says. Gray becomes three equal channels, 16-bit gray is scaled (PIL's own
    conversion clips it at 255), a palette is looked up, CMYK is converted. Pixels that are wholly or partly
    transparent are composed over ``background``. Of several frames or pages the first is read.

    Args:
        path: a file.
        stored: shorter side that is wanted of it: a JPEG at least four times as large is decoded at a half, a
            quarter or an eighth of its size, but not below twice ``stored``.
        background: color beneath transparent pixels.

    Raises:
        ValueError: the file is not an image, or not all of one, or of other numbers than 8 or 16 bits.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if stored is not None:
                image.draft(None, (2 * stored, 2 * stored))
            return _as_rgb(upright(image), background)
    except unreadable() as error:
        raise ValueError(f"{printable(path)}: not a readable image ({error})") from None


def unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises of a file that is not an image, or not all of one."""
    from PIL import Image

    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError


def upright(image: "Image") -> "Image":
    """The image turned and mirrored as its EXIF orientation says, its mode unchanged."""
    if orientation(image) == UPRIGHT:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def orientation(image: "Image") -> int:
    """EXIF's number, 1 to 8, for how an opened image is stored; 1, as it is shown, where there is none.

    Pillow turns a TIFF while it decodes it: then its number is 1.
    """
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return UPRIGHT  # to be told so by Pillow costs a tenth of what decoding a small JPEG does
    from PIL import ExifTags

    image.load()  # the metadata of a PNG may follow its pixels
    try:
        with warnings.catch_warnings(action="ignore"):  # of metadata that is partly damaged
            number = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged metadata: viewers show the pixels as they are stored
        return UPRIGHT
    return number if number in range(1, 9) else UPRIGHT


def _as_rgb(image: "Image", background: Color) -> "Image":
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image.convert("RGB")
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels; 8 or 16 bits are needed")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of {values.min()} to {values.max()}; 8 or 16 bits are needed")
        gray = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
        if "transparency" in image.info:
            clear = Image.fromarray(values == image.info["transparency"])
            gray.paste(tuple(background), mask=clear)
        return gray
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def is_transparent(image: "Image") -> bool:
    """Whether any pixel of an opened image lets its background through."""
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        return clear is not None and bool((np.asarray(image) == clear).any())
    if not image.has_transparency_data:
        return False
    return bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def _middle(image: "Image", side: int) -> "Image":
    """Shorter side to ``side``, then the square in the middle."""
    from PIL.Image import Resampling

    short = min(image.size)
    if short != side:
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def sklearn_file(name: str) -> Path:
    """A file below scikit-learn's ``datasets``, found without importing scikit-learn, which takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ValueError("task.data: scikit-learn, which ships the data, is not installed")
    return Path(spec.origin).parent / "datasets" / name
