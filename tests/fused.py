"""The units that have a fused kernel, with numbers that show a mix-up, and how the two paths are compared."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import make_factory
from torch import Tensor, nn

from activations.acon import ACONC, MetaACON
from activations.apl import APL
from activations.base import Activation
from activations.ditac import DiTAC
from activations.dyrelu import DyReLU
from activations.frelu import DwConvReLU, FReLU
from activations.gct import GCT
from activations.kernels import library
from activations.npwlu import NPWLU
from activations.pau import PAU
from activations.pelu import PELU
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.se_relu import SEReLU
from activations.sine import Sine
from activations.snake import Snake
from activations.srelu import SReLU
from activations.swish import Swish
from activations.tanh_exp import TanhExp
from activations.torch_fused import ELU
from activations.torch_nn import ReLU

if not library.described().startswith("fused"):
    pytest.skip(library.described(), allow_module_level=True)

Factory = Callable[..., Activation]
POINTWISE: dict[str, Factory] = {
    "acon_c": ACONC,
    "apl": APL,
    "apl one hinge": partial(APL, hinges=1),
    "ditac": DiTAC,
    "ditac wide": partial(DiTAC, a=-9.0, b=7.0, cells=20, init_var=0.5),
    "ditac leaky": partial(DiTAC, form="leaky", a=0.0, b=3.0),
    "ditac leaky to 0": partial(DiTAC, form="leaky", a=-3.0, b=0.0),
    "ditac leaky around 0": partial(DiTAC, form="leaky", a=-1.0, b=2.0),
    "ditac ge": partial(DiTAC, form="ge", a=0.0, b=3.0),
    "ditac of z": partial(DiTAC, gelu_of="z"),
    "ditac free ends": partial(DiTAC, zero_boundary=False, init_smooth=0.3, init_var=0.4),
    "ditac inf": partial(DiTAC, form="inf", init_var=0.4),
    "npwlu": NPWLU,
    "npwlu per channel": partial(NPWLU, per_channel=True, intervals=3),
    "pau": PAU,
    "pelu": PELU,
    "pelu per channel": partial(PELU, shared=False),
    "prelu": PReLU,
    "prelu shared": partial(PReLU, shared=True),
    "pwlu": PWLU,
    "pwlu per channel": partial(PWLU, per_channel=True),
    "sine": Sine,
    "snake": Snake,
    "snake per channel": partial(Snake, per_channel=True),
    "srelu": SReLU,
    "swish 1.7": partial(Swish, beta=1.7),
    "swish per channel": partial(Swish, trainable=True, per_channel=True),
    "tanh_exp": TanhExp,
}
# recent units as their yaml makes them
POINTWISE |= {
    name: make_factory(*name.split())
    for name in (
        "finer activation.detach=false",
        "fourier",
        "gaussian activation.scale=0.7",
        "golu",
        "group_rational",
        "group_rational activation.groups=3",
        "hermite",
        "leaky_relu_squared",
        "logish",
        "poly_relu",
        "relu_squared",
        "serf",
        "smu",
        "staf activation.omega=3",
        "star_relu",
        "xielu",
    )
}
GATED: dict[str, Factory] = {
    "dyrelu a": partial(DyReLU, form="A"),
    "dyrelu a of one": partial(DyReLU, form="A", pieces=1),
    "dyrelu b": DyReLU,
    "dyrelu b of one": partial(DyReLU, pieces=1),
    "dyrelu b of three": partial(DyReLU, pieces=3),
    "dyrelu c": partial(DyReLU, form="C", temperature=1.0),
    "dyrelu c of three": partial(DyReLU, form="C", pieces=3),
    "gct": partial(GCT, base=ReLU),
    "gct l1": partial(GCT, base=ReLU, mode="l1"),
    "gct l1 after_relu": partial(GCT, base=ReLU, mode="l1", after_relu=True),
    "gct before": partial(GCT, base=ReLU, position="before"),
    "gct before l1": partial(GCT, base=ReLU, position="before", mode="l1"),
    "gct alone": GCT,
    "gct alone sum": partial(GCT, mode="l1", after_relu=True),
    "gct elu": partial(GCT, base=ELU, position="before"),
    "meta_acon": MetaACON,
    "se_relu": SEReLU,
}
WINDOWS: dict[str, Factory] = {
    "frelu": FReLU,
    "frelu light": partial(FReLU, light=True),
    "dwconv_relu": DwConvReLU,
    "dwconv_relu light": partial(DwConvReLU, light=True),
}
UNITS = POINTWISE | GATED | WINDOWS
SHAPES = [
    (5, 3),
    (150, 70),
    (4, 17, 9),
    (1, 3, 1),
    (2, 37, 13),
    (3, 6, 5, 4),
    (5, 33, 1, 1),
    (5, 1, 7, 3),
    (23, 3, 7, 7),
    (2, 16, 16, 16),
    (1, 70, 9, 11),
    (2, 5, 20, 33),
    (1, 2, 3, 1100),
    (2, 33, 40, 41),
    (2, 3, 2, 3, 2),
]
# for windows: one pixel, one row, one column; several planes in one vector, with a last group that is not full; several runs
WINDOW_SHAPES = [
    (5, 19, 1, 1),
    (3, 4, 1, 9),
    (3, 2, 9, 1),
    (33, 2, 4, 4),
    (4, 35, 8, 8),
    (2, 6, 15, 16),
    (1, 16, 40, 100),
]
LAYOUTS = ["planes", "rows", "transposed", "gaps", "expanded"]
FULL = ["planes", "rows"]
IMAGES = (3, 6, 5, 4)
TOLERANCES = {torch.bfloat16: 0.02, torch.float32: 1e-4, torch.float64: 1e-11}


def make(
    name: str, channels: int = 6, dtype: torch.dtype = torch.float64, *, train: bool = True, **hyper: int
) -> Activation:
    """A unit in which all numbers are different: no gate saturates, no flow of DiTAC is steep, knots stay in order."""
    torch.manual_seed(0)
    unit = UNITS[name](channels, **hyper).to(dtype).train(train)
    for parameter in unit.parameters():
        if name in POINTWISE:
            parameter.data += 0.2 * torch.rand(parameter.shape)
        else:
            nn.init.uniform_(parameter, -0.5, 0.7)
    for key, buffer in unit.named_buffers():
        if name in WINDOWS and "running" in key:
            nn.init.uniform_(buffer, 0.2, 1.0)
    return unit


def arranged(x: Tensor, layout: str) -> Tensor:
    """The values of ``x``, or of its first sample for ``expanded``, laid out in memory in another way."""
    match layout:
        case "rows":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        case "transposed":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        case "gaps":
            return torch.stack([x, x], -1)[..., 0]
        case "expanded":
            return x[:1].expand(x.shape)
    return x.contiguous()


def draw(
    shape: tuple[int, ...] = IMAGES, dtype: torch.dtype = torch.float64, layout: str = "planes", seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + len(shape))
    return arranged(torch.randn(shape, dtype=dtype, generator=generator), layout)


def nodes(y: Tensor) -> list[Any]:
    """The nodes of the graph of ``y``."""
    seen: dict[Any, None] = {}
    todo = [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen[node] = None
            todo += [parent for parent, _ in node.next_functions]
    return list(seen)


def is_kernel(node: Any) -> bool:
    """Whether a node of a graph is that of a kernel."""
    function = getattr(type(node), "_forward_cls", None)
    return function is not None and function.__module__.startswith("activations.kernels.")


def is_fused(y: Tensor) -> bool:
    """Whether a kernel's node is in the graph of ``y``."""
    return any(map(is_kernel, nodes(y)))


def run(unit: Activation, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The output, the gradients of x and of the parameters, and the running statistics after it."""
    x = x.detach().requires_grad_()
    y = unit(x)
    names, parameters = zip(("x", x), *unit.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, parameters, g, materialize_grads=True)
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True)), **dict(unit.named_buffers())}


def twice(function: Callable[[Activation], dict[str, Tensor]], unit: Activation) -> list[dict[str, Tensor]]:
    """What a function finds for a unit by the kernel and, for a copy of it, by the reference."""
    other = copy.deepcopy(unit)
    fused = function(unit)
    with library.using("reference"):
        return [fused, function(other)]


def assert_close(unit: Activation, fused: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """In relation to the largest number of each tensor, and to 1; NaN and infinities at the same places."""
    assert fused.keys() == reference.keys()
    for key, expected in reference.items():
        single = expected.dtype == torch.float32
        tolerance = TOLERANCES.get(expected.dtype, 0)
        scale = max(1.0, expected.abs().nan_to_num(posinf=0, neginf=0).max().item())
        close = {"rtol": tolerance, "atol": tolerance * scale}
        if isinstance(unit, DiTAC) and key in ("y", "x"):
            # GELU outside [a, b] is a line over a step of 1/512; in float32 the reference's own slopes are differences of
            # heights in a table and have that many digits
            close["atol"] += scale * {"y": 4e-7, "x": 8e-4 + 2e-3 * single}[key]
        if isinstance(unit, FReLU) and key.endswith(("weight", "bias")):
            # Behind a norm terms cancel; those of the bias, whose gradient is 0, are as large as those of the weight.
            largest = max(value.abs().max().item() for name, value in reference.items() if "weight" in name)
            close["atol"] *= (reference["y"].numel() / unit.num_features) ** 0.5 * max(1.0, largest / scale)
        torch.testing.assert_close(
            fused[key], expected, **close, equal_nan=True, msg=lambda m, key=key: f"{key}: {m}"
        )


def compare(unit: Activation, x: Tensor, g: Tensor) -> None:
    assert_close(unit, *twice(lambda one: run(one, x, g), unit))


def takes(name: str, shape: tuple[int, ...]) -> bool:
    return name not in WINDOWS or len(shape) == 4
