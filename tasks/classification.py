"""Image classification from uint8 images, in memory or streamed."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_int
from tasks.base import Batch, Recipe, RunningMeans
from tasks.confusion import Confusion
from tasks.data.augment import Augment, check_augment
from tasks.data.sets import ImageSet
from tasks.data.splits import stratified
from tasks.data.transfer import send
from tasks.images import ImageTask
from tasks.settings import within

if TYPE_CHECKING:
    from tasks.look import Look

# maximum number of images in a batch that is evaluated, and of their pixels
EVAL_BATCH, EVAL_PIXELS = (512, 1 << 20)
BINS = 15  # of the calibration error, as in the paper


class Classification(ImageTask):
    """Images to one of several classes; cross entropy, accuracy and calibration error, in percent.

    Args:
        recipe: how the network is trained.
        data: the images; a set without a test split has one held out (``test_fraction``).
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``.
        augment: applied to uint8 training batches; None for ``eval_crop`` there, too.
        eval_crop: crops validation and test images to the size of the augmented training images; None if they have it.
        val_fraction: share of the training images held out for validation, by the fixed rule of ``splits``.
        test_fraction: share held out for the test where the set has no test split.
        train_size: number of training images (stratified, fixed, validation unchanged), or None for all.
        test_size: likewise for the test; None for all.

    Raises:
        ValueError: a share or size that leaves a split empty, or crops of different sizes.

    Examples:
        >>> from tasks.data.images import digits
        >>> from tasks.networks.small_cnn import SmallCNN
        >>> recipe = Recipe(epochs=1, batch_size=64, lr=0.1)
        >>> task = Classification(recipe=recipe, data=digits(), network=SmallCNN)
        >>> {split: len(index) for split, index in task.index.items()}
        {'train': 1132, 'val': 126, 'test': 539}
    """

    primary_metric = "top1"

    def __init__(
        self,
        *,
        recipe: Recipe,
        data: ImageSet,
        network: Callable[..., nn.Module],
        augment: Augment | None = None,
        eval_crop: Callable[[Tensor], Tensor] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.3,
        train_size: int | None = None,
        test_size: int | None = None,
    ) -> None:
        check_augment("eval_crop", eval_crop, masks=0)
        self.labels, self.eval_crop = data.labels, eval_crop
        super().__init__(recipe, data, network, augment, val_fraction, test_fraction)
        self.output_shape = (len(self.classes),)
        self.input_shape = self._check_sizes()
        for split, size in (("train", train_size), ("test", test_size)):
            if size is not None and size != len(self.index[split]):
                self.index[split] = self._subset(self.index[split], size, f"{split}_size")
        self._prepare()

    def _strata(self) -> Tensor:
        return self.labels

    def _eval_batch(self) -> int:
        height, width = self.input_shape[1:]
        return max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))

    def _batch(self, samples: Tensor, index: Tensor, generator: torch.Generator | None) -> Batch:
        """Return float images and labels: (n,), or (n, K) with mixup."""
        if self.eval_crop is not None and (generator is None or self.augment is None):
            samples = self.eval_crop(samples)
        images = send(samples, self.device)
        images = self._normalize(images.to(torch.float32, memory_format=torch.contiguous_format))
        labels = send(self.labels[index], self.device)
        if generator is not None and self.recipe.mixup > 0:
            return mixup(images, F.one_hot(labels, len(self.classes)), self.recipe.mixup, generator)
        return images, labels

    def loss(self, output: Tensor, target: Tensor, *, training: bool) -> Tensor:
        """Return the cross entropy, in training smoothed if the recipe says so."""
        smoothing = self.recipe.label_smoothing if training else 0.0
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    def metrics(self, output: Tensor, target: Tensor, *, training: bool) -> dict[str, Tensor]:
        """Return top1 and, if there are more than five classes, in evaluation top5, in percent.

        The target of mixed images is the class with the largest share.
        """
        target = target if target.ndim == 1 else target.argmax(1)
        metrics = {"top1": (output.argmax(1) == target).sum() * (100 / len(target))}
        if output.shape[1] > 5 and not training:
            hits = (output.topk(5, dim=1).indices == target[:, None]).any(1)
            metrics["top5"] = hits.sum() * (100 / len(target))
        return metrics

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Loss, top1, top5, ece, and for each class that occurs ``acc/``, ``precision/`` and ``f1/<class>``."""
        means, tally, correct = RunningMeans(), Tally(len(self.classes), self.device), []
        for output, target in self.predictions(network, split):
            means.add(len(target), **self.scalars(output, target))
            tally.add(output, target)
            correct.append(output.argmax(1) == target)
        self.examples = {"top1": torch.cat(correct)}
        self.confusion = Confusion(tally.counts.cpu(), self.classes, "images")
        return means.result() | {"ece": tally.ece()} | tally.of_classes(self.classes)

    def look(self, generator: torch.Generator) -> "Look":
        """Images of each class and split, their values, copies of training images in the test; a contact sheet."""
        from tasks import look

        samples = look.read_samples(self.store, self.store.shape[0], self.data.cache)
        high = int(samples.high.max())
        return look.Look(
            look.image_facts(self, samples, self.labels, "class"),
            look.class_table(self.labels, self.index, self.classes),
            # values in few steps, as from 0 to 16, are scaled to the full range
            look.class_sheet(self, self.labels, 255 if high > 127 else max(high, 1), generator),
        )

    def _check_sizes(self) -> tuple[int, ...]:
        """Return the shape of the network's inputs, which must be the same in training and in evaluation."""
        image = torch.zeros(1, *self.store.shape, dtype=torch.uint8)
        trained = None if self.augment is None else self._try_augment(image)
        with within("eval_crop"):
            evaluated = image if self.eval_crop is None else self.eval_crop(image)
        if trained is not None and trained.shape != evaluated.shape:
            sizes = [" x ".join(map(str, x.shape[2:])) for x in (trained, evaluated)]
            raise ValueError(
                f"augment: makes training images of {sizes[0]}, but eval_crop those of validation and test of "
                f"{sizes[1]}; the sizes must be equal"
            )
        return tuple(evaluated.shape[1:])

    def _subset(self, index: Tensor, size: int, name: str) -> Tensor:
        check_int(name, size, minimum=1)
        try:
            return index[stratified(self.labels[index], size)[1]]
        except ValueError as error:
            raise ValueError(f"{name}={size}: {error}") from None


def mixup(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> Batch:
    """Mix each image and its label with those of another (Zhang et al. 2018, arXiv 1710.09412, equation 1).

    x = s x_i + (1 - s) x_j and y = s y_i + (1 - s) y_j, where j is a random permutation of i, and s is drawn
    from Beta(alpha, alpha) for each image (the paper's listing: for each batch).

    Args:
        images: (N, C, H, W).
        labels: (N, K) of zeros and ones.
        alpha: > 0; the larger it is, the nearer the shares are to 1/2.
        generator: the only source of randomness.

    Returns:
        images and labels of the same shapes, as float.
    """
    other = send(torch.randperm(len(images), generator=generator), images.device)
    # numpy's, as torch's Beta distribution draws from the global generator only
    seed = int(torch.randint(1 << 62, (1,), generator=generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, len(images)).astype(np.float32)
    s = send(torch.from_numpy(share), images.device).view(-1, 1, 1, 1)
    labels = labels.to(images.dtype)
    return torch.lerp(images[other], images, s), torch.lerp(labels[other], labels, s.flatten(1))


class Tally:
    """Sums over a split: calibration, and how often each class was predicted for each class.

    Args:
        num_classes: number of classes.
        device: of the outputs.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        # sum of (hit - confidence) of each bin
        self.gaps = torch.zeros(BINS, dtype=torch.double, device=device)
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: logits (N, K), labels (N,)."""
        confidence, predicted = output.double().softmax(1).max(1)
        hit = (predicted == target).double()
        bins = (confidence * BINS).ceil().long() - 1  # the bins are ((m - 1) / BINS, m / BINS]
        self.gaps.index_add_(0, bins.clamp(0, BINS - 1), hit - confidence)
        places = target * len(self.counts) + predicted
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def ece(self) -> float:
        """Return the expected calibration error in percent: the mean over all samples of their bin's |accuracy - confidence|.

        15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3).
        """
        return 100 * (self.gaps.abs().sum() / self.counts.sum()).item()

    def of_classes(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Return the scores of each class in percent, where they are defined, class by class.

        acc, which is the recall: hits / images of the class. precision: hits / predictions of the class. f1: the harmonic
        mean of the two, 2 hits / (images + predictions).
        """
        counts = self.counts.double()
        hits, images, predictions = counts.diagonal(), counts.sum(1), counts.sum(0)
        shares = {
            "acc": 100 * hits / images,
            "precision": 100 * hits / predictions,
            "f1": 200 * hits / (images + predictions),
        }
        columns = {name: share.tolist() for name, share in shares.items()}
        return {
            f"{name}/{label}": column[k]
            for k, label in enumerate(classes)
            for name, column in columns.items()
            if not math.isnan(column[k])
        }
