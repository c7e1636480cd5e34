"""Run a network, observe its modules, and leave it as it was."""

import copy
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from activations.base import Activation, check_same_shape_and_dtype
from activations.surgery.kinds import CUSTOM_KINDS, Place, kind_of, outer_modules, tensors_in
from activations.surgery.state import Snapshot, undisturbed, write
from activations.torch_private import DisableTorchFunction, tree_map_only


def run_in_mode(network: nn.Module, example: Any, training: bool) -> list[Tensor]:
    """Return copies of the network's output tensors in one mode; the network and the random states stay."""
    args = example if isinstance(example, tuple) else (example,)
    with undisturbed(network), _without_fast_path():
        set_mode(network, training)
        outputs = tensors_in(network(*tree_map_only(Tensor, torch.clone, args)))
        return [tensor.detach().clone() for tensor in outputs]  # Some may be buffers, which are put back.


def set_mode(network: nn.Module, training: bool) -> None:
    """Set the mode as ``network.train(training)`` does, but keep norms and units in evaluation: one sample is enough then."""
    network.train(training)
    for module in network.modules():
        if isinstance(module, Activation) or getattr(module, "running_mean", None) is not None:
            module.eval()


@contextmanager
def varied_constants(network: nn.Module) -> Iterator[None]:
    """Give constant parameters varied values: behind a norm whose weights are all zero nothing could be seen."""
    parameters = {p for m in outer_modules(network) for p in m._parameters.values() if p is not None}
    constant = [p for p in parameters if p.is_floating_point() and p.numel() and (p == p.flatten()[0]).all()]
    values = [(p, p.detach().clone()) for p in constant]
    ramps = [torch.linspace(0.25, 0.75, p.numel()).view(p.shape) / max(1, p[:1].numel()) for p in constant]
    try:
        write([(p, ramp.to(p)) for p, ramp in zip(constant, ramps, strict=True)])
        yield
    finally:
        write(values)


@contextmanager
def record_checksums(
    modules: Iterable[nn.Module], checksums: list[tuple[nn.Module, list[int]]]
) -> Iterator[None]:
    """Append each of ``modules`` that runs to ``checksums``, with the sum over the bits of each of its outputs."""

    def note(module: nn.Module, args: Any, out: Any) -> None:
        with DisableTorchFunction():
            checksums.append((module, [_sum_of_bits(x.detach()) for x in tensors_in(out)]))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        yield


@contextmanager
def count_calls(modules: Mapping[Any, nn.Module]) -> Iterator[Counter[Any]]:
    """Yield a counter of the runs of each of ``modules``, by its key."""
    counts: Counter[Any] = Counter()

    def note(key: Any, module: nn.Module, args: Any) -> None:
        counts[key] += 1

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(module.register_forward_pre_hook(functools.partial(note, key)).remove)
        yield counts


@contextmanager
def check_outputs(units: Mapping[Any, nn.Module]) -> Iterator[list[Any]]:
    """Raise ValueError unless each of ``units`` keeps the shape and dtype of its input; yield the keys of those that run."""
    running: list[Any] = []

    def enter(key: Any, unit: nn.Module, args: tuple[Tensor, ...]) -> None:
        running.append(key)

    def leave(unit: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        check_same_shape_and_dtype(args[0], output)
        running.pop()

    with ExitStack() as stack:
        for key, unit in units.items():
            stack.callback(unit.register_forward_pre_hook(functools.partial(enter, key)).remove)
            stack.callback(unit.register_forward_hook(leave).remove)
        yield running


def _sum_of_bits(x: Tensor) -> int:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(x.element_size(), torch.int64)
    return int(x.reshape(-1).view(integers).sum())


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Disable the fused forward of nn.TransformerEncoderLayer, in which no activation shows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def unshare(network: nn.Module) -> Iterator[dict[nn.Module, Place]]:
    """Yield the place of every activation and gate; one that is registered repeatedly has copies meanwhile."""
    saved = Snapshot(network, values=False)
    places: dict[nn.Module, Place] = {}
    for parent in outer_modules(network):
        for name, child in parent._modules.items():
            if child is not None and kind_of(child):
                if child in places:
                    original, child = child, copy.deepcopy(child)
                    parent._modules[name] = child
                    if original in CUSTOM_KINDS.get():
                        CUSTOM_KINDS.get()[child] = CUSTOM_KINDS.get()[original]
                places[child] = parent, name
    try:
        yield places
    finally:
        saved.restore()
