"""The compiled kernels: finding them, when they are used, and how a tensor is handed to them.

The rule, for every primitive alike. A call goes to the fused kernel if

- the kernels were built and this processor has AVX2 with FMA, AVX-512 or ARM's NEON,
- they are not switched off (``using("reference")``, ``ACTBENCH_KERNELS=reference``, ``runner.kernels=reference``),
- input and parameters are plain tensors on the CPU, in float32 or float64, all alike, and not empty,
- parameters have the shapes that the unit gave them: a kernel reads as many numbers as it is told,
- autocast is off, which would take fewer digits for what some units compute in between,
- nobody wants to look inside: no torch.compile, export, tracing, torch.func transform, forward-mode derivative or
  dispatch mode (fake tensors, counters) is at work.

On a GPU the same rule leads to the Triton kernels (gpu/) where torch brings Triton along and it works (it needs a C compiler
and a GPU of compute capability 7.0), with three differences:

- float32, bfloat16 and float16 are taken as they are, parameters in another of them too, and computed in float32;
  float64 goes to the reference,
- autocast may be on, as nothing is computed in fewer digits,
- torch.compile gets the kernels of pure functions of input and parameters as operators of torch (gpu/ops.py).

``using("triton")``, or that name in the two other places, runs the Triton kernels alone: those of the CPU are off, and if
``TRITON_INTERPRET=1`` is set tensors on the CPU go through Triton's interpreter, which is how they are tested.

Sizes count in two places: Swish with beta = 1 and the units of torch_fused.py are torch's own operations below 2^18 elements, and
the linear layers of gated units (networks.py) are torch's where they are large.

All else goes to the reference, plain torch operations that those tools see through. A second derivative is no
reason: a fused backward that is asked for a graph of its own computes it through the reference.

Any layout in which the elements fill their memory without gaps is used as it is (contiguous, channels_last, any
permutation, channels in any dimension); others (slices, expanded tensors) are copied first.

``torch.set_num_threads`` counts: the threads are torch's own. Several callers at once, DataLoader workers and forked
processes are safe; the child of a fork, where torch's threads are gone, computes in its one thread.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from activations import torch_private
from activations.checks import check_choice
from activations.kernels.signatures import TABLE, differences
from activations.torch_private import has_storage, is_traced, is_transformed, saved_tensor_hooks

Module = TypeVar("Module", bound=nn.Module)

MODES = ("auto", "reference", "triton")
# What ``backend`` returns: whose kernels compute a call.
CPU, TRITON, REFERENCE = "cpu", "triton", ""
FOLDER = Path(__file__).parent
DTYPES = {torch.float32: "f32", torch.float64: "f64"}
LETTERS: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}
HALF = (torch.float16, torch.bfloat16)
TRITON_DTYPES = (torch.float32, *HALF)
PLAIN = (Tensor, torch.nn.Parameter)
# Importing Triton takes seconds, so that it is left to the first tensor on a GPU.
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LEAST_CAPABILITY = (7, 0)  # of a card by NVIDIA, for Triton


def _variant() -> str | None:
    """Which of the compiled files suits this processor; torch knows what it can do."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "neon"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability())


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library or None, and what it is or why there is none."""
    if torch_private.MISSING:
        return None, f"torch {torch.__version__} has no {', '.join(torch_private.MISSING)}"
    variant = _variant()
    if variant is None:
        return None, "this processor has neither AVX2 nor NEON"
    path = FOLDER / f"fused_{variant}.so"
    if not path.exists():
        return None, f"{path.name} was not built"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, str(error)
    if wrong := differences(_table_of(library)):
        reason = f"{path.name} does not fit this code: {wrong[0]}" + (
            f" and {len(wrong) - 1} more" if wrong[1:] else ""
        )
        warnings.warn(
            f"{reason}; the reference runs instead. Build it anew: python activations/kernels/build.py",
            stacklevel=1,
        )
        return None, reason
    library.set_parallel_for(_parallel_for())
    os.register_at_fork(after_in_child=lambda: library.set_parallel_for(None))
    return library, variant


def _table_of(library: ctypes.CDLL) -> str:
    """Return the table of what a compiled file exports; empty for a file from before there was one."""
    if not hasattr(library, "abi"):
        return ""
    text = ctypes.create_string_buffer(1 << 16)
    library.abi(text, ctypes.c_int64(len(text)))
    return text.value.decode()


def _parallel_for() -> ctypes.c_void_p:
    """torch's own parallel loop, from its stable C interface."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            return ctypes.cast(ctypes.CDLL(str(folder / name)).torch_parallel_for, ctypes.c_void_p)
    return ctypes.c_void_p(None)


def _mode_of_environment() -> str:
    mode = os.environ.get("ACTBENCH_KERNELS", "auto")
    check_choice("ACTBENCH_KERNELS", mode, MODES)
    return mode


_mode = _mode_of_environment()
_library, _about = _load()


def available() -> bool:
    """Return whether there are fused kernels for this machine."""
    return _library is not None


def variant() -> str:
    """Return which compiled file computes: avx2, avx512 or neon; empty if none does."""
    return _about if available() else ""


def described(device: str = "cpu") -> str:
    """Return what computes on a type of device: ``fused avx512``, ``triton 3.8.0``, or ``reference`` and the reason."""
    if _mode == "reference":
        return "reference (asked for)"
    if device == "cpu" and _mode == "auto":
        return f"fused {_about}" if available() else f"reference ({_about})"
    if torch_private.MISSING:
        return f"reference (torch {torch.__version__} has no {', '.join(torch_private.MISSING)})"
    if not HAS_TRITON:
        return "reference (Triton is not installed)"
    if not _for_triton(device):
        return f"reference (no Triton kernels on {device})"
    if problem := _triton_problem(torch.device(device)):
        return f"reference ({problem})"
    return f"triton {importlib.metadata.version('triton')}{' interpreted' * INTERPRETED}"


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Choose how units compute, for the whole process, while entered.

    Args:
        mode: ``reference`` forces the plain torch operations, ``auto`` follows the rule, ``triton`` follows it with
            the kernels for GPUs alone.

    Raises:
        ValueError: ``mode`` is neither.
    """
    global _mode
    check_choice("kernels", mode, MODES)
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def backend(x: Tensor, *parameters: Tensor) -> str:
    """Return whose kernels compute this call, ``CPU`` or ``TRITON``, or ``REFERENCE``, by the rule at the head of this file."""
    if x.is_cpu and _mode == "auto":
        return CPU if fusable(x, *parameters) else REFERENCE
    return TRITON if _takes_triton(x, parameters) else REFERENCE


def _for_triton(device: str) -> bool:
    """Return whether the Triton kernels compute on a type of device, if at all."""
    return device == "cuda" if not INTERPRETED else device == "cpu" and _mode == "triton"


@cache
def _triton_problem(device: torch.device) -> str:
    """Return why Triton cannot compute on ``device``, in words that are the same in all processes; empty if it can."""
    if device.type != "cuda":  # its interpreter
        return ""
    try:
        from triton.runtime import driver

        driver.active  # noqa: B018  # compiles a file of its own by the system's C compiler, which containers often lack
    except Exception as error:
        message, problem = f" ({' '.join(str(error).split())})", f"Triton fails with {type(error).__name__}"
    else:
        if torch.version.hip is not None or torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY:
            return ""
        message, problem = "", f"Triton does not support {torch.cuda.get_device_name(device)}"
    warnings.warn(f"{problem}{message}; units on {device} run as plain torch operations", stacklevel=1)
    return problem


def _takes_triton(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    device = x.device
    if not HAS_TRITON or _mode == "reference" or torch_private.MISSING or not _for_triton(device.type):
        return False
    if x.dtype not in TRITON_DTYPES or not all(
        parameter.dtype in TRITON_DTYPES and parameter.device == device for parameter in parameters
    ):
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return (
        x.numel() > 0
        and all(type(tensor) in PLAIN and tensor.layout is torch.strided for tensor in (x, *parameters))
        and not (x.is_neg() or torch_private.in_forward_ad() or is_transformed() or is_traced())
        and not _triton_problem(device)
    )


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is in half precision and the Triton kernels, which compute in float32, do not take it."""
    return x if x.dtype not in HALF or backend(x) == TRITON else x.float()


def fusable(x: Tensor, *parameters: Tensor) -> bool:
    """Return whether this call goes to the fused kernel for the CPU, by the rule at the head of this file."""
    if torch.compiler.is_compiling() or _mode != "auto" or _library is None:
        return False
    dtype = x.dtype
    if dtype not in DTYPES or type(x) not in PLAIN or not x.is_cpu or not x.numel() or x.is_neg():
        return False
    for parameter in parameters:
        if parameter.dtype is not dtype or type(parameter) not in PLAIN or not parameter.is_cpu:
            return False
    return not (
        x.layout is not torch.strided
        or torch.is_autocast_enabled("cpu")
        or torch_private.in_forward_ad()
        or is_transformed()
        or is_traced()
    )


def is_plain(module: nn.Module, cls: type[Module]) -> TypeGuard[Module]:
    """Return whether a kernel may compute what ``module`` does without calling it.

    It may for an instance of ``cls`` itself, whose forward is that of the class, if nothing observes the call: no hook on
    the module, and none on all modules.
    """
    return (
        type(module) is cls
        and "forward" not in module.__dict__
        and not torch_private.has_hooks(module)
        and not torch_private.has_global_hooks()
    )


def readable(value: Tensor) -> bool:
    """Return whether Python may read a tensor's value without harm.

    It may not where that would wait for a device or break a graph, or where values are stand-ins: torch.compile, export,
    tracing, torch.func transforms, dispatch modes.
    """
    return not (
        torch_private.MISSING
        or torch.compiler.is_compiling()
        or type(value) is not Tensor
        or not value.is_cpu
        or is_transformed()
        or is_traced()
    )


@cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Return a function of the library, which takes what ``signatures`` says.

    Args:
        name: with ``{}`` in place of the type's name, as in ``gate_scale_{}``.
        dtype: float32 or float64.
    """
    symbol = name.format(DTYPES[dtype])
    function = getattr(_library, symbol)
    function.argtypes, function.restype = [LETTERS[letter] for letter in TABLE[symbol]], None
    return function


@cache
def kernels(name: str, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the forward and the backward function of the kernel ``name``."""
    return kernel(f"{name}_{{}}_forward", dtype), kernel(f"{name}_{{}}_backward", dtype)


def dense(x: Tensor) -> Tensor:
    """Return ``x``, or a contiguous copy if its elements have gaps between them in memory."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def match_layout(g: Tensor, x: Tensor) -> Tensor:
    """Return the gradient ``g`` in the memory layout of ``x``."""
    return g if g.stride() == x.stride() else torch.empty_like(x).copy_(g)


def save(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """Save tensors for backward, which takes them from ``saved``."""
    ctx.save_for_backward(x, *others)
    # Without hooks the same tensors come back, and need no check.
    if saved_tensor_hooks(False) is not None:
        ctx.sizes, ctx.device = [tensor.nbytes for tensor in (x, *others)], x.device


def saved(ctx: Any) -> Sequence[Tensor]:
    """Return the tensors of ``save``: x dense, the others contiguous.

    A saved-tensor hook may give them back in another layout than the one that was saved, so nothing about the layout
    is remembered.

    Raises:
        ValueError: a hook gives back another size, device or kind of tensor.
    """
    tensors: Sequence[Tensor] = ctx.saved_tensors
    sizes = getattr(ctx, "sizes", None)
    if sizes is None:
        return tensors
    for tensor, size in zip(tensors, sizes, strict=True):
        if tensor.nbytes != size or tensor.device != ctx.device or type(tensor) not in PLAIN:
            raise ValueError(
                f"a saved-tensor hook gave back {type(tensor).__name__} {tuple(tensor.shape)} {tensor.dtype} on "
                f"{tensor.device} for one of {size} bytes on {ctx.device}"
            )
    x, *others = tensors
    return [dense(x), *[tensor.contiguous() for tensor in others]]


def layout(x: Tensor, units: int, channel_dim: int) -> tuple[int, int, int]:
    """Return the shape (outer, units, inner) of dense ``x`` in the order of its memory."""
    if units == 1:
        return 1, 1, x.numel()
    inner = x.stride(channel_dim)
    return x.numel() // (units * inner), units, inner


def addresses(tensors: Sequence[Tensor]) -> Any:
    """Return the addresses of contiguous tensors as an array for C."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def row_addresses(tensors: Sequence[Tensor]) -> Any:
    """Return the addresses of the rows of contiguous (units,) or (rows, units) tensors as an array for C."""
    rows = []
    for tensor in tensors:
        first = tensor.data_ptr()
        if tensor.ndim > 1:
            step = tensor.shape[1] * tensor.element_size()
            rows += [first + row * step for row in range(tensor.shape[0])]
        else:
            rows.append(first)
    return (ctypes.c_void_p * len(rows))(*rows)


def needs_reference(g: Tensor, backend: str = CPU) -> bool:
    """Return whether a backward must use the reference.

    It must if it is to be differentiated itself or autocast is on (for the kernels of the CPU), and for gradients that are
    no plain tensors; those of ``is_grads_batched=True`` have no memory of their own. The rest of the rule was checked in
    forward.
    """
    return not (
        not torch.is_grad_enabled()
        and (backend == TRITON or not torch.is_autocast_enabled("cpu"))
        and type(g) in PLAIN
        and has_storage(g)
        and g.layout is torch.strided
        and not g.is_neg()
        and not is_transformed()
    )


def reference_backward(
    ctx: Any, reference: Callable[..., Tensor], inputs: Sequence[Tensor], g: Tensor
) -> tuple[Tensor | None, ...]:
    """Return what a backward returns, from ``reference(*inputs)``, as a graph that can be differentiated again.

    Args:
        ctx: of the node, whose last arguments are ``inputs``; those before get no gradient.
        reference: computes the node's output in plain torch operations.
        inputs: the tensors that were saved for it.
        g: gradient of the output.
    """
    others = len(ctx.needs_input_grad) - len(inputs)
    needed = ctx.needs_input_grad[others:]
    with torch.enable_grad():
        # One input may have been computed from another; views of them have not.
        views = [value.view_as(value) for value in inputs]
        leaves = [view for view, need in zip(views, needed, strict=True) if need]
        gradients = iter(
            torch.autograd.grad(reference(*views), leaves, g, create_graph=True, allow_unused=True)
        )
    return (None,) * others + tuple(next(gradients) if need else None for need in needed)
