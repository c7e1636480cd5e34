"""The fused window of FReLU and DwConvReLU against the same in plain torch operations."""

import copy
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from activations.frelu import DwConvReLU, FReLU
from activations.kernels import library

pytestmark = pytest.mark.skipif(
    not library.described().startswith("fused"), reason=f"nothing to compare: {library.described()}"
)

UNITS: dict[str, Callable[..., FReLU]] = {
    "frelu": FReLU,
    "frelu_light": partial(FReLU, light=True),
    "dwconv_relu": DwConvReLU,
    "dwconv_relu_light": partial(DwConvReLU, light=True),
}
SHAPES = [
    (5, 19, 1, 1),
    (3, 4, 1, 9),
    (3, 2, 9, 1),
    (2, 3, 5, 7),
    (33, 2, 4, 4),  # several planes in one vector, and a last group that is not full
    (4, 35, 8, 8),
    (2, 6, 15, 16),
    (2, 5, 20, 33),
    (1, 16, 40, 100),  # more than one run of pixels in a row
    (1, 2, 3, 1100),
]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(params=UNITS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make(name: str, channels: int, dtype: torch.dtype = torch.float64, *, train: bool = True) -> FReLU:
    """A unit in which all numbers are different."""
    unit = UNITS[name](channels).to(dtype).train(train)
    torch.manual_seed(0)
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, -1.0, 1.2)
    for key, buffer in unit.named_buffers():
        if "running" in key:
            nn.init.uniform_(buffer, 0.2, 1.0)
    return unit


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, layout: str = "planes") -> Tensor:
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))
    return in_rows(x) if layout == "rows" else x


def in_rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def is_fused(y: Tensor) -> bool:
    """Whether the kernel's node is in the graph of ``y``."""
    nodes = [y.grad_fn]
    for node in nodes:
        nodes += [child for child, _ in node.next_functions if child is not None]
    return any("_Window" in node.name() for node in nodes)


def run(unit: FReLU, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The output, all gradients, and the statistics after it."""
    x = x.detach().requires_grad_()
    y = unit(x)
    assert is_fused(y) == library.described().startswith("fused")
    assert all(a == b or n == 1 for a, b, n in zip(y.stride(), x.stride(), x.shape, strict=True))
    names, parameters = zip(*unit.named_parameters(), strict=True)
    found = torch.autograd.grad(y, (x, *parameters), g)
    return {"y": y.detach(), **dict(zip(("x", *names), found, strict=True)), **dict(unit.named_buffers())}


def check(unit: FReLU, x: Tensor, g: Tensor, tolerance: float) -> None:
    """Both paths agree, in relation to the largest number of each tensor and to 1."""
    other = copy.deepcopy(unit)
    fused = run(unit, x, g)
    with library.using("reference"):
        expected = run(other, x, g)
    for key, value in expected.items():
        scale = 1.0
        if key.endswith(("weight", "bias")):  # sums over the batch, in which terms cancel
            scale = x.numel() ** 0.5 / x.shape[1] ** 0.5
        torch.testing.assert_close(
            fused[key],
            value,
            rtol=10 * tolerance,
            atol=10 * tolerance * scale,
            msg=lambda m, key=key: f"{key}: {m}",
        )


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_is_the_reference(name: str, dtype: torch.dtype, layout: str, train: bool) -> None:
    for shape in SHAPES:
        unit = make(name, shape[1], dtype, train=train)
        check(unit, draw(shape, dtype, layout), draw(shape, dtype).flip(0), TOLERANCE[dtype])


def test_with_channels_last_in_the_shape(name: str) -> None:
    unit = make(name, 5)
    unit.channel_dim = -1
    with library.using("reference"):
        expected = copy.deepcopy(unit)(draw((2, 6, 7, 5)))
    assert torch.allclose(unit(draw((2, 6, 7, 5))), expected)


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_statistics_far_from_zero(name: str, layout: str) -> None:
    """With a mean a thousand times the standard deviation of what the convolution gives."""
    unit = make(name, 3, torch.float32)
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.abs_().add_(0.5)
    # no border in the columns, one in the rows that are far from most
    x = (draw((2, 3, 64, 64), torch.float32, layout) + 300).requires_grad_()
    double = copy.deepcopy(unit).double()
    with library.using("reference"):
        expected = double(x.double())
    y = unit(x)
    assert is_fused(y)
    assert (y - expected).abs().max() < 1e-3
    for fused, exact in zip(unit.buffers(), double.buffers(), strict=True):
        assert torch.allclose(fused.double(), exact.double(), rtol=1e-5)


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_a_constant_channel(name: str, layout: str) -> None:
    x = torch.full((2, 3, 4, 5), 7.0, dtype=torch.float64)
    x[:, 1] = 0
    check(make(name, 3), in_rows(x) if layout == "rows" else x, draw((2, 3, 4, 5)), 1e-11)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_gamma_zero_and_ties(name: str, layout: str, train: bool) -> None:
    unit = make(name, 4, train=train)
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, 0.5)
    x = draw((3, 4, 6, 9), layout=layout).mul(2).round().div(2)
    x[0] = 0.5 if not unit.light else 1.0
    check(unit, x, draw((3, 4, 6, 9)).flip(1), 1e-12)
    for module in unit.modules():  # relu's tie, at 0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
    check(unit, x, draw((3, 4, 6, 9)).flip(1), 1e-12)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("width", [7, 18])
def test_what_is_not_finite_stays_where_it_is(name: str, layout: str, width: int, train: bool) -> None:
    for bad, place in itertools.product(
        (float("nan"), float("inf"), -float("inf")), ((0, 0, 0), (4, width - 1), (2, 3))
    ):
        x = draw((2, 3, 5, width), layout=layout)
        x[1, 1, place[0], place[1]] = bad
        g = draw((2, 3, 5, width)).flip(0)
        # infinities of both signs meet in sums whose order is not said: the norm's scale and the weights are positive
        unit = make(name, 3, train=train)
        for parameter in unit.parameters():
            nn.init.uniform_(parameter, 0.1, 1.2)
        other = copy.deepcopy(unit)
        fused = run(unit, x, g)
        with library.using("reference"):
            expected = run(other, x, g)
        for key in ("y", "x", *(key for key in expected if "running" in key)):
            torch.testing.assert_close(
                fused[key], expected[key], equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
            )
        for key, value in expected.items():  # other channels are not touched
            if value.ndim:
                dim = 1 if key in ("y", "x") else 0
                rest = torch.tensor([0, 2])
                assert fused[key].index_select(dim, rest).isfinite().all(), key


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_gradients_in_another_layout(name: str, layout: str) -> None:
    unit, x, g = make(name, 5), draw((2, 5, 6, 7), layout=layout), draw((2, 5, 6, 7)).flip(0)
    for other in (g.contiguous(), in_rows(g), g.mT.contiguous().mT, g[:1, :, :1].expand(2, 5, 6, 7)):
        check(copy.deepcopy(unit), x, other, 1e-12)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_other_layouts_are_copied(name: str, layout: str) -> None:
    x = draw((3, 5, 8, 9))
    x = {"transposed": x.mT, "sliced": x[:, :, ::2], "expanded": x[:, :, :1].expand(3, 5, 4, 9)}[layout]
    unit = make(name, 5)
    with library.using("reference"):
        expected = copy.deepcopy(unit)(x)
    y = unit(x)
    assert is_fused(y)
    assert torch.allclose(y, expected)


def test_only_some_gradients_wanted(name: str) -> None:
    x, g = draw((2, 3, 5, 6)), draw((2, 3, 5, 6)).flip(0)
    full = run(make(name, 3), x, g)
    names = ["x", *(key for key, _ in make(name, 3).named_parameters())]
    for wanted in [[key] for key in names] + [names[1:], names[::2]]:
        unit = make(name, 3)
        for key, parameter in unit.named_parameters():
            parameter.requires_grad_(key in wanted)
        leaf = x.clone().requires_grad_("x" in wanted)
        unit(leaf).backward(g)
        found = {"x": leaf.grad, **{key: p.grad for key, p in unit.named_parameters()}}
        for key in names:
            assert (found[key] is not None) == (key in wanted)
            assert key not in wanted or torch.equal(found[key], full[key])


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_gradcheck(name: str, layout: str, train: bool) -> None:
    unit = make(name, 2, train=train)
    x = draw((2, 2, 2, 3), layout=layout).requires_grad_()
    names, parameters = zip(*unit.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        y = torch.func.functional_call(unit, dict(zip(names, values, strict=True)), (x,))
        assert is_fused(y)
        return y

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_same_threads_same_bits(name: str, layout: str, threads: int) -> None:
    torch.set_num_threads(threads)
    # seven rows and three samples: parts begin amid a sample
    x, g = draw((3, 24, 21, 40), torch.float32, layout), draw((3, 24, 21, 40), torch.float32).flip(0)
    one, two = (run(make(name, 24, torch.float32), x, g) for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    check(make(name, 24, torch.float32), x, g, 2e-5)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_only_the_input_is_saved(name: str, train: bool) -> None:
    unit, x = make(name, 8, torch.float32, train=train), draw((4, 8, 16, 16), torch.float32).requires_grad_()
    sizes: list[int] = []

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() != x.data_ptr():
            sizes.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        unit(x)
    assert sizes
    assert max(sizes) <= 9 * 8


def test_statistics_that_changed_before_backward_are_an_error() -> None:
    unit, x = make("frelu", 3, train=False), draw((2, 3, 4, 5)).requires_grad_()
    y = unit(x)
    unit.norm.running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_value_per_channel_is_batch_norms_error(name: str) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        make(name, 3)(draw((1, 3, 1, 1)))
    unit = make(name, 3, train=False)
    with library.using("reference"):
        expected = unit(draw((1, 3, 1, 1)))
    assert torch.allclose(unit(draw((1, 3, 1, 1))), expected)


def _hook(unit: FReLU) -> None:
    unit.conv.register_forward_hook(lambda module, inputs, output: None)


def _sync(unit: FReLU) -> None:
    unit.norm = nn.BatchNorm2d(3)


def _circular(unit: FReLU) -> None:
    unit.conv.padding_mode = "circular"


def _parametrized(unit: FReLU) -> None:
    nn.utils.parametrizations.weight_norm(unit.conv)


@pytest.mark.parametrize("change", [_hook, _sync, _circular, _parametrized])
def test_changed_modules_are_used_as_they_are(change: Callable[[FReLU], None]) -> None:
    unit, x = make("frelu", 3), draw((2, 3, 4, 5))
    assert is_fused(unit(x))
    change(unit)
    assert not is_fused(unit.double()(x))


def test_other_windows_go_through_the_modules() -> None:
    class Sum(FReLU):
        def combine(self, x: Tensor, window: Tensor) -> Tensor:
            return x + window

    x = draw((2, 3, 6, 5))
    for unit in (FReLU(3, kernel_size=5), FReLU(3, kernel_size=1), Sum(3)):
        assert not is_fused(unit.double()(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(FReLU(3)(x.float()))


def test_one_norm_frozen_alone() -> None:
    unit, x = make("frelu_light", 3), draw((2, 3, 6, 5))
    unit.norm1.eval()
    before = unit.norm1.running_mean.clone()
    assert not is_fused(unit(x))
    assert torch.equal(unit.norm1.running_mean, before)
    unit.norm2.eval()
    assert is_fused(unit(x))


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_parameter_gradients_of_ten_million_elements(name: str, layout: str) -> None:
    """Within 1e-6 of float64, in relation to each parameter's gradients; g has a mean, so that errors might add up."""
    shape = (38, 16, 128, 130)
    unit = make(name, 16, torch.float32)
    x, g = draw(shape, torch.float32, layout), torch.rand(shape, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(unit).double()
    single, exact = run(unit, x, g), run(double, x.double(), g.double())
    for key, _ in unit.named_parameters():
        if key == "conv.bias":  # batch norm makes it idle
            assert not single[key].any()
            continue
        error = (single[key].double() - exact[key]).norm() / exact[key].norm()
        assert error < 1e-6, f"{key}: {error:.1e}"
