"""Optimizer, parameter groups and learning-rate schedule of a recipe."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from activations.base import Activation
from activations.torch_private import NormBase
from tasks.base import Recipe

NORMS = (
    NormBase,  # batch and instance norm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def activation_modules(network: nn.Module) -> dict[str, Activation]:
    """Return the activations of a network by site name, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Activation)}


def sites(network: nn.Module) -> dict[str, Activation]:
    """Return the activations of a network that are not inside another activation, by site name."""
    modules = activation_modules(network)
    inner = {name for name in modules for other in modules if name.startswith(f"{other}.")}
    return {name: module for name, module in modules.items() if name not in inner}


def activation_parameters(network: nn.Module) -> set[nn.Parameter]:
    """Return all parameters that belong to an activation."""
    return {p for module in activation_modules(network).values() for p in module.parameters()}


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: decayed, and not decayed (norms, biases and ``Activation.no_decay``)."""
    declared = set()
    for site, module in activation_modules(network).items():
        unknown = module.no_decay - dict(module.named_parameters()).keys()
        assert not unknown, f"{site}: no_decay names no parameters: {', '.join(sorted(unknown))}"
        declared |= {f"{site}.{name}".lstrip(".") for name in module.no_decay}
    decayed: dict[nn.Parameter, None] = {}
    undecayed: dict[nn.Parameter, None] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = isinstance(module, NORMS) or name == "bias" or f"{prefix}.{name}".lstrip(".") in declared
            (undecayed if exempt else decayed)[parameter] = None
    return [
        {"params": [p for p in decayed if p not in undecayed], "weight_decay": weight_decay},
        {"params": list(undecayed), "weight_decay": 0.0},
    ]


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over all parameters of ``network``, in torch's fastest form that is safe."""
    groups = [group for group in parameter_groups(network, recipe.weight_decay) if group["params"]]
    if recipe.optimizer == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        # Not fused: that form fails on a parameter whose first gradient comes later than that of others.
        return _lean(SGD)(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, foreach=True)
    cls = {"adam": Adam, "adamw": AdamW}[recipe.optimizer]
    # torch never chooses the fused form on a CPU, where it saves three quarters of a small step.
    fused = {p.device.type for p in network.parameters()} <= {"cpu", "cuda"}
    return _lean(cls)(groups, lr=recipe.lr, betas=tuple(recipe.betas), fused=fused)


def lr_factor(step: int, total_steps: int, recipe: Recipe) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0) of T = ``total_steps``.

    With w = round(warmup T): (step + 1) / (w + 1) below w. From w on 1 if the schedule is constant, and
    (1 + cos(pi (step - w) / (T - w))) / 2 if it is cosine.

    Examples:
        >>> recipe = Recipe(epochs=1, batch_size=1, lr=0.1, warmup=0.25)
        >>> [round(lr_factor(step, 8, recipe), 2) for step in range(8)]
        [0.33, 0.67, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    warmup_steps = round(recipe.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def _lean(cls: type[Optimizer]) -> Any:
    """Return ``cls`` without the wrappers that import torch's compiler.

    torch wraps these methods so that torch.compile skips them, and the first call imports the compiler: about two
    seconds, most of the start-up of a short run. The optimizer is never compiled here.
    """

    def unwrapped(name: str) -> Any:
        method = getattr(cls, name)
        return getattr(method, "__wrapped__", method)

    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: unwrapped(name) for name in names}
    return type(cls.__name__, (cls,), methods | {"step": torch.no_grad()(unwrapped("step"))})
