"""Image classification from uint8 tensors in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import ActLayer, Batch, Recipe, Task, check_range, check_whole
from tasks.data.images import ImageSet
from tasks.data.splits import stratified

EVAL_BATCH = 512


class Classification(Task):
    """Images to one of several classes; cross entropy, top-1 and (from 6 classes on) top-5 accuracy in percent.

    Args:
        recipe: how to train.
        data: the images; a set without a test split of its own has one carved out (``test_fraction``).
        network: called with ``act_layer``, ``in_channels`` and ``num_classes``.
        augment: applied to uint8 training batches, or None.
        val_fraction: share of the training images held out for validation, by the fixed rule of ``splits``.
        test_fraction: share held out for the test where the set has no test split.
        train_size: train on so many images only (stratified, fixed, validation unchanged), or None for all.
        test_size: likewise for the test; None for all.

    Raises:
        ValueError: a share or size that leaves a split empty.
    """

    primary_metric = "top1"
    higher_is_better = True

    def __init__(
        self,
        *,
        recipe: Recipe,
        data: ImageSet,
        network: Callable[..., nn.Module],
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.3,
        train_size: int | None = None,
        test_size: int | None = None,
    ) -> None:
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_range(f"task.{name}", share, "in (0, 1)", lambda v: 0 < v < 1)
        self.recipe = recipe
        self.network = network
        self.augment = augment
        self.classes = data.classes
        self.fingerprint = data.fingerprint
        self.images, self.labels = data.images, data.labels
        self.input_shape = tuple(self.images.shape[1:])

        train, test = data.train, data.test
        if test is None:
            train, test = self._hold_out(train, round(test_fraction * len(train)), "test_fraction")
        train, val = self._hold_out(train, round(val_fraction * len(train)), "val_fraction")
        if train_size is not None and train_size != len(train):
            train = self._subset(train, train_size, "train_size")
        if test_size is not None and test_size != len(test):
            test = self._subset(test, test_size, "test_size")
        self.index = {"train": train, "val": val, "test": test}

        self.batch_size = min(recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        mean, std = self._statistics()
        self.scale, self.shift = (1 / std).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)

    def build_network(self, act_layer: ActLayer) -> nn.Module:
        """The configured network for these images."""
        return self.network(
            act_layer=act_layer, in_channels=self.input_shape[0], num_classes=len(self.classes)
        )

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Normalised float images and labels; training batches shuffled, augmented and all of one size."""
        index = self.index[split]
        training = split == "train"
        if training:
            order = torch.randperm(len(index), generator=generator)
            index = index[order[: self.steps_per_epoch * self.batch_size]]
        for chunk in index.split(self.batch_size if training else EVAL_BATCH):
            images = self.images[chunk]
            if training and self.augment is not None:
                images = self.augment(images, generator or torch.default_generator)
            images = images.to(self.device, non_blocking=True).float()
            images = images.mul_(self.scale.to(self.device)).add_(self.shift.to(self.device))
            yield images, self.labels[chunk].to(self.device, non_blocking=True)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, smoothed in training only if the recipe says so."""
        smoothing = self.recipe.label_smoothing if torch.is_grad_enabled() else 0.0
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """top1, and top5 where there are more than five classes, in percent."""
        metrics = {"top1": (output.argmax(1) == target).sum() * (100 / len(target))}
        if output.shape[1] > 5 and not torch.is_grad_enabled():
            hits = (output.topk(5, dim=1).indices == target[:, None]).any(1)
            metrics["top5"] = hits.sum() * (100 / len(target))
        return metrics

    def _hold_out(self, index: Tensor, size: int, name: str) -> tuple[Tensor, Tensor]:
        try:
            rest, held = stratified(self.labels[index], size)
        except ValueError as error:
            raise ValueError(f"task.{name}: {error}") from None
        return index[rest], index[held]

    def _subset(self, index: Tensor, size: int, name: str) -> Tensor:
        check_whole(f"task.{name}", size, 1)
        return self._hold_out(index, size, name)[1]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of the training split, and of nothing else."""
        total = torch.zeros(2, self.input_shape[0], dtype=torch.double)
        for chunk in self.index["train"].split(4096):
            pixels = self.images[chunk].double()
            total += torch.stack((pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))))
        count = len(self.index["train"]) * self.input_shape[1] * self.input_shape[2]
        mean, square = total / count
        std = (square - mean.square()).clamp_min(0).sqrt()
        return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()
