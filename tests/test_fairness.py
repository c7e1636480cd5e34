"""The protocol: pairing, splits and budget. Each test fails if its rule is broken."""

import pytest
import torch
from conftest import ACTIVATIONS, TASKS, config, make_factory, make_task, train
from toy import Toy

from activations.base import Activation
from runners import seeding
from runners.train import build_network
from tasks.base import Task
from tasks.data.splits import stratified

OFFLINE = [name for name in TASKS if "root" not in config(f"task={name}").task.data]  # no files needed
FACTORIES = {name: make_factory(name) for name in ACTIVATIONS} | {"toy": Toy}


def weights_outside_activations(task: Task, factory: object, seed: int) -> dict[str, torch.Tensor]:
    network = build_network(factory, task, seed)
    sites = [name for name, module in network.named_modules() if isinstance(module, Activation)]
    assert sites
    return {
        k: v for k, v in network.state_dict().items() if not any(k.startswith(f"{site}.") for site in sites)
    }


# a task for each network that is the default of one; and networks of whose sites the last are swapped
NETWORKS = {str(config(f"task={name}").network): name for name in OFFLINE}
SWAPPED = [f"digits network={name} network.sites=last:2" for name in ("resnet8", "timm", "torchvision")]


@pytest.mark.parametrize("names", [*NETWORKS.values(), "digits network=resnet8", *SWAPPED])
def test_shared_weights_are_bitwise_equal_for_all_activations(names: str) -> None:
    """Whether these draw random numbers, have parameters or are swapped in."""
    if "timm" in names:
        pytest.importorskip("timm")
    task = make_task(*names.split())
    reference = weights_outside_activations(task, FACTORIES["relu"], seed=3)
    few = ("relu", "prelu", "dyrelu", "frelu", "toy")
    for name, factory in FACTORIES.items() if names not in SWAPPED else ((n, FACTORIES[n]) for n in few):
        torch.rand(7)  # whatever was drawn before must not matter
        weights = weights_outside_activations(task, factory, seed=3)
        assert weights.keys() == reference.keys(), name
        assert all(torch.equal(weights[key], reference[key]) for key in reference), name
    other_seed = weights_outside_activations(task, FACTORIES["relu"], seed=4)
    assert any(not torch.equal(other_seed[key], reference[key]) for key in reference)


def test_activations_draw_from_their_own_stream_by_site_and_seed() -> None:
    task = make_task("digits")
    gains = [
        [module.gain for module in build_network(Toy, task, seed).modules() if isinstance(module, Toy)]
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(gains[0], gains[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(gains[0], gains[2], strict=True))
    assert not torch.equal(gains[0][0], gains[0][1][:16])


@pytest.mark.parametrize("task_name", OFFLINE)
def test_first_batches_are_bitwise_equal_for_all_activations(task_name: str, tmp_path, monkeypatch) -> None:
    """As seen inside real runs, with activations that draw random numbers in between."""
    seen: dict[str, list] = {}

    def spy(name: str, factory: object) -> object:
        task_class = type(make_task(task_name))
        original = task_class.batches

        def batches(self, split, generator=None):
            for input, target in original(self, split, generator):
                if split == "train":
                    seen.setdefault(name, []).append((input.clone(), target.clone()))
                yield input, target

        with monkeypatch.context() as patch:
            patch.setattr(task_class, "batches", batches)
            return train(
                tmp_path / name, factory, "runner=smoke", "runner.epochs=2", "seed=5", task=task_name
            )

    records = [spy(name, FACTORIES[name]) for name in ("relu", "prelu", "toy")]
    assert all(record["status"] == "ok" for record in records)
    assert len(seen["relu"]) >= 8
    for name in ("prelu", "toy"):
        for (x, y), (x_relu, y_relu) in zip(seen[name], seen["relu"], strict=True):
            assert torch.equal(x, x_relu)
            assert torch.equal(y, y_relu)


def test_data_stream_depends_on_seed_and_epoch() -> None:
    task = make_task("digits")

    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(iter(task.batches("train", seeding.generator(seed, "data", epoch))))[1]

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_streams_of_a_seed_are_the_same_everywhere() -> None:
    """Seeds are part of published results: these numbers follow from SHA-256 and may never change."""
    import hashlib

    digest = hashlib.sha256(b"3/data/7").digest()
    assert seeding.stream_seed(3, "data", 7) == int.from_bytes(digest[:8], "big") // 2


@pytest.mark.parametrize("task_name", OFFLINE)
def test_splits_do_not_depend_on_the_seed_or_random_state(task_name: str) -> None:
    def membership(state: int) -> list[torch.Tensor]:
        torch.manual_seed(state)
        task = make_task(task_name)
        return [x for split in ("val", "test") for batch in task.batches(split) for x in batch]

    assert all(torch.equal(a, b) for a, b in zip(membership(0), membership(1), strict=True))


def test_digit_splits_are_disjoint_complete_and_stratified() -> None:
    task = make_task("digits")
    parts = list(task.index.values())
    together = torch.cat(parts)
    assert len(together) == len(together.unique()) == 1797
    assert [len(part) for part in parts] == [1006, 252, 539]
    for part in parts:
        share = torch.bincount(task.labels[part]) / len(part)
        assert (share - 0.1).abs().max() < 0.02


def test_a_smaller_training_set_leaves_validation_and_test_as_they_are() -> None:
    whole, part = make_task("digits"), make_task("digits", "task.train_size=100")
    assert len(part.index["train"]) == 100
    assert set(part.index["train"].tolist()) < set(whole.index["train"].tolist())
    for split in ("val", "test"):
        assert torch.equal(whole.index[split], part.index[split])


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    labels = torch.tensor([0] * 300 + [1] * 150 + [2] * 50)
    chosen = [stratified(labels, size)[1] for size in (7, 50, 250)]
    assert [torch.bincount(labels[part]).tolist() for part in chosen] == [
        [4, 2, 1],
        [30, 15, 5],
        [150, 75, 25],
    ]
    assert set(chosen[0].tolist()) < set(chosen[1].tolist()) < set(chosen[2].tolist())


@pytest.mark.parametrize("size", [0, 500, -1])
def test_a_split_that_would_be_empty_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        stratified(torch.arange(500) % 10, size)


def test_normalization_is_computed_on_the_training_split_alone() -> None:
    task = make_task("digits")
    pixels = task.store.samples[task.index["train"]].double()
    x = torch.cat([batch for batch, _ in task.batches("train", seeding.generator(0))])
    assert x.mean().abs() < 0.02  # an epoch drops its last partial batch
    assert task.scale.item() == pytest.approx(1 / pixels.std(correction=0).item())
    assert (-task.shift / task.scale).item() == pytest.approx(pixels.mean().item())


def test_test_split_is_evaluated_once_and_after_training(tmp_path, monkeypatch) -> None:
    from tasks.classification import Classification

    events = []
    original = Classification.evaluate

    def evaluate(self, network, split):
        events.append(split)
        return original(self, network, split)

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    record = train(tmp_path, Toy, "runner.epochs=3", "runner.limit_batches=4")
    looks = 1 if record["best_epoch"] == 2 else 2  # the last and, if they are others, the best weights
    assert events == ["val"] * 3 + ["test"] * looks


def test_best_weights_are_those_of_the_best_validation(tmp_path) -> None:
    import pandas as pd

    record = train(tmp_path, Toy, "runner.epochs=6", "runner.limit_batches=3")
    rows = pd.read_csv(next(tmp_path.glob("**/metrics.csv")))
    val = rows[rows["split"] == "val"].set_index("epoch")
    best = val[val["top1"] == val["top1"].max()]
    assert record["best_epoch"] == best["loss"].idxmin()
    assert record["primary_val"] == pytest.approx(val["top1"].iloc[-1])
    test = rows[rows["split"] == "test"]
    assert list(test["epoch"]) == ([5] if record["best_epoch"] == 5 else [5, record["best_epoch"]])
    assert record["primary"] == pytest.approx(test["top1"].iloc[0])
    assert record["primary_best"] == pytest.approx(test["top1"].iloc[-1])


def test_budget_is_the_same_for_all_activations(tmp_path) -> None:
    budgets = set()
    for name in ("relu", "swish_beta", "toy"):
        record = train(tmp_path / name, FACTORIES[name], "runner=short", "runner.limit_batches=3")
        budgets.add((record["epochs"], record["steps"], record["epochs_trained"]))
    assert budgets == {(6, 18, 6)}
