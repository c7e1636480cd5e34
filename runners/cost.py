"""What a network costs: parameters, floating point operations, and time and memory measured against ReLU's."""

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from activations.base import Activation
from activations.surgery.state import undisturbed
from activations.torch_private import TorchDispatchMode, prelu_kernel
from runners.optim import activation_modules, activation_parameters, make_optimizer, sites
from runners.step import forward, update
from tasks.base import Batch, Share, Task

WARM_UP = 2  # calls of everything before it is timed
LEAST, MOST = 3, 60  # rounds
BLOCK = 0.005  # seconds: shorter calls are repeated for so long, as the first one finds the other network in the caches
SHARE = 0.05  # of a cell's training that measuring its cost may take, where that is more than the setting's seconds

# element-wise, though torch does not tag them
UNTAGGED = (prelu_kernel, torch.ops.aten.hardswish)


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


@dataclass
class Measured:
    """A network that is measured: what a training step and an inference of one batch need.

    Weights stay as they were initialized, as the learning rate is 0. Activations with phases are in their last one, in which
    all but the first epochs are trained.

    Args:
        network: fresh, on the task's device; it is used up.
        task: gives loss and optimizer.
        batch: input and target.
        epochs: of the run, for the phases.
        autocast: makes the context in which the network is called.
        scaled: whether the loss is scaled, as for fp16.
    """

    network: nn.Module
    task: Task
    batch: Batch
    epochs: int
    autocast: Callable[[], AbstractContextManager[object]]
    scaled: bool = False

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.network, self.task.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.scaler = torch.amp.GradScaler(self.task.device.type, enabled=self.scaled)
        self.units = [*activation_modules(self.network).values()]
        self.share = Share(*self.batch, len(self.batch[0]))
        for epoch in range(self.epochs):
            for unit in self.units:
                unit.start_epoch(epoch, self.epochs)
            if epoch == 0:
                self.step()  # a phase may need statistics of the one before

    def loss(self) -> Tensor:
        """The loss of a forward pass in train mode."""
        self.network.train()
        return forward(self.network, self.task, self.units, self.share, self.autocast()).total

    def step(self) -> None:
        """A training step of the runner's, without data and metrics."""
        update(self.loss(), self.network, self.optimizer, self.scaler, self.task.recipe.clip_norm)

    def infer(self) -> None:
        """A forward pass in eval mode."""
        self.network.eval()
        with torch.inference_mode(), self.autocast():
            self.network(self.batch[0])

    def timed(self, call: Callable[[], object]) -> float:
        """Wall-clock seconds of a call on the task's device."""
        _wait(self.task.device)
        start = time.perf_counter()
        call()
        _wait(self.task.device)
        return time.perf_counter() - start

    def saved_bytes(self) -> int:
        """Return the bytes that the activations keep for backward."""
        inside = 0

        def move(by: int, *args: object) -> None:
            nonlocal inside
            inside += by

        units = sites(self.network).values()
        handles = [unit.register_forward_pre_hook(partial(move, 1)) for unit in units]
        handles += [unit.register_forward_hook(partial(move, -1)) for unit in units]
        size = saved_bytes(self.loss, self.network, counts=lambda: inside > 0)
        for handle in handles:
            handle.remove()
        return size

    def peak_bytes(self) -> int:
        """Return the most that torch allocates during a step, beyond weights and the optimizer's state."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.task.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.task.device)
            torch.cuda.reset_peak_memory_stats(self.task.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.task.device) - before
        return peak_bytes(self.step)


def saved_bytes(
    forward: Callable[[], object], module: nn.Module, *, counts: Callable[[], bool] = lambda: True
) -> int:
    """Return the bytes that a forward pass keeps for backward: distinct storages, but those of parameters and buffers.

    Args:
        forward: the pass, whose result is kept meanwhile.
        module: the one with these parameters and buffers.
        counts: called at each tensor that is kept; whether it counts.
    """
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    saved: list[Tensor] = []  # referenced, lest an address be used twice

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # With its graph, which holds it, it would never be freed.
        if counts():
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in saved)}
    del result
    return sum(size for address, size in storages.items() if address not in known)


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most that torch allocates on the CPU during a call, beyond what there was before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Kineto would report that there is no GPU.
    from torch.autograd.profiler import profile

    with profile(profile_memory=True, acc_events=True) as profiled:
        call()
    results = profiled.kineto_results
    assert results is not None
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def against_relu(unit: Measured, relu: Measured, *, seconds: float, steps: int) -> dict[str, float]:
    """Time and memory of a network relative to the same network with ReLU; see docs/records.md for the names.

    The two take turns in one process, so that what slows the machine slows both. In each round ReLU is timed twice, once
    as the base and once to show how much of a ratio is noise.

    Args:
        seconds: that may be spent on timing; or 5 % of the run, if that is more.
        steps: of the run.
    """
    device = unit.task.device
    calls = {
        "step": (unit.step, relu.step, relu.step),
        "inference": (unit.infer, relu.infer, relu.infer),
    }
    memory = {"saved_bytes": unit.saved_bytes(), "peak_memory_mb": unit.peak_bytes() / 1e6}
    repeats = dict.fromkeys(calls, 1)
    orders = itertools.cycle(itertools.permutations(range(3)))

    def turn() -> dict[str, tuple[float, ...]]:
        order = next(orders)
        times = {
            name: {i: _timed(three[i], repeats[name], device) for i in order} for name, three in calls.items()
        }
        return {name: tuple(found[i] for i in range(3)) for name, found in times.items()}

    with no_collection():
        for _ in range(WARM_UP):
            turn()
        trial = turn()
        repeats = {name: math.ceil(BLOCK / min(times)) for name, times in trial.items()}
        budget = max(seconds, SHARE * steps * trial["step"][0])
        rounds = min(MOST, int(budget / sum(sum(times) * repeats[name] for name, times in trial.items())))
        if rounds < LEAST:
            return memory
        turns = [turn() for _ in range(rounds)]
    found: dict[str, float] = {}
    floors = []
    for name in calls:
        times = [one[name] for one in turns]
        found[f"{name}_ms"] = 1e3 * statistics.median(own for own, _, _ in times)
        found[f"{name}_ratio"] = statistics.median(own / base for own, base, _ in times)
        floors.append(noise_floor([again / base for _, base, again in times]))
    return found | {"cost_floor": max(floors), "cost_rounds": rounds} | memory


def noise_floor(ratios: Sequence[float]) -> float:
    """How far from 1 the median of ``ratios``, whose true value is 1, may be by chance.

    The larger distance from 1 of the ends of the median's 95 % interval by order statistics; with fewer than six ratios
    that interval is their range.

    Examples:
        >>> round(noise_floor([0.98, 0.99, 1.0, 1.01, 1.05]), 3)
        0.05
    """
    ordered, n = sorted(ratios), len(ratios)
    below = itertools.accumulate(math.comb(n, i) / 2**n for i in range(n // 2))
    left_out = max(0, sum(chance <= 0.025 for chance in below) - 1)
    return max(abs(ordered[left_out] - 1), abs(ordered[n - 1 - left_out] - 1))


def _timed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of a call; on one CPU thread those that it ran, so that other processes on the core count less."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    _wait(device)
    start = clock()
    for _ in range(repeats):
        call()
    _wait(device)
    return (clock() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from running in the middle of what is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
