"""What a network costs: parameters and floating point operations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from activations.base import Activation
from activations.surgery.state import undisturbed
from runners.optim import activation_modules, activation_parameters

# element-wise, though torch does not tag them
UNTAGGED = (torch.ops.aten._prelu_kernel, torch.ops.aten.hardswish)


def parameters(network: nn.Module) -> dict[str, int]:
    """Number of all parameters, and of those that belong to activations."""
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "activation_parameters": sum(p.numel() for p in activation_parameters(network)),
    }


def flops(network: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Operations of one forward pass of one sample in eval mode, and the share of the activations.

    Matrix products and convolutions count two per multiply-add, by torch's own formulas. Those say 0 for an
    activation, so every element that an element-wise operation writes counts as one operation besides. An
    activation whose ``flops`` gives a number is taken at its word. Batch norm, folded away in practice, is 0.
    """
    device = next(network.parameters()).device
    counter = _Counter()
    # the network's first forward is that of training: it may initialize by its data
    with undisturbed(network), torch.no_grad():
        for module in activation_modules(network).values():
            module.register_forward_pre_hook(counter.enter)
            module.register_forward_hook(counter.leave)
        network.eval()
        with counter:
            network(torch.zeros(1, *input_shape, device=device))
    return {"flops": counter.total, "activation_flops": counter.activations}


class _Counter(TorchDispatchMode):
    """Counts operations, in all and inside activations."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.activations = 0
        self.entered: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default imports torch's compiler, two seconds; nothing is compiled here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif (torch.Tag.pointwise in func.tags or packet in UNTAGGED) and isinstance(out, Tensor):
            self.total += out.numel()
        return out

    def enter(self, module: Activation, args: tuple[Tensor, ...]) -> None:
        self.entered.append(self.total)

    def leave(self, module: Activation, args: tuple[Tensor, ...], output: Tensor) -> None:
        before = self.entered.pop()
        declared = module.flops(args[0].shape)
        if declared is not None:
            self.total = before + declared
        if not self.entered:  # not an activation inside another one
            self.activations += self.total - before
