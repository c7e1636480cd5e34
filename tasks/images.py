"""What tasks on images have in common: splits of a set, and batches of augmented and normalized samples."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from activations.checks import check_number
from tasks.base import Batch, Recipe, Task
from tasks.data.augment import Compose, Drawn, check_augment, draws_first
from tasks.data.sets import SampleSet
from tasks.data.splits import hold_out
from tasks.data.store import one_threaded
from tasks.data.survey import count_copies
from tasks.data.transfer import deliver, send
from tasks.processes import ALONE, Processes
from tasks.settings import within


class ImageTask(Task):
    """A task on uint8 images, in memory or streamed.

    Args:
        recipe: how the network is trained.
        data: the samples; a split that it does not have is held out of the training split, by the fixed rule of ``splits``.
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``.
        augment: applied to uint8 training batches, or None.
        val_fraction, test_fraction: shares held out where the data have no such split, in (0, 1).

    Raises:
        ValueError: a share that leaves a split empty, or an augmentation that does not fit.
    """

    masks = 0  # planes at the end of a sample that are label maps
    higher_is_better = True

    def __init__(
        self,
        recipe: Recipe,
        data: SampleSet,
        network: Callable[..., nn.Module],
        augment: Callable[[Tensor, torch.Generator], Tensor] | None,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            check_number(name, share, above=0, below=1)
        check_augment("augment", augment, self.masks)
        if len(data.classes) < 2:
            raise ValueError(f"data: must have two classes or more, has only {data.classes[0]}")
        self.recipe, self.network, self.augment, self.data = recipe, network, augment, data
        self.classes, self.store, self.fingerprint = data.classes, data.store, data.fingerprint
        strata = self._strata()
        train, val, test = data.train, data.val, data.test
        if test is None:
            train, test = hold_out(train, strata, test_fraction, "test_fraction")
        if val is None:
            train, val = hold_out(train, strata, val_fraction, "val_fraction")
        self.index = {"train": train, "val": val, "test": test}

    def _strata(self) -> Tensor:
        """Return a label for each sample; a part that is held out has each of them in proportion."""
        return torch.zeros(len(self.store), dtype=torch.long)

    def _prepare(self) -> None:
        """Set what depends on the final splits."""
        train = self.index["train"]
        self.copies = count_copies(self.data.survey, self.index)
        self.batch_size = min(self.recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        with within("data"):
            mean, std = self.data.mean_std(train, self.store.shape[0] - self.masks)
        self.scale, self.shift = (1 / std).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield normalized images and targets; training batches are shuffled, augmented and all of one size."""
        return one_threaded(self._batches(split, generator or torch.default_generator))

    def parts(
        self, split: str, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield this process's rows of each batch; of the others no sample is read, unless they are mixed with them."""
        mixed = split == "train" and (self.recipe.mixup > 0 or not draws_first(self.augment))
        if self.processes.size == 1 or mixed:
            return super().parts(split, generator)
        return one_threaded(self._parts(split, generator or torch.default_generator, self.processes))

    def _batches(self, split: str, generator: torch.Generator) -> Iterator[Batch]:
        for inputs, target, _ in self._parts(split, generator, ALONE):
            yield inputs, target

    def _parts(
        self, split: str, generator: torch.Generator, processes: Processes
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        chunks = self._chunks(split, generator)
        own = [chunk[processes.part(len(chunk))] for chunk in chunks]
        read = deliver(self.store, [part for part in own if len(part)], self.device)
        augment = self.augment if split == "train" else None
        for chunk, part in zip(chunks, own, strict=True):
            count = len(chunk)
            samples = next(read) if len(part) else torch.empty(0, *self.store.shape, dtype=torch.uint8)
            if processes.size > 1 and isinstance(augment, Compose | Drawn):
                samples = augment.of_batch(samples, generator, count, processes.part(count))
            elif augment is not None:
                samples = augment(samples, generator)
            yield *self._batch(samples, part, generator if split == "train" else None), count

    def _chunks(self, split: str, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the positions of the samples of each batch."""
        index, size = self.index[split], self._eval_batch()
        if split == "train":
            order = torch.randperm(len(index), generator=generator)
            index, size = index[order[: self.steps_per_epoch * self.batch_size]], self.batch_size
        else:
            index = self.spread(index, size)
        return index.split(size)

    def _eval_batch(self) -> int:
        """Return the number of samples in a batch that is evaluated."""
        return self.batch_size

    def _batch(self, samples: Tensor, index: Tensor, generator: torch.Generator | None) -> Batch:
        """Return inputs and targets, on the device, of the uint8 ``samples`` at ``index``.

        Args:
            samples: (n, planes, H, W), augmented; on the device already, if that is a GPU.
            index: (n,) their positions.
            generator: of what is random in training; None outside of it.
        """
        raise NotImplementedError

    def _normalize(self, images: Tensor) -> Tensor:
        """Bring float images, (n, C, H, W) on the device, to the training split's mean 0 and variance 1, in place."""
        self.scale, self.shift = send(self.scale, self.device), send(self.shift, self.device)
        return images.mul_(self.scale).add_(self.shift)

    def _try_augment(self, samples: Tensor) -> Tensor:
        """Augment samples to see whether they suit the augmentation, and what it makes of them."""
        assert self.augment is not None
        with within("augment"):
            return self.augment(samples, torch.Generator().manual_seed(0))
