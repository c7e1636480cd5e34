"""Segmentation: a class for every pixel of an image."""

import math
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import Batch, Recipe
from tasks.confusion import Confusion
from tasks.data.pairs import VOID
from tasks.data.sets import MaskSet
from tasks.data.transfer import send
from tasks.images import ImageTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.look import Look

BOUNDARY = 0.02  # width of the boundary as a share of the image's diagonal, as in the paper
PICTURES = 5  # number of test images that are drawn, evenly spread

# Okabe, Ito 2008 (seven that the color-blind can tell apart), then Tol's muted scheme, then others
COLORS = (
    *("#56B4E9", "#E69F00", "#F0E442", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#332288", "#882255"),
    *("#DDCC77", "#117733", "#AA4499", "#88CCEE", "#999933", "#CC6677", "#44AA99"),
    *("#000000", "#7A4419", "#FFAABB", "#EE8866", "#BBCC33", "#99DDFF"),
)
VOID_COLOR = "#999999"


class Segmentation(ImageTask):
    """Images to maps of classes; cross entropy over the pixels that have a class.

    Metrics in percent, from counts over the whole split without void pixels: with n_ij the number of pixels of class i
    that are predicted as class j,

        IoU_i  = n_ii / (sum_j n_ij + sum_j n_ji - n_ii)     pixel accuracy = sum_i n_ii / sum_ij n_ij
        Dice_i = 2 n_ii / (sum_j n_ij + sum_j n_ji), which is the F1 score

    and mIoU the mean of IoU_i over the classes that occur in truth or prediction anywhere in the split. (A class in
    neither would be 0 / 0; a class in the prediction alone counts as 0.) The mean of Dice_i is over the same classes.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562) is the IoU of boundaries: of a class's pixels in truth and
    prediction only those count that ``boundary`` marks there, within 2 % of the image's diagonal from the edge of their
    region. Intersections and unions are summed over the split as for mIoU (the paper's are of single objects), and the
    mean is over the classes that have a boundary anywhere in the split.

    Args:
        recipe: how the network is trained.
        data: images and masks; a set without a test or validation split has one held out of the training split.
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``; makes (N, classes, H, W).
        augment: applied to uint8 training batches (N, 4, H, W), image and mask together; may change H and W; or None.
        val_fraction, test_fraction: shares held out where the data have no such split, in (0, 1).

    Raises:
        ValueError: a share that leaves a split empty, or an augmentation that does not fit images or masks.

    Examples:
        >>> from tasks.data.shapes import shapes
        >>> from tasks.networks.unet import UNet
        >>> recipe = Recipe(epochs=1, batch_size=2, lr=0.01)
        >>> task = Segmentation(recipe=recipe, data=shapes(train=4, val=2, test=2, size=16), network=UNet)
        >>> task.input_shape, task.output_shape, task.classes[:2]
        ((3, 16, 16), (6, 16, 16), ('background', 'disc'))
    """

    primary_metric = "miou"
    masks = 1

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
        if recipe.mixup > 0:
            raise ValueError(f"recipe.mixup={recipe.mixup}: must be 0, as mixup is for classification")
        super().__init__(recipe, data, network, augment, val_fraction, test_fraction)
        self.input_shape = (self.store.shape[0] - 1, *self.store.shape[1:])
        self.output_shape = (len(self.classes), *self.store.shape[1:])
        if augment is not None:
            self._check_augment()
        self._prepare()

    def _check_augment(self) -> None:
        """Try the augmentation on masks of 1 and VOID, which it must not mix or fill with 0: that would be a class.

        Raises:
            ValueError: it does, or the images do not suit it.
        """
        samples = torch.zeros(4, *self.store.shape, dtype=torch.uint8)
        choice = torch.randint(2, samples[:, -1].shape, generator=torch.Generator().manual_seed(0))
        samples[:, -1] = 1 + (VOID - 1) * choice
        masks = self._try_augment(samples)[:, -1]
        if not ((masks == 1) | (masks == VOID)).all():
            raise ValueError(
                "augment: mixes the masks' values; masks=1 in its configuration keeps them unmixed"
            )

    def _batch(self, samples: Tensor, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return normalized images and int64 masks."""
        samples = send(samples, self.device)
        return self._normalize(samples[:, :-1].float()), samples[:, -1].long()

    def loss(self, output: Tensor, target: Tensor, *, training: bool) -> Tensor:
        """Return the cross entropy, a mean over the pixels with a class (0 if there are none); smoothed in training only."""
        smoothing = self.recipe.label_smoothing if training else 0.0
        total = F.cross_entropy(output, target, ignore_index=VOID, reduction="sum", label_smoothing=smoothing)
        return total / self.terms(target)

    def terms(self, target: Tensor) -> Tensor:
        """Return the number of pixels with a class, at least 1."""
        return (target != VOID).sum().clamp_min(1)

    def metrics(self, output: Tensor, target: Tensor, *, training: bool) -> dict[str, Tensor]:
        """Return the pixel accuracy of a batch, in percent."""
        return {"pixel_accuracy": 100 * (_classes(output) == target).sum() / self.terms(target)}

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Return loss, miou, dice, boundary_iou and pixel_accuracy over the whole of ``split``.

        ``iou/<class>``, ``dice/<class>`` and ``boundary_iou/<class>`` are there for every class that occurs.

        Raises:
            ValueError: every pixel is void.
        """
        total = torch.zeros(2, 2, *2 * self.output_shape[:1], dtype=torch.int64, device=self.device)
        loss = torch.zeros((), dtype=torch.double, device=self.device)
        accuracies = []
        for output, target in self.predictions(network, split):
            if split == "test":
                correct = (_classes(output) == target).flatten(1).sum(1)
                # nan where all of an image is void
                accuracies.append(100 * correct / (target != VOID).flatten(1).sum(1))
            counts = self.counts(output, target)
            total += counts
            loss += self.loss(output, target, training=False).double() * counts.sum()
        pixels = int(total.sum())
        if pixels == 0:
            raise ValueError(f"data: every pixel of the {split} split is void")
        total = total.cpu()
        self.examples = {"pixel_accuracy": torch.cat(accuracies)} if accuracies else {}
        self.confusion = Confusion(total.sum((0, 1)), self.classes, "pixels")
        return {"loss": loss.item() / pixels, **self.scores(total)}

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how often each true class (third dimension) was predicted as each class (fourth), without void pixels.

        The first two dimensions tell whether the pixel is on its class's boundary in the truth (1) or not (0), and likewise
        in the prediction.

        Shape:
            output (N, K, H, W), target (N, H, W) to (2, 2, K, K) int64.
        """
        classes, predicted = len(self.classes), _classes(output)
        void = target == VOID
        edges = boundary(torch.stack((target, predicted.where(~void, VOID)), dim=1).byte())  # (N, 2, H, W)
        places = ((2 * edges[:, 0] + edges[:, 1]) * classes + target) * classes + predicted
        bins = 4 * classes**2
        if places.is_cpu:
            counts = places[~void].bincount(minlength=bins)
        else:  # where either of these would make the host wait
            flat = places.where(~void, bins).flatten()
            counts = flat.new_zeros(bins + 1).index_add_(0, flat, torch.ones_like(flat))[:bins]
        return counts.view(2, 2, classes, classes)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """Return the metrics that follow from ``counts`` of at least one pixel."""
        counts = counts.double()
        confusion = counts.sum((0, 1))
        hits, sizes = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        both, truth, predicted = counts[1, 1].diagonal(), counts[1].sum((0, 2)), counts[:, 1].sum((0, 1))
        each = {  # NaN: a class in neither truth nor prediction
            "iou": 100 * hits / (sizes - hits),
            "dice": 200 * hits / sizes,
            "boundary_iou": 100 * both / (truth + predicted - both),
        }
        means = {name: values.nanmean().item() for name, values in each.items()}
        accuracy = (100 * hits.sum() / confusion.sum()).item()
        of_classes = {
            f"{name}/{label}": value
            for name, values in each.items()
            for label, value in zip(self.classes, values.tolist(), strict=True)
            if not math.isnan(value)
        }
        return {"miou": means.pop("iou"), "pixel_accuracy": accuracy, **means, **of_classes}

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Draw image, truth, prediction and mistakes, for the same few test images in every run."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        index = self.index["test"]
        places = torch.linspace(0, len(index) - 1, min(PICTURES, len(index))).long()
        samples = next(iter(self.store.batches([index[places]])))
        inputs, target = self._batch(samples, index[places])
        network.eval()
        with torch.inference_mode():
            output = network(inputs).float()
        predicted = _classes(output)
        colors, palette = self._colors(void=bool((target == VOID).any()))
        mistakes = (predicted != target) & (target != VOID)
        faded = 0.6 + 0.4 * samples[:, :-1].float().mean(1) / 255  # (n, H, W)
        drawn = {
            "image": samples[:, :-1].movedim(1, 3),
            "truth": palette[target.cpu()],
            "prediction": palette[predicted.cpu()],
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
                ax.set(xticks=[], yticks=[])  # which are laid out even when the axes are off
                ax.set_axis_off()
        figure.legend(
            # matplotlib reads text between two dollars as a formula
            handles=[Patch(color=color, label=name.replace("$", r"\$")) for name, color in colors.items()],
            loc="outside lower center",
            ncols=min(len(colors), 7),
        )
        return {"predictions": figure}

    def look(self, generator: torch.Generator) -> "Look":
        """Pixels of each class and split, values, copies of training images in the test; a contact sheet with masks."""
        from tasks import look

        samples = look.read_samples(self.store, self.input_shape[0], self.data.cache)
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
        """Return the colors of the classes, with void if ``void``, and those of a mask's values, (256, 3)."""
        from matplotlib.colors import to_rgb

        colors = dict(zip(self.classes, cycle(COLORS), strict=False))
        palette = torch.tensor(to_rgb(VOID_COLOR)).repeat(256, 1)
        palette[: len(colors)] = torch.tensor([to_rgb(color) for color in colors.values()])
        return colors | ({"void": VOID_COLOR} if void else {}), palette


def _classes(output: Tensor) -> Tensor:
    """Return the class with the highest score, (N, H, W)."""
    return output.max(1).indices  # argmax(1) on a CPU takes five times as long


def boundary(labels: Tensor) -> Tensor:
    """Return which pixels lie within a distance d of the edge of their region (Cheng et al., arXiv 2103.16562).

    A pixel of class c does if the square of 2 d + 1 pixels around it contains a pixel of another class or reaches beyond
    the image: if the binary mask of c, eroded d times by 3 x 3 pixels, does not contain it. d is 2 % of the image's
    diagonal, rounded, and >= 1. Void is no edge, since the edge there is unknown: beside c it counts as c.

    Args:
        labels: classes below 254, or VOID.

    Shape:
        (N, P, H, W) uint8 to the same in bool; values at void pixels have no meaning.
    """
    height, width = labels.shape[2:]
    reach = max(1, round(BOUNDARY * math.hypot(height, width)))
    # A square has a single class if its largest label equals its smallest; this serves all classes at once.
    largest, smallest = labels.where(labels != VOID, 0), (255 - labels)
    window = F.pad(torch.cat((largest, smallest), dim=1), 4 * (reach,), value=255)
    for dim in (2, 3):
        # The maximum over 2, 4, 8, ... pixels comes from two of half the width: several times faster than pooling.
        width = 1
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            rest = window.shape[dim] - step
            window = torch.maximum(window.narrow(dim, 0, rest), window.narrow(dim, step, rest))
            width += step
    largest, smallest = window.chunk(2, dim=1)
    return largest != 255 - smallest
