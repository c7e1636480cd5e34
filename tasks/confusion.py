"""Which classes are taken for which: the counts as a table and as a picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = 16  # up to so many classes the cells have room for their numbers
NAMES = 120  # up to so many every class is named, and beyond every second, third, ...
PAIRS = 15  # confusions that are listed where the cells have no numbers


@dataclass(frozen=True)
class Confusion:
    """How often each class (rows, the truth) was taken for each (columns, the prediction).

    Attributes:
        counts: (K, K) int64.
        classes: their K names.
        unit: what is counted, in the plural.
    """

    counts: Tensor
    classes: tuple[str, ...]
    unit: str

    def table(self) -> Iterator[list[str | int]]:
        """Lines of a file: the predicted classes' names, then each true class with its counts."""
        yield ["true \\ predicted", *self.classes]
        for name, counts in zip(self.classes, self.counts.tolist(), strict=True):
            yield [name, *counts]

    def figure(self) -> "Figure":
        """Each true class's shares in percent, and of many classes the commonest mistakes."""
        from matplotlib.figure import Figure

        size, few = len(self.classes), len(self.classes) <= NUMBERS
        longest = 0.075 * max(map(len, map(_short, self.classes)))  # inches of a name
        side = 1.2 + 0.46 * size if few else min(11.0, 5 + 0.06 * size)  # inches of the matrix
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
        # by the square root: mistakes, spread over many classes, are small shares
        image = ax.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
        every = -(-len(self.classes) // NAMES)
        places = range(0, len(self.classes), every)
        names = [_short(self.classes[place]) for place in places]
        points = min(10.0, 0.8 * 72 * side / len(self.classes) * every)  # of the names' letters
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
        values, places = wrong.flatten().topk(min(PAIRS, wrong.numel()))
        pairs = [divmod(place, len(self.classes)) for place in places[values > 0].tolist()]
        names = [f"{_short(self.classes[i])} → {_short(self.classes[j])}" for i, j in pairs]
        shown = values[values > 0].tolist()
        ax.barh(range(len(shown)), shown, color="#0072B2", height=0.7)
        ax.bar_label(ax.containers[0], [f"{value:,}" for value in shown], padding=3, fontsize=8)  # type: ignore[arg-type]
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(PAIRS - 0.4, -0.6)
        ax.set_xlim(0, 1.18 * max(shown, default=1))
        ax.set_title("commonest mistakes", loc="left", fontsize="medium")
        ax.set_xlabel(self.unit)
        ax.spines[["top", "right"]].set_visible(False)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _ink(share: float) -> str:
    """A colour that can be read on that of ``share``."""
    return "white" if share > 40 else "black"
