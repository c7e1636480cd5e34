"""Compare the activations with reference vectors, value and gradients, in float64 and float32.

python scripts/check_parity.py tests/data

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
from operator import attrgetter
from pathlib import Path
from typing import Any

import _here  # noqa: F401  # before the code that it finds
import numpy as np
import torch
from torch import Tensor, nn

from activations import torch_nn
from activations.acon import ACONC
from activations.apl import APL
from activations.base import Activation
from activations.cpab import transform
from activations.ditac import DiTAC, prior_precision
from activations.dyrelu import DyReLU
from activations.frelu import FReLU
from activations.gct import GCT
from activations.maxout import maxout
from activations.npwlu import NPWLU
from activations.pau import PAU
from activations.pelu import PELU
from activations.prelu import PReLU
from activations.pwlu import PWLU
from activations.sine import Sine
from activations.snake import Snake
from activations.srelu import SReLU
from activations.swish import Swish
from activations.tanh_exp import TanhExp

LIMITS = {torch.float64: 1e-10, torch.float32: 5e-5}
Arrays = Mapping[str, np.ndarray]
Meta = Mapping[str, Any]
# what is compared: name, ours, reference
Pairs = Iterator[tuple[str, Tensor, np.ndarray]]

TORCH_NN = torch_nn.TorchActivation.__subclasses__()
# units whose parameters have the names of the files', and whose constructors take hyper-parameters by meta's names
PLAIN: dict[str, type[Activation]] = {
    cls.__name__.lower(): cls
    for cls in (ACONC, APL, NPWLU, PAU, PELU, PReLU, SReLU, Sine, Snake, Swish, TanhExp, *TORCH_NN)
} | {"silu": Swish}


def compare(arrays: Arrays, dtype: torch.dtype) -> Pairs:
    """All that a file's unit can be compared in; ValueError if there is no such unit."""
    meta = json.loads(str(arrays["meta"]))
    name = str(meta["activation"]).lower().replace("-", "").replace("_", "")
    if name in SPECIAL:
        yield from SPECIAL[name](arrays, meta, dtype)
    elif name in PLAIN:
        yield from _plain(PLAIN[name], arrays, meta, dtype)
    else:
        legal = ", ".join(sorted({*SPECIAL, *PLAIN}))
        raise ValueError(f"meta names the activation {meta['activation']!r}; known: {legal}")


def _plain(cls: type[Activation], arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    hyper: dict[str, Any] = {}
    known = inspect.signature(cls).parameters
    layer = getattr(cls, "layer", None)
    if layer is not None:
        known = inspect.signature(layer).parameters
    hyper |= {
        key: meta[key] for key in known.keys() & meta.keys() - {"num_features", "channel_dim", "inplace"}
    }
    if cls is torch_nn.GELU and "approximate" not in meta:
        hyper["approximate"] = "tanh" if meta.get("variant") == "tanh" else "none"
    trained = {key: arrays[key] for key in arrays if key.startswith("param__")}
    channels = max((value.size for value in trained.values()), default=1) > 1
    if "minimum" in known:
        hyper["minimum"] = 1e-300  # the files' PELU knows no bound
    if "shared" in known:
        hyper["shared"] = not channels
    if "trainable" in known:
        hyper |= {"trainable": bool(trained), "per_channel": channels}
    unit = cls(_channels(arrays, meta), channel_dim=meta.get("channel_axis", 1), **hyper)
    names = {key.removeprefix("param__"): key.removeprefix("param__") for key in trained}
    yield from _run(unit.to(dtype), names, arrays, meta, dtype)


def _dyrelu(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    k, channels = int(meta["k"]), _channels(arrays, meta)
    hyper: dict[str, Any] = {}
    if "param__lambdas" in arrays:
        scale = arrays["param__lambdas"].ravel().tolist()
        hyper |= {"lambda_a": scale[0], "lambda_b": scale[k]}
    if "param__init_v" in arrays:
        initial = arrays["param__init_v"].ravel().tolist()
        hyper |= {"init_a": initial[:k], "init_b": initial[k:]}
    hidden = len(arrays["param__fc1.weight"])
    unit = DyReLU(
        channels,
        form=str(meta["variant"]).upper(),
        pieces=k,
        reduction=max(channels, 2 * hidden),  # leaves the width to min_hidden
        min_hidden=hidden,
        temperature=float(meta.get("tau", 10.0)),
        **hyper,
    )
    names = {name: name for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    if unit.form == "C":
        names["attn.weight"] = "attention"  # attn.bias cancels in the softmax
    yield from _run(unit.to(dtype), names, arrays, meta, dtype)
    if "pi" in arrays:
        yield "pi", unit.spatial(_input(arrays["x"], meta, dtype)), arrays["pi"]


def _gct(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    eps, after_relu = float(meta.get("epsilon", meta.get("eps", 1e-5))), bool(meta.get("after_relu"))
    # their after_relu means nothing to l2
    unit = GCT(
        _channels(arrays, meta),
        mode=meta["variant"],
        after_relu=after_relu and meta["variant"] == "l1",
        eps=eps,
    )
    yield from _run(unit.to(dtype), {name: name for name in ("alpha", "gamma", "beta")}, arrays, meta, dtype)


def _frelu(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    light = "param__conv1.weight" in arrays
    weight = arrays["param__conv1.weight" if light else "param__conv.weight"]
    unit = FReLU(
        _channels(arrays, meta), kernel_size=max(weight.shape[2:]), light=light, dims=weight.ndim - 2
    )
    unit.train(bool(meta.get("training", True)))
    for module in unit.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = float(meta.get("eps", 1e-5))
    names = {key.removeprefix("param__"): key.removeprefix("param__").replace("bn", "norm") for key in arrays}
    names = {name: ours for name, ours in names.items() if f"param__{name}" in arrays}
    yield from _run(unit.to(dtype), names, arrays, meta, dtype)
    for key in arrays:
        if key.startswith("after__"):
            yield key, unit.get_buffer(key.removeprefix("after__").replace("bn", "norm")), arrays[key]


def _pwlu(arrays: Arrays, meta: Meta, dtype: torch.dtype) -> Pairs:
    if meta["variant"] == "phase1_statistics":
        yield from _pwlu_statistics(arrays, meta, dtype)
        return
    channel_wise = meta["variant"] == "channel"
    axis = int(meta.get("channel_axis", 1))
    unit = PWLU(_channels(arrays, meta), channel_dim=axis, segments=int(meta["N"]), per_channel=channel_wise)
    names = {"Y": "heights", "Bl": "left", "Br": "right", "Kl": "slope_left", "Kr": "slope_right"}
    yield from _run(unit.to(dtype), names, arrays, meta, dtype)


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


SPECIAL: dict[str, Callable[[Arrays, Meta, torch.dtype], Pairs]] = {
    "cpab": _cpab,
    "ditac": _ditac,
    "dyrelu": _dyrelu,
    "frelu": _frelu,
    "gct": _gct,
    "maxout": _maxout,
    "pwlu": _pwlu,
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
            f"x_layout={layout}: legal are contiguous, channels_last, strided_last, transposed01"
        )
    return tensor


def check_file(path: Path) -> tuple[bool, str]:
    """Whether all is within the limits, and a line that says how far off it is."""
    parts, good = [], True
    try:
        with np.load(path) as file:
            arrays = dict(file)
        for dtype, limit in LIMITS.items():
            errors: dict[str, float] = {}
            for name, ours, reference in compare(arrays, dtype):
                errors[name] = relative_error(ours, reference)
            good &= all(error <= limit for error in errors.values())  # a NaN is no pass
            shown = " ".join(f"{name.removeprefix('grad__')} {error:.0e}" for name, error in errors.items())
            parts.append(f"{str(dtype).removeprefix('torch.')}: {shown}")
    except Exception as error:  # whatever a file holds, the others are checked
        return False, f"{type(error).__name__}: {error}"
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
    folder = parser.parse_args().folder
    files = sorted(folder.glob("*.npz"))
    if not files:
        sys.exit(f"check_parity: no .npz files in {folder}")
    passed = 0
    for path in files:
        good, line = check_file(path)
        passed += good
        print(f"{'ok  ' if good else 'FAIL'} {path.name}: {line}", flush=True)
    print(f"{passed} passed, {len(files) - passed} failed")
    sys.exit(passed < len(files))


if __name__ == "__main__":
    main()
