"""The contract of an activation: what a network and a runner may expect of every unit."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from activations.kernels.gate import mean
from activations.kernels.lookup import along
from activations.kernels.pointwise import pointwise


class Activation(nn.Module):
    """A shape-preserving unit that stands at one site of a network.

    A subclass adds its parameters in ``__init__``, gives them their values in ``reset_parameters`` and computes in
    ``forward``; everything below has a harmless default, so a plain function needs nothing else. A unit whose
    behavior depends on the epoch keeps its phase, like its statistics, in **buffers** of a floating-point type: they
    travel with ``state_dict``, which is how a resumed run continues in the right phase, and averages of networks
    average them.

    torch.fx takes a unit as one node, as it takes torch's own modules. torch.jit.script compiles the adapters of
    torch.nn and refuses all others; torch.jit.trace and torch.export serve every unit.

    Args:
        num_features: channels of the site, at least 1; anything that is an integer to Python, numpy's too.
        channel_dim: the dimension of the input that holds them; 1 for (N, C, ...), -1 for (B, T, C).

    Shape:
        (N, C), (N, C, L) or (N, C, H, W) in, the same shape, dtype and memory format out. A unit that looks at one
        element at a time also takes samples without N, as its channels are counted from the end (``channel_dim=-3``
        for (C, H, W)).

    Raises:
        ValueError: ``num_features`` below 1 or no whole number, ``channel_dim`` no whole number; input without
            ``num_features`` channels in dimension ``channel_dim``, or not in floating point: whole numbers would cut off
            the unit's parameters. The adapters of torch.nn's layers (``activations.torch_nn``) have no parameters and take
            what these layers take.
    """

    scriptable: ClassVar[bool] = False  # whether torch.jit.script can compile ``forward``
    __jit_unused_properties__: ClassVar[list[str]] = ["no_decay", "phase"]

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        channels = whole(num_features)
        if channels is None or channels < 1:
            raise ValueError(f"num_features={num_features!r}: a whole number of at least 1 is needed")
        dim = whole(channel_dim)
        if dim is None:
            raise ValueError(f"channel_dim={channel_dim!r}: a whole number is needed, such as 1 or -1")
        self.num_features = channels
        self.channel_dim = dim
        # A tracer of torch.fx asks the module, not its class, whether it is one of torch.nn and so a leaf.
        self.__module__ = "torch.nn"

    def reset_parameters(self) -> None:
        """Set parameters, statistics and phase to what the constructor gives them, in place.

        What is random is drawn anew, in the constructor's order: from one random state both come to the same bits.

        Raises:
            NotImplementedError: a subclass that has parameters or buffers and no rule for them.
        """
        if any(True for _ in self.parameters()) or any(True for _ in self.buffers()):
            raise NotImplementedError(f"{type(self).__name__} defines no reset_parameters()")

    @torch.no_grad()
    def assign(self, name: str, value: Tensor | float) -> None:
        """Copy ``value``, a number for all elements, into the parameter ``name``, or into what it is computed from.

        A parameter under ``torch.nn.utils.parametrize`` gets the value through the ``right_inverse`` of its
        parametrization, a pruned one keeps its mask.

        Raises:
            ValueError: it is computed in a way that cannot be undone.
        """
        if not isinstance(value, Tensor):
            value = torch.full_like(getattr(self, name), value)
        if name in self._parameters:
            getattr(self, name).copy_(value)
        elif parametrize.is_parametrized(self, name):
            for step in self.parametrizations[name]:  # type: ignore[index]
                if not hasattr(step, "right_inverse"):
                    raise ValueError(
                        f"{type(self).__name__}.{name} cannot be set: "
                        f"its parametrization {type(step).__name__} has no right_inverse"
                    )
            setattr(self, name, value.to(getattr(self, name)))
        elif f"{name}_orig" in self._parameters and f"{name}_mask" in self._buffers:
            original, mask = getattr(self, f"{name}_orig"), getattr(self, f"{name}_mask")
            original.copy_(value)
            setattr(self, name, original * mask)
        else:
            raise ValueError(
                f"{type(self).__name__}.{name} cannot be set: it is no parameter, and neither "
                "torch.nn.utils.parametrize nor torch.nn.utils.prune computes it"
            )

    @property
    def no_decay(self) -> frozenset[str]:
        """Names (as in ``named_parameters``) of the parameters that weight decay must leave alone.

        Biases and the parameters of normalization layers are left alone in any case.
        """
        return frozenset()

    def regularization(self) -> Tensor | float:
        """Scalar that the runner adds to the loss of every training step and logs beside it."""
        return 0.0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called once before the first step of each epoch; ``epoch`` counts from 0 to ``epochs - 1``.

        Parameters are changed **in place** here: the optimizer already holds them. Those that a phase does not
        train may be given ``requires_grad_(False)``; the runner leaves that alone, and a checkpoint remembers it.
        """

    @property
    def phase(self) -> str:
        """Name of the training phase that the unit is in, for the log and metrics.csv; empty if it has none."""
        return ""

    def curves(self, x: Tensor) -> Tensor | None:
        """Responses (units, points) at the points ``x`` (points,), or None if the unit is no scalar function."""
        return None

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """Named tensors worth a picture, such as gate parameters.

        ``x`` is a batch of this site's inputs, for what depends on them; None leaves that out.
        """
        return {}

    def flops(self, shape: Sequence[int]) -> int | None:
        """Floating point operations of one forward on ``shape``; None lets the runner count them."""
        return None

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is what the contract says; first in every ``forward``, before either path."""
        dim = self.channel_dim
        try:
            channels = x.shape[dim]
        except IndexError:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: no dimension {dim} (channel_dim) for num_features={self.num_features}"
            ) from None
        if channels != self.num_features:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: {channels} channels in dimension {dim} (channel_dim), but "
                f"num_features={self.num_features}"
            )
        if not x.dtype.is_floating_point:
            raise ValueError(f"input of dtype {x.dtype}: floating point is needed")

    def along_channels(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``parameter`` (num_features,) or (1,), in x's dtype, shaped to broadcast along x's channels."""
        return along(parameter.to(x.dtype), x, self.channel_dim)

    def pointwise(
        self, kernel: str, formula: Callable[..., Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        """``formula(x, *parameters)``, with parameters (num_features,) or (1,) along x's channels; fused if it can be."""
        self.check_input(x)

        def reference(x: Tensor, *parameters: Tensor) -> Tensor:
            return formula(x, *(self.along_channels(parameter, x) for parameter in parameters))

        return pointwise(kernel, reference, x, *parameters, channel_dim=self.channel_dim)

    def of_no_positions(self, x: Tensor) -> Tensor:
        """The output for maps without positions, which torch's convolutions refuse; all parameters get gradients of 0."""
        return x * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def pooled(self, x: Tensor) -> Tensor:
        """(N, num_features): the mean over positions; (N, C) has none and is its own mean."""
        return mean(x, self.channel_dim)

    def extra_repr(self) -> str:
        return f"{self.num_features}" + (f", channel_dim={self.channel_dim}" if self.channel_dim != 1 else "")

    def __prepare_scriptable__(self) -> Self:
        """What torch.jit.script calls first."""
        if not self.scriptable:
            raise ValueError(
                f"torch.jit.script cannot compile {type(self).__name__}; torch.jit.trace and torch.export can"
            )
        return self


def bare(layer: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """``layer(*args, **kwargs)`` that has drawn no random numbers, for ``reset_parameters`` to fill."""
    return nn.utils.skip_init(layer, *args, device=torch.get_default_device(), **kwargs)


def whole(value: Any) -> int | None:
    """``value`` as an int if it is an integer to Python, which True and False shall not be, or None."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_kept(x: Tensor, output: object) -> None:
    """Raise ValueError unless what a unit makes of ``x`` is a tensor of its shape and dtype."""
    if not isinstance(output, Tensor) or output.shape != x.shape or output.dtype != x.dtype:
        came = (
            f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        )
        raise ValueError(
            f"{tuple(x.shape)} {x.dtype} goes in and {came} comes out; shape and dtype must be kept"
        )


def upcast(x: Tensor) -> Tensor:
    """``x`` in float32 if it has less: for sums, powers and table positions, which half precision spoils."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_bool(**values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not true or false; ``no`` arrives as a word."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: legal values are true, false")


def check_finite(**values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not a finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}={value!r}: a finite number is needed")


def check_whole(minimum: int, **values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not a whole number of at least ``minimum``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name}={value!r}: a whole number of at least {minimum} is needed")


def check_positive(**values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not a finite number above 0."""
    check_finite(**values)
    for name, value in values.items():
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name}={value!r}: a number above 0 is needed")


def check_not_negative(**values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not a finite number of at least 0."""
    check_finite(**values)
    for name, value in values.items():
        if not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{name}={value!r}: a number of at least 0 is needed")


def check_choice(legal: Sequence[str], **values: object) -> None:
    """Raise ValueError for the first hyper-parameter that is not one of ``legal``."""
    for name, value in values.items():
        if value not in legal:
            raise ValueError(f"{name}={value!r}: legal values are {', '.join(legal)}")
