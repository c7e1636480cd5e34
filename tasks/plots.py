"""Figures of regressions: target, fit and error; and of their data."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.data.points import VAL_SEED, FunctionPoints, PicturePoints, Points, TablePoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#BBBBBB"
NOISY_SAMPLES = 200  # maximum number of training samples in a figure

Predict = Callable[[Tensor], Tensor]  # (N, D) to (N, K), both on the CPU


def fit_figure(data: Points, predict: Predict) -> "Figure | None":
    """Draw target, fit and error of the test; None for functions of more than two variables."""
    if isinstance(data, FunctionPoints):
        x, y = data.test
        low, high = data.low.tolist(), data.high.tolist()
        if len(low) == 1:
            generator = torch.Generator().manual_seed(VAL_SEED)
            samples = data.draw(NOISY_SAMPLES, generator) if data.noise else None
            return interval(x, y, predict(x), limits=(low[0], high[0]), samples=samples)
        if len(low) == 2:
            return plane(y, predict(x), extent=(low[0], high[0], low[1], high[1]))
    elif isinstance(data, TablePoints):
        x, y = data.test
        true, fit = (data.mean[-1] + data.std[-1] * part for part in (y, predict(x)))
        return scatter(true, fit, data.quantity)
    elif isinstance(data, PicturePoints):
        fit = predict(data.inputs)
        psnr = -10 * (fit - data.targets)[data.index["test"]].square().mean().log10()
        return photograph(data.targets.view(data.shape), fit.view(data.shape), f"fit, {psnr:.1f} dB")
    return None


def data_figure(data: Points, train: tuple[Tensor, Tensor]) -> "Figure | None":
    """Draw the target, and where the training samples ``train`` are; None for functions of more than two variables."""
    if isinstance(data, FunctionPoints):
        (x, y), low, high = data.test, data.low.tolist(), data.high.tolist()
        samples = train[0][:NOISY_SAMPLES], train[1][:NOISY_SAMPLES]
        if len(low) == 1:
            return target_curve(x, y, samples, limits=(low[0], high[0]))
        if len(low) == 2:
            return target_map(y, samples, extent=(low[0], high[0], low[1], high[1]))
    elif isinstance(data, TablePoints):
        return columns({name: data.table[part] for name, part in data.index.items()}, data.variables)
    elif isinstance(data, PicturePoints):
        return pixels(data.targets.view(data.shape), data.index)
    return None


def _new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches; matplotlib is imported only when something is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def interval(
    x: Tensor,
    target: Tensor,
    fit: Tensor,
    *,
    limits: tuple[float, float],
    samples: tuple[Tensor, Tensor] | None = None,
) -> "Figure":
    """Draw target and fit of one variable, and the error below.

    Args:
        x, target, fit: (N, 1).
        limits: of the axis of x.
        samples: noisy training samples, inputs and targets (n, 1).
    """
    figure = _new_figure(6.4, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    if samples is not None:
        points = [part.flatten().numpy() for part in samples]
        top.plot(*points, ".", color=GRAY, markersize=4, label="noisy training samples")
    x, target, fit = (part.flatten() for part in (x, target, fit))
    error = fit - target
    top.plot(x, target, color="black", linewidth=2.2, label="target")
    top.plot(x, fit, color=ORANGE, linewidth=1.1, label="fit")
    top.set_title(f"MSE {error.square().mean():.3g}", loc="left")
    top.set(ylabel="$f(x)$")
    top.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0)
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.plot(x, error, color=BLUE, linewidth=1.1)
    bottom.set_title(f"error, at most {error.abs().max():.3g}", loc="left")
    bottom.set(xlabel="$x$", ylabel="fit - target", xlim=limits)
    for ax in (top, bottom):
        ax.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure


def plane(target: Tensor, fit: Tensor, extent: Sequence[float]) -> "Figure":
    """Draw target, fit and error of two variables, the error with its own color scale.

    Args:
        target, fit: (N, 1) on a square grid, the first variable slowest.
        extent: of the grid: lowest and highest value of either variable.
    """
    size = round(len(target) ** 0.5)
    error = fit - target
    limit = error.abs().max().item()
    scale = {"vmin": target.min().item(), "vmax": target.max().item(), "cmap": "viridis"}
    panels = (
        ("target", target, scale),
        (f"fit, MSE {error.square().mean():.3g}", fit, scale),
        (f"error, at most {limit:.3g}", error, {"vmin": -limit, "vmax": limit, "cmap": "RdBu_r"}),
    )
    figure = _new_figure(11, 3.6)
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (title, values, colors) in zip(axes, panels, strict=True):
        pixels = values.view(size, size).T.numpy()
        image = ax.imshow(pixels, origin="lower", extent=tuple(extent), aspect="auto", **colors)
        ax.set(title=title, xlabel="$x_1$")
        if title != "target":
            figure.colorbar(image, ax=ax if title.startswith("error") else axes[:2], shrink=0.9, pad=0.02)
    axes[0].set_ylabel("$x_2$")
    return figure


def photograph(target: Tensor, fit: Tensor, title: str) -> "Figure":
    """Draw two images (H, W, 3) in [0, 1] side by side, and the mean of the absolute errors over the channels."""
    height, width = target.shape[:2]
    figure = _new_figure(11, 0.9 + 3.3 * height / width)
    axes = figure.subplots(1, 3)
    error = (fit - target).abs().mean(2)
    axes[0].imshow(target.numpy())
    axes[1].imshow(fit.clamp(0, 1).numpy())
    image = axes[2].imshow(error.numpy(), cmap="magma", vmin=0)
    figure.colorbar(image, ax=axes[2], shrink=0.9, pad=0.02)
    for ax, name in zip(axes, ("target", title, f"absolute error, mean {error.mean():.3g}"), strict=True):
        ax.set(title=name, xticks=[], yticks=[])
    return figure


def scatter(target: Tensor, fit: Tensor, quantity: str) -> "Figure":
    """Draw the fit against the target, both (N, 1), with the diagonal, and the error against the fit."""
    figure = _new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    target, fit = target.flatten(), fit.flatten()
    error = fit - target
    r2 = 100 * (1 - error.square().mean() / target.var(correction=0))
    left.plot(target, fit, "o", color=BLUE, markersize=4, alpha=0.6)
    left.axline((target.mean().item(),) * 2, slope=1, color="black", linewidth=0.8)
    left.set_title(f"fit against target, $R^2$ {r2:.1f} %", loc="left")
    left.set(xlabel=f"{quantity}, true", ylabel=f"{quantity}, predicted")
    right.plot(fit, error, "o", color=BLUE, markersize=4, alpha=0.6)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_title(f"error, at most {error.abs().max():.3g}", loc="left")
    right.set(xlabel=f"{quantity}, predicted", ylabel="predicted - true")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def target_curve(
    x: Tensor, target: Tensor, samples: tuple[Tensor, Tensor], *, limits: tuple[float, float]
) -> "Figure":
    """Draw a target of one variable with training samples, and the distribution of its values; shapes as of ``interval``."""
    figure = _new_figure(8, 3.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3.2, 1))
    left.plot(
        *(part.flatten() for part in samples), ".", color=ORANGE, markersize=5, label="training samples"
    )
    left.plot(x.flatten(), target.flatten(), color="black", linewidth=1.4, label="target, on the test's grid")
    left.set(xlabel="$x$", ylabel="$f(x)$", xlim=limits)
    left.legend(
        frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, fontsize="small"
    )
    left.set_title(f"variance {target.var(correction=0):.3g}", loc="left")
    right.hist(target.flatten().numpy(), bins=40, orientation="horizontal", color=BLUE)
    right.set(xlabel="test points")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def target_map(target: Tensor, samples: tuple[Tensor, Tensor], extent: Sequence[float]) -> "Figure":
    """Draw a target of two variables, and training samples of it; shapes as of ``plane``."""
    size = round(len(target) ** 0.5)
    scale = {"vmin": target.min().item(), "vmax": target.max().item(), "cmap": "viridis"}
    figure = _new_figure(9, 4)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    image = left.imshow(
        target.view(size, size).T.numpy(), origin="lower", extent=tuple(extent), aspect="auto", **scale
    )
    left.set(title=f"target, variance {target.var(correction=0):.3g}", xlabel="$x_1$", ylabel="$x_2$")
    x, y = samples
    right.scatter(x[:, 0], x[:, 1], c=y.flatten(), s=14, **scale)
    right.set(title=f"{len(x)} training samples", xlabel="$x_1$")
    left.locator_params(nbins=5)
    figure.colorbar(image, ax=(left, right), shrink=0.9, pad=0.02)
    return figure


def columns(parts: Mapping[str, Tensor], names: Sequence[str]) -> "Figure":
    """Draw every column of a table (N, D) against its last one, and the last one's distribution in each split."""
    colors = dict(zip(parts, (GRAY, ORANGE, BLUE), strict=True))
    across = min(4, len(names))
    figure = _new_figure(2.9 * across, 2.5 * -(-len(names) // across) + 0.4)
    axes = figure.subplots(-(-len(names) // across), across, squeeze=False).flatten()
    for k, (ax, name) in enumerate(zip(axes, names, strict=False)):
        for split, values in parts.items():
            if k < len(names) - 1:
                ax.plot(values[:, k], values[:, -1], ".", color=colors[split], markersize=4, label=split)
        if k == len(names) - 1:
            samples = [values[:, k].numpy() for values in parts.values()]
            ax.hist(samples, bins=15, stacked=True, color=list(colors.values()))
        ax.set(xlabel=name, ylabel="samples" if k == len(names) - 1 else names[-1] if k % across == 0 else "")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=len(parts), markerscale=2.5, frameon=False)
    return figure


def pixels(target: Tensor, index: Mapping[str, Tensor]) -> "Figure":
    """Draw an image (H, W, 3) in [0, 1], and the pixels of each split."""
    height, width = target.shape[:2]
    figure = _new_figure(11, 0.4 + 11 / 4 * height / width)
    for ax, (name, part) in zip(figure.subplots(1, 4), {"all": None, **index}.items(), strict=True):
        shown = target.clone()
        if part is not None:
            shown.view(-1, 3).fill_(1)[part] = target.view(-1, 3)[part]
        ax.imshow(shown.numpy(), interpolation="nearest")
        count = height * width if part is None else len(part)
        ax.set(title=f"{name}, {count:,} pixels", xticks=[], yticks=[])
    return figure
