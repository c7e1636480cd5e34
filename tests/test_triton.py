"""The kernels for a GPU, in Triton's interpreter, on tensors of the CPU: values and gradients of the reference.

What the interpreter does not show, that the kernels compile, is a slow test; how fast they are nobody has measured.
"""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import check_parity
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from conftest import PROCESS, ROOT
from fused import GATED, POINTWISE, UNITS, arranged, draw, is_fused, is_kernel, make, nodes, run, takes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from waits import Copies

from activations.base import Activation
from activations.kernels import library
from activations.pwlu import PWLU

if not library.HAS_TRITON or not library.INTERPRETED:
    pytest.skip("Triton is not installed, or TRITON_INTERPRET=1 not set", allow_module_level=True)

from activations.kernels.gate import MOST_LINES, Memory
from activations.kernels.gpu import ditac, launch, ops, pointwise, window

# The interpreter computes with numpy, which warns of what the hardware does silently.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# No kernel: a table of 2,048 heights without a fixed function outside. No float32 throughout: torch's ELU in half precision.
WITHOUT = ("ditac inf", "gct elu")
NAMES = [name for name in UNITS if name not in WITHOUT]
# Relative to the largest number of a tensor: half a unit in the last place of y and of every factor of a gradient.
TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        ditac, "POINTS", 2048
    )  # one program, as the interpreter takes them one after the other
    with library.using("triton"):
        yield


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles so small that a program has several of them, and an input several programs."""
    for module, name, value in (
        (launch, "MOST", 64),
        (launch, "FEWEST", 64),
        (launch, "PROGRAMS", 1),
        (window, "BLOCK", 32),
        (ditac, "TILE", 32),
        (ditac, "SUMS", 256),
    ):
        monkeypatch.setattr(module, name, value)
    launch.tiles.cache_clear()
    yield
    launch.tiles.cache_clear()


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
        if not value.is_floating_point():
            assert torch.equal(own, value)
            continue
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


def small(name: str, channels: int, **hyper: int) -> Activation:
    """A unit in float32; one with a table has a short one, which takes the interpreter less time."""
    if name.startswith("ditac"):
        hyper["table_size"] = 65
    return make(name, channels, torch.float32, **hyper)


def uses_a_kernel(unit: Activation, x: Tensor) -> bool:
    return is_fused(unit(x.detach().requires_grad_()))


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "data").glob("*.npz")), ids=lambda path: path.stem)
def test_agrees_with_reference_vectors(path: Path) -> None:
    good, line = check_parity.check(dict(np.load(path)))
    assert good, line


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("name", NAMES)
def test_is_the_reference(name: str) -> None:
    cases = [
        ((2, 3, 5, 4), "planes", torch.float32, 1),
        ((3, 5, 2, 2), "rows", torch.bfloat16, 1),
        ((2, 3, 2, 3), "transposed", torch.float16, -1),
    ]
    for shape, layout, dtype, channel_dim in cases:
        if not takes(name, shape):
            continue
        if name in GATED and layout == "transposed":
            layout = "planes"  # with channels in the last dimension: rows; gates take no other layout
        unit = small(name, shape[channel_dim], channel_dim=channel_dim)
        x = arranged(2 * draw(shape), layout).to(dtype)
        assert uses_a_kernel(unit, x)
        compare(unit, x, draw(shape, seed=1).to(dtype))


VALUES = [1e-30, 1e4, -1e4, 1e30, -1e30, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("name", [name for name in POINTWISE if name not in WITHOUT])
def test_extreme_values(name: str) -> None:
    """What is finite in y and its slope by the reference is so by the kernel, and the same; other elements do not change."""
    unit, x = small(name, 3), draw((10, 3), torch.float32)
    x[: len(VALUES), 1] = torch.tensor(VALUES)
    g = torch.ones_like(x)
    found, expected = run(unit, x, g), exact(unit, x, g, torch.float32)
    others = torch.ones_like(x, dtype=torch.bool)
    others[: len(VALUES), 1] = False
    for key, tolerance in (("y", 1e-4), ("x", 1e-3)):
        torch.testing.assert_close(found[key][others], expected[key][others], rtol=tolerance, atol=tolerance)
    lost = ("finer", "fourier", "group_rational", "hermite", "pau", "sine", "snake", "staf")
    for value, y, y_of, dx, dx_of in zip(
        VALUES, *(each[key][:, 1] for key in ("y", "x") for each in (found, expected)), strict=False
    ):
        if (
            abs(value) < 1e30 or not math.isfinite(value) or not name.startswith(lost)
        ):  # no digits are left there
            torch.testing.assert_close(y, y_of, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert dx.isfinite() or not dx_of.isfinite(), value


def test_a_nan_is_not_hidden_from_the_gradients() -> None:
    x = torch.tensor([[1.0, 2.0], [math.nan, 3.0]])
    for name in ("swish per channel", "pwlu per channel", "gct"):
        rank = x.view(2, 2, 1) if name == "gct" else x
        gradients = run(make(name, 2, torch.float32), rank, torch.ones_like(rank))
        last = gradients[{"swish per channel": "beta", "pwlu per channel": "curve", "gct": "gamma"}[name]]
        assert last[0].isnan().any()
        if name != "gct":  # a channel that has seen none
            assert last[1].isfinite().all()
            assert not gradients["x"][0].isnan().any()


# ---- where the channels are


@pytest.mark.parametrize("name", ["prelu", "pwlu per channel", "gct", "dyrelu b"])
@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_channels_are_not_taken_for_another_dimension_of_their_number(
    name: str, order: tuple[int, ...]
) -> None:
    """In any order of memory, for both places of the channels, where all dimensions have one length."""
    x = draw((3, 3, 3), torch.float32).permute(order)
    assert not x.is_contiguous()
    for channel_dim in (1, 2):
        compare(
            make(name, 3, torch.float32, channel_dim=channel_dim), x, draw((3, 3, 3), torch.float32, seed=1)
        )


@pytest.mark.parametrize(("channels", "layout"), [(1, "planes"), (5, "planes"), (1, "rows"), (65, "rows")])
def test_any_number_of_channels(channels: int, layout: str) -> None:
    for name in ("prelu", "pwlu per channel", "dyrelu a", "meta_acon", "frelu light"):
        shape = (2, channels, 2, 3)
        compare(
            make(name, channels, torch.float32),
            arranged(draw(shape), layout).float(),
            draw(shape, torch.float32, seed=1),
        )


def test_tilings_cover_every_element_once() -> None:
    """The kernels' own arithmetic, for shapes of all kinds and sizes beyond 2^31."""
    for at in (
        (1, 1, 1),
        (3, 5, 1),
        (7, 64, 49),
        (2, 3, 5000),
        (128, 64, 3136),
        (1, 1, 2**31 + 7),
        (4, 70, 1),
    ):
        for sums in (0, 1, 21, 40):
            tiles = launch.tiles(*at, sums=sums, processors=132)
            _, units, inner = at
            assert tiles.height & (tiles.height - 1) == tiles.width & (tiles.width - 1) == 0
            assert tiles.height * tiles.width <= launch.MOST
            wide = units if tiles.by_rows else inner
            across = tiles.groups if tiles.by_rows else -(-inner // tiles.width)
            assert (across - 1) * tiles.width < wide <= across * tiles.width
            assert 1 <= tiles.programs <= max(1, launch.PROGRAMS * 132)
            assert tiles.groups == (-(-units // tiles.width) if tiles.by_rows else units)


@triton.jit
def addresses_kernel(
    offsets_ptr,
    mask_ptr,
    tile,
    group,
    units,
    outer,
    inner,
    across,
    by_rows: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    unit = pointwise._units(group, by_rows, width)
    offsets, mask = pointwise._elements(tile, unit, units, outer, inner, across, by_rows, height, width)
    lanes = tl.arange(0, height)[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(offsets_ptr + lanes, offsets)
    tl.store(mask_ptr + lanes, mask)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2**31 - 1), (1, 1, 2**33 + 5), (2**32 + 1, 3, 1), (2**20 + 1, 70, 1), (2**20, 5, 2**13 + 1)],
)
def test_addresses_beyond_32_bits(shape: tuple[int, int, int]) -> None:
    """Those of the last tile, in the arithmetic of the kernels, which wraps around as a GPU's does."""
    tiles = launch.tiles(*shape, sums=0, processors=132)
    offsets = torch.empty(tiles.height, tiles.width, dtype=torch.int64)
    mask = torch.empty_like(offsets, dtype=torch.bool)
    addresses_kernel[(1,)](
        *(
            offsets,
            mask,
            tiles.count - 1,
            tiles.groups - 1,
            tiles.units,
            tiles.outer,
            tiles.inner,
            tiles.across,
        ),
        by_rows=tiles.by_rows,
        height=tiles.height,
        width=tiles.width,
    )
    outer, units, inner = shape
    rows = range((outer - 1) // tiles.height * tiles.height, outer)
    if tiles.by_rows:
        first = (units - 1) // tiles.width * tiles.width
        expected = [row * units + unit for row in rows for unit in range(first, units)]
    else:
        first = (inner - 1) // tiles.width * tiles.width
        expected = [
            (row * units + units - 1) * inner + place for row in rows for place in range(first, inner)
        ]
    assert offsets[mask].tolist() == expected
    assert expected[-1] == outer * units * inner - 1


@triton.jit
def window_addresses_kernel(
    offsets_ptr,
    mask_ptr,
    tile,
    group,
    samples,
    channels,
    height,
    width,
    rows: tl.constexpr,
    wide: tl.constexpr,
):
    offsets, mask, _row, _column = window._tile(
        tile, group, samples, channels, height, width, rows, wide, positions=512, across=1
    )
    tl.store(offsets_ptr + tl.arange(0, 512)[:, None], offsets)
    tl.store(mask_ptr + tl.arange(0, 512)[:, None], mask)


@pytest.mark.parametrize("shape", [(3, 2, 2**16, 2**15), (1, 2, 2**16, 2**16), (2**18, 3, 100, 100)])
def test_addresses_of_windows_beyond_32_bits(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, device="meta")
    call = window._call(x, [window.Branch(torch.empty(shape[1], 1, 3, 3), *[torch.empty(shape[1])] * 3)])
    samples, channels, height, width, tiles = call.shape
    assert call.settings["positions"] == 512
    offsets, mask = torch.empty(512, dtype=torch.int64), torch.empty(512, dtype=torch.bool)
    window_addresses_kernel[(1,)](
        *(offsets, mask, tiles - 1, channels - 1, samples, channels, height, width),
        rows=call.settings["rows"],
        wide=call.settings["wide"],
    )
    size, plane = samples * channels * height * width, height * width
    count = samples * plane - (tiles - 1) * 512
    assert offsets[mask].tolist() == list(range(size - count, size))


def test_gates_that_would_count_beyond_32_bits_are_the_references() -> None:
    """Elements of a sample or of a map, and numbers of a form."""
    assert Memory(2**13, 2**10, 2**17, rows=False).fits_gpu  # 2^40 elements
    for memory in (
        Memory(1, 1, 2**31 - 1, False),
        Memory(2, 2**16, 2**15, True),
        Memory(2**20, 2**8, 2, False),
    ):
        assert not memory.fits_gpu
    most = 2**31 // (2 * MOST_LINES)
    assert Memory(most // 2, 1, 4, rows=False).fits_gpu
    assert not Memory(most, 1, 4, rows=False).fits_gpu


# ---- on a pretended GPU, the second of two


SECOND = torch.device("cuda", 1)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be launched, one after the other; here nothing is."""
    names: list[str] = []
    current: list[torch.device] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    def kernel_on(kernel: Any, grid: Sequence[int]) -> Any:
        def launch(*arguments: Any, **settings: Any) -> None:
            assert current == [SECOND]
            tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
            assert {tensor.device for tensor in tensors} == {SECOND}
            assert 0 < grid[0] < 2**31
            assert all(0 < size < 2**16 for size in grid[1:])
            names.append(kernel.__name__)

        return launch

    monkeypatch.setattr(type(ditac.table_kernel), "__getitem__", kernel_on)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(launch, "_processors", lambda device: 132)
    monkeypatch.setattr(library, "backend", lambda *tensors: library.TRITON)
    monkeypatch.setattr(library, "needs_reference", lambda *arguments: False)
    # autograd's engine asks for a real GPU; what is between the kernels of a gate is torch's own
    monkeypatch.setattr(
        torch.autograd, "grad", lambda outputs, leaves, *g, **how: map(torch.empty_like, leaves)
    )
    return names


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_and_all_is_on_one_device(name: str, launched: list[str]) -> None:
    """Forward and backward around the kernels, for a GPU that is not the current one.

    A pretended device refuses what the host would wait for. So this is what can be captured in a CUDA graph.
    """
    unit, shape = small(name, 6), (5, 6, 4, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        unit.to(SECOND)
        x = torch.randn(shape, device=SECOND, requires_grad=True)
        with Copies() as copies:
            y = unit(x)
            before = len(launched)
            node = next(node for node in nodes(y) if is_kernel(node))
            with torch.no_grad():
                gradients = node.apply(torch.empty_like(y))
        assert 0 < before < len(launched)
        for tensor in (y, *(g for g in gradients if g is not None)):
            assert tensor.device == SECOND
        assert not copies.seen


# ---- bits, and autograd's rules


@pytest.mark.parametrize("name", ["pau", "pwlu", "ditac", "dyrelu c", "frelu"])
def test_same_input_same_bits(name: str) -> None:
    x, g = draw((2, 3, 5, 4), torch.float32), draw((2, 3, 5, 4), torch.float32, seed=1)
    first, second = (run(small(name, 3), x, g) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", ["swish per channel", "pwlu", "ditac", "npwlu", "gct", "dyrelu c", "frelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_are_the_references(name: str, dtype: torch.dtype) -> None:
    def second(unit: Activation, dtype: torch.dtype) -> list[Tensor]:
        x = draw((2, 3, 2, 2)).bfloat16().to(dtype).requires_grad_()
        y = unit(x)
        (dx,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(dx.float().sum(), [x, *unit.parameters()], materialize_grads=True))

    unit = small(name, 3)
    other = copy.deepcopy(unit)
    found = second(unit, dtype)
    with library.using("reference"):
        expected = second(other, torch.float32)  # with parameters in it, some take nothing else
    for own, value in zip(found, expected, strict=True):
        tolerance = 1e-4 if dtype is torch.float32 else 0.1
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(own.float(), value, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["prelu", "pwlu", "ditac", "gct", "dyrelu c", "frelu"])
def test_what_a_kernel_refuses_is_the_references(name: str) -> None:
    unit, x = small(name, 3, train=False), draw((2, 3, 2, 2), torch.float32)
    with library.using("reference"):
        expected = unit(x)
    with torch.no_grad():
        by_vmap = torch.func.vmap(unit)(x[:, None]).squeeze(1)
        torch.testing.assert_close(by_vmap, expected, rtol=1e-4, atol=1e-4)
        assert unit(x[:0]).shape == (0, 3, 2, 2)
    wide = make(name, 3)
    assert not uses_a_kernel(wide, x.double())
    assert uses_a_kernel(unit, x)


@pytest.mark.parametrize("name", ["prelu", "pau", "pwlu", "ditac", "gct", "dyrelu b", "frelu"])
def test_saves_its_input_and_nothing_else_of_its_size(name: str) -> None:
    unit, x = small(name, 3), draw((4, 3, 8, 8), torch.float32).requires_grad_()
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unit(x)
    table = 65 * (1 + 16) * 4 if name == "ditac" else 0
    assert x.untyped_storage().data_ptr() in sizes
    assert sum(sizes.values()) < 1.6 * x.nbytes + table


@pytest.mark.parametrize(
    "name", ["swish per channel", "pwlu", "ditac", "dyrelu b", "gct", "meta_acon", "frelu"]
)
def test_under_autocast(name: str) -> None:
    """x in bfloat16, as a convolution gives it, and parameters in float32."""
    unit, x = small(name, 3), draw((2, 3, 2, 4)).bfloat16()
    g = draw((2, 3, 2, 4), seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert uses_a_kernel(copy.deepcopy(unit), x)
        compare(unit, x, g)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_phase_that_only_the_kernel_reads(
    per_channel: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where reading would wait: both phases of PWLU are one node, and one kernel each way."""
    monkeypatch.setattr(library, "readable", lambda value: False)
    unit = PWLU(3, per_channel=per_channel, segments=4)
    unit.curve.data += 0.1 * torch.rand(unit.curve.shape)
    x, g = draw((2, 3, 4, 5), dtype), draw((2, 3, 4, 5), dtype, seed=1)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    x.requires_grad_()
    for collecting in (True, False):
        unit._set_phase(collecting=collecting)
        expected = x.relu() if collecting else unit._learned(x, unit.curve, 1, None)
        dx, *dcurve = torch.autograd.grad(
            expected, [x, unit.curve], g, allow_unused=True, materialize_grads=True
        )
        for train in (True, False):
            y = unit.train(train)(x)
            assert is_kernel(y.grad_fn)
            # where it collects the curve is left out
            parameters = [] if train and collecting else [unit.curve]
            found = torch.autograd.grad(y, [x, *parameters], g)
            for own, value in zip((y, *found), (expected, dx, *dcurve), strict=False):
                assert torch.equal(own.nan_to_num(nan=77), value.nan_to_num(nan=77))


@pytest.mark.parametrize("name", ["snake", "pwlu", "ditac", "dyrelu c", "gct", "meta_acon", "frelu"])
def test_autocast_takes_no_digits(name: str) -> None:
    """Neither in forward nor in a backward that is called inside it."""
    unit, x, g = small(name, 3), draw((2, 3, 2, 4), torch.float32), draw((2, 3, 2, 4), torch.float32, seed=1)
    expected = run(copy.deepcopy(unit), x, g)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(unit, x, g)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in ("swish per channel", "npwlu", "pwlu per channel", "ditac")),
        *((name, torch.float32) for name in ("pwlu", "golu", "dyrelu c", "frelu")),
    ],
)
def test_torch_compile_has_one_graph(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    unit, x = small(name, 3, train=False), draw((2, 3, 2, 4)).to(dtype)
    g = draw((2, 3, 2, 4), seed=1).to(dtype)
    expected = run(unit, x, g)
    compiled = torch.compile(copy.deepcopy(unit), backend="aot_eager", fullgraph=True)
    leaf = x.requires_grad_()
    y = compiled(leaf)
    names, parameters = zip(("x", leaf), *compiled._orig_mod.named_parameters(), strict=True)
    found = torch.autograd.grad(y, parameters, g, materialize_grads=True)
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    for key, own in zip(("y", *names), (y, *found), strict=True):
        scale = max(1.0, expected[key].abs().max().item())
        torch.testing.assert_close(own, expected[key], rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("layout", ["planes", "rows", "gaps"])
def test_the_operators_keep_torchs_rules(layout: str) -> None:
    """Also in the strides of what they return, on which the code that torch.compile makes relies."""
    x = arranged(draw((2, 3, 2, 2), torch.float32), layout)
    g, half = torch.ones(2, 3, 2, 2), x.bfloat16()
    curve = PWLU(3, segments=3, per_channel=True).curve.detach()
    velocity = torch.tensor([0.0, 0.4, -0.2, 0.0])
    form = ("ge", "x", -0.5, 2.0, 17, 0.01)
    calls: list[tuple[Any, Any]] = [
        (ops.pointwise, ("prelu", 1, x, [torch.rand(3)], 0.0)),
        (ops.pointwise_backward, ("npwlu", 1, g, x, [torch.rand(k, 3) for k in (2, 2, 3)], 0.0)),
        (ops.pointwise, ("pwlu", 1, half, [curve], 1e-6)),
        (ops.pointwise_backward, ("pwlu", 1, g.bfloat16(), half, [curve, torch.ones(())], 1e-6)),
        (ops.pointwise_backward, ("pwlu", 1, g[:0], x[:0], [curve], 1e-6)),
        (ops.ditac, (*form, x, velocity)),
        (ops.ditac_backward, (*form, g, x, torch.rand(17), torch.rand(17, 4), 4)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


# ---- which kernels run


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, x = make("prelu", 3, torch.float32), draw((2, 3), torch.float32)
    assert library.backend(x, unit.weight) == "triton"
    assert library.described().startswith("triton ")
    assert library.described("mps") == "reference (no Triton kernels on mps)"
    for mode, backend, described in (("auto", "cpu", "fused "), ("reference", "", "reference (asked for)")):
        with library.using(mode):
            assert library.backend(x, unit.weight) == backend
            assert library.described().startswith(described)
    monkeypatch.setattr(library, "INTERPRETED", False)  # as on a machine with a GPU
    monkeypatch.setattr(library, "_triton_problem", lambda device: "")
    assert library.backend(x, unit.weight) == ""
    assert library.described("cuda").startswith("triton ")
    with library.using("auto"):
        assert library.described("cuda").startswith("triton ")
        assert library.described("cpu").startswith("fused ")
    monkeypatch.setattr(library, "HAS_TRITON", False)
    assert library.described("cuda") == "reference (Triton is not installed)"


def test_where_triton_does_not_work_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler, as in many containers, and on cards that are too old. It is said once."""
    with FakeTensorMode():
        x = torch.empty(3, device="cuda")
    drivers = type(triton.runtime.driver)
    monkeypatch.setattr(library, "INTERPRETED", False)
    monkeypatch.setattr(library, "PLAIN", (type(x),))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Quadro")

    def fail(config: Any) -> None:
        raise RuntimeError("Failed to find C compiler.")

    for capability, active, problem in (
        ((9, 0), fail, "Triton fails with RuntimeError"),
        ((6, 1), None, "Triton does not support Quadro"),
    ):
        monkeypatch.setattr(drivers, "active", property(active or (lambda config: None)))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        library._triton_problem.cache_clear()
        with pytest.warns(UserWarning, match=problem):
            assert library.backend(x) == library.REFERENCE
        assert library.backend(x) == library.REFERENCE
        with pytest.warns(UserWarning, match=problem):
            assert library.described("cuda") == f"reference ({problem})"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    library._triton_problem.cache_clear()
    assert library.backend(x) == library.TRITON
    assert library.described("cuda").startswith("triton ")
    library._triton_problem.cache_clear()


def test_long_tables_go_to_the_reference() -> None:
    unit, x = PWLU(3, segments=64), draw((2, 3), torch.float32)
    assert not uses_a_kernel(unit, x)


@pytest.mark.slow
def test_kernels_compile(tmp_path: Path) -> None:
    """With the compiler for GPUs, which the interpreter replaces here."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton_compiles"],
        **PROCESS | {"env": env | {"TRITON_CACHE_DIR": str(tmp_path)}},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300
