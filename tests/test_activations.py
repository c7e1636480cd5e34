"""The contract of every activation, discovered from conf/, and values against independent references."""

import copy
import inspect
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACTIVATIONS, config, make_factory, make_task
from hydra.utils import get_class
from torch import nn

from activations.base import Activation

CHANNELS = 6
SHAPES = [(5, CHANNELS), (4, CHANNELS, 7), (3, CHANNELS, 5, 4)]
DATA = Path(__file__).parent / "data"


@pytest.fixture(params=ACTIVATIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def unit(name: str) -> Activation:
    torch.manual_seed(0)
    return make_factory(name)(CHANNELS)


def away_from_zero(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values around 0 but not near it, where many activations have a kink."""
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return x + 0.1 * x.sign()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype(unit: Activation, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = away_from_zero(shape, dtype)
    y = unit.to(dtype)(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()


def test_does_not_change_its_input(unit: Activation) -> None:
    x = away_from_zero(SHAPES[-1])
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)


def test_keeps_channels_last(unit: Activation) -> None:
    x = away_from_zero((3, CHANNELS, 5, 4))
    y = unit(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, unit(x))  # not equal: torch's vector and scalar code round differently


@pytest.mark.parametrize("shape", SHAPES)
def test_channels_last_dimension_is_the_same_function(name: str, shape: tuple[int, ...]) -> None:
    """(B, T, C) networks keep channels in the last dimension."""
    torch.manual_seed(0)
    first = make_factory(name)(CHANNELS)
    last = make_factory(name)(CHANNELS, channel_dim=-1)
    for parameter in first.parameters():  # different by channel, so that a mix-up shows
        nn.init.uniform_(parameter, 0.1, 0.9)
    last.load_state_dict(first.state_dict())
    x = away_from_zero(shape)
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), first(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_finite_differences(unit: Activation, shape: tuple[int, ...]) -> None:
    unit.double()
    x = away_from_zero(shape, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: unit(x), (x, *unit.parameters()))


@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
def test_is_finite_for_large_and_zero_inputs(unit: Activation, scale: float) -> None:
    x = torch.full((2, CHANNELS, 3, 3), scale, requires_grad=True)
    unit(x).sum().backward()
    assert unit(x).isfinite().all()
    for tensor in (x, *unit.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_takes_an_empty_batch(unit: Activation) -> None:
    assert unit(torch.zeros(0, CHANNELS, 4, 4)).shape == (0, CHANNELS, 4, 4)


def test_works_under_autocast(unit: Activation) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = unit(away_from_zero(SHAPES[-1]).bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), unit(away_from_zero(SHAPES[-1])), atol=0.05, rtol=0.05)


def test_state_dict_and_copies_give_the_same_function(name: str, unit: Activation) -> None:
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    x = away_from_zero(SHAPES[-1])
    buffer = io.BytesIO()
    torch.save(unit.state_dict(), buffer)
    buffer.seek(0)
    other = make_factory(name)(CHANNELS)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), unit(x))
    assert torch.equal(copy.deepcopy(unit)(x), unit(x))


def test_parameters_are_fresh_at_every_call(name: str) -> None:
    factory = make_factory(name)
    one, two = factory(CHANNELS), factory(CHANNELS)
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}


def test_every_parameter_learns(unit: Activation) -> None:
    optimizer = torch.optim.SGD([*unit.parameters(), nn.Parameter(torch.zeros(()))], lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in unit.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        unit(away_from_zero(SHAPES[-1])).square().sum().backward() if before else None
        optimizer.step()
    for name, parameter in unit.named_parameters():
        assert (parameter != before[name]).all(), name


def test_declarations_are_consistent(unit: Activation) -> None:
    assert unit.no_decay <= dict(unit.named_parameters()).keys()
    assert float(unit.regularization()) >= 0
    assert unit.flops(SHAPES[-1]) is None or unit.flops(SHAPES[-1]) > 0
    assert all(isinstance(value, torch.Tensor) for value in unit.diagnostics().values())


def test_curves_are_the_forward(unit: Activation) -> None:
    """Row u of the curves is what channel u (or every channel, if there is one row) does to the points."""
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    x = torch.linspace(-3, 3, 31)
    curves = unit.curves(x)
    assert curves is not None
    assert curves.shape in {(1, 31), (CHANNELS, 31)}
    torch.testing.assert_close(curves.expand(CHANNELS, 31), unit(x[:, None].expand(31, CHANNELS)).T)


def test_compiles_without_graph_breaks(unit: Activation) -> None:
    torch._dynamo.reset()  # the units share code, and dynamo gives up on code it has compiled too often
    x = away_from_zero(SHAPES[-1])
    compiled = torch.compile(unit, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), unit(x))


def test_a_small_network_learns_with_it(name: str) -> None:
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 64)[:, None]
    y = (2 * x).sin()
    act_layer = make_factory(name)
    network = nn.Sequential(
        nn.Linear(1, 32), act_layer(32), nn.Linear(32, 32), act_layer(32), nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    first = nn.functional.mse_loss(network(x), y).item()
    for _ in range(400):
        loss = nn.functional.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_yaml_lists_exactly_the_hyper_parameters(name: str) -> None:
    """What a yaml does not list can be misspelt without anybody noticing."""
    node = config(f"activation={name}").activation
    cls = get_class(node._target_)
    listed = {key for key in node if not key.startswith("_")}
    known = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in known):
        known = inspect.signature(cls.layer).parameters.values()
    legal = {p.name for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert listed == legal - {"num_features", "channel_dim", "inplace"}


@pytest.mark.parametrize("num_features", [0, -1, 2.0, "8"])
def test_refuses_an_impossible_number_of_channels(name: str, num_features: object) -> None:
    with pytest.raises(ValueError, match="num_features"):
        make_factory(name)(num_features)


def test_a_network_shares_no_activation(name: str) -> None:
    network = make_task("digits").build_network(make_factory(name))
    units = [module for module in network.modules() if isinstance(module, Activation)]
    assert len(units) == 3
    assert len({id(p) for unit in units for p in unit.parameters()}) == sum(
        len([*u.parameters()]) for u in units
    )


@pytest.mark.parametrize(
    "override", ["prelu activation.init=nan", "prelu activation.init=x", "swish activation.per_channel=true"]
)
def test_refuses_bad_hyper_parameters(override: str) -> None:
    with pytest.raises(ValueError, match=r"init|per_channel"):
        make_factory(*override.split())(CHANNELS)


# reference vectors: file -> command line of the same unit
GOLDEN = {
    "elu": ("elu",),
    "gelu_erf": ("gelu",),
    "gelu_tanh": ("gelu", "activation.approximate=tanh"),
    "leaky_relu": ("leaky_relu",),
    "mish": ("mish",),
    "selu": ("selu",),
    "silu": ("swish",),
    "prelu_channel": ("prelu",),
    "prelu_shared": ("prelu_shared",),
    "swish_beta": ("swish_beta",),
    "swish_beta_channel": ("swish_beta_channel",),
}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize("file", GOLDEN)
def test_agrees_with_reference_vectors(file: str, dtype: torch.dtype, limit: float) -> None:
    golden = dict(np.load(DATA / f"{file}.npz"))
    x = torch.tensor(golden["x"], dtype=dtype, requires_grad=True)
    unit = make_factory(*GOLDEN[file])(x.shape[1]).to(dtype)
    parameters = dict(unit.named_parameters())
    with torch.no_grad():
        for (_, parameter), value in zip(
            parameters.items(), [golden[key] for key in golden if key.startswith("param__")], strict=True
        ):
            parameter.copy_(torch.tensor(value).view_as(parameter))
    y = unit(x)
    y.backward(torch.tensor(golden["grad_out"], dtype=dtype))

    found = {"y": y.detach(), "grad_x": x.grad}
    gradients = [key for key in golden if key.startswith("grad__")]
    found |= {key: p.grad for key, p in zip(gradients, parameters.values(), strict=True)}
    for key, value in found.items():
        reference = torch.tensor(golden[key])
        error = (value.double().view_as(reference) - reference).abs().max() / reference.abs().max().clamp_min(
            1
        )
        assert error < limit, f"{key}: {error:.2e} ({json.loads(str(golden['meta']))['activation']})"
