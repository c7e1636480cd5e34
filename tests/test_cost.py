"""Cost is measured without a trace in the run, and judged beside the scores."""

import math
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_factory, make_task, train
from scipy.stats import quantile_test
from torch import Tensor
from toy import Toy

from activations.torch_nn import ReLU
from results import figures
from results.cost import cost_table, equal_time, pareto_front, to_markdown, validation_curves
from results.figures import score_against_step_time
from results.palette import looks
from results.schema import COSTS
from runners import cost
from runners import train as train_module
from runners.cost import Measured, against_relu, noise_floor
from runners.train import build_network

NAMES = {"step_ms", "step_ratio", "inference_ms", "inference_ratio", "cost_rounds", *COSTS}


class Wasteful(ReLU):
    """ReLU that allocates 40 MB beside its output and computes more than is needed."""

    def forward(self, x: Tensor) -> Tensor:
        torch.empty(10**7, dtype=torch.float32)
        torch.ones(400, 400) @ torch.ones(400, 400)
        return super().forward(x)


def measured(act_layer, epochs: int = 1) -> Measured:
    torch.set_num_threads(1)
    task = make_task("sines2d")
    batch = next(iter(task.batches("train", torch.Generator().manual_seed(0))))
    return Measured(
        build_network(act_layer, task, 0), task, batch, epochs, partial(torch.autocast, "cpu", enabled=False)
    )


def test_names_of_points_do_not_overlap() -> None:
    names = [f"a{k}" for k in range(6)]
    table = pd.DataFrame({
        "activation": names, "task": "t", "metric": "top1", "higher_is_better": True, "baseline": None, "n": 1,
        "mean": [90.0, 90.1, 90.1, 90.2, 95.0, 80.0], "step_ratio": [1.0, 1.0, 1.001, 1.0, 1.0, 2.0], "cost_floor": 0.01,
    })  # fmt: skip
    figure = score_against_step_time(table, {})
    assert figure is not None
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_saved_bytes_are_what_relu_keeps_its_outputs() -> None:
    unit = measured(ReLU)
    sizes: list[int] = []
    for module in unit.network.modules():
        if isinstance(module, ReLU):
            module.register_forward_hook(lambda module, args, output: sizes.append(output.nbytes))
    unit.infer()
    assert sizes
    total = sum(sizes)
    assert unit.saved_bytes() == total
    prelu = measured(make_factory("prelu"))
    assert prelu.saved_bytes() == total  # its inputs; the slopes are parameters


def test_time_and_memory_of_a_wasteful_unit() -> None:
    unit, relu = measured(Wasteful), measured(ReLU)
    before = [p.detach().clone() for p in unit.network.parameters()]
    found = against_relu(unit, relu, seconds=0.5, steps=1)
    assert found.keys() == NAMES
    assert found["cost_rounds"] >= cost.LEAST
    assert min(found["step_ratio"], found["inference_ratio"]) > 1.5
    # sines2d has one site
    assert found["peak_memory_mb"] == pytest.approx(40 + relu.peak_bytes() / 1e6, abs=1)
    assert all(map(torch.equal, before, unit.network.parameters()))


def test_phases_are_gone_through_before_anything_is_timed() -> None:
    unit = measured(Toy, epochs=4)
    for module in unit.units:
        assert module.phase == "trained"
        assert module.epochs_seen[:5].tolist() == [0, 1, 1, 1, -1]


def test_what_takes_too_long_has_no_ratio() -> None:
    unit, relu = measured(ReLU), measured(ReLU)
    assert against_relu(unit, relu, seconds=0.0, steps=1).keys() == {"saved_bytes", "peak_memory_mb"}


@pytest.mark.parametrize("n", [3, 6, 10, 59, 60])
def test_the_noise_floor_is_the_interval_of_a_median(n: int) -> None:
    ratios = np.random.default_rng(n).lognormal(sigma=0.1, size=n)
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    low, high = (ratios.min(), ratios.max()) if math.isnan(interval.low) else (interval.low, interval.high)
    assert noise_floor(list(ratios)) == pytest.approx(max(1 - low, high - 1))


def test_a_run_is_the_same_with_and_without_and_seeds_share_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ("runner.epochs=2", "runner.limit_batches=2", "runner.threads=1", "runner.pictures=false")
    first = train(tmp_path / "with", Toy, "runner.cost=0.5", *limits, task="sines2d")
    without = train(tmp_path / "without", Toy, *limits, task="sines2d")
    assert first.keys() - without.keys() == NAMES
    states = [
        torch.load(next(path.glob("**/checkpoint.pt")), weights_only=True)
        for path in (tmp_path / "with", tmp_path / "without")
    ]
    for name, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][name]), name
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])
    assert first["cell"] == without["cell"]

    def again(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(train_module.cost, "against_relu", again)
    other = train(tmp_path / "with", Toy, "runner.cost=0.5", "seed=1", *limits, task="sines2d")
    assert {name: other[name] for name in NAMES} == {name: first[name] for name in NAMES}
    changed = train(tmp_path / "with", Toy, "runner.cost=0.5", "task.recipe.lr=0.1", *limits, task="sines2d")
    assert not NAMES & changed.keys()  # another cell is measured, and what goes wrong there stops no training
    assert changed["status"] == "ok"
    log = next(tmp_path.glob(f"with/**/0-{changed['cell']}/log.txt")).read_text()
    assert "its cost was not measured" in log


# ---- judged


ROWS = pd.DataFrame(
    {
        "task": "t",
        "metric": "top1",
        "higher_is_better": True,
        "activation": ["slow", "relu", "bad", "unknown", "lost"],
        "baseline": "relu",
        "n": [2, 2, 2, 2, 0],
        "mean": [92.0, 90.0, 85.0, 95.0, math.nan],
        "ci95_low": 80.0,
        "ci95_high": 99.0,
        "step_ratio": [2.0, 1.0, 1.5, math.nan, math.nan],
        "inference_ratio": [3.0, 1.0, 1.5, math.nan, math.nan],
        "cost_floor": [0.02, 0.03, 0.02, math.nan, math.nan],
        "saved_bytes": [2e6, 1e6, 1e6, math.nan, math.nan],
        "peak_memory_mb": [4.0, 3.0, 3.0, math.nan, math.nan],
        "parameters": [120.0, 100.0, 100.0, 100.0, math.nan],
    }
)
CELLS = pd.DataFrame(
    {
        "folder": [f"{name}{seed}" for name in ("slow", "relu", "bad", "unknown") for seed in (0, 1)],
        "activation_label": np.repeat(["slow", "relu", "bad", "unknown"], 2),
    }
)
# validation after epoch e (from 1) of seed s: 10 e + s, for four epochs
CURVES = pd.DataFrame(
    [
        {
            "folder": folder,
            "epoch": epoch,
            "split": split,
            "loss": 1.0,
            "top1": 10 * (epoch + 1) + int(folder[-1]),
        }
        for folder in CELLS["folder"]
        for epoch in range(4)
        for split in ("train", "val")
    ]
)


def test_scores_at_equal_time_and_on_the_front() -> None:
    table = cost_table(ROWS, CELLS, CURVES).set_index("activation")
    assert equal_time(ROWS, validation_curves(ROWS, CELLS, CURVES)) == 4  # of ReLU's epochs
    assert table["epochs_at_equal_time"].dropna().to_dict() == {"slow": 2, "relu": 4, "bad": 2}
    assert table["val_at_equal_time"].dropna().to_dict() == {"slow": 20.5, "relu": 40.5, "bad": 20.5}
    assert set(table["val_at_end"].dropna()) == {40.5}
    assert table["front"].to_dict() == {"slow": True, "relu": True, "bad": False, "unknown": False}
    assert table["parameters_front"].to_dict() == {
        "slow": False,
        "relu": False,
        "bad": False,
        "unknown": True,
    }
    assert "| slow | **2.00** | 3.00 | 0.02 | 2 | 4 | 120 | 2 | 20.5 | 40.5 |" in to_markdown(
        "t", table.reset_index()
    )
    assert cost_table(ROWS, CELLS, CURVES.iloc[:0])["val_at_end"].isna().all()
    assert to_markdown("t", cost_table(ROWS.assign(step_ratio=math.nan), CELLS, CURVES)) == ""


def test_the_front_minds_the_direction() -> None:
    costs, scores = pd.Series([1.0, 2.0, 2.0, math.nan]), pd.Series([0.5, 0.4, 0.6, 0.1])
    assert pareto_front(costs, scores, higher_is_better=False).tolist() == [True, True, False, False]
    assert pareto_front(costs, scores, higher_is_better=True).tolist() == [True, False, True, False]


LOOKS = looks(ROWS)


def test_figures_of_cost() -> None:
    figure = figures.score_against_step_time(ROWS, LOOKS)
    (ax,) = figure.axes
    (line,) = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    assert line.get_xydata().tolist() == [[1, 90], [2, 92]]
    assert {text.get_text() for text in ax.texts} == {"slow", "relu", "bad"}
    figure = figures.score_at_equal_time(ROWS, CELLS, CURVES, LOOKS)
    (ax,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["slow"] == [[2, 10.5], [4, 20.5], [6, 30.5], [8, 40.5]]
    assert figures.score_against_parameters(ROWS, LOOKS) is not None
    nothing = ROWS.assign(step_ratio=math.nan)
    assert figures.score_against_step_time(nothing, LOOKS) is None
    assert figures.score_at_equal_time(nothing, CELLS, CURVES, LOOKS) is None
