"""The contract of a task: data, network, loss, metrics and training recipe, with the splits kept honest."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from activations.checks import check_bool, check_choice, check_int, check_list, check_number
from tasks.processes import ALONE, Processes
from tasks.settings import within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.confusion import Confusion
    from tasks.look import Look

Batch = tuple[Tensor, Tensor]  # inputs, target


class Share(NamedTuple):
    """What one process trains on of a batch.

    Attributes:
        inputs, target: its rows.
        samples: number of those of the whole batch.
        weight: part of the batch's mean that comes from these rows; None of a process that is alone.
    """

    inputs: Tensor
    target: Tensor
    samples: int
    weight: Tensor | float | None = None


class ActLayer(Protocol):
    """The factory of activations that a network calls once for every site.

    Examples:
        >>> from activations.prelu import PReLU
        >>> act_layer: ActLayer = PReLU
        >>> act_layer(64)
        PReLU(64)
    """

    def __call__(self, num_features: int, /, *, channel_dim: int = 1) -> nn.Module:
        """Make a fresh activation for a site with ``num_features`` channels in dimension ``channel_dim``."""


OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task's network is trained; the same for every activation.

    Args:
        epochs: passes over the training split, >= 1.
        batch_size: samples per step, >= 1; the last, smaller batch of an epoch is dropped.
        optimizer: sgd, adam or adamw.
        lr: peak learning rate, > 0.
        momentum, nesterov: of sgd. Momentum in [0, 1).
        betas: of adam and adamw, both in [0, 1).
        weight_decay: >= 0; not applied to biases, normalization layers and ``Activation.no_decay``.
        schedule: constant, or cosine, which would reach 0 one step after the last.
        warmup: share of all steps during which lr rises linearly from 0, in [0, 1).
        clip_norm: maximum norm of the whole gradient, > 0, or None.
        label_smoothing: in [0, 1); classification and segmentation only.
        mixup: alpha of the Beta distribution of each image's share, >= 0 (arXiv 1710.09412); 0 is off; classification
            only.

    Raises:
        ValueError: a value outside its range.

    Examples:
        >>> Recipe(epochs=10, batch_size=64, lr=0.1).schedule
        'cosine'
        >>> Recipe(epochs=10, batch_size=64, lr=0.1, momentum=1)
        Traceback (most recent call last):
        ValueError: momentum=1: must be a number >= 0 and < 1
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        check_bool("nesterov", self.nesterov)
        check_int("epochs", self.epochs, minimum=1)
        check_int("batch_size", self.batch_size, minimum=1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_number("lr", self.lr, above=0)
        for name in ("weight_decay", "mixup"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("momentum", "warmup", "label_smoothing"):
            check_number(name, getattr(self, name), minimum=0, below=1)
        check_list("betas", self.betas, length=2, minimum=0, below=1)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0)


def summarize(names: Collection[str], limit: int = 3) -> str:
    """Return the first few names and how many more there are, for messages.

    Examples:
        >>> summarize(["d", "c", "b", "a"])
        'a, b, c and 1 more'
    """
    first = ", ".join(sorted(names)[:limit]) or "none"
    return first + (f" and {len(names) - limit} more" if len(names) > limit else "")


class Task(ABC):
    """Data, network, loss, metrics and recipe with which activations are compared.

    A subclass sets the attributes in ``__init__`` and fills in the methods. Splits are ``train``, ``val`` and ``test``.
    Which sample belongs to which split never depends on the seed, unless the configuration asks for folds
    (``split_for``).

    Attributes:
        primary_metric: name of the metric by which activations are ranked; ``evaluate`` returns it.
        higher_is_better: whether a higher value of it is better.
        recipe: how the network is trained.
        network: called with ``act_layer``, ``input_shape`` and the number of outputs.
        input_shape: of one sample.
        output_shape: of the network's output for one sample; the first dimension counts the outputs.
        steps_per_epoch: number of training batches.
        fingerprint: of the data: two runs with the same one have used the same samples.
        device: of the batches; set by the runner.
        limit_batches: maximum number of batches per pass (see ``spread``), or None; set by the runner.
        processes: that train together; set by the runner.
        confusion: counts of the latest evaluation, where there are classes; set by ``evaluate``.
        examples: by metric the score of each sample in the latest evaluation, or whether it is right; set by ``evaluate``.

    Examples:
        >>> from actbench import make_task
        >>> digits = make_task("digits")
        >>> images, labels = next(digits.batches("train"))
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    primary_metric: str
    higher_is_better: bool
    recipe: Recipe
    network: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    steps_per_epoch: int
    fingerprint: str

    device: torch.device = torch.device("cpu")
    limit_batches: int | None = None
    processes: Processes = ALONE
    confusion: "Confusion | None" = None
    examples: Mapping[str, Tensor] = MappingProxyType({})

    def split_for(self, seed: int) -> None:  # noqa: B027  # most tasks have one split for all seeds
        """Choose the split of ``seed``: with folds, the one to test on. A runner calls this before anything else."""

    def build_network(self, act_layer: ActLayer) -> nn.Module:
        """Return a freshly initialized network that has called ``act_layer(num_features)`` once for every site.

        Weights are drawn from torch's global generator, and in a way that no activation influences.

        Raises:
            ValueError: a hyper-parameter that the network does not accept, or a task that it does not suit.
        """
        names = getattr(self.network, "keywords", {}).keys()
        with within("network", names | {"sites", "activations", "shared", "weights", "name"}):
            return self.network(act_layer, self.input_shape, self.output_shape[0])

    def spread(self, samples: Tensor, batch_size: int) -> Tensor:
        """Return the part of a split's ``samples`` that is evaluated: all, or as many as ``limit_batches`` allows.

        Splits may be in the order of their classes, so that the first batches show one class. Therefore the split is
        divided into stretches of equal length and one sample is taken from each, at a random place, as classes may also
        alternate. The choice is the same in every run.
        """
        total = len(samples)
        count = total if self.limit_batches is None else self.limit_batches * batch_size
        if count >= total:
            return samples
        starts = torch.arange(count + 1) * total // count
        draws = torch.rand(count, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        return samples[starts[:-1] + (draws * starts.diff()).long()]

    @abstractmethod
    def batches(self, split: str, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the batches of one pass over ``split``.

        Args:
            split: train, val or test. Of ``val`` and ``test`` at most ``limit_batches``, with samples from the whole
                split (``spread``).
            generator: the only source of randomness of ``train``: order and augmentation; None for torch's global one.

        Returns:
            pairs of inputs (N, *input_shape) in float32, and targets with N as their first dimension, on ``device``.
        """

    def shares(self, generator: torch.Generator | None = None) -> Iterator[Share]:
        """Yield what this process trains on of each batch of an epoch.

        Raises:
            ValueError: a batch has fewer samples than there are processes.
        """
        for inputs, target, count in self.parts("train", generator):
            if self.processes.size == 1:
                yield Share(inputs, target, count)
                continue
            if count < self.processes.size:
                raise ValueError(
                    f"task.recipe.batch_size={count}: must be >= {self.processes.size}, the number of processes"
                )
            own = self.terms(target)
            whole = self.processes.total({"terms": own})["terms"] if isinstance(own, Tensor) else count
            yield Share(inputs, target, count, own / whole)

    def parts(
        self, split: str, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield inputs and target of this process's rows of each batch, and the number of samples of the whole batch."""
        for inputs, target in self.batches(split, generator):
            if self.processes.size == 1:
                yield inputs, target, len(inputs)
            else:
                rows = self.processes.part(len(inputs))
                yield inputs[rows], target[rows], len(inputs)

    def terms(self, target: Tensor) -> Tensor | int:
        """Return how many terms the loss of a batch is the mean of: the number of samples, or a tensor."""
        return len(target)

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, *, training: bool) -> Tensor:
        """Return the scalar loss, a mean over the batch.

        Args:
            output: (N, *output_shape) float32.
            target: (N, ...), as ``batches`` yields it.
            training: whether the batch is trained on; label smoothing and the like are for training alone.
        """

    def metrics(self, output: Tensor, target: Tensor, *, training: bool) -> dict[str, Tensor]:
        """Return scalars that are means over the batch: a weighted mean of batches is the mean of the split.

        Arguments as of ``loss``. In training only what is cheap and worth a column of metrics.csv.
        """
        return {}

    @torch.inference_mode()
    def predictions(self, network: nn.Module, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield output (float32) and target of each batch of ``split``, in eval mode and without gradients.

        Of several processes each computes its rows of a batch, and all of them get the whole output.
        """
        network.eval()
        for inputs, target, count in islice(self.parts(split), self.limit_batches):
            output = network(inputs).float() if len(inputs) else inputs.new_empty(0, *self.output_shape)
            yield self.processes.gather(output, count), self.processes.gather(target, count)

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Return loss and metrics over ``split``, in eval mode and without gradients.

        A name with a slash, such as ``iou/road``, is the score of a class: for the test it is written to classes.csv.
        """
        means = RunningMeans()
        for output, target in self.predictions(network, split):
            means.add(len(target), **self.scalars(output, target))
        return means.result()

    def scalars(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return loss and metrics of a batch that is evaluated."""
        loss = self.loss(output, target, training=False)
        return {"loss": loss, **self.metrics(output, target, training=False)}

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Return named figures of what the trained network does, or none."""
        return {}

    def look(self, generator: torch.Generator) -> "Look":
        """Return a summary of the data; augmentation that is shown is drawn from ``generator``."""
        from tasks.look import Look

        return Look({"fingerprint": self.fingerprint})


class RunningMeans:
    """Weighted means of named scalars, summed on the device in float64 so that no step waits for it.

    Args:
        state: what ``state`` returned, to continue from; None to begin.
        processes: that add to the same means, each its part, and read them together.

    Examples:
        >>> means = RunningMeans()
        >>> means.add(3, loss=torch.tensor(1.0))
        >>> means.add(1, loss=torch.tensor(5.0))
        >>> means.result()
        {'loss': 2.0}
    """

    def __init__(self, state: Mapping[str, Any] | None = None, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.count: int = state["count"] if state else 0
        self.sums: dict[str, Tensor] = dict(state["sums"]) if state else {}
        if processes.rank > 0:  # the sums of a checkpoint are those of all
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}

    def add(self, weight: int, **values: Tensor) -> None:
        """Count every value ``weight`` times; of several processes each passes its part of a value."""
        self.count += weight
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), dtype=torch.double, device=value.device)
            elif self.sums[name].device != value.device:  # those of a checkpoint
                self.sums[name] = self.sums[name].to(value.device)
            self.sums[name].add_(value.detach(), alpha=weight)

    def result(self) -> dict[str, float]:
        """Return the means as plain numbers; waits for the device."""
        return {name: value.item() / self.count for name, value in self._totals().items()}

    def finite(self) -> bool:
        """Return whether the loss so far is finite; waits for the device."""
        return math.isfinite(self._totals()["loss"].item())

    def state(self) -> dict[str, Any]:
        """Return count and sums, to continue from in another process."""
        return {"count": self.count, "sums": {name: value.cpu() for name, value in self._totals().items()}}

    def _totals(self) -> dict[str, Tensor]:
        return self.processes.total(self.sums)
