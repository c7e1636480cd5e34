"""Simulate studies whose truth is known, and count how often the report's verdicts and ranks are wrong.

python scripts/simulate_verdicts.py [--studies 1000] [--activations 5,10,48] [--seeds 3,5,10] [--noise normal,...]
"""

import argparse

import _here  # noqa: F401  # before the code that it finds
import numpy as np

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
}


def scores(noise: str, activations: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw test scores (activations, seeds) without any true difference, correlated 0.5 over seeds."""
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
    return seed_effect + own


def simulate(noise: str, activations: int, seeds: int, studies: int) -> dict[str, object]:
    """Judge ``studies`` simulated studies; rates in percent.

    ``false verdict``: studies without a true difference in which any activation is called better or worse than the
    baseline. ``false rank``: in which any activation is denied any rank. ``wrong ranks``: studies with true
    differences in which any rank interval misses the true rank. ``power``: how often an activation that is better by
    1.5 standard deviations of a score is called better. ``leads``: studies without a true difference in which the
    baseline has the best adjusted mean; ``leads, seed lost``: after its worst seed was lost to divergence.
    """
    from results.statistics import Comparisons, worst_possible

    def compare(table: np.ndarray) -> Comparisons:
        entries = {str(i): dict(enumerate(map(float, row))) for i, row in enumerate(table)}
        return Comparisons(entries, higher_is_better=True)

    def leads(judged: Comparisons) -> bool:
        means = judged.adjusted_means()
        return max(means, key=lambda name: means[name]) == "0"

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
        counts["false rank"] += any(ranks != (1, activations) for ranks in judged.rank_sets().values())
        counts["leads"] += leads(judged)

        judged = compare(null + gains[:, None])
        counts["power"] += judged.against("0")["1"].verdict == "better"
        # an activation that equals others may have any rank of its group
        truth = [(1 + (gains > gain).sum(), (gains >= gain).sum()) for gain in gains]
        counts["wrong ranks"] += any(
            low > first or high < last
            for (low, high), (first, last) in zip(judged.rank_sets().values(), truth, strict=True)
        )

        null[0, null[0].argmin()] = worst_possible(higher_is_better=True)
        counts["leads, seed lost"] += leads(compare(null))
    return {"noise": noise, "activations": activations, "seeds": seeds} | {
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
    arguments = parser.parse_args()
    noises = arguments.noise.split(",")
    for noise in noises:
        if noise not in NOISES:
            parser.error(f"--noise {noise}: must be one of {', '.join(NOISES)}")
    rows = [
        simulate(noise, activations, seeds, arguments.studies)
        for noise in noises
        for activations in arguments.activations
        for seeds in arguments.seeds
    ]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|---" + "|---:" * (len(names) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
