"""Fixed samples to regress on: a real table, and a photograph as a function of its coordinates."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activations.checks import check_choice, check_int, check_number
from tasks.data.files import (
    WHITE,
    Color,
    checked_color,
    is_installed,
    read_image,
    shipped_pictures,
    sklearn_file,
)
from tasks.data.hashing import content_hash
from tasks.data.points import PicturePoints, TablePoints
from tasks.data.splits import folds as folds_of
from tasks.data.splits import hold_out

DIABETES = (
    *("age", "sex", "body mass index", "blood pressure"),
    *("s1 cholesterol", "s2 ldl", "s3 hdl", "s4 tch", "s5 ltg", "s6 glucose"),
    "progression",
)
MIN_FOLD = 10  # patients, one from each tenth of the targets
TRAIN = ("quarter", "all")  # of the pixels
MIN_SIDE = 8  # pixels; in a smaller photograph there is nothing to see


def diabetes(*, val_fraction: float, test_fraction: float, folds: int | None = None) -> TablePoints:
    """Ten measurements of 442 patients, and the progression of their diabetes a year later.

    All columns, the target included, are standardized by mean and standard deviation of the training patients. The
    patients are split by a fixed rule, stratified by the target. The files are those that scikit-learn ships.

    With ``folds`` = K the patients are divided once, by the same kind of rule, into K folds, and seed s is tested on fold
    s mod K: K seeds test every patient once, and their spread includes that of the split. All activations have the same
    fold at a seed, so differences stay paired. The training sets of the folds overlap, so that scores of different
    seeds are not independent, and intervals are too short (Bengio, Grandvalet, JMLR 5 (2004): 1089-1105).

    Source: Efron, Hastie, Johnstone, Tibshirani, Least Angle Regression, Annals of Statistics 32 (2004): 407-499.

    Args:
        val_fraction: share of the patients outside the test that is held out for validation, in (0, 1).
        test_fraction: share held out for the test, in (0, 1); not used with ``folds``.
        folds: number of folds, 2 to 44 (ten patients each); None for one split, the same for all seeds.

    Raises:
        ValueError: a share that leaves a split empty, too many folds, or scikit-learn is not installed.

    Examples:
        >>> data = diabetes(val_fraction=0.2, test_fraction=0.2)
        >>> [len(split[0]) for split in (data.train, data.val, data.test)]
        [283, 71, 88]
    """
    for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        check_number(name, share, above=0, below=1)
    columns = [_read_table(sklearn_file(f"data/diabetes_{name}.csv.gz")) for name in ("data_raw", "target")]
    table = torch.from_numpy(np.concatenate(columns, axis=1))  # (442, 11)
    # stratified by the tenths of the targets: plain chance can make an unrepresentative test set of this size
    tenth = table[:, -1].argsort(stable=True).argsort() * 10 // len(table)

    def split(rest: Tensor, test: Tensor, rule: str = "") -> TablePoints:
        train, val = hold_out(rest, tenth, val_fraction, "val_fraction")
        return TablePoints(
            table,
            table[train].mean(0),
            table[train].std(0, correction=0),
            {"train": train, "val": val, "test": test},
            fingerprint=_hash(table),
            variables=DIABETES,
            quantity="disease progression",
            rule=rule,
            folds=fold if folds else None,
        )

    def fold(seed: int) -> TablePoints:
        parts = folds_of(tenth, folds or 1)
        number = seed % len(parts)
        test = parts.pop(number)
        return split(torch.cat(parts).sort().values, test, f" (fold {number} of 0 to {len(parts)})")

    if folds is None:
        return split(*hold_out(torch.arange(len(table)), tenth, test_fraction, "test_fraction"))
    check_int("folds", folds, minimum=2, maximum=len(table) // MIN_FOLD)
    return fold(0)


def photograph(
    *,
    file: str | None,
    longer_side: int,
    train: str = "quarter",
    val_fraction: float | None = None,
    background: Color = WHITE,
) -> PicturePoints:
    """A photograph as a function of its coordinates, (x, y) to (red, green, blue) in [0, 1].

    Coordinates are those of the pixels' centers, x to the right and y downwards, scaled so that the longer side is
    [-1, 1].

    With ``train="quarter"`` the upper left one of every square of four pixels is for training, as in the image regression
    of Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (NeurIPS
    2020, arXiv 2006.10739); the others are for validation and test, by a fixed rule that takes equally many from each of
    the three places in the square. This measures how well a network interpolates.

    With ``train="all"`` training, validation and test are the same pixels, all of them, as in SIREN's image fitting
    (arXiv 2006.09661, section 4.1). This measures how well a network reconstructs what it was trained on: nothing is
    held out.

    Args:
        file: any image that Pillow reads; the name of a picture that scikit-learn (china, flower) or scikit-image
            (astronaut, camera, coffee and others) ships; or None for china. Gray becomes three equal colors; see
            ``read_image``.
        longer_side: a larger photograph is shrunk to this number of pixels along its longer side, >= 8.
        train: quarter or all.
        val_fraction: share for validation of the pixels not trained on, in (0, 1); None with ``train="all"``.
        background: color beneath transparent pixels.

    Raises:
        ValueError: a file that is missing, unreadable or has a side below 8 pixels; a value outside its range; a share
            that leaves a split empty.

    Examples:
        >>> data = photograph(file=None, longer_side=16, val_fraction=0.1)
        >>> data.shape, data.train[0].shape
        ((11, 16, 3), torch.Size([48, 2]))
        >>> data = photograph(file="flower", longer_side=16, train="all")
        >>> len(data.train[0]), len(data.test[0])
        (176, 176)
    """
    check_int("longer_side", longer_side, minimum=MIN_SIDE)
    check_choice("train", train, TRAIN)
    if train == "quarter":
        check_number("val_fraction", val_fraction, above=0, below=1)
    elif val_fraction is not None:
        raise ValueError(f"val_fraction={val_fraction}: must be null with train=all, which holds nothing out")
    path = _picture_file(file)
    ground = checked_color("background", background)
    pixels = torch.from_numpy(_read_pixels(path, longer_side, ground))  # (H, W, 3)
    height, width = pixels.shape[:2]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (2 * column + 1 - width) / max(height, width), (2 * row + 1 - height) / max(height, width)
    inputs = torch.stack((x, y), dim=-1).view(-1, 2)
    targets = pixels.view(-1, 3).float() / 255

    if val_fraction is None:
        index = dict.fromkeys(("train", "val", "test"), torch.arange(len(inputs)))
    else:
        place = (2 * (row % 2) + column % 2).flatten()
        others = (place > 0).nonzero().squeeze(1)
        test, val = hold_out(others, place, val_fraction, "val_fraction")
        index = {"train": (place == 0).nonzero().squeeze(1), "val": val, "test": test}

    return PicturePoints(
        tuple(pixels.shape),
        inputs,
        targets,
        index,
        peak=1.0,
        rule=" (the same pixels, all of them: nothing is held out)" if train == "all" else "",
        fingerprint=_hash(pixels),
        variables=("x", "y", "red", "green", "blue"),
    )


def _read_table(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, ndmin=2)


def _picture_file(file: str | None) -> Path:
    """Return the file that the setting names: a picture that a package ships, if there is one of that name, or a path."""
    if file is None:
        return sklearn_file("images/china.jpg")
    shipped = shipped_pictures()
    path = Path(str(file)).expanduser()
    if (known := shipped.get(str(file))) is not None:
        return known
    if not path.suffix and path.name == str(file) and not path.exists():  # a name, not a path
        more = "" if is_installed("skimage") else "; others come with scikit-image: pip install scikit-image"
        raise ValueError(
            f"file={file}: no such file, and no picture among {', '.join(sorted(shipped))}{more}"
        )
    return path


def _read_pixels(path: Path, longer_side: int, background: Color) -> np.ndarray:
    """Return the photograph, (H, W, 3) uint8, with a longer side of at most ``longer_side``."""
    from PIL.Image import Resampling

    if not path.is_file():
        raise ValueError(f"file={path}: no such file")
    try:
        image = read_image(path, background=background)
    except ValueError as error:
        raise ValueError(f"file={error}") from None
    if max(image.size) > longer_side:
        width, height = (round(side * longer_side / max(image.size)) for side in image.size)
        image = image.resize((max(width, 1), max(height, 1)), Resampling.LANCZOS)
    if min(image.size) < MIN_SIDE:
        raise ValueError(
            f"file={path}: has {image.width} x {image.height} pixels with longer_side={longer_side}, must have at least "
            f"{MIN_SIDE} x {MIN_SIDE}"
        )
    return np.array(image)


def _hash(data: Tensor) -> str:
    return content_hash(str(tuple(data.shape)), data.numpy())
