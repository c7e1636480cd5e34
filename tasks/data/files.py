"""Image files: how a file is read, and how the folders that the user names are checked."""

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from activations.checks import check_list

if TYPE_CHECKING:
    from PIL.Image import Image

Color = Sequence[int]  # red, green, blue, each from 0 to 255

WHITE = (255, 255, 255)
UPRIGHT = 1  # EXIF's number for a picture that is stored as it is shown


class LayoutError(ValueError):
    """Files or folders below a root are not as they should be; the message does not name the root."""


@contextmanager
def data_root(root: str) -> Iterator[Path]:
    """Yield the folder that the setting ``root`` names, and name it in a LayoutError raised meanwhile.

    Raises:
        ValueError: ``root`` is not the name of a folder, or what is below it is not as it should be.
    """
    folder = named_folder("root", root)
    try:
        yield folder
    except LayoutError as error:
        raise ValueError(f"root={root}: {error}") from None


def named_folder(setting: str, value: object) -> Path:
    """Return the folder that the user names.

    Raises:
        ValueError: ``value`` is null, a number, empty or not UTF-8.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{setting}={value}: must be the name of a folder")
    if (name := printable(value)) != str(value):
        raise ValueError(f"{setting}={name}: the name is not UTF-8; rename the folder")
    return Path(value).expanduser()


def printable(path: str | os.PathLike[str]) -> str:
    """Return the name with every byte that is not UTF-8 as ``\\xNN``, which any terminal and log file accepts."""
    return os.fsencode(path).decode(errors="backslashreplace")


def checked_color(setting: str, value: object) -> tuple[int, int, int]:
    """Return a color of the configuration, [red, green, blue].

    Raises:
        ValueError: not three integers from 0 to 255.
    """
    check_list(setting, value, length=3, integers=True, minimum=0, maximum=255)
    red, green, blue = (int(v) for v in value)  # type: ignore[attr-defined]  # just checked
    return red, green, blue


class ReadImages:
    """Read the image at a position, uint8 (3, H, W), for a store.

    Args:
        paths: the files, one or more.
        stored: resize the shorter side to this and crop the middle square, as torchvision's Resize and CenterCrop do;
            None for images that all have one size.
        enlarge: whether images smaller than ``stored`` are enlarged.
        background: color beneath transparent pixels.

    Raises:
        ValueError: an unreadable file, or one whose size does not fit; the message names it.
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
                    f"{printable(path)}: {image.width} x {image.height} is smaller than stored={self.stored}; "
                    "enlarge=true enlarges such images"
                )
            image = _middle(image, self.stored)
        elif (image.height, image.width) != self.shape[1:]:
            raise ValueError(
                f"{printable(path)}: is {image.width} x {image.height}, must be {self.shape[2]} x {self.shape[1]} as "
                f"{printable(self.paths[0])}"
            )
        return np.asarray(image).transpose(2, 0, 1)


def read_image(path: Path, stored: int | None = None, background: Color = WHITE) -> "Image":
    """Return the image in a file as 8-bit RGB, as viewers show it.

    It is turned by its EXIF orientation. Gray becomes three equal channels, 16-bit gray is scaled (PIL's own
    conversion clips it at 255), a palette is looked up, CMYK is converted. Pixels that are wholly or partly
    transparent are composed over ``background``. Of several frames or pages the first is read.

    Args:
        path: a file.
        stored: shorter side that it will be resized to: a JPEG at least four times as large is decoded at a half, a
            quarter or an eighth of its size, but not below twice ``stored``.
        background: color beneath transparent pixels.

    Raises:
        ValueError: the file is not an image, is truncated, or has other pixels than of 8 or 16 bits.
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
    """Return the errors that Pillow raises for a file that is not an image, or is truncated."""
    from PIL import Image

    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError


def upright(image: "Image") -> "Image":
    """Return the image turned and mirrored by its EXIF orientation, its mode unchanged."""
    if orientation(image) == UPRIGHT:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def orientation(image: "Image") -> int:
    """Return EXIF's number, 1 to 8, for how an opened image is stored; 1, as it is shown, where there is none.

    Pillow turns a TIFF while it decodes it: then the number is 1.
    """
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return UPRIGHT  # asking Pillow takes a tenth of the time of decoding a small JPEG
    from PIL import ExifTags

    image.load()  # the metadata of a PNG may follow its pixels
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of partly damaged metadata
            number = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # damaged metadata: viewers show the pixels as they are stored
        return UPRIGHT
    return number if number in range(1, 9) else UPRIGHT


def _as_rgb(image: "Image", background: Color) -> "Image":
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image.convert("RGB")
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels; must have 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of {values.min()} to {values.max()}; must have 8 or 16 bits")
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
    """Return whether any pixel of an opened image is transparent, wholly or partly."""
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        return clear is not None and bool((np.asarray(image) == clear).any())
    if not image.has_transparency_data:
        return False
    return bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def _middle(image: "Image", side: int) -> "Image":
    """Resize the shorter side to ``side``, and crop the square in the middle."""
    from PIL.Image import Resampling

    short = min(image.size)
    if short != side:
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def sklearn_file(name: str) -> Path:
    """Return a file below scikit-learn's ``datasets``."""
    folder = _package_folder("sklearn")
    if folder is None:
        raise ValueError("scikit-learn, which ships the data, is not installed; pip install scikit-learn")
    return folder / "datasets" / name


def shipped_pictures() -> dict[str, Path]:
    """Return the pictures that scikit-learn and, if it is installed, scikit-image ship, by name without ending."""
    folders = {"sklearn": "datasets/images", "skimage": "data"}
    found = [(_package_folder(package), below) for package, below in folders.items()]
    files = [path for folder, below in found if folder is not None for path in (folder / below).glob("*")]
    return {path.stem: path for path in sorted(files) if path.suffix in (".jpg", ".png")}


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without doing so."""
    return _package_folder(package) is not None


def _package_folder(package: str) -> Path | None:
    """Return where a package lies, without importing it, which may take seconds; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
