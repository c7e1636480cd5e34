"""The table of a study: which activation is best on which task, how sure that is, and what it costs."""

import math

import pandas as pd

from results.escape import markdown
from results.statistics import Estimate, estimate, paired, rank_with_ties

BASELINE = "relu"
STATUSES = ("diverged", "failed", "interrupted")


def leaderboard(records: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row per task and activation, best first; from records with labels (see ``collect``).

    Scores are the test metric at the last weights, over the cells that ended ``ok``; differences are paired by
    seed, against ``baseline`` on the same task. Where that occurs with several settings only, it is the first
    of them that is named in the table. Other cells are counted in ``failures``.
    """
    tables = [
        _one_task(str(task), group, baseline) for task, group in records.groupby("task_label", sort=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _one_task(task: str, records: pd.DataFrame, baseline: str) -> pd.DataFrame:
    ok = records[records["status"] == "ok"]
    higher = bool(ok["higher_is_better"].iloc[0]) if len(ok) else True
    metric = str(ok["primary_metric"].iloc[0]) if len(ok) else ""
    scores = {
        str(label): dict(zip(group["seed"], group["primary"].astype(float), strict=True))
        if len(group)
        else {}
        for label, group in ((label, ok[ok["activation_label"] == label]) for label in _unique(records))
    }
    if not scores.get(baseline):  # or none of its cells has a score, and those of other settings may
        named = [label for label in scores if label.startswith(f"{baseline}[")]
        baseline = min((label for label in named if scores[label]), default=min(named, default=baseline))
    ranks = dict(zip(scores, rank_with_ties(list(scores.values()), higher), strict=True))
    rows = []
    for label, by_seed in scores.items():
        cells = records[records["activation_label"] == label]
        mine = ok[ok["activation_label"] == label]
        own = estimate(list(by_seed.values()))
        delta = paired(by_seed, scores.get(baseline, {}))
        rows.append(
            {
                "task": task,
                "metric": metric,
                "higher_is_better": higher,
                "rank": ranks[label],
                "tied": list(ranks.values()).count(ranks[label]) > 1,
                "activation": label,
                "n": own.n,
                "mean": own.mean,
                "std": own.std,
                "ci95_low": own.low,
                "ci95_high": own.high,
                "mean_best_val": _mean(mine, "primary_best"),
                "baseline": baseline if baseline in scores else None,
                "delta": delta.mean if label != baseline else math.nan,
                "delta_low": delta.low if label != baseline else math.nan,
                "delta_high": delta.high if label != baseline else math.nan,
                "delta_n": delta.n if label != baseline else 0,
                "delta_p": delta.p if label != baseline else math.nan,
                "verdict": _verdict(delta, higher) if label != baseline else "baseline",
                "parameters": _median(mine, "parameters"),
                "flops": _median(mine, "flops"),
                "seconds_per_epoch": _median(mine, "seconds_per_epoch"),
                "failures": _failures(cells),
            }
        )
    return pd.DataFrame(rows).sort_values("mean", ascending=not higher, kind="stable", na_position="last")


def _unique(records: pd.DataFrame) -> list[str]:
    return [str(label) for label in records["activation_label"].unique()]


def _mean(cells: pd.DataFrame, column: str) -> float:
    return float(cells[column].astype(float).mean()) if len(cells) else math.nan


def _median(cells: pd.DataFrame, column: str) -> float:
    return float(cells[column].astype(float).median()) if len(cells) else math.nan


def _failures(cells: pd.DataFrame) -> str:
    counts = cells["status"].value_counts()
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)


def _verdict(delta: Estimate, higher_is_better: bool) -> str:
    """better, worse or tie against the baseline; empty where two seeds in common are missing."""
    if delta.n < 2:
        return ""
    if not delta.differs_from_zero:
        return "tie"
    return "better" if (delta.mean > 0) == higher_is_better else "worse"


def to_markdown(table: pd.DataFrame) -> str:
    """The table for readers, a section for each task."""
    return "\n".join(_section(str(task), rows) for task, rows in table.groupby("task", sort=True))


def _section(task: str, rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    baseline = markdown(first["baseline"] or "no baseline")
    direction = "higher is better" if first["higher_is_better"] else "lower is better"
    lines = [
        f"## {markdown(task)}",
        "",
        f"Test {markdown(first['metric'])}, {direction}, at the last weights."
        if first["metric"]
        else "No cell ended ok.",
        "",
        f"| rank | activation | n | mean | std | 95 % interval | vs {baseline} (95 % interval) | verdict "
        "| parameters | s/epoch | failures |",
        "|---:|---|---:|---:|---:|---|---|---|---:|---:|---|",
    ]
    scale = _decimals(rows)
    for _, row in rows.iterrows():
        delta = f"{row['delta']:+.{scale}f} ({row['delta_low']:+.{scale}f}, {row['delta_high']:+.{scale}f})"
        cells = [
            f"{row['rank']}{'=' if row['tied'] else ''}",
            row["activation"],
            row["n"],
            _number(row["mean"], scale),
            _number(row["std"], scale),
            ""
            if math.isnan(row["ci95_low"])
            else f"{row['ci95_low']:.{scale}f} to {row['ci95_high']:.{scale}f}",
            _number(row["delta"], scale, sign="+") if math.isnan(row["delta_low"]) else delta,
            row["verdict"],
            _number(row["parameters"], 0),
            _number(row["seconds_per_epoch"], 3),
            row["failures"],
        ]
        lines.append("| " + " | ".join(map(markdown, cells)) + " |")
    return "\n".join([*lines, ""])


def _decimals(rows: pd.DataFrame) -> int:
    """Enough decimals for two significant digits of the smallest spread."""
    spread = rows["std"][rows["std"] > 0].min()
    return 2 if math.isnan(spread) else min(6, max(2, 1 - math.floor(math.log10(spread))))


def _number(value: float, decimals: int, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.{decimals}f}"
