"""One look for each activation of a study, the same in every figure."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

# Okabe and Ito's palette, told apart with any kind of color vision; black is the baseline's
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")
GRAY = "#BBBBBB"
BASELINE_COLOR = "black"
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.2, 1.5),
    (6, 1.5, 1.2, 1.5),
    (9, 3),
    (3, 1),
    (6, 1.5, 1.2, 1.5, 1.2, 1.5),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Look:
    """How an activation is drawn: ``dash`` is a pattern of points on and off, empty for a solid line."""

    color: str = GRAY
    dash: tuple[float, ...] = ()
    marker: str = "o"

    @property
    def line(self) -> object:
        """The line style in matplotlib's words."""
        return (0, self.dash) if self.dash else "-"


def looks(table: pd.DataFrame) -> dict[str, Look]:
    """Return the look of every activation in a leaderboard.

    Solid lines in colors go to the activations that stand highest over all tasks, so that those that are looked at
    most are told apart best; with every further seven the dashes and markers change.
    """
    places = table.assign(place=table.groupby("task").cumcount())  # best first in every task
    order = places.groupby("activation", sort=True)["place"].mean().sort_values(kind="stable").index
    baselines = set(table["baseline"].dropna())
    others = (label for label in order if label not in baselines)
    found = {
        label: Look(BASELINE_COLOR, DASHES[k % 7], MARKERS[k % 7])
        for k, label in enumerate(sorted(baselines))
    }
    for k, label in enumerate(others):
        style = k // len(COLORS) % len(DASHES)
        found[label] = Look(COLORS[k % len(COLORS)], DASHES[style], MARKERS[style])
    return found


def in_front(labels: Iterable[str], baseline: str | None) -> list[str]:
    """Return the first of ``labels``, best first, without and then with the baseline; in a figure of lines the rest is gray."""
    labels = list(labels)
    best = [label for label in labels if label != baseline][: len(COLORS)]
    return [*best, *(label for label in labels if label == baseline)]
