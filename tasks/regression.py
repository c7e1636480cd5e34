"""Regression of a function of few variables from freshly drawn points."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import ActLayer, Batch, Recipe, Task, check_list, check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VAL_SEED, TEST_SEED = 1, 2  # part of the task's definition: every run is judged on the same points
EVAL_BATCH = 4096


class Regression(Task):
    """Fit ``function`` on a box; every training step draws a fresh batch of uniform points.

    Mean squared error and R2 = 100 (1 - MSE / variance of the target), on points fixed once and for all.

    Args:
        recipe: how to train.
        function: (N, D) to (N, 1), in closed form.
        low, high: corners of the box, D numbers each.
        network: called with ``act_layer``, ``in_features`` and ``out_features``.
        steps_per_epoch: training has no data set to pass over, so an epoch is so many steps.
        val_points, test_points: sizes of the fixed sets.

    Raises:
        ValueError: corners of unequal length or in the wrong order, or a size below 1.
    """

    primary_metric = "mse"
    higher_is_better = False

    def __init__(
        self,
        *,
        recipe: Recipe,
        function: Callable[[Tensor], Tensor],
        low: Sequence[float],
        high: Sequence[float],
        network: Callable[..., nn.Module],
        steps_per_epoch: int,
        val_points: int,
        test_points: int,
    ) -> None:
        check_list("task.low", low, "(one per variable)", lambda v: True)
        check_list("task.high", high, "(one per variable)", lambda v: True, len(low))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(
                f"task.low={list(low)}, task.high={list(high)}: low must be below high, number by number"
            )
        sizes = {"steps_per_epoch": steps_per_epoch, "val_points": val_points, "test_points": test_points}
        for name, size in sizes.items():
            check_whole(f"task.{name}", size, 1)
        self.recipe = recipe
        self.function = function
        self.low, self.high = torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)
        self.network = network
        self.steps_per_epoch = steps_per_epoch
        self.input_shape = (len(low),)
        self.points = {
            split: self._draw(size, torch.Generator().manual_seed(seed))
            for split, size, seed in (("val", val_points, VAL_SEED), ("test", test_points, TEST_SEED))
        }
        self.fingerprint = f"{float(self.points['test'][1].double().sum()):.6g}"

    def build_network(self, act_layer: ActLayer) -> nn.Module:
        """The configured network from D inputs to one output."""
        return self.network(act_layer=act_layer, in_features=self.input_shape[0], out_features=1)

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """``steps_per_epoch`` fresh batches for training, the fixed points otherwise."""
        if split == "train":
            for _ in range(self.steps_per_epoch):
                x, y = self._draw(self.recipe.batch_size, generator)
                yield x.to(self.device), y.to(self.device)
        else:
            for x, y in zip(*(part.split(EVAL_BATCH) for part in self.points[split]), strict=True):
                yield x.to(self.device), y.to(self.device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(output, target)

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Loss, mse and r2 in percent."""
        mse = super().evaluate(network, split)["loss"]
        variance = self.points[split][1].double().var(correction=0).item()
        return {"loss": mse, "mse": mse, "r2": 100 * (1 - mse / variance)}

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Target, fit and error over the box, for functions of two variables."""
        if len(self.low) != 2:
            return {}
        from matplotlib.figure import Figure

        size = 161
        axes = [
            torch.linspace(a, b, size) for a, b in zip(self.low.tolist(), self.high.tolist(), strict=True)
        ]
        x = torch.cartesian_prod(*axes)
        network.eval()
        with torch.inference_mode():
            fit = network(x.to(self.device)).float().cpu()
        target = self.function(x)
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        error = fit - target
        limit = target.abs().max().item()
        extent = (self.low[0].item(), self.high[0].item(), self.low[1].item(), self.high[1].item())
        panels = (("target", target), ("fit", fit), (f"error, rms {error.square().mean().sqrt():.3f}", error))
        for ax, (title, values) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
            image = ax.imshow(
                values.view(size, size).T.numpy(),
                origin="lower",
                extent=extent,
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
            )
            ax.set(title=title, xlabel="$x_1$")
        figure.axes[0].set_ylabel("$x_2$")
        figure.colorbar(image, ax=figure.axes, shrink=0.9)
        return {"fit": figure}

    def _draw(self, count: int, generator: torch.Generator | None) -> Batch:
        x = self.low + (self.high - self.low) * torch.rand(count, len(self.low), generator=generator)
        return x, self.function(x)
