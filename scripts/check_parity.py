"""Compare the activations with reference vectors, value and gradients, in float64 and float32.

python scripts/check_parity.py tests/data
python scripts/check_parity.py tests/data --kernels reference
TRITON_INTERPRET=1 python scripts/check_parity.py tests/data --kernels triton     # or without the interpreter on a GPU

Every .npz file holds `x`, `grad_out`, `y`, `grad_x`, `param__NAME`, `grad__NAME` (gradients of sum(y * grad_out)) and
`meta`, a JSON text with activation, variant, hyper-parameters and `x_layout` (contiguous, channels_last, strided_last,
transposed01). The unit is built from these alone. Errors are relative to max(1, max|reference|); at most 1e-10 in
float64 and 5e-5 in float32.
"""

import argparse
import copy
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import _here  # noqa: F401  # before the code that it finds
import numpy as np
import torch
from torch import Tensor

import activations
from activations.base import Activation
from activations.cpab import transform
from activations.ditac import DiTAC, prior_precision
from activations.kernels import library
from activations.maxout import maxout
from activations.pwlu import PWLU
from activations.torch_private import BatchNorm

LIMITS = {torch.float64: 1e-10, torch.float32: 5e-5}
Arrays = Mapping[str, np.ndarray]
Meta = Mapping[str, Any]
# What is compared: name, ours, reference.
Pairs = Iterator[tuple[str, Tensor, np.ndarray]]

# Names in the files that differ from ours: of hyper-parameters, and of parameters and buffers.
SETTINGS = {"N": "segments", "epsilon": "eps", "k": "pieces", "tau": "temperature"}
PARAMETERS = {
    "Y": "heights",
    "Bl": "left",
    "Br": "right",
    "Kl": "slope_left",
    "Kr": "slope_right",
    "attn.weight": "attention",
}
# Arrays param__NAME that are hyper-parameters, or of which nothing depends: the softmax cancels attn.bias.
NO_PARAMETERS = {"lambdas", "init_v", "attn.bias"}


@cache
def units() -> dict[str, type[Activation]]:
    """Return the classes of all units by name in lower case: every one that a module of activations/ defines."""
    modules = [
        import_module(f"activations.{m.name}") for m in iter_modules(activations.__path__) if not m.ispkg
    ]
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Activation) and value.__module__ == module.__name__
    ]
    return {cls.__name__.lower(): cls for cls in classes} | {"silu": import_module("activations.swish").Swish}


def compare(arrays: Arrays, dtype: torch.dtype) -> Pairs:
    """Yield all that a file's unit can be compared in.

    Raises:
        ValueError: there is no such unit.
    """
    meta = json.loads(str(arrays["meta"]))
    name = str(meta["activation"]).lower().replace("-", "").replace("_", "")
    if name in SPECIAL:
        yield from SPECIAL[name](arrays, meta, dtype)
    elif name == "pwlu" and meta["variant"] == "phase1_statistics":
        yield from _pwlu_statistics(arrays, meta, dtype)
    elif name in units():
        yield from _unit(units()[name], arrays, meta, dtype)
    else:
        legal = ", ".join(sorted({*SPECIAL, *units()}))
        raise ValueError(f"meta names the activation {meta['activation']!r}; known: {legal}")


def _unit(cls: type[Activation], arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    unit = cls(
        _channels(arrays, meta), channel_dim=meta.get("channel_axis", 1), **_settings(cls, arrays, meta)
    )
    unit.train(bool(meta.get("training", True)))
    for module in unit.modules():
        if isinstance(module, BatchNorm):
            module.eps = float(meta.get("eps", 1e-5))
    unit.to(dtype)
    theirs = [key.removeprefix("param__") for key in arrays if key.startswith("param__")]
    names = {name: PARAMETERS.get(name, name.replace("bn", "norm")) for name in theirs}
    names = {name: ours for name, ours in names.items() if name not in NO_PARAMETERS}
    yield from _run(unit, names, arrays, meta, dtype)
    for key in arrays:
        if key.startswith("after__"):  # buffers after the forward pass
            yield key, unit.get_buffer(key.removeprefix("after__").replace("bn", "norm")), arrays[key]
    if "pi" in arrays:
        yield "pi", unit.spatial(_input(arrays["x"], meta, dtype)), arrays["pi"]  # type: ignore[operator]


def _settings(cls: type[Activation], arrays: Arrays, meta: Meta) -> dict[str, Any]:
    """Return the hyper-parameters of ``cls`` that a file states in its meta, or in the shapes of its parameters."""
    layer = getattr(cls, "layer", None)
    legal = inspect.signature(layer or cls).parameters.keys() - {"num_features", "channel_dim", "inplace"}
    stated = {name if name in legal else SETTINGS.get(name, name): value for name, value in meta.items()}
    trained = {key: value for key, value in arrays.items() if key.startswith("param__")}
    variant = str(meta.get("variant", ""))
    per_channel = min((value.size for value in trained.values()), default=1) > 1
    stated |= {"shared": not per_channel, "per_channel": per_channel, "trainable": bool(trained)}
    stated |= {"mode": variant, "form": variant.upper(), "minimum": 1e-300}  # the files' PELU knows no bound
    # the files' after_relu means nothing to l2
    stated["after_relu"] = bool(meta.get("after_relu")) and variant == "l1"
    stated.setdefault("approximate", "tanh" if variant == "tanh" else "none")
    if "param__lambdas" in arrays:
        scale = arrays["param__lambdas"].ravel().tolist()
        stated |= {"lambda_a": scale[0], "lambda_b": scale[len(scale) // 2]}
    if "param__init_v" in arrays:
        initial = arrays["param__init_v"].ravel().tolist()
        stated |= {"init_a": initial[: len(initial) // 2], "init_b": initial[len(initial) // 2 :]}
    if "param__fc1.weight" in arrays:
        hidden, channels = arrays["param__fc1.weight"].shape[:2]
        # So large a reduction leaves the width to min_hidden.
        stated |= {"min_hidden": hidden, "reduction": max(channels, 2 * hidden)}
    for name in ("conv", "conv1"):
        if (weight := arrays.get(f"param__{name}.weight")) is not None:
            size, dims = max(weight.shape[2:]), weight.ndim - 2
            stated |= {"kernel_size": size, "dims": dims, "light": name == "conv1"}
    return {name: stated[name] for name in legal & stated.keys()}


def _pwlu_statistics(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    steps = torch.tensor(arrays["x"], dtype=dtype)

    def make(per_channel: bool) -> PWLU:
        momentum = float(meta.get("momentum", 0.9))
        hyper: dict[str, Any] = {"segments": int(meta["N"]), "statistics": "ema", "momentum": momentum}
        return PWLU(steps.shape[2], per_channel=per_channel, **hyper).to(dtype)

    for suffix in ("", "_channel"):
        if f"ema_mean{suffix}" not in arrays:
            continue
        unit = make(per_channel=bool(suffix))
        unit.start_epoch(0, 100)
        for t, batch in enumerate(steps):
            x = batch.clone().requires_grad_()
            y = unit(x)
            if not suffix:
                y.backward(torch.tensor(arrays["grad_out"][t], dtype=dtype))
                assert x.grad is not None
                yield f"y[{t}]", y, arrays["y"][t]
                yield f"grad_x[{t}]", x.grad, arrays["grad_x"][t]
                yield f"ema_mean[{t}]", unit.mean, arrays["ema_mean"][t]
                yield f"ema_std[{t}]", unit.std, arrays["ema_std"][t]
        if suffix:
            yield f"ema_mean{suffix}", unit.mean, arrays[f"ema_mean{suffix}"]
            yield f"ema_std{suffix}", unit.std, arrays[f"ema_std{suffix}"]
    for kind in ("ema", "pooled"):
        if f"realigned_{kind}__Bl" not in arrays:
            continue
        unit = make(per_channel=False)
        unit.batches.fill_(1)
        unit.mean.fill_(float(arrays[f"{kind}_mean"].ravel()[-1]))
        unit.std.fill_(float(arrays[f"{kind}_std"].ravel()[-1]))
        unit.realign()
        for name, ours in (("Bl", unit.left), ("Br", unit.right), ("Y", unit.heights)):
            yield f"realigned_{kind} {name}", ours, arrays[f"realigned_{kind}__{name}"]


def _knots(basis: np.ndarray) -> Tensor:
    """(N + 1, d) knot velocities from a (2 N, d) basis of slopes and intercepts on [0, 1]."""
    slope, intercept = torch.tensor(basis[0::2]), torch.tensor(basis[1::2])
    cells = len(slope)
    left = slope * (torch.arange(cells, dtype=slope.dtype)[:, None] / cells) + intercept
    return torch.cat([left, slope[-1:] + intercept[-1:]])


def _cpab(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    basis = _knots(arrays["B"]).to(dtype)
    theta = torch.tensor(arrays["param__theta"], dtype=dtype).flatten().requires_grad_()
    time = float(meta.get("time", 1.0))  # for t instead of 1 the flow is t times as fast
    knots = basis @ theta
    knots.retain_grad()
    x = torch.tensor(arrays["x"], dtype=dtype).requires_grad_()
    y = transform(x, time * knots)
    y.backward(torch.tensor(arrays["grad_out"], dtype=dtype))
    found = {"y": y, "grad_x": x.grad, "grad__theta": theta.grad, "grad__knot_velocity": knots.grad}

    fixed = knots.detach()
    (found["dT_dx"],) = torch.autograd.grad(transform(x, time * fixed).sum(), x)
    points, jacobian = x.detach(), torch.autograd.functional.jacobian
    found["dT_dtheta"] = jacobian(lambda v: transform(points, time * (basis @ v)), theta.detach())
    found["dT_dknot"] = jacobian(lambda v: transform(points, time * v), fixed)
    if "x_outside" in arrays:
        outside = torch.tensor(arrays["x_outside"], dtype=dtype).requires_grad_()
        beyond = transform(outside, time * fixed)
        (found["dT_dx_outside"],) = torch.autograd.grad(beyond.sum(), outside)
        found["y_outside"] = beyond
    for key, value in found.items():
        if key in arrays and value is not None:
            yield key, value, arrays[key]


def _ditac(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    given = ("lambda_smooth", "lambda_var", "gelu_of", "negative_slope")
    hyper = {name: meta[name] for name in given if name in meta}
    form = str(meta.get("variant", "gelu")).lower()
    hyper |= {"form": form, "a": float(meta["a"]), "b": float(meta["b"]), "cells": int(meta["tess"])}
    hyper |= {"zero_boundary": bool(meta.get("zero_boundary", True))}
    hyper |= {"lambda_reg": float(meta.get("lambda_reg_loss", 0.1))}
    kinds: list[tuple[str, dict[str, Any]]] = [("", {"table_size": None})]
    if "y_quantised" in arrays:
        size = int(meta.get("lookup_steps", 2048))
        kinds.append(("_quantised", {"table_size": size, "interpolation": "nearest"}))
    for suffix, table in kinds:
        unit = DiTAC(_channels(arrays, meta), **hyper, **table).to(dtype)
        basis = _knots(arrays["B"])
        unit.basis.copy_(basis)
        yield from _run(unit, {"theta": "theta"}, arrays, meta, dtype, suffix)
        if "reg_value" in arrays and not suffix:
            unit.precision.copy_(prior_precision(basis, meta["lambda_smooth"], meta["lambda_var"]))
            reg = unit.regularization()
            assert isinstance(reg, Tensor)
            (gradient,) = torch.autograd.grad(reg, unit.theta)
            reference = arrays["reg_value"] * float(meta.get("lambda_reg_loss", 0.1))
            yield "regularization", reg, reference
            yield "its gradient", gradient, arrays["reg_grad_math"]


def _maxout(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    x = _input(arrays["x"], meta, dtype).requires_grad_()
    y = maxout(x, int(meta["k"]), str(meta["variant"]))
    y.backward(torch.tensor(arrays["grad_out"], dtype=dtype))
    assert x.grad is not None
    yield "y", y, arrays["y"]
    yield "grad_x", x.grad, arrays["grad_x"]


# What is no unit, or is compared in more than a unit's output and gradients.
SPECIAL: dict[str, Callable[[Arrays, Meta, torch.dtype], Pairs]] = {
    "cpab": _cpab,
    "ditac": _ditac,
    "maxout": _maxout,
}


def _run(
    unit: Activation,
    names: Mapping[str, str],
    arrays: Arrays,
    meta: Meta,
    dtype: torch.dtype,
    suffix: str = "",
) -> Pairs:
    """Forward and backward with the file's parameters; ``names``: the file's name of each to ours, or to a view of one."""
    with torch.no_grad():
        for theirs, ours in names.items():
            value = attrgetter(ours)(unit)
            value.copy_(torch.tensor(arrays[f"param__{theirs}"]).reshape(value.shape))
    x = _input(arrays["x"], meta, dtype).requires_grad_()
    y = unit(x)
    y.backward(torch.tensor(arrays["grad_out"], dtype=dtype).view_as(y))
    assert x.grad is not None
    yield f"y{suffix}", y, arrays[f"y{suffix}"]
    yield f"grad_x{suffix}", x.grad, arrays[f"grad_x{suffix}"]
    gradients = copy.deepcopy(unit)
    for name, parameter in unit.named_parameters():
        if parameter.grad is None:
            raise ValueError(f"{name} got no gradient")
        gradients.get_parameter(name).data = parameter.grad
    for theirs, ours in names.items():
        key = f"grad__{theirs}{suffix}"
        if key in arrays:
            yield key, attrgetter(ours)(gradients), arrays[key]


def _channels(arrays: Arrays, meta: Meta) -> int:
    return int(arrays["x"].shape[meta.get("channel_axis", 1)]) if arrays["x"].ndim > 1 else 1


def _input(x: np.ndarray, meta: Meta, dtype: torch.dtype) -> Tensor:
    """x in the layout that the reference was run with; (P,) as (P, 1), one channel."""
    tensor, layout = torch.tensor(x, dtype=dtype), meta.get("x_layout", "contiguous")
    if tensor.ndim == 1:
        return tensor[:, None]
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed01":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "strided_last":
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout != "contiguous":
        raise ValueError(
            f"x_layout={layout}: must be one of contiguous, channels_last, strided_last, transposed01"
        )
    return tensor


def check_file(path: Path) -> tuple[bool, str]:
    """Return whether all is within the limits, and a line that says how far off it is."""
    try:
        with np.load(path) as file:
            return check(dict(file))
    except Exception as error:  # whatever a file holds, the others are checked
        return False, f"{type(error).__name__}: {error}"


def check(arrays: Arrays) -> tuple[bool, str]:
    """Return the same for what a file holds."""
    parts, good = [], True
    for dtype, limit in LIMITS.items():
        errors = {name: relative_error(ours, theirs) for name, ours, theirs in compare(arrays, dtype)}
        good &= all(error <= limit for error in errors.values())  # a NaN is no pass
        shown = " ".join(f"{name.removeprefix('grad__')} {error:.0e}" for name, error in errors.items())
        parts.append(f"{str(dtype).removeprefix('torch.')}: {shown}")
    return good, " | ".join(parts)


def relative_error(ours: Tensor, reference: np.ndarray) -> float:
    """max|ours - reference| / max(1, max|reference|); NaN must meet NaN, and an infinity its like."""
    target = torch.as_tensor(reference, dtype=torch.float64)
    value = ours.detach().double()
    if value.numel() != target.numel():
        raise ValueError(f"shape {tuple(value.shape)} for a reference of {tuple(target.shape)}")
    value = value.reshape(target.shape)
    same = (value == target) | (value.isnan() & target.isnan())
    scale = (
        target[target.isfinite()].abs().max().clamp_min(1) if target.isfinite().any() else target.new_ones(())
    )
    difference = (value - target).abs().masked_fill(same, 0)
    return float(difference.max() / scale) if difference.numel() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernels", choices=library.MODES, default="auto")
    given = parser.parse_args()
    folder = given.folder
    files = sorted(folder.glob("*.npz"))
    if not files:
        sys.exit(f"check_parity: no .npz files in {folder}")
    passed = 0
    for path in files:
        with library.using(given.kernels):
            good, line = check_file(path)
        passed += good
        print(f"{'ok  ' if good else 'FAIL'} {path.name}: {line}", flush=True)
    print(f"{passed} passed, {len(files) - passed} failed")
    sys.exit(passed < len(files))


if __name__ == "__main__":
    main()
