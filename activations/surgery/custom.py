"""Recognize activations whose classes are the network's own: by name, or by what they compute."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from activations.surgery.kinds import CUSTOM_KINDS, CustomKind, kind_of, outer_modules
from activations.surgery.runs import run_in_mode
from activations.surgery.state import same_values, undisturbed

MOST_NUMBERS = 32  # per channel: enough for splines, too few for the weights of a layer


@contextmanager
def recognize_custom(
    network: nn.Module, example: Any, names: str | type | Sequence[str | type]
) -> Iterator[None]:
    """Let modules of the network's own classes count as activations: those named, and those that act as such.

    The rule: a class that derives from nn.Module alone, with at most ``MOST_NUMBERS`` numbers per channel and no child but gates,
    whose output has the shape of its one input and is a function of it element by element that is neither affine nor a
    staircase. One that leads from 0 to 1 is a gate.

    Raises:
        ValueError: a name that no module's class has.
    """
    token = CUSTOM_KINDS.set(CUSTOM_KINDS.get() | _named(network, names))
    try:
        CUSTOM_KINDS.get().update(_by_rule(network, example))
        yield
    finally:
        CUSTOM_KINDS.reset(token)


def _named(network: nn.Module, names: str | type | Sequence[str | type]) -> dict[nn.Module, CustomKind]:
    kinds: dict[nn.Module, CustomKind] = {}
    classes = {type(module).__name__ for module in network.modules()}
    for name in names if isinstance(names, Sequence) and not isinstance(names, str) else [names]:
        modules = [
            m for m in network.modules() if any(name in (cls, cls.__name__) for cls in type(m).__mro__)
        ]
        if name in (nn.Module, "Module") or not modules:
            word = name if isinstance(name, str) else getattr(name, "__name__", name)
            raise ValueError(
                f"activations={word}: the network has no module of this class; it has {', '.join(sorted(classes))}"
            )
        kinds.update(dict.fromkeys(modules, CustomKind("activation", by_rule=False)))
    return kinds


def _by_rule(network: nn.Module, example: Any) -> dict[nn.Module, CustomKind]:
    candidates = {module for module in outer_modules(network) if module is not network and _is_small(module)}
    inputs: dict[nn.Module, Tensor | None] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x: Any = args[0] if len(args) == 1 and not kwargs else None
        usable = isinstance(x, Tensor) and x.is_floating_point() and x.ndim and x.numel()
        same = usable and isinstance(out, Tensor) and out.shape == x.shape and out.dtype == x.dtype
        inputs.setdefault(module, x[:1].detach() if same else None)

    for training in (False, True):
        with ExitStack() as stack:
            for module in candidates - inputs.keys():  # Some run in training alone.
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            try:
                if candidates - inputs.keys():
                    run_in_mode(network, example, training)
            except Exception:  # The caller runs the network again, and says what is wrong.
                return {}
    kinds = {}
    with undisturbed(network), torch.no_grad():
        for module, x in inputs.items():
            try:
                kind = "" if x is None else _kind_by_values(module.eval(), x)
            except Exception:  # It cannot be run alone.
                continue
            if kind:
                kinds[module] = CustomKind(kind, by_rule=True)
    return kinds


def _is_small(module: nn.Module) -> bool:
    """Return whether a module can be an activation, as far as its class and its children tell."""
    base = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch."))
    return base is nn.Module and all(kind_of(child) == "gate" for child in module.children())


def _kind_by_values(module: nn.Module, example: Tensor) -> str:
    """Return the kind of a module that keeps shapes, by its values on random inputs like ``example``."""
    numbers = sum(x.numel() for x in (*module.parameters(), *module.buffers()))
    if numbers > MOST_NUMBERS * max(example.shape[1:], default=1):
        return ""
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, example.shape, generator=generator)
    a, b = (3 * draw().to(example) for _ in range(2))
    of_a, of_b, repeated, middle = (module(x.clone()) for x in (a, b, a, (a + b) / 2))
    mask = draw().to(example.device) > 0
    mixed = module(torch.where(mask, a, b))
    if not same_values(of_a, repeated) or not same_values(mixed, torch.where(mask, of_a, of_b)):
        return ""  # It is random, or looks at other elements.
    size = torch.maximum(of_a.abs(), of_b.abs()).max()
    if not (middle - (of_a + of_b) / 2).abs().max() > 1e-3 * size:
        return ""  # It is affine, or not finite.
    if (module(a + 0.001) == of_a).float().mean() > 0.95:
        return ""  # It is a staircase, as of a quantizer.
    low, high = (module(torch.full_like(a, x)) for x in (-30.0, 30.0))
    values = torch.stack([of_a, of_b, low, high])
    in_unit_range = values.min() >= 0 and values.max() <= 1
    return "gate" if in_unit_range and low.max() < 0.01 and high.min() > 0.99 else "activation"
