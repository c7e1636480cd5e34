"""PWLU: pieces, phases, realignment, resume; N-PWLU."""

import copy
import math
import os
import signal

import pandas as pd
import pytest
import torch
from conftest import draw, make_factory, randomised, train
from torch import Tensor

from activations.npwlu import NPWLU
from activations.pwlu import PWLU

C = 6


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
        unit.left.sub_(2.5)
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


@pytest.mark.parametrize(
    ("segments", "left", "right"),
    [(7, -2.5, 6.25), (40, -3.5, 2.75), (16, -6.75, 5.0), (5, -6.25, 6.25), (3, 100, 100.75)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pwlu_on_a_knot_is_the_piece_to_the_right(
    segments: int, left: float, right: float, dtype: torch.dtype
) -> None:
    unit = randomised(PWLU(1, segments=segments)).to(dtype)
    with torch.no_grad():
        unit.left.fill_(left)
        unit.right.fill_(right)
    width = (right - left) / segments
    knots = [left + i * width for i in range(segments + 1)]
    exact = [i for i, knot in enumerate(knots) if knot * 64 == round(knot * 64)]  # no rounding in it
    x = torch.tensor([[knots[i]] for i in exact], dtype=dtype, requires_grad=True)
    unit(x).sum().backward()
    heights = unit.heights[0].detach()
    slopes = [*((heights[1:] - heights[:-1]) / width).tolist(), unit.slope_right.item()]
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([slopes[i] for i in exact], dtype=dtype))


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
        assert all(p.grad is None for p in unit.parameters())
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
    other(x).sum().backward()
    assert other.curve.grad is not None


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


def test_pwlu_interval_starts_where_the_inputs_were_and_is_then_learned(tmp_path) -> None:
    train(tmp_path, make_factory("pwlu"), "runner.epochs=8", "runner.limit_batches=10")
    state = torch.load(next(tmp_path.glob("**/checkpoint.pt")), weights_only=True)["network"]
    for site in (2, 5, 8):
        mean, std, curve = (state[f"features.{site}.{name}"] for name in ("mean", "std", "curve"))
        assert state[f"features.{site}.batches"] == 20  # two epochs
        assert 0 < (curve[:, 0] - (mean - 3 * std)).abs() < 1


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
