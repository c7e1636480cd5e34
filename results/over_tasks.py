"""Compare activations over the tasks of a study: ranks, shares and verdicts, and what depends on who else takes part.

A block is a task and a seed: all activations had the same data order and initial weights there. A diverged cell is
worse than every score of its block. docs/protocol.md describes the method.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from results.escape import markdown, markdown_table
from results.leaderboard import rank_range, seed_scores
from results.statistics import ALPHA, Comparison, Comparisons

TASKS_NEEDED = 5
RESAMPLES = 10_000
MAX_IN_MATRIX = 12  # activations in the matrix of leaderboard.md
CHUNK = 64  # columns of which all resamples are in memory at once
TOLERANCE = 1e-9  # between sums of the same shares in another order
MAX_REVERSALS = 5  # named in leaderboard.md
VERDICTS = ("better", "equal", "undecided", "worse")
IMPROVEMENT = ("p_improvement", "p_improvement_low", "p_improvement_high")


@dataclass(frozen=True)
class OverTasks:
    """Result of ``compare_tasks``.

    Attributes:
        baseline: the activation that most tasks are compared with; empty if there is none.
        tasks: tasks that the ranks are over.
        blocks: number of seeds that count on each of them.
        activations: a row per activation, best mean rank first; the columns of ``report/over_tasks.csv``.
        pairs: a row per unordered pair, the better mean rank first; the columns of ``report/pairs.csv``.
        without: mean rank of the column's activation without the index's; nan on the diagonal.
        p_equal: probability of mean ranks as far apart as these if all activations were alike; nan below 5 tasks.
        gaps: distance of the index's activation to the best of the column's task, in margins of that task.
        notes: sentences on what is not compared, and why.
    """

    baseline: str
    tasks: list[str]
    blocks: list[int]
    activations: pd.DataFrame
    pairs: pd.DataFrame
    without: pd.DataFrame
    p_equal: float
    gaps: pd.DataFrame
    notes: list[str]


def compare_tasks(records: pd.DataFrame, table: pd.DataFrame) -> OverTasks | None:
    """Compare the activations of a study over its tasks; None where no two activations share two tasks.

    Args:
        records: cells with labels (``results.collect.add_labels``).
        table: the leaderboard of the same records.
    """
    names = list(dict.fromkeys(map(str, table["activation"])))
    tasks = [
        _Task.of(str(task), records[records["task_label"] == task], rows, names)
        for task, rows in table.groupby("task", sort=True)
    ]
    tasks = [task for task in tasks if task.present.any()]
    common = _Common.of(tasks)
    if not common.rows:
        return None
    ranked = [names[i] for i in common.rows]
    ranks = Ranks.of(common.blocks, ranked)
    by_rank = [ranked[i] for i in np.argsort(ranks.means, kind="stable")]
    order = by_rank + [name for name in names if name not in ranked]
    baselines = table["baseline"].dropna()
    baseline = str(baselines.mode()[0]) if len(baselines) else ""
    gaps = pd.DataFrame(
        {task.name: task.gaps[common.rows] for task in common.tasks if task.margin > 0}, index=ranked
    )
    pairs = _pairs(tasks, ranks, names, order)
    return OverTasks(
        baseline=baseline,
        tasks=[task.name for task in common.tasks],
        blocks=[scores.shape[1] for scores in common.blocks],
        activations=_activations(table, ranks, pairs, gaps, order, baseline),
        pairs=pairs,
        without=pd.DataFrame(ranks.without, index=ranked, columns=ranked),
        p_equal=ranks.p_equal,
        gaps=gaps,
        notes=list(_notes(tasks, common, gaps, names)),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """A task of a study; arrays are in the order of the study's activations.

    Attributes:
        scores: (activations, seeds), larger is better; nan where there is none, -inf where training diverged.
        verdicts: better, worse, equal or undecided, of all pairs.
        margin: the smallest difference that matters; 0 if it is not known.
        gaps: (activations,) distance of the adjusted mean to the best one, in margins; nan where there is none.
    """

    name: str
    scores: np.ndarray
    verdicts: dict[tuple[str, str], str]
    margin: float
    gaps: np.ndarray

    @classmethod
    def of(cls, name: str, cells: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]) -> "_Task":
        higher, margin = bool(rows["higher_is_better"].iloc[0]), float(rows["margin"].iloc[0])
        entries = {
            str(label): seed_scores(group, higher) for label, group in cells.groupby("activation_label")
        }
        seeds = sorted({seed for entry in entries.values() for seed in entry})
        sign = 1 if higher else -1
        scores = [[sign * entries.get(label, {}).get(seed, math.nan) for seed in seeds] for label in names]
        judged = Comparisons(entries, higher, bool(rows["relative"].iloc[0]))
        distances = judged.distances(margin)
        gaps = np.array([distances[label] if entries.get(label) else math.nan for label in names])
        table = np.array(scores).reshape(len(names), -1)
        return cls(name, table, judged.verdicts(margin), margin, gaps)

    @property
    def present(self) -> np.ndarray:
        """Whether each activation has finished a seed."""
        return ~np.isnan(self.scores).all(1)

    @property
    def seeds(self) -> int:
        """Number of seeds that any activation has finished."""
        return int((~np.isnan(self.scores)).any(0).sum())


@dataclass(frozen=True)
class _Common:
    """The activations ``rows`` that have all of ``tasks``, and the scores (activations, seeds) of complete blocks there."""

    rows: list[int]
    tasks: list[_Task]
    blocks: list[np.ndarray]

    @classmethod
    def of(cls, tasks: Sequence[_Task]) -> "_Common":
        rows, columns = _complete(np.array([task.present for task in tasks]).T) if tasks else ([], [])
        scores = [(tasks[t], tasks[t].scores[rows]) for t in columns]
        blocks = [(task, block[:, ~np.isnan(block).any(0)]) for task, block in scores]
        blocks = [(task, block) for task, block in blocks if block.shape[1]]
        if len(rows) < 2 or len(blocks) < 2:
            return cls([], [], [])
        return cls(rows, [task for task, _ in blocks], [block for _, block in blocks])


@dataclass(frozen=True)
class Ranks:
    """Ranks of activations over tasks.

    Attributes:
        names: the activations.
        means: mean rank of each; 1 is best.
        low, high: their 95 % intervals; nan below 5 tasks.
        sets: lowest and highest rank that each may have, all together with about 95 %; empty below 5 tasks.
        compared: the mean ranks of each pair; empty below 5 tasks.
        p_equal: probability of mean ranks as far apart as these if all activations were alike; nan below 5 tasks.
        without: mean rank of the column's activation without the row's; nan on the diagonal.
    """

    names: list[str]
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sets: dict[str, tuple[int, int]]
    compared: dict[tuple[str, str], Comparison]
    p_equal: float
    without: np.ndarray

    @classmethod
    def of(cls, blocks: Sequence[np.ndarray], names: Sequence[str]) -> "Ranks":
        """Rank ``names`` by scores (activations, seeds) of each task: larger is better, -inf where training diverged.

        Examples:
            >>> scores = np.array([[90.0, 91.0], [89.0, 88.0], [80.0, 93.0]])
            >>> Ranks.of([scores, scores], ["relu", "tanh", "gelu"]).means.tolist()
            [1.5, 2.5, 2.0]
        """
        wins = [_wins(scores) for scores in blocks]
        # the rank in a block is 1 plus the number of activations that win there, ties counted half
        means, low, high, _ = over_tasks([1 + w.sum(1) for w in wins], (1, len(names)))
        without = means - np.mean([w.mean(0) for w in wins], axis=0)
        np.fill_diagonal(without, math.nan)
        sets, compared, p_equal = {}, {}, math.nan
        if len(blocks) >= TASKS_NEEDED:
            by_task = np.array([1 + w.sum(1).mean(0) for w in wins])
            # tasks stand where seeds stand in the comparisons of one task
            entries = {name: dict(enumerate(map(float, by_task[:, i]))) for i, name in enumerate(names)}
            judged = Comparisons(entries, higher_is_better=False)
            sets, compared, p_equal = judged.rank_sets(), judged.all_pairs(), _p_equal(by_task)
        return cls(list(names), means, low, high, sets, compared, p_equal, without)


def _complete(present: np.ndarray) -> tuple[list[int], list[int]]:
    """Return rows and columns that have everything: again and again, what lacks the largest share is left out.

    Of a row and a column that lack the same share, the column goes.
    """
    rows, columns = np.arange(present.shape[0]), np.arange(present.shape[1])
    while (lacking := ~present[np.ix_(rows, columns)]).any():
        by_row, by_column = lacking.mean(1), lacking.mean(0)
        if by_row.max() > by_column.max():
            rows = np.delete(rows, by_row.argmax())
        else:
            columns = np.delete(columns, by_column.argmax())
    return rows.tolist(), columns.tolist()


def _wins(scores: np.ndarray) -> np.ndarray:
    """Return (seeds, i, j): 1 where i is better than j, 1/2 where they are equal; 0 on the diagonal."""
    wins = _better(scores.T[:, :, None], scores.T[:, None, :])
    return wins * (1 - np.eye(len(scores)))


def _better(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1 where a is better than b, 1/2 where they are equal, nan where one of them is missing."""
    return np.where(np.isnan(a) | np.isnan(b), math.nan, (a > b) + 0.5 * (a == b))


def over_tasks(
    values: Sequence[np.ndarray], limits: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Average values over the seeds of a task, then over tasks, with 95 % intervals for other tasks and other seeds.

    Tasks are resampled, and within each of them its seeds, jointly for all columns. The percentiles are those of
    Hesterberg's expanded interval, Phi(-sqrt(T / (T - 1)) t(0.975; T - 1)) for T tasks, as the plain ones are too narrow
    for few tasks. Without any spread the interval is Wilson's for T observations.

    Args:
        values: (seeds, columns) of each task; nan where a block has no value.
        limits: the range of the values.

    Returns:
        mean, low, high and the number of tasks of each column; no interval below 5 tasks.
    """
    known = [~np.isnan(v) for v in values]
    filled = [np.where(k, v, 0.0) for k, v in zip(known, values, strict=True)]
    counts = np.array([k.sum(0) for k in known])
    has = counts > 0
    tasks = has.sum(0)
    with np.errstate(invalid="ignore"):
        means = (
            np.where(has, np.array([v.sum(0) for v in filled]) / np.maximum(counts, 1), 0.0).sum(0) / tasks
        )
    low, high = np.full((2, len(tasks)), math.nan)
    if len(values) < TASKS_NEEDED:
        return means, low, high, tasks
    drawn, weights = _resampling([len(v) for v in values])
    stacked, everything = np.hstack(weights), np.vstack(filled)
    share = np.repeat([1 / (len(values) * len(v)) for v in values], [len(v) for v in values])
    complete = np.all(np.vstack(known), axis=0)
    for first in range(0, len(tasks), CHUNK):
        part = slice(first, first + CHUNK)
        if complete[part].all():
            resampled = stacked @ (share[:, None] * everything[:, part])
        else:
            total, weight = np.zeros((2, RESAMPLES, len(tasks[part])))
            for task, w in enumerate(weights):
                number = w @ known[task][:, part]
                there = drawn[:, [task]] * (number > 0)
                total += there * (w @ filled[task][:, part]) / np.maximum(number, 1)
                weight += there
            # a resample without any task of a column tells nothing of it
            resampled = np.where(weight > 0, total / np.maximum(weight, 1), means[part])
        for column, own in enumerate(np.sort(resampled, axis=0).T, start=first):
            if tasks[column] >= TASKS_NEEDED:
                low[column], high[column] = _interval(own, means[column], int(tasks[column]), limits)
    return means, low, high, tasks


def _resampling(seeds: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw tasks, and anew for each draw of a task its seeds, with replacement; always the same.

    Args:
        seeds: number of seeds of each task.

    Returns:
        how often each task is in each resample, (resamples, tasks), and how often each of its seeds is.
    """
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), RESAMPLES)
    weights = [
        rng.multinomial(drawn[:, task] * n, np.full(n, 1 / n)).astype(float) for task, n in enumerate(seeds)
    ]
    return drawn, weights


def _interval(
    resampled: np.ndarray, mean: float, tasks: int, limits: tuple[float, float]
) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri, stdtrit

    if resampled[-1] - resampled[0] < TOLERANCE:
        z2, (first, last) = float(ndtri(1 - ALPHA / 2)) ** 2 / tasks, limits
        share = (mean - first) / (last - first)
        middle, half = share + z2 / 2, math.sqrt(max(0.0, share * (1 - share)) * z2 + z2**2 / 4)
        ends = [(middle - half) / (1 + z2), (middle + half) / (1 + z2)]
        return first + ends[0] * (last - first), first + ends[1] * (last - first)
    tail = float(ndtr(-math.sqrt(tasks / (tasks - 1)) * stdtrit(tasks - 1, 1 - ALPHA / 2)))
    index = math.floor(tail * len(resampled))
    return float(resampled[index]), float(resampled[-1 - index])


def _p_equal(ranks: np.ndarray) -> float:
    """Return the p-value of Friedman's test, from random permutations, in which ranks may be means over seeds.

    If activations are alike over tasks, any of them might have had the ranks of any other on each task.

    Args:
        ranks: (tasks, activations).
    """
    rng = np.random.default_rng(0)
    permuted = sum(rng.permuted(np.tile(row, (RESAMPLES, 1)), axis=1) for row in ranks)
    spread, observed = np.var(permuted, axis=1), np.var(ranks.sum(0))
    return float((1 + (spread >= observed * (1 - TOLERANCE)).sum()) / (1 + RESAMPLES))


def _pairs(tasks: Sequence[_Task], ranks: Ranks, names: Sequence[str], order: Sequence[str]) -> pd.DataFrame:
    """Return a row per pair; shares and verdicts are on the tasks and seeds that both have."""
    pairs = list(combinations(order, 2))
    first, second = np.array([[names.index(name) for name in pair] for pair in pairs]).T
    better = [_better(task.scores[first], task.scores[second]).T for task in tasks]
    shares, low, high, counts = over_tasks(better, (0, 1))
    place = {name: i for i, name in enumerate(ranks.names)}
    rows = []
    for pair, (name, other) in enumerate(pairs):
        common = [task for task, b in zip(tasks, better, strict=True) if not np.isnan(b[:, pair]).all()]
        verdicts = [task.verdicts.get((name, other), "undecided") for task in common]
        turned: list[str] = []
        if name in place and other in place:
            i, j = place[name], place[other]
            if ranks.means[j] - ranks.means[i] > TOLERANCE:
                behind = ranks.without[:, j] - ranks.without[:, i] < -TOLERANCE
                turned = [ranks.names[k] for k in np.flatnonzero(behind)]
        rows.append(
            {
                "activation": name,
                "other": other,
                "tasks": counts[pair],
                **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
                "p_improvement": shares[pair],
                "p_improvement_low": low[pair],
                "p_improvement_high": high[pair],
                **_rank_difference(ranks.compared, name, other),
                "reversed_without": "; ".join(turned),
            }
        )
    return pd.DataFrame(rows)


def _rank_difference(
    compared: dict[tuple[str, str], Comparison], name: str, other: str
) -> dict[str, float | bool]:
    """Return the columns on the difference of two mean ranks, the first less the second."""
    sign = 1 if (name, other) in compared else -1
    found = compared.get((name, other), compared.get((other, name), Comparison()))
    low, high = sorted((sign * found.low, sign * found.high))
    return {
        "rank_difference": sign * found.delta,
        "rank_difference_low": low,
        "rank_difference_high": high,
        "p_adjusted": found.p_adjusted,
        "p_sign_flip": found.p_sign_flip,
        "differs": found.verdict in ("better", "worse"),
        "tasks_needed": found.seeds_needed,
    }


def _activations(
    table: pd.DataFrame,
    ranks: Ranks,
    pairs: pd.DataFrame,
    gaps: pd.DataFrame,
    order: Sequence[str],
    baseline: str,
) -> pd.DataFrame:
    """Return a row per activation, in this order."""
    place = {name: i for i, name in enumerate(ranks.names)}
    improvement = _improvements(pairs, baseline)
    rows = []
    for name in order:
        own = table[table["activation"] == name]
        mean = low = high = within = math.nan
        if name in place:
            mean, low, high = (part[place[name]] for part in (ranks.means, ranks.low, ranks.high))
            if len(gaps.columns) >= TASKS_NEEDED:
                within = float((gaps.loc[name] <= 1).mean())
        first, last = ranks.sets.get(name, (math.nan, math.nan))
        touching = pairs["reversed_without"][(pairs["activation"] == name) | (pairs["other"] == name)]
        rows.append(
            {
                "activation": name,
                "tasks": int(((own["n"] > 0) | (own["diverged"] > 0)).sum()),
                "mean_rank": mean,
                "mean_rank_low": low,
                "mean_rank_high": high,
                "rank_low": first,
                "rank_high": last,
                **improvement.get(name, dict.fromkeys(IMPROVEMENT, math.nan)),
                **{verdict: int((own["verdict"] == verdict).sum()) for verdict in VERDICTS},
                "diverged": int(own["diverged"].sum()),
                "within_margin": within,
                "reversed_without": "; ".join(
                    sorted({b for text in touching for b in text.split("; ") if b})
                ),
            }
        )
    return pd.DataFrame(rows)


def _improvements(pairs: pd.DataFrame, baseline: str) -> dict[str, dict[str, float]]:
    """Return, for each activation, the probability of a better score than the baseline's, with its interval."""
    found = {}
    for row in pairs[(pairs["other"] == baseline) | (pairs["activation"] == baseline)].itertuples():
        share, low, high = row.p_improvement, row.p_improvement_low, row.p_improvement_high
        if row.activation == baseline:
            share, low, high = 1 - share, 1 - high, 1 - low
        name = row.other if row.activation == baseline else row.activation
        found[name] = dict(zip(IMPROVEMENT, (share, low, high), strict=True))
    return found


def _notes(
    tasks: Sequence[_Task], common: _Common, gaps: pd.DataFrame, names: Sequence[str]
) -> Iterator[str]:
    for index, name in enumerate(names):
        if index not in common.rows:
            lacking = ", ".join(task.name for task in tasks if not task.present[index])
            yield f"{name} is not ranked, as it has not finished a seed of {lacking}; pairs compare it on the tasks that it has."
    for task in tasks:
        if task not in common.tasks:
            lacking = ", ".join(names[i] for i in common.rows if not task.present[i])
            yield f"{task.name} does not count in the ranks: {f'not finished by {lacking}' if lacking else 'no common seed'}."
    counted = zip(common.tasks, common.blocks, strict=True)
    if few := [f"{task.name} {b.shape[1]} of {task.seeds}" for task, b in counted if b.shape[1] < task.seeds]:
        yield f"Ranks use the seeds that all ranked activations have finished: {', '.join(few)}."
    if len(common.tasks) < TASKS_NEEDED:
        yield (
            f"Intervals over tasks, rank sets and a performance profile need {TASKS_NEEDED} tasks; "
            f"there are {len(common.tasks)}."
        )
    elif no_margin := [task.name for task in common.tasks if task.name not in gaps]:
        yield f"Not in the performance profile, as no margin is known: {', '.join(no_margin)}."


def to_markdown(over: OverTasks) -> str:
    """Return the section of leaderboard.md."""
    baseline = markdown(over.baseline or "the baseline")
    lines = ["## Over tasks", ""]
    seeds = sorted({*over.blocks})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    lines += [
        f"Mean ranks over {len(over.tasks)} tasks with {each} seeds each ({', '.join(map(markdown, over.tasks))}); "
        "1 is best, a diverged seed is last, and every task has the same weight. Intervals (95 %) are for other tasks of the "
        "same kind and other seeds. P(better) is the probability of a better score than the baseline's on a random task and seed.",
        "",
    ]
    better = f"P(better than {baseline})"
    heads = ["rank", "activation", "mean rank", better, "better / equal / undecided / worse"]
    heads += ["diverged", "within the margin of the best"]
    rows = []
    for row in over.activations.itertuples():
        ranks = "" if math.isnan(row.rank_low) else rank_range(int(row.rank_low), int(row.rank_high))
        verdicts = " / ".join(str(getattr(row, verdict)) for verdict in VERDICTS)
        cells = [
            ranks,
            row.activation,
            _with_interval(row.mean_rank, row.mean_rank_low, row.mean_rank_high),
            _with_interval(row.p_improvement, row.p_improvement_low, row.p_improvement_high),
            "baseline" if row.activation == over.baseline else verdicts,
            row.diverged,
            "" if math.isnan(row.within_margin) else f"{100 * row.within_margin:.0f} % of tasks",
        ]
        rows.append(map(markdown, cells))
    lines += [*markdown_table(heads, "rllllrr", rows), ""]
    if not math.isnan(over.p_equal):
        count = len(over.without)
        lines += [
            f"The ranks that an activation may have hold together with about 95 %; family: {count * (count - 1) // 2} pairs, tasks in the "
            f"place of seeds. That all activations are alike has p = {over.p_equal:.2g} (Friedman's test by permutations).",
            "",
        ]
    turned = over.pairs[over.pairs["reversed_without"] != ""]
    lines += [
        f"- The order of {markdown(row.activation)} and {markdown(row.other)} is reversed without "
        f"{markdown(' or '.join(row.reversed_without.split('; ')))}."
        for row in turned.head(MAX_REVERSALS).itertuples()
    ]
    if len(turned) > MAX_REVERSALS:
        lines.append(f"- So are {len(turned) - MAX_REVERSALS} more pairs, named in pairs.csv.")
    lines += [f"- {markdown(note)}" for note in over.notes]
    names = list(over.activations["activation"])
    if len(names) <= MAX_IN_MATRIX:
        lines += [
            "",
            "Tasks on which the row is better / equal / worse than the column, by the verdicts of all pairs of a task:",
            "",
        ]
        counts = win_counts(over)
        heads = ["", *map(markdown, names)]
        fields = (
            [markdown(name), *(" / ".join(map(str, counts.get((name, other), ()))) for other in names)]
            for name in names
        )
        lines += markdown_table(heads, "l" * len(heads), fields)
    return "\n".join(lines) + "\n"


def win_counts(over: OverTasks) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Return the numbers of tasks on which the first of a pair is better than, equal to and worse than the second."""
    counts = {}
    for row in over.pairs.itertuples():
        counts[row.activation, row.other] = (row.better, row.equal, row.worse)
        counts[row.other, row.activation] = (row.worse, row.equal, row.better)
    return counts


def _with_interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"
