"""Segmentation: a class for every pixel of an image."""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import Batch, Recipe, Task, check_range
from tasks.data.augment import check_augment
from tasks.data.masks import MaskSet
from tasks.data.pairs import VOID
from tasks.data.splits import stratified
from tasks.data.store import mean_std, one_threaded
from tasks.data.survey import count_copies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 5  # test images that are drawn, evenly spread

# of classes; Okabe, Ito 2008 (seven that the colour-blind can tell apart), then Tol's muted scheme, then others
COLOURS = (
    *("#56B4E9", "#E69F00", "#F0E442", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#332288", "#882255"),
    *("#DDCC77", "#117733", "#AA4499", "#88CCEE", "#999933", "#CC6677", "#44AA99"),
    *("#000000", "#7A4419", "#FFAABB", "#EE8866", "#BBCC33", "#99DDFF"),
)
VOID_COLOUR = "#999999"


class Segmentation(Task):
    """Images to maps of classes; cross entropy over the pixels that have one.

    Metrics in percent, from counts over the whole split, void left out: with n_ij the pixels of class i that were
    given class j,

        IoU_i = n_ii / (sum_j n_ij + sum_j n_ji - n_ii)      pixel accuracy = sum_i n_ii / sum_ij n_ij

    and mIoU the mean of IoU_i over the classes that truth or prediction have anywhere in the split. (A class that
    neither has would be 0 / 0; a class that only the prediction has counts as 0.)

    Args:
        recipe: how to train.
        data: images and masks. Where the source has no test or no validation split, part of the training split is
            held out, by a fixed rule.
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``; makes (N, classes, H, W).
        augment: applied to uint8 training batches (N, 4, H, W), image and mask as one; may change H and W; or None.
        val_fraction, test_fraction: shares held out, in (0, 1).

    Raises:
        ValueError: a share that leaves a split empty, or an augmentation that does not fit images or masks.
    """

    primary_metric = "miou"
    higher_is_better = True

    def __init__(
        self,
        *,
        recipe: Recipe,
        data: MaskSet,
        network: Callable[..., nn.Module],
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
    ) -> None:
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_range(f"task.{name}", share, "in (0, 1)", lambda v: 0 < v < 1)
        check_augment("task.augment", augment, masks=1)
        if recipe.mixup > 0:
            raise ValueError(f"task.recipe.mixup={recipe.mixup}: is for classification; 0 is legal here")
        self.recipe = recipe
        self.data = data
        self.network = network
        self.augment = augment
        self.classes, self.store, self.fingerprint = data.classes, data.store, data.fingerprint
        self.input_shape = (self.store.shape[0] - 1, *self.store.shape[1:])
        self.output_shape = (len(self.classes), *self.store.shape[1:])

        train, val, test = data.train, data.val, data.test
        if test is None:
            train, test = _hold_out(train, test_fraction, "test_fraction")
        if val is None:
            train, val = _hold_out(train, val_fraction, "val_fraction")
        self.index = {"train": train, "val": val, "test": test}
        self.copies = count_copies(data.survey, self.index)
        self.batch_size = min(recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        if augment is not None:
            _check(augment, self.store.shape)
        mean, std = mean_std(self.store, train, self.input_shape[0], data.kept)
        self.scale, self.shift = (1 / std).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Normalised images and int64 masks; training batches shuffled, augmented and all of one size."""
        return one_threaded(self._batches(split, generator))

    def _batches(self, split: str, generator: torch.Generator | None) -> Iterator[Batch]:
        index, training = self.index[split], split == "train"
        if training:
            order = torch.randperm(len(index), generator=generator)
            index = index[order[: self.steps_per_epoch * self.batch_size]]
        for samples in self.store.batches(index.split(self.batch_size)):
            if training and self.augment is not None:
                samples = self.augment(samples, generator or torch.default_generator)
            yield self._prepared(samples)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, a mean over the pixels with a class (0 if there are none); smoothed in training only."""
        smoothing = self.recipe.label_smoothing if torch.is_grad_enabled() else 0.0
        total = F.cross_entropy(output, target, ignore_index=VOID, reduction="sum", label_smoothing=smoothing)
        return total / (target != VOID).sum().clamp_min(1)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Pixel accuracy of a batch, in percent."""
        return {
            "pixel_accuracy": 100 * (_classes(output) == target).sum() / (target != VOID).sum().clamp_min(1)
        }

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Loss, miou, pixel_accuracy, and ``iou/<class>`` of every class that occurs, over the whole of ``split``.

        Raises:
            ValueError: all of it is void.
        """
        network.eval()
        confusion = torch.zeros(2 * self.output_shape[:1], dtype=torch.int64, device=self.device)
        loss = torch.zeros((), dtype=torch.double, device=self.device)
        with torch.inference_mode():
            for input, target in islice(self.batches(split), self.limit_batches):
                output = network(input).float()
                counts = self.confusion(output, target)
                confusion += counts
                loss += self.loss(output, target).double() * counts.sum()
        pixels = int(confusion.sum())
        if pixels == 0:
            raise ValueError(f"task.data: every pixel of the {split} split is void")
        return {"loss": loss.item() / pixels, **self.scores(confusion.cpu())}

    def confusion(self, output: Tensor, target: Tensor) -> Tensor:
        """How often each class (rows) was given each (columns), (K, K) int64; void does not count."""
        classes = len(self.classes)
        labelled = target != VOID
        pairs = target[labelled] * classes + _classes(output)[labelled]
        return pairs.bincount(minlength=classes**2).view(classes, classes)

    def scores(self, confusion: Tensor) -> dict[str, float]:
        """The metrics that follow from a confusion matrix of at least one pixel."""
        hits = confusion.diagonal().double()
        iou = 100 * hits / (confusion.sum(0) + confusion.sum(1) - hits)  # NaN: neither truth nor prediction
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (100 * hits.sum() / confusion.sum()).item(),
        } | {
            f"iou/{name}": value
            for name, value in zip(self.classes, iou.tolist(), strict=True)
            if value == value
        }

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Image, truth, prediction and mistakes, for the same few test images in every run."""
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        index = self.index["test"]
        places = torch.linspace(0, len(index) - 1, min(PICTURES, len(index))).long()
        samples = next(iter(self.store.batches([index[places]])))
        input, target = self._prepared(samples)
        network.eval()
        with torch.inference_mode():
            output = network(input).float()
        guesses = _classes(output)
        colours = dict(zip(self.classes, cycle(COLOURS), strict=False))
        palette = torch.tensor(to_rgb(VOID_COLOUR)).repeat(256, 1)
        palette[: len(colours)] = torch.tensor([to_rgb(colour) for colour in colours.values()])
        if (target == VOID).any():
            colours["void"] = VOID_COLOUR
        mistakes = (guesses != target) & (target != VOID)
        faded = 0.6 + 0.4 * samples[:, :-1].float().mean(1) / 255  # (n, H, W)
        drawn = {
            "image": samples[:, :-1].movedim(1, 3),
            "truth": palette[target.cpu()],
            "prediction": palette[guesses.cpu()],
            "mistakes": faded.where(~mistakes.cpu(), 0)[..., None].expand(-1, -1, -1, 3),
        }

        height, width = self.input_shape[1:]
        figure = Figure(
            figsize=(11, 11 / 4 * len(places) * (height / width + 0.1) + 0.8), layout="constrained"
        )
        for i, axes in enumerate(figure.subplots(len(places), len(drawn), squeeze=False)):
            score = self.scores(self.confusion(output[i : i + 1], target[i : i + 1]).cpu())["miou"]
            titles = [f"test image {places[i]}", "truth", f"prediction, mIoU {score:.1f}", "mistakes"]
            for ax, images, title in zip(axes, drawn.values(), titles, strict=True):
                ax.imshow(images[i].numpy(), interpolation="nearest")
                ax.set_title(title, fontsize="medium")
                ax.set_axis_off()
        figure.legend(
            handles=[Patch(color=colour, label=name) for name, colour in colours.items()],
            loc="outside lower center",
            ncols=min(len(colours), 7),
        )
        return {"predictions": figure}

    def _prepared(self, samples: Tensor) -> Batch:
        """Normalised images and masks of (N, 4, H, W) samples, on the device."""
        samples = samples.to(self.device, non_blocking=True)
        images = samples[:, :-1].float()
        images = images.mul_(self.scale.to(self.device)).add_(self.shift.to(self.device))
        return images, samples[:, -1].long()


def _classes(output: Tensor) -> Tensor:
    """The class with the highest score, (N, H, W)."""
    return output.max(1).indices  # argmax(1) on a CPU takes five times as long


def _hold_out(index: Tensor, share: float, name: str) -> tuple[Tensor, Tensor]:
    """What is left of ``index`` and what is held out; the same whatever the seed."""
    try:
        rest, held = stratified(torch.zeros(len(index), dtype=torch.long), round(share * len(index)))
    except ValueError as error:
        raise ValueError(f"task.{name}: {error}") from None
    return index[rest], index[held]


def _check(augment: Callable[[Tensor, torch.Generator], Tensor], shape: tuple[int, ...]) -> None:
    """Try ``augment`` on masks of 1 and VOID, which it must not mix or cover: 0 would be a class.

    Raises:
        ValueError: it does, or the images do not suit it.
    """
    generator = torch.Generator().manual_seed(0)
    samples = torch.zeros(4, *shape, dtype=torch.uint8)
    samples[:, -1] = 1 + (VOID - 1) * torch.randint(2, samples[:, -1].shape, generator=generator)
    masks = augment(samples, generator)[:, -1]
    if not ((masks == 1) | (masks == VOID)).all():
        raise ValueError(
            "task.augment: mixes the masks' values; masks=1 in its configuration keeps them whole"
        )
