"""Regression of a function of few variables, of the colors of a picture, of a column of a table."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activations.checks import check_choice
from tasks import plots
from tasks.base import Batch, Recipe, Task
from tasks.data.points import Points, SamplePoints
from tasks.data.transfer import send

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.look import Look

EVAL_BATCH = 4096
PRIMARY = {"mse": False, "psnr": True}  # whether higher is better


class Regression(Task):
    """Inputs of D numbers to targets of K numbers, by least squares.

    mse: the mean squared error over all samples and outputs.
    r2: 100 (1 - mse / variance of the targets) in percent, the variance being that of each output around its mean.
    max_error: the largest absolute error of a sample's output.
    psnr: 10 log10(peak^2 / mse) in dB, where the data have a peak, as pictures do.

    Args:
        recipe: how the network is trained.
        data: the source of the samples.
        network: called with ``act_layer``, ``input_shape`` and ``num_outputs``.
        primary: the metric by which activations are ranked: mse, or psnr where the data have a peak.

    Raises:
        ValueError: targets that are constant or not finite; another ``primary``, or psnr without a peak.

    Examples:
        >>> from tasks.data.functions import sine
        >>> from tasks.data.points import FunctionPoints
        >>> from tasks.networks.mlp import MLP
        >>> data = FunctionPoints(function=sine, low=[-1], high=[1], steps_per_epoch=5, val_points=10, test_grid=20)
        >>> task = Regression(recipe=Recipe(epochs=1, batch_size=8, lr=0.1), data=data, network=MLP)
        >>> [(x.shape, y.shape) for x, y in task.batches("test")]
        [(torch.Size([20, 1]), torch.Size([20, 1]))]
    """

    def __init__(
        self, *, recipe: Recipe, data: Points, network: Callable[..., nn.Module], primary: str = "mse"
    ) -> None:
        check_choice("primary", primary, tuple(PRIMARY))
        if primary == "psnr" and data.peak is None:
            raise ValueError("primary=psnr: must be mse, as the targets of this task have no peak value")
        self.recipe = recipe
        self.network = network
        self.primary_metric, self.higher_is_better = primary, PRIMARY[primary]
        self._use(data)

    def _use(self, data: Points) -> None:
        self.data = data
        self.points = {"val": data.val, "test": data.test}
        self.variance = {split: _variance(split, target) for split, (_, target) in self.points.items()}
        inputs, targets = data.test
        self.input_shape, self.output_shape = tuple(inputs.shape[1:]), tuple(targets.shape[1:])
        self.steps_per_epoch = data.steps_per_epoch(self.recipe.batch_size)
        self.fingerprint = data.fingerprint

    def split_for(self, seed: int) -> None:
        """Use the fold of ``seed``, where the data have folds."""
        self._use(self.data.of_seed(seed))

    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the training batches that the data generate, or the fixed samples of another split."""
        if split == "train":
            batches = self.data.epoch(self.recipe.batch_size, generator)
        else:
            parts = (self.spread(part, EVAL_BATCH).split(EVAL_BATCH) for part in self.points[split])
            batches = zip(*parts, strict=True)
        for x, y in batches:
            yield send(x, self.device), send(y, self.device)

    def loss(self, output: Tensor, target: Tensor, *, training: bool) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(output, target)

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Return loss and mse, which are equal, r2, max_error and, for pictures, psnr."""
        error = torch.cat([output - target for output, target in self.predictions(network, split)]).double()
        self.examples = {"mse": error.square().flatten(1).mean(1)}
        mse = error.square().mean()
        metrics = {"loss": mse, "mse": mse, "r2": 100 * (1 - mse / self.variance[split])}
        metrics["max_error"] = error.abs().max()
        if self.data.peak is not None:
            metrics["psnr"] = 10 * (self.data.peak**2 / mse).log10()
        return {name: value.item() for name, value in metrics.items()}

    def look(self, generator: torch.Generator) -> "Look":
        """Range of every variable in each split, inputs that occur in two splits; a figure of the target."""
        from tasks import look

        epoch = list(self.data.epoch(self.recipe.batch_size, generator))
        inputs, outputs = self.input_shape[0], self.output_shape[0]
        parts = dict(self.points)
        facts = {
            "data": f"{inputs} input{'s' * (inputs > 1)}, {outputs} target{'s' * (outputs > 1)}, as the network receives them",
            "fingerprint": self.fingerprint,
            "steps": f"{self.steps_per_epoch:,} of {len(epoch[0][0])} samples an epoch",
        }
        if isinstance(self.data, SamplePoints):
            parts = {"train": self.data.train, **parts}
            trained = set(map(tuple, self.data.train[0].tolist()))
            facts["copies"] = "; ".join(
                f"{split} inputs that are in train, too: {sum(tuple(x) in trained for x in points.tolist()):,}"
                for split, (points, _) in self.points.items()
            )
        else:
            drawn, targets = map(torch.cat, zip(*epoch, strict=True))
            parts = {"train": (drawn, targets), **parts}
            facts["steps"] += ", all of them fresh; of train the numbers below are of one epoch"
        facts["splits"] = ", ".join(f"{split} {len(x):,}" for split, (x, _) in parts.items()) + self.data.rule
        names = self.data.names(inputs, outputs)
        return look.Look(facts, look.point_table(parts, names), plots.data_figure(self.data, parts["train"]))

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Draw target, fit and error of the test, where they can be drawn."""
        network.eval()

        def predict(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return torch.cat(
                    [network(part.to(self.device)).float().cpu() for part in x.split(EVAL_BATCH)]
                )

        figure = plots.fit_figure(self.data, predict)
        return {} if figure is None else {"fit": figure}


def _variance(split: str, target: Tensor) -> float:
    """Return the mean square of the targets around the mean of each output."""
    variance = target.double().var(0, correction=0).mean().item()
    if not 0 < variance < float("inf"):
        raise ValueError(f"data: the targets of {split} are constant or not finite, nothing can be fitted")
    return variance
