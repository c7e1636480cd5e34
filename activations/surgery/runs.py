"""Run a network and leave it as it was."""

import copy
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from activations.base import Activation
from activations.surgery.kinds import OWN, Place, kind_of, outside, tensors_in
from activations.surgery.state import Snapshot, undisturbed, write
from activations.torch_private import DisableTorchFunction, tree_map_only


def run_in_mode(network: nn.Module, example: Any, training: bool) -> list[Tensor]:
    """The output tensors in one mode."""
    args = example if isinstance(example, tuple) else (example,)
    with undisturbed(network), _slow_path():
        set_mode(network, training)
        outputs = tensors_in(network(*tree_map_only(Tensor, torch.clone, args)))
        return [tensor.detach().clone() for tensor in outputs]  # some may be buffers, which are put back


def set_mode(network: nn.Module, training: bool) -> None:
    """As ``network.train(training)``; but norms and units stay in evaluation, so that one sample is enough."""
    network.train(training)
    for module in network.modules():
        if isinstance(module, Activation) or getattr(module, "running_mean", None) is not None:
            module.eval()


@contextmanager
def revived(network: nn.Module) -> Iterator[None]:
    """With other values in constant parameters: behind a norm whose weights are all zero nothing could be seen."""
    parameters = {p for m in outside(network) for p in m._parameters.values() if p is not None}
    constant = [p for p in parameters if p.is_floating_point() and p.numel() and (p == p.flatten()[0]).all()]
    values = [(p, p.detach().clone()) for p in constant]
    ramps = [torch.linspace(0.25, 0.75, p.numel()).view(p.shape) / max(1, p[:1].numel()) for p in constant]
    try:
        write([(p, ramp.to(p)) for p, ramp in zip(constant, ramps, strict=True)])
        yield
    finally:
        write(values)


@contextmanager
def listening(modules: Iterable[nn.Module], sums: list[tuple[nn.Module, list[int]]]) -> Iterator[None]:
    """Append each module that runs, with a sum over the bits of each of its outputs, to ``sums``."""

    def note(module: nn.Module, args: Any, out: Any) -> None:
        with DisableTorchFunction():
            sums.append((module, [_bits(x.detach()) for x in tensors_in(out)]))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        yield


@contextmanager
def counting(modules: Mapping[Any, nn.Module]) -> Iterator[Counter[Any]]:
    """How many times each of ``modules`` runs, by its key."""
    counts: Counter[Any] = Counter()

    def note(key: Any, module: nn.Module, args: Any) -> None:
        counts[key] += 1

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(module.register_forward_pre_hook(functools.partial(note, key)).remove)
        yield counts


def _bits(x: Tensor) -> int:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(x.element_size(), torch.int64)
    return int(x.reshape(-1).view(integers).sum())


@contextmanager
def _slow_path() -> Iterator[None]:
    """Without the fused forward of nn.TransformerEncoderLayer, in which no activation shows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def unshared(network: nn.Module) -> Iterator[dict[nn.Module, Place]]:
    """Where every activation and gate is registered; one that is registered repeatedly has copies meanwhile."""
    saved = Snapshot(network, values=False)
    places: dict[nn.Module, Place] = {}
    for parent in outside(network):
        for name, child in parent._modules.items():
            if child is not None and kind_of(child):
                if child in places:
                    original, child = child, copy.deepcopy(child)
                    parent._modules[name] = child
                    if original in OWN.get():
                        OWN.get()[child] = OWN.get()[original]
                places[child] = parent, name
    try:
        yield places
    finally:
        saved.restore()
