"""The fused units that weigh a sample by its own statistics, against the same in plain torch operations."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from activations.acon import MetaACON
from activations.base import Activation
from activations.dyrelu import DyReLU
from activations.gct import GCT
from activations.kernels import gate, library, networks
from activations.se_relu import SEReLU
from activations.torch_fused import ELU
from activations.torch_nn import ReLU

pytestmark = pytest.mark.skipif(
    not library.described().startswith("fused"), reason=f"nothing to compare: {library.described()}"
)

UNITS: dict[str, Callable[..., Activation]] = {
    "A": partial(DyReLU, form="A"),
    "A1": partial(DyReLU, form="A", pieces=1),
    "B": DyReLU,
    "B1": partial(DyReLU, pieces=1),
    "B3": partial(DyReLU, pieces=3),
    "C": partial(DyReLU, form="C", temperature=1.0),
    "C3": partial(DyReLU, form="C", pieces=3),
    "gct": partial(GCT, base=ReLU),
    "gct_l1": partial(GCT, base=ReLU, mode="l1"),
    "gct_l1_after_relu": partial(GCT, base=ReLU, mode="l1", after_relu=True),
    "gct_before": partial(GCT, base=ReLU, position="before"),
    "gct_before_l1": partial(GCT, base=ReLU, position="before", mode="l1"),
    "gct_alone": GCT,
    "gct_alone_sum": partial(GCT, mode="l1", after_relu=True),
    "gct_elu": partial(GCT, base=ELU, position="before"),
    "se": SEReLU,
    "meta": MetaACON,
}
SHAPES = [
    (3, 6, 5, 4),
    (2, 16, 8, 8),
    (5, 1, 7, 3),
    (4, 19, 1, 1),
    (1, 70, 9, 11),
    (2, 37, 13),
    (1, 3, 1),
    (3, 130, 40, 41),
]


@pytest.fixture(params=UNITS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make(name: str, channels: int, dtype: torch.dtype = torch.float64, **hyper: int) -> Activation:
    """A unit whose parameters are all different, and not so large that gates saturate."""
    unit = UNITS[name](channels, **hyper).to(dtype)
    torch.manual_seed(0)
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, -0.5, 0.7)
    return unit


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, layout: str = "planes") -> Tensor:
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "rows" else x


def run(unit: Activation, x: Tensor, g: Tensor) -> list[Tensor]:
    """The output, the gradient of x and those of the parameters."""
    x = x.detach().requires_grad_()
    y = unit(x)
    assert all(a == b or n == 1 for a, b, n in zip(y.stride(), x.stride(), x.shape, strict=True))
    return [y.detach(), *torch.autograd.grad(y, (x, *unit.parameters()), g)]


def compare(unit: Activation, x: Tensor, g: Tensor, tolerance: float) -> None:
    found = run(unit, x, g)
    with library.using("reference"):
        expected = run(unit, x, g)
    for a, b in zip(found, expected, strict=True):
        if b.isfinite().all():
            scale = max(b.abs().max().item(), 1.0)
            torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=tolerance)
        else:
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, equal_nan=True)


def is_fused(unit: Activation, x: Tensor) -> bool:
    """Whether a unit's node is in the graph."""
    seen, todo = set(), [unit(x.detach().requires_grad_()).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return any(type(node).__name__ == "_GatedBackward" for node in seen)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_is_the_reference(name: str, shape: tuple[int, ...], layout: str) -> None:
    unit = make(name, shape[1])
    x = draw(shape, layout=layout)
    assert is_fused(unit, x)
    compare(unit, x, draw(shape, layout=layout) * 2 + 0.3, 1e-11)


@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("threads", [1, 2])
def test_is_the_reference_in_float32(name: str, layout: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for shape in ((3, 24, 33, 31), (2, 6, 5, 4)):
        x, g = (draw(shape, torch.float32, layout) for _ in range(2))
        compare(make(name, shape[1], torch.float32), x, g + 0.3, 1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (3, 7, 20)])
def test_channels_in_the_last_dimension(name: str, shape: tuple[int, ...]) -> None:
    unit = make(name, shape[-1], channel_dim=-1)
    for x in (draw(shape), draw((shape[0], shape[-1], *shape[1:-1])).movedim(1, -1)):
        assert is_fused(unit, x)
        compare(unit, x, draw(shape), 1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_what_is_not_finite(name: str, value: float, layout: str) -> None:
    x = draw((3, 6, 5, 4), torch.float32, layout)
    x[1, 2, 3, 1] = value
    compare(make(name, 6, torch.float32), x, torch.ones_like(x), 1e-4)


@pytest.mark.parametrize("size", ["small", "large"])
def test_networks_of_any_size(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones have a kernel, large ones are torch's."""
    monkeypatch.setattr(networks, "SMALL", 2**40 if size == "small" else 0)
    for shape in ((3, 40, 5, 4), (9, 150, 2, 3)):
        x, g = draw(shape), torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        compare(make(name, shape[1]), x, g, 1e-11)


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_ties_halve_the_gradient_and_zero_is_off(form: str) -> None:
    x = draw((2, 6, 4, 5)).relu()
    for pieces in (2, 3):
        compare(DyReLU(6, form=form, pieces=pieces, zero_init=True).double(), x, torch.ones_like(x), 1e-11)
    for name in ("gct", "gct_before", "gct_l1", "gct_alone", "se"):
        compare(make(name, 6), x, torch.ones_like(x), 1e-11)


def test_gradients_in_any_layout(name: str) -> None:
    shape = (3, 6, 5, 4)
    x = draw(shape)
    for g in (draw(shape, layout="rows"), torch.ones(1, dtype=x.dtype).expand(shape), draw(shape)[:, :, ::1]):
        compare(make(name, 6), x, g, 1e-11)


@pytest.mark.parametrize(
    "x",
    [
        draw((4, 6)),
        draw((3, 6, 5, 8))[..., ::2],
        draw((6, 3, 5, 4)).transpose(0, 1),
        draw((3, 5, 6, 4)).transpose(1, 2),
        draw((3, 6, 5, 4), torch.bfloat16),
    ],
    ids=["no positions", "slice", "samples inside", "channels between", "bfloat16"],
)
def test_other_inputs_go_to_the_reference(name: str, x: Tensor) -> None:
    unit = make(name, 6, x.dtype)
    assert not is_fused(unit, x)
    unit(x)


def test_too_many_lines_go_to_the_reference() -> None:
    for pieces in (gate.MOST_LINES, gate.MOST_LINES + 1):
        unit = DyReLU(6, pieces=pieces).double()
        x = draw((2, 6, 5, 4))
        assert is_fused(unit, x) == (pieces == gate.MOST_LINES)
        compare(unit, x, torch.ones_like(x), 1e-11)


def test_gradients_agree_with_finite_differences(name: str) -> None:
    unit = make(name, 3)
    x = (draw((2, 3, 2, 3)) + 0.1 * draw((2, 3, 2, 3)).sign()).requires_grad_()
    inputs = (x, *unit.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: unit(x), inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: unit(x), inputs, atol=1e-4, fast_mode=True)


def assert_twice_the_same(unit: Activation, x: Tensor) -> None:
    """Second derivatives are those of the reference."""

    def twice() -> tuple[Tensor, ...]:
        inputs = (x.requires_grad_(), *unit.parameters())
        gradients = torch.autograd.grad(unit(x).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)

    found = twice()
    with library.using("reference"):
        expected = twice()
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_second_derivatives_are_the_reference(name: str) -> None:
    assert_twice_the_same(make(name, 6), draw((3, 6, 5, 4)))


def test_backward_can_be_repeated_and_partial(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4)).requires_grad_()
    y, inputs = unit(x), (x, *unit.parameters())
    g, other = draw((3, 6, 5, 4)), torch.ones_like(x)
    first = torch.autograd.grad(y, inputs, g, retain_graph=True)
    torch.autograd.grad(y, inputs, other, retain_graph=True)
    again = torch.autograd.grad(y, inputs, g, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(g, draw((3, 6, 5, 4)))  # what is handed in is not written to
    assert torch.equal(torch.autograd.grad(y, x, g, retain_graph=True)[0], first[0])
    assert torch.equal(torch.autograd.grad(y, inputs[-1], g)[0], first[-1])
    # the input alone, and the parameters alone
    for p in unit.parameters():
        p.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(unit(x), x, g)[0], first[0])
    for p in unit.parameters():
        p.requires_grad_()
    found = torch.autograd.grad(unit(x.detach()), inputs[1:], g)
    assert all(torch.equal(a, b) for a, b in zip(found, first[1:], strict=True))


def test_a_frozen_parameter_leaves_the_others_their_gradients(name: str) -> None:
    unit, g = make(name, 6), draw((3, 6, 5, 4))
    for with_input in (True, False):
        x = draw((3, 6, 5, 4)).requires_grad_(with_input)
        inputs = ([x] if with_input else []) + list(unit.parameters())
        expected = torch.autograd.grad(unit(x), inputs, g)
        for frozen in unit.parameters():
            frozen.requires_grad_(False)
            unit.zero_grad()
            x.grad = None
            unit(x).backward(g)
            for tensor, value in zip(inputs, expected, strict=True):
                assert tensor.grad is None if tensor is frozen else torch.equal(tensor.grad, value)
            frozen.requires_grad_()


def test_parameters_in_any_layout(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4)).requires_grad_()
    for parameter in unit.parameters():
        parameter.data = torch.stack([parameter.data] * 2, -1)[..., 1]
    assert is_fused(unit, x)
    compare(unit, x, draw((3, 6, 5, 4)), 1e-11)
    assert_twice_the_same(unit, x)


def test_an_input_made_from_the_parameters(name: str) -> None:
    unit = make(name, 6)
    base = draw((3, 6, 5, 4)).requires_grad_()

    def derivatives() -> list[Tensor]:
        inputs = (base, *unit.parameters())
        x = base * sum(p.square().sum() for p in unit.parameters())
        first = torch.autograd.grad(unit(x).square().sum(), inputs, create_graph=True)
        return [*first, *torch.autograd.grad(sum(d.square().sum() for d in first), inputs)]

    found = derivatives()
    with library.using("reference"):
        expected = derivatives()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), atol=1e-10, rtol=1e-8)


LAYERED = ["A", "B", "C", "se", "meta"]


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
        assert is_fused(unit, x)  # again
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
        assert not is_fused(unit, x)
        found = unit(x)
        unit.fc1 = plain
        plain.weight.data, plain.bias.data = weight.detach(), bias.detach()
        assert is_fused(unit, x)
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
    assert is_fused(unit, x)
    compare(unit, x, torch.ones_like(x), 1e-11)


def test_under_autocast(name: str) -> None:
    if name == "gct_elu":
        pytest.skip("the base has rules of its own")
    unit, x = make(name, 6, torch.float32), draw((3, 6, 5, 4), torch.float32).requires_grad_()
    inputs, g = (x, *unit.parameters()), torch.ones_like(x)
    y = unit(x)
    expected = torch.autograd.grad(y, inputs, g, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_fused(unit, x)
        found = torch.autograd.grad(y, inputs, g)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_what_inference_made_serves_training(form: str) -> None:
    unit, x = DyReLU(6, form=form).double(), draw((3, 6, 5, 4))
    with torch.inference_mode():
        unit(x)
    compare(unit, x, torch.ones_like(x), 1e-11)
    assert_twice_the_same(unit, x)
    single = copy.deepcopy(unit).float()  # and after the other dtype
    compare(single, x.float(), torch.ones_like(x.float()), 1e-5)


def test_the_input_may_be_used_elsewhere(name: str) -> None:
    unit, g = make(name, 6), draw((3, 6, 5, 4))
    x = draw((3, 6, 5, 4)).requires_grad_()
    alone = torch.autograd.grad(unit(x), x, g)[0]
    torch.testing.assert_close(torch.autograd.grad(unit(x) + x, x, g)[0], alone + g)
    torch.testing.assert_close(torch.autograd.grad(x + unit(x), x, g)[0], alone + g)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(name: str, use_reentrant: bool) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4)).requires_grad_()
    results = []
    for function in (unit, partial(checkpoint, unit, use_reentrant=use_reentrant)):
        x.grad = None
        unit.zero_grad()
        function(x).square().sum().backward()
        results.append([x.grad, *[p.grad for p in unit.parameters()]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_hooks_see_the_whole_gradient_once(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4)).requires_grad_()
    expected = run(unit, x, torch.ones_like(x))[1:]
    seen: dict[int, list[Tensor]] = {}
    tensors = (x, *unit.parameters())
    for i, tensor in enumerate(tensors):
        tensor.register_hook(lambda g, i=i: seen.setdefault(i, []).append(g.clone()))
    unit(x).sum().backward()
    for i, (tensor, value) in enumerate(zip(tensors, expected, strict=True)):
        assert len(seen[i]) == 1
        assert torch.equal(seen[i][0], value)
        assert torch.equal(tensor.grad, value)


def test_without_gradients(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4))
    expected = unit(x)
    with torch.no_grad():
        assert torch.equal(unit(x), expected)
        assert not unit(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(unit(x), expected)
    assert torch.equal(copy.deepcopy(unit)(x), expected)


def test_an_input_changed_in_place_is_noticed(name: str) -> None:
    unit, x = make(name, 6), draw((3, 6, 5, 4)).requires_grad_()
    z = x * 1
    y = unit(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_same_bits_for_the_same_threads(name: str, layout: str) -> None:
    unit = make(name, 20, torch.float32)
    x, g = (draw((3, 20, 31, 33), torch.float32, layout) for _ in range(2))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        first, second = run(unit, x, g), run(unit, x, g)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_saves_the_input_and_nothing_else_of_its_size(name: str) -> None:
    if name == "gct_elu":
        pytest.skip("the base saves what it needs")
    unit, x = make(name, 32), draw((2, 32, 32, 32)).requires_grad_()
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = unit(x)
    size = x.numel() * x.element_size()
    assert saved.pop(x.data_ptr()) == size
    parameters = {p.untyped_storage().data_ptr() for p in unit.parameters()}
    rest = {key: value for key, value in saved.items() if key not in parameters}
    assert sum(rest.values()) < 0.25 * size  # maps over positions are 1 / 32 each
    assert y.untyped_storage().data_ptr() not in rest


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_parameter_gradients_of_ten_million_elements(name: str, layout: str) -> None:
    shape = (40, 64, 64, 64)
    wide = make(name, 64)
    # on a grid, as elsewhere one of ten million lies where two lines cross, and another line wins by a rounding
    x = (64 * draw(shape, torch.float32, layout)).round() / 64
    g = draw(shape, torch.float32, layout) + 0.3
    found = run(copy.deepcopy(wide).float(), x, g)
    for single in wide.parameters():
        single.data = single.data.float().double()
    with library.using("reference"):
        expected = run(wide, x.double(), g.double())
    for a, b in zip(found[2:], expected[2:], strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()
