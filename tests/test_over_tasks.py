"""Ranks, shares and verdicts over tasks: against bencheval and scipy, and where truth is known."""

import doctest
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bencheval.evaluator import BenchmarkEvaluator
from scipy import stats
from simulate_verdicts import task_scores
from test_results import make_study

from results import over_tasks
from results.figures_over_tasks import CAPTIONS, draw, performance_profile
from results.leaderboard import leaderboard
from results.over_tasks import OverTasks, Ranks, compare_tasks, to_markdown, win_counts
from results.palette import GRAY, Look, looks
from results.report import write_report

NAMES = ("relu", "a", "b", "c")
Scores = Mapping[str, Mapping[str, list[float | None]]]  # task, activation, seeds; None diverged


def records_of(scores: Scores, lower: tuple[str, ...] = (), metric: str = "top1") -> pd.DataFrame:
    """Cells with labels; a seed of nan is absent."""
    rows = [
        {
            "task_label": task,
            "activation_label": name,
            "activation": name,
            "seed": seed,
            "status": "diverged" if score is None else "ok",
            "primary": score,
            "primary_best": score,
            "primary_metric": metric,
            "higher_is_better": task not in lower,
            "parameters": 1,
            "flops": 1,
            "seconds_per_epoch": 1.0,
            "folder": f"{task}/{name}/{seed}",
        }
        for task, entries in scores.items()
        for name, values in entries.items()
        for seed, score in enumerate(values)
        if score is None or not math.isnan(score)
    ]
    return pd.DataFrame(rows)


def compared(scores: Scores, **options: object) -> OverTasks:
    records = records_of(scores, **options)
    over = compare_tasks(records, leaderboard(records))
    assert over is not None
    return over


def random_scores(tasks: int = 6, seeds: int = 3, decimals: int = 1) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(0)
    return {
        f"t{t}": {
            name: [round(float(x), decimals) for x in 50 + 0.3 * k + rng.normal(size=seeds)]
            for k, name in enumerate(NAMES)
        }
        for t in range(tasks)
    }


def test_mean_ranks_and_shares_agree_with_bencheval() -> None:
    """With ties in some blocks, and tasks of both directions."""
    scores, lower = random_scores(), ("t1", "t4")
    over = compared(scores, lower=lower)
    cells = records_of(scores, lower=lower)
    sign = np.where(cells["higher_is_better"], -1, 1)
    data = cells.assign(metric_error=100 + sign * cells["primary"].astype(float)).rename(
        columns={"task_label": "task", "activation_label": "method"}
    )[["task", "method", "seed", "metric_error"]]
    judge = BenchmarkEvaluator(seed_column="seed", columns_to_agg_extra=None)
    per_task = judge.compute_results_per_task(data, include_seed_col=True)
    ranks = judge.compute_rank(per_task)
    shares = judge.compute_winrate_matrix(per_task)
    means = over.activations.set_index("activation")["mean_rank"]
    assert means.to_dict() == pytest.approx(ranks[means.index].to_dict())
    for row in over.pairs.itertuples():
        assert row.p_improvement == pytest.approx(shares.loc[row.activation, row.other], abs=1e-6)
    against = over.activations.set_index("activation")["p_improvement"].drop("relu")
    assert against.to_dict() == pytest.approx(shares["relu"][against.index].to_dict(), abs=1e-6)


def test_friedmans_test_by_permutations_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(15, 4, 1)) + 0.35 * np.arange(4)[:, None]
    mine = Ranks.of(list(scores), NAMES).p_equal
    assert mine == pytest.approx(stats.friedmanchisquare(*scores[:, :, 0].T).pvalue, abs=0.01)
    assert 0.001 < mine < 0.2  # where the two could differ


def test_two_that_take_turns_at_being_best_and_worst_are_not_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their spread over tasks is that of no other activation; at most 5 % may be told apart, of 40 studies up to 4."""
    monkeypatch.setattr(over_tasks, "RESAMPLES", 50)
    rng, false = np.random.default_rng(0), 0
    for _ in range(40):
        ranks = Ranks.of(list(task_scores("opposites", 6, 8, 3, rng)), [str(i) for i in range(6)])
        false += ranks.compared["0", "1"].verdict != "undecided"
    assert false <= 4


def test_intervals_over_tasks_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % intervals of 80 studies of six tasks with effects of their own: at least 92 % cover."""
    monkeypatch.setattr(over_tasks, "RESAMPLES", 2500)
    rng = np.random.default_rng(1)
    many = task_scores("steps", 4, 20_000, 1, rng)[:, :, 0]
    truth = 1 + (many[:, :, None] < many[:, None, :]).sum(2).mean(0)
    covered = []
    for _ in range(80):
        ranks = Ranks.of(list(task_scores("steps", 4, 6, 3, rng)), NAMES)
        covered.append((ranks.low <= truth) & (truth <= ranks.high))
        assert (ranks.low <= ranks.means).all()
        assert (ranks.means <= ranks.high).all()
    assert 0.92 <= np.mean(covered) <= 0.995


def test_where_all_blocks_agree_the_interval_is_wilsons_for_the_tasks() -> None:
    scores = {f"t{t}": {"relu": [50.0, 51.0, 52.0], "a": [60.0, 61.0, 62.0]} for t in range(7)}
    row = compared(scores).pairs.iloc[0]
    wilson = stats.binomtest(7, 7).proportion_ci(method="wilson")
    assert (row["p_improvement_low"], row["p_improvement_high"]) == pytest.approx((wilson.low, 1.0))


def test_a_diverged_seed_is_last_in_its_block() -> None:
    scores = {f"t{t}": {"relu": [50.0, 51.0], "a": [60.0, None], "b": [40.0, None]} for t in range(5)}
    over = compared(scores)
    means = over.activations.set_index("activation")["mean_rank"]
    assert means.to_dict() == {"relu": 1.5, "a": 1.75, "b": 2.75}  # a and b share the ranks 2 and 3
    assert set(over.activations["diverged"]) == {0, 5}


def test_what_lost_every_seed_is_infinitely_far_from_the_best() -> None:
    scores = {f"t{t}": {"relu": [50.0, 51.0], "a": [None, None]} for t in range(5)}
    over = compared(scores)
    assert over.gaps.loc["a"].tolist() == [math.inf] * 5
    assert over.gaps.loc["relu"].tolist() == [0.0] * 5
    assert over.activations.set_index("activation")["within_margin"].to_dict() == {"relu": 1.0, "a": 0.0}


def test_distances_to_the_best_are_in_margins_and_have_no_direction() -> None:
    """0.5 points of top-1 and a factor of 1.05 of the mse are a margin each."""
    up = records_of({f"t{t}": {"relu": [50.0, 51.0], "a": [51.5, 52.5]} for t in range(3)})
    down = records_of(
        {f"u{t}": {"relu": [2.0, 2.0], "a": [2.0, 2.0 * 1.05**4]} for t in range(2)},
        lower=("u0", "u1"),
        metric="mse",
    )
    records = pd.concat([up, down], ignore_index=True)
    over = compare_tasks(records, leaderboard(records))
    assert over is not None
    assert over.gaps.loc["relu"].tolist() == pytest.approx([3, 3, 3, 0, 0])
    assert over.gaps.loc["a"].tolist() == pytest.approx([0, 0, 0, 2, 2])


def test_an_activation_that_lacks_tasks_is_compared_on_the_common_ones_and_named() -> None:
    scores = random_scores(8)
    for task in ("t0", "t1", "t2"):
        del scores[task]["c"]
    for name in ("a", "b", "c"):
        del scores["t7"][name]  # a task that the study has not come to
    scores["t3"]["a"][1] = math.nan
    over = compared(scores)
    assert over.tasks == [f"t{t}" for t in range(7)]
    assert over.blocks == [3, 3, 3, 2, 3, 3, 3]
    rows = over.activations.set_index("activation")
    assert math.isnan(rows.loc["c", "mean_rank"])
    assert rows["tasks"].to_dict() == {"relu": 8, "a": 7, "b": 7, "c": 4}
    pairs = over.pairs.set_index(["activation", "other"])
    assert {n for (_, other), n in pairs["tasks"].items() if other == "c"} == {4}
    told = " ".join(over.notes)
    assert "c is not ranked" in told
    assert "t0, t1, t2" in told
    assert "t7 does not count" in told
    assert "t3 2 of 3" in told


def test_intervals_need_five_tasks_and_ranks_two() -> None:
    over = compared(random_scores(4))
    assert (
        over.activations[["mean_rank_low", "rank_low", "p_improvement_low", "within_margin"]]
        .isna()
        .all(axis=None)
    )
    assert over.activations["mean_rank"].notna().all()
    assert not over.pairs["differs"].any()
    assert [note for note in over.notes if "need 5 tasks; there are 4" in note]
    assert set(draw(over, {})) == {"win_matrix"}
    records = records_of(random_scores(1))
    assert compare_tasks(records, leaderboard(records)) is None
    records = records_of({"t0": {"relu": [1.0, 2.0]}, "t1": {"a": [1.0, 2.0]}})
    assert compare_tasks(records, leaderboard(records)) is None


def test_an_order_that_depends_on_a_third_activation_is_flagged() -> None:
    """b leads a by mean ranks 1.6 and 1.8; without c it would be a with 1.4."""
    order = [("a", "b", "c")] * 3 + [("b", "c", "a")] * 2
    scores = {
        f"t{t}": {name: [90.0 - 10 * place] for place, name in enumerate(names)}
        for t, names in enumerate(order)
    }
    over = compared(scores)
    assert over.activations["activation"].tolist() == ["b", "a", "c"]
    assert over.without.loc["c", "a"] == pytest.approx(1.4)
    assert over.without.loc["c", "b"] == pytest.approx(1.6)
    pairs = over.pairs.set_index(["activation", "other"])["reversed_without"]
    assert pairs.to_dict() == {("b", "a"): "c", ("b", "c"): "", ("a", "c"): ""}
    assert "The order of b and a is reversed without c." in to_markdown(over)


def test_wins_are_the_verdicts_of_all_pairs_of_a_task() -> None:
    base = [50.0, 53.0, 51.0, 52.0]
    patterns = {"relu": (0, 0, 0, 0), "a": (5.05, 5.05, 4.95, 4.95), "b": (0.05, -0.05, 0.05, -0.05)}
    scores = {
        f"t{t}": {
            name: [x + (d if t or name != "a" else -d) for x, d in zip(base, pattern, strict=True)]
            for name, pattern in patterns.items()
        }
        for t in range(5)
    }
    over = compared(scores)
    counts = win_counts(over)
    assert counts["a", "relu"] == (4, 0, 1)
    assert counts["relu", "a"] == (1, 0, 4)
    assert counts["b", "relu"] == (0, 5, 0)
    row = over.activations.set_index("activation").loc["a"]
    assert [row[name] for name in ("better", "equal", "undecided", "worse")] == [4, 0, 0, 1]


def test_figures_show_any_name_and_every_activation() -> None:
    scores = {task: {"re:$x": e.pop("a"), **e} for task, e in random_scores(5).items()}
    over = compared(scores)
    figures = draw(over, {"relu": Look("black")})
    assert set(figures) == set(CAPTIONS)
    for figure in figures.values():
        figure.canvas.draw()
    labels = [text.get_text() for text in figures["mean_ranks"].axes[0].get_yticklabels()]
    assert [re.split(r"  \d", label)[0] for label in labels] == [
        name.replace("$", r"\$") for name in over.activations["activation"]
    ]


def test_a_performance_profile_of_many_activations_names_the_first_alone() -> None:
    names = [f"a{k:02}" for k in range(29)]
    scores = {
        f"t{t}": {"relu": [10.0], **{name: [90.0 - k] for k, name in enumerate(names)}} for t in range(5)
    }
    over = compared(scores)
    axes = performance_profile(over, looks(over.activations.assign(task="t", baseline="relu"))).axes[0]
    _, labels = axes.get_legend_handles_labels()
    assert labels == [*names[:7], "22 others", "relu"]
    assert sum(line.get_color() == GRAY for line in axes.lines) == 22


def test_a_report_over_tasks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.figures.draw_figures", lambda *_: [])  # those of single tasks
    for task, entries in random_scores(2, 2).items():
        make_study(tmp_path / "s", entries, task=task, epochs=1)
    path, _ = write_report(tmp_path / "s")
    over, pairs = (pd.read_csv(path.parent / f"{name}.csv") for name in ("over_tasks", "pairs"))
    assert (len(over), len(pairs)) == (4, 6)
    assert "## Over tasks" in path.read_text()
    assert (path.parent / "figures" / "win_matrix.svg").exists()


def test_the_example_of_ranks() -> None:
    assert doctest.testmod(over_tasks) == (0, 2)
