"""The group `network`: one way to build networks of one's own making and those of others."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.base import ActLayer, some

log = logging.getLogger("actbench")


def build(
    act_layer: ActLayer,
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    model: Callable[..., nn.Module],
    sites: str = "all",
    activations: str | Sequence[str] = (),
    shared: str = "call",
    weights: str | None = None,
    **hyper: Any,
) -> nn.Module:
    """A network with fresh weights whose activations are made by ``act_layer``, one for every site.

    A ``model`` that has a parameter ``act_layer`` calls it for each site. Any other is built as it is, and the
    activation takes the places of those it came with (``activations.swap``); so is the former where
    ``sites`` leaves some of its activations as they were, which is ReLU.

    Args:
        input_shape: of one sample.
        num_outputs: classes, or numbers to regress on.
        model: called with ``input_shape``, ``num_outputs`` and ``hyper``.
        sites, activations, shared: which of the sites receive the activation, which classes of the model's own are
            activations, whether blocks that run several times are served by one; see ``replace_activations``.
        weights: file with a state_dict to start from, as torch.save writes it, or None. It holds the activations' own
            parameters, if the network has been trained with them, or else does not.

    Raises:
        ValueError: hyper-parameters that the model does not take, weights that do not fit, a network or site
            that cannot be swapped.
    """
    takes_act_layer = "act_layer" in inspect.signature(model).parameters
    direct = takes_act_layer and sites == "all" and not activations and shared == "call" and weights is None
    made = {"act_layer": act_layer if direct else _relu} if takes_act_layer else {}
    try:
        network = model(**made, input_shape=input_shape, num_outputs=num_outputs, **hyper)
    except TypeError as error:
        legal = inspect.signature(model).parameters.keys() - {"act_layer", "input_shape", "num_outputs"}
        if hyper.keys() <= legal:
            raise
        unknown = ", ".join(sorted(hyper.keys() - legal))
        raise ValueError(
            f"network.{unknown}: no such hyper-parameter; {model.__name__} takes {', '.join(sorted(legal))}"
        ) from error
    path = None if weights is None else Path(str(weights)).expanduser()
    # those of a network of this kind have names for the activations' parameters, which are not there before the swap
    late = path is not None and read_weights(path).keys() > network.state_dict().keys()
    if path is not None and not late:
        load_weights(network, path, num_outputs)
    if not direct:
        from activations.surgery.runs import run_in_mode
        from activations.swap import replace_activations  # with torch.fx behind it

        # of its own generator, as the network's weights must not depend on whether there is a swap
        example = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), blaming_the_network(input_shape):
            run_in_mode(network, example, training=False)
        report = replace_activations(
            network, act_layer, sites=sites, activations=activations, shared=shared, example_input=example
        )
        log.info("activations replaced:\n%s", report)
        if kept := [row.site for row in report.rows if row.output and not row.replaced]:
            log.warning(
                "the activation of the network's output stays as it was: %s (network.sites=re:PATTERN replaces it)",
                ", ".join(kept),
            )
    if path is not None and late:
        load_weights(network, path, num_outputs)
    return network


@contextmanager
def blaming_the_network(input_shape: Sequence[int]) -> Iterator[None]:
    """What a network of somebody else's says of inputs that it cannot take, as a ValueError that says so."""
    try:
        yield
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(f"the network cannot take samples of shape {tuple(input_shape)}: {error}") from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in ``path``, without heads that help in training only: pretrained files have them.

    Raises:
        ValueError: no such file, or no state_dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"network.weights={path}: no such file") from None
    except Exception as error:  # torch has no class of its own for this
        raise ValueError(
            f"network.weights={path}: not a file of weights ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"network.weights={path}: a state_dict (names and tensors) is needed")
    return {name: value for name, value in state.items() if not name.lower().startswith("aux")}


def load_weights(network: nn.Module, path: Path, num_outputs: int) -> None:
    """Start ``network`` from the state_dict in ``path``; a classifier of another number of outputs stays fresh.

    Raises:
        ValueError: no such file, no state_dict, or names that differ.
    """
    state, own = read_weights(path), network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"network.weights={path}: weights of another network: missing {some(missing)}; unknown {some(unknown)}"
        )
    fresh = [name for name, value in state.items() if value.shape != own[name].shape]
    classifier = [name for name in fresh if own[name].shape == (num_outputs, *state[name].shape[1:])]
    if others := [name for name in fresh if name not in classifier]:
        raise ValueError(
            f"network.weights={path}: more than the number of classes differs: {some(others)} of another shape"
        )
    network.load_state_dict({name: own[name] if name in fresh else value for name, value in state.items()})
    log.info(
        "weights from %s%s", path, f"; of another shape, and so fresh: {', '.join(fresh)}" if fresh else ""
    )


def _relu(num_features: int, *, channel_dim: int = 1) -> nn.Module:
    return nn.ReLU()
