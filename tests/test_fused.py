"""What every fused unit keeps, whatever its kernel: values and gradients of the reference, memory, bits, autograd's rules.

Beside it: test_kernels.py (the library and the rule of its use, tables), test_gate.py and test_window.py (what only these
kernels have), test_faults_kernels.py (kinks, limits, devices, saved-tensor hooks).
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import CPU_MODES
from fused import (
    FULL,
    GATED,
    LAYOUTS,
    POINTWISE,
    SHAPES,
    UNITS,
    WINDOW_SHAPES,
    WINDOWS,
    assert_close,
    compare,
    draw,
    is_fused,
    make,
    run,
    takes,
    twice,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from activations.base import Activation
from activations.kernels import library


@pytest.fixture(params=UNITS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- values and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_reference(name: str, dtype: torch.dtype) -> None:
    """Shapes in either dense layout; other layouts, those of the gradient, scales, modes and the channels' place take turns."""
    turn = 0
    for i, shape in enumerate(SHAPES + WINDOW_SHAPES * (name in WINDOWS)):
        if not takes(name, shape) or (dtype == torch.float32 and math.prod(shape) > 100_000):
            continue  # in float32 one of so many elements lies where two lines cross, and the other one wins by a rounding
        for layout in (*FULL, LAYOUTS[2 + i % 3]):
            turn += 1
            channel_dim = -1 if turn % 7 in (0, 4) and name not in WINDOWS else 1
            train = turn % 4 != 0 and math.prod(shape) > shape[1]
            unit = make(name, shape[channel_dim], dtype, train=train, channel_dim=channel_dim)
            x = (0.1, 1.0, 5.0)[turn // 2 % 3] * draw(shape, dtype, layout)
            compare(unit, x, draw(shape, dtype, LAYOUTS[turn % 5], seed=1) + 0.3)
            if layout == "planes" or (layout == "rows" and channel_dim == 1):
                y = unit(x.requires_grad_())
                assert is_fused(y) == (name not in GATED or len(shape) > 2), shape
                assert all(a == b or n == 1 for a, b, n in zip(y.stride(), x.stride(), shape, strict=True))


@pytest.mark.parametrize("value", [1e-30, 1e4, -1e4, 1e30, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", POINTWISE)
def test_extreme_values(name: str, value: float) -> None:
    """What is finite in y and its slope by the reference is so by the kernel, and the same; other elements do not change."""
    unit, x = make(name, 3), draw((7, 3, 5))
    x[2, 1, 3] = value
    fused, reference = twice(lambda one: run(one, x, torch.ones_like(x)), unit)
    others = torch.ones_like(x, dtype=torch.bool)
    others[2, 1, 3] = False
    assert_close(unit, *({key: found[key][others] for key in ("y", "x")} for found in (fused, reference)))
    y, expected = fused["y"][2, 1, 3], reference["y"][2, 1, 3]
    lost = ("finer", "fourier", "group_rational", "hermite", "pau", "sine", "snake", "staf")
    if abs(value) != 1e30 or not name.startswith(lost):  # which have no digits left there
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert fused["x"][2, 1, 3].isfinite() or not reference["x"][2, 1, 3].isfinite()


@pytest.mark.parametrize("layout", FULL)
@pytest.mark.parametrize(
    "name",
    ["pwlu", "pwlu per channel", "prelu", "swish per channel", "ditac", "pau", "gct", "dyrelu b", "frelu"],
)
def test_sums_over_millions_of_elements_have_six_digits(name: str, layout: str) -> None:
    """Gradients of float32 parameters against float64 on the same numbers; g has a mean, so that errors might add up."""
    shape = (80, 32, 32, 31)
    # on a grid: elsewhere, one of a million lies where two lines cross, and another one wins by a rounding
    x, g = (64 * draw(shape, torch.float32, layout)).round() / 64, draw(shape, torch.float32, seed=1) + 0.3
    # float32 cannot hold just any knots of PWLU, and where sums nearly cancel that is what one would see
    unit = UNITS[name](32) if "pwlu" in name else make(name, 32, torch.float32)
    single = run(copy.deepcopy(unit), x, g)
    with library.using("reference"):
        double = run(unit.double(), x.double(), g.double())
    for key, _ in unit.named_parameters():
        if key == "conv.bias":  # batch norm cancels it
            continue
        error = (single[key] - double[key]).abs().max() / double[key].abs().max()
        assert error < 1e-6, f"{key}: {error:.1e}"


def test_gradients_agree_with_finite_differences(name: str) -> None:
    if name.startswith("ditac"):
        pytest.skip("its slopes beyond the table are a line's; test_activations.py has those within")
    unit = make(name, 2)
    x = draw((2, 2, 2, 3))
    x = (x + 0.1 * x.sign()).requires_grad_()
    names, parameters = zip(*unit.named_parameters(), strict=True) if list(unit.parameters()) else ((), ())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(unit, dict(zip(names, values, strict=True)), (x,))

    assert is_fused(unit(x))
    assert torch.autograd.gradcheck(function, (x, *parameters), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), atol=1e-4, fast_mode=True)


def derivatives(unit: Activation, x: Tensor, made_from: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """First to third derivatives; a backward that is differentiated goes through the reference."""
    x = x.detach().requires_grad_()
    inputs, found = (x, *unit.parameters()), {}
    value = unit(made_from(x)).sin().square().sum()
    for order in ("first", "second", "third"):
        gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        found |= {f"{order} {i}": gradient.detach() for i, gradient in enumerate(gradients)}
        value = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        if not value.requires_grad:
            break
    return found


@pytest.mark.parametrize("of_parameters", [False, True], ids=["free", "made from the parameters"])
def test_higher_derivatives_are_the_references(name: str, of_parameters: bool) -> None:
    unit, x = make(name, 3, train=False), draw((2, 3, 3, 2))

    def made_from(x: Tensor) -> Tensor:
        return x * sum(p.square().sum() for p in unit.parameters()) if of_parameters else x

    results = []
    for mode in CPU_MODES:
        with library.using(mode):
            results.append(derivatives(unit, x, made_from))
    for (key, fused), reference in zip(results[0].items(), results[1].values(), strict=True):
        scale = 1 + reference.abs().max()
        close = 1e-2 if name.startswith("ditac") else 1e-8
        torch.testing.assert_close(fused / scale, reference / scale, rtol=close, atol=close, msg=key)


@pytest.mark.parametrize("name", [name for name in UNITS if name.startswith("ditac")])
def test_batched_gradients(name: str) -> None:
    unit, x = make(name, 3), draw((2, 3, 2, 2))
    one_by_one, at_once = (
        torch.autograd.functional.jacobian(unit, x, vectorize=vectorize) for vectorize in (False, True)
    )
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-6, atol=2e-3)


# ---- memory, threads, layouts


def test_saves_its_input_and_nothing_else_of_its_size(name: str) -> None:
    if name == "gct elu":
        pytest.skip("the base saves what it needs")
    unit, x = make(name, 64, torch.float32), draw((32, 64, 20, 20), torch.float32).requires_grad_()
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unit(x)
    assert saved.pop(x.untyped_storage().data_ptr()) == x.nbytes
    assert max(saved.values(), default=0) < 0.05 * x.nbytes  # parameters and tables, maps of one channel


def test_same_threads_same_bits(name: str) -> None:
    """Seven rows and three samples among three threads: parts begin within a sample."""
    alone = {}
    for layout in FULL:
        x, g = (draw((3, 20, 21, 40), torch.float32, layout, seed) for seed in range(2))
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, second = (run(make(name, 20, torch.float32), x, g) for _ in range(2))
            assert all(torch.equal(first[key], second[key]) for key in first)
            alone = alone if threads > 1 else first
            assert_close(make(name, 20), first, alone)


def test_inputs_that_a_kernel_refuses_or_copies_are_the_references(name: str) -> None:
    """Slices, transposed and half-precision tensors, and autocast."""
    wide = draw((3, 6, 5, 8))
    strided = [wide[..., ::2], draw((6, 3, 5, 4)).transpose(0, 1), draw((3, 5, 6, 4)).transpose(1, 2)]
    for x in (*strided, draw((4, 6))):
        if not takes(name, x.shape):
            continue
        unit, g = make(name), draw(x.shape, seed=1)
        assert is_fused(unit(x.requires_grad_())) == (name not in GATED)
        compare(unit, x, g)
    unit, x = make(name, dtype=torch.bfloat16, train=False), draw(dtype=torch.bfloat16).requires_grad_()
    compare(
        unit, x, draw(dtype=torch.bfloat16, seed=1)
    )  # in which some have a kernel for what they compute in float32


def test_under_autocast(name: str) -> None:
    """The reference is used forward and backward, even for a graph that a kernel made."""
    if name == "gct elu":
        pytest.skip("the base has rules of its own")
    unit, x = make(name, dtype=torch.float32, train=False), draw(dtype=torch.float32).requires_grad_()
    inputs, g = (x, *unit.parameters()), torch.ones_like(x)
    y = unit(x)
    expected = torch.autograd.grad(y, inputs, g, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = unit(x)
        found = torch.autograd.grad(y, inputs, g)
    assert is_fused(y)
    assert not is_fused(half)
    torch.testing.assert_close(half.float(), y, atol=0.05, rtol=0.05)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 0.05 * b.norm()  # single elements may be on another line


def test_parameters_in_any_layout(name: str) -> None:
    unit, x = make(name), draw().requires_grad_()
    for parameter in unit.parameters():
        parameter.data = torch.stack([parameter.data] * 2, -1)[..., 1]
    assert is_fused(unit(x))
    compare(unit, x, draw(seed=1))


# ---- autograd's rules


def test_backward_can_be_repeated(name: str) -> None:
    """With other gradients in between; what is handed in is not written to."""
    unit, x = make(name), draw().requires_grad_()
    y, inputs, g = unit(x), (x, *unit.parameters()), draw(seed=1)
    first = torch.autograd.grad(y, inputs, g, retain_graph=True)
    torch.autograd.grad(y, inputs, torch.ones_like(x), retain_graph=True)
    again = torch.autograd.grad(y, inputs, g, retain_graph=True)
    assert all(map(torch.equal, first, again))
    assert torch.equal(g, draw(seed=1))
    assert torch.equal(torch.autograd.grad(y, x, g, retain_graph=True)[0], first[0])
    assert torch.equal(torch.autograd.grad(y, inputs[-1], g)[0], first[-1])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, g)


def test_what_is_frozen_leaves_the_others_their_gradients(name: str) -> None:
    """One tensor after the other frozen, then all but one."""
    x, g = draw(), draw(seed=1)
    full = run(make(name), x, g)
    names = ["x", *(key for key, _ in make(name).named_parameters())]
    for learn in [[key for key in names if key != frozen] for frozen in names] + [[key] for key in names]:
        unit, leaf = make(name), x.clone().requires_grad_("x" in learn)
        for key, parameter in unit.named_parameters():
            parameter.requires_grad_(key in learn)
        if not learn:
            continue
        unit(leaf).backward(g)
        for key, tensor in {"x": leaf, **dict(unit.named_parameters())}.items():
            assert torch.equal(tensor.grad, full[key]) if key in learn else tensor.grad is None, key


def test_the_input_may_be_used_elsewhere(name: str) -> None:
    g, x = draw(seed=1), draw().requires_grad_()
    alone = run(make(name), x, g)["x"]
    for y in (make(name)(x) + x, x + make(name)(x)):
        torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], alone + g)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_hooks_see_the_whole_gradient_once_with_checkpoints_too(name: str, use_reentrant: bool) -> None:
    x, unit = draw().requires_grad_(), make(name, train=False)
    expected = run(unit, x, torch.ones_like(x))
    seen: dict[str, list[Tensor]] = {}
    tensors = {"x": x, **dict(unit.named_parameters())}
    for key, tensor in tensors.items():
        tensor.register_hook(lambda g, key=key: seen.setdefault(key, []).append(g.clone()))
    for function in (unit, partial(checkpoint, unit, use_reentrant=use_reentrant)):
        seen.clear()
        unit.zero_grad()
        x.grad = None
        function(x).sum().backward()
        for key, tensor in tensors.items():
            assert len(seen[key]) == 1
            assert torch.equal(seen[key][0], expected[key])
            assert torch.equal(tensor.grad, expected[key])


def test_without_gradients(name: str) -> None:
    """The same bits, and what inference made serves training, in either precision."""
    unit, x = make(name, train=False), draw()
    expected = unit(x.requires_grad_()).detach()
    for context in (torch.no_grad, torch.inference_mode):
        fresh = make(name, train=False)
        with context():
            y = fresh(x)
        assert torch.equal(y, expected)
        assert not y.requires_grad
        compare(fresh, x, torch.ones_like(x))
        compare(fresh.float(), x.float(), torch.ones_like(x.float()))


def test_an_input_changed_in_place_is_noticed(name: str) -> None:
    z = draw().requires_grad_() * 1
    y = make(name)(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
