"""Sentences that state a task's verdict, with its uncertainty."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from results.captions import kind_of_mean
from results.leaderboard import difference, number_format
from results.metrics import unit_of
from results.statistics import MAX_SEEDS_NEEDED

MAX_NAMED = 6


def sentences(rows: pd.DataFrame) -> str:
    """Return what the table of a task says: who may be best, how all compare with the baseline, and what is missing."""
    return " ".join(_sentences(rows))


def _sentences(rows: pd.DataFrame) -> Iterator[str]:
    scored = rows[rows["n"] > 0]
    if scored.empty:
        yield "No cell ended ok, so there is no verdict."
        return
    first, form = scored.iloc[0], number_format(rows)
    unit = unit_of(first["metric"])
    best = list(scored[scored["rank_low"] == 1]["activation"])
    n = _range(scored["n"])
    # by the mean that does not depend on which seeds finished, so that another plain mean may be higher
    top = (
        f"{first['activation']} comes first, with a {kind_of_mean(rows)} test {first['metric']} of "
        f"{first['mean']:{form}}{unit}"
    )
    if not math.isnan(first["ci95_low"]):
        top += f" (95 % interval {first['ci95_low']:{form}} to {first['ci95_high']:{form}}, n = {first['n']})"
    others = [label for label in best if label != first["activation"]]
    if len(scored) == 1:
        yield f"{top}; there is nothing to compare it with."
    elif others:
        seeds = "1 seed" if n == "1" else f"{n} seeds"
        yield f"{top}, but with {seeds} it cannot be told from {_named(others)}: any of these may be best."
    else:
        yield f"{top}, and is better than every other activation with {n} seeds (all pairs, 95 %)."
    if len(rows) > 1:
        yield from _against(rows, form, unit)
    if len(unscored := rows[(rows["n"] == 0) & (rows["delta_n"] == 0)]):
        yield f"No seed has a score, so there is no verdict: {_named(list(unscored['activation']))}."
    lost = rows[rows["diverged"] > 0]
    if len(lost):
        each = [f"{row.activation} {row.diverged}" for row in lost.itertuples()]
        yield f"Diverged seeds: {_named(each)}."


def _against(rows: pd.DataFrame, form: str, unit: str) -> Iterator[str]:
    baseline = rows["baseline"].iloc[0]
    if not isinstance(baseline, str):
        yield "No activation is the baseline, so there are no verdicts."
        return
    parts = []
    for verdict in ("better", "worse", "equal", "undecided"):
        compared = rows[rows["verdict"] == verdict]
        if compared.empty:
            continue
        each = [f"{row['activation']}{_difference(row, form)}" for row in compared.to_dict("records")]
        words = verdict
        if verdict == "equal":
            words += f" within {_margin(rows.iloc[0], unit)}"
        parts.append(f"{words}: {_named(each)}")
    if parts:
        compared = "ratios" if rows["relative"].iloc[0] else "differences"
        yield (
            f"Against the baseline {baseline} ({compared} with simultaneous 95 % intervals) {'; '.join(parts)}."
        )
    elif not rows["n"][rows["activation"] == baseline].sum():
        yield f"Nothing can be compared with the baseline {baseline}, which has no score."
    else:
        yield f"Nothing can be compared with the baseline {baseline}: no other activation shares seeds with it."


def _margin(row: Mapping[str, Any], unit: str) -> str:
    return f"a ratio of {1 + row['margin']:.3g}" if row["relative"] else f"{row['margin']:.3g}{unit}"


def _difference(row: Mapping[str, Any], form: str) -> str:
    low, high = row["delta_low"], row["delta_high"]
    if math.isnan(row["delta"]):  # one of the two never finished
        needed = row["seeds_needed"]
        more = "" if math.isnan(needed) else f"; {needed:.0f} seeds needed"
        diverged = "every seed diverged" if row["n"] == 0 else f"every seed of {row['baseline']} diverged"
        return f" ({diverged}, {row['delta_n']} in common{more})"
    if math.isnan(low):
        return " (one common seed)" if row["delta_n"] == 1 else " (no spread over seeds to judge by)"
    text = difference(row, form, "[]")
    if row["verdict"] != "undecided":
        return f" ({text})"
    if not math.isnan(row["seeds_needed"]):
        return f" ({text}; {row['seeds_needed']:.0f} seeds needed)"
    if low > 0 or high < 0:
        return f" ({text}; {'it' if (row['delta'] > 0) == row['higher_is_better'] else 'the baseline'} diverged more often)"
    return f" ({text}; more than {MAX_SEEDS_NEEDED:,} seeds needed)"


def _named(labels: list[str]) -> str:
    more = len(labels) - MAX_NAMED
    return ", ".join(labels[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
