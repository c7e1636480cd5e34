"""Records to leaderboard: the numbers against scipy, the tables and figures against made-up studies."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulate_verdicts
from scipy import stats

from results.collect import add_labels, read_records
from results.files import read_json, write_csv, write_json
from results.leaderboard import leaderboard, table_caption, to_latex, to_markdown
from results.metrics import METRICS, Metric
from results.report import write_report
from results.statistics import Comparison, Comparisons, estimate, sign_flip, worst_possible
from results.verdicts import sentences


def make_study(
    folder: Path,
    scores: dict[str, list[float | None]],
    task: str = "digits",
    epochs: int = 3,
    **facts: object,
) -> Path:
    """A study in the files' format; None is a cell that diverged."""
    for activation, values in scores.items():
        for seed, score in enumerate(values):
            cell = folder / task / activation / f"{seed}-abc"
            record = {
                "activation": activation.partition("+")[0],
                "task": task,
                "seed": seed,
                "status": "diverged" if score is None else "ok",
                "reason": "loss not finite in epoch 1" if score is None else None,
                "primary_metric": "top1",
                "higher_is_better": True,
                "parameters": 1000 + len(activation),
                "flops": 10,
                "seconds_per_epoch": 0.5,
                "activation.init": 0.5 if "+" in activation else 0.25,
                "task.recipe.lr": 0.1,
            }
            if score is not None:
                record |= {"primary": score, "primary_best": score - 0.1}
            write_json(cell / "record.json", record | facts)
            rows = [
                {
                    "epoch": e,
                    "split": split,
                    "loss": 2.0 / (e + 1),
                    "top1": (score or 10) - 5 + e,
                    "seconds": 1.0,
                }
                for e in range(epochs)
                for split in ("train", "val")
            ]
            write_csv(cell / "metrics.csv", rows)
            (cell / "config.yaml").write_text("seed: 0\n")
    return folder


def test_estimates_agree_with_scipy() -> None:
    x = np.random.default_rng(0).normal(3, 2, 7)
    mine = estimate(x)
    theirs = stats.ttest_1samp(x, 0)
    interval = theirs.confidence_interval(0.95)
    assert (mine.n, mine.mean, mine.std) == (7, pytest.approx(x.mean()), pytest.approx(x.std(ddof=1)))
    assert (mine.low, mine.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert mine.p == pytest.approx(theirs.pvalue)


def test_paired_differences_agree_with_scipy_and_pair_by_seed() -> None:
    rng = np.random.default_rng(1)
    a = {seed: float(rng.normal()) for seed in (3, 1, 2, 7)}
    b = {seed: float(rng.normal()) for seed in (9, 7, 2, 1)}
    mine = Comparisons({"a": a, "b": b}, higher_is_better=True).against("b")["a"]
    theirs = stats.ttest_rel([a[s] for s in (1, 2, 7)], [b[s] for s in (1, 2, 7)])
    assert mine.n == 3
    assert mine.p == pytest.approx(theirs.pvalue)
    assert (mine.low, mine.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_estimates_of_few_or_equal_values() -> None:
    assert math.isnan(estimate([]).mean)
    one = estimate([5.0])
    assert one.mean == 5
    assert math.isnan(one.std)
    assert math.isnan(one.low)
    equal = estimate([2.0, 2.0, 2.0])
    assert equal.std == 0
    assert math.isnan(equal.p)
    assert math.isnan(equal.low)
    assert math.isnan(estimate([90.2 - 90, 91.2 - 91, 92.2 - 92]).low)
    # with a resolution of r the interval is that of a standard deviation of r
    half = stats.t.ppf(0.975, 2) * 0.3 / math.sqrt(3)
    resolved = estimate([2.0, 2.0, 2.0], resolution=0.3)
    assert (resolved.std, resolved.low, resolved.high) == (
        0,
        pytest.approx(2 - half),
        pytest.approx(2 + half),
    )


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def ranks(*scores: dict[int, float], higher_is_better: bool = True) -> list[tuple[int, int]]:
    table = {str(i): entry for i, entry in enumerate(scores)}
    sets = Comparisons(table, higher_is_better).rank_sets()
    return [sets[name] for name in table]


def compare(
    a: dict[int, float],
    b: dict[int, float],
    *others: dict[int, float],
    higher: bool = True,
    margin: float = 0,
) -> Comparison:
    table = {"a": a, "b": b} | {str(i): entry for i, entry in enumerate(others)}
    return Comparisons(table, higher).against("b", margin)["a"]


def test_ranks_are_sets_of_what_cannot_be_told_apart() -> None:
    best, close, far = seeds(90, 91, 92), seeds(89.5, 91.5, 91.0), seeds(80, 81, 82.1)
    assert ranks(far, best, close) == [(3, 3), (1, 2), (1, 2)]
    assert ranks(far, best, close, higher_is_better=False) == [(1, 1), (2, 3), (2, 3)]
    assert ranks({}, far, seeds(50, 51, 52)) == [(3, 3), (1, 1), (2, 2)]
    assert ranks(seeds(1), seeds(2)) == [(1, 2), (1, 2)]  # one seed tells nothing
    assert ranks() == []


def test_pairing_finds_what_means_hide() -> None:
    """Seeds differ by 10, activations by 1: unpaired nobody could tell, paired it is certain."""
    assert ranks(seeds(60, 70, 80), seeds(61.0, 71.1, 80.9)) == [(2, 2), (1, 1)]


def test_equal_differences_are_judged_by_the_step_of_the_score() -> None:
    base = [80.0, 81.0, 82.0, 83.0, 84.0]
    assert compare(seeds(*[x + 5 for x in base]), seeds(*base)).verdict == "better"
    assert compare(seeds(*[x - 5 for x in base]), seeds(*base)).verdict == "worse"
    # one more test image right in both of two seeds is no verdict
    step = 100 / 539
    assert compare(seeds(90 + step, 90 + 3 * step), seeds(90, 90 + 2 * step)).verdict == "undecided"
    # a table of one value has no step to go by
    assert compare(seeds(90, 90, 90), seeds(90, 90, 90)).verdict == "undecided"


@pytest.mark.parametrize("higher", [True, False])
def test_a_diverged_seed_makes_nobody_look_better(higher: bool) -> None:
    lost = worst_possible(higher)
    sign = 1 if higher else -1
    base = {seed: sign * x for seed, x in seeds(80, 90, 91, 90, 91).items()}
    lucky = {seed: x + sign * (1 + 0.1 * seed) for seed, x in base.items()}
    assert compare(lucky, base, higher=higher).verdict == "better"
    lucky[0] = lost  # the hardest seed: without it the mean alone would be 10 better
    assert compare(lucky, base, higher=higher).verdict == "undecided"
    assert ranks(lucky, base, higher_is_better=higher) == [(1, 2), (1, 2)]
    both = compare(lucky, base | {0: lost}, higher=higher)  # then the other seeds tell
    assert (both.verdict, both.n) == ("better", 5)
    # even where nine of ten seeds speak for it, and it is never equal
    nine = {seed: float(sign * (50 + seed % 3)) for seed in range(10)}
    ten = {seed: x + sign * (30 + 0.1 * seed) for seed, x in nine.items()} | {4: lost}
    assert compare(ten, nine, higher=higher, margin=1000).verdict == "undecided"
    against = compare(nine, ten, higher=higher, margin=1000)
    assert against.verdict == "undecided"
    # the interval excludes 0, and more seeds that diverge as often decide nothing
    assert against.low * against.high > 0
    assert math.isnan(against.seeds_needed)


def test_an_activation_that_lost_its_hardest_seed_leads_no_more_often_than_by_chance() -> None:
    """Ten equal activations, seeds correlated 0.5: each should come first in a tenth of the studies."""
    rng, first = np.random.default_rng(0), 0
    for _ in range(300):
        scores = rng.normal(size=(1, 5)) + rng.normal(size=(10, 5))
        table = {str(i): dict(enumerate(map(float, row))) for i, row in enumerate(scores)}
        table["0"][int(scores[0].argmin())] = worst_possible(higher_is_better=True)
        means = Comparisons(table, higher_is_better=True).adjusted_means()
        first += max(means, key=lambda name: means[name]) == "0"
    assert first / 300 < 0.1


def test_a_mean_over_easy_seeds_earns_no_rank_above_one_that_is_better_on_common_seeds(
    tmp_path: Path,
) -> None:
    relu = [80.0, 81.0, 90.0, 91.0, 92.0]
    easy = {2: 89.5, 3: 90.4, 4: 91.5}
    compared = compare(easy, seeds(*relu))
    assert (compared.verdict, compared.n, compared.delta) == ("worse", 3, pytest.approx(-8 / 15))
    assert ranks(easy, seeds(*relu)) == [(2, 2), (1, 1)]
    means = Comparisons({"x": easy, "relu": seeds(*relu)}, higher_is_better=True).adjusted_means()
    assert means["relu"] - means["x"] == pytest.approx(8 / 15)
    study = make_study(tmp_path / "s", {"relu": relu, "prelu": [0, 0, *easy.values()]})
    for seed in (0, 1):
        shutil.rmtree(study / "digits" / "prelu" / f"{seed}-abc")
    table = leaderboard(add_labels(read_records(study)))
    assert list(zip(table["activation"], table["rank"], table["verdict"], strict=True)) == [
        ("relu", 1, "baseline"),
        ("prelu", 2, "worse"),
    ]


def test_better_than_is_transitive_in_ranks() -> None:
    """c is better than b on their seeds and b than a on theirs; c and a have no seed in common."""
    a = {0: 1.0, 1: 2.0, 2: 3.0}
    b = {seed: x + 1 + 0.01 * seed for seed, x in a.items()} | {3: 5.0, 4: 5.5, 5: 6.0}
    c = {3: 6.0, 4: 6.51, 5: 7.02}
    assert ranks(a, b, c) == [(3, 3), (2, 2), (1, 1)]


def test_an_incomplete_table_is_compared_like_its_complete_part() -> None:
    """Seeds that one activation alone has change neither difference nor interval of any pair."""
    rng = np.random.default_rng(2)
    table = {name: dict(enumerate(map(float, rng.normal(size=4)))) for name in "abc"}
    whole = Comparisons(table, True).against("a")["b"]
    table["c"] |= {7: 3.0, 8: -2.0}
    more = Comparisons(table, True).against("a")["b"]
    assert (more.delta, more.low, more.high) == pytest.approx((whole.delta, whole.low, whole.high))


def test_the_spread_of_one_activation_does_not_decide_on_another_pair() -> None:
    """A pooled error would take the wild activation's differences for certain, as the others are quiet."""
    quiet = {str(i): seeds(*(0.01 * ((seed * 7 + i * 3) % 5) for seed in range(5))) for i in range(9)}
    wild = seeds(8, -6, 9, -5, 7)
    assert Comparisons(quiet | {"wild": wild}, True).against("0")["wild"].verdict == "undecided"


def test_equal_is_a_verdict_and_undecided_says_how_many_seeds_would_do() -> None:
    base = seeds(90.0, 91.0, 92.0, 90.5, 91.5)
    close = {seed: x + 0.02 * (-1) ** seed for seed, x in base.items()}
    assert compare(close, base).verdict == "undecided"
    assert compare(close, base, margin=0.5).verdict == "equal"
    assert math.isnan(compare(close, base, margin=0.5).seeds_needed)
    noisy = {seed: x + (0.9, -0.4, 0.8, -0.1, 0.3)[seed] for seed, x in base.items()}
    needed = compare(noisy, base).seeds_needed
    d = np.array([0.9, -0.4, 0.8, -0.1, 0.3])

    def decided(n: float) -> bool:
        return stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / math.sqrt(n) < d.mean()

    assert decided(needed)
    assert not decided(needed - 1)


def test_what_stands_beside_a_verdict() -> None:
    base, x = seeds(1, 2, 3, 4, 5), seeds(1.5, 2.6, 3.1, 4.9, 5.2)
    compared, d = compare(x, base), np.array([0.5, 0.6, 0.1, 0.9, 0.2])
    assert compared.p_sign_flip == pytest.approx(2 / 2**5)  # five seeds cannot reach 5 %
    assert compared.p_improvement == 1
    assert compare(x, base, higher=False).p_improvement == 0
    assert compared.effect_size == pytest.approx(d.mean() / d.std(ddof=1))
    assert compared.correlation == pytest.approx(np.corrcoef(list(x.values()), list(base.values()))[0, 1])
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples")
    assert compared.p_sign_flip == pytest.approx(theirs.pvalue)
    many = np.random.default_rng(0).normal(0.3, 1, 20)
    assert sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


def test_ten_equal_activations_are_called_different_in_at_most_five_percent_of_tables() -> None:
    false = dict.fromkeys(("verdict", "rank"), 0)
    for noise in ("normal", "one wide"):
        rng = np.random.default_rng(0)
        for _ in range(200):
            table = simulate_verdicts.scores(noise, 10, 5, rng)
            judged = Comparisons({str(i): seeds(*row) for i, row in enumerate(table)}, True)
            false["verdict"] += any(c.verdict in ("better", "worse") for c in judged.against("0").values())
            false["rank"] += any(ranks != (1, 10) for ranks in judged.rank_sets().values())
    # 400 tables: 5 % are 20, and 31 the 99th percentile of what chance makes of it
    assert max(false.values()) <= 31


@pytest.mark.parametrize(
    ("metric", "values"),
    [("top1", (98.6, 98.8, 99.9)), ("miou", (0.2, 3.0, 0.1))],
)
def test_intervals_of_means_stay_inside_the_range_of_the_metric(metric: str, values: tuple) -> None:
    known, mean = METRICS[metric], estimate(values)
    assert not known.low < mean.low < mean.high < known.high
    low, high = known.interval(mean)
    assert known.low < low < mean.mean < high < known.high
    # far from the edges it is the plain one
    middle = estimate([50.0, 50.001, 50.002])
    assert known.interval(middle) == pytest.approx((middle.low, middle.high), rel=1e-6)
    assert Metric().interval(mean) == (mean.low, mean.high)


def test_a_mean_on_the_edge_of_the_range_has_an_interval() -> None:
    low, high = METRICS["top1"].interval(estimate([100.0, 100.0, 100.0], resolution=0.1))
    assert 99 < low < 100 == high


def test_errors_are_compared_by_their_ratios() -> None:
    """Seeds range over a factor of 50, and ``a`` has a hundredth of b's error on each of them."""
    b = seeds(0.002, 0.1, 0.01, 0.05, 0.1001)  # two are close, so that the step of the score is small
    a = {seed: x / 100 * (1 + 0.1 * seed) for seed, x in b.items()}
    assert compare(a, b, higher=False).verdict == "undecided"
    judged = Comparisons({"a": a, "b": b}, higher_is_better=False, relative=True)
    compared = judged.against("b")["a"]
    assert compared.verdict == "better"
    logs = [math.log(a[seed] / b[seed]) for seed in b]
    theirs = stats.ttest_1samp(logs, 0)
    interval = theirs.confidence_interval(0.95)
    ratios = [math.exp(x) for x in (np.mean(logs), interval.low, interval.high)]
    assert [1 + x for x in (compared.delta, compared.low, compared.high)] == pytest.approx(ratios)
    assert compared.p == pytest.approx(theirs.pvalue)
    # so that the means have this ratio, they are geometric
    means = judged.means()
    of_logs = estimate(np.log([*b.values()]))
    assert means["a"].mean / means["b"].mean == pytest.approx(1 + compared.delta)
    assert (means["b"].low, means["b"].high) == pytest.approx((math.exp(of_logs.low), math.exp(of_logs.high)))
    assert means["b"].std == pytest.approx(np.std([*b.values()], ddof=1))
    assert judged.adjusted_means()["b"] == pytest.approx(stats.gmean([*b.values()]))
    assert judged.rank_sets() == {"a": (1, 1), "b": (2, 2)}
    tiny = Comparisons({"a": seeds(2e-20, 8e-20)}, higher_is_better=False, relative=True)
    assert tiny.means()["a"].mean == pytest.approx(4e-20, rel=1e-9, abs=0)
    # a unit of the error changes nothing
    other = {name: {seed: 1e6 * x for seed, x in entry.items()} for name, entry in {"a": a, "b": b}.items()}
    rescaled = Comparisons(other, higher_is_better=False, relative=True).against("b")["a"]
    assert (rescaled.delta, rescaled.high) == pytest.approx((compared.delta, compared.high))


def test_a_ratio_is_equal_to_1_within_the_margin_whichever_is_the_baseline() -> None:
    b = seeds(0.002, 0.1, 0.01, 0.05, 0.004)
    a = {seed: x * (1.03, 0.98, 1.02, 0.99, 1.01)[seed] for seed, x in b.items()}
    judged = Comparisons({"a": a, "b": b}, higher_is_better=False, relative=True)
    for baseline, other in ("ab", "ba"):
        assert judged.against(baseline)[other].verdict == "undecided"
        assert judged.against(baseline, margin=0.04)[other].verdict == "equal"
        assert judged.against(baseline, margin=0.02)[other].verdict == "undecided"
    assert set(judged.verdicts(0.04).values()) == {"equal"}


def test_a_diverged_seed_counts_as_the_largest_error_and_an_error_of_0_has_no_ratio() -> None:
    b = seeds(0.002, 0.1, 0.01, 0.05, 0.004)
    a = {seed: x / 100 for seed, x in b.items()}
    lost = Comparisons({"a": a | {0: math.inf}, "b": b}, higher_is_better=False, relative=True)
    assert lost.means()["a"].n == 4
    logs = [math.log(0.01)] * 4 + [math.log(0.1 / 0.002)]
    assert lost.against("b")["a"].delta == pytest.approx(math.exp(np.mean(logs)) - 1)
    exact = Comparisons({"a": a | {0: 0.0}, "b": b}, higher_is_better=False, relative=True)
    assert not exact.relative
    assert exact.against("b")["a"].delta == pytest.approx(
        np.mean([*a.values()][1:]) * 4 / 5 - np.mean([*b.values()])
    )
    assert lost.distances(0.0)["a"] != lost.distances(0.0)["a"]


def test_a_table_of_errors_says_that_ratios_are_compared(tmp_path: Path) -> None:
    errors = {"relu": [0.002, 0.1, 0.01], "pwlu": [0.00001, 0.00051, 0.000049], "tanh": [0.002, 0.1, 0.0101]}
    study = make_study(tmp_path / "s", errors, primary_metric="mse", higher_is_better=False)
    table = leaderboard(add_labels(read_records(study)))
    rows = table.set_index("activation")
    assert rows["relative"].all()
    assert rows["margin"].unique() == [0.05]
    assert rows["verdict"].to_dict() == {"pwlu": "better", "tanh": "equal", "relu": "baseline"}
    assert rows.loc["pwlu", "delta"] == pytest.approx(
        stats.gmean(errors["pwlu"]) / stats.gmean(errors["relu"]) - 1
    )
    text = to_markdown(table)
    assert "Ratios are compared, and means are geometric. Ratios from 0.952 to 1.05 do not matter." in text
    assert "ratio to relu (simultaneous 95 % interval)" in text
    assert re.search(r"\| 6\.3e-05 \|.* \| 0\.005 \(0\.00473, 0\.00528\) \| better", text)
    assert re.search(r"& \$0\.005 \[0\.00473, 0\.00528\]\$ & better", to_latex(table))
    assert "pwlu (0.005 [0.00473, 0.00528])" in sentences(table)
    assert "equal within a ratio of 1.05: tanh" in sentences(table)


def test_leaderboard_numbers(tmp_path: Path) -> None:
    scores = {"relu": [90.0, 91.0, 92.5], "prelu": [91.0, 92.5, 93.0], "tanh": [80.0, None, 81.0]}
    table = leaderboard(add_labels(read_records(make_study(tmp_path / "s", scores)))).set_index("activation")
    assert list(table.index) == ["prelu", "relu", "tanh"]
    row = table.loc["prelu"]
    assert (row["n"], row["delta_n"]) == (3, 3)
    assert row["mean"] == pytest.approx(np.mean(scores["prelu"]))
    assert row["mean_best_val"] == pytest.approx(np.mean(scores["prelu"]) - 0.1)
    assert row["delta"] == pytest.approx(1.0)
    # what is left of a score without its seed's and its activation's mean gives each activation a variance
    y = np.array([scores["relu"], scores["prelu"], [80.0, 80.0, 81.0]])
    rest = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    relu, prelu, _ = 3 / 2 * (rest**2).sum(1) / 2
    freedom = min((relu + prelu) ** 2 / (relu**2 / 2 + prelu**2 / 2), 4)
    error = math.sqrt((relu + prelu) / 3)
    assert row["delta_p"] == pytest.approx(2 * stats.t.sf(1.0 / error, freedom))
    assert row["p_adjusted"] == pytest.approx(2 * row["delta_p"])
    half = stats.t.ppf(1 - 0.05 / 4, freedom) * error  # two comparisons
    assert (row["delta_low"], row["delta_high"]) == pytest.approx((1 - half, 1 + half))
    assert table["verdict"].to_dict() == {"prelu": "undecided", "relu": "baseline", "tanh": "worse"}
    assert table.loc["tanh", "failures"] == "1 diverged"
    # the diverged seed is compared as well, as the worst score of the table
    assert (table.loc["tanh", "n"], table.loc["tanh", "delta_n"]) == (2, 3)
    assert table.loc["tanh", "delta"] == pytest.approx(-(10 + 11 + 11.5) / 3)


@pytest.mark.parametrize(
    ("seeds", "others", "verdict", "needed"),
    [(5, 25, "worse", None), (5, 26, "undecided", 6), (3, 1, "worse", None), (2, 1, "undecided", 3)],
)
def test_an_activation_that_always_diverges_is_worse_if_seeds_suffice(
    tmp_path: Path, seeds: int, others: int, verdict: str, needed: int | None
) -> None:
    """Two that diverge with the same probability on a seed have this outcome with 2 / 4^n at most."""
    scores = {f"other{i}": [90.0 + i + s for s in range(seeds)] for i in range(others - 1)}
    scores |= {"relu": [80.0 + s for s in range(seeds)], "lost": [None] * seeds}
    table = leaderboard(add_labels(read_records(make_study(tmp_path / "s", scores))))
    row = table.set_index("activation").loc["lost"]
    assert (row["n"], row["diverged"], row["delta_n"], row["verdict"]) == (0, seeds, seeds, verdict)
    assert row["p_adjusted"] == pytest.approx(min(1, others * 2 / 4**seeds))
    assert row["p_sign_flip"] == 2.0 ** (1 - seeds)
    assert (row["p_improvement"], row["rank_low"]) == (0, others + 1)
    assert row["seeds_needed"] == needed or (needed is None and math.isnan(row["seeds_needed"]))
    said = f"{verdict}: lost (every seed diverged, {seeds} in common"
    assert said + (f"; {needed} seeds needed)" if needed else ")") in sentences(table)
    assert f"verdicts: {others} comparison" in table_caption(table)
    # with the lost one as the baseline: what finished is better by the same rule, and so is said
    table = leaderboard(add_labels(read_records(tmp_path / "s")), baseline="lost").set_index("activation")
    assert table.loc["relu", "verdict"] == ("better" if verdict == "worse" else "undecided")


def test_what_diverged_on_other_seeds_or_as_often_is_not_told_apart() -> None:
    def judged(**scores: list[float]) -> Comparison:
        entries = {name: dict(enumerate(values)) for name, values in scores.items()}
        return Comparisons(entries, True).against("relu")["lost"]

    lost = worst_possible(True)
    assert judged(relu=[lost] * 6, lost=[lost] * 6).verdict == "undecided"
    some = judged(relu=[lost, lost, 1.0, 2.0, 3.0], lost=[lost] * 5)
    assert (some.verdict, some.p) == ("undecided", 2 * 10 / 4**3)
    assert Comparisons({"relu": {0: 1.0}, "lost": {1: lost}}, True).against("relu")["lost"].verdict == ""


def test_lower_is_better(tmp_path: Path) -> None:
    scores = {"relu": [0.5, 0.6, 0.7], "tanh": [0.1, 0.2, 0.31]}
    study = make_study(tmp_path / "s", scores, primary_metric="mse", higher_is_better=False)
    table = leaderboard(add_labels(read_records(study)))
    assert list(table["activation"]) == ["tanh", "relu"]
    assert list(table["rank"]) == [1, 2]
    assert table["verdict"].iloc[0] == "better"


def test_other_settings_are_other_rows(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"prelu": [90.0, 91.0], "prelu+": [92.0, 93.0], "relu": [90.0, 90.5]})
    table = leaderboard(add_labels(read_records(study)))
    assert sorted(table["activation"]) == ["prelu[init=0.25]", "prelu[init=0.5]", "relu"]
    assert set(table["n"]) == {2}


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("activation.init", (0.33333333, 0.33333334), ("relu[init=0.33333333]", "relu[init=0.33333334]")),
        ("activation.alpha", (None, 0.3), ("relu[alpha=null]", "relu[alpha=0.3]")),
        ("activation.extra", ("missing", 2), ("relu[extra=null]", "relu[extra=2]")),
        ("activation._target_", ("a.Unit", "b.Unit"), ("relu[_target_=a.Unit]", "relu[_target_=b.Unit]")),
        ("runner.limit_batches", (None, 4), ("relu", "relu")),
        ("task.augment", (None, "missing"), ("relu", "relu")),
    ],
)
def test_cells_with_other_settings_are_never_pooled(
    tmp_path: Path, name: str, values: tuple, labels: tuple
) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0, 92.0, 93.0]})
    for seed in range(4):
        path = study / "digits" / "relu" / f"{seed}-abc" / "record.json"
        record = json.loads(path.read_text())
        if values[seed // 2] != "missing":
            record[name] = values[seed // 2]
        if name == "task.augment" and seed >= 2:
            record |= {"task.augment.flip": True}
        write_json(path, record)
    table = leaderboard(add_labels(read_records(study)))
    assert list(table["n"]) == [2, 2]
    assert set(table["activation"]) == set(labels)


def test_where_a_cell_was_computed_does_not_split_seeds(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0]})
    path = study / "digits" / "relu" / "1-abc" / "record.json"
    write_json(path, json.loads(path.read_text()) | {"runner.threads": 1})
    assert list(leaderboard(add_labels(read_records(study)))["n"]) == [2]
    again = study / "digits" / "relu" / "1-def" / "record.json"  # unless the same seed was run in both ways
    write_json(again, json.loads(path.read_text()) | {"runner.threads": 2})
    assert sorted(leaderboard(add_labels(read_records(study)))["n"]) == [1, 1, 1]


def test_an_unknown_baseline_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0]})
    with pytest.raises(ValueError, match=r"baseline reluu: no such activation in .*; legal: relu"):
        write_report(study, "reluu")


def test_changed_code_is_said(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0]}, activation_code="a")
    path = study / "digits" / "relu" / "1-abc" / "record.json"
    write_json(path, json.loads(path.read_text()) | {"activation_code": "b"})
    assert "**relu: its code changed between cells**" in write_report(study)[0].read_text()


def test_other_recipes_are_other_tasks(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0]})
    record = study / "digits" / "relu" / "0-abc" / "record.json"
    other = study / "digits" / "relu" / "0-def" / "record.json"
    write_json(other, json.loads(record.read_text()) | {"task.recipe.lr": 0.2})
    assert set(leaderboard(add_labels(read_records(study)))["task"]) == {
        "digits[recipe.lr=0.1]",
        "digits[recipe.lr=0.2]",
    }


def with_facts(study: Path, *facts: dict[str, object]) -> pd.DataFrame:
    """The records of a study of digits, cell by cell with further facts."""
    cells = sorted((study / "digits").glob("*/*/record.json"))
    for path, more in zip(cells, facts, strict=True):
        write_json(path, json.loads(path.read_text()) | more)
    return add_labels(read_records(study))


def test_other_networks_are_other_tasks(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0, 92.0, 93.0]})
    tv = {"network": "torchvision:resnet18", "network.name": "resnet18", "network.sites": "all"}
    own = {"network": "resnet8", "network.depth": 8, "network.sites": "all"}
    records = with_facts(study, tv, tv, own, own | {"network.depth": 14})
    assert records["task_label"].tolist() == [
        "digits on torchvision:resnet18",
        "digits on torchvision:resnet18",
        "digits on resnet8[depth=8]",
        "digits on resnet8[depth=14]",
    ]
    # a record that cannot be read has none
    (study / "digits" / "relu" / "3-abc" / "record.json").write_text("{")
    (study / "digits" / "relu" / "2-abc" / "record.json").write_text("{")
    assert set(add_labels(read_records(study))["task_label"]) == {"digits"}


def test_sites_are_told_with_the_activation_and_have_a_baseline(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0, 80.0, 81.0]})
    sites = ("all", "all", "first:2", "first:2")
    records = with_facts(study, *({"network": "resnet8", "network.sites": site} for site in sites))
    assert records["task_label"].unique().tolist() == ["digits"]
    table = leaderboard(records).set_index("activation")
    assert set(table.index) == {"relu[sites=all]", "relu[sites=first:2]"}
    assert set(table["baseline"]) == {"relu[sites=all]"}


def test_sites_are_told_of_activations_that_stand_at_one_kind_each(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0], "prelu": [80.0, 81.0]})
    for name, where in (("relu", "all"), ("prelu", "one_per_block")):
        for seed in range(2):
            path = study / "digits" / name / f"{seed}-abc" / "record.json"
            write_json(path, json.loads(path.read_text()) | {"network": "resnet8", "network.sites": where})
    table = leaderboard(add_labels(read_records(study)))
    assert set(table["activation"]) == {"relu[sites=all]", "prelu[sites=one_per_block]"}


def test_sites_that_most_activations_have_go_without_saying(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0], "gelu": [91.0], "prelu": [80.0, 81.0]})
    sites = [
        {"network": "resnet8", "network.sites": where} for where in ("all", "all", "one_per_block", "all")
    ]
    labels = [*with_facts(study, *sites)["activation_label"]]
    assert labels == ["gelu", "prelu", "prelu[sites=one_per_block]", "relu"]


@pytest.mark.parametrize(
    ("column", "usual", "wide"), [("network.width", 8, 10), ("network.hidden", "[50]", "[450]")]
)
def test_a_width_that_one_activation_has_is_a_control_in_the_table_of_the_others(
    tmp_path: Path, column: str, usual: object, wide: object
) -> None:
    study = make_study(tmp_path / "s", {"gelu": [90.0], "prelu": [91.0], "relu": [80.0, 81.0]})
    widths = [{"network": "net", column: width} for width in (usual, usual, usual, wide)]
    records = with_facts(study, *widths)
    assert set(records["task_label"]) == {"digits"}
    name = column.partition(".")[2]
    assert [*records["activation_label"]] == ["gelu", "prelu", "relu", f"relu[{name}={wide}]"]
    assert [*records[column]] == [usual, usual, usual, wide]
    # another task, whose network has no such width
    make_study(study, {"relu": [50.0], "gelu": [51.0]}, task="else", network="other")
    assert {*add_labels(read_records(study))["activation_label"]} == {*records["activation_label"]}
    # several activations at each width are a table each
    widths[0][column] = wide
    records = with_facts(study, *widths)
    assert set(records["activation_label"]) == {"gelu", "prelu", "relu"}
    assert set(records["task_label"]) == {"else"} | {
        f"digits on net[{name}={width}]" for width in (usual, wide)
    }


def test_missing_and_damaged_records_are_rows(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0, 91.0, 92.0]})
    (study / "digits" / "relu" / "0-abc" / "record.json").unlink()
    (study / "digits" / "relu" / "1-abc" / "record.json").write_text("{")
    records = read_records(study).set_index("seed")
    assert records["status"].to_dict() == {0: "failed", 1: "failed", 2: "ok"}
    assert "damaged" in records.loc[1, "reason"]
    table = leaderboard(add_labels(read_records(study)))
    assert list(table["failures"]) == ["2 failed"]


def test_report_of_a_study(tmp_path: Path) -> None:
    scores = {f"act{i}": [80.0 + i + s / 3 for s in range(3)] for i in range(12)} | {
        "relu": [84.0, 84.5, 85.5]
    }
    costs = {"step_ratio": 1.25, "inference_ratio": 1.5, "cost_floor": 0.02, "saved_bytes": 2e6}
    study = make_study(tmp_path / "s", scores, **costs)
    make_study(study, {"relu": [None, None]}, task="broken")
    path, table = write_report(study)
    text = path.read_text()
    assert "## digits" in text
    assert "No cell ended ok." in text
    assert "- relu broken seed=1: diverged: loss not finite in epoch 1" in text
    written = pd.read_csv(path.with_name("leaderboard.csv"))
    assert len(written) == len(table) == 14
    assert table["saved_bytes"].dropna().tolist() == [2e6] * 13
    assert "## Cost on digits" in text
    assert "Cost on broken" not in text
    figures = sorted(file.name for file in (path.parent / "figures").iterdir())
    names = ("equal_time", "learning_curves", "parameters", "scores", "step_time")
    assert figures == [f"{n}-digits.{s}" for n in names for s in ("png", "svg")]
    for figure in figures:
        assert f"figures/{figure}" in text or figure.endswith("svg")
    before = {
        file: file.read_bytes()
        for file in [*(path.parent / "figures").glob("*.svg"), path.with_name("index.html")]
    }
    write_report(study)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_report_without_the_baseline_or_any_score(tmp_path: Path) -> None:
    _, table = write_report(make_study(tmp_path / "a", {"tanh": [1.0, 2.0]}))
    assert table["delta"].isna().all()
    path, _ = write_report(make_study(tmp_path / "b", {"tanh": [None]}))
    assert "No cell ended ok." in path.read_text()


def test_mixed_provenance_is_said(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"relu": [90.0]}, torch="2.13", machine="a")
    make_study(study, {"tanh": [91.0]}, torch="2.14", machine="a")
    path, _ = write_report(study)
    assert "**digits: cells differ in torch**: 2.13, 2.14" in path.read_text()
    assert "- machine: a" in path.read_text()


def test_numbers_that_are_not_finite_survive_json(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": math.nan, "b": math.inf, "c": 1.5})
    assert read_json(tmp_path / "r.json") == {"a": None, "b": None, "c": 1.5}
