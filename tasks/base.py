"""The contract of a task: data, network, loss, metrics and training recipe, with the splits kept honest."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.confusion import Confusion
    from tasks.look import Look

Batch = tuple[Tensor, Tensor]  # input, target


class ActLayer(Protocol):
    """Makes a fresh activation; a network calls it once for every site."""

    def __call__(self, num_features: int, /, *, channel_dim: int = 1) -> nn.Module:
        """The activation of a site with ``num_features`` channels in dimension ``channel_dim``."""


OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task's network is trained; the same for every activation.

    Args:
        epochs: passes over the training split, at least 1.
        batch_size: samples a step, at least 1; the last, smaller batch of an epoch is dropped.
        optimizer: sgd, adam or adamw.
        lr: peak learning rate, above 0.
        momentum, nesterov: of sgd. Momentum in [0, 1).
        betas: of adam and adamw, both in [0, 1).
        weight_decay: at least 0; not applied to biases, normalisation layers and ``Activation.no_decay``.
        schedule: constant, or cosine, which would reach 0 one step after the last.
        warmup: share of all steps during which lr rises linearly from 0, in [0, 1).
        clip_norm: largest norm of the whole gradient, above 0, or None.
        label_smoothing: in [0, 1); classification and segmentation only.
        mixup: alpha of the Beta distribution of each image's share, at least 0, which is off (arXiv 1710.09412);
            classification only.

    Raises:
        ValueError: a value outside its range.
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
        at = "task.recipe."
        check_bool(at + "nesterov", self.nesterov)
        check_whole(at + "epochs", self.epochs, 1)
        check_whole(at + "batch_size", self.batch_size, 1)
        check_choice(at + "optimizer", self.optimizer, OPTIMIZERS)
        check_choice(at + "schedule", self.schedule, SCHEDULES)
        check_range(at + "lr", self.lr, "above 0", lambda v: v > 0)
        for name in ("weight_decay", "mixup"):
            check_range(at + name, getattr(self, name), "at least 0", lambda v: v >= 0)
        for name in ("momentum", "warmup", "label_smoothing"):
            check_range(at + name, getattr(self, name), "in [0, 1)", lambda v: 0 <= v < 1)
        check_list(at + "betas", self.betas, "in [0, 1)", lambda v: 0 <= v < 1, length=2)
        if self.clip_norm is not None:
            check_range(at + "clip_norm", self.clip_norm, "above 0, or null", lambda v: v > 0)


def some(names: Collection[str], most: int = 3) -> str:
    """The first few of ``names`` in words, for messages."""
    first = ", ".join(sorted(names)[:most]) or "none"
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value}: a whole number of at least {least} is needed")


def check_range(name: str, value: Any, legal: str, accepts: Callable[[float], bool]) -> None:
    """Raise ValueError unless ``value`` is a finite number that ``accepts`` says yes to."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not accepts(value):
        raise ValueError(f"{name}={value}: a number {legal} is needed")


def check_list(
    name: str, value: Any, legal: str, accepts: Callable[[Any], bool], length: int | None = None
) -> None:
    """Raise ValueError unless ``value`` is a list, not empty and of ``length`` if given, of such numbers."""
    numbers = isinstance(value, Sequence) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and accepts(v)
        for v in value
    )
    if not numbers or len(value) == 0 or len(value) != (length or len(value)):
        raise ValueError(f"{name}={value}: a list of {length or 'one or more'} numbers {legal} is needed")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is true or false; no and off arrive as words, which are true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value}: legal values are true, false")


def check_choice(name: str, value: object, legal: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ValueError(f"{name}={value}: legal values are {', '.join(legal)}")


class Task(ABC):
    """What an activation is compared on. A subclass sets the facts in ``__init__`` and fills in the methods.

    Splits are ``train``, ``val`` and ``test``. Which sample belongs to which split never depends on the seed, unless the
    configuration asks for folds (``split_for``).
    """

    primary_metric: str
    higher_is_better: bool
    recipe: Recipe
    network: Callable[..., nn.Module]  # act_layer, input_shape, num_outputs -> network
    input_shape: tuple[int, ...]  # of one sample
    output_shape: tuple[int, ...]  # of what the network makes of it; the first dimension counts the outputs
    steps_per_epoch: int
    fingerprint: str  # of the data: two runs with the same one have seen the same samples

    device: torch.device = torch.device("cpu")  # where batches are wanted; set by the runner
    limit_batches: int | None = None  # at most so many batches per pass (see ``spread``); set by a smoke run
    confusion: "Confusion | None" = None  # of classes, in the latest evaluation; set by ``evaluate``
    # of each sample in the latest evaluation, by metric: a score, or whether it is right; set by ``evaluate``
    examples: Mapping[str, Tensor] = MappingProxyType({})

    def split_for(self, seed: int) -> None:  # noqa: B027  # most have nothing to do
        """Choose the split of ``seed``; called by a runner before all else. Where folds are asked for, the seed chooses the one to test on."""

    def build_network(self, act_layer: ActLayer) -> nn.Module:
        """A freshly initialised network that has called ``act_layer(num_features)`` once for every site.

        Weights are drawn from torch's global generator, and in a way that no activation influences.
        """
        return self.network(act_layer, self.input_shape, self.output_shape[0])

    def spread(self, samples: Tensor, batch_size: int) -> Tensor:
        """What is evaluated of a split's ``samples``: all, or as many as ``limit_batches`` allows from the whole of it.

        Splits may be in the order of their classes, and the first batches then show one class. Of equally long stretches
        each gives one sample, at a place that is drawn, as classes may also take turns; the same in every run.
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
        """One pass over ``split``; ``train`` draws order and augmentation from ``generator`` and nowhere else.

        Of the others, ``limit_batches`` at most, with samples from the whole of the split (``spread``).
        """

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar training loss, a mean over the batch."""

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalars that are means over the batch, so that a weighted mean of batches is the mean of the split."""
        return {}

    def evaluate(self, network: nn.Module, split: str) -> dict[str, float]:
        """Loss and metrics over ``split``, in eval mode and without gradients.

        A name with a slash, such as ``iou/road``, is a class's own score: of the test it is written to classes.csv.
        """
        network.eval()
        means = Means()
        with torch.inference_mode():
            for input, target in islice(self.batches(split), self.limit_batches):
                output = network(input).float()
                means.add(len(target), loss=self.loss(output, target), **self.metrics(output, target))
        return means.result()

    def pictures(self, network: nn.Module) -> dict[str, "Figure"]:
        """Named figures of what the trained network does, if there is anything to see."""
        return {}

    def look(self, generator: torch.Generator) -> "Look":
        """What the data are; augmentation that is shown is drawn from ``generator``."""
        from tasks.look import Look

        return Look({"fingerprint": self.fingerprint})


class Means:
    """Weighted means of named scalars, summed on the device in float64 so that no step waits for it."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.count: int = state["count"] if state else 0
        self.sums: dict[str, Tensor] = dict(state["sums"]) if state else {}

    def add(self, weight: int, **values: Tensor) -> None:
        """Count every value ``weight`` times."""
        self.count += weight
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), dtype=torch.double)
            if self.sums[name].device != value.device:
                self.sums[name] = self.sums[name].to(value.device)
            self.sums[name].add_(value.detach(), alpha=weight)

    def result(self) -> dict[str, float]:
        """The means as plain numbers."""
        return {name: value.item() / self.count for name, value in self.sums.items()}

    def finite(self) -> bool:
        """Whether the loss so far is a number; waits for the device."""
        return math.isfinite(self.sums["loss"].item())

    def state(self) -> dict[str, Any]:
        """What ``Means(state)`` needs to go on."""
        return {"count": self.count, "sums": {name: value.cpu() for name, value in self.sums.items()}}
