"""Fixed samples to regress on: a real table, and a photograph as a function of its coordinates."""

import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks import fits
from tasks.base import check_range, check_whole
from tasks.data import splits
from tasks.data.files import WHITE, Color, checked_color, read_image, sklearn_file
from tasks.data.points import Predict, SamplePoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIABETES = (
    *("age", "sex", "body mass index", "blood pressure"),
    *("s1 cholesterol", "s2 ldl", "s3 hdl", "s4 tch", "s5 ltg", "s6 glucose"),
    "progression",
)
LEAST_FOLD = 10  # patients, one from each tenth of the targets
LEAST_SIDE = 8  # pixels; a smaller photograph shows nothing


def diabetes(*, val_fraction: float, test_fraction: float, folds: int | None = None) -> SamplePoints:
    """Ten measurements of 442 patients, and how far their diabetes has progressed a year later.

    All columns, the target's too, are standardised by mean and standard deviation of the training patients. Which
    patient belongs to which split is a fixed rule, stratified by the target. The files are those that scikit-learn ships.

    With ``folds`` = K the patients are parted once, by the same kind of rule, into K folds, and seed s is tested on fold
    s mod K: K seeds test every patient once, and their spread is that of the split as well. All activations have the same
    fold at a seed, so differences stay paired. The training sets of the folds overlap, so that scores of different
    seeds are not independent, and intervals are too short (Bengio, Grandvalet, JMLR 5 (2004): 1089-1105).

    Source: Efron, Hastie, Johnstone, Tibshirani, Least Angle Regression, Annals of Statistics 32 (2004): 407-499.

    Args:
        val_fraction: share held out for validation of those not tested on, in (0, 1).
        test_fraction: share held out for the test, in (0, 1); not used with ``folds``.
        folds: number of folds, 2 to 44 (ten patients each); None for one split, the same for all seeds.

    Raises:
        ValueError: a share that leaves a split empty, folds too many, or no scikit-learn.
    """
    for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        check_range(f"task.data.{name}", share, "in (0, 1)", lambda v: 0 < v < 1)
    columns = [_read_table(sklearn_file(f"data/diabetes_{name}.csv.gz")) for name in ("data_raw", "target")]
    table = torch.from_numpy(np.concatenate(columns, axis=1))  # (442, 11)
    # each tenth of the targets in proportion: plain chance can make a set of this size a poor likeness of the whole
    tenth = table[:, -1].argsort(stable=True).argsort() * 10 // len(table)

    def split(rest: Tensor, test: Tensor, rule: str = "") -> SamplePoints:
        train, val = _hold_out(rest, tenth, val_fraction, "val_fraction")
        mean, std = table[train].mean(0), table[train].std(0, correction=0)
        samples = ((table - mean) / std).float()
        inputs, targets = samples[:, :-1], samples[:, -1:]

        def draw(predict: Predict) -> "Figure":
            true, fit = (mean[-1] + std[-1] * part for part in (targets[test], predict(inputs[test])))
            return fits.scatter(true, fit, "disease progression")

        index = {"train": train, "val": val, "test": test}
        return SamplePoints(
            *(inputs, targets, index),
            draw=draw,
            show=lambda: fits.columns({name: table[part] for name, part in index.items()}, DIABETES),
            fingerprint=_hash(table),
            variables=DIABETES,
            rule=rule,
            folds=fold if folds else None,
        )

    def fold(seed: int) -> SamplePoints:
        parts = splits.folds(tenth, folds or 1)
        chosen = seed % len(parts)
        test = parts.pop(chosen)
        return split(torch.cat(parts).sort().values, test, f" (fold {chosen} of 0 to {len(parts)})")

    if folds is None:
        return split(*_hold_out(torch.arange(len(table)), tenth, test_fraction, "test_fraction"))
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= len(table) // LEAST_FOLD:
        raise ValueError(
            f"task.data.folds={folds}: a whole number from 2 to {len(table) // LEAST_FOLD} is needed, or null"
        )
    return fold(0)


def photograph(
    *, file: str | None, longer_side: int, val_fraction: float, background: Color = WHITE
) -> SamplePoints:
    """A photograph as a function of its coordinates, (x, y) to (red, green, blue) in [0, 1].

    Coordinates are those of the pixels' centres, x to the right and y downwards, scaled so that the longer side is
    [-1, 1]. Of every square of four pixels the upper left one is for training, as in the image regression of Tancik et
    al., Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (NeurIPS 2020,
    arXiv 2006.10739); the others are for validation and test, by a fixed rule that takes as many of
    each of the three places in the square.

    Args:
        file: any image that Pillow reads, or None for the Chinese temple that scikit-learn ships. Grey becomes
            three equal colours; see ``read_image``.
        longer_side: a larger photograph is shrunk to so many pixels along its longer side, at least 8.
        val_fraction: share for validation of the pixels not trained on, in (0, 1).
        background: color beneath transparent pixels.

    Raises:
        ValueError: a file that is missing, unreadable or has a side below 8 pixels, a share that leaves a split empty.
    """
    check_whole("task.data.longer_side", longer_side, LEAST_SIDE)
    check_range("task.data.val_fraction", val_fraction, "in (0, 1)", lambda v: 0 < v < 1)
    path = sklearn_file("images/china.jpg") if file is None else Path(str(file)).expanduser()
    ground = checked_color("task.data.background", background)
    pixels = torch.from_numpy(_read_pixels(path, longer_side, ground))  # (H, W, 3)
    height, width = pixels.shape[:2]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (2 * column + 1 - width) / max(height, width), (2 * row + 1 - height) / max(height, width)
    inputs = torch.stack((x, y), dim=-1).view(-1, 2)
    targets = pixels.view(-1, 3).float() / 255

    place = (2 * (row % 2) + column % 2).flatten()
    train, others = (place == 0).nonzero().squeeze(1), (place > 0).nonzero().squeeze(1)
    test, val = _hold_out(others, place, val_fraction, "val_fraction")

    def draw(predict: Predict) -> "Figure":
        fit = predict(inputs)
        psnr = -10 * (fit - targets)[test].square().mean().log10()
        return fits.photograph(targets.view(pixels.shape), fit.view(pixels.shape), f"fit, {psnr:.1f} dB")

    index = {"train": train, "val": val, "test": test}
    return SamplePoints(
        *(inputs, targets, index),
        draw=draw,
        show=lambda: fits.pixels(targets.view(pixels.shape), index),
        peak=1.0,
        fingerprint=_hash(pixels),
        variables=("x", "y", "red", "green", "blue"),
    )


def _read_table(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, ndmin=2)


def _read_pixels(path: Path, longer_side: int, background: Color) -> np.ndarray:
    """(H, W, 3) uint8, shrunk if need be."""
    from PIL.Image import Resampling

    at = f"task.data.file={path}"
    if not path.is_file():
        raise ValueError(f"{at}: no such file")
    try:
        image = read_image(path, background=background)
    except ValueError as error:
        raise ValueError(f"task.data.file={error}") from None
    if max(image.size) > longer_side:
        width, height = (round(side * longer_side / max(image.size)) for side in image.size)
        image = image.resize((max(width, 1), max(height, 1)), Resampling.LANCZOS)
    if min(image.size) < LEAST_SIDE:
        size = f"{image.width} x {image.height}"
        raise ValueError(
            f"{at}: {size} pixels (task.data.longer_side={longer_side}), at least {LEAST_SIDE} x {LEAST_SIDE} are needed"
        )
    return np.array(image)


def _hold_out(index: Tensor, labels: Tensor, share: float, name: str) -> tuple[Tensor, Tensor]:
    """Split ``index`` into (rest, held), each of the ``labels`` of all samples in proportion."""
    try:
        rest, held = splits.stratified(labels[index], round(share * len(index)))
    except ValueError as error:
        raise ValueError(f"task.data.{name}={share}: {error}") from None
    return index[rest], index[held]


def _hash(data: Tensor) -> str:
    return hashlib.sha256(str(tuple(data.shape)).encode() + data.numpy().tobytes()).hexdigest()[:16]
