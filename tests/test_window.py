"""What only the windows of FReLU and DwConvReLU have: convolutions, norms and their statistics, ties with the window."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from fused import FULL, WINDOWS, compare, draw, is_fused, make, run, twice
from torch import Tensor, nn

from activations.frelu import FReLU
from activations.kernels import library


@pytest.fixture(params=WINDOWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("layout", FULL)
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


@pytest.mark.parametrize("layout", FULL)
def test_a_constant_channel(name: str, layout: str) -> None:
    x = draw((2, 3, 4, 5), layout=layout).fill_(7)
    x[:, 1] = 0
    compare(make(name, 3), x, draw((2, 3, 4, 5)))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", FULL)
def test_gamma_zero_and_ties(name: str, layout: str, train: bool) -> None:
    unit = make(name, 4, train=train)
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, 0.5)
    x = draw((3, 4, 6, 9), layout=layout).mul(2).round().div(2)
    x[0] = 0.5 if not unit.light else 1.0
    compare(unit, x, draw((3, 4, 6, 9), seed=1))
    for module in unit.modules():  # relu's tie, at 0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
    compare(unit, x, draw((3, 4, 6, 9), seed=1))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", FULL)
@pytest.mark.parametrize("width", [7, 18])
def test_what_is_not_finite_stays_where_it_is(name: str, layout: str, width: int, train: bool) -> None:
    for bad, place in itertools.product(
        (float("nan"), float("inf"), -float("inf")), ((0, 0, 0), (4, width - 1), (2, 3))
    ):
        x = draw((2, 3, 5, width), layout=layout)
        x[1, 1, place[0], place[1]] = bad
        # infinities of both signs meet in sums whose order is not said: the norm's scale and the weights are positive
        unit = make(name, 3, train=train)
        for parameter in unit.parameters():
            nn.init.uniform_(parameter, 0.1, 1.2)
        fused, expected = twice(lambda one, x=x: run(one, x, draw(x.shape, seed=1)), unit)
        for key in ("y", "x", *(key for key in expected if "running" in key)):
            torch.testing.assert_close(
                fused[key], expected[key], equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
            )
        for key, value in expected.items():  # other channels are not touched
            if value.ndim:
                dim = 1 if key in ("y", "x") else 0
                rest = torch.tensor([0, 2])
                assert fused[key].index_select(dim, rest).isfinite().all(), key


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
    unit, x = make("frelu light", 3), draw((2, 3, 6, 5))
    unit.norm1.eval()
    before = unit.norm1.running_mean.clone()
    assert not is_fused(unit(x))
    assert torch.equal(unit.norm1.running_mean, before)
    unit.norm2.eval()
    assert is_fused(unit(x))
