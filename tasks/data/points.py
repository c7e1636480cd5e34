"""What to regress on: a function, sampled as needed, or a fixed set of samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from activations.checks import check_int, check_list, check_number
from tasks.base import Batch

VAL_SEED = 1  # part of the task's definition: all runs are validated on the same points
MAX_POINTS = 1_000_000  # of a grid


class Points(ABC):
    """Inputs (N, D) and targets (N, K) of a regression.

    Attributes:
        val, test: the fixed samples of these splits.
        fingerprint: of the data; see ``Task``.
        peak: the largest possible value of a target, where a signal-to-noise ratio is of interest, else None.
        rule: a remark on how the splits are chosen, or nothing.
    """

    val: Batch
    test: Batch
    fingerprint: str
    peak: float | None = None
    rule: str = ""

    def of_seed(self, seed: int) -> "Points":
        """Return the data as a run with ``seed`` splits them: these, unless there are folds."""
        return self

    @abstractmethod
    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""

    @abstractmethod
    def epoch(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        """Yield the training batches of an epoch; all randomness comes from ``generator``."""

    def names(self, inputs: int, targets: int) -> list[str]:
        """Return the names of the variables."""
        return [f"x{i + 1}" for i in range(inputs)] + [f"y{i + 1}" for i in range(targets)]


class FunctionPoints(Points):
    """A function on a box: fresh uniform points to train on, fixed ones to validate, a regular grid to test.

    The grid divides the box into equal cells and takes their centers: the mean over it is the midpoint rule, and it
    contains neither the ends of the box nor, if ``test_grid`` is even, the middle and similar places, where functions
    jump.

    Args:
        function: (N, D) to (N, 1), in closed form.
        low, high: corners of the box, D numbers each.
        steps_per_epoch: number of steps that count as an epoch, as there is no data set to pass over, >= 1.
        val_points: number of uniform points to validate on, the same for all runs, >= 1.
        test_grid: number of grid points along each of the D axes, >= 1, at most a million in all.
        noise: standard deviation of Gaussian noise on the training targets, >= 0; validation and test have none.

    Raises:
        ValueError: corners of unequal length or in the wrong order, a number outside its range, a grid too large, a
            function that does not fit.

    Examples:
        >>> from tasks.data.functions import sine
        >>> data = FunctionPoints(function=sine, low=[-1], high=[1], steps_per_epoch=5, val_points=10, test_grid=4)
        >>> data.test[0].flatten().tolist()
        [-0.75, -0.25, 0.25, 0.75]
    """

    def __init__(
        self,
        *,
        function: Callable[[Tensor], Tensor],
        low: Sequence[float],
        high: Sequence[float],
        steps_per_epoch: int,
        val_points: int,
        test_grid: int,
        noise: float = 0.0,
    ) -> None:
        check_list("low", low)
        check_list("high", high, length=len(low))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"low={list(low)}: each number must be below that of high={list(high)}")
        sizes = {"steps_per_epoch": steps_per_epoch, "val_points": val_points, "test_grid": test_grid}
        for name, size in sizes.items():
            check_int(name, size, minimum=1)
        check_number("noise", noise, minimum=0)
        if test_grid ** len(low) > MAX_POINTS:
            raise ValueError(
                f"test_grid={test_grid}: the grid has {test_grid}^{len(low)} points, must be at most {MAX_POINTS:,}"
            )
        self.function, self.steps, self.noise = function, steps_per_epoch, noise
        self.low = torch.tensor(low, dtype=torch.float32)
        self.span = torch.tensor(high, dtype=torch.float32) - self.low
        try:
            self.val = self._draw(val_points, torch.Generator().manual_seed(VAL_SEED))
            self.test = self._grid(test_grid)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(f"function: takes no points of {len(low)} variables: {error}") from error
        for x, y in (self.val, self.test):
            if y.shape != (len(x), 1):
                raise ValueError(
                    f"function: returns shape {tuple(y.shape)} for points {tuple(x.shape)}, must be ({len(x)}, 1)"
                )
        # six digits, as the last ones differ between machines
        self.fingerprint = f"{self.val[1].double().sum():.6g} {self.test[1].double().square().sum():.6g}"

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps

    def epoch(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self.draw(batch_size, generator)

    @property
    def high(self) -> Tensor:
        """The upper corner of the box, (D,)."""
        return self.low + self.span

    def draw(self, count: int, generator: torch.Generator | None) -> Batch:
        """Return ``count`` training samples, with noise."""
        return self._noisy(self._draw(count, generator), generator)

    def _draw(self, count: int, generator: torch.Generator | None) -> Batch:
        x = self.low + self.span * torch.rand(count, len(self.low), generator=generator)
        return x, self.function(x)

    def _noisy(self, samples: Batch, generator: torch.Generator | None) -> Batch:
        if not self.noise:
            return samples
        x, y = samples
        return x, y + self.noise * torch.randn(y.shape, generator=generator)

    def _grid(self, count: int) -> Batch:
        centers = (torch.arange(count) + 0.5) / count
        axes = [low + span * centers for low, span in zip(self.low, self.span, strict=True)]
        x = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, -2)
        return x, self.function(x)


class SamplePoints(Points):
    """A fixed set of samples; an epoch is a shuffled pass over those for training, without a last partial batch.

    Args:
        inputs: (N, D) float.
        targets: (N, K) float.
        index: positions of ``train``, ``val`` and ``test``.
        fingerprint, peak, rule: see ``Points``.
        variables: names of inputs and targets, or none.
        folds: makes the same set with another fold as the test, called with the seed; None where there are no folds.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Mapping[str, Tensor],
        *,
        fingerprint: str,
        variables: Sequence[str] = (),
        peak: float | None = None,
        rule: str = "",
        folds: "Callable[[int], SamplePoints] | None" = None,
    ) -> None:
        self.inputs, self.targets, self.index = inputs, targets, index
        self.fingerprint, self.peak, self.rule = fingerprint, peak, rule
        self.variables, self.folds = variables, folds
        self.train, self.val, self.test = (
            (inputs[index[split]], targets[index[split]]) for split in ("train", "val", "test")
        )

    def of_seed(self, seed: int) -> Points:
        return self if self.folds is None else self.folds(seed)

    def steps_per_epoch(self, batch_size: int) -> int:
        return max(1, len(self.train[0]) // batch_size)

    def epoch(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        inputs, targets = self.train
        size = min(batch_size, len(inputs))
        order = torch.randperm(len(inputs), generator=generator)[: self.steps_per_epoch(batch_size) * size]
        yield from zip(inputs[order].split(size), targets[order].split(size), strict=True)

    def names(self, inputs: int, targets: int) -> list[str]:
        return list(self.variables) or super().names(inputs, targets)


class TablePoints(SamplePoints):
    """A table whose last column is the target, standardized.

    Args:
        table: (N, D + 1) as in the source.
        mean, std: (D + 1,) by which it is standardized.
        quantity: what the target is called in figures.
        others: of ``SamplePoints``; ``variables`` are the names of the columns.
    """

    def __init__(
        self,
        table: Tensor,
        mean: Tensor,
        std: Tensor,
        index: Mapping[str, Tensor],
        *,
        quantity: str,
        **others: Any,
    ) -> None:
        samples = ((table - mean) / std).float()
        super().__init__(samples[:, :-1], samples[:, -1:], index, **others)
        self.table, self.mean, self.std, self.quantity = table, mean, std, quantity


class PicturePoints(SamplePoints):
    """A picture as a function of its coordinates.

    Args:
        shape: (height, width, 3) of the picture, whose pixels are the samples, row by row.
        others: of ``SamplePoints``.
    """

    def __init__(self, shape: tuple[int, ...], *samples: Any, **others: Any) -> None:
        super().__init__(*samples, **others)
        self.shape = shape
