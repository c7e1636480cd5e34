"""Published numbers: the committed tables, and the verdicts of the reproduction card."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ACTIVATIONS, ROOT
from scipy import stats

from results.page import Report
from results.page import published as published_section
from results.published import CARD, COLUMNS, FOLDER, read_published, reproduction, to_markdown
from results.shapes import Shapes

PLAIN = {
    "paper": "1234.56789",
    "table": "2",
    "activation": "swish",
    "printed": "Swish",
    "task": "classification",
    "dataset": "CIFAR-10",
    "model": "ResNet-20",
    "metric": "top1",
    "value": 92.0,
    "sd": math.nan,
    "runs": math.nan,
    "baseline": "relu",
    "baseline_value": 91.5,
    "difference": math.nan,
    "protocol": "",
    "source": "a paper",
    "tier": "verified",
}


def published(**changes: object) -> pd.DataFrame:
    return pd.DataFrame([PLAIN | changes])


def cells(scores: dict[str, list[float]], **facts: object) -> pd.DataFrame:
    rows = [
        {
            "task_label": "cifar10",
            "activation_label": name,
            "activation": name,
            "network": "resnet20",
            "seed": seed,
            "status": "ok",
            "primary": score,
            "primary_metric": "top1",
            "higher_is_better": True,
            "epochs": 160,
            "task.data._target_": "tasks.data.images.cifar10",
            "task.recipe.optimizer": "sgd",
            "task.recipe.lr": 0.1,
            "task.recipe.batch_size": 128,
            "task.train_size": None,
            "network.model.path": "tasks.networks.resnet.ResNet",
            "network.depth": 20,
            "network.width": 16,
        }
        | facts
        for name, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return pd.DataFrame(rows)


RELU = [80.0, 82.0, 81.0, 83.0, 79.0]
NOISE = [0.1, -0.1, 0.05, 0.0, -0.05]


def study(gain: float, noise: list[float] = NOISE, **facts: object) -> pd.DataFrame:
    swish = [x + gain + e for x, e in zip(RELU, noise, strict=True)]
    return cells({"relu": RELU, "swish": swish}, **facts)


def test_differences_to_the_baseline_are_compared_since_recipes_move_values() -> None:
    """Ours are 11 points below the paper's; the difference of 0.5 is what counts."""
    for gain, verdict in ((0.5, "agrees"), (0.2, "agrees"), (2.0, "above"), (-1.0, "below")):
        row = reproduction(study(gain), published()).iloc[0]
        assert (row["task"], row["activation"], row["verdict"], row["n"]) == ("cifar10", "swish", verdict, 5)
        assert row["ours_difference"] == pytest.approx(gain)
    assert (
        reproduction(study(0.5, [2, -3, 0, 2, -1]), published())
        .iloc[0]["why"]
        .startswith("5 seeds do not decide")
    )


def test_the_equivalence_test_is_two_t_tests() -> None:
    """agrees is p < 0.05 of both one-sided tests against -+0.5."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        noise = rng.normal(0.0, 0.45, 5)
        d = 0.5 + noise
        p = max(
            stats.ttest_1samp(d, 0.5 - 0.5, alternative="greater").pvalue,
            stats.ttest_1samp(d, 0.5 + 0.5, alternative="less").pvalue,
        )
        agrees = reproduction(study(0.5, list(noise)), published()).iloc[0]["verdict"] == "agrees"
        assert agrees == (p < 0.05)
        seen.add(agrees)
    assert seen == {True, False}


def test_errors_and_differences_as_printed_are_the_same_number() -> None:
    ways = [
        published(),
        published(metric="top1_error", value=8.0, baseline_value=8.5),
        published(value=math.nan, baseline_value=math.nan, difference=0.5),
    ]
    rows = [reproduction(study(0.6), way).iloc[0] for way in ways]
    for row in rows:
        assert (row["verdict"], row["ours_low"], row["ours_high"]) == (
            "agrees",
            pytest.approx(rows[0]["ours_low"]),
            pytest.approx(rows[0]["ours_high"]),
        )


def test_without_a_baseline_the_values_are_compared() -> None:
    alone = {"baseline": "", "baseline_value": math.nan}
    assert (
        reproduction(study(0.5), published(value=81.5, **alone)).iloc[0]["verdict"] == "not comparable"
    )  # too wide
    row = reproduction(study(0.5), published(value=92.0, **alone)).iloc[0]
    assert (row["verdict"], math.isnan(row["ours_difference"])) == ("below", True)
    row = reproduction(study(0.5), published(metric="top1_error", value=8.0, **alone)).iloc[0]
    assert row["verdict"] == "below"
    # the paper's own spread widens the interval: 100 points of standard deviation leave nothing to say
    row = reproduction(study(0.5), published(value=92.0, sd=100.0, runs=3, **alone)).iloc[0]
    assert row["verdict"] == "not comparable"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"network.width": 8}, "other network: ResNet-20, ours ResNet-20 of width 8"),
        ({"network.model.path": "tasks.networks.adapters.timm", "network.name": "vgg16_bn"}, "ours vgg16_bn"),
        ({"primary_metric": "miou"}, "other metric"),
        ({"task.train_size": 10000}, "train_size=10000"),
    ],
)
def test_what_is_not_comparable_says_why(facts: dict[str, object], why: str) -> None:
    card = reproduction(study(0.5, **facts), published())
    assert card["verdict"].tolist() == ["not comparable"]
    assert why in card.iloc[0]["why"]
    assert why in to_markdown(card)


def test_the_baseline_must_be_in_the_study() -> None:
    card = reproduction(cells({"swish": RELU}), published())
    assert "no cells of relu" in card.iloc[0]["why"]
    one = reproduction(cells({"swish": [80.0], "relu": [81.0]}), published())
    assert "fewer than two seeds" in one.iloc[0]["why"]


def test_errors_are_shown_as_ours_are_measured() -> None:
    rows = published(metric="top1_error", value=8.0, baseline_value=8.5)
    text = to_markdown(reproduction(study(0.5), rows))
    assert "| top1 +0.5 to relu | +0.5 (" in text
    alone = to_markdown(reproduction(cells({"relu": RELU}), rows.assign(activation="relu", value=10.0)))
    assert "| top1 90 | 81 (" in alone


def test_the_page_has_the_card_with_intervals_and_protocol() -> None:
    card = reproduction(study(0.5), published(protocol="3 seeds"))
    report = Report("s", pd.DataFrame(), pd.DataFrame(), [], Shapes(), card=card)
    (section,) = published_section(report)
    table = next(part for part in section.parts if part.kind == "table")
    cells_of = dict(zip(CARD, (str(value.text) for value in table.rows[0]), strict=True))
    assert cells_of["published"] == "top1 +0.5 to relu"
    assert re.fullmatch(r"\+0\.5 \(\+0\.4\d+ to \+0\.5\d+\)", cells_of["ours"])
    assert "theirs: 3 seeds" in cells_of["protocol"]
    other = reproduction(study(0.5), published(model="VGG"))
    (section,) = published_section(Report("s", pd.DataFrame(), pd.DataFrame(), [], Shapes(), card=other))
    assert not [part for part in section.parts if part.kind == "table"]


def test_other_data_and_activations_have_no_rows() -> None:
    assert reproduction(study(0.5), published(dataset="CIFAR-100")).empty
    card = reproduction(study(0.5), published(activation="gelu"))
    assert list(card) == COLUMNS
    assert to_markdown(card) == ""


def test_the_card_prints_tier_source_and_protocols() -> None:
    ours = study(0.5)
    ours.loc[9, "status"] = "diverged"
    text = to_markdown(reproduction(ours, published(protocol="3 seeds | best epoch")))
    assert "1234.56789 2 | verified" in text
    assert (
        r"theirs: 3 seeds \| best epoch; ours: 160 epochs, sgd lr 0.1, batch 128, last weights, 1 diverged"
        in text
    )


def test_the_committed_tables_are_whole() -> None:
    rows = read_published()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in rows if f"`{name}`" not in readme] == []
    assert len(rows) > 200
    assert set(rows["tier"]) == {"verified", "secondary", "recalled"}
    assert set(" ".join(rows["activation"]).split()) <= set(ACTIVATIONS)
    assert (rows["value"].notna() | rows["difference"].notna()).all()
    assert rows[["source", "dataset", "model", "metric", "printed"]].notna().all(axis=None)
    assert not rows.duplicated(["printed", "dataset", "model", "metric", "source"]).any()
    itself = rows[rows["activation"] == rows["baseline"]]
    assert (itself["value"] == itself["baseline_value"]).all()
    assert all(re.fullmatch(r"|\d{4}\.\d{5}|doi:.*", paper) for paper in rows["paper"])


def test_datasets_of_the_code_are_those_of_the_configurations() -> None:
    from results.published import DATASETS

    text = "".join(path.read_text() for path in (ROOT / "conf" / "task").glob("*.yaml"))
    assert all(re.search(rf"_target_: tasks\.data\.\w+\.{name}\n", text) for name in DATASETS)


def test_the_tables_are_in_the_wheel() -> None:
    import tomllib

    data = tomllib.loads(Path(ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = data["actbench.results"]
    carried = {path for pattern in patterns for path in (ROOT / "results").glob(pattern)}
    assert set(FOLDER.iterdir()) <= carried
