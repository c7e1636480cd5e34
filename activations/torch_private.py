"""Every private name of torch that is used, in one place, as a version of torch may drop any of them.

The fused kernels are off where ``MISSING`` is not empty: nothing could then tell when they may be used. A test fails with
what is missing.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

MISSING: list[str] = []


def _find(path: str, *, required: bool = False) -> Any:
    """Return what torch has at a dotted path, or None and note the path in ``MISSING``.

    Raises:
        ImportError: there is nothing at the path, and it is ``required``.
    """
    value: Any = torch
    for name in path.split(".")[1:]:
        value = getattr(value, name, None)
    if value is None:
        if required:
            raise ImportError(f"torch {torch.__version__} has no {path}, which actbench uses")
        MISSING.append(path)
    return value


BatchNorm = _find("torch.nn.modules.batchnorm._BatchNorm", required=True)
NormBase = _find("torch.nn.modules.batchnorm._NormBase", required=True)
ConvNd = _find("torch.nn.modules.conv._ConvNd", required=True)
DisableTorchFunction = _find("torch._C.DisableTorchFunction", required=True)
TorchDispatchMode = _find("torch.utils._python_dispatch.TorchDispatchMode", required=True)
prelu_kernel = _find("torch.ops.aten._prelu_kernel", required=True)
softmax_backward = _find("torch.ops.aten._softmax_backward_data.default", required=True)
tree_leaves = _find("torch.utils._pytree.tree_leaves", required=True)
tree_map_only = _find("torch.utils._pytree.tree_map_only", required=True)

has_storage = _find("torch._C._has_storage")
saved_tensor_hooks = _find("torch._C._autograd._top_saved_tensors_default_hooks")
_dispatch_modes = _find("torch._C._len_torch_dispatch_stack")
_functorch_level = _find("torch._C._functorch.peek_interpreter_stack")
_global_hooks = _find("torch.nn.modules.module._has_any_global_hook")
_tracing_state = _find("torch._C._get_tracing_state")
_find("torch.autograd.forward_ad._current_level")

# Attributes of every module, and of every tensor.
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
MISSING += [f"torch.nn.Module.{name}" for name in MODULE_HOOKS if name not in vars(nn.Module())]
MISSING += [f"torch.Tensor.{name}" for name in TENSOR_HOOKS if not hasattr(torch.Tensor, name)]


def is_transformed() -> bool:
    """Return whether a transform of torch.func or a dispatch mode (fake tensors, counters) is at work."""
    return _functorch_level() is not None or bool(_dispatch_modes())


def is_traced() -> bool:
    """Return whether torch.jit.trace or torch.export records what is computed."""
    return _tracing_state() is not None


def in_forward_ad() -> bool:
    """Return whether forward-mode derivatives are computed."""
    return forward_ad._current_level >= 0


def has_hooks(module: nn.Module) -> bool:
    """Return whether ``module`` has a hook of its own on its forward or backward pass."""
    attributes = module.__dict__
    return any(attributes[hooks] for hooks in MODULE_HOOKS)


def has_global_hooks() -> bool:
    """Return whether there is a hook on the forward or backward pass of all modules."""
    return bool(_global_hooks())
