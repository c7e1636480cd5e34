"""Sets of samples of one size: where they are, and which of them belong to which split."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.data.cache import CacheEntry
from tasks.data.splits import stratified
from tasks.data.store import Store, mean_std
from tasks.data.survey import Survey

MAX_STATISTICS_IMAGES = 50_000  # more would take minutes to stream and change nothing


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Images of one size.

    Attributes:
        store: the samples, (planes, H, W) uint8 each.
        train, val, test: positions of the splits; None where the source has no such split.
        classes: names, in the order of the labels.
        fingerprint: hash of the content, the same wherever and however the samples are stored.
        cache: entry of the cache for what takes a reading of all samples; None where that is quick.
        survey: facts about the files; None of a set that is not read from image files.
    """

    store: Store
    train: Tensor
    val: Tensor | None = None
    test: Tensor | None = None
    classes: tuple[str, ...]
    fingerprint: str
    cache: CacheEntry | None = None
    survey: Survey | None = None

    def mean_std(self, index: Tensor, planes: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the first ``planes`` of the samples at ``index``."""
        return mean_std(self.store, index, planes, self.cache)


@dataclass(frozen=True, kw_only=True)
class ImageSet(SampleSet):
    """Images with labels.

    Attributes:
        labels: (N,) int64.

    Examples:
        >>> from tasks.data.images import digits
        >>> data = digits()
        >>> data.store.shape, len(data.labels), data.classes[:3]
        ((1, 8, 8), 1797, ('0', '1', '2'))
    """

    labels: Tensor

    def mean_std(self, index: Tensor, planes: int) -> tuple[Tensor, Tensor]:
        """As of ``SampleSet``, of at most 50,000 images, each class in proportion."""
        if len(index) > MAX_STATISTICS_IMAGES:
            index = index[stratified(self.labels[index], MAX_STATISTICS_IMAGES)[1]]
        return super().mean_std(index, planes)


def labeled_set(store: Store, labels: Tensor, num_train: int, **facts: Any) -> ImageSet:
    """Return the set whose first ``num_train`` images are for training and whose others, if any, are the test."""
    count = len(labels)
    test = torch.arange(num_train, count) if num_train < count else None
    return ImageSet(store=store, labels=labels, train=torch.arange(num_train), test=test, **facts)


@dataclass(frozen=True, kw_only=True)
class MaskSet(SampleSet):
    """Images with masks: samples of 4 planes, red, green, blue, and the class or VOID.

    Attributes:
        pixels: (N, classes + 1) int64, the number of pixels of each class in each mask's file, void last; None of a set
            that is not read from files.
    """

    pixels: Tensor | None = None
