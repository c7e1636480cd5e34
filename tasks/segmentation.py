"""Segmentation: a class for every pixel of an image."""

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import Batch, Recipe, Task, check_range
from tasks.confusion import Confusion
from tasks.data.augment import check_augment
from tasks.data.masks import MaskSet
from tasks.data.pairs import VOID
from tasks.data.splits import stratified
from tasks.data.store import mean_std, one_threaded
from tasks.data.survey import count_copies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.look import Look

BOUNDARY = 0.02  # of the diagonal: how far from an edge the boundary reaches, as in the paper
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

        IoU_i  = n_ii / (sum_j n_ij + sum_j n_ji - n_ii)     pixel accuracy = sum_i n_ii / sum_ij n_ij
        Dice_i = 2 n_ii / (sum_j n_ij + sum_j n_ji), which is the F1 score

    and mIoU the mean of IoU_i over the classes that truth or prediction have anywhere in the split. (A class that
    neither has would be 0 / 0; a class that only the prediction has counts as 0.) The mean of Dice_i is over the same.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562) is the IoU of boundaries: of a class's pixels in truth and
    prediction only those count that ``boundary`` says are near the edge of its region there, within 2 % of the image's
    diagonal. Intersections and unions are summed over the split as for mIoU (the paper's are of single objects), and
    its mean is over the classes that have a boundary anywhere in the split.

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
        else:
            index = self.spread(index, self.batch_size)
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
        """Loss, miou, dice, boundary_iou and pixel_accuracy over the whole of ``split``.

        ``iou/<class>``, ``dice/<class>`` and ``boundary_iou/<class>`` are there for every class that occurs.

        Raises:
            ValueError: all of it is void.
        """
        network.eval()
        total = torch.zeros(2, 2, *2 * self.output_shape[:1], dtype=torch.int64, device=self.device)
        loss = torch.zeros((), dtype=torch.double, device=self.device)
        accuracies = []
        with torch.inference_mode():
            for input, target in self.batches(split):
                output = network(input).float()
                if split == "test":
                    right = (_classes(output) == target).flatten(1).sum(1)
                    # nan where all of an image is void
                    accuracies.append(100 * right / (target != VOID).flatten(1).sum(1))
                counts = self.counts(output, target)
                total += counts
                loss += self.loss(output, target).double() * counts.sum()
        pixels = int(total.sum())
        if pixels == 0:
            raise ValueError(f"task.data: every pixel of the {split} split is void")
        total = total.cpu()
        self.examples = {"pixel_accuracy": torch.cat(accuracies)} if accuracies else {}
        self.confusion = Confusion(total.sum((0, 1)), self.classes, "pixels")
        return {"loss": loss.item() / pixels, **self.scores(total)}

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """How often each class (third dimension) was given each (fourth), (2, 2, K, K) int64; void does not count.

        The first two dimensions tell whether the pixel belongs to its class's boundary in the truth (1) or not (0), and
        likewise in the prediction.
        """
        classes, guesses = len(self.classes), _classes(output)
        void = target == VOID
        edges = boundary(torch.stack((target, guesses.where(~void, VOID)), dim=1).byte())  # (N, 2, H, W)
        places = ((2 * edges[:, 0] + edges[:, 1]) * classes + target) * classes + guesses
        return places[~void].bincount(minlength=4 * classes**2).view(2, 2, classes, classes)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """The metrics that follow from ``counts`` of at least one pixel."""
        counts = counts.double()
        confusion = counts.sum((0, 1))
        hits, sizes = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        both, truth, guessed = counts[1, 1].diagonal(), counts[1].sum((0, 2)), counts[:, 1].sum((0, 1))
        each = {  # NaN: neither truth nor prediction
            "iou": 100 * hits / (sizes - hits),
            "dice": 200 * hits / sizes,
            "boundary_iou": 100 * both / (truth + guessed - both),
        }
        means = {name: values.nanmean().item() for name, values in each.items()}
        return (
            {
                "miou": means.pop("iou"),
                "pixel_accuracy": (100 * hits.sum() / confusion.sum()).item(),
            }
            | means
            | {
                f"{name}/{label}": value
                for name, values in each.items()
                for label, value in zip(self.classes, values.tolist(), strict=True)
                if value == value
            }
        )

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Image, truth, prediction and mistakes, for the same few test images in every run."""
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
        colours, palette = self._colors(void=bool((target == VOID).any()))
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
            score = self.scores(self.counts(output[i : i + 1], target[i : i + 1]).cpu())["miou"]
            titles = [f"test image {places[i]}", "truth", f"prediction, mIoU {score:.1f}", "mistakes"]
            for ax, images, title in zip(axes, drawn.values(), titles, strict=True):
                ax.imshow(images[i].numpy(), interpolation="nearest")
                ax.set_title(title, fontsize="medium")
                ax.set_axis_off()
        figure.legend(
            # between two dollars matplotlib would read a formula
            handles=[Patch(color=colour, label=name.replace("$", r"\$")) for name, colour in colours.items()],
            loc="outside lower center",
            ncols=min(len(colours), 7),
        )
        return {"predictions": figure}

    def look(self, generator: torch.Generator) -> "Look":
        """Pixels of each class and split, values, copies of training images in the test; a sheet with the masks drawn."""
        from tasks import look

        samples = look.read_samples(self.store, self.input_shape[0], self.data.kept)
        pixels = samples.pixels[self.index["train"]].sum(0).double()
        void = bool(pixels[VOID] > 0)
        shares = (100 * pixels / pixels.sum()).tolist()
        shares = shares[: len(self.classes)] + [shares[VOID]] * void
        return look.Look(
            look.image_facts(self, samples, samples.masks, "mask"),
            look.mask_table(samples.pixels, self.index, self.classes, VOID),
            look.scene_sheet(self, *self._colors(void=void), shares, generator),
        )

    def _colors(self, *, void: bool) -> tuple[dict[str, str], Tensor]:
        """Colors of the classes, and of void if it is to be named; and (256, 3), those of a mask's values."""
        from matplotlib.colors import to_rgb

        colours = dict(zip(self.classes, cycle(COLOURS), strict=False))
        palette = torch.tensor(to_rgb(VOID_COLOUR)).repeat(256, 1)
        palette[: len(colours)] = torch.tensor([to_rgb(colour) for colour in colours.values()])
        return colours | ({"void": VOID_COLOUR} if void else {}), palette

    def _prepared(self, samples: Tensor) -> Batch:
        """Normalised images and masks of (N, 4, H, W) samples, on the device."""
        samples = samples.to(self.device, non_blocking=True)
        images = samples[:, :-1].float()
        images = images.mul_(self.scale.to(self.device)).add_(self.shift.to(self.device))
        return images, samples[:, -1].long()


def _classes(output: Tensor) -> Tensor:
    """The class with the highest score, (N, H, W)."""
    return output.max(1).indices  # argmax(1) on a CPU takes five times as long


def boundary(labels: Tensor) -> Tensor:
    """Where the pixels of maps of classes lie within a distance d of their region's edge (Cheng et al., arXiv 2103.16562).

    A pixel of class c does if the square of 2 d + 1 pixels around it has a pixel of another class or reaches beyond the
    image: if the binary mask of c, eroded d times by 3 x 3 pixels, has lost it. d is 2 % of the image's diagonal,
    rounded, and at least 1. Void is no edge, since nobody knows where there is one: it counts as c around every c.

    Args:
        labels: classes below 254, or VOID.

    Shape:
        (N, P, H, W) uint8 to the same of bool; what is said of void itself means nothing.
    """
    height, width = labels.shape[2:]
    reach = max(1, round(BOUNDARY * math.hypot(height, width)))
    # all of a square is of one class if its largest label is its smallest, for all classes at once
    largest, smallest = labels.where(labels != VOID, 0), (255 - labels)
    window = F.pad(torch.cat((largest, smallest), dim=1), 4 * (reach,), value=255)
    for dim in (2, 3):
        # windows of 1, 2, 4, ... pixels are made of two of half the size: several times faster than pooling
        seen = 1
        while seen < 2 * reach + 1:
            step = min(seen, 2 * reach + 1 - seen)
            rest = window.shape[dim] - step
            window = torch.maximum(window.narrow(dim, 0, rest), window.narrow(dim, step, rest))
            seen += step
    largest, smallest = window.chunk(2, dim=1)
    return largest != 255 - smallest


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
