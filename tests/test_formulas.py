"""Every unit against a naive formula of its own, and what is particular to its initial state."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import draw, make_factory, randomised, train
from torch import nn
from torch.nn import functional as F

from activations.acon import ACONC, MetaACON
from activations.apl import APL
from activations.base import Activation
from activations.dyrelu import DyReLU
from activations.frelu import DwConvReLU, FReLU
from activations.gct import GCT
from activations.maxout import Maxout, maxout
from activations.pau import ABSOLUTE, DENOMINATOR, PAU
from activations.pelu import PELU
from activations.prelu import PReLU
from activations.se_relu import SEReLU
from activations.snake import Snake
from activations.srelu import SReLU
from activations.tanh_exp import TanhExp

C = 6


def scalar_formulas() -> dict[str, tuple[Activation, Callable[[float, int], float]]]:
    pelu = randomised(PELU(C, shared=False))
    tanh_exp = TanhExp(C)
    acon = randomised(ACONC(C))
    apl = randomised(APL(C, hinges=3))
    srelu = randomised(SReLU(C))
    with torch.no_grad():
        srelu.t_left -= 1.0
    snake = randomised(Snake(C, per_channel=True))
    pau = randomised(PAU(C))

    def pau_formula(x: float, c: int) -> float:
        p, q = pau.numerator.tolist(), pau.denominator.tolist()
        top = sum(a * x**k for k, a in enumerate(p))
        return top / (1 + abs(sum(b * x ** (k + 1) for k, b in enumerate(q))))

    def acon_formula(x: float, c: int) -> float:
        p1, p2, beta = acon.p1[c].item(), acon.p2[c].item(), acon.beta[c].item()
        d = (p1 - p2) * x
        return d / (1 + math.exp(-beta * d)) + p2 * x

    def srelu_formula(x: float, c: int) -> float:
        t_l, a_l, t_r, a_r = (p[c].item() for p in (srelu.t_left, srelu.a_left, srelu.t_right, srelu.a_right))
        if x >= t_r:
            return t_r + a_r * (x - t_r)
        return x if x > t_l else t_l + a_l * (x - t_l)

    def pelu_formula(x: float, c: int) -> float:
        a, b = pelu.a[c].item(), pelu.b[c].item()
        return a / b * x if x >= 0 else a * (math.exp(x / b) - 1)

    def apl_formula(x: float, c: int) -> float:
        hinges = zip(apl.a[:, c].tolist(), apl.b[:, c].tolist(), strict=True)
        return max(0, x) + sum(a * max(0, b - x) for a, b in hinges)

    def snake_formula(x: float, c: int) -> float:
        return x + math.sin(snake.a[c].item() * x) ** 2 / snake.a[c].item()

    return {
        "pelu": (pelu, pelu_formula),
        "tanh_exp": (tanh_exp, lambda x, c: x * math.tanh(math.exp(x))),
        "acon_c": (acon, acon_formula),
        "apl": (apl, apl_formula),
        "srelu": (srelu, srelu_formula),
        "snake": (snake, snake_formula),
        "pau": (pau, pau_formula),
    }


@pytest.mark.parametrize("name", scalar_formulas())
def test_scalar_units_are_their_formulas(name: str) -> None:
    unit, formula = scalar_formulas()[name]
    x = 2 * draw(20, C)
    expected = [[formula(value, c) for c, value in enumerate(row)] for row in x.tolist()]
    torch.testing.assert_close(unit(x), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, C), (2, C, 7), (2, C, 4, 3), (1, C, 1, 1)])
@pytest.mark.parametrize("form", ["A", "B", "C"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_dyrelu_is_its_formula(form: str, pieces: int, shape: tuple[int, ...]) -> None:
    unit = DyReLU(C, form=form, pieces=pieces, lambda_a=0.7, lambda_b=0.3, temperature=2.0)
    randomised(unit)
    x = draw(*shape)
    y = unit(x)
    for n in range(shape[0]):
        context = x[n].reshape(C, -1).mean(1)
        theta = 2 * torch.sigmoid(unit.fc2(F.relu(unit.fc1(context)))) - 1
        for c in range(C):
            mine = theta if form == "A" else theta[2 * pieces * c : 2 * pieces * (c + 1)]
            slopes = [(k == 0) + 0.7 * mine[k] for k in range(pieces)]
            intercepts = [0.3 * mine[pieces + k] for k in range(pieces)]
            expected = torch.stack([a * x[n, c] + b for a, b in zip(slopes, intercepts, strict=True)]).amax(0)
            if form == "C" and len(shape) > 2:
                z = torch.einsum("c...,c->...", x[n], unit.attention)
                places = z.numel()
                share = (z / 2.0).flatten().softmax(0).view(z.shape)
                expected = (places / 3 * share).clamp(max=1) * expected
            torch.testing.assert_close(y[n, c], expected)


@pytest.mark.parametrize("channels", [1, 2, 7, 64])
def test_dyrelu_sees_its_input_however_narrow_the_layer(channels: int) -> None:
    """C // R hidden units would be none, and the coefficients would not depend on the input."""
    unit = DyReLU(channels)
    assert unit.fc1.out_features == max(channels // 8, 4)
    x = draw(5, channels, 3, 3).float().requires_grad_()
    (gradient,) = torch.autograd.grad(unit.coefficients(x).square().sum(), x)
    assert gradient.abs().sum() > 0


def test_dyrelu_starts_at_relu_with_zero_init_and_where_it_is_told() -> None:
    x = draw(3, C, 4, 4).float()
    for form in ("A", "B"):
        assert torch.equal(DyReLU(C, form=form, zero_init=True)(x), x.relu())
        unit = DyReLU(C, form=form, zero_init=True, init_a=[2.0, -1.0], init_b=[0.5, 0.0])
        torch.testing.assert_close(unit(x), torch.maximum(2 * x + 0.5, -x))
    residuals = DyReLU(64).coefficients(draw(8, 64, 4, 4).float()) - torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert 0.01 < residuals.std() < 0.3


@pytest.mark.parametrize("shape", [(3, C), (2, C, 7), (2, C, 4, 3)])
@pytest.mark.parametrize("mode", ["l2", "l1"])
def test_gct_is_its_formula(mode: str, shape: tuple[int, ...]) -> None:
    unit = GCT(C, mode=mode)
    randomised(unit)
    x = draw(*shape)
    flat = x.reshape(shape[0], C, -1)
    if mode == "l2":
        s = unit.alpha * (flat.square().sum(2) + 1e-5).sqrt()
        sh = unit.gamma * s / (s.square().mean(1, keepdim=True) + 1e-5).sqrt()
    else:
        s = unit.alpha * flat.abs().sum(2)
        sh = unit.gamma * s / (s.abs().mean(1, keepdim=True) + 1e-5)
    expected = x * (1 + (sh + unit.beta).tanh()).view(shape[0], C, *[1] * (len(shape) - 2))
    torch.testing.assert_close(unit(x), expected)


def test_gct_stands_after_or_before_any_base() -> None:
    x = draw(3, C, 4, 4)
    assert torch.equal(make_factory("gct")(C)(x.float()), x.float().relu())  # the identity at the start
    for position in ("after", "before"):
        unit = GCT(C, base=PReLU, position=position)
        randomised(unit)
        gate = GCT(C)
        gate.double().load_state_dict({k: v for k, v in unit.state_dict().items() if "base" not in k})
        expected = gate(unit.base(x)) if position == "after" else unit.base(gate(x))
        torch.testing.assert_close(unit(x), expected)
    unit = make_factory("gct", "activation.base._target_=activations.prelu.PReLU")(C)
    assert isinstance(unit.base, PReLU)
    assert unit.base.num_features == C
    assert isinstance(make_factory("gct", "activation.base=null")(C).base, nn.Identity)


def test_gct_norm_does_not_overflow_in_half_precision() -> None:
    unit = make_factory("gct")(C)
    nn.init.ones_(unit.gamma)
    x = torch.full((2, C, 64, 64), 200.0, dtype=torch.float16)  # squares sum to 1.6e8, and half ends at 65504
    with torch.autocast("cpu", dtype=torch.float16):
        y = unit(x)
    torch.testing.assert_close(y.float(), unit(x.float()), atol=1, rtol=1e-3)


def test_se_relu_and_meta_acon_gate_by_sample_and_channel() -> None:
    x = draw(3, C, 4, 5)
    unit = randomised(SEReLU(C))
    mean = x.relu().mean((2, 3))
    gate = torch.sigmoid(unit.fc2(F.relu(unit.fc1(mean))))
    torch.testing.assert_close(unit(x), x.relu() * gate[:, :, None, None])
    unit = randomised(MetaACON(C))
    beta = torch.sigmoid(unit.fc2(unit.fc1(x.mean((2, 3)))))[:, :, None, None]
    p1, p2 = unit.p1[:, None, None], unit.p2[:, None, None]
    difference = (p1 - p2) * x
    torch.testing.assert_close(unit(x), difference * torch.sigmoid(beta * difference) + p2 * x)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_frelu_is_its_formula_with_any_odd_window(kernel_size: int) -> None:
    unit = randomised(FReLU(C, kernel_size=kernel_size))
    x, r = draw(2, C, 6, 5), kernel_size // 2
    padded = F.pad(x, (r, r, r, r))
    t = torch.zeros_like(x)
    for i in range(kernel_size):
        for j in range(kernel_size):
            t += unit.conv.weight[:, 0, i, j].view(1, C, 1, 1) * padded[:, :, i : i + 6, j : j + 5]
    t += unit.conv.bias.view(1, C, 1, 1)
    mean, var = t.mean((0, 2, 3), keepdim=True), t.var((0, 2, 3), correction=0, keepdim=True)
    t = (t - mean) / (var + 1e-5).sqrt() * unit.norm.weight.view(1, C, 1, 1) + unit.norm.bias.view(1, C, 1, 1)
    torch.testing.assert_close(unit(x), torch.maximum(x, t))
    control = DwConvReLU(C, kernel_size=kernel_size).double()
    control.load_state_dict(unit.state_dict())
    torch.testing.assert_close(control.train()(x), t.relu())


def test_frelu_starts_at_relu_with_gamma_zero_and_with_unit_variance_otherwise() -> None:
    x = draw(8, C, 16, 16).float()
    assert torch.equal(FReLU(C, gamma=0.0)(x), x.relu())
    assert torch.equal(FReLU(C, light=True, gamma=0.0)(x), x.relu())
    unit = FReLU(C)
    assert unit.conv.weight.std() < 0.02
    assert unit.window(x).std().item() == pytest.approx(0.99, abs=0.1)  # the norm cancels the small weights


def test_frelu_for_sequences() -> None:
    unit = randomised(FReLU(C, dims=1))
    image = randomised(FReLU(C))
    with torch.no_grad():  # a window of one row
        image.conv.weight.zero_()
        image.conv.weight[:, :, 1] = unit.conv.weight
        image.conv.bias.copy_(unit.conv.bias)
        image.norm.load_state_dict(unit.norm.state_dict())
    x = draw(4, C, 9)
    torch.testing.assert_close(unit(x), image(x[:, :, None])[:, :, 0])


@pytest.mark.parametrize(
    ("unit", "shape", "said"),
    [
        (FReLU(C), (5, C), r"\(5, 6\): a window over positions must have \(N, C, H, W\); dims=1 is the form"),
        (FReLU(C), (5, C, 7), r"\(5, 6, 7\)"),
        (FReLU(C, dims=1), (5, C, 7, 7), r"must have \(N, C, L\)"),
    ],
)
def test_frelu_says_what_it_needs(unit: FReLU, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unit(torch.zeros(shape))


def test_frelu_in_an_mlp_is_said_before_training(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"FReLU at layers\.1: input of shape .*a window over positions"):
        train(tmp_path, make_factory("frelu"), "runner=smoke", task="sines2d")


def test_maxout_groupings_and_its_own_linear_maps() -> None:
    x = draw(2, 6, 3, 3)
    torch.testing.assert_close(maxout(x, 3, "consecutive"), x.view(2, 2, 3, 3, 3).amax(2))
    torch.testing.assert_close(maxout(x, 3, "split"), x.view(2, 3, 2, 3, 3).amax(1))
    for grouping in ("consecutive", "split"):
        unit = randomised(Maxout(C, pieces=3, grouping=grouping))
        maps = torch.einsum("ok,nkhw->nohw", unit.weight, draw(2, C, 3, 3)) + unit.bias[:, None, None]
        torch.testing.assert_close(unit(draw(2, C, 3, 3)), maxout(maps, 3, grouping))
    assert Maxout(C)(draw(5, C).float()).shape == (5, C)


def test_pau_starts_near_leaky_relu_with_the_best_fit_there_is() -> None:
    from scipy.optimize import least_squares

    x = np.linspace(0, 3, 3001)

    def error(p: np.ndarray) -> np.ndarray:
        return (p[0] + p[1] * x**2 + p[2] * x**4) / (1 + p[3] * x**2 + p[4] * x**4) - x

    fit = least_squares(error, [0.1, 3.0, 2.0, 4.0, 0.3], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert fit.x == pytest.approx([*ABSOLUTE, *DENOMINATOR], rel=1e-5)
    points = torch.linspace(-3, 3, 601)
    for slope in (0.01, 0.3, -0.2):
        distance = (PAU(C, slope=slope).curves(points) - F.leaky_relu(points, slope)).abs().max()
        assert distance < 0.034 * (1 - slope) / 0.99 + 1e-4


def test_pelu_comes_back_from_below_its_bound() -> None:
    unit = PELU(1, minimum=0.1)
    with torch.no_grad():
        unit.a.fill_(-0.5)
    x = torch.tensor([[2.0]])
    assert unit(x).item() == pytest.approx(0.2)
    unit(x).sum().backward()
    assert unit.a.grad is not None
    assert unit.a.grad.item() == pytest.approx(2.0)
