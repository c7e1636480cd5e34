"""Write the reference vectors at kinks, knots, ties and limits beside this file: ``python tests/data/make_kinks.py``.

Closed formulas in numpy, values and gradients by hand; nothing of the project or of torch is used. The inputs are dyadic
numbers, so that single precision meets every kink exactly as well, and zeros of both signs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Vectors = dict[str, Any]  # arrays, and meta
C = 4
SHAPE = (2, C, 5, 8)


def across(p: Array) -> Array:
    """(C,) along the channels of (N, C, H, W)."""
    return p.reshape(1, -1, 1, 1)


def per_channel(terms: Array) -> Array:
    return terms.sum((0, 2, 3))


def inputs(kinks: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> tuple[Array, Array]:
    """Kinks, numbers at both sides of each and zeros of both signs, in an order of no meaning; an output gradient."""
    values = [0.0, -0.0, *(k + d for k in kinks for d in (0.0, 0.0, -0.25, 0.375)), -4.0, 5.5]
    size = int(np.prod(shape))
    x = np.resize(np.array(values), size)[np.arange(size) * 37 % size].reshape(shape)
    g = (np.arange(size) * 29 % 17 - 8).reshape(shape) / 8
    return x, g


def vectors(
    activation: str, x: Array, g: Array, y: Array, dx: Array, parameters: Vectors, **meta: Any
) -> Vectors:
    """``parameters``: name to value and gradient."""
    found = {"x": x, "grad_out": g, "y": y, "grad_x": dx}
    for name, (value, gradient) in parameters.items():
        found |= {f"param__{name}": value}
        if gradient is not None:
            found |= {f"grad__{name}": gradient}
    return found | {"meta": {"activation": activation, "source": "closed formula, make_kinks.py"} | meta}


def slopes_at_zero() -> Iterator[tuple[str, Vectors]]:
    x, g = inputs((0.0, 1.0))
    yield "relu", vectors("ReLU", x, g, np.maximum(x, 0), g * (x > 0), {})
    y, dx = np.where(x > 0, x, 0.25 * x), g * np.where(x > 0, 1, 0.25)
    yield "leaky_relu", vectors("LeakyReLU", x, g, y, dx, {}, negative_slope=0.25)
    a = np.array([0.25, -0.5, 0.0, 2.0])
    y, dx = np.where(x > 0, x, across(a) * x), g * np.where(x > 0, 1, across(a))
    yield "prelu", vectors("PReLU", x, g, y, dx, {"weight": (a, per_channel(g * np.minimum(x, 0)))})


def pelu() -> Vectors:
    x, g = inputs((0.0,))
    a, b = np.array([1.0, 0.5, 2.0, 0.25]), np.array([1.0, 2.0, 0.5, 1.0])
    A, B, low = across(a), across(b), np.minimum(x, 0)
    y = np.where(x >= 0, A / B * x, A * np.expm1(low / B))
    dx = g * A / B * np.exp(low / B)  # the same from both sides of 0
    da = np.where(x >= 0, x / B, np.expm1(low / B))
    db = -A / B**2 * x * np.exp(low / B)
    return vectors("PELU", x, g, y, dx, {"a": (a, per_channel(g * da)), "b": (b, per_channel(g * db))})


def srelu() -> Vectors:
    """The last channel's thresholds are crossed: the right piece wins."""
    x, g = inputs((-1.0, 0.0, 1.5))
    tl, al = np.array([-1.0, 0.0, -1.0, 1.5]), np.array([0.25, 0.5, -0.5, 2.0])
    tr, ar = np.array([1.5, 0.0, 1.5, -1.0]), np.array([0.5, 2.0, 0.0, 0.25])
    TL, AL, TR, AR = (across(p) for p in (tl, al, tr, ar))
    right = x >= TR
    left = (x <= TL) & ~right
    y = np.where(right, TR + AR * (x - TR), np.where(left, TL + AL * (x - TL), x))
    parameters = {
        "t_left": (tl, per_channel(g * left * (1 - AL))),
        "a_left": (al, per_channel(g * left * (x - TL))),
        "t_right": (tr, per_channel(g * right * (1 - AR))),
        "a_right": (ar, per_channel(g * right * (x - TR))),
    }
    return vectors("SReLU", x, g, y, g * np.where(right, AR, np.where(left, AL, 1)), parameters)


def apl() -> Vectors:
    """ReLU's slope at 0, and that of each hinge at its own 0, is 0."""
    x, g = inputs((-1.0, 0.0, 0.5))
    a = np.array([[0.5, -0.25, 1.0, 2.0], [-0.5, 0.75, 0.0, -1.0]])
    b = np.array([[0.5, 0.0, -1.0, 0.0], [-1.0, 0.0, 0.5, 0.5]])
    y, slope, da, db = np.maximum(x, 0), (x > 0) * 1.0, [], []
    for A, B in zip(a, b, strict=True):
        hinge = across(B) - x
        y, slope = y + across(A) * np.maximum(hinge, 0), slope - across(A) * (hinge > 0)
        da.append(per_channel(g * np.maximum(hinge, 0)))
        db.append(per_channel(g * across(A) * (hinge > 0)))
    return vectors("APL", x, g, y, g * slope, {"a": (a, np.array(da)), "b": (b, np.array(db))}, hinges=2)


def pwlu() -> Vectors:
    """The piece to the right of each of the knots -2, -1, 0, 1, 2."""
    x, g = inputs((-2.0, -1.0, 0.0, 1.0, 2.0))
    heights, left, right = np.array([0.5, -0.25, 0.0, 1.5, 1.0]), -2.0, 2.0
    slope_left, slope_right = -0.75, 1.25
    n, d = 4, (right - left) / 4
    below, above = x < left, x >= right
    i = np.clip(np.floor((x - left) / d), 0, n - 1).astype(int)
    inside, share = ~below & ~above, (x - left) / d - i
    steep = np.diff(heights)[i] / d
    slope = np.where(below, slope_left, np.where(above, slope_right, steep))
    y = np.where(inside, heights[i] + share * np.diff(heights)[i], 0)
    y = y + below * (heights[0] + slope_left * (x - left)) + above * (heights[n] + slope_right * (x - right))
    dheights = np.array(
        [(g * inside * ((i == k) * (1 - share) + (i == k - 1) * share)).sum() for k in range(n + 1)]
    )
    dheights[0] += (g * below).sum()
    dheights[n] += (g * above).sum()
    # inside, y = Y_i + (share of (x - left) / d) with d = (right - left) / n
    place = (x - left) / (right - left)
    dleft = (-g * inside * steep * (1 - place)).sum() - slope_left * (g * below).sum()
    dright = (-g * inside * steep * place).sum() - slope_right * (g * above).sum()
    parameters = {
        "Y": (heights, dheights),
        "Bl": (np.array(left), dleft),
        "Br": (np.array(right), dright),
        "Kl": (np.array(slope_left), (g * below * (x - left)).sum()),
        "Kr": (np.array(slope_right), (g * above * (x - right)).sum()),
    }
    return vectors("PWLU", x, g, y, g * slope, parameters, variant="layer", N=n)


def npwlu() -> Vectors:
    """Knots -1, 0, 1, 2, the piece to the right of each."""
    x, g = inputs((-1.0, 0.0, 1.0, 2.0))
    slopes, knots, height = np.array([0.25, -0.5, 1.0, 0.5, 2.0]), np.arange(-1.0, 3.0), 0.75
    heights = height + np.concatenate([[0], np.cumsum(slopes[1:-1])])
    piece = (x[..., None] >= knots).sum(-1)
    anchor = np.maximum(piece - 1, 0)
    slope, beyond = slopes[piece], x - knots[anchor]
    y = heights[anchor] + slope * beyond
    dslopes = np.array([(g * (piece == k) * beyond).sum() for k in range(5)])
    dslopes[1:4] += [(g * (anchor > k)).sum() for k in range(3)]  # widths are 1
    # a width moves all knots after it and lifts all heights after it
    dwidths = np.array([(g * (anchor > k) * (slopes[k + 1] - slope)).sum() for k in range(3)])
    parameters = {
        "left": (np.array([-1.0]), np.array([-(g * slope).sum()])),
        "height": (np.array([height]), np.array([g.sum()])),
        "log_widths": (np.zeros((1, 3)), dwidths[None]),
        "slopes": (slopes[None], dslopes[None]),
    }
    return vectors("N-PWLU", x, g, y, g * slope, parameters, intervals=3)


def snake() -> Vectors:
    """a = 0, where y = x, dy/dx = 1 and dy/da = x^2, and a near it, by sin(z) / z with z = a x."""
    x, g = inputs((-2.0, 0.5, 1.0))
    a = np.array([0.0, 2.0**-100, -(2.0**-40), 2.0**-12])
    z = across(a) * x
    sinc = np.sinc(z / np.pi)
    y, dx = x + x * np.sin(z) * sinc, g * (1 + np.sin(2 * z))
    return vectors("Snake", x, g, y, dx, {"a": (a, per_channel(g * x**2 * sinc * (2 * np.cos(z) - sinc)))})


def maxima(lines: list[Array]) -> tuple[Array, list[Array]]:
    """Their maximum, and each one's share of the gradient: a maximum of two splits it at a tie, one after the other."""
    top, shares = lines[0], [np.ones_like(lines[0])]
    for line in lines[1:]:
        mine = np.where(line > top, 1.0, np.where(line == top, 0.5, 0.0))
        shares = [share * (1 - mine) for share in shares] + [mine]
        top = np.maximum(top, line)
    return top, shares


def maxout() -> Vectors:
    x, g = inputs((-1.0, 0.0, 1.0), (2, 6, 5, 8))
    x[:, 0::3] = x[:, 1::3]  # ties of two
    x[:, 2::3, :, :4] = x[:, 1::3, :, :4]  # and of three
    g = g[:, :2]
    y, shares = maxima([x[:, k::3] for k in range(3)])
    dx = np.empty_like(x)
    for k, share in enumerate(shares):
        dx[:, k::3] = g * share
    return vectors("Maxout", x, g, y, dx, {}, variant="consecutive", k=3)


def dyrelu(initial: list[float], variant: str) -> Vectors:
    """fc2 is zero, so that the coefficients are the initial ones and only fc2 has a gradient; B, or C with its map.

    In C two of six positions have all of the softmax, and 6 / 3 of a half is the bound 1, where the gradient ends.
    """
    shape = (2, C, 5, 8) if variant == "B" else (2, C, 2, 3)
    x, g = inputs((-1.0, 0.0, 1.0), shape)
    attention, temperature = np.array([1.0, 0.0, 0.0, 0.0]), 10.0
    if variant == "C":
        x[:, 0] = np.array([[16384.0, 0.0, -0.0], [1.0, 16384.0, -1.0]])
        g[:, 0] = g[:, 0] / 16384
    k = len(initial) // 2
    most, shares = maxima([a * x + b for a, b in zip(initial[:k], initial[k:], strict=True)])
    pi = np.ones((2, 1, *shape[2:]))
    down = g
    if variant == "C":
        z = (x * across(attention)).sum(1, keepdims=True) / temperature
        e = np.exp(z - z.max((2, 3), keepdims=True))
        softmax = e / e.sum((2, 3), keepdims=True)
        pi = np.minimum(2 * softmax, 1)
        dpi = (g * most).sum(1, keepdims=True) * (2 * softmax < 1) * 2
        dz = softmax * (dpi - (dpi * softmax).sum((2, 3), keepdims=True)) / temperature
        down = g * pi
    dx = sum(down * share * a for share, a in zip(shares, initial[:k], strict=True))
    if variant == "C":
        dx = dx + dz * across(attention)
    hidden = np.array([0.5, 0.0])  # relu of fc1's biases, as its weight is zero
    lambdas = np.array([1.0] * k + [0.5] * k)
    terms = [(down * share * x).sum((2, 3)) for share in shares] + [
        (down * share).sum((2, 3)) for share in shares
    ]
    dfc2 = np.stack(terms, -1) * lambdas / 2  # (N, C, 2 k); 2 sigmoid' is 1 / 2
    dfc2 = dfc2.sum(0).reshape(-1)
    outputs = 2 * k * C
    parameters = {
        "fc1.weight": (np.zeros((2, C)), np.zeros((2, C))),
        "fc1.bias": (np.array([0.5, -0.0]), np.zeros(2)),
        "fc2.weight": (np.zeros((outputs, 2)), dfc2[:, None] * hidden),
        "fc2.bias": (np.zeros(outputs), dfc2),
        "lambdas": (lambdas, None),
        "init_v": (np.array(initial), None),
    }
    if variant == "C":
        parameters["attn.weight"] = attention.reshape(1, C, 1, 1), (dz * x).sum((0, 2, 3)).reshape(1, C, 1, 1)
    return vectors("DyReLU", x, g, most * pi, dx, parameters, variant=variant, k=k, tau=temperature)


def gct() -> Vectors:
    """l1: the slope of |x| at 0 is 0, and so is that of |alpha sum| at alpha = 0 in the mean."""
    x, g = inputs((-1.0, 0.0, 1.0))
    alpha, gamma = np.array([0.0, 1.0, -0.5, 2.0]), np.array([0.5, 1.0, -1.0, 0.25])
    beta, eps = np.array([0.0, 0.25, -0.25, 0.5]), 2.0**-16
    norm = np.abs(x).sum((2, 3))  # (N, C)
    s = alpha * norm
    size = np.abs(s).mean(1, keepdims=True) + eps
    turn = np.tanh(gamma * s / size + beta)
    dturn = (g * x).sum((2, 3)) * (1 - turn**2)
    dsize = -(dturn * gamma * s).sum(1, keepdims=True) / size**2
    ds = dturn * gamma / size + dsize * np.sign(s) / C
    dx = g * (1 + turn)[..., None, None] + (ds * alpha)[..., None, None] * np.sign(x)
    parameters = {
        "alpha": (alpha, (ds * norm).sum(0)),
        "gamma": (gamma, (dturn * s / size).sum(0)),
        "beta": (beta, dturn.sum(0)),
    }
    return vectors("GCT", x, g, x * (1 + turn)[..., None, None], dx, parameters, variant="l1", epsilon=eps)


def frelu() -> Vectors:
    """gamma = 0 makes T = beta, which ties with x where that is beta: half of the gradient goes to either."""
    x, g = inputs((-0.5, 0.0, 1.0))
    gamma, beta = np.zeros(C), np.array([-0.5, 0.0, 1.0, 0.0])
    bias, mean, var, eps = (
        np.array([0.5, 0.0, -1.0, 0.25]),
        np.array([0.0, 0.5, 0.25, 0.25]),
        np.ones(C),
        1e-5,
    )
    top, (of_x, of_top) = maxima([x, np.broadcast_to(across(beta), x.shape)])
    normal = (bias - mean) / np.sqrt(var + eps)  # the convolution's weights are zero
    parameters = {
        "conv.weight": (np.zeros((C, 1, 3, 3)), np.zeros((C, 1, 3, 3))),
        "conv.bias": (bias, np.zeros(C)),
        "bn.weight": (gamma, per_channel(g * of_top) * normal),
        "bn.bias": (beta, per_channel(g * of_top)),
        "bn.running_mean": (mean, None),
        "bn.running_var": (var, None),
    }
    return vectors("FReLU", x, g, top, g * of_x, parameters, training=False, eps=eps)


def ditac(form: str) -> Vectors:
    """theta = 0: T is the identity on [a, b], and dT / dtheta the velocity there; a and b belong to T."""
    a, b, cells, slope = 0.0, 3.0, 4, 0.25
    x, g = inputs((a, 0.75, 1.5, b))
    if form == "ge":  # below a it is GELU, which numpy has no error function for
        x = np.where(x < a, a, x)
    inside = (x >= a) & (x <= b)
    knots = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 1, 4], [0, 0, 0]]) / 4  # velocities by theta
    steep = np.diff(knots, axis=0) * cells
    pairs = np.stack([steep, knots[:-1] - steep * np.arange(cells)[:, None] / cells], 1).reshape(2 * cells, 3)
    place = (x - a) / (b - a)
    dtheta = [
        (b - a) * (g * inside * np.interp(place, np.arange(cells + 1) / cells, v)).sum() for v in knots.T
    ]
    left = np.where(inside | (x > 0), 1.0, slope)
    meta = {"variant": form, "a": a, "b": b, "tess": cells, "negative_slope": slope}
    parameters = {"theta": (np.zeros(3), np.array(dtheta))}
    return vectors("DiTAC", x, g, left * x, g * left, parameters, **meta) | {"B": pairs}


def all_vectors() -> dict[str, Vectors]:
    """By file name."""
    found = dict(slopes_at_zero())
    found |= {
        "pelu": pelu(),
        "srelu": srelu(),
        "apl": apl(),
        "pwlu": pwlu(),
        "npwlu": npwlu(),
        "snake": snake(),
    }
    found |= {"maxout": maxout(), "gct_l1": gct(), "frelu": frelu()}
    found |= {"ditac_ge": ditac("ge"), "ditac_leaky": ditac("leaky")}
    found |= {
        "dyrelu": dyrelu([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "B"),
        "dyrelu_c": dyrelu([1.0, 0.0, 0.0, 0.0], "C"),
    }
    return {f"kinks_{name}": value for name, value in found.items()}


if __name__ == "__main__":
    for name, arrays in all_vectors().items():
        meta = arrays.pop("meta") | {"shape": arrays["x"].shape, "dtype": "float64", "x_layout": "contiguous"}
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays, meta=np.array(json.dumps(meta)))
