"""Compile every Triton kernel for compute capability 9.0, which needs no GPU: ``python -m tests.triton_compiles``.

Run by test_triton.py in a process of its own, as the interpreter and the compiler do not work in one. Prints the number of
kernels, or raises what the compiler raises. Arguments are specialized as they are on a GPU: by dtype, and by which numbers
are 1 or a multiple of 16.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from activations.kernels.gpu import ditac, gate, launch, pointwise, window
from activations.kernels.signatures import ROWS, VARYING_ROWS
from activations.kernels.tabulated import Form

# Elements of the torch_fused units, which stay torch's on a GPU.
OF_TORCH = ("elu", "gelu_tanh", "mish", "softplus", "tanh")
compiled: list[Any] = []


class Target:
    """A GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(function: JITFunction, *arguments: Any, **settings: Any) -> None:
    compiled.append(run(function, *arguments, **settings | {"warmup": True}))


def of_pointwise(x: Tensor, channels: int) -> None:
    for name, counts in {
        **ROWS,
        **{name: [2 + n for n in rows] for name, rows in VARYING_ROWS.items()},
    }.items():
        if name not in OF_TORCH:
            parameters = [torch.ones(n, channels) if n > 1 else torch.ones(channels) for n in counts]
            pointwise.forward(name, 1, x, parameters)
            pointwise.backward(name, 1, x, x, parameters)
    for phase in ((), (torch.ones(()),)):
        curve = [torch.ones(channels, 21), *phase]
        pointwise.forward("pwlu", 1, x, curve, [1e-6])
        pointwise.backward("pwlu", 1, x, x, curve, [1e-6])


def of_ditac(x: Tensor) -> None:
    velocity = torch.zeros(11)
    for form, gelu_of in (("gelu", "x"), ("gelu", "z"), ("ge", "x"), ("leaky", "x")):
        unit = Form(form, gelu_of, -0.5, 2.0, 2048, 0.01)
        _, heights, rows = ditac.forward(unit, x, velocity)
        ditac.backward(unit, x, x, heights, rows, len(velocity))


def of_gates(x: Tensor, rows: bool) -> None:
    samples, channels, high, broad = x.shape
    memory = gate.Memory(samples, channels, high * broad, rows)
    down, map = torch.ones(samples, channels), torch.ones(samples, high * broad)
    of_channel, attention = torch.ones(1, channels, 1), torch.ones(channels)
    statistics = gate.identity, gate.absolute, gate.square, gate.rectified, gate.rectified_square
    for statistic in statistics:
        gate.statistic(statistic, memory, x)
    gate.attended(memory, x, attention)
    one, per_sample = torch.ones(samples, channels, 1), torch.ones(samples, 1, 6)
    four = torch.ones(samples, channels, 4)
    cases = [("scale", [one]), ("scale_relu", [one]), ("relu_scale", [one]), ("lines", [four])]
    cases += [("lines", [per_sample]), ("acon", [one, of_channel, of_channel])]
    for (form, tensors), mapped in itertools.product(cases, (False, True)):
        back, factor = getattr(gate, f"{form}_backward"), map if mapped else None
        gate.forward(getattr(gate, form), memory, x, tensors, factor)
        gate.numbers_backward(back, memory, x, x, tensors, factor)
        maps = (map, map, attention) if mapped else None
        gate.input_backward(back, gate.square, memory, x, x, tensors, down, maps)
    gate.map_backward(gate.lines, memory, x, x, [four])
    gate.numbers_backward(gate.scale_backward, memory, map, x, [of_channel], None, g_is_map=True)


def of_windows(x: Tensor) -> None:
    channels = x.shape[1]
    one = torch.ones(channels)
    whole = [window.Branch(torch.ones(channels, 1, 3, 3), one, one, one)]
    light = [window.Branch(torch.ones(channels, 1, *size), None, one, one) for size in ((1, 3), (3, 1))]
    for branches, with_input in itertools.product((whole, light), (False, True)):
        norms = torch.ones(len(branches), 4, channels)
        window.statistics(x, branches)
        window.forward(x, branches, norms, with_input=with_input)
        window.backward(x, x, branches, norms, with_input=with_input, train=True)


if __name__ == "__main__":
    driver.set_active(Target())
    run, JITFunction.run = JITFunction.run, compile_only
    launch.INTERPRETED = 132
    planes = torch.empty(4, 64, 28, 28)
    rows = planes.contiguous(memory_format=torch.channels_last)
    for x in (planes, rows.bfloat16()):
        of_pointwise(x, 64)
        of_gates(x, rows=x is not planes)
        of_windows(x)
    of_pointwise(planes.half(), 1)
    of_pointwise(torch.empty(100, 7), 7)
    of_windows(torch.empty(3, 5, 1, 7))
    of_gates(torch.empty(3, 1, 1, 7), rows=False)
    of_ditac(planes)
    print(len(compiled))
