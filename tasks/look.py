"""A summary of a task's data in numbers and on a contact sheet, for ``runner=check``."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tasks.base import summarize
from tasks.confusion import shortened
from tasks.data.cache import CacheEntry, save
from tasks.data.store import CHUNK, Store
from tasks.data.survey import Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.images import ImageTask

SPLITS = ("train", "val", "test")
# maximum number of classes; columns of the sheet, training and test images of each class, width of an image in inches
LAYOUTS = ((12, 1, (8, 4), 0.72), (30, 2, (5, 3), 0.62), (60, 3, (4, 2), 0.55), (120, 4, (3, 2), 0.5))
AUGMENTED = 12  # number of augmented training images
SCENES = 6  # number of images with masks of each split
SCENE_WIDTH = 2.2  # inches
MAX_ROWS = 40  # of a table on the terminal


@dataclass(frozen=True)
class Look:
    """A summary of a task's data.

    Attributes:
        facts: name -> text.
        table: lines of cells, the first one the head; or none.
        figure: the contact sheet, or None if the data cannot be drawn.
    """

    facts: Mapping[str, str]
    table: Sequence[Sequence[str]] = ()
    figure: "Figure | None" = None

    def text(self, rows: int | None = None) -> str:
        """Return facts and table with aligned columns, of the table at most ``rows``."""
        width = max(map(len, self.facts), default=0)
        lines = [f"{name:{width}}  {text}" for name, text in self.facts.items()]
        if self.table:
            shown = self.table[: None if rows is None else rows + 1]
            widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
            lines.append("")
            for first, *others in shown:
                cells = (cell.rjust(size) for cell, size in zip(others, widths[1:], strict=True))
                lines.append("  ".join([first.ljust(widths[0]), *cells]))
            if left := len(self.table) - len(shown):
                lines.append(f"and {left} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Samples:
    """What one reading of all samples yields, a row for each.

    Attributes:
        images, masks: (N,) numbers that are equal where all pixels are equal. ``masks`` are 0 where there are none.
        low, high: (N, planes) minimum and maximum.
        sums, squares: (N, planes) int64, over the pixels.
        pixels: (N, 256) int64, how often each value occurs in the mask.
    """

    images: Tensor
    masks: Tensor
    low: Tensor
    high: Tensor
    sums: Tensor
    squares: Tensor
    pixels: Tensor


def read_samples(store: Store, planes: int, cache: CacheEntry | None) -> Samples:
    """Read all samples once.

    Args:
        store: the samples.
        planes: number of planes of a sample that are the image; a mask may follow.
        cache: as for ``store.mean_std``.
    """
    if cache is None:
        arrays = _read(store, planes)
    else:
        entry = cache.derived(f" {planes}")
        arrays = entry.arrays("look", lambda folder: save(folder, **_read(store, planes)))
    return Samples(**{name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})


def _read(store: Store, planes: int) -> dict[str, np.ndarray]:
    numbers: dict[bytes, int] = {}  # of images and masks, by their hash
    rows: dict[str, list[np.ndarray]] = {name: [] for name in Samples.__annotations__}
    chunks = torch.arange(len(store)).split(CHUNK)
    bar = tqdm(total=len(store), desc="looking", unit="img", leave=False, disable=None)
    for chunk, batch in zip(chunks, store.batches(chunks), strict=True):
        values = np.ascontiguousarray(batch.numpy())  # (n, planes, H, W)
        images, masks = values[:, :planes], values[:, planes:]
        for name, part in (("images", images), ("masks", masks)):
            digests = (hashlib.blake2b(sample.tobytes(), digest_size=16).digest() for sample in part)
            rows[name].append(np.array([numbers.setdefault(digest, len(numbers)) for digest in digests]))
        wide = images.astype(np.int64)
        rows["low"].append(images.min((2, 3)))
        rows["high"].append(images.max((2, 3)))
        rows["sums"].append(wide.sum((2, 3)))
        rows["squares"].append(np.square(wide).sum((2, 3)))
        rows["pixels"].append(np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks]))
        bar.update(len(chunk))
    bar.close()
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def image_facts(task: "ImageTask", samples: Samples, targets: Tensor, target: str) -> dict[str, str]:
    """Return the facts of any task on images.

    Args:
        task: of classification or segmentation.
        samples: of its store.
        targets: (N,) equal numbers where the targets of two samples are equal.
        target: what a target is called.
    """
    planes, (height, width) = task.input_shape[0], task.store.shape[1:]
    seen = " x ".join(map(str, task.input_shape[1:]))
    size = f"{height} x {width} pixels"
    missing = [split for split in SPLITS[1:] if getattr(task.data, split) is None]
    held_out = (
        f" ({' and '.join(missing)} held out of the training images by a fixed rule)" if missing else ""
    )
    if unused := len(task.store) - sum(map(len, task.index.values())):
        held_out += f", not used {unused:,}"
    facts = {
        "data": f"{len(task.store):,} images of {size}, {planes} channel{'s' * (planes > 1)}, "
        f"{len(task.classes)} classes" + ("" if seen == f"{height} x {width}" else f"; evaluated at {seen}"),
        "fingerprint": task.fingerprint,
        "splits": ", ".join(f"{split} {len(task.index[split]):,}" for split in SPLITS) + held_out,
        "steps": f"{task.steps_per_epoch:,} of {task.batch_size} images an epoch",
    }
    for split in SPLITS:
        index = task.index[split]
        count = len(index) * height * width
        mean = samples.sums[index].sum(0).double() / count
        std = (samples.squares[index].sum(0).double() / count - mean.square()).clamp_min(0).sqrt()
        low, high = int(samples.low[index].min()), int(samples.high[index].max())
        facts[f"values, {split}"] = f"{low} to {high}, mean {_listed(mean)}, std {_listed(std)}"
    trained = samples.images[task.index["train"]]
    copies = [_copies(samples, targets, task.index, split, target) for split in ("val", "test")]
    within = len(trained) - len(trained.unique())
    facts["copies"] = "; ".join([*copies, f"within train {within:,}"])
    return facts | _of_files(task.data.survey)


def _copies(samples: Samples, targets: Tensor, index: Mapping[str, Tensor], split: str, target: str) -> str:
    """Count the images of a split that are in ``train``, pixel for pixel, and those of them with another target there."""

    def pairs(split: str) -> Iterator[tuple[int, int]]:
        return zip(*(x[index[split]].tolist() for x in (samples.images, targets)), strict=True)

    trained: dict[int, set[int]] = {}
    for image, value in pairs("train"):
        trained.setdefault(image, set()).add(value)
    same_target = [value in trained[image] for image, value in pairs(split) if image in trained]
    other = same_target.count(False)
    return f"{split} images that are in train, too: {len(same_target):,}" + (
        f" ({other:,} with another {target} there)" if other else ""
    )


def _of_files(survey: Survey | None) -> dict[str, str]:
    """Return the facts about the files of a set, if it was read from any."""
    if survey is None:
        return {}
    reasons = survey.left_out.items()
    left_out = [f"{len(names):,} {reason}: {summarize(names)}" for reason, names in reasons if names]
    facts = {"left out": "; ".join(left_out) or "nothing"}
    for name, text in (
        ("turned", "files as their EXIF orientation says"),
        ("transparent", f"images, composed over {list(survey.background)}"),
        ("sequences", "images of several frames or pages, of which the first is read"),
    ):
        if count := getattr(survey, name):
            facts[name] = f"{count:,} {text}"
    return facts


def class_table(labels: Tensor, index: Mapping[str, Tensor], classes: Sequence[str]) -> list[list[str]]:
    """Return the number of images of each class and split."""
    counts = [labels[index[split]].bincount(minlength=len(classes)).tolist() for split in SPLITS]
    rows = [[name, *(f"{count:,}" for count in row)] for name, *row in zip(classes, *counts, strict=True)]
    return [["class", *SPLITS], *rows]


def mask_table(
    pixels: Tensor, index: Mapping[str, Tensor], classes: Sequence[str], void: int
) -> list[list[str]]:
    """Return for each class and split, and for void, the share of the pixels and the number of images that contain it."""
    head = ["class", *(f"{split} {unit}" for split in SPLITS for unit in ("pixels", "images"))]
    rows = [[name] for name in (*classes, "void")]
    for split in SPLITS:
        counts = pixels[index[split]][:, [*range(len(classes)), void]]
        shares = (100 * counts.sum(0).double() / counts.sum()).tolist()
        for row, share, images in zip(rows, shares, (counts > 0).sum(0).tolist(), strict=True):
            row += [f"{share:.2f} %", f"{images:,}"]
    return [head, *rows]


def class_sheet(task: "ImageTask", labels: Tensor, high: int, generator: torch.Generator) -> "Figure":
    """Draw training and test images of every class, and augmented training images."""
    from matplotlib.figure import Figure

    limit, columns, counts, side = next(
        (layout for layout in LAYOUTS if len(task.classes) <= layout[0]), LAYOUTS[-1]
    )
    chosen = _spread(len(task.classes), limit).tolist()
    rows = -(-len(chosen) // columns)
    blocks = [chosen[start : start + rows] for start in range(0, len(chosen), rows)]
    height, width = task.store.shape[1:]
    names = 0.085 * max(len(_short(task.classes[k])) for k in chosen)
    wide, tall = (sum(counts) + 0.4) * side + names + 0.2, rows * side * height / width
    page = len(blocks) * wide
    augmented = page / AUGMENTED * task.input_shape[1] / task.input_shape[2]
    left = len(task.classes) - len(chosen)
    parts = (tall + 0.35 + 0.25 * bool(left), augmented + 0.45)
    figure = Figure(figsize=(page, sum(parts)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=parts, squeeze=False).flatten()
    for ax, block in zip(above.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        strips = [_class_strip(task, labels, k, counts) for k in block]
        strips += [torch.full_like(strips[0], -1)] * (rows - len(strips))
        _show(ax, torch.cat(strips), sum(counts), high, apart=counts[0])
        gap = _gap(width)
        ax.set_yticks(
            [row * (height + gap) + gap // 2 + height / 2 for row in range(len(block))],
            [_short(task.classes[k]) for k in block],
        )
        places = [counts[0] / 2 * (width + gap), (counts[0] + counts[1] / 2) * (width + gap) + width // 3]
        ax.set_xticks(places, ["train", "test"])
        ax.xaxis.tick_top()
    above.suptitle(f"{len(chosen)} of {len(task.classes)} classes" if left else None, fontsize="medium")
    ax = below.subplots()
    _show(ax, _filled(_augmented(task, AUGMENTED, generator)[0], AUGMENTED), AUGMENTED, high)
    ax.set_title(_as_trained(task), fontsize="medium", loc="left")
    return figure


def _class_strip(task: "ImageTask", labels: Tensor, k: int, counts: tuple[int, int]) -> Tensor:
    """Return images (n, C, H, W) of class ``k``, first of train and then of test; -1 where a class has fewer."""
    parts = []
    for split, count in zip(("train", "test"), counts, strict=True):
        members = task.index[split][labels[task.index[split]] == k]
        part = torch.empty(0, *task.store.shape, dtype=torch.int16)
        if len(members):
            part = next(iter(task.store.batches([members[_spread(len(members), count)]]))).to(torch.int16)
        parts.append(_filled(part, count))
    return torch.cat(parts)


def scene_sheet(
    task: "ImageTask",
    colors: Mapping[str, str],
    palette: Tensor,
    shares: Sequence[float],
    generator: torch.Generator,
) -> "Figure":
    """Draw images of train and test with their masks over them, and augmented training images.

    Args:
        task: of segmentation.
        colors: of the classes and of void, by name.
        palette: (256, 3) in [0, 1], of the masks' values.
        shares: of the training pixels, in percent, in the order of ``colors``.
        generator: of the augmentation.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups: dict[str, tuple[Tensor, Tensor]] = {}
    for split in ("train", "test"):
        index = task.index[split]
        samples = next(iter(task.store.batches([index[_spread(len(index), SCENES)]])))
        groups[f"{split}: images, and masks drawn over them"] = (
            samples[:, :-1].to(torch.int16),
            samples[:, -1],
        )
    groups[_as_trained(task)] = _augmented(task, SCENES, generator)
    sizes = [2 * SCENE_WIDTH * images.shape[2] / images.shape[3] + 0.35 for images, _ in groups.values()]
    legend = 0.3 * -(-len(colors) // 5) + 0.2
    figure = Figure(figsize=(SCENES * SCENE_WIDTH + 0.3, sum(sizes) + legend), layout="constrained")
    axes = figure.subplots(len(groups), 1, height_ratios=sizes)
    for ax, (title, (images, masks)) in zip(list(axes), groups.items(), strict=True):
        drawn = 255 * palette[masks.long()].movedim(-1, 1)
        # brightness from the image and hue from the class: a mixture of colors may be the color of another class
        over = (drawn * (0.4 + 0.6 * images.float().mean(1, keepdim=True) / 255)).round().to(torch.int16)
        _show(ax, torch.cat([_filled(images, SCENES), _filled(over, SCENES)]), SCENES, 255)
        ax.set_title(title, fontsize="medium", loc="left")
    figure.legend(
        handles=[
            Patch(color=color, label=f"{_short(name)} {share:.1f} %")
            for (name, color), share in zip(colors.items(), shares, strict=True)
        ],
        loc="outside lower center",
        ncols=min(len(colors), 5),
        title="shares of the training pixels",
    )
    return figure


def _as_trained(task: "ImageTask") -> str:
    steps = [name for name, used in (("augmented", task.augment), ("mixed", task.recipe.mixup)) if used]
    return f"training images as they are {' and '.join(steps)}" if steps else "training images, not augmented"


def _augmented(task: "ImageTask", count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images of the first training batch as the network receives them, but not normalized, and the targets."""
    batch, targets = next(iter(task.batches("train", generator)))
    images = ((batch[:count].cpu() - task.shift) / task.scale).round().clamp(0, 255).to(torch.int16)
    return images, targets[:count].cpu()


def _filled(images: Tensor, count: int) -> Tensor:
    """Return ``images`` and blank ones, ``count`` in all."""
    return torch.cat([images, torch.full((count - len(images), *images.shape[1:]), -1, dtype=images.dtype)])


def _show(ax: "Axes", images: Tensor, columns: int, high: int, apart: int | None = None) -> None:
    """Draw (n, C, H, W) images in rows with white between them; -1 is white.

    Args:
        ax: to draw on.
        images: a multiple of ``columns`` of them.
        columns: number of images in a row.
        high: the value that is white.
        apart: the column that has more space before it.
    """
    height, width = images.shape[2:]
    gap = _gap(width)
    pixels = torch.where(images < 0, 1, images.float() / high).clamp(0, 1).movedim(1, 3)
    canvas = torch.ones(len(images) // columns, columns, height + gap, width + gap, 3)
    canvas[:, :, gap // 2 :, gap // 2 :][:, :, :height, :width] = pixels.unflatten(0, (-1, columns))
    canvas = canvas.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)  # (rows, columns, 3) of pixels
    if apart is not None:
        left, right = canvas.tensor_split([apart * (width + gap)], dim=1)
        canvas = torch.cat((left, torch.ones(len(canvas), width // 3, 3), right), dim=1)
    ax.imshow(canvas.numpy(), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _gap(width: int) -> int:
    return max(1, round(0.06 * width))


def _spread(total: int, count: int) -> Tensor:
    """Return ``count`` positions of ``total``, from the first to the last."""
    return torch.linspace(0, total - 1, min(count, total)).long()


def _listed(values: Tensor) -> str:
    return " ".join(f"{value:.1f}" for value in values.tolist())


def _short(name: str) -> str:
    return shortened(name, 22)


def point_table(parts: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str]) -> list[list[str]]:
    """Return range, mean and standard deviation of every variable, inputs and targets, in each split."""
    rows = []
    for split, samples in parts.items():
        values = torch.cat(samples, dim=1).double()
        columns = (values.amin(0), values.amax(0), values.mean(0), values.std(0, correction=0))
        rows += [
            # 0 for a mean that differs from it by rounding alone
            [name, split, *(f"{value if abs(value) > 1e-6 * max(map(abs, row)) else 0:.4g}" for value in row)]
            for name, *row in zip(names, *(column.tolist() for column in columns), strict=True)
        ]
    rows.sort(key=lambda row: list(names).index(row[0]))
    return [["variable", "split", "lowest", "highest", "mean", "std"], *rows]
