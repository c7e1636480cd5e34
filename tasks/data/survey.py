"""What is to be known of a set's files besides their pixels: fingerprint, copies, how they are stored."""

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

from tasks.data.cache import cached, save
from tasks.data.files import UPRIGHT, Color, is_transparent, orientation, unreadable

# one of them is in every file with an orientation, but for a JPEG, whose head tells, and a TIFF, which Pillow turns
METADATA = (b"Exif", b"eXIf", b"EXIF", b"exif", b"rientation")
SEQUENCES = (
    "GIF",
    "TIFF",
    "PNG",
    "WEBP",
)  # formats of which later frames or pages are pictures that a user may miss

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
        left_out: names of the files that are part of no split, by the reason.
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
    kept: tuple[Path, str],
    *,
    background: Color,
    step: int = 1,
    left_out: Mapping[str, Sequence[str]] | None = None,
    splits: Mapping[str, str] | None = None,
) -> Survey:
    """Read every file once and say what is to be known of them; what changes pixels is logged.

    The fingerprint is a hash of ``kind``, the classes' names, and every file's name, label and content, and of how
    orientation and transparency were treated where a file has any. Each image costs a hash of its own besides, and a
    look at its header; that happens once, as the result is kept in the cache.

    Args:
        paths, labels: the files, one by one.
        names: of the classes.
        kind: what is made of the files.
        kept: folder and key of the cache to keep it in, as reading all files may take a minute.
        background: color beneath transparent pixels.
        step: every so many files, from the first on, one is an image; the others are masks.
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
                own = hashlib.blake2b(content, digest_size=16).digest()
                originals[i // step] = first.setdefault(own, i // step)
            counts += _traits(content, is_image)
        turned, transparent, _ = counts.tolist()
        if turned:
            digest.update(b"\0upright")
        if transparent:
            digest.update(f"\0over {tuple(background)}".encode())
        save(entry, fingerprint=digest.hexdigest()[:16], originals=originals, counts=counts)

    key = hashlib.sha256(f"{kept[1]} {kind} {tuple(background)} {step}".encode()).hexdigest()[:20]
    arrays = cached(kept[0], f"survey-{key}", build)
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
    """Whether a file is turned, is transparent, is one of several frames; of a mask whether it is turned alone."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            sequence = is_image and image.format in SEQUENCES and getattr(image, "is_animated", False)
            may_turn = image.format == "JPEG" or any(mark in content for mark in METADATA)
            turned = may_turn and orientation(image) != UPRIGHT
            return turned, is_image and is_transparent(image), sequence
    except unreadable():  # the samples have been read before, so these are files of no image
        return False, False, False


def count_copies(survey: Survey | None, index: Mapping[str, Tensor]) -> dict[str, int]:
    """How many images of ``val`` and of ``test`` are byte for byte also in ``train``; a warning says so.

    Args:
        survey: of the images; None where they are not read from files of their own, and nothing is known.
        index: positions of each split.
    """
    if survey is None:
        return {}
    if torch.equal(survey.originals, torch.arange(len(survey.originals))):
        return {"val": 0, "test": 0}
    trained = survey.originals[index["train"]].unique()
    found = {
        split: int(torch.isin(survey.originals[index[split]], trained).sum()) for split in ("val", "test")
    }
    for split, count in found.items():
        if count:
            log.warning(
                "data: %d of %d %s images are, byte for byte, also training images",
                *(count, len(index[split]), {"val": "validation"}.get(split, split)),
            )
    return found
