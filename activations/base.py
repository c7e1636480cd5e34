"""The contract of an activation: what a network and a runner may expect of every unit.

Plain torch: units that have a fused kernel take it from ``activations.kernels``, which imports this module.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from activations.checks import check_int

# How a diagnostic is drawn; one without a role is a plain parameter.
DIAGNOSTIC_ROLES = (
    "interval_end",  # an end of the interval on which a curve is learned, (units,)
    "gate",  # a value per channel, drawn by depth with mean and variance, (C,) or (N, C)
    "coefficients",  # (N, 1 or C, 2 K): K slopes, then K intercepts
    "knots",  # positions of breakpoints, (units, K) or (K,)
    "occupancy",  # share of the site's inputs in each piece, (units, pieces), free tails first and last
)


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
        num_features: number of channels of the site, at least 1; integers of numpy are legal too.
        channel_dim: dimension of the input that holds the channels; 1 for (N, C, ...), -1 for (B, T, C).

    Shape:
        (N, C), (N, C, L) or (N, C, H, W) in, the same shape, dtype and memory format out. A unit that looks at one
        element at a time also takes samples without N, as its channels are counted from the end (``channel_dim=-3``
        for (C, H, W)).

    Raises:
        ValueError: ``num_features`` is no integer >= 1 or ``channel_dim`` no integer; the input has not ``num_features``
            channels in dimension ``channel_dim``, or an integer dtype, which would truncate the unit's parameters. The
            adapters of torch.nn's layers (``activations.torch_nn`` and ``torch_fused``) have no parameters and take what these layers take.
    """

    # Whether weight decay acts on the unit's parameters; False puts all of them into ``no_decay``.
    decayed: ClassVar[bool] = True
    # Role, one of ``DIAGNOSTIC_ROLES``, by name of what ``diagnostics`` returns.
    diagnostic_roles: ClassVar[Mapping[str, str]] = {}
    # Whether backward computes the derivative of forward; a unit that trains by another one says False.
    exact_gradient: bool = True
    # Whether torch.jit.script can compile ``forward``.
    scriptable: ClassVar[bool] = False
    __jit_unused_properties__: ClassVar[list[str]] = ["no_decay", "phase"]

    def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        check_int("num_features", num_features, minimum=1)
        check_int("channel_dim", channel_dim)
        self.num_features = operator.index(num_features)
        self.channel_dim = operator.index(channel_dim)
        # torch.fx treats modules of torch.nn as leaves, and looks at this attribute of the instance.
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
        return frozenset() if self.decayed else frozenset(dict(self.named_parameters()))

    def regularization(self) -> Tensor | float:
        """Return the scalar that the runner adds to the loss of every training step, and logs separately."""
        return 0.0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare for an epoch; called before its first step, ``epoch`` counting from 0 to ``epochs - 1``.

        Change parameters **in place** here: the optimizer already holds them. ``requires_grad_(False)`` freezes those that
        a phase does not train; the runner keeps it, and so does a checkpoint.
        """

    @property
    def phase(self) -> str:
        """Name of the unit's training phase for the log and metrics.csv; empty if it has none."""
        return ""

    def curves(self, x: Tensor) -> Tensor | None:
        """Return the responses (units, points) at the points ``x`` (points,); None if the unit is no scalar function.

        ``units`` is 1, for a function that all channels share, or num_features.
        """
        return None

    def diagnostics(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """Return named tensors worth a picture, such as gate parameters; ``diagnostic_roles`` says how they are drawn.

        Args:
            x: a batch of this site's inputs, for diagnostics that depend on them; None leaves these out.
        """
        return {}

    def flops(self, shape: Sequence[int]) -> int | None:
        """Return the floating-point operations of one forward on ``shape``; None lets the runner count them."""
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
            raise ValueError(f"input of dtype {x.dtype}: must be floating-point")

    def along_channels(self, parameter: Tensor, x: Tensor) -> Tensor:
        """Return ``parameter``, (units,) or (rows, units), in x's dtype and shaped to broadcast along x's channels.

        ``units`` is 1 or num_features; rows stay in front: (rows, units) becomes (rows, 1, units, 1, 1) for an image's
        (N, C, H, W).
        """
        return along(parameter.to(x.dtype), x, self.channel_dim)

    def of_no_positions(self, x: Tensor) -> Tensor:
        """Return the output for maps without positions, which torch's convolutions refuse; all parameters get gradient 0."""
        return x * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def extra_repr(self) -> str:
        return f"{self.num_features}" + (f", channel_dim={self.channel_dim}" if self.channel_dim != 1 else "")

    def __prepare_scriptable__(self) -> Self:
        """Refuse torch.jit.script, which calls this first, unless ``forward`` can be compiled."""
        if not self.scriptable:
            raise ValueError(
                f"torch.jit.script cannot compile {type(self).__name__}; use torch.jit.trace or torch.export"
            )
        return self


def bare(layer: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Return ``layer(*args, **kwargs)`` without drawing random numbers, for ``reset_parameters`` to initialize."""
    return nn.utils.skip_init(layer, *args, device=torch.get_default_device(), **kwargs)


def check_same_shape_and_dtype(x: Tensor, output: object) -> None:
    """Raise ValueError unless ``output``, which a unit computed from ``x``, is a tensor of its shape and dtype."""
    if not isinstance(output, Tensor) or output.shape != x.shape or output.dtype != x.dtype:
        result = type(output).__name__
        if isinstance(output, Tensor):
            result = f"{tuple(output.shape)} {output.dtype}"
        raise ValueError(
            f"{tuple(x.shape)} {x.dtype} goes in and {result} comes out; shape and dtype must be kept"
        )


def along(parameter: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Return ``parameter``, (units,) or (rows, units), as a view that broadcasts along x's channels, rows in front."""
    shape = [1] * x.ndim
    if parameter.shape[-1:].numel() > 1:
        shape[channel_dim] = -1
    return parameter.view(parameter.shape[:-1] + tuple(shape))


def upcast(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is in half precision, which spoils sums, powers and table positions."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
