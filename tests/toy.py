"""An activation that uses every part of the contract, so that tests can see the runner honour it."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from activations.base import Activation


class Toy(Activation):
    """y = gain max(x, 0) + slope min(x, 0); ReLU with the slope frozen until ``start``, then trained.

    Counts its calls, and draws random numbers when it is made and when it is used: a little noise in training.
    """

    diagnostic_roles: ClassVar[Mapping[str, str]] = {"gain": "gate"}

    def __init__(
        self, num_features: int, *, channel_dim: int = 1, start: int = 2, penalty: float = 0.5
    ) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.start, self.penalty = start, penalty
        self.gain = nn.Parameter(1 + 0.01 * torch.rand(num_features))
        self.slope = nn.Parameter(torch.zeros(1))
        self.register_buffer("begun", torch.zeros((), dtype=torch.long))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("epochs_seen", torch.full((100,), -1))
        self.begun: Tensor
        self.calls: Tensor
        self.epochs_seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            x = x * (1 + 0.01 * torch.rand(()))
        slope = self.slope * self.begun
        return self.along_channels(self.gain, x) * x.clamp_min(0) + slope * x.clamp_max(0)

    @property
    def no_decay(self) -> frozenset[str]:
        return frozenset({"slope"})

    def regularization(self) -> Tensor:
        return self.penalty * (self.gain - 1).square().sum()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epochs_seen[epoch] = self.calls.item()
        self.slope.requires_grad_(epoch >= self.start)
        if epoch == self.start:
            self.begun.fill_(1)
            with torch.no_grad():
                self.slope.fill_(0.125)

    @property
    def phase(self) -> str:
        return "trained" if self.begun else "frozen"

    def curves(self, x: Tensor) -> Tensor:
        return self.gain[:, None] * x.clamp_min(0) + self.slope * self.begun * x.clamp_max(0)

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        return {"gain": self.gain}

    def flops(self, shape: tuple[int, ...]) -> int:
        return 1_000_000


class Broken(Activation):
    """Cannot stand where features have positions."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"input of shape {tuple(x.shape)}: (N, C) is needed")


class Pooling(Activation):
    """Does not keep the shape, which broadcasting may hide."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean(0, keepdim=True)


class Late(Activation):
    """Fails in the third training step."""

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 3:
            raise RuntimeError("out of luck")
        return x.relu()


class Witness(Activation):
    """ReLU that notes how its training input came."""

    seen: ClassVar[list[tuple[torch.dtype, bool]]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return x.relu()


class Exploding(Activation):
    """Not finite from the third training step on."""

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x / (self.calls < 3)


class Scaled(Activation):
    """y = scale x. In ``Line`` the loss is a parabola of the weight, and gradient descent is best at one learning rate."""

    def __init__(self, num_features: int, *, channel_dim: int = 1, scale: float = 1.0) -> None:
        super().__init__(num_features, channel_dim=channel_dim)
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Line(nn.Module):
    """One weight before one activation."""

    def __init__(self, act_layer: Callable[..., nn.Module], input_shape: object, num_outputs: int) -> None:
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(1)), act_layer(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.weight * x)


def triple(x: Tensor) -> Tensor:
    """What ``Line`` can learn exactly."""
    return 3 * x
