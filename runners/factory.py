"""Make sure that an activation works before anything is trained with it."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from activations.base import Activation, check_same_shape_and_dtype
from activations.surgery.state import undisturbed
from runners.composed import GIVEN
from runners.optim import activation_modules
from tasks.networks.build import blaming_the_network


def checked(act_layer: partial[Activation], name: str) -> partial[Activation]:
    """The factory without Hydra's wrapping, after it has made one activation that is thrown away.

    Errors in hyper-parameters would otherwise surface inside the task and blame it.

    Raises:
        ValueError: hyper-parameters that the activation does not take or accept, or no activation at all.
    """
    if not isinstance(act_layer, partial):
        raise ValueError(f"activation={name}: its configuration needs _target_ and _partial_: true")
    cls, hyper = act_layer.func, act_layer.keywords
    for taken in hyper.keys() & GIVEN["activation"]:
        raise ValueError(f"activation.{taken}: no hyper-parameter; the network decides it at every site")
    try:
        unit = cls(8, **hyper)
    except ValueError as error:
        raise ValueError(f"activation={name}: {error}") from error
    except TypeError as error:
        known = inspect.signature(cls).parameters.values()
        legal = [p.name for p in known if p.kind is p.KEYWORD_ONLY and p.name != "channel_dim"]
        legal += [name for name in hyper if name not in legal and f"'{name}'" not in str(error)]
        raise ValueError(
            f"activation={name}: {error}; hyper-parameters: {', '.join(legal) or 'none'}"
        ) from error
    if not isinstance(unit, Activation):
        raise ValueError(
            f"activation={name}: {type(unit).__module__}.{type(unit).__qualname__} is no subclass of "
            "activations.base.Activation"
        )
    return partial(cls, **hyper)


def check_network(network: nn.Module, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
    """Send two samples through ``network``; compare shapes at its end and before and after every activation.

    A unit that changes the shape can otherwise train to a wrong score by way of broadcasting.

    Raises:
        ValueError: a network that cannot take the samples, or makes something of another shape of them; an
            activation that fails, or whose output is not like its input (names site and class).
    """
    under_way: list[str] = []

    def enter(site: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        under_way.append(site)

    def leave(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        check_same_shape_and_dtype(args[0], output)
        under_way.pop()

    sites = activation_modules(network)
    if not sites:
        raise ValueError("the network never called act_layer: there is nothing to compare")
    # the network's first forward is that of training: it may initialize by its data
    with undisturbed(network), torch.no_grad(), blaming_the_network(input_shape):
        for site, module in sites.items():
            module.register_forward_pre_hook(partial(enter, site))
            module.register_forward_hook(leave)
        network.eval()
        try:
            output = network(torch.zeros(2, *input_shape, device=next(network.parameters()).device))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not under_way:
                raise
            site = under_way[-1]
            raise ValueError(f"{type(sites[site]).__name__} at {site}: {error}") from error
    made = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
    if made != tuple(output_shape):
        raise ValueError(
            f"the network makes {made} of a sample, this task needs {tuple(output_shape)}: it is for another kind of task"
        )
