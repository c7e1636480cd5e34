"""Make sure that an activation's factory works before anything is built on it."""

import inspect
from functools import partial

from activations.base import Activation
from tasks.base import ActLayer


def checked(act_layer: partial[Activation], name: str) -> ActLayer:
    """The factory without Hydra's wrapping, after it has made one activation that is thrown away.

    Errors in hyper-parameters would otherwise surface inside the task and blame it.

    Raises:
        ValueError: hyper-parameters that the activation does not take or accept, or no activation at all.
    """
    cls, hyper = act_layer.func, act_layer.keywords
    try:
        unit = cls(8, **hyper)
    except ValueError as error:
        raise ValueError(f"activation={name}: {error}") from error
    except TypeError as error:
        known = inspect.signature(cls).parameters.values()
        legal = [p.name for p in known if p.kind is p.KEYWORD_ONLY and p.name != "channel_dim"]
        raise ValueError(
            f"activation={name}: {error}; hyper-parameters: {', '.join(legal) or 'none'}"
        ) from error
    if not isinstance(unit, Activation):
        raise ValueError(
            f"activation={name}: {type(unit).__module__}.{type(unit).__qualname__} is no subclass of "
            "activations.base.Activation"
        )
    return partial(cls, **hyper)
