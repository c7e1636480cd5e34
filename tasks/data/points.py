"""What to regress on: a function, sampled as needed, or a fixed set of samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks import fits
from tasks.base import Batch, check_list, check_range, check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VAL_SEED = 1  # part of the task's definition: every run is judged on the same points
MOST_POINTS = 1_000_000  # of a grid
SHOWN = 200  # noisy samples in a picture

Predict = Callable[[Tensor], Tensor]  # (N, D) to (N, K), both on the CPU


class Points(ABC):
    """Inputs (N, D) and targets (N, K) of a regression.

    Attributes:
        val, test: the fixed samples of these splits.
        fingerprint: of the data; see ``Task``.
        peak: the largest value that a target can have, where a signal-to-noise ratio is of interest, else None.
        rule: what is to be said of the splits besides their sizes, or nothing.
    """

    val: Batch
    test: Batch
    fingerprint: str
    peak: float | None = None
    rule: str = ""

    def of_seed(self, seed: int) -> "Points":
        """The same data as a run with ``seed`` is to split them: these, unless folds are asked for."""
        return self

    @abstractmethod
    def steps_per_epoch(self, batch_size: int) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def epoch(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        """The training batches of an epoch; what is random about them comes from ``generator`` alone."""

    @abstractmethod
    def picture(self, predict: Predict) -> "Figure | None":
        """Target, fit and error of the test, if they can be drawn."""

    def look(self, train: Batch) -> "Figure | None":
        """The target, and where the training samples of an epoch are, if they can be drawn."""
        return None

    def names(self, inputs: int, targets: int) -> list[str]:
        """What the variables are called."""
        return [f"x{i + 1}" for i in range(inputs)] + [f"y{i + 1}" for i in range(targets)]


class FunctionPoints(Points):
    """A function on a box: fresh uniform points to train on, fixed ones to validate, a regular grid to test.

    The grid divides the box into equal cells and takes their centres: the mean over it is the midpoint rule, and
    it misses ends and, if ``test_grid`` is even, the middle and its likes, where functions jump.

    Args:
        function: (N, D) to (N, 1), in closed form.
        low, high: corners of the box, D numbers each.
        steps_per_epoch: there is no data set to pass over, so an epoch is so many steps.
        val_points: how many uniform points to validate on, the same for all runs.
        test_grid: grid points along each of the D axes, at most a million in all.
        noise: standard deviation, at least 0, of Gaussian noise on the training targets; validation and test
            have none.

    Raises:
        ValueError: corners of unequal length or in the wrong order, a size below 1, negative noise, a grid too
            large, a function that does not fit.
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
        at = "task.data."
        check_list(at + "low", low, "(one per variable)", lambda v: True)
        check_list(at + "high", high, "(one per variable)", lambda v: True, len(low))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(
                f"{at}low={list(low)}, {at}high={list(high)}: low must be below high, number by number"
            )
        sizes = {"steps_per_epoch": steps_per_epoch, "val_points": val_points, "test_grid": test_grid}
        for name, size in sizes.items():
            check_whole(at + name, size, 1)
        check_range(at + "noise", noise, "of at least 0", lambda v: v >= 0)
        if test_grid ** len(low) > MOST_POINTS:
            raise ValueError(
                f"{at}test_grid={test_grid}: {test_grid}^{len(low)} points, at most {MOST_POINTS:,}"
            )
        self.function, self.steps, self.noise = function, steps_per_epoch, noise
        self.low = torch.tensor(low, dtype=torch.float32)
        self.span = torch.tensor(high, dtype=torch.float32) - self.low
        try:
            self.val = self._draw(val_points, torch.Generator().manual_seed(VAL_SEED))
            self.test = self._grid(test_grid)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{at}function: takes no points of {len(low)} variables: {error}") from error
        for x, y in (self.val, self.test):
            if y.shape != (len(x), 1):
                raise ValueError(
                    f"{at}function: makes {tuple(y.shape)} of points {tuple(x.shape)}, ({len(x)}, 1) is needed"
                )
        # of six digits, as the last ones differ between machines
        self.fingerprint = f"{self.val[1].double().sum():.6g} {self.test[1].double().square().sum():.6g}"

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps

    def epoch(self, batch_size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self._noisy(self._draw(batch_size, generator), generator)

    def picture(self, predict: Predict) -> "Figure | None":
        """A curve of one variable, a map of two."""
        x, y = self.test
        low, high = self.low.tolist(), (self.low + self.span).tolist()
        if len(self.low) == 1:
            generator = torch.Generator().manual_seed(VAL_SEED)
            samples = self._noisy(self._draw(SHOWN, generator), generator) if self.noise else None
            return fits.interval(x, y, predict(x), limits=(low[0], high[0]), samples=samples)
        if len(self.low) == 2:
            return fits.plane(y, predict(x), extent=(low[0], high[0], low[1], high[1]))
        return None

    def look(self, train: Batch) -> "Figure | None":
        """A curve of one variable, a map of two; of the training samples a few."""
        (x, y), (low, high) = self.test, (self.low.tolist(), (self.low + self.span).tolist())
        samples = train[0][:SHOWN], train[1][:SHOWN]
        if len(self.low) == 1:
            return fits.target_curve(x, y, samples, limits=(low[0], high[0]))
        if len(self.low) == 2:
            return fits.target_map(y, samples, extent=(low[0], high[0], low[1], high[1]))
        return None

    def _draw(self, count: int, generator: torch.Generator | None) -> Batch:
        x = self.low + self.span * torch.rand(count, len(self.low), generator=generator)
        return x, self.function(x)

    def _noisy(self, samples: Batch, generator: torch.Generator | None) -> Batch:
        if not self.noise:
            return samples
        x, y = samples
        return x, y + self.noise * torch.randn(y.shape, generator=generator)

    def _grid(self, count: int) -> Batch:
        centres = (torch.arange(count) + 0.5) / count
        axes = [low + span * centres for low, span in zip(self.low, self.span, strict=True)]
        x = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, -2)
        return x, self.function(x)


class SamplePoints(Points):
    """A fixed set of samples; an epoch is a shuffled pass over those for training, less a last partial batch.

    Args:
        inputs: (N, D) float.
        targets: (N, K) float.
        index: positions of ``train``, ``val`` and ``test``.
        draw: makes a figure, given a function to predict with.
        show: makes a figure of the samples themselves.
        variables: names of inputs and targets, or none.
        fingerprint: of the data.
        peak: see ``Points``.
        rule: see ``Points``.
        folds: makes the same set with another fold as the test, given a seed; None where there are no folds.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: dict[str, Tensor],
        *,
        draw: Callable[[Predict], "Figure"],
        show: Callable[[], "Figure"],
        fingerprint: str,
        variables: Sequence[str] = (),
        peak: float | None = None,
        rule: str = "",
        folds: "Callable[[int], SamplePoints] | None" = None,
    ) -> None:
        self.index, self.draw, self.fingerprint, self.peak = index, draw, fingerprint, peak
        self.show, self.variables, self.rule, self.folds = show, variables, rule, folds
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

    def picture(self, predict: Predict) -> "Figure | None":
        return self.draw(predict)

    def look(self, train: Batch) -> "Figure | None":
        return self.show()

    def names(self, inputs: int, targets: int) -> list[str]:
        return list(self.variables) or super().names(inputs, targets)
