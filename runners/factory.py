"""Validate an activation and a network before anything is trained with them."""

import inspect
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from activations.base import Activation
from activations.surgery.runs import check_outputs
from activations.surgery.state import undisturbed
from runners.composed import RUNTIME_ARGUMENTS
from runners.optim import activation_modules
from tasks.networks.build import reraise_as_value_error


def validate_act_layer(act_layer: partial[Activation], name: str) -> partial[Activation]:
    """Return the factory without Hydra's wrapping, after making one activation to validate its hyper-parameters.

    Otherwise errors in hyper-parameters would be raised by the task, as if they were its own.

    Raises:
        ValueError: hyper-parameters that the activation does not have or accept, or a class that is no activation.
    """
    if not isinstance(act_layer, partial):
        raise ValueError(f"activation={name}: its configuration needs _target_ and _partial_: true")
    cls, hyper = act_layer.func, act_layer.keywords
    for taken in hyper.keys() & RUNTIME_ARGUMENTS["activation"]:
        raise ValueError(f"activation.{taken}: no hyper-parameter; the network sets it at every site")
    try:
        unit = cls(8, **hyper)
    except ValueError as error:
        raise ValueError(f"activation={name}: {error}") from error
    except TypeError as error:
        parameters = inspect.signature(cls).parameters.values()
        legal = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "channel_dim"]
        legal += [name for name in hyper if name not in legal and f"'{name}'" not in str(error)]
        raise ValueError(
            f"activation={name}: {error}; hyper-parameters: {', '.join(legal) or 'none'}"
        ) from error
    if not isinstance(unit, Activation):
        raise ValueError(
            f"activation={name}: {type(unit).__module__}.{type(unit).__qualname__} must be a subclass "
            "of activations.base.Activation"
        )
    return partial(cls, **hyper)


def validate_network(network: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
    """Run ``network`` on two samples; compare the shape of its output, and of the input and output of every activation.

    Without this, a unit that changes the shape can train to a wrong score, because of broadcasting.

    Args:
        network: on any device.
        input_shape: of one sample.
        output_shape: that the task needs, of one sample.

    Raises:
        ValueError: a network that cannot process the samples, or whose output has another shape; an activation that
            fails, or whose output differs from its input in shape or dtype (the message names site and class).
    """
    sites = activation_modules(network)
    if not sites:
        raise ValueError("the network never called act_layer: there is nothing to compare")
    # Undisturbed, as the network may initialize itself in its first forward, which is to be that of training.
    with (
        undisturbed(network),
        torch.no_grad(),
        reraise_as_value_error(input_shape),
        check_outputs(sites) as running,
    ):
        network.eval()
        try:
            output = network(torch.zeros(2, *input_shape, device=next(network.parameters()).device))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not running:
                raise
            site = running[-1]
            raise ValueError(f"{type(sites[site]).__name__} at {site}: {error}") from error
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if shape != tuple(output_shape):
        raise ValueError(
            f"the network's output for a sample is {shape}, must be {tuple(output_shape)}: it is for another kind of task"
        )
