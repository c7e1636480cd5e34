"""Regression: targets against independent formulas, what the splits hold, scores against numpy, pictures, training."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TASKS, config, make_factory, make_task, train
from hydra.errors import InstantiationException
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath
from omegaconf import OmegaConf
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor, nn

from results.files import facts_of
from runners import seeding
from runners.errors import format_error
from runners.train import build_network
from tasks.data import functions
from tasks.data.files import sklearn_file
from tasks.regression import Regression

REGRESSIONS = [
    name for name in TASKS if config(f"task={name}").task._target_ == "tasks.regression.Regression"
]
FUNCTIONS = [name for name in REGRESSIONS if "function" in config(f"task={name}").task.data]
SAMPLES = sorted(set(REGRESSIONS) - set(FUNCTIONS))
PICTURES = [name for name in SAMPLES if "longer_side" in config(f"task={name}").task.data]

# targets, as one writes them for a single point in float64
FORMULAS = {
    "sine_mixture": lambda x: sum(np.sin(np.pi * k * x + i) for i, k in enumerate((1, 2, 3, 5, 8))) / 5,
    "sine": lambda x: np.sin(2 * np.pi * x),
    "step": lambda x: 1 if x > 0 else -1,
    "absolute_value": lambda x: x if x > 0 else -x,
    # the frequency in t = (x + 1) / 2 is 1 + 9 t; its integral is the phase
    "chirp": lambda x: np.sin(2 * np.pi * np.polyval([4.5, 1, 0], (x + 1) / 2)),
    "runge": lambda x: 1 / (1 + (5 * x) ** 2),
    "sawtooth": lambda x: 2 * ((2 * x + 0.5) % 1) - 1,
    "sound": lambda x: sum(
        np.exp(-h * (x + 1)) * np.sin(np.pi * h * (4 * (x + 1) - np.cos(4 * np.pi * (x + 1)) / 16)) / (2 * h)
        for h in (1, 2, 3, 4)
    ),
    "franke": lambda x, y: (
        3 / 4 * np.exp(-((9 * x - 2) ** 2) / 4 - (9 * y - 2) ** 2 / 4)
        + 3 / 4 * np.exp(-((9 * x + 1) ** 2) / 49) * np.exp(-(9 * y + 1) / 10)
        + 1 / 2 * np.exp(-((9 * x - 7) ** 2) / 4 - (9 * y - 3) ** 2 / 4)
        - 1 / 5 * np.exp(-((9 * x - 4) ** 2)) * np.exp(-((9 * y - 7) ** 2))
    ),
    "checkerboard": lambda x, y: 1 if np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y) > 0 else -1,
}
BY_HAND = {
    "sine": [(0.25, 1), (-0.25, -1)],
    "step": [(-0.3, -1), (0.3, 1)],
    "absolute_value": [(-0.25, 0.25)],
    "chirp": [(-1, 0), (0, np.sin(3.25 * np.pi)), (1, 0)],
    "runge": [(0, 1), (0.2, 0.5), (-1, 1 / 26)],
    "sound": [(1, -sum(np.exp(-2 * h) * np.sin(np.pi * h / 16) / h for h in (1, 2, 3, 4)) / 2)],
    "sawtooth": [(0, 0), (0.125, 0.5), (0.2499, 0.9996), (0.2501, -0.9996), (-0.5, 0)],
    "franke": [(2 / 9, 2 / 9, 0.75 + 0.75 * np.exp(-9 / 49 - 0.3) + 0.5 * np.exp(-6.5) - 0.2 * np.exp(-29))],
    "checkerboard": [(0.1, 0.1, 1), (0.1, -0.1, -1), (0.6, 0.1, -1), (0.6, 0.6, 1), (-0.9, -0.9, 1)],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_functions_are_their_formulas(name: str) -> None:
    formula, function = FORMULAS[name], getattr(functions, name)
    variables = formula.__code__.co_argcount
    x = 2 * torch.rand(500, variables, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    expected = np.array([[formula(*point)] for point in x.numpy()])
    assert function(x).shape == (500, 1)
    assert function(x).dtype == torch.double
    # constants are those of float32
    np.testing.assert_allclose(function(x).numpy(), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(function(x.float()).numpy(), expected, atol=1e-4, rtol=0)
    for *point, value in BY_HAND.get(name, []):
        assert function(torch.tensor([point], dtype=torch.double)).item() == pytest.approx(value, abs=1e-12)


RANGES = {
    "sine_mixture": (-0.65, 0.62),
    "step": (-1, 1),
    "absolute_value": (0, 1),
    "chirp": (-1, 1),
    "runge": (1 / 26, 1),
    "sawtooth": (-1, 1),
    "sound": (-0.374, 0.676),
    # the nearest points are an inner corner at 0.32, just beside which the grid lies, and an upper tip from the corner below
    "signed_distance": (-0.31, 0.78),
    "noisy_sine": (-1, 1),
    "sines2d": (-0.91, 0.91),
    "sines2d_deep": (-0.91, 0.91),
    "franke": (0.0003, 1.22),
    "checkerboard": (-1, 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_targets_fill_their_range(name: str) -> None:
    y = make_task(name).points["test"][1]
    assert (y.min().item(), y.max().item()) == pytest.approx(RANGES[name], abs=0.01)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_grid_has_the_centres_of_equal_cells(name: str) -> None:
    data = config(f"task={name}").task.data
    x = make_task(name).points["test"][0]
    n = data.test_grid
    axes = [
        low + (high - low) * (np.arange(n) + 0.5) / n for low, high in zip(data.low, data.high, strict=True)
    ]
    expected = np.array(np.meshgrid(*axes, indexing="ij")).reshape(len(axes), -1).T
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)


def test_the_grid_misses_every_jump() -> None:
    for name, side in (("step", 2), ("sawtooth", 0.5), ("checkerboard", 0.5)):
        x = make_task(name).points["test"][0]
        offset = 0.25 if name == "sawtooth" else 0
        distance = ((x + offset) / side - ((x + offset) / side).round()).abs().min() * side
        assert distance > 1e-4


@pytest.mark.parametrize("name", REGRESSIONS)
def test_training_draws_from_the_generator_alone(name: str) -> None:
    task = make_task(name)
    state = torch.get_rng_state()
    passes = [list(task.batches("train", seeding.generator(seed, "data", 0))) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(passes[0]) == task.steps_per_epoch
    assert {x.shape for x, _ in passes[0]} == {(task.recipe.batch_size, *task.input_shape)}
    assert {y.shape for _, y in passes[0]} == {(task.recipe.batch_size, *task.output_shape)}
    for part in range(2):
        first, again, other = (torch.cat([batch[part] for batch in batches]) for batches in passes)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_training_points_are_fresh_and_uniform(name: str) -> None:
    task = make_task(name)
    data = config(f"task={name}").task.data
    x = torch.cat([x for x, _ in task.batches("train", seeding.generator(0))])
    assert len(x.unique(dim=0)) > 0.99 * len(x)
    share = (x - torch.tensor(list(data.low))) / (
        torch.tensor(list(data.high)) - torch.tensor(list(data.low))
    )
    assert share.min() >= 0
    assert share.max() <= 1
    for column in share.T:
        assert (torch.histc(column, 10, 0, 1) / len(x) - 0.1).abs().max() < 0.015


def test_the_stream_of_sines2d_is_that_of_published_results() -> None:
    """results/ditac_fig1 was trained on these: uniform numbers as torch draws them, batch by batch."""
    batches = list(make_task("sines2d").batches("train", seeding.generator(0, "data", 0)))
    generator = seeding.generator(0, "data", 0)
    for x, y in batches:
        expected = -1 + 2 * torch.rand(98, 2, generator=generator)
        assert torch.equal(x, expected)
        assert torch.equal(y, functions.sines2d(expected))


def test_noise_is_on_the_training_targets_alone() -> None:
    task = make_task("noisy_sine")
    x, y = (torch.cat(part) for part in zip(*task.batches("train", seeding.generator(0)), strict=True))
    noise = y - functions.sine(x)
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert noise.mean().abs() < 0.01
    assert np.corrcoef(noise.flatten(), x.flatten())[0, 1] == pytest.approx(0, abs=0.03)
    for x, y in task.points.values():
        assert torch.equal(y, functions.sine(x))
    clean = make_task("noisy_sine", "task.data.noise=0.0")
    assert task.fingerprint == clean.fingerprint  # of what is judged
    x, y = next(iter(clean.batches("train", seeding.generator(0))))
    assert torch.equal(y, functions.sine(x))


class Linear(nn.Module):
    """Some fixed map, the same for every sample."""

    def __init__(self, task: Regression) -> None:
        super().__init__()
        self.layer = nn.Linear(task.input_shape[0], task.output_shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_scores_are_numpys_on_the_whole_split(name: str, split: str, monkeypatch) -> None:
    """In batches of 999, the last of which is smaller."""
    task = make_task(name)
    monkeypatch.setattr("tasks.regression.EVAL_BATCH", 999)
    torch.manual_seed(0)
    network = Linear(task)
    x, y = (part.numpy().astype(np.float64) for part in task.points[split])
    weight, bias = (parameter.detach().double().numpy() for parameter in network.layer.parameters())
    error = x @ weight.T + bias - y
    mse, variance = np.mean(error**2), np.mean((y - y.mean(0)) ** 2)
    expected = {"loss": mse, "mse": mse, "r2": 100 * (1 - mse / variance), "max_error": np.abs(error).max()}
    if name in PICTURES:
        expected["psnr"] = 10 * np.log10(1 / mse)
    assert task.evaluate(network, split) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_fit_and_the_mean_score_as_they_should() -> None:
    task = make_task("absolute_value")

    class Exact(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

    assert task.evaluate(Exact(), "test") == {"loss": 0, "mse": 0, "r2": 100, "max_error": 0}
    mean = Linear(task)
    nn.init.zeros_(mean.layer.weight)
    nn.init.constant_(mean.layer.bias, 0.5)
    scores = task.evaluate(mean, "test")
    assert scores["r2"] == pytest.approx(0, abs=1e-3)
    assert scores["mse"] == pytest.approx(1 / 12, rel=1e-4)  # of a uniform variable
    assert scores["max_error"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - {"photograph_fit"}))
def test_splits_of_samples_are_disjoint_and_complete(name: str) -> None:
    index = make_task(name).data.index
    together = torch.cat(list(index.values()))
    assert torch.equal(together.sort().values, torch.arange(len(together)))


def test_a_reconstruction_has_all_pixels_in_every_split() -> None:
    task, held_out = make_task("photograph_fit"), make_task("photograph")
    every = torch.arange(128 * 85)
    assert all(torch.equal(index, every) for index in task.data.index.values())
    order = torch.cat(list(held_out.data.index.values())).argsort()
    for part in range(2):  # inputs and targets
        together = torch.cat([getattr(held_out.data, split)[part] for split in held_out.data.index])[order]
        for split in (task.data.train, task.data.val, task.data.test):
            assert torch.equal(split[part], together)
    facts = task.look(seeding.generator(0)).facts
    assert "train 10,880, val 10,880, test 10,880" in facts["splits"]
    assert "nothing is held out" in facts["splits"]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_ranked_by_psnr(name: str) -> None:
    """A map that is wrong by 0.1 everywhere has 10 log10(1 / 0.01) = 20 dB."""
    task = make_task(name)
    assert (task.primary_metric, task.higher_is_better) == ("psnr", True)
    table = {tuple(x): y for x, y in zip(task.data.inputs.tolist(), task.data.targets, strict=True)}

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([table[tuple(point)] for point in x.tolist()]) + 0.1

    assert task.evaluate(Off(), "test")["psnr"] == pytest.approx(20, abs=1e-4)
    task = make_task(name, "task.primary=mse")
    assert (task.primary_metric, task.higher_is_better) == ("mse", False)


def test_settings_of_pictures_are_no_part_of_the_ids_of_earlier_cells() -> None:
    cfg = OmegaConf.to_container(config("task=photograph", "task.primary=mse"), resolve=True)
    assert {"task.primary", "task.data.train"}.isdisjoint(facts_of(cfg))
    fit = OmegaConf.to_container(config("task=photograph_fit"), resolve=True)
    assert facts_of(fit)["task.data.train"] == "all"
    assert facts_of(fit)["task.primary"] == "psnr"


def test_the_signed_distance_is_that_of_the_outline() -> None:
    """Against the nearest of 40,000 points of the outline, and matplotlib's rule for the inside of a path."""
    angles = np.pi / 2 - np.pi / 5 * np.arange(10)
    corners = np.where(np.arange(10) % 2, 0.32, 0.8)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    share = np.linspace(0, 1, 4000, endpoint=False)[:, None, None]
    outline = (corners + share * (np.roll(corners, -1, 0) - corners)).reshape(-1, 2)
    x = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 1
    # points at the height of a corner, where a ray passes through it
    x[:20, 1] = torch.from_numpy(np.repeat(corners[:, 1], 2))
    distance = cKDTree(outline).query(x.numpy())[0]
    inside = MplPath(np.vstack([corners, corners[:1]]), closed=True).contains_points(x.numpy())
    expected = np.where(inside, -distance, distance)[:, None]
    assert 100 < inside.sum() < 1900
    np.testing.assert_allclose(functions.signed_distance(x).numpy(), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(functions.signed_distance(x.float()).numpy(), expected, atol=1e-4, rtol=0)


def test_an_epoch_is_a_pass_over_the_training_samples() -> None:
    task = make_task("diabetes", "task.recipe.batch_size=40")
    x = torch.cat([x for x, _ in task.batches("train", seeding.generator(0))])
    assert len(x) == 240  # of 247
    assert len(x.unique(dim=0)) == 240
    rows = {tuple(row) for row in task.data.train[0].tolist()}
    assert {tuple(row) for row in x.tolist()} <= rows
    whole = make_task("diabetes", "task.recipe.batch_size=1000")
    assert whole.steps_per_epoch == 1
    assert [len(x) for x, _ in whole.batches("train", seeding.generator(0))] == [247]


def test_diabetes_is_scikit_learns() -> None:
    from sklearn.datasets import load_diabetes

    theirs = load_diabetes(scaled=False)
    table = np.column_stack([theirs.data, theirs.target])
    data = make_task("diabetes").data
    index = {split: positions.numpy() for split, positions in data.index.items()}
    assert {split: len(positions) for split, positions in index.items()} == {
        "train": 247,
        "val": 62,
        "test": 133,
    }
    mean, std = table[index["train"]].mean(0), table[index["train"]].std(0)
    for split, positions in index.items():
        ours = torch.cat(getattr(data, split), dim=1).numpy()
        np.testing.assert_allclose(ours, (table[positions] - mean) / std, atol=1e-5)
        # each tenth of the targets in proportion
        tenth = np.searchsorted(np.sort(table[:, -1]), table[positions, -1]) * 10 // 442
        assert np.abs(np.bincount(tenth, minlength=10) / len(positions) - 0.1).max() < 0.05
    train = torch.cat(data.train, dim=1)
    assert train.mean(0).abs().max() < 1e-5
    assert train.std(0, correction=0).sub(1).abs().max() < 1e-5


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (16, 10)) -> np.ndarray:
    """Write a random image of a mode; returns its colors."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    image.save(path)
    return np.asarray(image.convert("RGB"))


def photograph(path: Path, *overrides: str) -> Any:
    return make_task("photograph", f"task.data.file={path}", *overrides)


def test_the_photograph_is_pillows(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "image.png")
    task = photograph(tmp_path / "image.png")
    colors, seen = np.zeros_like(pixels), np.zeros(pixels.shape[:2], dtype=int)
    for split in ("train", "val", "test"):
        inputs, targets = getattr(task.data, split)
        # the longer side, of 16 pixels, is [-1, 1]
        column = ((inputs[:, 0] * 16 + 15) / 2).round().int()
        row = ((inputs[:, 1] * 16 + 9) / 2).round().int()
        colors[row, column] = (targets * 255).round()
        seen[row, column] += 1
        if split == "train":
            assert set((row % 2).tolist()) == set((column % 2).tolist()) == {0}
            assert len(targets) == 8 * 5
        else:
            assert not ((row % 2 == 0) & (column % 2 == 0)).any()
            counts = torch.bincount(2 * (row % 2) + column % 2)[1:]
            assert counts.max() - counts.min() <= 1
    assert (seen == 1).all()
    assert np.array_equal(colors, pixels)
    assert len(task.points["val"][0]) == 24  # a fifth of 120


def test_a_large_photograph_is_shrunk() -> None:
    task = make_task("photograph", "task.data.longer_side=40")
    assert sum(map(len, task.data.index.values())) == 40 * 27
    with Image.open(sklearn_file("images/china.jpg")) as image:
        expected = np.asarray(image.resize((40, 27), Image.Resampling.LANCZOS))
    order = torch.cat(list(task.data.index.values())).argsort()
    targets = torch.cat([getattr(task.data, split)[1] for split in task.data.index])[order]
    np.testing.assert_allclose(targets.view(27, 40, 3) * 255, expected, atol=1e-3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_any_mode_of_image_is_read(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        values = np.arange(160, dtype=np.uint16).reshape(10, 16) * 400
        Image.fromarray(values).save(tmp_path / "image.png")
        expected = np.repeat(values[..., None] / 65535, 3, axis=2)
    else:
        expected = picture(tmp_path / "image.png", mode) / 255
    task = photograph(tmp_path / "image.png")
    for split, index in task.data.index.items():
        np.testing.assert_allclose(getattr(task.data, split)[1], expected.reshape(-1, 3)[index], atol=1 / 255)


DISCOVERED: dict[str, list[str]] = {
    "interval": ["MSE", "error, at most"],
    "plane": ["target", "fit, MSE", "error, at most"],
    "photograph": ["target", "fit, ", "absolute error, mean"],
    "diabetes": ["fit against target, $R^2$", "error, at most"],
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_every_regression_is_drawn(name: str) -> None:
    task = make_task(name)
    network = build_network(make_factory("relu"), task, 0)
    (figure,) = task.pictures(network).values()
    kind = name.removesuffix("_fit") if name in SAMPLES else ("interval", "plane")[task.input_shape[0] - 1]
    panels = [ax for ax in figure.axes if title(ax)]
    assert len(panels) == len(DISCOVERED[kind])
    for ax, start in zip(panels, DISCOVERED[kind], strict=True):
        assert title(ax).startswith(start)
    scores = task.evaluate(network, "test")
    shown = {"interval": "mse", "plane": "mse", "photograph": "psnr", "diabetes": "r2"}[kind]
    text = " ".join(map(title, panels))
    assert f"{scores[shown]:.3g}" in text or f"{scores[shown]:.1f}" in text
    assert overlaps(figure) == []


def title(ax: Any) -> str:
    return ax.get_title() or ax.get_title(loc="left")


def overlaps(figure: Figure) -> list[str]:
    """Titles that run into the next panel or off the page."""
    figure.draw_without_rendering()
    texts = [text for ax in figure.axes for text in (ax.title, ax._left_title) if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    page = figure.bbox
    outside = [text for text, box in boxes if box.x0 < page.x0 or box.x1 > page.x1 or box.y1 > page.y1]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return outside + [f"{a[0]} / {b[0]}" for a, b in pairs if a[1].overlaps(b[1])]


def test_curves_and_maps_show_the_test(tmp_path: Path) -> None:
    task = make_task("noisy_sine")
    torch.manual_seed(0)
    network = Linear(task)
    x, y = task.points["test"]
    fit = network(x).detach()
    top, bottom = task.pictures(network)["fit"].axes
    lines = {line.get_label(): line for line in top.lines}
    np.testing.assert_array_equal(lines["target"].get_ydata(), y.flatten())
    np.testing.assert_array_equal(lines["fit"].get_ydata(), fit.flatten())
    assert len(lines["noisy training samples"].get_xdata()) == 200
    np.testing.assert_array_equal(bottom.lines[1].get_ydata(), (fit - y).flatten())

    task = make_task("franke")
    network = Linear(task)
    x, y = task.points["test"]
    error = (network(x).detach() - y).view(100, 100).numpy()
    target_map, fit_map, error_map = (ax.images[0] for ax in task.pictures(network)["fit"].axes if ax.images)
    # the first variable runs to the right, the second upwards
    np.testing.assert_array_equal(target_map.get_array(), y.view(100, 100).T)
    np.testing.assert_array_equal(error_map.get_array(), error.T)
    assert target_map.origin == "lower"
    assert target_map.get_clim() == fit_map.get_clim() == (y.min().item(), y.max().item())
    assert error_map.get_clim() == pytest.approx((-np.abs(error).max(), np.abs(error).max()))


def test_nothing_is_drawn_of_three_variables() -> None:
    overrides = ("task.data.low=[0,0,0]", "task.data.high=[1,1,1]", "task.data.test_grid=5")
    task = make_task("franke", *overrides, "task.data.function.path=test_regression.product")
    assert task.input_shape == (3,)
    assert task.pictures(Linear(task)) == {}
    assert len(task.points["test"][0]) == 125


def product(x: Tensor) -> Tensor:
    return x.prod(1, keepdim=True)


def flat(x: Tensor) -> Tensor:
    return x[:, 0]


def constant(x: Tensor) -> Tensor:
    return torch.ones(len(x), 1)


def pole(x: Tensor) -> Tensor:
    return (x - 2).log()


ERRORS = {
    "low above high": (
        ("task.data.low=[1.0]", "task.data.high=[0.5]"),
        "task.data.low=[1.0]: each number must be below that of high=[0.5]",
    ),
    "corners of unequal length": (
        ("task.data.high=[1.0,1.0]",),
        "task.data.high=[1.0, 1.0]: must be a list of 1 numbers",
    ),
    "no corner": (("task.data.low=[]",), "task.data.low=[]: must be a non-empty list"),
    "steps": (("task.data.steps_per_epoch=0",), "task.data.steps_per_epoch=0: must be an integer >= 1"),
    "points": (("task.data.val_points=0",), "task.data.val_points=0: must be an integer >= 1"),
    "grid": (("task.data.test_grid=0",), "task.data.test_grid=0: must be an integer >= 1"),
    "large grid": (
        ("task.data.test_grid=1000001",),
        "test_grid=1000001: the grid has 1000001^1 points, must be at most 1,000,000",
    ),
    "noise": (("task.data.noise=-0.1",), "task.data.noise=-0.1: must be a number >= 0"),
    "shape": (
        ("task.data.function.path=test_regression.flat",),
        "task.data.function: returns shape (2000,) for points",
    ),
    "constant": (("task.data.function.path=test_regression.constant",), "targets of val are constant"),
    "not finite": (("task.data.function.path=test_regression.pole",), "constant or not finite"),
    "variables": (
        ("task.data.function.path=tasks.data.functions.sines2d",),
        "takes no points of 1 variables",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_function_that_cannot_be_is_said(case: str) -> None:
    overrides, message = ERRORS[case]
    assert message in refusal("sine_mixture", *overrides)


def refusal(name: str, *overrides: str) -> str:
    """What a user is told."""
    with pytest.raises(InstantiationException) as error:
        make_task(name, *overrides)
    assert "HYDRA_FULL_ERROR" not in format_error(error.value)  # which goes with what nobody expected
    return format_error(error.value)


def test_an_image_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    picture(tmp_path / "thin.png", size=(300, 9))
    picture(tmp_path / "small.png", size=(7, 7))
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    cases = {
        "none.png": "none.png: no such file",
        ".": "no such file",
        "text.png": "text.png: not a readable image",
        "thin.png": "thin.png: has 128 x 4 pixels with longer_side=128, must have at least 8 x 8",
        "small.png": "small.png: has 7 x 7 pixels",
        "black.png": "task.data: the targets of val are constant",
    }
    for name, message in cases.items():
        assert message in refusal("photograph", f"task.data.file={tmp_path / name}")
    assert "longer_side=7: must be an integer >= 8" in refusal("photograph", "task.data.longer_side=7")
    assert "task.data.train='half': must be one of quarter, all" in refusal(
        "photograph", "task.data.train=half"
    )
    assert "task.data.val_fraction=None: must be a number" in refusal(
        "photograph", "task.data.val_fraction=null"
    )


def test_pictures_that_packages_ship_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not installed
    flower = sklearn_file("images/flower.jpg")
    assert make_task("photograph", "task.data.file=flower").fingerprint == photograph(flower).fingerprint
    message = refusal("photograph", "task.data.file=camera")
    assert "task.data.file=camera: no such file, and no picture among china, flower;" in message
    assert "pip install scikit-image" in message

    monkeypatch.delitem(sys.modules, "skimage")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site" / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "site" / "skimage" / "__init__.py").write_text("raise ImportError('must not be imported')")
    camera = tmp_path / "site" / "skimage" / "data" / "camera.png"
    picture(camera)
    assert make_task("photograph", "task.data.file=camera").fingerprint == photograph(camera).fingerprint
    message = refusal("photograph", "task.data.file=moon")
    assert "moon: no such file, and no picture among camera, china, flower" in message
    assert "pip" not in message
    picture(tmp_path / "moon.png")
    (tmp_path / "moon.png").rename("moon")  # a file without ending
    assert (
        make_task("photograph", "task.data.file=moon").fingerprint
        == photograph(tmp_path / "moon").fingerprint
    )


@pytest.mark.parametrize(
    ("name", "primary", "message"),
    [
        ("runge", "psnr", "task.primary=psnr: must be mse, as the targets of this task have no peak value"),
        ("photograph", "r2", "task.primary='r2': must be one of mse, psnr"),
    ],
)
def test_a_metric_that_cannot_rank_is_said(name: str, primary: str, message: str) -> None:
    assert message in refusal(name, f"++task.primary={primary}")


@pytest.mark.parametrize("share", ["0", "1.0", "1e-05"])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_split_that_would_be_empty_is_said(name: str, share: str) -> None:
    assert f"task.data.val_fraction={share}: " in refusal(name, f"task.data.val_fraction={share}")


def test_a_function_that_is_not_there_is_said_in_one_line(cli) -> None:
    run = cli("task=chirp", "task.data.function.path=tasks.data.functions.sin", "runner=smoke")
    assert run.returncode != 0
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert "Error loading 'tasks.data.functions.sin'" in run.stderr


# one of each kind; the others are slow tests, of 8 epochs where nothing else is said
EPOCHS = {"diabetes": 10, "photograph_fit": 5, "sines2d": 20, "sound": 6, "signed_distance": 3}
OTHER_EPOCHS = {"photograph": 20, "checkerboard": 15}


@pytest.mark.parametrize(
    "name", [name if name in EPOCHS else pytest.param(name, marks=pytest.mark.slow) for name in REGRESSIONS]
)
def test_a_short_training_beats_the_constant(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    epochs = (EPOCHS | OTHER_EPOCHS).get(name, 8)
    overrides = (f"runner.epochs={epochs}", "runner.pictures=false", "runner.threads=1")
    record = train(tmp_path, make_factory("prelu"), *overrides, task=name)
    assert record["status"] == "ok"
    assert record["primary"] == record["test_psnr" if name in PICTURES else "test_mse"]
    assert record["test_r2"] > 5
    assert record["test_max_error"] ** 2 >= record["test_mse"]
