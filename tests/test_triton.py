"""The kernels for a GPU, in Triton's interpreter, on tensors of the CPU: values and gradients of the reference.

What the interpreter does not show (that the kernels compile, and how fast they are) is not tested here.
"""

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from fused import UNITS, WINDOWS, arranged, draw, is_fused, make, run, takes
from torch import Tensor

from activations.base import Activation
from activations.kernels import library
from activations.kernels.gpu import ditac
from activations.kernels.lookup import piecewise_linear
from activations.kernels.pointwise import pointwise
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.swish import Swish

if not library.HAS_TRITON or not library.INTERPRETED:
    pytest.skip("Triton is not installed, or TRITON_INTERPRET=1 not set", allow_module_level=True)

# The interpreter computes with numpy, which warns of what the hardware does silently.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# These have no kernel for a GPU: a table of 2,048 heights without a fixed function outside.
WITHOUT = ("ditac inf",)
NAMES = [name for name in UNITS if name not in WITHOUT]
# Relative to the largest number of a tensor: half a unit in the last place of y and of every factor of a gradient.
TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ditac, "POINTS", 2048)  # one program, as the interpreter takes them one after the other
    with library.using("triton"):
        yield


def exact(unit: Activation, x: Tensor, g: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What ``run`` returns, by the reference in float64 or another dtype."""
    with library.using("reference"):
        return run(copy.deepcopy(unit).to(dtype), x.to(dtype), g.to(dtype))


def compare(unit: Activation, x: Tensor, g: Tensor) -> None:
    """Compare a run with the exact one.

    An error is at most a rounding of what is returned, or twice that of the reference in float32.
    """
    expected, single = exact(unit, x, g), exact(unit, x, g, torch.float32)
    found = run(unit, x, g)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        own = found[key]
        assert own.shape == value.shape
        tolerance = TOLERANCES[own.dtype if key in ("y", "x") else torch.float32]
        limit = torch.finfo(own.dtype).max
        value = torch.where(value.abs() > limit, value.sign() * math.inf, value)
        scale = max(1.0, value.abs().nan_to_num(posinf=0, neginf=0).max().item())
        missed = (single[key] - value).abs().nan_to_num(nan=0, posinf=0, neginf=0).max().item()
        torch.testing.assert_close(
            *(own.double(), value),
            rtol=tolerance,
            atol=tolerance * scale + 2 * missed,
            equal_nan=True,
            msg=lambda m, key=key: f"{key}: {m}",
        )


def uses_a_kernel(unit: Activation, x: Tensor) -> bool:
    return is_fused(unit(x.detach().requires_grad_()))


@pytest.mark.parametrize("name", NAMES)
def test_is_the_reference(name: str) -> None:
    cases = [
        ((2, 3, 5, 4), "planes", torch.float32, 1),
        ((3, 5, 2, 2), "rows", torch.bfloat16, 1),
        ((5, 7), "planes", torch.float16, 1),
        ((2, 3, 2, 3), "transposed", torch.float32, -1),
        ((1, 33, 6, 1), "planes", torch.float32, 1),
    ]
    for shape, layout, dtype, channel_dim in cases:
        if not takes(name, shape):
            continue
        unit = make(name, shape[channel_dim], torch.float32, channel_dim=channel_dim)
        x = arranged(2 * draw(shape), layout).to(dtype)
        assert uses_a_kernel(unit, x) or len(shape) == 2  # a gate without positions is the reference's
        compare(unit, x, draw(shape, seed=1).to(dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_inputs_do_what_the_reference_does(name: str, value: float) -> None:
    """In float32; NaN and infinity are where the reference has them, in the gradients too."""
    unit, x = make(name, 3, torch.float32), draw((4, 3), torch.float32)
    x[1, 2] = value
    found = run(unit, x, torch.ones_like(x))
    with library.using("reference"):
        expected = run(copy.deepcopy(unit), x, torch.ones_like(x))
    rest = torch.ones_like(x, dtype=torch.bool)
    rest[1, 2] = False
    for key in ("y", "x"):
        assert found[key][1, 2].isnan() == expected[key][1, 2].isnan()
        torch.testing.assert_close(found[key][rest], expected[key][rest], rtol=1e-4, atol=1e-4)
    if not math.isnan(value):
        torch.testing.assert_close(found["y"], expected["y"], rtol=1e-4, atol=1e-4, equal_nan=True)
    else:  # and the gradients of the parameters do not hide it
        names = [key for key, _ in unit.named_parameters()]
        assert any(found[key].isnan().any() for key in names) == any(expected[key].isnan().any() for key in names)
