"""Scores of single test samples: written at the test, and what another test set would leave of a verdict."""

import io
import math
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_factory, make_task, train
from simulate_verdicts import simulate_test_sets
from test_results import make_study
from torch import nn

from results.collect import add_labels, read_records
from results.examples import MEANS, read_examples, sentence, widened
from results.files import EXAMPLES, read_json
from results.leaderboard import leaderboard, to_markdown
from results.statistics import Comparison
from runners import record
from tasks.segmentation import VOID, Segmentation


def write(cell: Path, right: np.ndarray) -> None:
    np.savez(cell / EXAMPLES, top1=np.packbits(right), count=np.array(len(right)))


def study_of(folder: Path, right: dict[str, np.ndarray]) -> Path:
    """A study in which ``right`` (seeds, samples) says which test images an activation knows."""
    scores = {name: [100 * float(seed.mean()) for seed in seeds] for name, seeds in right.items()}
    study = make_study(folder, scores)
    for name, seeds in right.items():
        for seed, outcome in enumerate(seeds):
            write(study / "digits" / name / f"{seed}-abc", outcome)
    return study


def table_of(study: Path) -> pd.DataFrame:
    return leaderboard(add_labels(read_records(study)))


@pytest.mark.parametrize("task", ["digits", "sines2d"])
def test_a_cell_keeps_the_score_of_each_test_sample(tmp_path: Path, task: str) -> None:
    found = train(tmp_path, make_factory("relu"), "runner=smoke", task=task, activation="relu")
    folder = next(tmp_path.rglob(EXAMPLES)).parent
    values = read_examples(folder, found["primary_metric"], found["primary"])
    assert values is not None
    assert values[0].mean() == pytest.approx(found["primary"], rel=1e-5)
    assert values[1] == (100 if task == "digits" else 0)
    assert found["primary_metric"] in MEANS
    assert (folder / EXAMPLES).stat().st_size < 100_000


def test_pixel_accuracy_of_each_image_is_over_its_pixels_with_a_class() -> None:
    task: Segmentation = make_task("shapes", "runner=smoke")
    input, target = next(iter(task.batches("test")))
    target = target.clone()
    target[0, :5] = VOID
    task.batches = lambda split, generator=None: iter([(input, target)])  # type: ignore[method-assign]
    truth = nn.functional.one_hot(target.where(target != VOID, 0), len(task.classes)).movedim(3, 1).float()
    truth[1, :, 0] = truth[1, :, 0].roll(1, 0)  # the first row of the second image is wrong
    network = nn.Identity()
    network.forward = lambda x: truth  # type: ignore[method-assign]
    task.evaluate(network, "test")
    accuracy = task.examples["pixel_accuracy"]
    assert accuracy[0] == 100
    assert accuracy[1] == pytest.approx(100 * (1 - 1 / target.shape[1]))
    task.evaluate(network, "val")
    assert task.examples == {}


def test_bits_survive_and_too_many_numbers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch.rand(1003, generator=torch.Generator().manual_seed(0)) < 0.9
    record.write_examples(tmp_path / EXAMPLES, {"top1": right})
    values = read_examples(tmp_path, "top1", 100 * right.double().mean().item())
    assert values is not None
    assert values[0].tolist() == (100 * right).tolist()
    monkeypatch.setattr(record, "MAX_EXAMPLES", 5)
    record.write_examples(tmp_path / "none.npz", {"mse": torch.rand(6)})
    record.write_examples(tmp_path / "no.npz", {})
    assert [path.name for path in tmp_path.iterdir()] == [EXAMPLES]


def test_scores_that_are_not_those_of_the_record_are_not_used(tmp_path: Path) -> None:
    assert read_examples(tmp_path, "top1", 50.0) is None  # an older cell
    write(tmp_path, np.array([True, False]))
    assert read_examples(tmp_path, "top1", 50.0) is not None
    assert read_examples(tmp_path, "top1", 60.0) is None
    assert read_examples(tmp_path, "mse", 50.0) is None
    (tmp_path / EXAMPLES).write_bytes((tmp_path / EXAMPLES).read_bytes()[:-30])
    assert read_examples(tmp_path, "top1", 50.0) is None


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (np.packbits([True, False]), "x"),
        (np.packbits([True, False]), [2, 2]),
        (np.packbits([True, False]), 10**15),
        (np.packbits([True, False]), -2),
        (np.zeros((2, 2), np.uint8), 2),
        (np.zeros(0), 0),
        (np.array(["a", "b"]), 2),
    ],
)
def test_arrays_that_no_runner_writes_are_not_used(tmp_path: Path, values: np.ndarray, count: object) -> None:
    np.savez(tmp_path / EXAMPLES, top1=values, count=np.array(count))
    assert read_examples(tmp_path, "top1", 50.0) is None


def test_memory_is_not_asked_for_what_a_file_only_claims(tmp_path: Path) -> None:
    header = io.BytesIO()
    declared = {"descr": "|u1", "fortran_order": False, "shape": (4_000_000_000,)}
    np.lib.format.write_array_header_1_0(header, declared)
    np.savez(tmp_path / EXAMPLES, count=np.array(2))
    with zipfile.ZipFile(tmp_path / EXAMPLES, "a") as archive:
        archive.writestr("top1.npy", header.getvalue() + bytes(1000))
    tracemalloc.start()
    assert read_examples(tmp_path, "top1", 50.0) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


SEEDS, SAMPLES = 40, 300
T = 2.0227  # t(0.975; 39)


def resampled(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw seeds and samples independently of each other."""
    for _ in range(4000):
        yield rng.integers(SEEDS, size=SEEDS), rng.integers(SAMPLES, size=SAMPLES)


def test_the_interval_is_that_of_a_bootstrap_of_seeds_and_samples() -> None:
    """With 40 seeds the t interval is a bootstrap's."""
    rng = np.random.default_rng(0)
    seeds, samples = SEEDS, SAMPLES
    difference = (
        2 * rng.normal(size=(seeds, 1)) + 20 * rng.normal(size=samples) + rng.normal(size=(seeds, samples))
    )
    of_seeds = difference.mean(1)
    half = T * of_seeds.std(ddof=1) / math.sqrt(seeds)
    mean = float(difference.mean())
    low, high = widened(Comparison(delta=mean, low=mean - half, high=mean + half), difference.mean(0), 0.0, 1)
    means = [difference[i][:, j].mean() for i, j in resampled(rng)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.06 * (high - low))


def test_the_interval_of_a_ratio_is_that_of_a_bootstrap_as_well() -> None:
    rng = np.random.default_rng(1)
    of_sample, of_seed = rng.exponential(size=SAMPLES), rng.lognormal(sigma=0.2, size=(2, SEEDS, 1))
    own, other = (of_seed * of_sample) * rng.lognormal([[[-2.0]], [[0.0]]], 0.8, size=(2, 1, SAMPLES))
    logs = np.log(own.mean(1) / other.mean(1))
    mean, half = logs.mean(), T * logs.std(ddof=1) / math.sqrt(SEEDS)
    ends = [math.expm1(x) for x in (mean, mean - half, mean + half)]
    difference = (own / own.mean(1, keepdims=True) - other / other.mean(1, keepdims=True)).mean(0)
    low, high = widened(
        Comparison(delta=ends[0], low=ends[1], high=ends[2]), difference, 0.0, 1, relative=True
    )
    ratios = [np.log(own[i][:, j].mean(1) / other[i][:, j].mean(1)).mean() for i, j in resampled(rng)]
    assert math.log1p(high) - math.log1p(low) > 2.2 * half
    expected = np.quantile(ratios, [0.025, 0.975])
    assert np.log1p([low, high]) == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))
    endless = Comparison(delta=-0.99, low=-1.0, high=math.inf)
    assert widened(endless, difference, 0.0, 1, relative=True) == (-1.0, math.inf)


def test_intervals_cover_the_difference_in_the_population() -> None:
    """Those for seeds alone do not."""
    rates = simulate_test_sets(500, 5, 150)
    assert float(str(rates["seeds alone"])) < 92
    assert float(str(rates["and test sets"])) >= 95


def test_a_table_says_which_verdicts_hold_for_another_test_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.random((5, 400)) < 0.8
    much, little = base.copy(), base.copy()
    much[:, :60] = True  # about 12 images of the same 60 in every seed
    little[:, :6] = False
    study = study_of(tmp_path / "s", {"relu": base, "gelu": much, "tanh": little})
    table = table_of(study)
    rows = table.set_index("activation")
    assert rows.loc["gelu", "verdict"] == "better"
    assert rows.loc["tanh", "verdict"] == "worse"
    inside = rows.drop("relu")
    assert (inside["test_low"] < inside["delta_low"]).all()
    assert (inside["test_high"] > inside["delta_high"]).all()
    assert rows.loc["gelu", "test_low"] > 0
    assert rows.loc["tanh", "test_high"] > 0
    told = sentence(table)
    assert "tanh worse" in told
    assert "gelu" not in told
    assert told in to_markdown(table)


def test_no_interval_where_a_seed_has_no_scores_or_folds_are_asked_for(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random((3, 50)) < 0.8
    study = study_of(tmp_path / "s", {"relu": right, "gelu": right, "tanh": right})
    (study / "digits" / "gelu" / "1-abc" / EXAMPLES).unlink()
    assert table_of(study).set_index("activation")["test_low"].notna().to_dict() == {
        "relu": False,
        "gelu": False,
        "tanh": True,
    }
    for path in study.rglob("record.json"):
        path.write_text(
            path.read_text().replace('"task.recipe.lr"', '"task.data.folds": 5, "task.recipe.lr"')
        )
    assert read_json(path)["task.data.folds"] == 5
    assert table_of(study)["test_low"].isna().all()


def test_a_metric_that_is_no_mean_over_samples_is_said(tmp_path: Path) -> None:
    scores = {"relu": [50.0, 51.0, 52.0], "gelu": [70.0, 71.0, 72.1]}
    table = table_of(make_study(tmp_path / "s", scores, primary_metric="miou"))
    assert "miou is not a mean over test samples" in sentence(table)
    # older cells have no scores of single samples
    assert sentence(table_of(make_study(tmp_path / "old", scores))) == ""
