"""The runner honours the contract of activations and tasks, and trains."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_cell, make_factory, make_task, train
from torch import nn
from toy import Broken, Exploding, Late, Pooling, Toy, Witness

from activations.base import Activation
from activations.swish import Swish
from runners import cost
from runners.optim import lr_factor, make_optimizer, parameter_groups
from runners.record import write_curves
from runners.train import Train, build_network
from tasks.base import Recipe


def load(folder) -> dict:
    return torch.load(next(folder.glob("**/checkpoint.pt")), weights_only=True)


def test_phases_reach_the_activation_once_per_epoch(tmp_path) -> None:
    train(tmp_path, Toy, "runner.epochs=4", "runner.limit_batches=5")
    state = load(tmp_path)["network"]
    calls = [value for name, value in state.items() if name.endswith("epochs_seen")]
    assert len(calls) == 3
    for seen in calls:
        assert seen[:5].tolist() == [0, 5, 10, 15, -1]
    rows = pd.read_csv(next(tmp_path.glob("**/metrics.csv")))
    assert rows.loc[rows["split"] == "train", "phase"].tolist() == ["frozen", "frozen", "trained", "trained"]
    log = next(tmp_path.glob("**/log.txt")).read_text()
    assert [line for line in log.splitlines() if "phase is now" in line] == [
        line for line in log.splitlines() if "epoch 0: " in line or "epoch 2: " in line
    ]
    slopes = [value.item() for name, value in state.items() if name.endswith("slope")]
    assert all(slope not in (0.0, 0.125) for slope in slopes)  # set in place in epoch 2, then trained


def test_regularization_is_in_the_loss_and_in_the_metrics(tmp_path) -> None:
    for name, penalty in (("off", 0.0), ("on", 5.0)):
        train(tmp_path / name, partial(Toy, penalty=penalty), "runner.epochs=2")
    rows = pd.read_csv(next((tmp_path / "on").glob("**/metrics.csv")))
    assert (rows.loc[rows["split"] == "train", "regularization"] > 0).all()
    distance = {
        name: sum(
            (v - 1).square().sum() for k, v in load(tmp_path / name)["network"].items() if k.endswith("gain")
        )
        for name in ("off", "on")
    }
    assert distance["on"] < 0.5 * distance["off"]


def test_parameter_groups_follow_module_types_and_declarations() -> None:
    network = build_network(Toy, make_task("digits"), 0)
    decayed, spared = parameter_groups(network, 0.25)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert decayed["weight_decay"] == 0.25
    assert spared["weight_decay"] == 0
    assert {names[id(p)] for p in decayed["params"]} == {
        *(f"features.{i}.weight" for i in (0, 3, 6)),  # convolutions
        *(f"features.{i}.gain" for i in (2, 5, 8)),
        "head.weight",
    }
    assert {names[id(p)] for p in spared["params"]} == {
        *(f"features.{i}.{kind}" for i in (1, 4, 7) for kind in ("weight", "bias")),  # norms
        *(f"features.{i}.slope" for i in (2, 5, 8)),  # declared
        "head.bias",
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers_do_what_torch_does(optimizer: str) -> None:
    torch.manual_seed(0)
    recipe = Recipe(epochs=1, batch_size=1, lr=0.05, optimizer=optimizer, weight_decay=0.1, momentum=0.8)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    reference = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, 0.05),
        "adamw": lambda p: torch.optim.AdamW(p, 0.05),
    }[optimizer](
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    )
    mine = make_optimizer(ours, recipe)
    for _ in range(5):
        x = torch.randn(4, 5)
        for network, opt in ((ours, mine), (theirs, reference)):
            opt.zero_grad()
            network(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_schedule_warms_up_linearly_and_ends_near_zero() -> None:
    recipe = Recipe(epochs=1, batch_size=1, lr=1, warmup=0.1)
    factors = [lr_factor(step, 100, recipe) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)  # half-way down the cosine
    assert 0 < factors[-1] < 0.001
    constant = Recipe(epochs=1, batch_size=1, lr=1, schedule="constant")
    assert {lr_factor(step, 100, constant) for step in range(100)} == {1.0}


def test_learning_rate_in_the_metrics_is_the_schedules(tmp_path) -> None:
    train(tmp_path, Toy, "runner.epochs=3", "runner.limit_batches=4")
    rows = pd.read_csv(next(tmp_path.glob("**/metrics.csv")))
    recipe = make_task("digits").recipe
    expected = [recipe.lr * lr_factor(step, 12, recipe) for step in (3, 7, 11)]
    assert rows.loc[rows["split"] == "train", "lr"].tolist() == pytest.approx(expected)


def test_freeze_then_thaw(tmp_path) -> None:
    states = {}
    for epochs in (2, 3):
        # the same cosine would differ by length: compare a constant one
        train(
            tmp_path / str(epochs),
            Toy,
            f"runner.epochs={epochs}",
            "runner.limit_batches=3",
            "runner.activation_only_epochs=2",
            "task.recipe.schedule=constant",
            "task.recipe.warmup=0",
        )
        states[epochs] = load(tmp_path / str(epochs))["network"]
    initial = build_network(Toy, make_task("digits"), 0).state_dict()
    for name, value in initial.items():
        if value.is_floating_point() and "running" not in name:
            frozen = not name.endswith(("gain", "slope"))
            moved = not torch.equal(states[2][name], value)
            assert moved != frozen or name.endswith("slope"), name  # slopes have no part in the first phase
            assert not torch.equal(states[3][name], value), name


def test_freezing_all_there_is_to_train_is_no_error(tmp_path) -> None:
    """It is said in the log."""
    record = train(tmp_path, make_factory("relu"), "runner=smoke", "runner.activation_only_epochs=1")
    assert record["status"] == "ok"
    assert record["steps"] == 4
    assert "epoch 0: nothing is trained" in next(tmp_path.glob("**/log.txt")).read_text()


def test_parameters_that_have_no_part_in_the_output_yet_are_not_updated(tmp_path) -> None:
    """As those of PWLU while it collects statistics: they require gradients, but the loss does not."""

    class Waiting(Activation):
        def __init__(self, num_features: int, *, channel_dim: int = 1) -> None:
            super().__init__(num_features, channel_dim=channel_dim)
            self.slope = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    record = train(tmp_path, Waiting, "runner=smoke", "runner.activation_only_epochs=1")
    assert record["status"] == "ok"
    assert "epoch 0: nothing is trained" in next(tmp_path.glob("**/log.txt")).read_text()


def test_a_loss_that_is_not_finite_ends_the_cell(tmp_path) -> None:
    record = train(tmp_path, Exploding, "runner.epochs=5")
    assert record["status"] == "diverged"
    assert record["reason"] == "loss not finite in epoch 0"
    assert "primary" not in record
    stored = json.loads(next(tmp_path.glob("**/record.json")).read_text())
    assert stored["status"] == "diverged"
    rows = pd.read_csv(next(tmp_path.glob("**/metrics.csv")))
    assert rows["split"].tolist() == ["train"]


def test_scores_of_classes_are_written_to_a_table_of_their_own(tmp_path) -> None:
    """With the last weights and with the best ones."""
    cell = make_cell(tmp_path)
    task = make_task("digits")
    evaluate = task.evaluate
    worse = iter(range(100))

    def with_classes(network, split):
        scores = evaluate(network, split) | {"top1": 50.0 - next(worse)}  # the first epoch stays the best
        return scores | {"acc/one": scores["loss"], "acc/two": 2.0, "iou/two": 3.0}

    task.evaluate = with_classes
    cell.run(lambda: Train(epochs=3, limit_batches=2, cost=0)(Toy, task, cell))
    table = pd.read_csv(cell.folder / "classes.csv").set_index(["epoch", "class"])
    assert {(2, "one"), (2, "two"), (0, "one"), (0, "two")} <= set(table.index)
    metrics = pd.read_csv(cell.folder / "metrics.csv")
    assert not [name for name in metrics if "/" in name]
    tests = metrics[metrics["split"] == "test"].set_index("epoch")
    assert table.index.is_unique
    for epoch in (0, 2):
        assert table.loc[(epoch, "one"), "acc"] == tests.loc[epoch, "loss"]
        assert table.loc[(epoch, "two"), ["acc", "iou"]].tolist() == [2, 3]
    assert not [name for name in json.loads((cell.folder / "record.json").read_text()) if "/" in name]


def test_an_error_in_training_is_a_failed_cell_and_in_the_log(tmp_path) -> None:
    cell = make_cell(tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        cell.run(lambda: Train(epochs=1, cost=0)(Late, make_task("digits"), cell))
    record = json.loads((cell.folder / "record.json").read_text())
    assert record["status"] == "failed"
    assert "out of luck" in record["reason"]
    assert "Traceback" in (cell.folder / "log.txt").read_text()


@pytest.mark.parametrize("grid", [False, True])
def test_a_unit_that_does_not_fit_is_said_before_training(tmp_path, grid: bool) -> None:
    cell = make_cell(tmp_path / "outputs")
    cell.grid = grid
    with pytest.raises(ValueError, match=r"Broken at features\.2: input of shape .*: \(N, C\) is needed"):
        cell.run(lambda: Train(epochs=1, cost=0)(Broken, make_task("digits"), cell))
    assert cell.folder.exists() == grid  # a row of the grid, but nothing of a single run
    with pytest.raises(
        ValueError, match=r"Pooling at layers\.1: \(2, 50\) .* goes in and \(1, 50\) .* comes out"
    ):
        cell.run(lambda: Train(epochs=1, cost=0)(Pooling, make_task("sines2d"), cell))


def test_a_failed_repetition_by_force_keeps_the_result(tmp_path) -> None:
    first = train(tmp_path, Toy, "runner=smoke")
    files = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".txt"
    }
    with pytest.raises(ValueError, match="Broken at"):
        train(tmp_path, Broken, "runner=smoke", "force=true")
    assert all(path.read_bytes() == content for path, content in files.items())
    assert train(tmp_path, Toy, "runner=smoke")["written"] == first["written"]


def test_a_cell_finished_by_another_process_meanwhile_is_left_alone(tmp_path) -> None:
    cell = make_cell(tmp_path, "runner=smoke")
    assert cell.completed_record() is None
    other = train(tmp_path, Toy, "runner=smoke")
    record = cell.run(lambda: pytest.fail("trained again"))
    assert record["written"] == other["written"]
    assert not cell.started


def test_threads_are_one_cells_affair(tmp_path) -> None:
    before = torch.get_num_threads()
    assert train(tmp_path, Toy, "runner=smoke", "runner.threads=1")["num_threads"] == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("option", "dtype", "channels_last"),
    [
        ("runner.amp=off", torch.float32, False),
        ("runner.amp=bf16", torch.bfloat16, False),
        ("runner.amp=fp16", torch.float16, False),
        ("runner.channels_last=true", torch.float32, True),
    ],
)
def test_options_reach_the_activation(option: str, dtype: torch.dtype, channels_last: bool, tmp_path) -> None:
    Witness.seen.clear()
    train(tmp_path, Witness, "runner=smoke", option)
    assert set(Witness.seen) == {(dtype, channels_last)}


def test_gradients_are_clipped(tmp_path, monkeypatch) -> None:
    norms = []
    original = nn.utils.clip_grad_norm_

    def clip(parameters, limit):
        parameters = list(parameters)
        before = original(parameters, limit)
        norms.append((before.item(), torch.cat([p.grad.flatten() for p in parameters]).norm().item()))

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    train(tmp_path, make_factory("relu"), "runner=smoke", "task.recipe.clip_norm=0.01")
    assert len(norms) == 4
    assert all(before > 0.01 and after == pytest.approx(0.01, rel=1e-3) for before, after in norms)


def test_operations_are_counted() -> None:
    """Linear(2, 50), activation, Linear(50, 1): two per multiply-add, one per element of each element-wise step."""
    task = make_task("sines2d")
    linear = 2 * 2 * 50 + 2 * 50 * 1
    for factory, activation in (
        (make_factory("relu"), 50),
        (partial(Swish, trainable=True), 150),  # beta x, sigmoid, product
        (make_factory("prelu"), 50),
        (Toy, 1_000_000),  # as it declares
    ):
        counted = cost.flops(build_network(factory, task, 0), task.input_shape)
        assert counted == {"flops": linear + activation, "activation_flops": activation}


def test_operations_of_the_network_are_torchs_count() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    task = make_task("digits")
    network = build_network(make_factory("relu"), task, 0).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 8, 8))
    counted = cost.flops(network, task.input_shape)
    assert counted["activation_flops"] == 16 * 64 + 32 * 16 + 64 * 4
    assert counted["flops"] == counter.get_total_flops() + counted["activation_flops"]


def test_curves_and_diagnostics_are_written(tmp_path) -> None:
    train(tmp_path, Toy, "runner=smoke")
    arrays = np.load(next(tmp_path.glob("**/curves.npz")))
    assert set(arrays) == {"x"} | {
        f"{kind}/features.{i}{tail}"
        for i in (2, 5, 8)
        for kind, tail in (
            ("curve", ""),
            ("diagnostic", "/gain"),
            ("inputs", ""),
            ("evolution/0", ""),
            ("role", "/gain"),
        )
    }
    assert str(arrays["role/features.2/gain"]) == "gate"
    assert arrays["curve/features.2"].shape == (16, len(arrays["x"]))


def test_keeping_curves_changes_no_bit_of_a_run_and_they_are_those_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("runner.epochs=4", "runner.limit_batches=2")
    kept = train(tmp_path / "kept", Toy, *settings)
    curves = np.load(next(tmp_path.glob("kept/**/curves.npz")))
    assert {name.split("/")[1] for name in curves if name.startswith("evolution/")} == {"0", "1", "2"}
    # Toy begins as max(x, 0) times a gain near 1, and its slope is frozen before epoch 2
    start = curves["evolution/0/features.2"].astype(float)
    np.testing.assert_allclose(start, np.maximum(curves["x"], 0), rtol=0.02, atol=0.01)
    assert (curves["evolution/2/features.2"][curves["x"] < 0] == 0).all()
    assert (curves["curve/features.2"][:, curves["x"] < 0] != 0).all()
    monkeypatch.setattr("runners.train.evolution_epochs", lambda epochs: frozenset())
    assert train(tmp_path / "none", Toy, *settings)["primary"] == kept["primary"]
    states = [load(tmp_path / name) for name in ("kept", "none")]
    assert all(
        torch.equal(states[0]["network"][key], states[1]["network"][key]) for key in states[0]["network"]
    )
    assert torch.equal(states[0]["random"]["torch"], states[1]["random"]["torch"])


def test_the_inputs_of_every_site_are_counted(tmp_path) -> None:
    network = nn.Sequential(nn.Identity(), Toy(2), nn.Flatten())
    samples = torch.tensor([[-7.0, 0.01], [0.02, float("nan")], [6.5, -float("inf")]])
    write_curves(tmp_path / "curves.npz", network, samples)
    arrays = np.load(tmp_path / "curves.npz")
    shares = arrays["inputs/1"]
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == shares[-1] == 0.25  # beyond the points; what is not finite does not count
    inside = np.flatnonzero(shares[1:-1])
    assert shares[1:-1][inside].tolist() == [0.5]
    assert arrays["x"][inside[0]] <= 0.01 <= 0.02 <= arrays["x"][inside[0] + 1]


def test_same_seed_same_bits_other_seed_others(tmp_path) -> None:
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        train(tmp_path / str(i), Toy, "runner.epochs=2", f"seed={seed}")
        weights.append(load(tmp_path / str(i))["network"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_digits_are_learned(tmp_path) -> None:
    record = train(tmp_path, make_factory("relu"), "runner.epochs=6")
    assert record["primary"] > 95
    assert record["parameters"] == 24058
    assert record["activation_parameters"] == 0


def test_sines2d_is_learned(tmp_path) -> None:
    record = train(tmp_path, make_factory("relu"), "runner.epochs=20", "runner.pictures=true", task="sines2d")
    variance = make_task("sines2d").points["test"][1].var(correction=0).item()
    assert record["primary"] < 0.9 * variance  # predicting the mean scores the variance
    assert record["test_r2"] == pytest.approx(100 * (1 - record["primary"] / variance), abs=1e-3)
    assert next(tmp_path.glob("**/pictures/fit.png")).stat().st_size > 10_000


@pytest.mark.parametrize(
    "option", ["runner.amp=bf16", "runner.amp=fp16", "runner.channels_last=true", "runner.threads=1"]
)
def test_options_train_as_well(option: str, tmp_path) -> None:
    record = train(tmp_path, make_factory("prelu"), "runner.epochs=3", option)
    assert record["primary"] > 60


@pytest.mark.slow
def test_compiled_training_agrees_with_eager(tmp_path) -> None:
    eager = train(tmp_path / "eager", make_factory("prelu"), "runner.epochs=2")
    compiled = train(tmp_path / "compiled", make_factory("prelu"), "runner.epochs=2", "runner.compile=on")
    assert compiled["test_loss"] == pytest.approx(eager["test_loss"], rel=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs_scale", 0),
        ("epochs_scale", float("inf")),
        ("limit_batches", 0),
        ("activation_only_epochs", -1),
        ("threads", 0),
        ("amp", "fp8"),
        ("compile", "maybe"),
        ("channels_last", "yes"),
        ("device", "tpu"),
    ],
)
def test_runner_refuses_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        Train(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", float("nan")),
        ("lr", 0),
        ("momentum", 1),
        ("weight_decay", -1e-4),
        ("warmup", 1.0),
        ("optimizer", "lion"),
        ("schedule", "linear"),
        ("clip_norm", 0),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
    ],
)
def test_recipe_refuses_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        Recipe(**{"epochs": 1, "batch_size": 1, "lr": 0.1, name: value})


def test_pictures_of_some_seeds(tmp_path) -> None:
    for seed in range(3):
        train(tmp_path, make_factory("relu"), "runner=smoke", "runner.pictures=[0,2]", f"seed={seed}")
    seeds = {path.parents[1].name.partition("-")[0] for path in tmp_path.glob("**/confusion.png")}
    assert seeds == {"0", "2"}


@pytest.mark.parametrize("pictures", [[], [-1], "some", None])
def test_pictures_of_what_is_no_seed(pictures: object) -> None:
    with pytest.raises(ValueError, match=r"^pictures="):
        Train(pictures=pictures)
