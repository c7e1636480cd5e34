"""Draw every activation of conf/ that is a scalar function, as it is before training, on one sheet.

python scripts/plot_activations.py [--out docs/figures]
"""

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

import torch
from _here import ROOT, command_line, one_line_errors
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from results.escape import figure_text
from results.figures import STYLE, save
from results.palette import COLORS
from runners.compose import choose, component_names

POINTS = (-4.0, 4.0, 2001)  # first, last, number; sine with omega = 30 has 38 periods
HEIGHT = (-1.5, 4.0)
COLUMNS = 6


class Response(NamedTuple):
    """An activation at its initial state: its value and derivative (points,), and how many parameters it has."""

    value: Tensor
    derivative: Tensor
    parameters: int


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="folder of the pictures")
    arguments = parser.parse_args()

    x = torch.linspace(*POINTS)
    with one_line_errors(kinds=Exception):
        arguments.out.mkdir(parents=True, exist_ok=True)  # fails before the work, if it does
        found = {name: response(name, x) for name in component_names("activation")}
        with rc_context(STYLE):
            print(save(sheet(x, found), arguments.out, "activations"))


def response(name: str, x: Tensor) -> Response | None:
    """The activation ``name`` of one channel at the points ``x``; None if it is no scalar function."""
    act_layer = choose(activation=name).act_layer()
    torch.manual_seed(0)
    unit = act_layer(1)
    x = x.clone().requires_grad_()
    curves = unit.curves(x)
    if curves is None:
        return None
    (derivative,) = torch.autograd.grad(curves.sum(), x)
    return Response(curves[0].detach(), derivative, sum(p.numel() for p in unit.parameters()))


def sheet(x: Tensor, found: dict[str, Response | None]) -> Figure:
    """A panel per function, by name; the caption names the activations that have none of their own."""
    scalar = {name: known for name, known in found.items() if known is not None}
    shown = distinct(scalar)
    rows = math.ceil(len(shown) / COLUMNS)
    figure = Figure(figsize=(9.6, 1.0 + 1.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for ax, name in zip(axes, shown, strict=False):
        draw(ax, x, scalar[name])
        ax.set_title(figure_text(name), size=9)
        ax.tick_params(labelsize=7)
    for ax in axes[len(shown) :]:
        ax.remove()
    figure.suptitle("activations before training", x=0.01, ha="left", size=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, borderaxespad=0.2)
    same = "; ".join(f"{name} = {', '.join(twins)}" for name, twins in shown.items() if twins)
    caption = (
        "One channel; what is drawn at random is that of seed 0.",
        f"The same function before training: {same or 'none'}.",
        f"Not scalar functions: {', '.join(sorted(found.keys() - scalar.keys())) or 'none'}.",
    )
    # the label of all x axes is text for which the layout keeps a place
    figure.supxlabel("\n".join(textwrap.fill(line, 160) for line in caption), x=0.01, ha="left", size=8)
    return figure


def distinct(found: dict[str, Response]) -> dict[str, list[str]]:
    """Names of functions in order, and for each the other names it goes by; the plainest unit gives the name."""
    shown: dict[str, list[str]] = {}
    for name in sorted(found, key=lambda name: (found[name].parameters, len(name), name)):
        value = found[name].value
        twin = next((other for other in shown if torch.allclose(found[other].value, value, atol=1e-5)), None)
        if twin is None:
            shown[name] = []
        else:
            shown[twin].append(name)
    return dict(sorted(shown.items()))


def draw(ax: Axes, x: Tensor, known: Response) -> None:
    """Value and derivative on axes that all panels share; what those cut off is said in words."""
    ax.axhline(0, lw=0.5, color="black", alpha=0.4, zorder=0)
    ax.axvline(0, lw=0.5, color="black", alpha=0.4, zorder=0)
    ax.plot(x, known.value, lw=1.6, color=COLORS[0], zorder=3, label="value")
    ax.plot(x, known.derivative, lw=0.9, color=COLORS[1], label="derivative")
    ax.set(xlim=POINTS[:2], ylim=HEIGHT, xticks=(-4, -2, 0, 2, 4), yticks=(-1, 0, 1, 2, 3, 4))
    notes = [beyond(name, getattr(known, name)) for name in ("value", "derivative")]
    if any(notes):
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        note = "\n".join(filter(None, notes))
        ax.text(0.5, 0.9, note, size=7, ha="center", va="top", bbox=white, zorder=4, transform=ax.transAxes)


def beyond(name: str, y: Tensor) -> str:
    """The range of ``y`` if half of it lies outside the panel."""
    low, high = HEIGHT
    outside = ((y < low) | (y > high)).float().mean()
    return f"{name} {y.min():.3g} to {y.max():.3g}" if outside > 0.5 else ""


if __name__ == "__main__":
    main()
