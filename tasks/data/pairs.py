"""Files of images and of their masks: which belong together, and what a pair becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.base import some
from tasks.data.files import EXTENSIONS, read_image

VOID = 255  # in every store: a pixel without a class
ILLEGAL = 254  # while a mask is read: a value that its classes do not account for

Pairs = Sequence[tuple[Path, Path]]  # image, mask


@dataclass(frozen=True)
class ReadPairs:
    """Position -> image and mask, uint8 (4, H, W): what a store reads.

    Args:
        pairs: files of images and of masks. A mask is a PNG of class numbers of at most 8 bits, grey or with a palette, whose
            colours do not matter.
        size: (H, W) of every sample. Where ``resize`` is set the image is resized to it (bilinear, antialiased)
            and the mask sampled (nearest neighbour), else both have it already.
        table: (256,), what becomes of a mask's value: a class, VOID or ILLEGAL.

    Raises:
        ValueError: an unreadable file, an image and a mask of different size, a mask that is none, or a value
            that is illegal; named.
    """

    pairs: Pairs
    size: tuple[int, int]
    resize: bool
    table: np.ndarray

    def __call__(self, position: int) -> np.ndarray:
        from PIL import Image
        from PIL.Image import Resampling

        path, mask_path = self.pairs[position]
        image, mask = read_image(path), self.table[values := read_mask(mask_path)]
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"{mask_path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image {image.width} x {image.height}"
            )
        if (bad := values[mask == ILLEGAL]).size:
            raise ValueError(f"{mask_path}: value {bad[0]} is no class; legal values are {self._legal()}")
        if mask.shape != self.size:
            if not self.resize:
                raise ValueError(
                    f"{path}: images of one size are needed, this one is {image.width} x {image.height}, "
                    f"{self.pairs[0][0]} {self.size[1]} x {self.size[0]}; task.data.size=[H,W] resizes all"
                )
            image = image.resize(self.size[::-1], Resampling.BILINEAR)
            mask = np.asarray(Image.fromarray(mask).resize(self.size[::-1], Resampling.NEAREST))
        return np.concatenate((np.asarray(image).transpose(2, 0, 1), mask[None]))

    def _legal(self) -> str:
        """The values that mean something, with what they mean unless it is a class."""
        classes, void = (
            ", ".join(str(value) for value in np.flatnonzero(which))
            for which in (self.table < ILLEGAL, self.table == VOID)
        )
        return classes + (f", and {void} for void" if void else "")


def read_mask(path: Path) -> np.ndarray:
    """The numbers in a mask's file, (H, W) uint8; of a palette image its indices.

    Raises:
        ValueError: the file is not an image, or not all of one, or not of 8 bits and one channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
        unit = _unit(path)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from None
    if mode not in ("L", "P", "1"):
        raise ValueError(
            f"{path}: a mask of mode {mode}; an 8-bit PNG of class numbers is needed, grey or with a palette, "
            "not colours or 16 bits"
        )
    return values.astype(np.uint8) // unit


def _unit(path: Path) -> int:
    """What Pillow makes of a 1 in a mask: it stretches grey of 2 and 4 bits to 0 ... 255."""
    with path.open("rb") as file:
        start = file.read(26)
    if not start.startswith(b"\x89PNG") or start[25] != 0:  # a palette's indices stay as they are
        return 1
    return {2: 85, 4: 17}.get(start[24], 1)


def pairs_in(root: str, folder: Path) -> Pairs:
    """Images and masks of a split, matched by name."""
    images = _by_name(root, folder / "images", EXTENSIONS)
    masks = _by_name(root, folder / "labels", (".png",))
    if not images and not masks:
        raise ValueError(
            f"task.data.root={root}: no images in {folder.name}/images/ and no masks in {folder.name}/labels/"
        )
    if alone := [*(images.keys() - masks.keys()), *(masks.keys() - images.keys())]:
        raise ValueError(
            f"task.data.root={root}: {len(images)} images in {folder.name}/images/ and {len(masks)} masks in "
            f"{folder.name}/labels/, matched by name; without a partner: {some(alone)}"
        )
    return [(images[name], masks[name]) for name in sorted(images)]


def _by_name(root: str, folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Files by their names without the ending; hidden ones do not count."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(endings) and path.name[0] != ".":
            if path.stem in found:
                raise ValueError(
                    f"task.data.root={root}: {found[path.stem].name} and {path.name} in {folder} have one mask"
                )
            found[path.stem] = path
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
