"""Facts about a set's files besides their pixels: fingerprint, copies, orientation, transparency."""

import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tasks.data.cache import CacheEntry, save
from tasks.data.files import UPRIGHT, Color, is_transparent, orientation, unreadable

# Every file with an orientation contains one of these, except a JPEG, which has it in its head, and a TIFF, which Pillow
# turns.
METADATA = (b"Exif", b"eXIf", b"EXIF", b"exif", b"rientation")
# formats whose later frames or pages are pictures that are not read
SEQUENCES = ("GIF", "TIFF", "PNG", "WEBP")

log = logging.getLogger("actbench")


@dataclass(frozen=True)
class Survey:
    """Facts about the files of a set.

    Attributes:
        fingerprint: hash of the set's content, the same wherever the files are.
        originals: (N,) int64, for each image the position of the first one with the same bytes, most often its own.
        turned: number of files that EXIF orientation has turned or mirrored.
        transparent: number of images that were composed over ``background``.
        sequences: number of images of more than one frame or page, of which the first was read.
        background: red, green, blue.
        left_out: reason -> names of the files that are in no split.
        splits: split -> name of the folder that it was read from.
    """

    fingerprint: str
    originals: Tensor
    turned: int
    transparent: int
    sequences: int
    background: Color
    left_out: Mapping[str, Sequence[str]]
    splits: Mapping[str, str]


def survey_files(
    paths: Sequence[Path],
    labels: Sequence[int],
    names: Sequence[str],
    kind: str,
    cache: CacheEntry,
    *,
    background: Color,
    step: int = 1,
    left_out: Mapping[str, Sequence[str]] | None = None,
    splits: Mapping[str, str] | None = None,
) -> Survey:
    """Read every file once and return facts about them; those that change pixels are logged.

    The fingerprint is a hash of ``kind``, the classes' names, and every file's name, label and content, and of how
    orientation and transparency are treated where a file has any. In addition each image is hashed by itself and its
    header is read. The result is stored in the cache.

    Args:
        paths, labels: of each file.
        names: of the classes.
        kind: how samples are computed from the files.
        cache: entry of the samples.
        background: color beneath transparent pixels.
        step: of this number of files, the first is an image and the others are masks.
        left_out, splits: see ``Survey``.
    """

    def build(entry: Path) -> None:
        digest = hashlib.sha256(os.fsencode("\0".join((kind, *names))))
        first: dict[bytes, int] = {}
        originals = np.empty(-(-len(paths) // step), dtype=np.int64)
        counts = np.zeros(3, dtype=np.int64)
        bar = tqdm(paths, desc="hashing", leave=False, disable=None)
        for i, (path, label) in enumerate(zip(bar, labels, strict=True)):
            content = path.read_bytes()
            digest.update(os.fsencode(path.name))  # names need not be UTF-8
            digest.update(f"\0{label}\0{len(content)}\n".encode())
            digest.update(content)
            is_image = i % step == 0
            if is_image:
                image_hash = hashlib.blake2b(content, digest_size=16).digest()
                originals[i // step] = first.setdefault(image_hash, i // step)
            counts += _traits(content, is_image)
        turned, transparent, _ = counts.tolist()
        if turned:
            digest.update(b"\0upright")
        if transparent:
            digest.update(f"\0over {tuple(background)}".encode())
        save(entry, fingerprint=digest.hexdigest()[:16], originals=originals, counts=counts)

    arrays = cache.derived(f" {kind} {tuple(background)} {step}").arrays("survey", build)
    turned, transparent, sequences = arrays["counts"].tolist()
    survey = Survey(
        str(arrays["fingerprint"]),
        torch.from_numpy(arrays["originals"]),
        turned=turned,
        transparent=transparent,
        sequences=sequences,
        background=tuple(background),
        left_out=left_out or {},
        splits=splits or {},
    )
    if survey.turned:
        log.info("data: %d files are turned as their EXIF orientation says", survey.turned)
    if survey.transparent:
        log.info("data: %d images are transparent, composed over %s", survey.transparent, list(background))
    if survey.sequences:
        log.warning("data: %d images have several frames or pages; the first is used", survey.sequences)
    return survey


def _traits(content: bytes, is_image: bool) -> tuple[bool, bool, bool]:
    """Return whether a file is turned, is transparent, has several frames; the last two are false for a mask."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            sequence = is_image and image.format in SEQUENCES and getattr(image, "is_animated", False)
            may_turn = image.format == "JPEG" or any(mark in content for mark in METADATA)
            turned = may_turn and orientation(image) != UPRIGHT
            return turned, is_image and is_transparent(image), sequence
    except unreadable():  # the samples have been read before, so this is no file of an image
        return False, False, False


def count_copies(survey: Survey | None, index: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the images of ``val`` and of ``test`` that are also in ``train``, byte for byte, and log a warning.

    Args:
        survey: of the images; None where they are not read from files of their own, and copies are unknown.
        index: positions of each split.
    """
    if survey is None:
        return {}
    if torch.equal(survey.originals, torch.arange(len(survey.originals))):
        return {"val": 0, "test": 0}
    trained = survey.originals[index["train"]].unique()
    copies = {
        split: int(torch.isin(survey.originals[index[split]], trained).sum()) for split in ("val", "test")
    }
    for split, count in copies.items():
        if count:
            log.warning(
                "data: %d of %d %s images are, byte for byte, also training images",
                *(count, len(index[split]), {"val": "validation"}.get(split, split)),
            )
    return copies
