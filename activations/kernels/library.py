"""The compiled kernels: finding them, when they are used, and how a tensor is handed to them.

The rule, for every primitive alike. A call goes to the fused kernel if

- the kernels were built and this processor has AVX2 with FMA, AVX-512 or ARM's NEON,
- they are not switched off (``using("reference")``, ``ACTBENCH_KERNELS=reference``, ``runner.kernels=reference``),
- input and parameters are plain tensors on the CPU, in float32 or float64, all alike, and not empty,
- parameters have the shapes that the unit gave them: a kernel reads as many numbers as it is told,
- autocast is off, which would take fewer digits for what some units compute in between,
- nobody wants to look inside: no torch.compile, export, tracing, torch.func transform, forward-mode derivative or
  dispatch mode (fake tensors, counters) is at work.

Sizes count in two places: Swish with beta = 1 and the units of torch.nn are torch's own operations below 2^18 elements, and
the linear layers of gated units (networks.py) are torch's where they are large.

All else goes to the reference, plain torch operations that those tools see through. A second derivative is no
reason: a fused backward that is asked for a graph of its own computes it through the reference.

Any layout in which the elements fill their memory without gaps is used as it is (contiguous, channels_last, any
permutation, channels in any dimension); others (slices, expanded tensors) are copied first.

``torch.set_num_threads`` counts: the threads are torch's own. Several callers at once, DataLoader workers and forked
processes are safe; the child of a fork, where torch's threads are gone, computes in its one thread.
"""

import ctypes
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
from activations.kernels.signatures import TABLE, differences
from activations.torch_private import has_storage, is_traced, is_transformed, saved_tensor_hooks

Module = TypeVar("Module", bound=nn.Module)

MODES = ("auto", "reference")
FOLDER = Path(__file__).parent
DTYPES = {torch.float32: "f32", torch.float64: "f64"}
LETTERS: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}
PLAIN = (Tensor, torch.nn.Parameter)


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
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            return ctypes.cast(ctypes.CDLL(str(folder / name)).torch_parallel_for, ctypes.c_void_p)
    return ctypes.c_void_p(None)


def _mode_of_environment() -> str:
    mode = os.environ.get("ACTBENCH_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"ACTBENCH_KERNELS={mode}: legal values are {', '.join(MODES)}")
    return mode


_mode = _mode_of_environment()
_library, _about = _load()


def available() -> bool:
    """Whether there are fused kernels on this machine."""
    return _library is not None


def described() -> str:
    """What computes on the CPU: ``fused avx512``, or ``reference`` and the reason."""
    if _mode == "reference":
        return "reference (asked for)"
    return f"fused {_about}" if available() else f"reference ({_about})"


@contextmanager
def using(mode: str) -> Iterator[None]:
    """``reference`` forces the plain torch operations, ``auto`` follows the rule; for the whole process, while entered.

    Raises:
        ValueError: another mode.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"kernels={mode}: legal values are {', '.join(MODES)}")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def fusable(x: Tensor, *parameters: Tensor) -> bool:
    """Whether this call goes to the fused kernel; the rule is at the head of this file."""
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
    """Whether Python may look into a tensor at no cost.

    It may not where a device would make it wait, nor where a graph is made or values are stand-ins: torch.compile,
    export, tracing, torch.func transforms, dispatch modes.
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
    """``x``, or a copy of it where its elements do not fill their memory."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def alike(g: Tensor, x: Tensor) -> Tensor:
    """The gradient ``g`` in the layout of ``x``."""
    return g if g.stride() == x.stride() else torch.empty_like(x).copy_(g)


def keep(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """Save tensors for backward, which takes them from ``kept``."""
    ctx.save_for_backward(x, *others)
    # without hooks the same tensors come back, and nothing need be known about them
    if saved_tensor_hooks(False) is not None:
        ctx.sizes = [tensor.nbytes for tensor in (x, *others)]


def kept(ctx: Any) -> Sequence[Tensor]:
    """The tensors of ``keep``: x dense, the others contiguous.

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
        if tensor.nbytes != size or not tensor.is_cpu or type(tensor) not in PLAIN:
            raise ValueError(
                f"a saved-tensor hook gave back {type(tensor).__name__} {tuple(tensor.shape)} {tensor.dtype} on "
                f"{tensor.device} for one of {size} bytes on cpu"
            )
    x, *others = tensors
    return [dense(x), *[tensor.contiguous() for tensor in others]]


def layout(x: Tensor, units: int, channel_dim: int) -> tuple[int, int, int]:
    """Dense ``x`` as (outer, units, inner) in the order of its memory."""
    if units == 1:
        return 1, 1, x.numel()
    inner = x.stride(channel_dim)
    return x.numel() // (units * inner), units, inner


def addresses(tensors: Sequence[Tensor]) -> Any:
    """Where the numbers of contiguous tensors are, for C."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def row_addresses(tensors: Sequence[Tensor]) -> Any:
    """Where the rows of contiguous (units,) or (rows, units) tensors are, for C."""
    found = []
    for tensor in tensors:
        first = tensor.data_ptr()
        if tensor.ndim > 1:
            step = tensor.shape[1] * tensor.element_size()
            found += [first + row * step for row in range(tensor.shape[0])]
        else:
            found.append(first)
    return (ctypes.c_void_p * len(found))(*found)


def by_reference(g: Tensor) -> bool:
    """Whether a backward must go through the reference.

    So if a graph of it is wanted or autocast is on, and for gradients that are no plain tensors; those of
    ``is_grads_batched=True`` have no memory of their own. What else the rule asks has been answered in forward.
    """
    return not (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and type(g) in PLAIN
        and has_storage(g)
        and g.layout is torch.strided
        and not g.is_neg()
        and not is_transformed()
    )


def through_reference(
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    g: Tensor,
) -> list[Tensor | None]:
    """The gradients of ``reference(*inputs)`` as a graph that can be differentiated again."""
    with torch.enable_grad():
        # one input may have been computed from another; views of them have not
        views = [value.view_as(value) for value in inputs]
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(torch.autograd.grad(reference(*views), wanted, g, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]
