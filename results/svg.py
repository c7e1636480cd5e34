"""SVG inside of the page: matplotlib's made small and fit for both themes, and small charts of curves."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape
from matplotlib.path import Path

from results.palette import GRAY

FONT = re.compile(r"(font(?:-family)?: *[^;\"']*?)'DejaVu Sans'[^;\"]*")
# of the page's text and of what is in the background, in either theme
INK, FAINT = "currentColor", "var(--faint)"


def inline(svg: bytes, prefix: str, label: str) -> Markup:
    """Return matplotlib's ``svg`` as an element of an HTML page.

    Black becomes the color of the page's text, gray that of the background and white none; ids are made unique by ``prefix``; metadata
    and digits that nobody sees are dropped.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    names = {
        name: f"{prefix}{k}"
        for k, name in enumerate(dict.fromkeys(re.findall(r"[(\"]#([^)\"]+)[)\"]", text)))
    }
    text = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", text
    )
    text = re.sub(r"([(\"])#([^)\"]+)([)\"])", lambda found: f"{found[1]}#{names[found[2]]}{found[3]}", text)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', _rounded, text)
    text = re.sub(r' style="[^"]*"', lambda found: re.sub("([:;]) ", r"\1", found[0]), text)
    text = _without_bare_groups(text)
    text = FONT.sub(r"\1sans-serif", text).replace("#000000", INK).replace("#ffffff", "none")
    text = text.replace(GRAY.lower(), FAINT)
    text = re.sub(r"\s*\n\s*", "\n", text)
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box, "matplotlib writes a viewBox"
    width = float(box[1].split()[2]) * 96 / 72
    return Markup(
        f'<svg class="figure" role="img" aria-label="{escape(label)}" viewBox="{box[1]}" fill="{INK}" '
        f'style="width:{width:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def _without_bare_groups(text: str) -> str:
    """Return the elements without the groups that are empty or have no attribute, most of matplotlib's."""
    text = re.sub(r"<g\b[^>]*/>", "", text)
    bare: list[bool] = []  # of the groups that are open

    def kept(tag: re.Match[str]) -> str:
        if tag[0] == "</g>":
            return "" if bare.pop() else tag[0]
        bare.append(tag[0] == "<g>")
        return "" if bare[-1] else tag[0]

    return re.sub(r"<g\b[^>]*>|</g>", kept, text)


def _without_straight_points(places: np.ndarray) -> np.ndarray:
    """Return the points (N, 2) of a line without those that lie on it to a fifth of a unit."""
    path = Path(places)
    path.simplify_threshold = 0.2
    return np.asarray(path.cleaned(simplify=True).vertices)[:-1]  # the last one marks the end


def _rounded(found: re.Match[str]) -> str:
    """An attribute with fewer digits; lines are cut to a tenth of a point, as most of a figure is lines."""
    text = found[0]
    lines_alone = text.startswith(" d=") and not re.search("[CQ]", text)
    if lines_alone:
        text = re.sub(r"\s*\n?L ", " ", text)  # further points of a line need no command
    digits = 1 if lines_alone else 2
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.{digits}f}".rstrip("0").rstrip("."), text)


class Panel:
    """A small chart: lines over the range [left, right] x [bottom, top], drawn into ``WIDTH`` x ``HEIGHT`` units."""

    WIDTH, HEIGHT = 150, 96

    def __init__(self, left: float, right: float, bottom: float, top: float) -> None:
        self.left, self.right, self.bottom, self.top = left, right, bottom, top
        self.parts: list[str] = []

    def _places(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = (x - self.left) / (self.right - self.left) * self.WIDTH
        up = self.HEIGHT - (y - self.bottom) / (self.top - self.bottom) * self.HEIGHT
        return across, np.clip(up, -self.HEIGHT, 2 * self.HEIGHT)

    def line(self, x: np.ndarray, y: np.ndarray, css: str, color: str | None = None) -> None:
        """Draw a line through points, leaving out those that are not finite."""
        finite = np.isfinite(y) & (x >= self.left) & (x <= self.right)
        places = np.column_stack(self._places(x[finite], y[finite]))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in _without_straight_points(places))
        ink = f' style="stroke:{ink_of(color)}"' if color else ""
        self.parts.append(f'<polyline class="{css}"{ink} points="{points}"/>')

    def histogram(self, edges: np.ndarray, heights: np.ndarray) -> None:
        """Draw shares as an area in the background; the highest reaches nine tenths of the height."""
        inside = (edges[:-1] >= self.left) & (edges[1:] <= self.right)
        heights, edges = heights[inside], edges[:-1][inside]
        if not len(heights) or not heights.max() > 0:
            return
        tops = self.HEIGHT * (1 - 0.9 * heights / heights.max())
        across, _ = self._places(edges, np.zeros(len(edges)))
        points = " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(across, tops, strict=True))
        self.parts.append(
            f'<polygon class="inputs" points="{across[0]:.0f},{self.HEIGHT} {points} {across[-1]:.0f},{self.HEIGHT}"/>'
        )

    def upright(self, x: float, css: str) -> None:
        """Mark a place on the horizontal axis over the whole height."""
        if self.left <= x <= self.right:
            at = (x - self.left) / (self.right - self.left) * self.WIDTH
            self.parts.append(f'<line class="{css}" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{self.HEIGHT}"/>')

    def axes(self) -> None:
        """Draw both axes where they are in sight."""
        if self.bottom <= 0 <= self.top:
            _, y = self._places(np.zeros(1), np.zeros(1))
            self.parts.append(
                f'<line class="axis" x1="0" x2="{self.WIDTH}" y1="{y[0]:.1f}" y2="{y[0]:.1f}"/>'
            )
        self.upright(0.0, "axis")

    def markup(self, label: str) -> Markup:
        """Return the element; ``label`` is what a screen reader says."""
        return Markup(
            f'<svg class="panel" role="img" aria-label="{escape(label)}" viewBox="0 0 {self.WIDTH} {self.HEIGHT}">'
            f"{''.join(self.parts)}</svg>"
        )


def strips(columns: Sequence[tuple[str, np.ndarray]], color: str, label: str) -> Markup:
    """Return a chart of values by depth: for each of ``columns`` the median, the middle half and 5 to 95 %."""
    values = [array[np.isfinite(array)] for _, array in columns]
    some = [array for array in values if len(array)]
    if not some:
        return Markup("")
    quantiles = [
        np.quantile(array, (0.05, 0.25, 0.5, 0.75, 0.95)) if len(array) else None for array in values
    ]
    seen = np.concatenate([each for each in quantiles if each is not None])
    low, high = float(seen.min()), float(seen.max())
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    width, height = max(150, 22 * len(columns)), 90

    def up(value: float) -> float:
        return height * (1 - (value - low) / (high - low))

    parts = []
    if low <= 0 <= high:
        parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{up(0):.1f}" y2="{up(0):.1f}"/>')
    step, ink = width / len(columns), f' style="stroke:{ink_of(color)}"'
    for k, each in enumerate(quantiles):
        if each is not None:
            x, (a, b, middle, c, d) = step * (k + 0.5), map(up, each)
            parts.append(
                f'<path class="whisker"{ink} d="M{x:.1f} {a:.1f}V{d:.1f}"/><path class="box"{ink} d="M{x:.1f} {b:.1f}V{c:.1f}"/>'
                f'<circle class="median" cx="{x:.1f}" cy="{middle:.1f}" r="2.2"/>'
            )
    ends = (
        f'<text x="2" y="9">{high - margin:.3g}</text><text x="2" y="{height - 2}">{low + margin:.3g}</text>'
    )
    return Markup(
        f'<svg class="strips" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="width:{width * 1.3:.0f}px">{"".join(parts)}{ends}</svg>'
    )


def swatch(color: str, dash: Iterable[float]) -> Markup:
    """Return the line that stands for an activation in figures."""
    pattern = " ".join(f"{length * 1.2:g}" for length in dash)
    return Markup(
        f'<svg class="swatch" aria-hidden="true" viewBox="0 0 22 8"><line x1="0" x2="22" y1="4" y2="4" '
        f'style="stroke:{ink_of(color)}" stroke-width="2.5" stroke-dasharray="{pattern or "none"}"/></svg>'
    )


def ink_of(color: str) -> str:
    """Return a color for the page, where black is that of the text, and gray stands back in both themes."""
    return {"black": INK, GRAY: FAINT}.get(color, color)
