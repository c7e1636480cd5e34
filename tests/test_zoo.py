"""What is particular to each unit: formulas against naive ones, phases, tables, training rules, sizes."""

import copy
import math
import os
import signal
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_factory, make_task, train
from torch import Tensor, nn
from torch.nn import functional as F

from activations.acon import ACONC, MetaACON
from activations.apl import APL
from activations.base import Activation
from activations.ditac import DiTAC, init_covariance
from activations.dyrelu import DyReLU
from activations.frelu import DwConvReLU, FReLU
from activations.gct import GCT
from activations.maxout import Maxout, maxout
from activations.npwlu import NPWLU
from activations.pau import ABSOLUTE, DENOMINATOR, PAU
from activations.pelu import PELU
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.se_relu import SEReLU
from activations.snake import Snake
from activations.srelu import SReLU
from activations.tanh_exp import TanhExp
from runners.optim import parameter_groups
from runners.train import build_network

C = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(unit: Activation) -> Activation:
    """The unit in float64, with parameters that are all different."""
    unit.double()
    torch.manual_seed(1)
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.2, 1.2)
    return unit


# --- formulas, each against a naive one for a single number -------------------------------------------------------


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
        (FReLU(C), (5, C), r"\(5, 6\): a window over positions needs \(N, C, H, W\); dims=1 is the form"),
        (FReLU(C), (5, C, 7), r"\(5, 6, 7\)"),
        (FReLU(C, dims=1), (5, C, 7, 7), r"needs \(N, C, L\)"),
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


# --- PWLU ----------------------------------------------------------------------------------------------------------


def naive_pwlu(x: float, left: float, right: float, heights: list[float], k_l: float, k_r: float) -> float:
    n = len(heights) - 1
    d = (right - left) / n
    if x < left:
        return (x - left) * k_l + heights[0]
    if x >= right:
        return (x - right) * k_r + heights[n]
    i = min(int((x - left) / d), n - 1)
    return (x - (left + i * d)) * (heights[i + 1] - heights[i]) / d + heights[i]


@pytest.mark.parametrize("segments", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("per_channel", [False, True])
def test_pwlu_is_its_formula(segments: int, per_channel: bool) -> None:
    unit = randomised(PWLU(C, segments=segments, per_channel=per_channel))
    with torch.no_grad():
        unit.left -= 2.5
    x = torch.cat([2 * draw(30, C), 1e4 * draw(5, C), -draw(5, C).abs()])
    y = unit(x)
    for c in range(C):
        u = c if per_channel else 0
        shape = (unit.left[u].item(), unit.right[u].item(), unit.heights[u].tolist())
        tails = (unit.slope_left[u].item(), unit.slope_right[u].item())
        expected = [naive_pwlu(value, *shape, *tails) for value in x[:, c].tolist()]
        torch.testing.assert_close(
            y[:, c], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12
        )


def test_pwlu_boundaries_that_cross_keep_a_function() -> None:
    unit = PWLU(C)
    with torch.no_grad():
        unit.left.fill_(1.0)
        unit.right.fill_(-1.0)
    x = torch.linspace(-3, 3, 601)[:, None].expand(-1, C).clone().requires_grad_()
    y = unit(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("epochs", "first"), [(1, 0), (2, 1), (4, 1), (5, 2), (10, 3), (20, 5), (160, 5)])
def test_pwlu_first_phase_is_five_epochs_or_a_quarter_of_a_short_run(epochs: int, first: int) -> None:
    unit = PWLU(C)
    phases = []
    for epoch in range(epochs):
        unit.start_epoch(epoch, epochs)
        phases.append(unit.phase)
    assert phases == ["statistics"] * first + ["learning"] * (epochs - first)


def test_pwlu_collects_then_realigns_in_place() -> None:
    for per_channel in (False, True):
        unit = PWLU(C, per_channel=per_channel)
        held = {name: (id(p), p.data_ptr()) for name, p in unit.named_parameters()}
        unit.start_epoch(0, 100)
        batches = [
            3 * draw(40, C, 5, 5, seed=seed).float() + torch.arange(C).view(C, 1, 1) for seed in range(7)
        ]
        for batch in batches:
            batch.requires_grad_()
            y = unit(batch)
            assert torch.equal(y, batch.relu())
            y.sum().backward()
        assert all(p.grad is None and not p.requires_grad for p in unit.parameters())
        unit.eval()
        unit(100 + draw(40, C).float())  # not in training: not counted

        dims = (0, 2, 3) if per_channel else (0, 1, 2, 3)
        weights = torch.tensor([0.9 ** (6 - i) for i in range(7)])  # an exponential mean of what was seen
        weights /= weights.sum()
        mean = sum(w * b.mean(dims) for w, b in zip(weights, batches, strict=True))
        std = sum(w * b.std(dims) for w, b in zip(weights, batches, strict=True))
        unit.train()
        unit.start_epoch(5, 100)
        torch.testing.assert_close(unit.left, (mean - 3 * std).view(-1))
        torch.testing.assert_close(unit.right, (mean + 3 * std).view(-1))
        knots = torch.stack(
            [torch.linspace(a, b, 17) for a, b in zip(unit.left, unit.right, strict=True)]
        ).detach()
        torch.testing.assert_close(unit.heights, knots.relu(), atol=1e-5, rtol=1e-5)
        assert not unit.slope_left.any()
        assert (unit.slope_right == 1).all()
        assert held == {name: (id(p), p.data_ptr()) for name, p in unit.named_parameters()}
        assert all(p.requires_grad for p in unit.parameters())


def test_pwlu_inputs_that_do_not_vary_or_never_came_leave_an_interval() -> None:
    unit = PWLU(2, per_channel=True)
    unit.start_epoch(0, 100)
    constant = torch.stack([torch.full((10,), 5.0), torch.full((10,), math.nan)], 1)
    unit(constant)
    unit.start_epoch(5, 100)
    assert unit.left[0] < 5 < unit.right[0]
    assert (unit.left[1], unit.right[1]) == (-3, 3)


def test_pwlu_with_a_fixed_interval_has_no_first_phase() -> None:
    unit = PWLU(C, fix_init=2.0)
    unit.start_epoch(0, 100)
    assert unit.phase == ""
    assert (unit.left, unit.right) == (-2, 2)
    assert all(p.requires_grad for p in unit.parameters())


def test_pwlu_phase_travels_with_the_state_and_with_copies() -> None:
    unit, other = PWLU(C), PWLU(C)
    unit.start_epoch(0, 100)
    unit(draw(9, C).float())
    other.load_state_dict(unit.state_dict())
    assert other.phase == copy.deepcopy(unit).phase == "statistics"
    x = draw(9, C, seed=1).float()
    assert torch.equal(other.eval()(x), x.relu())
    other.load_state_dict(PWLU(C).state_dict())
    assert other.phase == "learning"


PWLU_RUN = ("runner.epochs=8", "runner.limit_batches=6", "seed=3")  # two epochs of statistics


@pytest.mark.parametrize("stop_at", [4, 9, 13, 30])
def test_pwlu_resumed_in_either_phase_comes_to_the_same_end(stop_at: int, tmp_path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", make_factory("pwlu"), *PWLU_RUN)
    original, steps = PWLU.forward, 0

    def forward(self: PWLU, x: Tensor) -> Tensor:
        nonlocal steps
        steps += self.training and self.num_features == 16  # the first site
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            steps += 1
        return original(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(PWLU, "forward", forward)
        stopped = train(tmp_path / "stopped", make_factory("pwlu"), *PWLU_RUN)
    assert stopped["status"] == "interrupted"
    resumed = train(tmp_path / "stopped", make_factory("pwlu"), *PWLU_RUN)
    assert (resumed["status"], resumed["test_loss"]) == ("ok", whole["test_loss"])
    states = [
        torch.load(next((tmp_path / name).glob("**/checkpoint.pt")), weights_only=True)["network"]
        for name in ("whole", "stopped")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = pd.read_csv(next((tmp_path / "stopped").glob("**/metrics.csv")))
    phases = rows.loc[rows["split"] == "train", "phase"]
    assert phases.tolist() == ["statistics"] * 2 + ["learning"] * 6


def test_pwlu_interval_starts_where_the_inputs_were_and_is_then_learnt(tmp_path) -> None:
    train(tmp_path, make_factory("pwlu"), "runner.epochs=8", "runner.limit_batches=10")
    state = torch.load(next(tmp_path.glob("**/checkpoint.pt")), weights_only=True)["network"]
    for site in (2, 5, 8):
        mean, std, left = (state[f"features.{site}.{name}"] for name in ("mean", "std", "left"))
        assert state[f"features.{site}.batches"] == 20  # two epochs
        assert 0 < (left - (mean - 3 * std)).abs() < 1


def test_npwlu_is_a_pwlu_where_widths_are_equal() -> None:
    unit, other = NPWLU(C, intervals=8).double(), PWLU(C, segments=8).double()
    with torch.no_grad():
        unit.slopes.copy_(draw(1, 10))
        knots = -3 + 0.75 * torch.arange(9, dtype=torch.float64)
        other.heights.copy_(torch.cat([torch.zeros(1), (0.75 * unit.slopes[0, 1:-1]).cumsum(0)])[None])
        other.slope_left.copy_(unit.slopes[:, 0])
        other.slope_right.copy_(unit.slopes[:, -1])
    x = torch.cat([2 * draw(50, C), knots[:, None].expand(-1, C)])
    torch.testing.assert_close(unit(x), other(x), atol=1e-6, rtol=1e-6)


# --- DiTAC ---------------------------------------------------------------------------------------------------------


def test_ditac_forms_are_their_definitions() -> None:
    x = 3 * draw(400, C)
    phi = torch.special.ndtr(x)

    def unit(**hyper) -> DiTAC:
        torch.manual_seed(3)
        return DiTAC(C, **{"a": 0.0, "b": 2.0, "table_size": None, **hyper}).double()

    def warped(unit: DiTAC) -> Tensor:
        from activations.cpab import transform

        return unit.a + (unit.b - unit.a) * transform(
            (x - unit.a) / (unit.b - unit.a), unit.basis @ unit.theta
        )

    main = unit(a=-0.5)
    z = torch.where((x >= -0.5) & (x <= 2), warped(main), x)
    torch.testing.assert_close(main(x), z * phi)
    main.gelu_of = "z"
    torch.testing.assert_close(main(x), F.gelu(z))
    inside = (x >= 0) & (x <= 2)
    ge = unit(form="ge")
    torch.testing.assert_close(ge(x), torch.where(inside, warped(ge), torch.where(x < 0, F.gelu(x), x)))
    leaky = unit(form="leaky", negative_slope=0.2)
    torch.testing.assert_close(leaky(x), torch.where(inside, warped(leaky), F.leaky_relu(x, 0.2)))
    for zero_boundary in (True, False):
        free = unit(form="inf", a=-1.0, zero_boundary=zero_boundary, init_var=0.3)
        torch.testing.assert_close(free(x), warped(free))


@pytest.mark.parametrize("name", ["ditac", "ditac_pm3", "ditac_ge", "ditac_leaky"])
def test_ditac_is_continuous(name: str) -> None:
    torch.manual_seed(0)
    unit = make_factory(name)(1).double()
    for edge in (unit.a, unit.b, 0.0):
        y = unit(torch.tensor([[edge - 1e-9], [edge], [edge + 1e-9]], dtype=torch.float64))
        assert y.diff(dim=0).abs().max() < 1e-7


def test_ditac_identity_init_is_gelu_and_its_prior_the_authors() -> None:
    x = draw(50, C).float()
    torch.testing.assert_close(DiTAC(C, init="identity")(x), F.gelu(x), atol=1e-6, rtol=1e-6)
    torch.manual_seed(0)
    thetas = torch.stack([DiTAC(1).theta.detach() for _ in range(4000)]).double()
    expected = init_covariance(DiTAC(1).basis.double(), 5.0, 2.0)
    assert (thetas.T.cov() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("interval", [(1.0, 3.0), (-2.5, -0.5), (-0.5, 2.0)])
def test_ditac_intervals_need_not_contain_zero(interval: tuple[float, float]) -> None:
    torch.manual_seed(0)
    unit = DiTAC(C, a=interval[0], b=interval[1])
    x = torch.linspace(-6, 6, 300)[:, None].expand(-1, C)
    outside = (x < interval[0]) | (x > interval[1])
    torch.testing.assert_close(unit(x)[outside], F.gelu(x)[outside])
    assert (unit(x) - F.gelu(x)).abs()[~outside].max() > 1e-3
    nearest = copy.deepcopy(unit)
    nearest.interpolation = "nearest"
    torch.testing.assert_close(nearest(x), unit(x), atol=0.01, rtol=0.01)


def test_ditac_table_error_falls_with_the_square_of_the_step() -> None:
    torch.manual_seed(0)
    units = [DiTAC(C, a=-3.0, b=3.0, table_size=n).double() for n in (None, 257, 1025)]
    for unit in units:
        unit.theta.data.copy_(units[0].theta)
    x = 2 * draw(3000, C)
    exact = units[0](x)
    errors = [(unit(x) - exact).abs().max().item() for unit in units[1:]]
    assert errors[1] < errors[0] / 12  # 16, but for kinks of T'
    assert errors[1] < 1e-4
    units[2].interpolation = "nearest"
    assert (units[2](x) - exact).abs().max() > 20 * errors[1]


@pytest.mark.parametrize("zero_boundary", [True, False])
def test_ditac_inf_table_agrees_beyond_the_interval(zero_boundary: bool) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        unit = DiTAC(C, form="inf", a=-1.0, b=1.0, zero_boundary=zero_boundary, init_var=0.8).double()
        exact = copy.deepcopy(unit)
        exact.table_size = None
        x = 4 * draw(2000, C, seed=seed)
        scale = exact(x).abs().max()
        assert (unit(x) - exact(x)).abs().max() < 1e-4 * scale
        results = [torch.autograd.grad(u(x).square().sum(), u.theta)[0] for u in (unit, exact)]
        torch.testing.assert_close(*results, atol=1e-3 * results[1].abs().max().item(), rtol=0)


def test_ditac_table_is_never_stale() -> None:
    torch.manual_seed(0)
    unit, x = DiTAC(C), draw(100, C).float()

    def agrees(unit: DiTAC) -> bool:
        fresh = DiTAC(C)
        fresh.theta = nn.Parameter(unit.theta.detach().clone())
        return torch.equal(unit(x), fresh(x))

    unit.eval()
    assert agrees(unit)
    before = unit(x)
    unit.load_state_dict({"theta": 2 * unit.theta})  # in eval mode
    assert agrees(unit)
    assert not torch.allclose(unit(x), before, atol=1e-2)
    copied = copy.deepcopy(unit)
    unit.theta.data.mul_(-0.5)  # behind autograd's back
    assert agrees(unit)
    assert agrees(copied)
    optimizer = torch.optim.SGD(unit.parameters(), lr=0.5)
    for mode in (True, False):
        unit.train(mode)
        unit(x).sum().backward()
        optimizer.step()
        assert agrees(unit)
        with torch.no_grad():
            assert agrees(unit)


def test_ditac_can_be_differentiated_in_eval_mode() -> None:
    unit = DiTAC(C).eval()
    x = draw(5, C).float().requires_grad_()
    unit(x).sum().backward()
    assert x.grad is not None
    assert unit.theta.grad is not None


def test_ditac_regulariser_is_in_the_loss_and_in_the_metrics(tmp_path) -> None:
    thetas = {}
    for weight in (0.0, 50.0):
        overrides = ("runner.epochs=3", "runner.limit_batches=20")
        factory = make_factory("ditac", f"activation.lambda_reg={weight}")
        train(tmp_path / str(weight), factory, *overrides, task="sines2d")
        state = torch.load(next((tmp_path / str(weight)).glob("**/checkpoint.pt")), weights_only=True)
        thetas[weight] = state["network"]["layers.1.theta"].norm()
        rows = pd.read_csv(next((tmp_path / str(weight)).glob("**/metrics.csv")))
        if weight:
            assert (rows.loc[rows["split"] == "train", "regularization"] > 0).all()
    assert thetas[50.0] < thetas[0.0]


# --- training rules and sizes ---------------------------------------------------------------------------------------

# which of a unit's parameters weight decay touches; all others it must leave alone
DECAYED: dict[str, set[str]] = {
    "dyrelu": {"fc1.weight", "fc2.weight"},
    "dyrelu_c": {"fc1.weight", "fc2.weight", "attention"},
    "pwlu": set(),
    "npwlu": set(),
    "frelu": {"conv.weight"},
    "frelu_light": {"conv1.weight", "conv2.weight"},
    "dwconv_relu": {"conv.weight"},
    "ditac": set(),
    "gct": {"alpha", "gamma"},
    "se_relu": {"fc1.weight", "fc2.weight"},
    "pelu": set(),
    "maxout": {"weight"},
    "acon_c": set(),
    "meta_acon": {"fc1.weight", "fc2.weight"},
    "pau": set(),
    "apl": set(),
    "srelu": set(),
    "snake": set(),
    "prelu": set(),
    "swish_beta": set(),
}


@pytest.mark.parametrize("name", DECAYED)
def test_weight_decay_touches_what_the_paper_says(name: str) -> None:
    network = build_network(make_factory(name), make_task("digits"), 0)
    decayed = {id(p) for p in parameter_groups(network, 0.1)[0]["params"]}
    unit = network.features[2]
    assert {n for n, p in unit.named_parameters() if id(p) in decayed} == DECAYED[name]


def test_a_base_inside_gct_keeps_its_own_rules() -> None:
    factory = make_factory("gct", "activation.base._target_=activations.prelu.PReLU")
    network = build_network(factory, make_task("digits"), 0)
    decayed = {id(p) for p in parameter_groups(network, 0.1)[0]["params"]}
    unit = network.features[2]
    assert {n for n, p in unit.named_parameters() if id(p) in decayed} == {"alpha", "gamma"}


def small(c: int, r: int, least: int) -> int:
    return max(c // r, least)


# number of parameters by channels
PARAMETERS: dict[str, Callable[[int], int]] = {
    "acon_c": lambda c: 3 * c,
    "apl": lambda c: 10 * c,
    "ditac": lambda c: 9,
    "ditac_inf": lambda c: 11,
    "dwconv_relu": lambda c: 9 * c + c + 2 * c,
    "dyrelu_a": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4,
    "dyrelu_b": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4 * c,
    "dyrelu_c": lambda c: (c + 1) * small(c, 8, 4) + (small(c, 8, 4) + 1) * 4 * c + c,
    "frelu": lambda c: 9 * c + c + 2 * c,
    "frelu_light": lambda c: 2 * (3 * c + 2 * c),
    "gct": lambda c: 3 * c,
    "maxout": lambda c: 2 * c * c + 2 * c,
    "meta_acon": lambda c: 2 * c + (c + 1) * small(c, 16, 16) + (small(c, 16, 16) + 1) * c,
    "npwlu": lambda c: 4 + 4 + 4,
    "pau": lambda c: 10,
    "pelu": lambda c: 2,
    "pelu_channel": lambda c: 2 * c,
    "prelu": lambda c: c,
    "prelu_shared": lambda c: 1,
    "pwlu": lambda c: 16 + 5,
    "pwlu_channel": lambda c: (16 + 5) * c,
    "se_relu": lambda c: (c + 1) * small(c, 16, 4) + (small(c, 16, 4) + 1) * c,
    "snake": lambda c: 1,
    "srelu": lambda c: 4 * c,
    "swish_beta": lambda c: 1,
    "swish_beta_channel": lambda c: c,
    "relu": lambda c: 0,
}


@pytest.mark.parametrize("channels", [3, 64, 200])
@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str, channels: int) -> None:
    unit = make_factory(name)(channels)
    assert sum(p.numel() for p in unit.parameters()) == PARAMETERS[name](channels)


@pytest.mark.parametrize(
    "override",
    [
        "dyrelu form=D",
        "dyrelu pieces=0",
        "dyrelu init_a=[1]",
        "dyrelu init_b=[nan,0]",
        "dyrelu temperature=0",
        "dyrelu reduction=0",
        "pwlu segments=0",
        "pwlu segments=2.5",
        "pwlu fix_init=-1",
        "pwlu statistics=pooled",
        "pwlu per_channel=no_",
        "npwlu reach=0",
        "frelu kernel_size=4",
        "frelu dims=3",
        "frelu_light dims=1",
        "ditac a=2 b=2",
        "ditac form=elu",
        "ditac cells=1",
        "ditac zero_boundary=false",
        "ditac table_size=1",
        "ditac lambda_reg=-1",
        "ditac_inf interpolation=nearest",
        "gct mode=l3",
        "gct eps=0",
        "gct after_relu=true",
        "gct base=relu",
        "pelu minimum=0",
        "maxout pieces=1",
        "maxout grouping=none",
        "apl l2=-1",
        "srelu t_right=0",
        "snake a=0",
        "sine omega=nan",
        "se_relu reduction=0",
    ],
)
def test_refuses_bad_hyper_parameters(override: str) -> None:
    name, value = override.split(" ", 1)
    key = value.partition("=")[0]
    overrides = [f"activation.{part}" for part in value.split()]
    with pytest.raises(ValueError, match=key):
        make_factory(name, *overrides)(C)
