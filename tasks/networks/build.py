"""The group ``network``: build networks, ours and those of other libraries, with an activation at their sites."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from activations.base import Activation
from activations.checks import check_number
from activations.torch_private import ConvNd
from tasks.base import ActLayer, summarize

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
    gain: float = 1.0,
    weights: str | None = None,
    **hyper: Any,
) -> nn.Module:
    """Return a network with fresh weights whose activations are made by ``act_layer``, one for every site.

    A ``model`` with a parameter ``act_layer`` calls it for each site. In any other network, and where ``sites`` selects
    some sites only, the activations are replaced after it is built (``activations.swap``); a ``model`` with a parameter
    ``act_layer`` then has ReLU at the other sites.

    Args:
        act_layer: called once for every site.
        input_shape: of one sample.
        num_outputs: number of classes, or of numbers to regress on.
        model: called with ``input_shape``, ``num_outputs`` and ``hyper``.
        sites, activations, shared: which of the sites receive the activation, which classes of the model count as
            activations, whether blocks that run several times share one; see ``replace_activations``.
        gain: factor > 0 on the initial weights of all linear layers and convolutions but the last. The networks'
            own initial weights have ReLU's gain, whatever the activation. Behind a normalization layer it changes no
            output, only the size of the relative updates.
        weights: file with a state_dict to start from, as torch.save writes it, or None. If the network was trained with
            these activations, it contains their parameters.

    Raises:
        ValueError: hyper-parameters that the model does not take, weights that do not fit, a network or site
            that cannot be swapped.
    """
    takes_act_layer = "act_layer" in inspect.signature(model).parameters
    direct = takes_act_layer and sites == "all" and not activations and shared == "call" and weights is None
    factory = {"act_layer": act_layer if direct else _relu} if takes_act_layer else {}
    try:
        network = model(**factory, input_shape=input_shape, num_outputs=num_outputs, **hyper)
    except TypeError as error:
        legal = inspect.signature(model).parameters.keys() - {"act_layer", "input_shape", "num_outputs"}
        if hyper.keys() <= legal:
            raise
        unknown = ", ".join(sorted(hyper.keys() - legal))
        raise ValueError(
            f"{unknown}: no such hyper-parameter; {model.__name__} takes {', '.join(sorted(legal))}"
        ) from error
    check_number("gain", gain, above=0)
    if gain != 1:
        if weights is not None:
            raise ValueError(f"gain={gain}: must be 1 with weights={weights}, which are no initial weights")
        _scale_weights(network, gain)
    path = None if weights is None else Path(str(weights)).expanduser()
    # weights of a trained network name the activations' parameters, which do not exist before the replacement
    late = path is not None and read_weights(path).keys() > network.state_dict().keys()
    if path is not None and not late:
        load_weights(network, path, num_outputs)
    if not direct:
        from activations.surgery.runs import run_in_mode
        from activations.swap import replace_activations  # with torch.fx behind it

        # a generator of its own, as the network's weights must not depend on whether activations are replaced
        example = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), reraise_as_value_error(input_shape):
            run_in_mode(network, example, training=False)
        report = replace_activations(
            network, act_layer, sites=sites, activations=activations, shared=shared, example_input=example
        )
        log.info("activations replaced:\n%s", report)
        if unchanged := [row.site for row in report.rows if row.output and not row.replaced]:
            log.warning(
                "the activation of the network's output is not replaced: %s (network.sites=re:PATTERN replaces it)",
                ", ".join(unchanged),
            )
    if path is not None and late:
        load_weights(network, path, num_outputs)
    return network


@contextmanager
def reraise_as_value_error(input_shape: Sequence[int]) -> Iterator[None]:
    """Turn a network's error on unsuitable inputs into a ValueError that names their shape."""
    try:
        yield
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(f"the network cannot take samples of shape {tuple(input_shape)}: {error}") from error


def read_state(path: Path) -> Any:
    """Return what ``torch.save`` wrote to ``path``, on the CPU.

    Raises:
        ValueError: no such file, or another kind of file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # torch has no class of errors for this
        raise ValueError(f"{path}: not a file of weights ({str(error).splitlines()[0]})") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the state_dict in ``path``, without the auxiliary heads for training that pretrained files have.

    Raises:
        ValueError: no such file, or no state_dict.
    """
    try:
        state = read_state(path)
    except ValueError as error:
        raise ValueError(f"weights={error}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights={path}: must contain a state_dict (names and tensors)")
    return {name: value for name, value in state.items() if not name.lower().startswith("aux")}


def load_weights(network: nn.Module, path: Path, num_outputs: int) -> None:
    """Load the state_dict in ``path`` into ``network``, except a classifier with another number of outputs.

    Raises:
        ValueError: no such file, no state_dict, or other names or shapes.
    """
    state, current = read_weights(path), network.state_dict()
    missing, unknown = sorted(current.keys() - state.keys()), sorted(state.keys() - current.keys())
    if missing or unknown:
        raise ValueError(
            f"weights={path}: belongs to another network: missing {summarize(missing)}; unknown {summarize(unknown)}"
        )
    fresh = [name for name, value in state.items() if value.shape != current[name].shape]
    classifier = [name for name in fresh if current[name].shape == (num_outputs, *state[name].shape[1:])]
    if others := [name for name in fresh if name not in classifier]:
        raise ValueError(
            f"weights={path}: differs in more than the number of classes: {summarize(others)} have another shape"
        )
    network.load_state_dict(
        {name: current[name] if name in fresh else value for name, value in state.items()}
    )
    log.info("weights from %s%s", path, f"; fresh, as the shape differs: {', '.join(fresh)}" if fresh else "")


def _scale_weights(network: nn.Module, gain: float) -> None:
    """Multiply the weights of all linear layers and convolutions but the last; those inside activations stay."""
    units = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, Activation))
    layers = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | ConvNd) and not name.startswith(units)
    ]
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.weight.mul_(gain)


def _relu(num_features: int, *, channel_dim: int = 1) -> nn.Module:
    return nn.ReLU()
