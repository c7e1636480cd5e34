"""Units of torch.nn that have a kernel of ours: as exact as torch's own operation, and taken where elements are many."""

import math

import numpy as np
import pytest
import torch
from conftest import CPU_MODES, make_factory
from scipy import special
from torch import Tensor, nn

from activations.base import Activation
from activations.kernels import library
from activations.torch_fused import MIN_FUSED

if not library.described().startswith("fused"):
    pytest.skip(library.described(), allow_module_level=True)

Array = np.ndarray


def softplus(x: Array) -> tuple[Array, Array]:
    return np.where(x > 20, x, np.logaddexp(x, 0)), np.where(x > 20, 1, special.expit(x))


def tanh(x: Array) -> tuple[Array, Array]:
    return np.tanh(x), 1 / np.cosh(x) ** 2


def exponential(x: Array, right: float, left: float, inner: float) -> tuple[Array, Array]:
    low = inner * np.minimum(x, 0)
    return np.where(x > 0, right * x, left * np.expm1(low)), np.where(
        x > 0, right, left * inner * np.exp(low)
    )


def mish(x: Array) -> tuple[Array, Array]:
    e = np.exp(x)
    gate = e * (e + 2) / (e * (e + 2) + 2)
    return x * gate, gate + 4 * x * e * (e + 1) / (e * (e + 2) + 2) ** 2


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    k = 2 * math.sqrt(2 / math.pi)
    u, slope = k * (x + 0.044715 * x**3), k * (1 + 3 * 0.044715 * x * x)
    return x * special.expit(u), special.expit(u) + x * slope * special.expit(u) * special.expit(-u)


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
EXACT = {
    "celu activation.alpha=2": lambda x: exponential(x, 1, 2, 0.5),
    "elu": lambda x: exponential(x, 1, 1, 1),
    "elu activation.alpha=0.5": lambda x: exponential(x, 1, 0.5, 1),
    "gelu activation.approximate=tanh": gelu_tanh,
    "mish": mish,
    "selu": lambda x: exponential(x, SCALE, SCALE * ALPHA, 1),
    "softplus": softplus,
    "tanh": tanh,
}
NAMES = pytest.mark.parametrize("name", EXACT)


def make(name: str) -> Activation:
    """The unit with its kernel, whichever compiled file it is faster in."""
    unit = make_factory(*name.split())(MIN_FUSED)
    unit.variants = ("avx2", "avx512", "neon")
    return unit


def run(unit: Activation, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with library.using(mode):
        y = unit(x)
        y.sum().backward()
    assert x.grad is not None
    assert ("Pointwise" in type(y.grad_fn).__name__) == (mode == "auto" and x.numel() >= MIN_FUSED)
    return y.detach(), x.grad


def inputs(dtype: torch.dtype) -> Tensor:
    """Many from -16 to 16, and as many near 0."""
    near = torch.logspace(-6, 0, MIN_FUSED // 4, dtype=torch.float64)
    even = torch.linspace(-16, 16, MIN_FUSED // 2, dtype=torch.float64)
    return torch.cat([even, near, -near]).to(dtype)[None]


@NAMES
def test_values_and_gradients_are_as_exact_as_those_of_torch(name: str) -> None:
    """Errors in units of the last place against the exact number: of 999 in 1000 points, and the largest.

    A gradient passes through 0, where all of its digits come from a difference of numbers about as large as 1/8: its units
    are those of 1/8 at least.
    """
    unit, x = make(name), inputs(torch.float32)
    exact = EXACT[name](x.double().numpy())
    found = {mode: run(unit, x, mode) for mode in CPU_MODES}
    for kind, right, *values in zip(("y", "dx"), exact, found["auto"], found["reference"], strict=True):
        size = np.abs(right).clip(0.125 if kind == "dx" else 1e-30).astype(np.float32)
        ours, theirs = (np.abs(value.double().numpy() - right) / np.spacing(size) for value in values)
        assert np.quantile(ours, 0.999) < max(2.25, np.quantile(theirs, 0.999)), kind
        assert ours.max() < max(4, theirs.max()), kind


@NAMES
def test_double_precision_has_all_its_digits(name: str) -> None:
    x = inputs(torch.float64)
    for ours, right in zip(run(make(name), x, "auto"), EXACT[name](x.numpy()), strict=True):
        np.testing.assert_allclose(ours.numpy(), right, rtol=2e-13, atol=2e-15)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_values_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    """Or what torch should have said where it says NaN, as GELU does of infinity."""
    unit, x = make(name), torch.ones(1, MIN_FUSED, dtype=dtype)
    x[0, :9] = torch.tensor([0.0, -0.0, 1e4, -1e4, 1e30, -1e30, math.inf, -math.inf, math.nan])
    (y, dx), (expected, slope) = (run(unit, x, mode) for mode in ("auto", "reference"))
    for ours, theirs in ((y, expected), (dx, slope)):
        known = ~theirs.isnan()
        torch.testing.assert_close(ours[known], theirs[known])
        assert ours[0, 8].isnan()
    assert y[0, :6].isfinite().all()
    assert dx[0, :6].isfinite().all()


@NAMES
def test_few_elements_are_left_to_torch(name: str) -> None:
    x = inputs(torch.float32)[:, 1:]
    unit = make_factory(*name.split())(x.shape[1])
    for ours, theirs in zip(run(unit, x, "auto"), run(unit, x, "reference"), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own
@pytest.mark.parametrize("name", ["elu", "gelu activation.approximate=tanh", "mish", "softplus"])
def test_scripts_take_the_operation_of_torch(name: str) -> None:
    unit, x = make_factory(*name.split())(MIN_FUSED), inputs(torch.float32)
    assert torch.equal(torch.jit.script(unit)(x), run(unit, x, "reference")[0])


@pytest.mark.parametrize("name", ["celu activation.alpha=2", "gelu activation.approximate=tanh", "softplus"])
def test_second_derivatives_are_those_of_torch(name: str) -> None:
    unit, x = make(name), inputs(torch.float64).requires_grad_()
    results = []
    for mode in ("auto", "reference"):
        with library.using(mode):
            (first,) = torch.autograd.grad(unit(x).sum(), x, create_graph=True)
            results.append(torch.autograd.grad(first.sum(), x)[0])
    torch.testing.assert_close(*results)


def test_tanh_and_gelu_are_left_to_torch_where_it_is_as_fast() -> None:
    x = inputs(torch.float32).requires_grad_()
    for name, fused in (("tanh", library.variant() == "avx2"), ("gelu", False), ("mish", True)):
        y = make_factory(name)(MIN_FUSED)(x)
        assert ("Pointwise" in type(y.grad_fn).__name__) == fused


@pytest.mark.parametrize("name", ["mish", "gelu"])
def test_channels_last_and_gaps_are_the_same(name: str) -> None:
    unit = make_factory(name)(16)
    x = torch.randn(64, 16, 16, 32, generator=torch.Generator().manual_seed(0))
    leaves = [x.clone(), x.contiguous(memory_format=torch.channels_last)]
    y, last = (unit(leaf.requires_grad_()) for leaf in leaves)
    (y.sum() + last.square().sum()).backward()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)
    torch.testing.assert_close(unit(torch.stack([x, x], -1)[..., 0]), y)
    gradients = [leaf.grad for leaf in leaves]
    assert gradients[1].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients[1], 2 * y.detach() * gradients[0])
    assert isinstance(unit.function, nn.Mish | nn.GELU)


def test_gelu_takes_a_map_in_channels_last_for_a_contiguous_tensor() -> None:
    x = torch.randn(2, 4, 3, 5, requires_grad=True)
    for layout, views in ((torch.contiguous_format, False), (torch.channels_last, True)):
        y = make_factory("gelu")(4)(x.contiguous(memory_format=layout))
        assert ("Permute" in type(y.grad_fn).__name__) == views
