"""The fused kernels against the reference, and the rule by which one or the other is taken."""

import copy
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PROCESS, ROOT, make_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from activations.acon import ACONC, MetaACON
from activations.apl import APL
from activations.base import Activation
from activations.ditac import DiTAC
from activations.dyrelu import DyReLU
from activations.frelu import DwConvReLU, FReLU
from activations.gct import GCT
from activations.kernels import build, library
from activations.kernels.tabulated import warped
from activations.npwlu import NPWLU
from activations.pau import PAU
from activations.pelu import PELU
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.se_relu import SEReLU
from activations.sine import Sine
from activations.snake import Snake
from activations.srelu import SReLU
from activations.swish import MIN_FUSED, Swish
from activations.tanh_exp import TanhExp
from activations.torch_nn import ReLU

if not library.described().startswith("fused"):
    pytest.skip(library.described(), allow_module_level=True)

UNITS: dict[str, Callable[..., Activation]] = {
    "acon_c": ACONC,
    "apl": APL,
    "apl one hinge": lambda c, **kw: APL(c, hinges=1, **kw),
    "ditac": DiTAC,
    "ditac wide": lambda c, **kw: DiTAC(c, a=-9.0, b=7.0, cells=20, init_var=0.5, **kw),
    "ditac leaky": lambda c, **kw: DiTAC(c, form="leaky", a=0.0, b=3.0, **kw),
    "ditac leaky to 0": lambda c, **kw: DiTAC(c, form="leaky", a=-3.0, b=0.0, **kw),
    "ditac leaky around 0": lambda c, **kw: DiTAC(c, form="leaky", a=-1.0, b=2.0, **kw),
    "ditac ge": lambda c, **kw: DiTAC(c, form="ge", a=0.0, b=3.0, **kw),
    "ditac of z": lambda c, **kw: DiTAC(c, gelu_of="z", **kw),
    "ditac free ends": lambda c, **kw: DiTAC(c, zero_boundary=False, init_smooth=0.3, init_var=0.4, **kw),
    "ditac inf": lambda c, **kw: DiTAC(c, form="inf", init_var=0.4, **kw),
    "dwconv_relu": DwConvReLU,
    "dyrelu a": lambda c, **kw: DyReLU(c, form="A", **kw),
    "dyrelu b": lambda c, **kw: DyReLU(c, form="B", **kw),
    "dyrelu b of three": lambda c, **kw: DyReLU(c, form="B", pieces=3, **kw),
    "dyrelu c": lambda c, **kw: DyReLU(c, form="C", **kw),
    "frelu": FReLU,
    "frelu light": lambda c, **kw: FReLU(c, light=True, **kw),
    "frelu at relu": lambda c, **kw: FReLU(c, gamma=0.0, **kw),
    "gct": lambda c, **kw: GCT(c, base=ReLU, **kw),
    "gct alone": GCT,
    "gct before": lambda c, **kw: GCT(c, base=ReLU, position="before", **kw),
    "gct l1": lambda c, **kw: GCT(c, base=ReLU, mode="l1", **kw),
    "gct l1 after_relu": lambda c, **kw: GCT(c, base=ReLU, mode="l1", after_relu=True, **kw),
    "meta_acon": MetaACON,
    "npwlu": NPWLU,
    "npwlu per channel": lambda c, **kw: NPWLU(c, per_channel=True, intervals=3, **kw),
    "pau": PAU,
    "pelu": PELU,
    "pelu per channel": lambda c, **kw: PELU(c, shared=False, **kw),
    "prelu": PReLU,
    "prelu shared": lambda c, **kw: PReLU(c, shared=True, **kw),
    "pwlu": PWLU,
    "pwlu per channel": lambda c, **kw: PWLU(c, per_channel=True, **kw),
    "sine": Sine,
    "se_relu": SEReLU,
    "snake": Snake,
    "snake per channel": lambda c, **kw: Snake(c, per_channel=True, **kw),
    "srelu": SReLU,
    "swish 1.7": lambda c, **kw: Swish(c, beta=1.7, **kw),
    "swish per channel": lambda c, **kw: Swish(c, trainable=True, per_channel=True, **kw),
    "tanh_exp": TanhExp,
}
# and units as their yaml makes them
UNITS |= {
    name: lambda c, name=name, **kw: make_factory(*name.split())(c, **kw)
    for name in (
        *(
            "finer activation.detach=false",
            "fourier",
            "gaussian activation.scale=0.7",
            "golu",
            "group_rational",
        ),
        *("group_rational activation.groups=3", "hermite", "leaky_relu_squared", "logish", "poly_relu"),
        *("relu_squared", "serf", "smu", "staf activation.omega=3", "star_relu", "xielu"),
    )
}
SHAPES = [
    (5, 3),
    (98, 50),
    (150, 70),
    (4, 17, 9),
    (23, 3, 7, 7),
    (3, 6, 5, 4),
    (2, 33, 1, 1),
    (1, 1, 7, 1),
    (2, 16, 16, 16),
    (1, 65, 2, 3),
    (2, 3, 2, 3, 2),
]
# whose outputs depend on a whole sample, or on all of them
COUPLED = ("dwconv", "dyrelu", "frelu", "gct", "meta", "se_")
# what GELU outside [a, b] may be off by: its line over a step of 1/512
OUTSIDE = {"y": 4e-7, "dx": 8e-4}


def shuffled(unit: Activation, seed: int, dtype: torch.dtype) -> Activation:
    """The unit with parameters that are all different."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in unit.parameters():
        with torch.no_grad():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return unit.to(dtype)


def run(unit: Activation, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    unit.zero_grad()
    y = unit(x)
    y.backward(g)
    assert x.grad is not None
    found = {"y": y.detach(), "dx": x.grad}
    return found | {name: p.grad for name, p in unit.named_parameters() if p.grad is not None}


def both(unit: Activation, x: Tensor, g: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By either path, running statistics among what is found."""
    other, found = copy.deepcopy(unit), []
    for mode, one in (("auto", unit), ("reference", other)):
        with library.using(mode):
            found.append(run(one, x, g) | dict(one.named_buffers()))
    return found[0], found[1]


def compare(name: str, unit: Activation, x: Tensor, g: Tensor) -> None:
    """Fused against reference; sums of many terms are as exact as the reference's own."""
    fused, reference = both(unit, x, g)
    assert fused.keys() == reference.keys()
    single = x.dtype == torch.float32
    for key, expected in reference.items():
        scale = g.abs().max().item() if key != "y" else 1.0
        close = {"rtol": 2e-4, "atol": 2e-4 * scale} if single else {"rtol": 1e-9, "atol": 1e-9 * scale}
        if name.startswith("ditac") and key in OUTSIDE:
            # and single precision's slopes of a table are differences of its heights: the reference's digits, not ours
            close["atol"] += (OUTSIDE[key] + (2e-3 if single and key == "dx" else 0)) * scale
        if key not in ("y", "dx"):
            close["atol"] *= 1 + x.numel() ** 0.5 * (1 + x.abs().nan_to_num(posinf=0, neginf=0).max().item())
        torch.testing.assert_close(fused[key], expected, **close, equal_nan=True)


def arranged(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


@pytest.mark.parametrize("name", UNITS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_fused_is_the_reference(name: str, data: st.DataObject) -> None:
    only_images = name.startswith(("frelu", "dwconv"))
    shape = data.draw(st.sampled_from([s for s in SHAPES if len(s) == 4 or not only_images]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "transposed", "gaps", "expanded"]))
    channel_dim = data.draw(st.sampled_from([1, -1]))
    training = data.draw(st.booleans())
    scale = data.draw(st.sampled_from([0.1, 1.0, 5.0]))
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    unit = shuffled(UNITS[name](shape[channel_dim], channel_dim=channel_dim), seed, dtype)
    unit.train(training or math.prod(shape) == shape[channel_dim])
    x = arranged(scale * torch.randn(shape, generator=generator, dtype=dtype), layout)
    g = torch.randn(shape, generator=generator, dtype=dtype)
    compare(
        name, unit, x, arranged(g, data.draw(st.sampled_from(["contiguous", "channels_last", "expanded"])))
    )


@pytest.mark.parametrize("size", [MIN_FUSED - 1, MIN_FUSED])
def test_swish_of_beta_one_is_fused_where_elements_are_many(size: int) -> None:
    x = torch.linspace(-20, 20, size).view(1, size)
    y = Swish(size)(x.requires_grad_())
    assert ("Pointwise" in type(y.grad_fn).__name__) == (size == MIN_FUSED)
    compare("swish", Swish(size), x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 15, 17, 30, 31, 62, 63, 100, 1023, 4096])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tables_of_any_size(segments: int, per_channel: bool, layout: str) -> None:
    unit = shuffled(PWLU(5, segments=segments, per_channel=per_channel), 0, torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, g = (2 * torch.randn(3, 5, 21, 19, generator=generator, dtype=torch.float64) for _ in range(2))
    compare("pwlu", unit, arranged(x, layout), arranged(g, layout))
    compare("pwlu", unit.float(), arranged(x, layout).float(), arranged(g, layout).float())


@pytest.mark.parametrize("size", [2, 3, 17, 65, 256, 4096])
def test_ditac_with_tables_of_any_size(size: int) -> None:
    torch.manual_seed(0)
    unit = DiTAC(4, table_size=size).double()
    x = torch.cat(
        [2 * torch.randn(300, 4), torch.tensor([[-0.5, 2.0, -6.0, 6.0], [-7.0, 7.0, 0.0, 1e4]])]
    ).double()
    compare("ditac", unit, x, torch.randn(x.shape).double())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_flow_between_any_ends(data: st.DataObject) -> None:
    """Values and gradients of T at points from end to end, the ends' own included."""
    cells, points = data.draw(st.integers(2, 20)), data.draw(st.integers(2, 300))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    scale = data.draw(st.sampled_from([0.0, 1e-9, 0.03, 0.3, 1.0, 3.0]))
    ends = torch.tensor(data.draw(st.sampled_from([(0.0, 1.0), (-0.3, 1.7), (0.21, 0.83), (-2.0, 1.0)])))
    velocity = scale * torch.randn(cells + 1, generator=generator, dtype=torch.float64)
    g = torch.randn(points, generator=generator, dtype=torch.float64)
    inputs = [ends.double().requires_grad_(), velocity.requires_grad_()]
    found = {}
    for mode in library.MODES:
        with library.using(mode):
            heights = warped(*inputs, points)
            found[mode] = heights, *torch.autograd.grad(heights, inputs, g)
    for got, expected in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * max(1, expected.abs().max().item()))
    single = warped(*(value.detach().float() for value in inputs), points)
    torch.testing.assert_close(
        single.double(), found["auto"][0], rtol=0, atol=1e-5 * (1 + found["auto"][0].abs().max().item())
    )


def test_the_flow_can_be_differentiated_twice() -> None:
    ends, velocity = torch.tensor([-0.1, 1.2]).double(), 0.3 * torch.linspace(-1, 1.4, 6).double().sin()
    inputs = ends.requires_grad_(), velocity.requires_grad_()
    torch.autograd.gradgradcheck(lambda *given: warped(*given, 7), inputs)


@pytest.mark.parametrize("name", [name for name in UNITS if not name.startswith(COUPLED)])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 1e4, -1e4, 1e30, -1e30, math.inf, -math.inf, math.nan])
def test_extreme_values(name: str, value: float) -> None:
    """In y and in the gradient: what is not finite in the one is not finite in the other, and the rest is the same."""
    unit = shuffled(UNITS[name](3), 0, torch.float64)
    x = torch.linspace(-2, 2, 3 * 35).double().view(7, 3, 5)
    x[2, 1, 3] = value
    fused, reference = both(unit, x, torch.ones_like(x))
    bad = torch.zeros_like(x, dtype=torch.bool)
    bad[2, 1, 3] = True
    for key in ("y", "dx"):
        torch.testing.assert_close(
            fused[key][~bad], reference[key][~bad], rtol=1e-9, atol=2e-3 if "ditac" in name else 1e-9
        )
    got, expected = fused["y"][bad], reference["y"][bad]
    lost = name.startswith(("finer", "fourier", "group_rational", "hermite", "pau", "sine", "snake", "staf"))
    if abs(value) != 1e30 or not lost:  # no digits are left in these
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert (
        fused["dx"][bad].isfinite().all()
        or not reference["dx"][bad].isfinite().all()
        or not math.isfinite(value)
    )


@pytest.mark.parametrize("value", [1e38, -1e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["pwlu", "pwlu channel", "pwlu of 100", "ditac", "ditac z"])
def test_parameters_out_of_all_bounds_lead_nowhere_else(name: str, layout: str, value: float) -> None:
    """A run that diverges must end with NaN, not with a fault of memory."""
    makes = {
        "pwlu": lambda: PWLU(20),
        "pwlu channel": lambda: PWLU(20, per_channel=True),
        "pwlu of 100": lambda: PWLU(20, segments=100),
        "ditac": lambda: DiTAC(20),
        "ditac z": lambda: DiTAC(20, gelu_of="z", zero_boundary=False),
    }
    x = (
        torch.randn(3, 20, 9, 9)
        .contiguous(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))
        .requires_grad_()
    )
    for at in range(6):
        unit = makes[name]()
        (parameter,) = unit.parameters()
        with torch.no_grad():
            parameter.view(-1)[at - 2] = value
        y = unit(x)
        y.sum().backward()
        if math.isnan(value) and (at in (2, 3) or name.startswith("ditac")):
            assert y[:, 0].isnan().any()
        assert y.shape == x.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "name", ["pwlu", "pwlu per channel", "prelu", "swish per channel", "ditac", "pau", "gct", "dyrelu b"]
)
def test_ten_million_elements_sum_to_six_digits(name: str, layout: str) -> None:
    """The gradients of float32 parameters against float64 on the same numbers."""
    torch.manual_seed(0)
    unit = UNITS[name](64)
    if (
        "pwlu" not in name
    ):  # float32 cannot hold just any knots, and where sums nearly cancel that is what one would see
        unit = shuffled(unit, 0, torch.float32)
    x = arranged(torch.randn(160, 64, 32, 31), layout)
    g = arranged(torch.randn(x.shape) + 0.3, layout)
    single = run(unit, x, g)
    double = run(unit.double(), x.double(), g.double())
    for parameter in single.keys() - {"y", "dx"}:
        error = (single[parameter] - double[parameter]).abs().max() / double[parameter].abs().max()
        assert error < 1e-6, f"{parameter}: {error:.1e}"


@pytest.mark.parametrize("name", UNITS)
def test_saves_its_input_and_nothing_else_of_its_size(name: str) -> None:
    unit = UNITS[name](64)
    x = torch.randn(32, 64, 20, 20, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unit(x)
    saved.pop(x.untyped_storage().data_ptr())
    assert max(saved.values(), default=0) < 0.05 * x.nbytes  # parameters and their tables


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["pwlu", "pwlu per channel", "ditac", "prelu", "pau", "dyrelu c", "gct", "frelu", "frelu light"]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_threads_same_bits(name: str, threads: int, layout: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    unit = UNITS[name](20)
    x, g = (arranged(torch.randn(16, 20, 24, 24), layout) for _ in range(2))
    first = run(unit, x, g)
    for _ in range(3):
        again = run(unit, x, g)
        assert all(torch.equal(first[key], again[key]) for key in first)
    torch.set_num_threads(1)
    alone = run(unit, x, g)
    for key in first:
        torch.testing.assert_close(first[key], alone[key], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_several_callers_at_once(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    units = [UNITS[name](8) for name in ("pwlu", "ditac", "swish per channel", "pwlu per channel")]
    inputs = [torch.randn(32, 8, 20, 20) for _ in units]
    expected = [run(unit, x, x) for unit, x in zip(units, inputs, strict=True)]

    def work(i: int) -> bool:
        torch.set_num_threads(threads)
        found = [run(units[i], inputs[i], inputs[i]) for _ in range(20)]
        return all(torch.equal(one[key], expected[i][key]) for one in found for key in one)

    with ThreadPoolExecutor(len(units)) as pool:
        assert all(pool.map(work, range(len(units))))


def test_the_child_of_a_fork_computes_alone() -> None:
    """torch's threads do not come along; a parallel loop of its own would hang there."""
    code = """
import os, sys, torch
from activations.pwlu import PWLU
torch.set_num_threads(2)
x = torch.randn(64, 8, 32, 32)
unit = PWLU(8)
def total():
    unit.zero_grad()
    unit(x).sum().item()
    unit(x).backward(x)
    return unit.curve.grad.clone()
before = total()
child = os.fork()
if child == 0:
    from activations.kernels import library
    y = torch.empty_like(x)
    forward = library.kernels("pwlu", x.dtype)[0]
    forward(1, 1, x.numel(), 2, x.data_ptr(), y.data_ptr(), unit.curve.data_ptr(), 16, 1e-6)
    os._exit(0 if library.described().startswith("fused") else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or not torch.allclose(before, total()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], **PROCESS | {"timeout": 60, "text": True}
    )
    assert done.returncode == 0, done.stderr


class _Samples:
    def __init__(self) -> None:
        self.unit = PWLU(8)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.unit(torch.full((8, 64, 64), float(i))[None])[0]


# python 3.12 warns of any fork beside threads
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_works_in_the_workers_of_a_data_loader() -> None:
    samples = _Samples()
    samples.unit(torch.randn(32, 8, 32, 32))
    for i, batch in enumerate(DataLoader(samples, num_workers=2)):  # type: ignore[arg-type, var-annotated]
        torch.testing.assert_close(batch, samples[i][None])


def small(name: str = "pwlu") -> tuple[Activation, Tensor]:
    torch.manual_seed(0)
    return UNITS[name](6).double(), torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)


def test_the_graph_can_be_used_twice_with_hooks_and_checkpoints() -> None:
    unit, x = small()
    seen = []
    x.register_hook(lambda g: seen.append("x"))
    next(unit.parameters()).register_hook(lambda g: seen.append("left"))
    y = unit(x)
    one = torch.autograd.grad(y.sum(), (x, *unit.parameters()), retain_graph=True)
    two = torch.autograd.grad(y.sum(), (x, *unit.parameters()))
    three = torch.autograd.grad(checkpoint(unit, x, use_reentrant=False).sum(), (x, *unit.parameters()))
    assert sorted(set(seen)) == ["left", "x"]
    for a, b, c in zip(one, two, three, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


def test_frozen_parameters_and_inputs_get_no_gradient() -> None:
    unit, x = small()
    unit.requires_grad_(False)
    unit(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in unit.parameters())
    unit.requires_grad_(True)
    unit(x.detach()).sum().backward()
    assert all(p.grad is not None for p in unit.parameters())
    with torch.no_grad():
        assert not unit(x).requires_grad


@pytest.mark.parametrize("name", UNITS)
def test_third_derivatives(name: str) -> None:
    """However often: a backward that is differentiated goes through the reference."""
    unit, x = small(name)
    unit.eval()
    if name.startswith(("frelu", "dwconv")):
        x = x.detach()[..., None].requires_grad_()
    results = []
    for mode in ("auto", "reference"):
        with library.using(mode):
            value = unit(x).sin().sum()
            for _ in range(3):
                if not value.requires_grad:  # a straight line's
                    break
                (value,) = torch.autograd.grad(value, x, create_graph=True)
                value = value.square().sum()
            results.append(value.detach())
    torch.testing.assert_close(*results, rtol=2e-2 if "ditac" in name else 1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["pwlu", "prelu", "ditac", "dyrelu b", "gct", "frelu"])
def test_batched_gradients(name: str) -> None:
    torch.manual_seed(0)
    unit, x = UNITS[name](3).double().eval(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    one_by_one, at_once = jacobian(unit, x), jacobian(unit, x, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-6, atol=2e-3 if name == "ditac" else 1e-9)


def fused_calls(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often ``work`` went to a fused kernel."""
    count = 0
    original = library.fusable

    def note(*args: Tensor) -> bool:
        nonlocal count
        found = original(*args)
        count += found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(library, "fusable", note)
        work()
    return count


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own
def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = PReLU(6)
    x = torch.randn(4, 6, 5)

    def calls(work: Callable[[], object]) -> int:
        return fused_calls(work, monkeypatch)

    assert calls(lambda: unit(x)) == 1
    assert calls(lambda: unit(x[..., ::2])) == 1
    assert calls(lambda: unit.double()(x.double())) == 1
    unit.float()
    assert calls(lambda: unit(x.half())) == 0
    assert calls(lambda: unit(x[:0])) == 0
    assert calls(lambda: torch.func.vmap(unit)(x[:, None])) == 0
    assert calls(lambda: torch.func.grad(lambda x: unit(x).sum())(x)) == 0
    assert calls(lambda: torch.func.jvp(unit, (x,), (x,))) == 0
    assert calls(lambda: torch.export.export(unit, (x,))) == 0
    assert calls(lambda: unit.to("meta")(x.to("meta"))) == 0
    with library.using("reference"):
        assert calls(lambda: PReLU(6)(x)) == 0
        with library.using("auto"):
            assert calls(lambda: PReLU(6)(x)) == 1
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert calls(lambda: PReLU(6)(torch.randn(4, 6, 5))) == 0


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_tracing_sees_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, x = PReLU(6), torch.randn(4, 6, 5)
    assert fused_calls(lambda: torch.jit.trace(unit, x, check_trace=False), monkeypatch) == 0


def test_a_thread_that_forces_nothing_is_told_too() -> None:
    """The switch is the process's, as torch's flags are."""
    said = []
    with library.using("reference"):
        thread = threading.Thread(target=lambda: said.append(library.described()))
        thread.start()
        thread.join()
    assert said == ["reference (asked for)"]


def test_refuses_an_unknown_mode() -> None:
    with (
        pytest.raises(ValueError, match="kernels='fast': must be one of auto, reference"),
        library.using("fast"),
    ):
        pass


@pytest.mark.parametrize(("value", "expected"), [("reference", "reference (asked for)"), ("auto", "fused")])
def test_the_environment_switches(value: str, expected: str) -> None:
    done = python(
        "from activations.kernels import library; print(library.described())", ACTBENCH_KERNELS=value
    )
    assert done.stdout.startswith(expected), done.stderr


def test_a_wrong_word_in_the_environment_is_one_line(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "run.py", "runner=smoke", f"outputs={tmp_path}"],
        **PROCESS | {"env": PROCESS["env"] | {"ACTBENCH_KERNELS": "fast"}},
    )
    assert done.returncode == 1
    assert done.stderr == "actbench: ACTBENCH_KERNELS='fast': must be one of auto, reference\n"


def test_everything_works_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, x = small()
    expected = run(unit, x, torch.ones_like(x))
    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library, "_about", "fused_avx2.so was not built")
    assert not library.available()
    assert library.described() == "reference (fused_avx2.so was not built)"
    found = run(unit, x, torch.ones_like(x))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])


@pytest.mark.skipif(not (ROOT / "activations/kernels/fused_avx2.so").exists(), reason="no x86 machine")
@pytest.mark.skipif(library.described() != "fused avx512", reason="this processor uses it anyway")
def test_the_variant_for_older_processors_passes_as_well() -> None:
    """torch's own switch: all of this file, and the reference vectors, with half as wide registers."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    select = "fused_is_the_reference or tables_of_any_size or extreme or agrees_with"
    files = ["tests/test_kernels.py", "tests/test_parity.py"]
    environment = PROCESS["env"] | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([*command, "-k", select, *files], **PROCESS | {"env": environment})
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_can_be_built_where() -> None:
    assert (
        set(build.variants("x86_64", "Linux"))
        == set(build.variants("AMD64", "Windows"))
        == {"avx2", "avx512"}
    )
    assert set(build.variants("arm64", "Darwin")) == {"neon"}
    assert build.variants("riscv64", "Linux") == build.variants("x86_64", "FreeBSD") == {}


def test_the_build_fails_loudly_without_its_compiler(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(tmp_path)
    assert not list(tmp_path.glob("*.so"))


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], **PROCESS | {"env": os.environ | environment})


def test_compiled_units_use_the_reference_without_graph_breaks() -> None:
    unit, x = nn.Sequential(PWLU(6), DiTAC(6)), torch.randn(4, 6, 5)
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    with library.using("reference"):
        expected = unit(x)
    torch.testing.assert_close(compiled(x), expected)
