"""The table of a study: which activation is best on which task, how sure that is, and what it costs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from results.captions import direction
from results.escape import counted, latex, markdown, markdown_table
from results.examples import other_test_sets, sentence
from results.metrics import METRICS, UNKNOWN
from results.schema import COMMON, COSTS, RUNNING, STATUSES, UNTESTED
from results.statistics import Comparisons, worst_possible

BASELINE = "relu"


def leaderboard(records: pd.DataFrame, baseline: str = BASELINE, margin: float | None = None) -> pd.DataFrame:
    """One row per task and activation, best first; from records with labels (see ``collect``).

    Means are of the test metric at the last weights, over the cells that ended ``ok``. Differences to ``baseline`` on
    the same task are paired by seed and count a diverged cell as the worst score of the task's table; see
    ``results.statistics.Comparisons`` for ranks and verdicts. Where ``relative``, means are geometric, and differences are
    ratios less 1. Where the baseline occurs with several settings only,
    it is the first of them that is named in the table. Cells that did not end ``ok`` are counted in ``failures``.

    Args:
        margin: the largest difference to the baseline that does not matter, in the metric's unit, a share of a metric that
            is relative; None for the metric's own (``results.metrics``).
    """
    tables = [
        _one_task(str(task), group, baseline, margin)
        for task, group in records.groupby("task_label", sort=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _one_task(task: str, records: pd.DataFrame, baseline: str, margin: float | None) -> pd.DataFrame:
    ok = records[records["status"] == "ok"]
    higher = bool(ok["higher_is_better"].iloc[0]) if len(ok) else True
    metric = str(ok["primary_metric"].iloc[0]) if len(ok) else ""
    scores = {
        label: seed_scores(records[records["activation_label"] == label], higher)
        for label in records["activation_label"].unique()
    }
    if not scores.get(baseline):  # or none of its cells has a score, and those of other settings may
        named = [label for label in scores if label.startswith(f"{baseline}[")]
        baseline = min((label for label in named if scores[label]), default=min(named, default=baseline))
    known = METRICS.get(metric, UNKNOWN)
    comparisons = Comparisons(scores, higher, known.relative)
    means, adjusted, ranks = comparisons.means(), comparisons.adjusted_means(), comparisons.rank_sets()
    relative = comparisons.relative
    if not relative:
        margin = known.margin_at(means[baseline].mean if baseline in means else math.nan, margin)
    elif margin is None:
        margin = known.margin
    compared = comparisons.against(baseline, margin)
    other_test = other_test_sets(ok, baseline, metric, compared, relative)
    rows = []
    for label in scores:
        cells = records[records["activation_label"] == label]
        mine = ok[ok["activation_label"] == label]
        own, delta = means[label], compared[label]
        low, high = (own.low, own.high) if relative else known.interval(own)
        test_low, test_high = other_test.get(label, (math.nan, math.nan))
        rows.append(
            {
                "task": task,
                "metric": metric,
                "higher_is_better": higher,
                "rank": ranks[label][0],
                "tied": ranks[label][0] < ranks[label][1],
                "rank_low": ranks[label][0],
                "rank_high": ranks[label][1],
                "activation": label,
                "n": own.n,
                "diverged": int((cells["status"] == "diverged").sum()),
                "mean": own.mean,
                "std": own.std,
                "ci95_low": low,
                "ci95_high": high,
                "mean_best_val": _mean(mine, "primary_best", relative),
                "baseline": baseline if baseline in scores else None,
                "relative": relative,
                "delta": delta.delta,
                "delta_low": delta.low,
                "delta_high": delta.high,
                "test_low": test_low,
                "test_high": test_high,
                "delta_n": delta.n,
                "delta_p": delta.p,
                "p_adjusted": delta.p_adjusted,
                "p_sign_flip": delta.p_sign_flip,
                "verdict": delta.verdict if label != baseline else "baseline",
                "margin": margin,
                "seeds_needed": delta.seeds_needed,
                "effect_size": delta.effect_size,
                "p_improvement": delta.p_improvement,
                "seed_correlation": delta.correlation,
                "parameters": _median(mine, "parameters"),
                "flops": _median(mine, "flops"),
                **{name: _median(mine, name) for name in COSTS},
                "seconds_per_epoch": _median(mine, "seconds_per_epoch"),
                "failures": _failures(cells),
                "recipe": records["recipe"].iloc[0] if "recipe" in records else COMMON,
            }
        )
    # by the mean that does not depend on which seeds an activation happens to have
    order = {label: (-mean if higher else mean) for label, mean in adjusted.items()}
    return pd.DataFrame(rows).sort_values(
        ["rank_low", "activation"],
        key=lambda column: column.map(order) if column.name == "activation" else column,
        kind="stable",
        na_position="last",
    )


def seed_scores(cells: pd.DataFrame, higher_is_better: bool) -> dict[int, float]:
    """Return the test score of every seed that finished; a diverged one is worse than every score."""
    scores = {seed: worst_possible(higher_is_better) for seed in cells["seed"][cells["status"] == "diverged"]}
    ok = cells[cells["status"] == "ok"]
    if len(ok):  # a table without any has no such column
        scores |= dict(zip(ok["seed"], ok["primary"].astype(float), strict=True))
    return scores


def _mean(cells: pd.DataFrame, column: str, geometric: bool) -> float:
    values = cells[column].astype(float)
    if not len(cells):
        return math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.exp(np.log(values).mean()) if geometric else values.mean())


def _median(cells: pd.DataFrame, column: str) -> float:
    known = len(cells) and column in cells
    return float(cells[column].astype(float).median()) if known else math.nan


def _failures(cells: pd.DataFrame) -> str:
    counts = cells["status"].value_counts()
    named = (status for status in (*STATUSES, RUNNING, UNTESTED) if status != "ok" and status in counts)
    return ", ".join(f"{counts[status]} {status}" for status in named)


def to_markdown(table: pd.DataFrame) -> str:
    """The table for readers, a section for each task."""
    return "\n".join(_section(str(task), rows) for task, rows in table.groupby("task", sort=True))


def _section(task: str, rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    versus = markdown(versus_baseline(first))
    heads = ["rank", "activation", "n", "mean", "std", "95 % interval", versus]
    heads += ["verdict", "parameters", "step vs relu", "failures"]
    form = number_format(rows)
    lines = []
    for row in rows.to_dict("records"):
        interval = f"{row['ci95_low']:{form}} to {row['ci95_high']:{form}}"
        cells = [
            rank_range(row["rank_low"], row["rank_high"]),
            row["activation"],
            row["n"],
            _number(row["mean"], form),
            _number(row["std"], form),
            "" if math.isnan(row["ci95_low"]) else interval,
            difference(row, form),
            _verdict(row["verdict"], row["seeds_needed"]),
            _number(row["parameters"], ".0f"),
            _number(row["step_ratio"], ".2f"),
            row["failures"],
        ]
        lines.append(map(markdown, cells))
    other_test = [markdown(text) for text in [sentence(rows)] if text]
    table = "\n".join(markdown_table(heads, "rlrrrlllrrl", lines))
    return "\n\n".join([f"## {markdown(task)}", markdown(table_caption(rows)), table, *other_test]) + "\n"


def table_caption(rows: pd.DataFrame) -> str:
    """Return what stands above the table of a task: its metric, and what its verdicts and ranks hold for together."""
    first, scored, compared = rows.iloc[0], rows["n"] > 0, rows["delta_n"] > 0
    if not first["metric"]:
        return "No cell ended ok."
    count, is_baseline = int(scored.sum()), rows["activation"] == first["baseline"]
    families = [f"ranks: {counted(count * (count - 1) // 2, 'pair')}"]
    has_score = (scored & is_baseline).any()
    if has_score or compared.any():
        comparisons = int(((compared | scored & has_score) & ~is_baseline).sum())
        families.insert(0, f"verdicts: {counted(comparisons, 'comparison')} with {first['baseline']}")
    about = (
        f"Test {first['metric']}, {direction(rows)}, at the last weights. "
        f"Families with an error of at most 5 % each: {', '.join(families)}."
    )
    return " ".join([about, *how_compared(first)])


def how_compared(first: Mapping[str, Any]) -> Iterator[str]:
    """Yield whether a task's activations are compared by ratios, and what does not matter; from one of its rows."""
    margin = first["margin"]
    if first["relative"]:
        yield "Ratios are compared, and means are geometric."
        if margin:
            yield f"Ratios from {1 / (1 + margin):.3g} to {1 + margin:.3g} do not matter."
    elif margin:
        yield f"Differences of at most {margin:.4g} do not matter."


def to_latex(table: pd.DataFrame) -> str:
    """Return the table for a paper: a ``tabular`` for each task, with the rules of the package booktabs."""
    return "\n".join(_tabular(str(task), rows) for task, rows in table.groupby("task", sort=True))


def _tabular(task: str, rows: pd.DataFrame) -> str:
    first, form = rows.iloc[0], number_format(rows)
    baseline = latex(first["baseline"] or "no baseline")
    compared, versus = ("ratios", "ratio to") if first["relative"] else ("differences", "vs")
    lines = [
        f"% {latex(task)}: test {latex(first['metric'])}, {direction(rows)};",
        f"% {compared} to {baseline} with simultaneous 95 % intervals; needs \\usepackage{{booktabs}}",
        r"\begin{tabular}{rlrrrlr}",
        r"\toprule",
        rf"rank & activation & $n$ & mean $\pm$ std & {versus} {baseline} & verdict & parameters \\",
        r"\midrule",
    ]
    for row in rows.to_dict("records"):
        mean = (
            f"${row['mean']:{form}} \\pm {row['std']:{form}}$" if row["n"] > 1 else _number(row["mean"], form)
        )
        delta = difference(row, form, "[]")
        cells = [
            rank_range(row["rank_low"], row["rank_high"]).replace("-", "--"),
            latex(row["activation"]),
            str(row["n"]),
            mean,
            f"${delta}$" if delta else "",
            latex(row["verdict"]),
            _number(row["parameters"], ".0f"),
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def versus_baseline(row: Mapping[str, Any]) -> str:
    """Return the head of the column with differences to the baseline."""
    compared = "ratio to" if row["relative"] else "vs"
    return f"{compared} {row['baseline'] or 'no baseline'} (simultaneous 95 % interval)"


def difference(row: Mapping[str, Any], form: str, brackets: str = "()") -> str:
    """Write a row's difference to the baseline, and its interval if that is known.

    As in ``+1.2 (0.8, 1.6)``, and where ``relative`` the ratio, as in ``0.52 (0.48, 0.57)``.

    Args:
        form: of a difference; ratios have three significant digits.
        brackets: around the interval.
    """
    if math.isnan(row["delta"]):
        return ""
    mean, low, high = (
        f"{1 + value:.3g}" if row["relative"] else f"{value:+{form}}"
        for value in (row["delta"], row["delta_low"], row["delta_high"])
    )
    return mean if math.isnan(row["delta_low"]) else f"{mean} {brackets[0]}{low}, {high}{brackets[1]}"


def rank_range(low: int, high: int) -> str:
    """Write the ranks that an activation may have, as in ``2-5`` or ``1``."""
    return str(low) if low == high else f"{low}-{high}"


def _verdict(verdict: str, seeds_needed: float) -> str:
    return verdict if math.isnan(seeds_needed) else f"{verdict} ({seeds_needed:.0f} seeds needed)"


def number_format(rows: pd.DataFrame) -> str:
    """Return the format of a table's scores.

    It has decimals for two significant digits of the smallest mean and spread; if these are more than five, as where
    errors differ much in size, three significant digits instead.
    """
    sizes, spread = rows["mean"].abs().to_numpy(float), rows["std"].to_numpy(float)
    # equal scores have a std of rounding errors, those of float32
    smallest = min([*sizes[sizes > 0], *spread[spread > 1e-6 * sizes]], default=0.1)
    decimals = max(2, 1 - math.floor(math.log10(smallest)))
    return f".{decimals}f" if decimals <= 5 else ".3g"


def number_formats(table: pd.DataFrame) -> dict[str, str]:
    """Return ``number_format`` of every task of a leaderboard."""
    return {str(task): number_format(rows) for task, rows in table.groupby("task")}


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"
