"""Sentences that state a task's verdict, with its uncertainty."""

import math
from collections.abc import Iterator

import pandas as pd

from results.leaderboard import decimals
from results.metrics import unit_of

MOST_NAMED = 6


def sentences(rows: pd.DataFrame) -> str:
    """Return what the table of a task says: who may be best, how all compare with the baseline, and what is missing."""
    return " ".join(_sentences(rows))


def _sentences(rows: pd.DataFrame) -> Iterator[str]:
    scored = rows[rows["n"] > 0]
    if scored.empty:
        yield "No cell ended ok, so there is no verdict."
        return
    first, digits = scored.iloc[0], decimals(rows)
    unit = unit_of(first["metric"])
    best = list(scored[scored["rank_low"] == 1]["activation"])
    n = _range(scored["n"])
    top = f"{first['activation']} has the best mean test {first['metric']}, {first['mean']:.{digits}f}{unit}"
    if not math.isnan(first["ci95_low"]):
        top += f" (95 % interval {first['ci95_low']:.{digits}f} to {first['ci95_high']:.{digits}f}, n = {first['n']})"
    others = [label for label in best if label != first["activation"]]
    if len(scored) == 1:
        yield f"{top}; there is nothing to compare it with."
    elif others:
        yield f"{top}, but with {n} seeds it cannot be told from {_named(others)}: any of these may be best."
    else:
        yield f"{top}, and is better than every other activation with {n} seeds (all pairs, 95 %)."
    yield from _against(rows, digits, unit)
    lost = rows[rows["diverged"] > 0]
    if len(lost):
        each = [f"{row.activation} {row.diverged}" for row in lost.itertuples()]
        yield f"Diverged seeds: {_named(each)}."


def _against(rows: pd.DataFrame, digits: int, unit: str) -> Iterator[str]:
    baseline = rows["baseline"].iloc[0]
    if not isinstance(baseline, str):
        yield "No activation is the baseline, so there are no verdicts."
        return
    parts = []
    for verdict in ("better", "worse", "equal", "undecided"):
        found = rows[rows["verdict"] == verdict]
        if found.empty:
            continue
        each = [f"{row.activation}{_difference(row, digits)}" for row in found.itertuples()]
        words = f"equal within {rows['margin'].iloc[0]:.3g}{unit}" if verdict == "equal" else verdict
        parts.append(f"{words}: {_named(each)}")
    if parts:
        yield (
            f"Against the baseline {baseline} (differences with simultaneous 95 % intervals) {'; '.join(parts)}."
        )
    else:
        yield f"Nothing can be compared with the baseline {baseline}: no other activation shares seeds with it."


def _difference(row: object, digits: int) -> str:
    low, high, needed = row.delta_low, row.delta_high, row.seeds_needed  # type: ignore[attr-defined]
    if math.isnan(low):
        return " (one common seed)" if row.delta_n == 1 else ""  # type: ignore[attr-defined]
    text = f"{row.delta:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"  # type: ignore[attr-defined]
    if row.verdict == "undecided":  # type: ignore[attr-defined]
        text += "; more than 1,000 seeds needed" if math.isnan(needed) else f"; {needed:.0f} seeds needed"
    return f" ({text})"


def _named(labels: list[str]) -> str:
    more = len(labels) - MOST_NAMED
    return ", ".join(labels[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
