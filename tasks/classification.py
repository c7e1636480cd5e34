"""Image classification from uint8 images, in memory or streamed."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import Batch, Means, Recipe, Task, check_range, check_whole
from tasks.confusion import Confusion
from tasks.data.augment import Augment, check_augment
from tasks.data.images import ImageSet
from tasks.data.splits import stratified
from tasks.data.store import one_threaded
from tasks.data.survey import count_copies

if TYPE_CHECKING:
    from tasks.look import Look

EVAL_BATCH, EVAL_PIXELS = 512, 1 << 20  # at most so many images, and so many pixels of them
BINS = 15  # of the calibration error, as in the paper


class Classification(Task):
    """Images to one of several classes; cross entropy, accuracy and calibration error, in percent.

    Args:
        recipe: how to train.
        data: the images; a set without a test split of its own has one carved out (``test_fraction``).
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``.
        augment: applied to uint8 training batches; None for ``eval_crop`` there, too.
        eval_crop: cuts validation and test images to the size that ``augment`` makes of those for training; None
            where they have it.
        val_fraction: share of the training images held out for validation, by the fixed rule of ``splits``.
        test_fraction: share held out for the test where the set has no test split.
        train_size: train on so many images only (stratified, fixed, validation unchanged), or None for all.
        test_size: likewise for the test; None for all.

    Raises:
        ValueError: a share or size that leaves a split empty, or crops of different sizes.
    """

    primary_metric = "top1"
    higher_is_better = True

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
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_range(f"task.{name}", share, "in (0, 1)", lambda v: 0 < v < 1)
        for name, step in (("augment", augment), ("eval_crop", eval_crop)):
            check_augment(f"task.{name}", step, masks=0)
        if len(data.classes) < 2:
            raise ValueError(f"task.data: two classes or more are needed, there is only {data.classes[0]}")
        self.recipe = recipe
        self.data = data
        self.network = network
        self.augment = augment
        self.eval_crop = eval_crop
        self.classes = data.classes
        self.output_shape = (len(self.classes),)
        self.fingerprint = data.fingerprint
        self.store, self.labels = data.store, data.labels
        self.input_shape = self._check_sizes()

        train, test = data.train, data.test
        if test is None:
            train, test = self._hold_out(train, round(test_fraction * len(train)), "test_fraction")
        train, val = self._hold_out(train, round(val_fraction * len(train)), "val_fraction")
        if train_size is not None and train_size != len(train):
            train = self._subset(train, train_size, "train_size")
        if test_size is not None and test_size != len(test):
            test = self._subset(test, test_size, "test_size")
        self.index = {"train": train, "val": val, "test": test}
        self.copies = count_copies(data.survey, self.index)

        self.batch_size = min(recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        mean, std = data.mean_std(train)
        self.scale, self.shift = (1 / std).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Normalised float images and labels, (N,) or with mixup (N, K); training batches all of one size."""
        return one_threaded(self._batches(split, generator))

    def _batches(self, split: str, generator: torch.Generator | None) -> Iterator[Batch]:
        index = self.index[split]
        training = split == "train"
        draws = generator or torch.default_generator
        size = self._eval_batch()
        if training:
            order = torch.randperm(len(index), generator=draws)
            index, size = index[order[: self.steps_per_epoch * self.batch_size]], self.batch_size
        else:
            index = self.spread(index, size)
        chunks = index.split(size)
        for chunk, images in zip(chunks, self.store.batches(chunks), strict=True):
            if training and self.augment is not None:
                images = self.augment(images, draws)
            elif self.eval_crop is not None:
                images = self.eval_crop(images)
            images = images.to(self.device, non_blocking=True)
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
            images = images.mul_(self.scale.to(self.device)).add_(self.shift.to(self.device))
            labels = self.labels[chunk].to(self.device, non_blocking=True)
            if training and self.recipe.mixup > 0:
                yield mixup(images, F.one_hot(labels, len(self.classes)), self.recipe.mixup, draws)
            else:
                yield images, labels

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, smoothed in training only if the recipe says so."""
        smoothing = self.recipe.label_smoothing if torch.is_grad_enabled() else 0.0
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """top1, and top5 where there are more than five classes, in percent. Of mixed labels the largest counts."""
        target = target if target.ndim == 1 else target.argmax(1)
        metrics = {"top1": (output.argmax(1) == target).sum() * (100 / len(target))}
        if output.shape[1] > 5 and not torch.is_grad_enabled():
            hits = (output.topk(5, dim=1).indices == target[:, None]).any(1)
            metrics["top5"] = hits.sum() * (100 / len(target))
        return metrics

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Loss, top1, top5, ece, and for each class that occurs ``acc/``, ``precision/`` and ``f1/<class>``."""
        network.eval()
        means, tally, right = Means(), Tally(len(self.classes), self.device), []
        with torch.inference_mode():
            for input, target in self.batches(split):
                output = network(input).float()
                means.add(len(target), loss=self.loss(output, target), **self.metrics(output, target))
                tally.add(output, target)
                right.append(output.argmax(1) == target)
        self.examples = {"top1": torch.cat(right)}
        self.confusion = Confusion(tally.counts.cpu(), self.classes, "images")
        return means.result() | {"ece": tally.ece()} | tally.of_classes(self.classes)

    def look(self, generator: torch.Generator) -> "Look":
        """Images of each class and split, their values, copies of training images in the test; a sheet of them."""
        from tasks import look

        samples = look.read_samples(self.store, self.store.shape[0], self.data.kept)
        high = int(samples.high.max())
        return look.Look(
            look.image_facts(self, samples, self.labels, "class"),
            look.class_table(self.labels, self.index, self.classes),
            # values of few steps, as of 0 to 16, are shown in full
            look.class_sheet(self, self.labels, 255 if high > 127 else max(high, 1), generator),
        )

    def _check_sizes(self) -> tuple[int, ...]:
        """What the network receives, checked to be the same in training and in evaluation."""
        image = torch.zeros(1, *self.store.shape, dtype=torch.uint8)
        trained = self.augment(image, torch.Generator()) if self.augment is not None else None
        evaluated = self.eval_crop(image) if self.eval_crop is not None else image
        if trained is not None and trained.shape != evaluated.shape:
            sizes = [" x ".join(map(str, x.shape[2:])) for x in (trained, evaluated)]
            raise ValueError(
                f"task.augment makes training images {sizes[0]}, task.eval_crop those of validation and test "
                f"{sizes[1]}: one size is needed"
            )
        return tuple(evaluated.shape[1:])

    def _eval_batch(self) -> int:
        height, width = self.input_shape[1:]
        return max(1, min(EVAL_BATCH, EVAL_PIXELS // (height * width)))

    def _hold_out(self, index: Tensor, size: int, name: str) -> tuple[Tensor, Tensor]:
        try:
            rest, held = stratified(self.labels[index], size)
        except ValueError as error:
            raise ValueError(f"task.{name}: {error}") from None
        return index[rest], index[held]

    def _subset(self, index: Tensor, size: int, name: str) -> Tensor:
        check_whole(f"task.{name}", size, 1)
        return self._hold_out(index, size, name)[1]


def mixup(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> Batch:
    """Each image and its label mixed with those of another (Zhang et al. 2018, arXiv 1710.09412, equation 1).

    x = s x_i + (1 - s) x_j and y = s y_i + (1 - s) y_j, where j is a random permutation of i, and s is drawn
    from Beta(alpha, alpha) for each image (the paper's listing: for each batch).

    Shape:
        images (N, C, H, W), labels (N, K) of zeros and ones; the same, as float.
    """
    other = torch.randperm(len(images), generator=generator).to(images.device)
    # torch's own Beta distribution knows the global generator only
    seed = int(torch.randint(1 << 62, (1,), generator=generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, len(images)).astype(np.float32)
    s = torch.from_numpy(share).to(images.device).view(-1, 1, 1, 1)
    labels = labels.to(images.dtype)
    return torch.lerp(images[other], images, s), torch.lerp(labels[other], labels, s.flatten(1))


class Tally:
    """What is summed up over a whole split: calibration, and how often each class was taken for each.

    Args:
        num_classes: how many there are.
        device: of the outputs.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.gaps = torch.zeros(
            BINS, dtype=torch.double, device=device
        )  # of each bin: sum of (hit - confidence)
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
        """Expected calibration error in percent: mean over all samples of their bin's |accuracy - confidence|.

        15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3).
        """
        return 100 * (self.gaps.abs().sum() / self.counts.sum()).item()

    def of_classes(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Scores of each class in percent, where they are defined, class by class.

        acc: the share of its images that were found, which is its recall. precision: the share of what was taken for
        it that is of it. f1: the harmonic mean of the two, 2 hits / (images + taken for it).
        """
        counts = self.counts.double()
        hits, images, taken = counts.diagonal(), counts.sum(1), counts.sum(0)
        shares = {
            "acc": 100 * hits / images,
            "precision": 100 * hits / taken,
            "f1": 200 * hits / (images + taken),
        }
        columns = {name: share.tolist() for name, share in shares.items()}
        return {
            f"{name}/{label}": column[k]
            for k, label in enumerate(classes)
            for name, column in columns.items()
            if column[k] == column[k]
        }
