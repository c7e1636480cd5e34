"""The contract of every activation, discovered from conf/. A skip carries its reason."""

import copy
import inspect
import io
import math
from itertools import product

import pytest
import torch
from conftest import ACTIVATIONS, CLASSES, activation_config, config, make_factory, make_task
from hydra.utils import get_class
from torch import Tensor, nn

from activations.base import DIAGNOSTIC_ROLES, Activation
from activations.kernels import library
from runners.optim import sites

CHANNELS = 6
IMAGES = (3, CHANNELS, 5, 4)
SHAPES = [(5, CHANNELS), (4, CHANNELS, 7), IMAGES, (2, CHANNELS, 1, 1)]
# what no yaml of its own shows, but takes other ways through the code
VARIANTS = [
    "ditac activation.interpolation=nearest",
    "ditac activation.table_size=null",
    "ditac_inf activation.zero_boundary=true",
    "dyrelu activation.pieces=3",
    "finer activation.detach=false",
    "gct activation.base=null",
    "group_rational activation.groups=4",
    "maxout activation.grouping=split",
    "npwlu activation.per_channel=true",
    "pwlu activation.fix_init=2",
    "snake activation.trainable=false",
    "swish activation.beta=1.7",
]


@pytest.fixture(params=[*ACTIVATIONS, *VARIANTS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def unit(name: str) -> Activation:
    torch.manual_seed(0)
    return make_factory(*name.split())(CHANNELS)


def away_from_zero(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Values around 0 but not near it, where many activations have a kink."""
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x + 0.1 * x.sign()


def serves(unit: Activation, shape: tuple[int, ...]) -> bool:
    """Whether the unit takes input of this shape. If not, it says so in one sentence; images all units take."""
    refusal = ""
    try:
        with torch.no_grad():
            copy.deepcopy(unit)(torch.zeros(shape))
    except ValueError as error:
        refusal = str(error)
    assert not refusal or (shape != IMAGES and str(tuple(shape)) in refusal)
    return not refusal


def need(unit: Activation, shape: tuple[int, ...]) -> None:
    if not serves(unit, shape):
        pytest.skip(f"needs positions: no input of shape {shape}")


def is_scalar(unit: Activation) -> bool:
    """Whether an output depends on the one input at its place alone."""
    return unit.curves(torch.zeros(1)) is not None


def test_keeps_shape_and_dtype(unit: Activation) -> None:
    shapes = [shape for shape in SHAPES if serves(unit, shape)]
    for dtype, shape in product((torch.float32, torch.float64), shapes):
        x = away_from_zero(shape, dtype)
        y = unit.to(dtype)(x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert y.isfinite().all()


def test_does_not_change_its_input(unit: Activation) -> None:
    x = away_from_zero(IMAGES)
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)


def test_keeps_channels_last(unit: Activation) -> None:
    x = away_from_zero(IMAGES)
    y = unit(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, unit(x))  # not equal: torch's vector and scalar code round differently


def test_channels_last_dimension_is_the_same_function(name: str) -> None:
    """(B, T, C) networks keep channels in the last dimension."""
    torch.manual_seed(0)
    first, last = (make_factory(*name.split())(CHANNELS, channel_dim=dim) for dim in (1, -1))
    for parameter in first.parameters():  # different by channel, so that a mix-up shows
        nn.init.uniform_(parameter, 0.1, 0.9)
    last.load_state_dict(first.state_dict())
    for shape in SHAPES:
        if serves(first, shape):
            x = away_from_zero(shape)
            torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), first(x))


@pytest.mark.parametrize("name", ["prelu", "dyrelu_c activation.init_a=[1,1]", "gct_l1 activation.base=null"])
def test_these_tests_see_the_configuration_of_a_command_line(name: str) -> None:
    assert activation_config(*name.split()) == config(*f"activation={name}".split()).activation


@pytest.mark.parametrize("shape", [(3, CHANNELS), (2, CHANNELS, 4), (2, CHANNELS, 3, 2)])
def test_gradients_agree_with_finite_differences(unit: Activation, shape: tuple[int, ...]) -> None:
    """Exactly where the unit says so: one that trains by another gradient than its own must not pass."""
    need(unit, shape)
    unit.double()
    x = away_from_zero(shape, torch.float64).requires_grad_()
    # in images each derivative, in other ranks a random combination of them
    agree = torch.autograd.gradcheck(
        lambda x, *_: unit(x),
        (x, *unit.parameters()),
        raise_exception=unit.exact_gradient,
        fast_mode=len(shape) < 4,
    )
    assert agree == unit.exact_gradient


def test_second_derivatives_agree_with_finite_differences(unit: Activation) -> None:
    """Away from kinks: between them a piecewise-linear unit is smooth, and 0 is the right second derivative."""
    if not unit.exact_gradient:
        pytest.skip("the unit's gradient is not that of its function (exact_gradient)")
    unit.double()
    x = away_from_zero((2, CHANNELS, 2, 2), torch.float64).requires_grad_()
    parameters = tuple(unit.parameters())
    assert torch.autograd.gradgradcheck(lambda x, *_: unit(x), (x, *parameters), atol=1e-4, fast_mode=True)


def test_is_finite_for_large_and_zero_inputs(name: str) -> None:
    for scale in (1e4, -1e4, 0.0):
        unit = make_factory(*name.split())(CHANNELS)
        x = torch.full((2, CHANNELS, 3, 3), scale, requires_grad=True)
        unit(x).sum().backward()
        assert unit(x).isfinite().all()
        for tensor in (x, *unit.parameters()):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()


def test_works_in_inference_mode(unit: Activation) -> None:
    x = away_from_zero(IMAGES)
    expected = unit.eval()(x)
    with torch.inference_mode():
        assert torch.equal(unit(x), expected)


def test_float64_has_all_its_digits(name: str, unit: Activation) -> None:
    """Hyper-parameters and constants, too: a float32 number among them would show at 1e-8."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        wide = make_factory(*name.split())(CHANNELS)
    finally:
        torch.set_default_dtype(torch.float32)
    unit.double().load_state_dict(wide.state_dict())
    x = away_from_zero(IMAGES, torch.float64)
    torch.testing.assert_close(unit(x), wide(x), atol=1e-12, rtol=1e-12)


def test_takes_an_empty_batch(unit: Activation) -> None:
    assert unit(torch.zeros(0, CHANNELS, 4, 4)).shape == (0, CHANNELS, 4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_works_under_autocast(unit: Activation, dtype: torch.dtype) -> None:
    """Whatever precision the layer before hands over comes out again."""
    half = away_from_zero(IMAGES).to(dtype)
    for x in (half, half.float()):
        with torch.autocast("cpu", dtype=dtype):
            y = unit(x)
        assert y.dtype == x.dtype
        torch.testing.assert_close(y.float(), unit(x.float()), atol=0.05, rtol=0.05)


def test_what_is_not_finite_stays_where_it_is(unit: Activation) -> None:
    """In its place, or in its sample where the unit looks at a whole sample; in evaluation, where samples are apart."""
    unit.eval()
    bad = torch.zeros(IMAGES, dtype=torch.bool)
    bad[1, 2, 3, 1] = True
    touched = bad if is_scalar(unit) else bad.flatten(1).any(1).view(-1, 1, 1, 1).expand(IMAGES)

    def values(x: Tensor) -> tuple[Tensor, Tensor]:
        y = unit(x.requires_grad_())
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    expected = values(away_from_zero(IMAGES))
    for value in (math.nan, math.inf, -math.inf):
        found = values(away_from_zero(IMAGES).masked_fill(bad, value))
        for clean, spoilt in zip(expected, found, strict=True):
            assert torch.equal(clean[~touched], spoilt[~touched])
        assert not found[0][bad].isfinite() or not math.isnan(value)


def test_a_batch_that_is_not_finite_spoils_no_statistics(unit: Activation) -> None:
    unit.start_epoch(0, 100)
    for value in (math.nan, math.inf):
        x = away_from_zero(IMAGES)
        x[0, 1, 2, 3] = value
        unit(x)
        assert all(buffer.isfinite().all() for buffer in unit.buffers())
    unit(away_from_zero(IMAGES))
    unit.eval()
    assert unit(away_from_zero(IMAGES)).isfinite().all()


def test_state_dict_and_copies_give_the_same_function(name: str, unit: Activation) -> None:
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    x = away_from_zero(IMAGES)
    buffer = io.BytesIO()
    torch.save(unit.state_dict(), buffer)
    buffer.seek(0)
    other = make_factory(*name.split())(CHANNELS)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), unit(x))
    assert torch.equal(copy.deepcopy(unit)(x), unit(x))


def test_parameters_are_fresh_at_every_call(name: str) -> None:
    factory = make_factory(*name.split())
    one, two = factory(CHANNELS), factory(CHANNELS)
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}


def test_every_parameter_learns(unit: Activation) -> None:
    """Three steps of Adam, which moves whatever has a gradient, however small.

    The later ones are in evaluation mode: in training, a norm cancels the bias before it. The first moves all by as
    much, so that two slopes which were equal still are, and the place where they meet has a gradient in the third.
    """
    x = 4 * torch.randn(64, CHANNELS, 5, 4)
    before = {name: parameter.detach().clone() for name, parameter in unit.named_parameters()}
    if not before:
        pytest.skip("has no parameters")
    assert all(parameter.requires_grad for parameter in unit.parameters())
    optimizer = torch.optim.Adam(unit.parameters(), lr=0.01)
    for training in (True, False, False):
        unit.train(training)
        optimizer.zero_grad()
        (unit(x) * torch.randn(x.shape)).mean().backward()
        optimizer.step()
    for name, parameter in unit.named_parameters():
        moved = parameter != before[name]
        # a dead hidden unit of a small network may rest; a learned shape may not
        assert moved.all() if is_scalar(unit) else moved.float().mean() > 0.5, name


def test_declarations_are_consistent(unit: Activation) -> None:
    assert unit.no_decay <= dict(unit.named_parameters()).keys()
    assert torch.as_tensor(unit.regularization()).detach() >= 0
    assert unit.flops(IMAGES) is None or unit.flops(IMAGES) > 0
    for seen in (unit.diagnostics(), unit.diagnostics(away_from_zero(IMAGES))):
        assert all(isinstance(value, Tensor) and value.isfinite().all() for value in seen.values())


def test_curves_are_the_forward(unit: Activation) -> None:
    """Row u of the curves is what channel u (or every channel, if there is one row) does to the points."""
    if not is_scalar(unit):
        pytest.skip("is no scalar function")
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    x = torch.linspace(-3, 3, 31)
    curves = unit.curves(x)
    assert curves is not None
    assert curves.shape in {(1, 31), (CHANNELS, 31)}
    torch.testing.assert_close(curves.expand(CHANNELS, 31), unit(x[:, None].expand(31, CHANNELS)).T)


def test_compiles_without_graph_breaks(name: str, unit: Activation) -> None:
    """One configuration of each class with its backward pass as well, which takes three times as long."""
    torch._dynamo.reset()  # the units share code, and dynamo gives up on code it has compiled too often
    results = []
    backend = "aot_eager" if name in CLASSES else "eager"
    with library.using("reference"):  # which is what is compiled
        for function in (unit, torch.compile(unit, fullgraph=True, backend=backend)):
            x = away_from_zero(IMAGES).requires_grad_()
            y = function(x)
            gradients = torch.autograd.grad(y.square().sum(), (x, *unit.parameters()))
            results.append((y, *gradients))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*CLASSES, *VARIANTS, "ditac_inf", "dyrelu_a", "dyrelu_c", "gct_before"])
def test_exports_for_any_batch(unit: Activation) -> None:
    unit.eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(unit, (away_from_zero(IMAGES),), dynamic_shapes=({0: batch},))
    for samples in (IMAGES[0], 5):
        x = away_from_zero((samples, *IMAGES[1:]))
        torch.testing.assert_close(exported.module()(x), unit(x))


# torch's own batching rule of prelu
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_maps_over_stacked_parameters(name: str) -> None:
    """torch.func: an ensemble of units in one call."""
    units = [make_factory(*name.split())(CHANNELS).eval() for _ in range(3)]
    for unit in units:
        for parameter in unit.parameters():
            nn.init.uniform_(parameter, 0.1, 0.9)
    x = away_from_zero(IMAGES)
    state = torch.func.stack_module_state(units)
    if not state[0]:
        pytest.skip("has no parameters")
    together = torch.func.vmap(lambda *state: torch.func.functional_call(units[0], state, (x,)))(*state)
    torch.testing.assert_close(together, torch.stack([unit(x) for unit in units]), atol=1e-5, rtol=1e-5)


def test_a_small_network_learns_with_it(name: str) -> None:
    """At one of two usual learning rates: a unit of a high frequency takes the smaller one."""
    x = torch.linspace(-2, 2, 64)[:, None]
    y = (2 * x).sin()
    act_layer = make_factory(*name.split())
    need(act_layer(CHANNELS), SHAPES[0])
    ratios = []
    for lr in (0.005, 0.001):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(1, 32), act_layer(32), nn.Linear(32, 32), act_layer(32), nn.Linear(32, 1)
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        first = nn.functional.mse_loss(network(x), y).item()
        for _ in range(400):
            loss = nn.functional.mse_loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.2 * first:
                return
        ratios.append(loss.item() / first)
    pytest.fail(f"loss at the end, relative to the first: {ratios}")


def test_diagnostics_with_a_role_exist(unit: Activation) -> None:
    x = away_from_zero(IMAGES)
    with torch.no_grad():
        values = unit.diagnostics(x)
    assert unit.diagnostic_roles.keys() <= values.keys()
    shapes = {
        "interval_end": [(1,), (CHANNELS,)],
        "gate": [(CHANNELS,), (len(x), CHANNELS)],
    }
    for name, role in unit.diagnostic_roles.items():
        value = values[name]
        assert role in DIAGNOSTIC_ROLES
        assert tuple(value.shape) in shapes.get(role, [tuple(value.shape)])
        if role == "occupancy":
            torch.testing.assert_close(value.sum(-1), torch.ones(len(value)))


def test_yaml_lists_exactly_the_hyper_parameters(name: str) -> None:
    """What a yaml does not list can be misspelt without anybody noticing."""
    node = activation_config(*name.split())
    cls = get_class(node._target_)
    listed = {key for key in node if not key.startswith("_")}
    known = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in known):
        known = inspect.signature(cls.layer).parameters.values()
    legal = {p.name for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert listed == legal - {"num_features", "channel_dim", "inplace"}


def test_refuses_an_impossible_number_of_channels(name: str) -> None:
    for num_features in (0, -1, 2.0, "8"):
        with pytest.raises(ValueError, match="num_features"):
            make_factory(*name.split())(num_features)


def test_a_network_shares_no_activation(name: str) -> None:
    network = make_task("digits").build_network(make_factory(*name.split()))
    units = list(sites(network).values())
    assert len(units) == 3
    assert len({id(p) for unit in units for p in unit.parameters()}) == sum(
        len([*u.parameters()]) for u in units
    )
