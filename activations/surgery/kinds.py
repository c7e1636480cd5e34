"""Decide what counts as an activation, as a gate, or as neither."""

import dataclasses
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

from activations.base import Activation
from activations.torch_private import tree_leaves

Place = tuple[nn.Module, str]  # a module and the name of one of its attributes
SOFTMAXES = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.GLU, *SOFTMAXES)
TORCH = {getattr(torch_activations, name) for name in torch_activations.__all__} - {
    *GATES,
    nn.MultiheadAttention,
}
# classes of timm, and those that circulate as copies
WELL_KNOWN = re.compile(
    "(h|hard|quick|new|fast|memoryefficient|squared|star)?"
    "(relu6?|p?relu|leakyrelu|[cs]?elu|gelu|silu|swish|mish|tanh|softplus|softsign)"
    "(2|tanh|me|jit|squared|activation)?"
)
FUNCTIONS = re.compile(
    "relu6?_?|hardtanh_?|leaky_relu_?|prelu|rrelu_?|_?threshold_?|[sc]?elu_?|gelu|silu_?|mish|hardswish_?|"
    "softplus|tanh_?|softsign|(tanh|hard|soft)shrink"
)
GATE_FUNCTIONS = re.compile("sigmoid_?|(hard|log)sigmoid|(log_)?softmax|softmin|glu")
# A kernel that no call in Python explains comes from compiled code.
KERNELS = re.compile(
    "(relu|hardtanh|leaky_relu|elu|silu|hardswish|tanh|threshold)_?|gelu|mish|softplus|_prelu_kernel|"
    "(hard|soft)shrink"
)
RECURRENT = re.compile("(lstm|gru)(_cell)?")  # Their kernels are those of gates.
# the last function of a network, whose range is a matter of its task
OUTPUTS = re.compile("(hard)?tanh_?|softsign|softplus")
# reasons why a call is no site
IS_GATE = "gate, stays"
IS_CONSTANT = "does not depend on the input, stays"
HAND_WRITTEN = "part of hand-written arithmetic, stays"
NO_LAYER_BEFORE = "no learned layer before it, stays"


class CustomKind(NamedTuple):
    """The kind of a module whose class is the network's own.

    Attributes:
        kind: ``activation`` or ``gate``.
        by_rule: whether it follows from the rule of ``recognize_custom``; else its class was named by the user.
    """

    kind: str
    by_rule: bool


CUSTOM_KINDS: ContextVar[dict[nn.Module, CustomKind]] = ContextVar("CUSTOM_KINDS", default={})  # noqa: B039 (never changed)


def kind_of(module: nn.Module) -> str:
    """Return ``activation``, ``gate`` or nothing."""
    if custom := CUSTOM_KINDS.get().get(module):
        return custom.kind
    if isinstance(module, GATES):
        return "gate"
    if isinstance(module, (Activation, *TORCH)):
        return "activation"
    if not all(kind_of(child) for child in module.children()):
        return ""
    name = type(module).__name__.lower().replace("_", "")
    return "gate" if name.endswith("sigmoid") else "activation" if WELL_KNOWN.fullmatch(name) else ""


def outer_modules(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """Yield the modules that neither are activations, gates or compiled code nor inside of such."""
    seen = set() if seen is None else seen
    if module not in seen and not kind_of(module) and not isinstance(module, torch.jit.ScriptModule):
        seen.add(module)
        yield module
        for child in module.children():
            yield from outer_modules(child, seen)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested containers and dataclasses."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf):
            yield from tensors_in(vars(leaf))


def without_data(x: Tensor) -> Tensor:
    """Return a tensor of the same shape, dtype and device that takes no memory."""
    if x.layout is not torch.strided or x.is_nested:
        return x
    return torch.empty((), dtype=x.dtype, device=x.device).expand(x.shape)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
