"""DiTAC: forms, table, prior, regularizer."""

import copy

import pandas as pd
import pytest
import torch
from conftest import draw, make_factory, train
from torch import Tensor, nn
from torch.nn import functional as F

from activations.ditac import DiTAC, init_covariance

C = 6


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
    ends = unit(a=-0.5, zero_boundary=False, init_var=0.3)
    torch.testing.assert_close(ends(x), torch.where((x >= -0.5) & (x <= 2), warped(ends), x) * phi)
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


def test_ditac_regularizer_is_in_the_loss_and_in_the_metrics(tmp_path) -> None:
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
