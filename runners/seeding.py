"""Independent random streams from one seed, so that what an activation draws changes nothing else."""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def stream_seed(seed: int, *stream: object) -> int:
    """Return a seed for the stream named ``stream``: the same on every machine, unrelated between streams."""
    digest = hashlib.sha256("/".join(map(str, (seed, *stream))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def generator(seed: int, *stream: object) -> torch.Generator:
    """Return a fresh CPU generator for a stream."""
    return torch.Generator().manual_seed(stream_seed(seed, *stream))


def seed_everything(seed: int, *stream: object) -> None:
    """Seed the global generators of torch (all devices), numpy and random for a stream."""
    value = stream_seed(seed, *stream)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002
    random.seed(value)


def isolated(act_layer: Callable[..., nn.Module], seed: int) -> Callable[..., nn.Module]:
    """Return ``act_layer`` with a random stream of its own for each site.

    The weights that a network draws after a site do not depend on what the activation there has drawn.
    """
    sites = 0

    def build(num_features: int, **kwargs: Any) -> nn.Module:
        nonlocal sites
        site, sites = sites, sites + 1
        with torch.random.fork_rng(devices=[]):  # networks are built on the CPU
            torch.default_generator.manual_seed(stream_seed(seed, "activation", site))
            return act_layer(num_features, **kwargs)

    return build


def random_states() -> dict[str, Any]:
    """Return the states of all global generators, in types that a checkpoint may hold."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        # tensors, as hundreds of separate numbers would take longer to save than the weights
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "random": (version, torch.tensor(internal), gauss),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what ``random_states`` returned."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = states["random"]
    random.setstate((version, tuple(internal.tolist()), gauss))
