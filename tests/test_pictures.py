"""Pictures of what was learned: the figures from made-up cells, and the two programs that write them."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACTIVATIONS, PROCESS, ROOT
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from results.learned import (
    coefficients,
    curves,
    gates,
    input_range,
    parameters,
    read_learned,
    write_cell_figures,
)

X = np.linspace(-6, 6, 241, dtype=np.float32)
RELU = np.maximum(X, 0)[None]


def make_cell(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A finished cell's folder with ``curves.npz`` alone."""
    cell = folder / "digits" / "made_up" / "0-abc"
    cell.mkdir(parents=True)
    np.savez_compressed(cell / "curves.npz", x=X, **arrays)
    return cell


def uniform(low: float, high: float) -> np.ndarray:
    """(242,) shares of inputs spread evenly over [low, high]."""
    share = np.clip((X - low) / (high - low), 0, 1)
    return np.concatenate([share[:1], np.diff(share), 1 - share[-1:]])


def prelu(sites: int, channels: int) -> dict[str, np.ndarray]:
    slopes = np.random.default_rng(0).normal(0.25, 0.1, (sites, channels)).astype(np.float32)
    arrays = {}
    for site, slope in enumerate(slopes):
        arrays[f"curve/blocks.{site}.act1"] = np.where(X > 0, X, slope[:, None] * X)
        arrays[f"inputs/blocks.{site}.act1"] = uniform(-1 - site / 10, 2)
        arrays[f"diagnostic/blocks.{site}.act1/slope"] = slope
    return arrays


def pwlu() -> dict[str, np.ndarray]:
    values = {"left": -2.5, "right": 3.0, "slope_left": 0.0, "slope_right": 1.0, "mean": 0.1, "std": 1.0}
    diagnostics = {f"diagnostic/act/{name}": np.array([value]) for name, value in values.items()}
    diagnostics |= {f"role/act/{name}": np.array("interval_end") for name in ("left", "right")}
    knots = np.linspace(-2.5, 3, 17)
    curve = np.interp(X, knots, np.maximum(knots, 0) + 0.1 * np.sin(5 * knots))[None]
    return {"curve/act": curve, "inputs/act": uniform(-2, 2)} | diagnostics


def gct(sites: int = 3) -> dict[str, np.ndarray]:
    """GCT around a PReLU of its own, as sites nest."""
    rng = np.random.default_rng(0)
    arrays = {}
    for site in [f"blocks.{index}.act1" for index in range(sites)]:
        arrays[f"inputs/{site}"] = uniform(-1, 1)
        for name in ("alpha", "gamma", "beta"):
            arrays[f"diagnostic/{site}/{name}"] = rng.normal(size=16)
            arrays[f"role/{site}/{name}"] = np.array("gate")
        arrays[f"curve/{site}.base"] = RELU
        arrays[f"inputs/{site}.base"] = uniform(-1, 1)
        arrays[f"diagnostic/{site}.base/slope"] = rng.normal(size=1)
    return arrays


def dyrelu(sites: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for site in range(sites):
        arrays[f"inputs/act{site}"] = uniform(-3, 3)
        arrays[f"diagnostic/act{site}/coefficients"] = rng.normal([1, 0, 5, 6], 0.1, (8, 16, 4))
        arrays[f"role/act{site}/coefficients"] = np.array("coefficients")
    return arrays


def panels(figure: Figure | None) -> dict[str, Axes]:
    """By title."""
    assert figure is not None
    return {ax.get_title(loc="left") or ax.get_title(): ax for ax in figure.axes}


def line(ax: Axes, label: str) -> np.ndarray:
    """The y values of the one line of that name."""
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(found.get_ydata())


def test_every_channel_is_drawn_with_the_mean_in_the_order_of_depth(tmp_path: Path) -> None:
    arrays = prelu(sites=7, channels=5)
    drawn = panels(curves(read_learned(make_cell(tmp_path, arrays))))
    assert list(drawn) == [f"blocks.{site}.act1" for site in range(7)]
    for site, ax in drawn.items():
        (cloud,) = [artist for artist in ax.collections if isinstance(artist, LineCollection)]
        channels = np.stack([segment[:, 1] for segment in cloud.get_segments()])
        np.testing.assert_allclose(channels, arrays[f"curve/{site}"], rtol=1e-6)
        np.testing.assert_allclose(line(ax, "mean of channels"), arrays[f"curve/{site}"].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(line(ax, "ReLU"), RELU[0])


def test_a_panel_covers_the_inputs_and_the_curve_there(tmp_path: Path) -> None:
    arrays = prelu(sites=3, channels=5)
    for site, ax in panels(curves(read_learned(make_cell(tmp_path, arrays)))).items():
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        inputs = arrays[f"inputs/{site}"][1:-1]
        assert left < X[:-1][inputs > 0][0]
        assert X[1:][inputs > 0][-1] < right < 3  # and no more than a margin
        seen = arrays[f"curve/{site}"][:, (left <= X) & (right >= X)]
        assert bottom < seen.min() < seen.max() < top
        (histogram,) = ax.patches
        heights = histogram.get_data().values
        np.testing.assert_allclose(heights / heights.sum(), inputs / inputs.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (None, (-6, 6)),
        (np.zeros(242), (-6, 6)),  # none was finite
        (uniform(-0.1, 0.1), (-1, 1)),  # the bend stays in sight
        (uniform(-20, 20), (-6, 6)),
        (uniform(20, 30), (-1, 6)),
        (uniform(-30, -20), (-6, 1)),
        (0.9995 * uniform(-2, 2) + 0.0005 * uniform(5, 6), (-2.32, 2.32)),  # stragglers
    ],
)
def test_range_of_the_inputs(inputs: np.ndarray | None, expected: tuple[float, float]) -> None:
    assert input_range(X, inputs) == pytest.approx(expected, abs=0.06)


def test_inputs_out_of_reach_are_told(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, {"curve/act": RELU, "inputs/act": uniform(-10, 6)})
    (ax,) = panels(curves(read_learned(cell))).values()
    assert [text.get_text() for text in ax.texts] == ["← 25%"]


def test_a_learned_interval_is_marked(tmp_path: Path) -> None:
    learned = read_learned(make_cell(tmp_path, pwlu()))
    ax = panels(curves(learned))["act"]
    np.testing.assert_array_equal(line(ax, "curve"), learned.curves["act"][0])
    (marks,) = [artist for artist in ax.collections if artist.get_label() == "learned interval"]
    assert [segment[0, 0] for segment in marks.get_segments()] == [-2.5, 3.0]
    assert ax.get_xlim()[0] < -2.5 < 3 < ax.get_xlim()[1]
    assert list(panels(parameters(learned))) == ["slope_left", "slope_right", "mean", "std"]


def test_gates(tmp_path: Path) -> None:
    arrays = gct()
    learned = read_learned(make_cell(tmp_path, arrays))
    drawn = panels(gates(learned))
    assert list(drawn) == ["alpha", "gamma", "beta"]
    gamma = [arrays[f"diagnostic/blocks.{site}.act1/gamma"] for site in range(3)]
    np.testing.assert_allclose(line(drawn["gamma"], "mean"), [g.mean() for g in gamma])
    np.testing.assert_allclose(line(drawn["gamma"], "median"), [np.median(g) for g in gamma])
    dots = drawn["gamma"].lines[0]
    np.testing.assert_allclose(dots.get_ydata(), np.concatenate([np.sort(g) for g in gamma]))
    np.testing.assert_array_equal(np.round(dots.get_xdata()), np.repeat([0, 1, 2], 16))
    assert list(panels(curves(learned))) == [f"blocks.{site}.act1.base" for site in range(3)]
    assert list(panels(parameters(learned))) == ["slope"]  # of the units within the gates
    assert coefficients(learned) is None


def test_what_declares_no_role_is_a_parameter(tmp_path: Path) -> None:
    """Files of earlier versions say none."""
    arrays = {name: value for name, value in (pwlu() | gct()).items() if not name.startswith("role/")}
    learned = read_learned(make_cell(tmp_path, arrays))
    assert gates(learned) is None
    assert coefficients(learned) is None
    assert {"left", "right", "gamma", "slope"} < set(panels(parameters(learned)))


@pytest.mark.parametrize("sites", [3, 19])
def test_coefficients(tmp_path: Path, sites: int) -> None:
    arrays = dyrelu(sites)
    learned = read_learned(make_cell(tmp_path, arrays))
    drawn = panels(coefficients(learned))
    assert list(drawn) == ["slope 1", "slope 2", "intercept 1", "intercept 2"]
    for k, ax in enumerate(drawn.values()):
        medians = [np.median(arrays[f"diagnostic/act{site}/coefficients"][..., k]) for site in range(sites)]
        np.testing.assert_allclose(line(ax, "median"), medians, atol=0.01)  # of 100 quantiles
    assert len(panels(curves(learned))) == sites  # no scalar function: inputs alone
    assert parameters(learned) is None
    assert gates(learned) is None


def test_parameters_of_any_shape(tmp_path: Path) -> None:
    gate = np.random.default_rng(0).uniform(size=(8, 16))
    cell = make_cell(tmp_path, {"diagnostic/a/gate": gate, "diagnostic/b/beta": np.array(1.5)})
    drawn = panels(parameters(read_learned(cell)))
    assert list(drawn) == ["gate", "beta"]
    np.testing.assert_array_equal(drawn["beta"].lines[0].get_xydata(), [[1, 1.5]])
    assert [path.name for path in write_cell_figures(cell)] == ["parameters.png"]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    arrays = prelu(sites=1, channels=3) | gct(1)
    arrays["curve/blocks.0.act1"][0] = np.inf
    arrays["diagnostic/blocks.0.act1/gamma"][:] = np.nan
    arrays["diagnostic/blocks.0.act1/slope"][0] = -np.inf
    assert len(write_cell_figures(make_cell(tmp_path, arrays))) == 3


def test_the_same_cell_gives_the_same_files(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, prelu(1, 70))
    written = write_cell_figures(cell)
    assert written == [cell / "pictures" / f"{name}.png" for name in ("curves", "parameters")]
    files = {path: path.read_bytes() for path in (cell / "pictures").iterdir()}
    assert len(files) == 4
    write_cell_figures(cell)
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"^{cell}: no curves\.npz there, so this is no finished cell; .*$"),
        (lambda path: path.write_bytes(b""), r"^{path}: damaged \(.*\); .*$"),
        (lambda path: path.write_bytes(b"no archive"), r"^{path}: damaged \(.*\); .*$"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), r"^{path}: damaged \(.*\); .*$"),
        (lambda path: np.savez(path, y=X), r"^{path}: damaged \(no points x\); .*$"),
        (lambda path: np.savez(path, **{"x": X, "curve/a": X}), r"^{path}: damaged \(curve/a is .*\); .*$"),
        (lambda path: np.savez(path, x=X), r"^{path}: no curves, inputs or parameters .*$"),
    ],
)
def test_a_cell_that_cannot_be_drawn(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    cell = make_cell(tmp_path, prelu(1, 2))
    path = cell / "curves.npz"
    damage(path)
    with pytest.raises(
        ValueError, match=message.format(cell=re.escape(str(cell)), path=re.escape(str(path)))
    ):
        write_cell_figures(cell)
    assert not (cell / "pictures").exists()


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a program of scripts/ as a user would."""
    command = [sys.executable, "-W", "error", f"scripts/{name}.py", *map(str, arguments)]
    return subprocess.run(command, **PROCESS, timeout=120)


def test_plot_cell(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, pwlu())
    done = script("plot_cell", cell)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        str(cell / "pictures" / f"{name}.png") for name in ("curves", "parameters")
    ]
    failed = script("plot_cell", tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert re.fullmatch(rf"actbench: {re.escape(str(tmp_path))}: no curves\.npz there, .*\n", failed.stderr)


@pytest.mark.slow
def test_plot_activations_accounts_for_every_activation(tmp_path: Path) -> None:
    done = script("plot_activations", "--out", tmp_path / "new")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'new' / 'activations.png'}\n"
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)", (tmp_path / "new" / "activations.svg").read_text()))
    assert set(ACTIVATIONS) <= set(re.findall(r"\w+", text))


def test_what_the_sheet_draws() -> None:
    program = runpy.run_path(str(ROOT / "scripts" / "plot_activations.py"))
    x = torch.linspace(-4, 4, 101)
    names = ("relu", "gct", "swish_beta", "sine", "swish")
    found = {name: program["response"](name, x) for name in names}
    figure = program["sheet"](x, found)
    drawn = panels(figure)
    assert list(drawn) == ["relu", "sine", "swish"]
    np.testing.assert_array_equal(line(drawn["relu"], "value"), x.relu())
    np.testing.assert_array_equal(line(drawn["relu"], "derivative"), x > 0)
    sigmoid = x.sigmoid()
    np.testing.assert_allclose(line(drawn["swish"], "value"), x * sigmoid, rtol=1e-5)
    np.testing.assert_allclose(
        line(drawn["swish"], "derivative"), sigmoid * (1 + x * (1 - sigmoid)), rtol=1e-4, atol=1e-6
    )
    assert "derivative -30 to 30" in [text.get_text() for text in drawn["sine"].texts]
    assert "swish = swish_beta.\nNot scalar functions: gct." in figure.get_supxlabel()


def test_plot_activations_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    failed = script("plot_activations", "--out", tmp_path / "taken")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"actbench: {tmp_path / 'taken'}: File exists\n"
