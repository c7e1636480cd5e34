"""Compare a study with published numbers: the reproduction card of its report.

The numbers are in ``results/published/*.csv``, described in the README beside them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from results.escape import markdown, markdown_table
from results.leaderboard import seed_scores
from results.metrics import METRICS, UNKNOWN
from results.schema import is_missing
from results.statistics import ALPHA, estimate

FOLDER = Path(__file__).parent / "published"
# data sources, by the last part of task.data._target_, and what papers call them
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "camvid": "CamVid",
    "voc2012": "PASCAL VOC 2012",
}
ERRORS = {"top1_error": "top1", "top5_error": "top5"}  # 100 less this metric
SUBSETS = ("task.train_size", "task.test_size", "runner.limit_batches")
UNKNOWN_FACT = "unknown"
COLUMNS = [
    *("task", "activation", "paper", "table", "model", "metric", "value", "sd", "baseline", "baseline_value"),
    *("difference", "n", "ours", "ours_difference", "ours_low", "ours_high", "verdict", "why", "protocol"),
    *("source", "tier"),
]

CARD = ("task", "activation", "source", "tier", "published", "ours", "n", "verdict", "protocol")
ABOUT = (
    "Networks are matched by name, and recipes differ, so that differences to the baseline are compared where the source has them. "
    "agrees: equivalent within the metric's margin at 5 %; above, below: the 95 % interval excludes the published number. "
    "Each row is a test of its own. Tiers: verified (read in the source), secondary (read in a text about it), recalled "
    "(from memory, to be checked)."
)


def read_published(folder: Path = FOLDER) -> pd.DataFrame:
    """Read all tables of published numbers; empty text where a text is missing, nan where a number is."""
    text = ("paper", "table", "activation", "baseline", "protocol")
    tables = [pd.read_csv(path, dtype={"paper": str, "table": str}) for path in sorted(folder.glob("*.csv"))]
    published = pd.concat(tables, ignore_index=True)
    return published.assign(**{name: published[name].fillna("") for name in text})


def reproduction(records: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compare each activation of a study with each published number of it on the same data.

    A number is compared if network (by name), metric and data are the same. Where it has a baseline that the study has
    as well, the differences to the baseline are compared, over common seeds, since recipes move absolute values more than
    differences; else the values are. The paper's standard error, where it prints a deviation, widens the interval.

    agrees: the 90 % interval of ours less the paper's lies within the margin of the metric, which is a test of
    equivalence at 5 %. above, below: the 95 % interval excludes 0. Each row is a test of its own.

    Args:
        records: cells with labels (``results.collect.add_labels``).
        published: as ``read_published`` returns it, which is the default.

    Returns:
        the columns of ``report/reproduction.csv``, comparable rows first; no rows if there is no number to compare with.
    """
    published = read_published() if published is None else published
    rows: list[dict[str, Any]] = []
    ok = records[records["status"] == "ok"]
    diverged = records[records["status"] == "diverged"].groupby(["task_label", "activation_label"]).size()
    for (task, label), cells in ok.groupby(["task_label", "activation_label"], sort=True):
        facts = cells.iloc[0]
        dataset = _dataset(facts)
        mine = published[published["dataset"] == dataset]
        mine = mine[[str(facts["activation"]) in names.split() for names in mine["activation"]]]
        recipe = _recipe(facts, int(diverged.get((task, label), 0)))
        scores = seed_scores(cells, bool(facts["higher_is_better"]))
        of_task = ok[ok["task_label"] == task]
        rows += [
            _compared(facts, scores, row, of_task, recipe) | {"task": str(task), "activation": str(label)}
            for row in mine.to_dict("records")
        ]
    card = pd.DataFrame(rows, columns=COLUMNS)
    return card.sort_values("verdict", key=lambda v: v == "not comparable", kind="stable", ignore_index=True)


def _compared(
    facts: Mapping[str, Any],
    scores: Mapping[int, float],
    row: Mapping[str, Any],
    of_task: pd.DataFrame,
    recipe: str,
) -> dict[str, Any]:
    """Return what the card says of a published number ``row`` and the ``scores`` of ours."""
    known = METRICS.get(str(facts["primary_metric"]), UNKNOWN)
    sign = -1 if row["metric"] in ERRORS else 1
    ours = estimate(list(scores.values()))
    printed = row["value"] - row["baseline_value"] if math.isnan(row["difference"]) else row["difference"]
    compared = {
        **{name: row[name] for name in COLUMNS if name in row},
        "difference": printed,
        "n": ours.n,
        "ours": ours.mean,
        "protocol": f"theirs: {row['protocol'] or 'not recorded here'}; ours: {recipe}",
        "verdict": "not comparable",
    }
    if why := _mismatch(facts, row):
        return compared | {"why": why}
    itself = row["baseline"] in ("", facts["activation"])
    theirs = sign * (row["value"] if itself else printed)
    if itself and row["metric"] in ERRORS:
        theirs += 100
    if not itself:
        baseline = of_task[of_task["activation"] == row["baseline"]]
        if baseline["activation_label"].nunique() != 1:
            many = baseline["activation_label"].nunique()
            return compared | {
                "why": f"the study has {many or 'no cells'} of {row['baseline']}, the paper's baseline"
            }
        reference = seed_scores(baseline, bool(facts["higher_is_better"]))
        ours = estimate([scores[seed] - reference[seed] for seed in scores if seed in reference])
        compared |= {"n": ours.n, "ours_difference": ours.mean}
    if math.isnan(ours.low):
        return compared | {"why": "fewer than two seeds, or no spread over them"}
    error = (
        0.0 if math.isnan(row["sd"]) else row["sd"] / math.sqrt(1 if math.isnan(row["runs"]) else row["runs"])
    )
    error *= 1 if itself else math.sqrt(2)  # the baseline's is not in the row, and taken to be alike
    low, high = _interval(ours.mean - theirs, ours.n, ours.std, error, ALPHA)
    inner = _interval(ours.mean - theirs, ours.n, ours.std, error, 2 * ALPHA)
    margin = known.margin_at(ours.mean if itself else theirs)
    compared |= {"ours_low": low + theirs, "ours_high": high + theirs}
    what = "value" if itself else f"difference to {row['baseline']}"
    if -margin < inner[0] and inner[1] < margin:
        return compared | {"verdict": "agrees", "why": f"{what} within {margin:.4g}"}
    if low > 0 or high < 0:
        return compared | {
            "verdict": "above" if low > 0 else "below",
            "why": f"{what} by {low:+.3g} to {high:+.3g}",
        }
    return compared | {"why": f"{ours.n} seeds do not decide: {what} by {low:+.3g} to {high:+.3g}"}


def _interval(delta: float, n: int, std: float, error: float, alpha: float) -> tuple[float, float]:
    """Return the interval of ours less theirs: t for ours, normal for the paper's standard error."""
    from scipy.special import ndtri, stdtrit

    half = math.hypot(stdtrit(n - 1, 1 - alpha / 2) * std / math.sqrt(n), ndtri(1 - alpha / 2) * error)
    return delta - half, delta + half


def _mismatch(facts: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return why a number cannot be compared with cells on the same data; empty if it can."""
    network, metric = _network(facts), ERRORS.get(row["metric"], row["metric"])
    if _plain(network) != _plain(row["model"]):
        return f"other network: {row['model']}, ours {network}"
    if metric != facts["primary_metric"]:
        return f"other metric: {row['metric']}, ours {facts['primary_metric']}"
    limits = [
        f"{name.partition('.')[2]}={facts[name]:g}" for name in SUBSETS if not is_missing(facts.get(name))
    ]
    return f"part of the data: {', '.join(limits)}" if limits else ""


def _dataset(facts: Mapping[str, Any]) -> str:
    source = str(facts.get("task.data._target_")).rpartition(".")[2]
    return DATASETS.get(source, source)


def _network(facts: Mapping[str, Any]) -> str:
    if str(facts.get("network.model.path")).endswith("resnet.ResNet"):
        width = facts.get("network.width")
        return f"ResNet-{facts.get('network.depth'):g}" + ("" if width == 16 else f" of width {width:g}")
    name = facts.get("network.name")
    return str(facts["network"] if is_missing(name) else name)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _recipe(facts: Mapping[str, Any], diverged: int) -> str:
    """Return how ours was trained, in words; what is missing in the record is unknown."""

    def fact(name: str) -> str:
        value = facts.get(name)
        return UNKNOWN_FACT if is_missing(value) else f"{value:g}" if isinstance(value, float) else str(value)

    optimizer, lr, batch_size = (fact(f"task.recipe.{name}") for name in ("optimizer", "lr", "batch_size"))
    recipe = f"{fact('epochs')} epochs, {optimizer} lr {lr}, batch {batch_size}, last weights"
    if fact("network.weights") != UNKNOWN_FACT:
        recipe += ", pretrained"
    return recipe + (f", {diverged} diverged" if diverged else "")


def to_markdown(card: pd.DataFrame) -> str:
    """Return the section of leaderboard.md; empty without a number on the study's data."""
    if card.empty:
        return ""
    lines = ["## Published numbers", "", ABOUT, ""]
    comparable = card[card["verdict"] != "not comparable"]
    if len(comparable):
        rows = (map(markdown, card_cells(row)) for row in comparable.to_dict("records"))
        lines += [*markdown_table(CARD, "l" * len(CARD), rows), ""]
    lines += (f"- {markdown(line)}" for line in not_comparable(card))
    return "\n".join(lines) + "\n"


def card_cells(row: Mapping[str, Any]) -> Iterator[object]:
    """Yield what stands in the columns ``CARD`` of a comparable row."""
    by_difference = not is_missing(row["ours_difference"])
    value, ours = (
        (row["difference"], row["ours_difference"]) if by_difference else (row["value"], row["ours"])
    )
    sign, metric = "+" if by_difference else "", row["metric"]
    if metric in ERRORS:  # as ours is measured
        metric, value = ERRORS[metric], -value if by_difference else 100 - value
    yield from (row["task"], row["activation"], f"{row['paper']} {row['table']}".strip() or row["source"])
    yield row["tier"]
    yield f"{metric} {value:{sign}.4g}" + (f" to {row['baseline']}" if by_difference else "")
    yield f"{ours:{sign}.4g} ({row['ours_low']:{sign}.4g} to {row['ours_high']:{sign}.4g})"
    yield from (row["n"], f"{row['verdict']} ({row['why']})", row["protocol"])


def not_comparable(card: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each task and reason."""
    others = card[card["verdict"] == "not comparable"]
    for (task, why), rows in others.groupby(["task", "why"], sort=True):
        names = ", ".join(sorted(set(rows["activation"])))
        yield f"{task}: not comparable: {why} ({len(rows)} published: {names})."
