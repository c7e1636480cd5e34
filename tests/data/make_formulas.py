"""Write the reference vectors of smooth units beside this file: ``python tests/data/make_formulas.py``.

Closed formulas in mpmath with 40 digits. Gradients are derivatives of the same formulas by its high-order differences, which
leave 20 digits; nothing of the project or of torch is used. The inputs are dyadic numbers, so that single precision has the
same ones, and none of them is at a kink.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import cos, diff, erf, exp, factorial, fsum, hermite, log1p, mp, mpf, sin, sqrt

mp.dps = 40
Vectors = dict[str, Any]  # arrays, and meta
Parameters = dict[str, list[Any]]
C = 4
INPUTS = [
    *(-20, -9.5, -7.25, -6, -5.125, -4.5, -4, -3.25, -2.75, -2.5, -2, -1.625, -1.25, -1, -0.75, -0.5, -0.25),
    *(-0.125, -0.0625, -(2.0**-10), 2.0**-10, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.25, 1.5, 1.875, 2),
    *(2.5, 3, 3.25, 4, 4.75, 5.5, 8, 12),
]
SHAPE = (2, C, 5)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs in an order of no meaning, and an output gradient."""
    size = len(INPUTS)
    order = np.arange(size)
    x = np.array(INPUTS)[order * 17 % size].reshape(SHAPE)
    return x, ((order * 29 % 17 - 8) / 8).reshape(SHAPE)


def vectors(
    activation: str,
    formula: Callable[..., Any],
    parameters: Parameters | None = None,
    slope: Callable[..., Any] | None = None,
    **meta: Any,
) -> Vectors:
    """Return the vectors of y = formula(x, channel, parameters).

    Args:
        slope: function whose derivative backward takes, where that is not the formula's.
        meta: hyper-parameters.
    """
    x, g = inputs()
    values = {name: np.array(value, dtype=float) for name, value in (parameters or {}).items()}
    y, dx = np.empty(SHAPE), np.empty(SHAPE)
    gradients = {name: np.zeros(value.shape) for name, value in values.items()}
    exact = {name: [mpf(float(v)) for v in value.ravel()] for name, value in values.items()}
    sums = {name: [mpf(0)] * value.size for name, value in values.items()}
    for index in np.ndindex(SHAPE):
        at, down, channel = mpf(float(x[index])), mpf(float(g[index])), index[1]
        y[index] = formula(at, channel, exact)
        dx[index] = down * diff(lambda v, c=channel: (slope or formula)(v, c, exact), at)
        for name, numbers in exact.items():
            for i, number in enumerate(numbers):

                def of_one(v: Any, name: str = name, i: int = i, at: Any = at, c: int = channel) -> Any:
                    return formula(at, c, exact | {name: [*exact[name][:i], v, *exact[name][i + 1 :]]})

                sums[name][i] += down * diff(of_one, number)
    for name, total in sums.items():
        gradients[name] = np.array([float(t) for t in total]).reshape(values[name].shape)
    found: Vectors = {"x": x, "grad_out": g, "y": y, "grad_x": dx}
    for name, value in values.items():
        found |= {f"param__{name}": value, f"grad__{name}": gradients[name]}
    return found | {"meta": {"activation": activation, "source": "closed formula, make_formulas.py"} | meta}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + exp(-x))


def softplus(x: Any) -> Any:
    return log1p(exp(x))


def unlearned() -> Iterator[tuple[str, Vectors]]:
    yield "golu", vectors("GoLU", lambda x, c, p: x * exp(-exp(-x)))
    yield "relu_squared", vectors("ReLUSquared", lambda x, c, p: max(x, 0) ** 2)
    yield (
        "leaky_relu_squared",
        vectors("LeakyReLUSquared", lambda x, c, p: max(x, x / 4) ** 2, negative_slope=0.25),
    )
    yield "serf", vectors("Serf", lambda x, c, p: x * erf(softplus(x)))
    yield "logish", vectors("Logish", lambda x, c, p: x * log1p(sigmoid(x)))
    yield "gaussian", vectors("Gaussian", lambda x, c, p: exp(-((x / 2) ** 2)), scale=0.5)
    whole = vectors("FINER", lambda x, c, p: sin(2 * (abs(x) + 1) * x), omega=2.0, detach=False)
    yield "finer", whole
    x, g = inputs()
    held = [2 * (abs(v) + 1) * cos(2 * (abs(v) + 1) * v) for v in map(mpf, x.ravel().tolist())]
    dx = g * np.array([float(v) for v in held]).reshape(SHAPE)
    yield "finer_detached", whole | {"grad_x": dx, "meta": whole["meta"] | {"detach": True}}
    alpha = mpf(1.75)
    yield (
        "sugar",
        vectors(
            "SUGAR",
            lambda x, c, p: max(x, 0),
            slope=lambda x, c, p: (x + alpha) * sigmoid(x) - alpha / 2,
            alpha=1.75,
        ),
    )


def learned() -> Iterator[tuple[str, Vectors]]:
    yield (
        "star_relu",
        vectors(
            "StarReLU",
            lambda x, c, p: p["scale"][0] * max(x, 0) ** 2 + p["bias"][0],
            {"scale": [0.875], "bias": [-0.5]},
        ),
    )

    def xielu(x: Any, c: int, p: Any) -> Any:
        a_p, a_n = softplus(p["p"][0]), softplus(p["n"][0]) + mpf(1) / 2
        return (a_p * x * x if x > 0 else a_n * (exp(x) - 1 - x)) + x / 2

    yield "xielu", vectors("xIELU", xielu, {"p": [0.25], "n": [-1.5]})

    def smu(x: Any, c: int, p: Any) -> Any:
        return (mpf(5) / 4 * x + mpf(3) / 4 * x * erf(p["m"][0] * mpf(3) / 4 * x)) / 2

    yield "smu", vectors("SMU", smu, {"m": [1.25]}, alpha=0.25)

    def poly_relu(x: Any, c: int, p: Any) -> Any:
        return fsum(a * max(x, 0) ** (i + 1) for i, a in enumerate(p["a"])) + p["b"][0]

    yield "poly_relu", vectors("PolyReLU", poly_relu, {"a": [0.5, -0.25, 0.0625], "b": [0.125]})

    def rational(x: Any, c: int, p: Any) -> Any:
        group = c * 3 // C
        bottom = fsum(p["denominator"][3 * k + group] * x ** (k + 1) for k in range(4))
        return fsum(a * x**k for k, a in enumerate(p["numerator"])) / (1 + abs(bottom))

    coefficients = {
        "numerator": [0.125, 0.5, 0.25, 0.0625, -0.03125, 0.015625],
        "denominator": [[0.25, -0.5, 1.0], [0.5, 0.25, -0.125], [0.125, 0.0, 0.25], [0.0625, 0.125, 0.25]],
    }
    yield "group_rational", vectors("GroupRational", rational, coefficients, groups=3)

    def he(x: Any, c: int, p: Any) -> Any:
        return fsum(
            a * mpf(2) ** (-mpf(k) / 2) * hermite(k, x / sqrt(2)) / factorial(k) for k, a in enumerate(p["c"])
        )

    yield "hermite", vectors("Hermite", he, {"c": [0.5, 0.75, -0.5, 0.25, 0.125]}, degree=4)

    def fourier(x: Any, c: int, p: Any) -> Any:
        waves = zip(p["a"][1:], p["f"], p["phi"], strict=True)
        return p["a"][0] + fsum(a * cos(f * x - s) / factorial(k + 1) for k, (a, f, s) in enumerate(waves))

    series = {
        "a": [0.5, 0.75, -1.25, 2.0],
        "f": [1.0, 2.25, 3.5],
        "phi": [0.75, 0.5, -1.0],
    }
    yield "fourier", vectors("Fourier", fourier, series, degree=3)

    def staf(x: Any, c: int, p: Any) -> Any:
        return fsum(b * sin(w * x + s) for w, s, b in zip(p["w"], p["phi"], p["b"], strict=True))

    waves = {"w": [0.5, 3.0, 7.5], "phi": [-2.0, 0.25, 1.5], "b": [0.5, -0.75, 0.25]}
    yield "staf", vectors("STAF", staf, waves, tau=3)


def poly_norm() -> Vectors:
    """Every output depends on all channels at its place."""
    x, g = inputs()
    eps = mpf(2) ** -10
    values = {"a": np.array([0.5, -0.25, 0.75]), "b": np.array([0.125])}

    def outputs(row: list[Any], a: list[Any], b: Any) -> list[Any]:
        powers = [[v ** (i + 1) for v in row] for i in range(3)]
        norms = [sqrt(fsum(v * v for v in power) / C + eps) for power in powers]
        return [fsum(a[i] * powers[i][c] / norms[i] for i in range(3)) + b for c in range(C)]

    y, dx, da, db = np.empty(SHAPE), np.empty(SHAPE), [mpf(0)] * 3, mpf(0)
    a, b = [mpf(v) for v in values["a"]], mpf(values["b"][0])
    for n, position in np.ndindex(SHAPE[0], SHAPE[2]):
        row, down = ([mpf(v) for v in t[n, :, position]] for t in (x, g))
        y[n, :, position] = outputs(row, a, b)

        def loss(row: list[Any], a: list[Any], b: Any, down: list[Any] = down) -> Any:
            return fsum(d * v for d, v in zip(down, outputs(row, a, b), strict=True))

        for c in range(C):
            dx[n, c, position] = diff(
                lambda v, row=row, c=c, loss=loss: loss([*row[:c], v, *row[c + 1 :]], a, b), row[c]
            )
        for i in range(3):
            da[i] += diff(lambda v, row=row, i=i, loss=loss: loss(row, [*a[:i], v, *a[i + 1 :]], b), a[i])
        db += fsum(down)
    found: Vectors = {"x": x, "grad_out": g, "y": y, "grad_x": dx}
    found |= {f"param__{name}": value for name, value in values.items()}
    found |= {"grad__a": np.array([float(v) for v in da]), "grad__b": np.array([float(db)])}
    return found | {
        "meta": {"activation": "PolyNorm", "source": "closed formula, make_formulas.py", "eps": float(eps)}
    }


def all_vectors() -> dict[str, Vectors]:
    """Return the vectors by file name."""
    found = dict([*unlearned(), *learned(), ("poly_norm", poly_norm())])
    return {f"formula_{name}": value for name, value in found.items()}


if __name__ == "__main__":
    for name, arrays in all_vectors().items():
        meta = arrays.pop("meta") | {"shape": arrays["x"].shape, "dtype": "float64", "x_layout": "contiguous"}
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays, meta=np.array(json.dumps(meta)))
