"""The confusion matrix: counts of predictions for each class, as a table and as a figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NUMBERS = 16  # maximum number of classes for which the cells contain numbers
MAX_NAMES = 120  # maximum number of class names on an axis; of more classes every second, third, ... is named
MAX_PAIRS = 15  # maximum number of confusions in the list beside cells without numbers


@dataclass(frozen=True)
class Confusion:
    """How often each class (rows, the truth) was predicted as each class (columns).

    Attributes:
        counts: (K, K) int64.
        classes: K names.
        unit: what is counted, in the plural.

    Examples:
        >>> import torch
        >>> list(Confusion(torch.tensor([[3, 1], [0, 2]]), ("cat", "dog"), "images").table())[1]
        ['cat', 3, 1]
    """

    counts: Tensor
    classes: tuple[str, ...]
    unit: str

    def table(self) -> Iterator[list[str | int]]:
        """Yield the lines of confusion.csv: the predicted classes' names, then each true class with its counts."""
        yield ["true \\ predicted", *self.classes]
        for name, counts in zip(self.classes, self.counts.tolist(), strict=True):
            yield [name, *counts]

    def figure(self) -> "Figure":
        """Draw the shares of each true class in percent, and for many classes the commonest mistakes."""
        from matplotlib.figure import Figure

        size, few = len(self.classes), len(self.classes) <= MAX_NUMBERS
        longest = 0.075 * max(map(len, map(shortened, self.classes)))  # width of a name in inches
        side = 1.2 + 0.46 * size if few else min(11.0, 5 + 0.06 * size)  # of the matrix in inches
        width = side + longest + 1.4 + (0 if few else 3 + 2 * longest)
        figure = Figure(figsize=(max(width, 4.5), side + longest + 0.9), layout="constrained")
        axes = [figure.subplots()] if few else list(figure.subplots(1, 2, width_ratios=(side, 2.4)))
        self._matrix(axes[0], few, side)
        if not few:
            self._mistakes(axes[1])
        return figure

    def _matrix(self, ax: "Axes", few: bool, side: float) -> None:
        from matplotlib.colors import PowerNorm

        shares = 100 * self.counts.double() / self.counts.sum(1, keepdim=True)  # NaN: a class without truth
        # color by the square root: mistakes, spread over many classes, are small shares
        image = ax.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
        every = -(-len(self.classes) // MAX_NAMES)
        places = range(0, len(self.classes), every)
        names = [shortened(self.classes[place]) for place in places]
        points = min(10.0, 0.8 * 72 * side / len(self.classes) * every)  # font size of the names
        ax.set_xticks(places, names, rotation=90, fontsize=points)
        ax.set_yticks(places, names, fontsize=points)
        ax.tick_params(length=2 if few else 0, pad=2)
        ax.set(xlabel="predicted", ylabel="true")
        total, hits = self.counts.sum().item(), self.counts.diagonal().sum().item()
        ax.set_title(f"{total:,} {self.unit}, {100 * hits / max(total, 1):.1f} % right", loc="left")
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, pad=0.02, ticks=(0, 1, 5, 10, 20, 40, 60, 80, 100))
        bar.set_label(f"% of the true class's {self.unit}")
        for i, row in enumerate(shares.tolist() if few else []):
            for j, share in enumerate(row):
                if share > 0:
                    text = f"{share:.0f}" if share >= 0.95 else f"{share:.1f}" if share >= 0.05 else "<0.1"
                    ax.text(j, i, text, ha="center", va="center", fontsize=9, color=_ink(share))

    def _mistakes(self, ax: "Axes") -> None:
        wrong = self.counts.clone()
        wrong.fill_diagonal_(0)
        values, places = wrong.flatten().topk(min(MAX_PAIRS, wrong.numel()))
        pairs = [divmod(place, len(self.classes)) for place in places[values > 0].tolist()]
        names = [f"{shortened(self.classes[i])} → {shortened(self.classes[j])}" for i, j in pairs]
        shown = values[values > 0].tolist()
        ax.barh(range(len(shown)), shown, color="#0072B2", height=0.7)
        ax.bar_label(ax.containers[0], [f"{value:,}" for value in shown], padding=3, fontsize=8)  # type: ignore[arg-type]
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(MAX_PAIRS - 0.4, -0.6)
        ax.set_xlim(0, 1.18 * max(shown, default=1))
        ax.set_title("commonest mistakes", loc="left", fontsize="medium")
        ax.set_xlabel(self.unit)
        ax.spines[["top", "right"]].set_visible(False)


def shortened(name: str, max_length: int = 28) -> str:
    """Return the beginning of a long name."""
    return name if len(name) <= max_length else name[: max_length - 1] + "…"


def _ink(share: float) -> str:
    """Return a color that is legible on the color of ``share``."""
    return "white" if share > 40 else "black"
