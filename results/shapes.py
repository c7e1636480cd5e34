"""What the activations of a study learned, from the ``curves.npz`` of its cells: charts for the page, rows of a table."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from results.escape import counted, shortened, shown
from results.files import CURVES, PICTURES
from results.learned import FIGURES, ROLES, Learned, coefficient_parts, input_range, read_learned
from results.learned_numbers import Number, is_learned, numbers, rows
from results.palette import Look
from results.svg import Panel, strips

MAX_SEEDS = 5  # that are read and drawn of an activation on a task
SITE_LENGTH = 28  # characters of a site's name
MAX_SITES = 6  # by depth, the first and the last among them
PANELS, COLUMNS, IMAGES = 200, 2400, 200  # on the page in all, so that it stays small
IMAGE_WIDTH = 320  # pixels
FULL_WIDTH = 28  # images that are so wide; more are smaller, as they take no more room together
EVERY = 4  # points of a curve of which one is drawn
UNUSED = 0.001  # share of the inputs below which a piece counts as dead
UNUSED_PART = 0.25  # of a learned interval without inputs that is worth a warning

Charts = Sequence[tuple[str, Markup, str]]

ABOUT = (
    "Response curves by depth, the mean of a site's channels where there are several: thin lines are seeds, the thick one "
    "their mean, the dotted one the function before training; gray is the distribution of the site's inputs in validation. "
    f"Agreement is 1 minus the variance between seeds over the mean squared change since the start, both weighted by the inputs: 1 where all seeds learned "
    f"the same, about 0 where each learned something of its own. Not ReLU is the share of a curve's variance over the inputs that no a + b ReLU(x) explains, mean over seeds; learned.csv has numbers of every site. At most {MAX_SEEDS} seeds are read. Activations without parameters learn nothing and are left out."
)


@dataclass(frozen=True)
class Shape:
    """What an activation learned on a task.

    Attributes:
        grids: charts with a caption each.
        agreement: between seeds, the mean over sites; nan if there is none.
        seeds: number of cells that were read.
        flags: sentences about what is dead or unused.
    """

    grids: Sequence[tuple[Charts, str]]
    agreement: float
    seeds: int
    flags: Sequence[str]

    @property
    def summary(self) -> str:
        """The numbers in words."""
        said = counted(self.seeds, "seed")
        return said if math.isnan(self.agreement) else f"agreement {self.agreement:.2f} between {said}"


@dataclass
class Shapes:
    """Charts of a study, ready for the page, and the rows of ``learned.csv``."""

    by_task: dict[str, dict[str, Shape]] = field(default_factory=dict)
    first_sites: dict[str, list[tuple[str, Markup, str]]] = field(default_factory=dict)  # by activation
    # by task and name: activation, seed, picture
    images: dict[str, dict[str, list[tuple[str, int, Markup]]]] = field(default_factory=dict)
    rows: list[tuple[object, ...]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def read_shapes(records: pd.DataFrame, looks: Mapping[str, Look]) -> Shapes:
    """Return the charts and numbers of all cells that ended ok; one without ``curves.npz`` is left out, a damaged one is named."""
    shapes = Shapes()
    groups = [*records[records["status"] == "ok"].groupby(["task_label", "activation_label"], sort=True)]
    unknown = pd.Series(dtype=float)
    learning = sum(not (cells.get("activation_parameters", unknown) == 0).any() for _, cells in groups)
    sites = max(1, min(MAX_SITES, PANELS // max(1, learning) - 1))
    for (task, activation), cells in groups:
        color = looks.get(activation, Look()).color
        read = [*_read(cells, shapes.damaged)]
        if not read:
            continue
        found, learned = numbers(read), is_learned(read)
        if panel := _first_site(read, color, found):
            shapes.first_sites.setdefault(activation, []).append((str(task), *panel))
        shapes.rows += rows(str(task), str(activation), found, learned)
        shape = _shape(read, color, found if learned else {}, sites, COLUMNS // len(groups))
        if shape is not None:
            shapes.by_task.setdefault(str(task), {})[str(activation)] = shape
    _add_images(shapes, groups)
    return shapes


def _read(cells: pd.DataFrame, damaged: list[str]) -> Iterator[Learned]:
    for folder in map(Path, cells.sort_values("seed")["folder"].iloc[:MAX_SEEDS]):
        try:
            if (folder / CURVES).exists():
                yield read_learned(folder)
        except (ValueError, OSError) as error:
            damaged.append(" ".join(shown(error).split()))


def _shape(
    read: Sequence[Learned],
    color: str,
    found: Mapping[str, Mapping[str, Number]],
    most_sites: int,
    most_columns: int,
) -> Shape | None:
    """Return the charts of one activation on one task, with curves at the sites ``found``; None if there is nothing to see."""
    grids: list[tuple[Charts, str]] = []
    names = [site for site in read[0].curves if "agreement" in found.get(site, {})]
    if names:
        some = spaced(names, most_sites)
        titles = {site: shortened(site, SITE_LENGTH) for site in some}
        charts = [(titles[site], *_panel(read, site, color, found[site])) for site in some]
        left_out = f"{len(some)} of {len(names)} sites, by depth." if len(some) < len(names) else ""
        grids.append((charts, left_out))
        if read[0].evolution:
            ends = dict.fromkeys((some[0], some[-1]))
            steps = [(titles[site], *_evolution(read, site, color)) for site in ends]
            epochs = ", ".join(map(str, read[0].evolution))
            caption = f"Mean over seeds after {epochs} epochs and at the end (thick), first and last site."
            grids.append((steps, caption))
    if charts := [*_strips(read, color, most_columns)]:
        caption = "By depth, over channels and seeds: median (dot), middle half (thick), 5 to 95 % (thin)."
        grids.append((charts, caption))
    agreements = [found[site]["agreement"].mean for site in names]
    known = [value for value in agreements if not math.isnan(value)]
    agreement = float(np.mean(known)) if known else math.nan
    return Shape(grids, agreement, len(read), [*flags(read)]) if grids else None


def flags(read: Sequence[Learned]) -> Iterator[str]:
    """Yield a sentence for each site with dead pieces or with a learned interval that inputs do not reach."""
    for site, named in read[0].diagnostics.items():
        for name in (name for name in named if read[0].role(site, name) == "occupancy"):
            known = [each.diagnostics[site] for each in read if name in each.diagnostics.get(site, {})]
            shares = [_shares(by_name[name]) for by_name in known]
            dead = [float((share < UNUSED).mean()) for share in shares]
            if np.median(dead) > 0:
                yield (
                    f"{site}: {np.median(dead):.0%} of the pieces see less than {UNUSED:.1%} of the inputs "
                    f"({_from_to(dead)} over seeds)."
                )
        unused = [part for each in read if (part := _unused_part(each, site)) is not None]
        if unused and np.median(unused) > UNUSED_PART:
            yield (
                f"{site}: {np.median(unused):.0%} of the learned interval lies where there are no inputs "
                f"({_from_to(unused)} over seeds)."
            )


def _shares(values: np.ndarray) -> np.ndarray:
    total = values.sum(-1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values, dtype=float), where=total > 0)


def _unused_part(learned: Learned, site: str) -> float | None:
    """Return the part of the mean learned interval outside of where all but a thousandth of the inputs at either end are."""
    named = learned.diagnostics.get(site, {})
    ends = [float(np.mean(named[name])) for name in named if learned.role(site, name) == "interval_end"]
    inputs = learned.inputs.get(site)
    if len(ends) < 2 or inputs is None or not inputs.sum() > 0 or not all(map(math.isfinite, ends)):
        return None
    low, high = min(ends), max(ends)
    below = np.cumsum(inputs)[:-1] / inputs.sum()
    first = float(learned.x[below <= UNUSED].max(initial=-math.inf))
    last = float(learned.x[below >= 1 - UNUSED].min(initial=math.inf))
    return 1 - max(0.0, min(high, last) - max(low, first)) / (high - low) if high > low else None


def _from_to(values: Sequence[float]) -> str:
    return f"{min(values):.0%} to {max(values):.0%}"


def spaced(names: Sequence[str], most: int) -> list[str]:
    """Return at most so many of the names at equal steps, with the first and the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(k)] for k in np.linspace(0, len(names) - 1, most)] if most > 1 else [names[-1]]


def _frame(
    read: Sequence[Learned], site: str, lines: Sequence[np.ndarray]
) -> tuple[Panel, np.ndarray, np.ndarray | None]:
    """A panel over the range of the inputs and of ``lines`` there, the mask of drawn points, and the inputs."""
    x = read[0].x
    histograms = [each.inputs[site] for each in read if site in each.inputs]
    inputs = np.mean(histograms, axis=0) if histograms else None
    low, high = input_range(x, inputs)
    inside = (x >= low) & (x <= high)
    seen = np.concatenate([line[inside] for line in lines])
    seen = seen[np.isfinite(seen)]
    bottom, top = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    margin = 0.08 * (top - bottom) or 1.0
    panel = Panel(low, high, bottom - margin, top + margin)
    if inputs is not None:
        panel.histogram(x[::EVERY], np.add.reduceat(inputs[1:-1], np.arange(0, len(x) - 1, EVERY)))
    panel.axes()
    return panel, inside, inputs


def _panel(read: Sequence[Learned], site: str, color: str, found: Mapping[str, Number]) -> tuple[Markup, str]:
    x = read[0].x[::EVERY]
    lines = [each.curves[site].mean(0) for each in read]
    starts = [each.evolution[0][site] for each in read if site in each.evolution.get(0, {})]
    panel, _, _ = _frame(read, site, [*lines, *starts])
    for each in read:
        for name, values in each.diagnostics.get(site, {}).items():
            if each.role(site, name) == "interval_end" and values.size == 1:
                panel.upright(float(values.ravel()[0]), "end")
    if starts:
        panel.line(x, np.mean(starts, axis=0)[::EVERY], "before")
    for line in lines if len(lines) > 1 else ():
        panel.line(x, line[::EVERY], "seed", color)
    panel.line(x, np.mean(lines, axis=0)[::EVERY], "mean", color)
    said = [f"x {panel.left:.2g} to {panel.right:.2g}"]
    if "agreement" in found and not math.isnan(agreement := found["agreement"].mean):
        said.append(f"agreement {agreement:.2f}")
    if "not_relu" in found:
        said.append(f"{found['not_relu'].mean:.0%} not ReLU")
    return panel.markup(f"learned curve at {site}"), "; ".join(said)


def _evolution(read: Sequence[Learned], site: str, color: str) -> tuple[Markup, str]:
    x = read[0].x[::EVERY]
    steps = {}
    for epochs, by_site in read[0].evolution.items():
        if site in by_site:
            curves = [each.evolution[epochs] for each in read if site in each.evolution.get(epochs, {})]
            steps[epochs] = np.mean([curve[site] for curve in curves], axis=0)
    last = np.mean([each.curves[site].mean(0) for each in read], axis=0)
    panel, _, _ = _frame(read, site, [*steps.values(), last])
    for k, line in enumerate(steps.values()):
        panel.line(x, line[::EVERY], f"step{k}" if k else "before", color if k else None)
    panel.line(x, last[::EVERY], "mean", color)
    return panel.markup(f"evolution of the curve at {site}"), f"x {panel.left:.2g} to {panel.right:.2g}"


def _first_site(
    read: Sequence[Learned], color: str, found: Mapping[str, Mapping[str, Number]]
) -> tuple[Markup, str] | None:
    site = next((site for site in read[0].curves if "agreement" in found[site]), None)
    if site is None:
        return None
    return _panel(read, site, color, {name: n for name, n in found[site].items() if name != "agreement"})


def _strips(read: Sequence[Learned], color: str, most: int) -> Iterator[tuple[str, Markup, str]]:
    """Yield a chart by depth for each diagnostic, those with a role first, while there is room for their columns."""
    by_name: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}  # by role and name, then by site
    for each in read:
        for site, named in each.diagnostics.items():
            for name, values in named.items():
                by_name.setdefault((each.role(site, name), name), {}).setdefault(site, []).append(values)
    for role in (*ROLES, "parameter"):
        for (_, name), by_site in ((key, sites) for key, sites in by_name.items() if key[0] == role):
            for title, columns in _columns(name, role, by_site):
                most -= len(columns)
                if most < 0:
                    return
                chart = strips(columns, color, f"{title} by depth: {', '.join(site for site, _ in columns)}")
                if chart:
                    yield title, chart, f"{role.replace('_', ' ')}, {counted(len(columns), 'site')}"


def _columns(
    name: str, role: str, by_site: Mapping[str, list[np.ndarray]]
) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Yield the values of a diagnostic by site; of coefficients those of each slope and intercept by itself."""

    def named(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [*coefficient_parts(values)] if role == "coefficients" else [(name, values)]

    count = len(named(next(iter(by_site.values()))[0]))
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for site, several in by_site.items():
        # seeds may differ in the number of pieces
        for pieces in (pieces for pieces in map(named, several) if len(pieces) == count):
            for title, part in pieces:
                parts.setdefault(title, {}).setdefault(site, []).append(part.ravel())
    for title, values in parts.items():
        yield title, [(site, np.concatenate(several)) for site, several in values.items()]


def _add_images(shapes: Shapes, groups: Sequence[tuple[tuple[str, str], pd.DataFrame]]) -> None:
    """Add the pictures that a task's cells wrote, of the first seed of every activation."""
    found = [
        (str(task), str(activation), int(first["seed"]), path)
        for (task, activation), cells in groups
        for first in [cells.sort_values("seed").iloc[0]]
        for path in sorted((Path(first["folder"]) / PICTURES).glob("*.png"))
        if path.stem not in FIGURES
    ][:IMAGES]
    width = round(IMAGE_WIDTH * min(1.0, math.sqrt(FULL_WIDTH / max(1, len(found)))))
    for task, activation, seed, path in found:
        image = _image(path, f"{path.stem} of {activation} on {task}", width, shapes.damaged)
        if image is not None:
            by_name = shapes.images.setdefault(task, {})
            by_name.setdefault(path.stem, []).append((activation, seed, image))


def _image(path: Path, label: str, width: int, damaged: list[str]) -> Markup | None:
    """Return a small copy of a picture as an element; None, with a line in ``damaged``, if it cannot be read."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((width, 4 * width))
            small.save(buffer, "WEBP", quality=45, method=6)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        damaged.append(f"{path}: damaged ({error})")
        return None
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup(
        f'<img alt="{escape(label)}" width="{small.width}" height="{small.height}" src="data:image/webp;base64,{data}">'
    )
