"""Simulate studies whose truth is known, and count how often the report's verdicts and ranks are wrong.

python scripts/simulate_verdicts.py [--studies 1000] [--activations 5,10,48] [--seeds 3,5,10] [--noise normal,...]
python scripts/simulate_verdicts.py --over tasks [--tasks 5,10,20]
python scripts/simulate_verdicts.py --over test-sets [--samples 500,10000]
"""

import argparse
from itertools import product

import _here  # noqa: F401  # before the code that it finds
import numpy as np

from results.over_tasks import TASKS_NEEDED
from results.statistics import Comparisons, worst_possible

EFFECT = 1.5  # of a better activation, in standard deviations of a score over seeds
TEST_IMAGES = 539  # those of digits
NOISES = {
    "normal": "equal normal noise",
    "unequal": "standard deviations 1, 4, 2, 1, 4, 2, ...",
    "one wide": "one activation with five times the spread",
    "wide baseline": "the baseline with five times the spread",
    "heavy tails": "Student's t with 3 degrees of freedom",
    "bad seeds": "3 % of the cells end 10 standard deviations lower",
    "near 99 %": f"counts of {TEST_IMAGES} test images, 98.8 % right",
    "divergence": "a third of the cells diverge, of any activation alike",
    "errors": "errors, lower is better, whose logarithms have equal normal noise",
}


def scores(noise: str, activations: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw test scores (activations, seeds) without any true difference, correlated 0.5 over seeds.

    Higher is better; errors are exp(-score).
    """
    shape = (activations, seeds)
    seed_effect = rng.normal(size=(1, seeds))
    if noise == "near 99 %":
        probability = 1 / (1 + np.exp(-(4.4 + 0.25 * np.broadcast_to(seed_effect, shape))))
        return 100 / TEST_IMAGES * rng.binomial(TEST_IMAGES, probability)
    own = rng.normal(size=shape)
    if noise == "unequal":
        own *= np.resize([1.0, 4.0, 2.0], activations)[:, None]
    elif noise == "one wide":
        own[1] *= 5
    elif noise == "wide baseline":
        own[0] *= 5
    elif noise == "heavy tails":
        own = rng.standard_t(3, shape) / np.sqrt(3)
    elif noise == "bad seeds":
        own -= 10 * (rng.random(shape) < 0.03)
    elif noise == "divergence":
        own[rng.random(shape) < 1 / 3] = worst_possible(higher_is_better=True)
    return seed_effect + own


def simulate(noise: str, activations: int, seeds: int, studies: int) -> dict[str, object]:
    """Judge ``studies`` simulated studies; rates in percent.

    ``false verdict``: studies without a true difference in which any activation is called better or worse than the
    baseline. ``false rank``: in which any activation with a score is denied any rank among these. ``wrong ranks``: studies
    with true differences in which any rank interval misses the true rank. ``power``: how often an activation that is better by
    1.5 standard deviations of a score is called better. ``leads``: studies without a true difference in which the
    baseline has the best adjusted mean; ``leads, seed lost``: after its worst seed was lost to divergence.
    """

    errors = noise == "errors"

    def compare(table: np.ndarray) -> Comparisons:
        table = np.exp(-table) if errors else table
        entries = {str(i): dict(enumerate(map(float, row))) for i, row in enumerate(table)}
        return Comparisons(entries, higher_is_better=not errors, relative=errors)

    def leads(judged: Comparisons) -> bool:
        means = judged.adjusted_means()
        return max(judged.names, key=lambda name: judged.sign * means[name], default=None) == "0"

    def ranks_among(judged: Comparisons) -> list[tuple[int, int]]:
        sets = judged.rank_sets()
        return [sets[name] for name in judged.names]

    rng = np.random.default_rng([activations, seeds, list(NOISES).index(noise)])
    spread = 100 / TEST_IMAGES * np.sqrt(TEST_IMAGES * 0.988 * 0.012) if noise == "near 99 %" else np.sqrt(2)
    gains = EFFECT * spread * (np.arange(activations) % 3 > 0)  # a third are as good as the baseline
    counts = dict.fromkeys(
        ("false verdict", "false rank", "wrong ranks", "power", "leads", "leads, seed lost"), 0
    )
    for _ in range(studies):
        null = scores(noise, activations, seeds, rng)
        judged = compare(null)
        counts["false verdict"] += any(c.verdict in ("better", "worse") for c in judged.against("0").values())
        counts["false rank"] += any(ranks != (1, len(judged.names)) for ranks in ranks_among(judged))
        counts["leads"] += leads(judged)

        judged = compare(null + gains[:, None])
        counts["power"] += judged.against("0")["1"].verdict == "better"
        # an activation that equals others may have any rank of its group
        scored = gains[[int(name) for name in judged.names]]
        truth = [(1 + (scored > gain).sum(), (scored >= gain).sum()) for gain in scored]
        counts["wrong ranks"] += any(
            low > first or high < last
            for (low, high), (first, last) in zip(ranks_among(judged), truth, strict=True)
        )

        null[0, null[0].argmin()] = worst_possible(higher_is_better=True)
        counts["leads, seed lost"] += leads(compare(null))
    return {"noise": noise, "activations": activations, "seeds": seeds} | {
        name: f"{100 * count / studies:.1f}" for name, count in counts.items()
    }


TASK_KINDS = {
    "alike": "activations alike on every task",
    "by task": "activations alike on average, with effects of their own on each task, as large as the noise",
    "opposites": "two activations take turns at being best and worst, the others alike",
    "steps": "each activation better than the one before by half of the noise, effects by task as above",
}


def task_scores(kind: str, activations: int, tasks: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw scores (tasks, activations, seeds), larger is better."""
    shape = (tasks, activations, seeds)
    scores = rng.normal(size=(tasks, 1, seeds)) + rng.normal(size=shape)
    if kind in ("by task", "steps"):
        scores += rng.normal(size=(tasks, activations, 1))
    if kind == "steps":
        scores += 0.5 * np.arange(activations)[:, None]
    if kind == "opposites":
        sign = rng.choice((-10.0, 10.0), (tasks, 1))
        scores[:, 0] += sign
        scores[:, 1] -= sign
    return scores


def simulate_tasks(kind: str, activations: int, tasks: int, seeds: int, studies: int) -> dict[str, object]:
    """Rank ``studies`` simulated studies over tasks; rates in percent.

    ``false rank``: studies in which any activation is denied a rank that it may have, for ``opposites`` studies in which
    either of the two is called better than the other. ``Nemenyi``: the same by Nemenyi's critical difference of the ranks
    of means over seeds. ``mean rank``, ``P(better)``: intervals that cover the expectation, of all activations.
    ``told apart``: pairs.
    """
    from scipy.stats import studentized_range

    from results import over_tasks

    over_tasks.RESAMPLES = 2000  # of each study; many studies need fewer
    rng = np.random.default_rng([activations, tasks, seeds, list(TASK_KINDS).index(kind)])
    many = task_scores(kind, activations, 20_000, 1, rng)[:, :, 0]
    truth = 1 + (many[:, :, None] < many[:, None, :]).sum(2).mean(0)
    share = (many[:, 1:] > many[:, :1]).mean(0)
    names = [str(i) for i in range(activations)]
    critical = studentized_range.ppf(0.95, activations, np.inf) * np.sqrt(
        activations * (activations + 1) / (12 * tasks)
    )
    counts = dict.fromkeys(("false rank", "Nemenyi", "mean rank", "P(better)", "told apart"), 0.0)
    for _ in range(studies):
        scores = task_scores(kind, activations, tasks, seeds, rng)
        ranks = over_tasks.Ranks.of(list(scores), names)
        better = [(block[1:] > block[0]).T.astype(float) for block in scores]
        _, low, high, _ = over_tasks.over_tasks(better, (0, 1))
        told_apart = np.zeros((activations, activations), dtype=bool)
        for (name, other), compared in ranks.compared.items():
            told_apart[int(name), int(other)] = compared.verdict in ("better", "worse")
        means = scores.mean(2)
        by_means = 1 + (means[:, :, None] < means[:, None, :]).sum(2).mean(0)
        nemenyi = np.triu(np.abs(by_means[:, None] - by_means) > critical, 1)
        if kind == "opposites":
            false, nemenyi_false = told_apart[0, 1], nemenyi[0, 1]
        elif kind == "steps":
            best = activations - np.arange(activations)
            sets = np.array([ranks.sets[name] for name in names])
            false = ((best < sets[:, 0]) | (best > sets[:, 1])).any()
            nemenyi_false = (nemenyi & (by_means[:, None] < by_means)).any()
        else:
            false, nemenyi_false = told_apart.any(), nemenyi.any()
        counts["false rank"] += false
        counts["Nemenyi"] += nemenyi_false
        counts["mean rank"] += ((ranks.low <= truth) & (truth <= ranks.high)).mean()
        counts["P(better)"] += ((low <= share) & (share <= high)).mean()
        counts["told apart"] += told_apart.sum() / (activations * (activations - 1) / 2)
    return {"kind": kind, "activations": activations, "tasks": tasks, "seeds": seeds} | {
        name: f"{100 * count / studies:.1f}" for name, count in counts.items()
    }


def simulate_test_sets(samples: int, seeds: int, studies: int) -> dict[str, object]:
    """Test two activations on ``studies`` test sets; how often intervals cover the difference in the population, in percent.

    A sample is right where ability of the seed + ease of the sample + what the activation makes of it + noise > 0: about 90 %
    are, and two runs of an activation disagree on about 9 %. ``seeds alone``: intervals of the difference as in verdicts.
    ``and test sets``: those that are widened by ``results.examples.widened``.
    """
    from scipy.special import ndtr

    from results.examples import widened

    def right(number: int, of_seeds: np.ndarray) -> np.ndarray:
        """Draw (activations, seeds, samples)."""
        ease = rng.normal(size=number) + 0.5 * rng.normal(size=(2, 1, number))
        return 1.5 + of_seeds[:, :, None] + ease + 0.5 * rng.normal(size=(2, of_seeds.shape[1], number)) > 0

    rng = np.random.default_rng([samples, seeds])
    gap = np.array([[0.1], [0.0]])
    population = 100 * ndtr((1.5 + gap) / np.sqrt(1 + 0.25 + 0.25 + 0.03**2))[:, 0]
    truth = population[0] - population[1]
    counts = dict.fromkeys(("seeds alone", "and test sets"), 0)
    for _ in range(studies):
        outcome = 100.0 * right(samples, gap + 0.03 * rng.normal(size=(2, seeds)))
        entries = {name: dict(enumerate(map(float, outcome[i].mean(1)))) for i, name in enumerate("ab")}
        compared = Comparisons(entries, higher_is_better=True).against("b")["a"]
        low, high = widened(compared, (outcome[0] - outcome[1]).mean(0), 100.0, family=1)
        counts["seeds alone"] += compared.low <= truth <= compared.high
        counts["and test sets"] += low <= truth <= high
    return {"samples": samples, "seeds": seeds} | {
        name: f"{100 * count / studies:.1f}" for name, count in counts.items()
    }


def _whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of each kind (1000)")
    parser.add_argument("--activations", type=_whole_numbers, default=[5, 10, 48], help="5,10,48")
    parser.add_argument("--seeds", type=_whole_numbers, default=[3, 5, 10], help="3,5,10")
    parser.add_argument("--noise", default=",".join(NOISES), help=", ".join(NOISES).replace("%", "%%"))
    parser.add_argument(
        "--over", choices=("seeds", "tasks", "test-sets"), default="seeds", help="what to judge over (seeds)"
    )
    parser.add_argument("--tasks", type=_whole_numbers, default=[5, 10, 20], help="5,10,20; --over tasks")
    parser.add_argument(
        "--samples", type=_whole_numbers, default=[500, 10_000], help="500,10000; --over test-sets"
    )
    arguments = parser.parse_args()
    noises = arguments.noise.split(",")
    for noise in noises:
        if noise not in NOISES:
            parser.error(f"--noise {noise}: must be one of {', '.join(NOISES)}")
    if min(arguments.tasks) < TASKS_NEEDED:
        parser.error(f"--tasks {min(arguments.tasks)}: must be >= {TASKS_NEEDED}")
    studies = arguments.studies
    if arguments.over == "tasks":
        cases = product(TASK_KINDS, arguments.activations, arguments.tasks, arguments.seeds)
        rows = [simulate_tasks(*case, studies) for case in cases]
    elif arguments.over == "test-sets":
        rows = [simulate_test_sets(*case, studies) for case in product(arguments.samples, arguments.seeds)]
    else:
        rows = [simulate(*case, studies) for case in product(noises, arguments.activations, arguments.seeds)]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|---" + "|---:" * (len(names) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
