"""What only gated units have: statistics of whole samples, small networks with layers of their own, ties of lines."""

import math

import pytest
import torch
from fused import FULL, GATED, compare, draw, is_fused, make
from torch import Tensor, nn

from activations.dyrelu import DyReLU
from activations.kernels import gate, networks


@pytest.fixture(params=GATED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("layout", FULL)
def test_what_is_not_finite(name: str, value: float, layout: str) -> None:
    x = draw((3, 6, 5, 4), torch.float32, layout)
    x[1, 2, 3, 1] = value
    compare(make(name, 6, torch.float32), x, torch.ones_like(x))


@pytest.mark.parametrize("size", ["small", "large"])
def test_networks_of_any_size(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones have a kernel, large ones are torch's."""
    monkeypatch.setattr(networks, "SMALL", 2**40 if size == "small" else 0)
    for shape in ((3, 40, 5, 4), (9, 150, 2, 3)):
        x, g = draw(shape), draw(shape, seed=1)
        compare(make(name, shape[1]), x, g)


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_ties_halve_the_gradient_and_zero_is_off(form: str) -> None:
    x = draw((2, 6, 4, 5)).relu()
    for pieces in (2, 3):
        compare(DyReLU(6, form=form, pieces=pieces, zero_init=True).double(), x, torch.ones_like(x))
    for name in ("gct", "gct before", "gct l1", "gct alone", "se_relu"):
        compare(make(name, 6), x, torch.ones_like(x))


def test_too_many_lines_go_to_the_reference() -> None:
    for pieces in (gate.MOST_LINES, gate.MOST_LINES + 1):
        unit = DyReLU(6, pieces=pieces).double()
        x = draw((2, 6, 5, 4))
        assert is_fused(unit(x)) == (pieces == gate.MOST_LINES)
        compare(unit, x, torch.ones_like(x))


LAYERED = ["dyrelu a", "dyrelu b", "dyrelu c", "se_relu", "meta_acon"]


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_hooks_on_layers_are_called(name: str, layer: str) -> None:
    unit, x, seen = make(name, 6), draw((3, 6, 5, 4)).requires_grad_(), []
    site, count = getattr(unit, layer), lambda *_: seen.append(None)
    for register in (
        site.register_forward_hook,
        site.register_forward_pre_hook,
        site.register_full_backward_hook,
        site.register_full_backward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle, before = register(count), len(seen)
        unit(x).sum().backward()
        handle.remove()
        assert len(seen) > before
        assert is_fused(unit(x))  # again
    handle = site.register_forward_hook(lambda module, inputs, output: output + 1)
    changed = unit(x)
    handle.remove()
    site.bias.data += 1
    torch.testing.assert_close(unit(x), changed)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", LAYERED)
def test_other_layers_are_called_as_they_are(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4))
    plain, hidden = unit.fc1, unit.fc1.out_features

    def expect(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
        unit.fc1 = layer
        assert not is_fused(unit(x))
        found = unit(x)
        unit.fc1 = plain
        plain.weight.data, plain.bias.data = weight.detach(), bias.detach()
        assert is_fused(unit(x))
        torch.testing.assert_close(unit(x), found)

    doubled = Doubled(6, hidden).double()
    expect(doubled, 2 * doubled.weight, 2 * doubled.bias)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, hidden).double())
    normed.parametrizations.weight.original0.data *= 2
    expect(normed, normed.weight, normed.bias)
    bare = nn.Linear(6, hidden, bias=False).double()
    expect(bare, bare.weight, bare.weight.new_zeros(hidden))
    patched = nn.Linear(6, hidden).double()
    patched.forward = lambda mean: nn.Linear.forward(patched, 3 * mean)
    expect(patched, 3 * patched.weight, patched.bias)
    # one that is plain, but wider
    unit.fc1, unit.fc2 = nn.Linear(6, 9).double(), nn.Linear(9, unit.fc2.out_features).double()
    assert is_fused(unit(x))
    compare(unit, x, torch.ones_like(x))
