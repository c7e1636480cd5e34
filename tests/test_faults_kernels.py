"""What users of such units meet: wrong input, kinks, tensors on other devices, saved-tensor hooks, limits, empty maps.

Every property holds for every unit, by the fused kernels and by the reference, in float32 and float64.
"""

import ast
import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from conftest import ACTIVATIONS, CLASSES, CPU_MODES, ROOT, make_factory
from torch import Tensor, nn

from activations.base import Activation
from activations.kernels import library
from activations.maxout import Maxout
from activations.poly import PolyNorm
from activations.prelu import PReLU
from activations.snake import Snake
from activations.torch_nn import TorchActivation

# the units that are an adapter of a layer of torch.nn, and all others
ADAPTERS = [
    name
    for name in ACTIVATIONS
    if "\n_target_: activations.torch_" in (ROOT / "conf" / "activation" / f"{name}.yaml").read_text()
]
OURS = [name for name in ACTIVATIONS if name not in ADAPTERS]
CHANNELS = 6
IMAGES = (4, CHANNELS, 6, 5)
DTYPES = (torch.float32, torch.float64)
# what no yaml of its own shows, but has kinks, ties or code of its own
VARIANTS = [
    "apl activation.hinges=1",
    "ditac activation.gelu_of=z",
    "ditac_ge activation.b=2.7",
    "ditac_inf activation.zero_boundary=true",
    "ditac_leaky activation.a=-1 activation.b=2",
    "ditac_leaky activation.a=-3 activation.b=0",
    "ditac_leaky activation.a=1",
    "dyrelu activation.init_a=[1,1]",
    "dyrelu activation.pieces=3 activation.init_a=[1,1,1]",
    "dyrelu activation.zero_init=true",
    "dyrelu_a activation.init_a=[1,1] activation.zero_init=true",
    "dyrelu_c activation.init_a=[1,1]",
    "gct activation.base=null",
    "gct_l1 activation.base=null activation.after_relu=true",
    "npwlu activation.per_channel=true",
    "pwlu activation.segments=5",
    "pwlu_channel activation.segments=7",
    "snake activation.per_channel=true",
    "snake activation.trainable=false",
]


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[*ACTIVATIONS, *VARIANTS])
def any_name(request: pytest.FixtureRequest) -> str:
    return request.param


factory = cache(lambda name: make_factory(*name.split()))


def make(name: str, dtype: torch.dtype = torch.float32, **kwargs: int) -> Activation:
    torch.manual_seed(0)
    return factory(name)(CHANNELS, **kwargs).to(dtype)


def draw(shape: tuple[int, ...] = IMAGES, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def penalty_of(unit: Activation) -> float:
    penalty = unit.regularization()
    return penalty.item() if isinstance(penalty, Tensor) else penalty


def needs_positions(unit: Activation) -> bool:
    return hasattr(unit, "combine")


def run(unit: Activation, x: Tensor, g: Tensor | float = 1.0) -> dict[str, Tensor]:
    """The output, and the gradients of input and parameters for the output's gradient ``g``; None becomes zeros."""
    x = x.detach().requires_grad_()
    names, parameters = zip(("x", x), *unit.named_parameters(), strict=True)
    y = unit(x)
    g = torch.full_like(y, g) if isinstance(g, float) else g
    found = torch.autograd.grad(y, parameters, g, allow_unused=True)
    gradients = (torch.zeros_like(p) if f is None else f for f, p in zip(found, parameters, strict=True))
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        scale = tolerance * max(1.0, value.abs().max().item() if value.numel() else 0.0)
        torch.testing.assert_close(
            found[key], value, atol=scale, rtol=0, msg=lambda m, key=key: f"{key}: {m}"
        )


# ---- input


WRONG_SHAPES = [(2, 8, 5, 4), (2, 4, 5, 4), (2, 1, 5, 4), (2, 5, CHANNELS), (3, 8), (CHANNELS,), ()]
WRONG_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex64]


@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("any_name", [*OURS, *VARIANTS])
def test_refuses_what_is_no_input_of_its_site(any_name: str, mode: str) -> None:
    """More channels, fewer, one; channels in another dimension; none at all; other than floating point.

    The adapters take what the layers of torch.nn take, which look at elements alone.
    """
    unit = make(any_name)
    with library.using(mode):
        for shape in WRONG_SHAPES:
            with pytest.raises(ValueError, match=re.escape(str(shape))) as raised:
                unit(torch.zeros(shape))
            message = str(raised.value)
            assert "\n" not in message
            if len(shape) == 4:
                assert f"{shape[1]} channels" in message
                assert f"num_features={CHANNELS}" in message
        for dtype in WRONG_DTYPES:
            with pytest.raises(ValueError, match=f"{dtype}: must be floating-point"):
                unit(torch.zeros(IMAGES, dtype=dtype))
        last = make(any_name, channel_dim=-1)
        with pytest.raises(ValueError, match="5 channels in dimension -1"):
            last(torch.zeros(IMAGES))


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_exact_on_whole_numbers_or_torch_refuses_them(name: str) -> None:
    unit = make(name)
    assert isinstance(unit, TorchActivation)
    x = torch.arange(-12, 12).view(2, 4, 3)  # any number of channels, too
    try:
        y = unit(x)
    except NotImplementedError:
        return
    torch.testing.assert_close(y.float(), unit(x.float()))


@pytest.mark.parametrize("mode", CPU_MODES)
def test_samples_without_a_batch(name: str, mode: str) -> None:
    """With channels counted from the end; units that look at a whole sample say that there is none."""
    unit = make(name, channel_dim=-3)
    x = draw()
    with library.using(mode):
        if unit.curves(torch.zeros(1)) is not None or isinstance(unit, Maxout | PolyNorm):
            torch.testing.assert_close(unit(x[0]), unit(x)[0])
        else:
            with pytest.raises(ValueError, match=r"\(6, 6, 5\)"):
                unit(x[0])


def test_other_devices_are_errors_by_either_path(name: str) -> None:
    """Never a pointer to what is not there."""
    unit = make(name)
    for one, x in ((unit, draw().to("meta")), (copy.deepcopy(unit).to("meta"), draw())):
        outcomes = set()
        for mode in CPU_MODES:
            with library.using(mode):
                try:
                    outcomes.add(one(x).device.type)
                except (RuntimeError, NotImplementedError):
                    outcomes.add("error")
        assert len(outcomes) == 1


def test_parameters_of_another_shape_reach_no_kernel(any_name: str) -> None:
    """By functional_call, or put in place by the user: both paths say or do the same."""
    unit = make(any_name)
    x = draw()
    for key, parameter in unit.named_parameters():
        for other in (parameter[:1], parameter[..., :1], parameter[..., None], torch.cat([parameter] * 2)):
            if other.shape == parameter.shape or other.numel() == 1:
                continue
            outcomes = []
            for mode in CPU_MODES:
                with library.using(mode):
                    try:
                        outcomes.append(torch.func.functional_call(unit, {key: other}, (x,)))
                    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
                        outcomes.append(type(error))
            fused, reference = outcomes
            if isinstance(fused, Tensor) and isinstance(reference, Tensor):
                torch.testing.assert_close(fused, reference, atol=1e-4, rtol=1e-4)
            else:
                assert fused == reference, (key, tuple(other.shape))


# ---- kinks


def dyadic(unit: Activation, seed: int) -> Activation:
    """Parameters with few digits: the input meets every kink and tie exactly, in either precision."""
    generator = torch.Generator().manual_seed(seed)
    for key, p in unit.named_parameters():
        value = torch.randint(-2, 3, p.shape, generator=generator).to(p) / 2
        if key == "log_widths" or ("fc" in key and seed % 2):
            value.zero_()
        if key == "curve":  # ends in order, at the least distance, and crossed
            right = [2.0, 3.0, -3.0, -2 + 2e-6][seed]
            value[:, 0], value[:, 1] = -2, right
        if key != "theta":
            with torch.no_grad():
                p.copy_(value)
    return unit


def on_kinks(unit: Activation, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Quarters, zeros of both signs, and the ends of an interval with their neighbors."""
    values = torch.cat([torch.arange(-16, 17) / 4, torch.tensor([0.0, -0.0] * 8)]).to(dtype)
    for end in (getattr(unit, key, None) for key in ("a", "b")):
        if isinstance(end, float):
            at = torch.tensor([end], dtype=dtype)
            values = torch.cat([values, at, at, at.nextafter(at + 1), at.nextafter(at - 1)])
    return values[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_slopes_at_kinks_are_the_references(any_name: str, dtype: torch.dtype) -> None:
    """Zeros, knots, thresholds, hinges, ties of lines, of windows and of an interval's ends; parameters' gradients."""
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    if "ditac" in any_name:
        tolerance = 4e-3  # of slopes outside its table; a kink's two sides differ by more
    for seed, shape in itertools.product(range(4), (IMAGES, (40, CHANNELS))):
        unit = dyadic(make(any_name, dtype), seed)
        if needs_positions(unit) and len(shape) == 2:
            continue
        x = on_kinks(unit, shape, dtype)
        g = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) / 4
        found = run(copy.deepcopy(unit), x, g)
        with library.using("reference"):
            assert_same(found, run(unit, x, g), tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_prelu_at_zero_is_torchs(dtype: torch.dtype, mode: str, layout: torch.memory_format) -> None:
    """The slope at 0 of either sign is a."""
    ours, theirs = PReLU(CHANNELS).to(dtype), nn.PReLU(CHANNELS, dtype=dtype)
    x = on_kinks(ours, IMAGES, dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        for unit in (ours, theirs):
            unit.weight.copy_(torch.tensor([0.25, -0.5, 0.0, 2.0, 1.0, -1.0]))
    with library.using(mode):
        assert_same(run(ours, x), run(theirs, x), 0.0)
        assert torch.equal(run(ours, torch.zeros(1, CHANNELS, dtype=dtype))["x"][0], ours.weight.detach())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("b", [2.0, 2.7, 1.1, 0.3])
def test_ditac_at_its_ends(dtype: torch.dtype, mode: str, b: float) -> None:
    """At a the slope is T's, at b that of the line beyond: GE-DiTAC is x there."""
    unit = make(f"ditac_ge activation.b={b}", dtype)
    with torch.no_grad():
        unit.theta.normal_(generator=torch.Generator().manual_seed(1))
    end = torch.tensor([b], dtype=dtype)
    x = torch.stack([end, end.nextafter(end - 1), end - 1e-3, torch.zeros(1, dtype=dtype)]).expand(
        4, CHANNELS
    )
    with library.using(mode):
        slopes = run(unit, x)["x"][:, 0]
    assert abs(slopes[0].item() - 1) < 1e-9
    torch.testing.assert_close(slopes[1], slopes[2], rtol=0.05, atol=0)
    assert (slopes[1] - 1).abs() > 0.1
    assert (slopes[3] - 0.5).abs() > 0.01  # GELU's, from the left


@pytest.mark.parametrize("segments", range(1, 20))
def test_pwlu_at_its_right_end(segments: int) -> None:
    """Division by the width may round to a piece before the last knot."""
    unit = make(f"pwlu activation.segments={segments}")
    for right in (0.7, 1.1, 2.3, 2.9):
        with torch.no_grad():
            unit.curve.zero_()
            unit.left.fill_(-0.3)
            unit.right.fill_(right)
            unit.slope_right.fill_(5.0)
        end = unit.right.detach()
        x = torch.stack([end, end.nextafter(end - 1)]).expand(2, CHANNELS)
        assert torch.equal(run(unit, x)["x"][:, 0], torch.tensor([5.0, 0.0]))


# ---- devices


def test_the_default_device_does_not_matter(any_name: str) -> None:
    unit, x = make(any_name), draw()
    expected = run(copy.deepcopy(unit), x)
    penalty = penalty_of(unit)
    torch.set_default_device("meta")
    try:
        for mode in CPU_MODES:
            one = copy.deepcopy(unit)
            with library.using(mode):
                found = run(one, x)
                again = one.double().float()  # which makes constants anew
                assert all(tensor.is_cpu for tensor in again.state_dict().values())
                assert abs(penalty_of(again) - penalty) < 1e-4
            assert_same(found, expected, 5e-3 if "ditac" in any_name else 1e-4)
    finally:
        torch.set_default_device(None)


def test_made_without_memory_and_loaded(any_name: str) -> None:
    """On the meta device in float32, then float64 by assignment or into fresh memory; of a pickle and a copy of that, too."""
    dtype = torch.float64
    unit, x = make(any_name, dtype), draw(dtype=dtype)
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    if hasattr(unit, "align"):  # PWLU's ends in order
        unit.align(-torch.ones(len(unit.curve)), torch.ones(len(unit.curve)))
    expected, penalty = run(copy.deepcopy(unit), x), penalty_of(unit)
    with torch.device("meta"):
        assigned, filled = factory(any_name)(CHANNELS), factory(any_name)(CHANNELS).to(dtype)
    assigned.load_state_dict(copy.deepcopy(unit.state_dict()), assign=True)
    filled.to_empty(device="cpu").load_state_dict(unit.state_dict())
    for other in (assigned, filled):
        for one in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
            assert all(buffer.is_cpu for buffer in one.buffers())
            assert penalty_of(one) == penalty
            assert_same(run(one, x), expected, 0.0)


def test_every_factory_call_says_its_device() -> None:
    """But those of constructors, whose tensors belong on the default device."""
    factories = {
        "empty",
        "zeros",
        "ones",
        "full",
        "arange",
        "tensor",
        "linspace",
        "eye",
        "rand",
        "randn",
        "as_tensor",
    }
    silent = []
    folder = ROOT / "activations"
    for path in sorted([*folder.glob("*.py"), *folder.glob("kernels/*.py")]):
        tree = ast.parse(path.read_text())
        inside = {
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name == "__init__"
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node not in inside and isinstance(node.func, ast.Attribute):
                is_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
                said = any(keyword.arg in (None, "device") for keyword in node.keywords)
                if is_torch and node.func.attr in factories and not said:
                    silent.append(f"{path.name}:{node.lineno}")
    assert not silent


# ---- saved tensors


def whole(x: Tensor) -> Tensor:
    """A copy in the order of its dimensions, as save_on_cpu(pin_memory=True) gives back."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def turned(x: Tensor) -> Tensor:
    """A copy in the opposite order."""
    order = tuple(range(x.ndim))[::-1]
    return x.detach().permute(order).clone(memory_format=torch.contiguous_format).permute(order)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_tensors_may_come_back_in_another_layout(any_name: str, dtype: torch.dtype) -> None:
    unit = make(any_name, dtype)
    for p in unit.parameters():
        if p.ndim > 1 and "curve" not in dict(unit.named_parameters()) and "conv" not in str(unit):
            nn.init.uniform_(p, 0.1, 0.9)
    for give_back, x in itertools.product((whole, turned), (rows(draw(dtype=dtype)), draw(dtype=dtype))):
        g = draw(dtype=dtype).flip(0)
        expected = run(copy.deepcopy(unit), x, g)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, give_back):
            found = run(copy.deepcopy(unit), x, g)
        assert_same(found, expected, 1e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.skipif(
    not library.described().startswith("fused"), reason="torch's own operations take the tensors"
)
@pytest.mark.parametrize(
    "name", [name for name in OURS if name not in ("maxout", "poly_norm", "sugar", "swish")]
)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.half() if t.is_floating_point() else t,
        lambda t: t.to("meta"),
        lambda t: t.flatten()[:1],
    ],
    ids=["half", "meta", "shorter"],
)
def test_saved_tensors_of_another_kind_are_said(name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    unit, x = make(name), draw().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, spoil):
        y = unit(x)
    with pytest.raises(ValueError, match="a saved-tensor hook gave back"):
        y.sum().backward()


# ---- limits


@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a", [0.0, -0.0, 1e-45, 1e-30, -1e-20, 1e-9, 1e-4, -3e-3, 0.3, 0.6, 2.0, -7.0])
def test_snake_near_zero(a: float, dtype: torch.dtype, mode: str) -> None:
    """y = x, dy/dx = 1 and dy/da = x^2 at a = 0; near it by y = x + x z - x z^3 / 3 ... with z = a x."""
    unit = Snake(1).to(dtype)
    with torch.no_grad():
        unit.a.fill_(a)
    a = unit.a.item()
    x = torch.tensor([-3.0, -0.5, -1e-20, 0.0, 0.25, 2.0], dtype=dtype)
    with library.using(mode):
        for value in x.tolist():
            found = run(unit, torch.tensor([[value]], dtype=dtype))
            z = a * value
            sinc = math.sin(z) / z if z else 1.0
            y, dx = value + value * math.sin(z) * sinc, 1 + math.sin(2 * z)
            da = value * value * sinc * (2 * math.cos(z) - sinc)
            for key, expected in (("y", y), ("x", dx), ("a", da)):
                wanted = torch.tensor(expected, dtype=dtype)
                close = 4e-6 if dtype == torch.float32 else 1e-14
                torch.testing.assert_close(
                    found[key].squeeze(), wanted, rtol=close, atol=close * 1e-3 + 1e-38
                )


@pytest.mark.parametrize("mode", CPU_MODES)
def test_any_value_of_every_parameter_is_finite(name: str, mode: str) -> None:
    """Zero, and what is small or large, in one parameter after the other and in all."""
    for dtype, value in itertools.product(DTYPES, (0.0, 1e-30, -1e-30, 50.0, -50.0)):
        unit = make(name, dtype)
        x, given = on_kinks(unit, (2, CHANNELS, 4, 3), dtype), copy.deepcopy(unit.state_dict())
        keys = [key for key, _ in unit.named_parameters() if key != "theta" or abs(value) < 1]
        for chosen in [[key] for key in keys] + [keys]:
            unit.load_state_dict(given)
            with torch.no_grad():
                for key in chosen:
                    unit.get_parameter(key).fill_(min(value, 5.0) if key == "log_widths" else value)
            with library.using(mode):
                assert all(tensor.isfinite().all() for tensor in run(unit, x).values()), (
                    dtype,
                    value,
                    chosen,
                )


@pytest.mark.parametrize("mode", CPU_MODES)
@pytest.mark.parametrize("value", [-1e9, -3.0, 0.0])
def test_pelu_holds_its_parameters_at_the_minimum(value: float, mode: str) -> None:
    """However far below; the gradient is that at the minimum."""
    unit, held = make("pelu"), make("pelu")
    with torch.no_grad():
        unit.a.fill_(value), unit.b.fill_(value)
        held.a.fill_(0.1), held.b.fill_(0.1)
    with library.using(mode):
        assert_same(run(unit, draw()), run(held, draw()), 0.0)


@pytest.mark.parametrize("mode", CPU_MODES)
def test_empty_input_has_gradients_of_zero(any_name: str, mode: str) -> None:
    """No samples, or maps without positions; running statistics stay."""
    unit = make(any_name)
    before = {key: buffer.clone() for key, buffer in unit.named_buffers()}
    for shape in [(0, CHANNELS, 3, 5), (2, CHANNELS, 0, 5), (2, CHANNELS, 5, 0), (0, CHANNELS)]:
        if needs_positions(unit) and len(shape) == 2:
            continue
        with library.using(mode):
            found = run(unit, torch.zeros(shape))
            assert unit(rows(torch.zeros(shape)) if len(shape) == 4 else torch.zeros(shape)).shape == shape
        assert found.pop("y").shape == shape
        assert all(not gradient.any() for gradient in found.values()), shape
    assert all(torch.equal(buffer, before[key]) for key, buffer in unit.named_buffers() if "running" in key)
