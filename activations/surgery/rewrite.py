"""Put units into their places; where a forward must be changed for that, generate it anew from its trace."""

import copy
import functools
import inspect
import itertools
import operator
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from activations.surgery.kinds import FUNCTIONS, Place, kind_of
from activations.surgery.runs import refill, set_mode
from activations.surgery.sites import Call, Found, Graph, Site


class _Tracer(fx.Tracer):
    """Traces one forward, the children being opaque."""

    proxy_buffer_attributes = True

    def __init__(self, places: dict[nn.Module, Place]) -> None:
        super().__init__()
        self.places, self.modes = places, _modes()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        names = inspect.unwrap(root_fn).__code__.co_varnames[1:]
        lengths = {name: n for name, n in concrete_args.items() if type(n) is int}
        rest = {name: value for name, value in concrete_args.items() if name not in lengths}
        root_fn, args = super().create_args_for_root(root_fn, is_module, rest)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, name in zip(placeholders, names, strict=False):
            if not str(node.target).startswith("*"):
                node.target = name  # fx gives new names to arguments that it takes as constants
        for i, arg in enumerate(args):
            if isinstance(arg, fx.Proxy) and (n := lengths.get(str(arg.node.target))) is not None:
                length: Any = self.create_proxy("call_function", len, (arg,), {})
                torch._assert(length == n, f"{arg.node.target} had {n} items when it was traced")
                args[i] = [
                    self.create_proxy("call_function", operator.getitem, (arg, j), {}) for j in range(n)
                ]
        return root_fn, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self.submodule_paths is not None
        if m not in self.submodule_paths:  # made on the spot: generated code has no name for it
            return forward(*args, **kwargs)
        proxy = super().call_module(m, forward, args, kwargs)
        if m in self.places and kind_of(m) == "activation":
            proxy.node.meta["key"] = self.places[m]
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise ValueError("it switches gradients or autocast on or off")
        node = super().create_node(*args, **kwargs)
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op.startswith("call") and FUNCTIONS.fullmatch(str(name)):
            node.meta["key"] = name
        return node


def _modes() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def trace_both(
    network: nn.Module, owner: nn.Module, calls: dict[bool, list[Call]], places: dict[nn.Module, Place]
) -> dict[bool, Graph]:
    """The forward of ``owner`` in both modes; ValueError if it does not show the calls that were recorded."""
    # an auxiliary head runs in training alone
    calls = {training: recorded or calls[not training] for training, recorded in calls.items()}
    expected, other = ([call.key for call in calls[training]] for training in (True, False))
    if expected != other:
        raise ValueError("it calls other activations in training than in evaluation")
    graphs = {}
    for training, recorded in calls.items():
        set_mode(network, training)
        graph = _trace(owner, recorded[0].constants, places)
        keys = {i: node.meta["key"] for i, node in enumerate(graph.nodes) if "key" in node.meta}
        if list(keys.values()) != expected:
            raise ValueError("the trace shows other activations than the run")
        graphs[training] = Graph(graph, list(keys))
    if _sources(graphs[True]) != _sources(graphs[False]):
        raise ValueError("it calls its activations in another order in training than in evaluation")
    return graphs


def _sources(traced: Graph) -> list[Any]:
    """What every activation of a traced forward is called on: operations back to modules, attributes and arguments.

    Constants and dropout are left out, since they may differ between training and evaluation.
    """
    sources: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        below = tuple(sources[x] for x in node.all_input_nodes)
        if "drop" in getattr(node.target, "__name__", str(node.target)) and below:
            sources[node] = below[0]
        elif node.op == "call_module" and "key" not in node.meta:
            sources[node] = hash(node.target)
        else:
            sources[node] = hash((node.target, below))
    return [sources[node] for i, node in enumerate(traced.graph.nodes) if i in traced.nodes]


def _trace(owner: nn.Module, constants: dict[str, Any], places: dict[nn.Module, Place]) -> fx.Graph:
    """The forward of ``owner``; ValueError if it does what the graph does not show."""
    draws = random.getstate(), torch.get_rng_state().tolist()
    before = _contents(owner)
    try:
        graph = _Tracer(places).trace(owner, constants)
        after = _contents(owner)
    finally:
        for container, content in before:
            refill(container, content)
    if [_identities(content) for _, content in before] != [_identities(content) for _, content in after]:
        raise ValueError("it makes tensors of its own or sets attributes")
    if draws != (random.getstate(), torch.get_rng_state().tolist()):
        raise ValueError("it draws random numbers, which the trace would fix")
    return graph


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Its attributes, buffers, lists, ...: each container and a copy."""
    containers = [vars(module), *(value for value in vars(module).values() if isinstance(value, dict | list))]
    return [(container, copy.copy(container)) for container in containers]


def _identities(content: Any) -> list[int]:
    return [id(value) for value in (content.values() if isinstance(content, dict) else content)]


def install(found: Found, units: Mapping[Site, nn.Module]) -> None:
    """Put units into their places, rewrite the forwards that need it, and drop activations that nothing calls."""
    to_rewrite: dict[nn.Module, list[Site]] = defaultdict(list)
    for site, unit in units.items():
        setattr(*site.hole, unit)
        if site.index is not None:
            to_rewrite[site.call.owner].append(site)
        if isinstance(site.hole[0], nn.TransformerEncoderLayer):
            site.hole[0].activation_relu_or_gelu = 0  # its fused forward would compute what it used to
    for owner, sites in to_rewrite.items():
        _rewrite(owner, found.graphs[owner], sites)
    left = {site.call.place for site in found.sites if site not in units}
    for place in {site.call.place for site in itertools.chain(*to_rewrite.values())} - left:
        if place is not None and place[1] in place[0]._modules:
            delattr(*place)


def _rewrite(owner: nn.Module, graphs: dict[bool, Graph], sites: list[Site]) -> None:
    """Give ``owner`` a class of its own whose forward calls the new children."""
    modules = {
        training: fx.GraphModule(owner, _redirected(graph, sites)) for training, graph in graphs.items()
    }
    generated = {training: type(module).forward for training, module in modules.items()}
    forward = generated[False]
    if modules[True].code != modules[False].code:

        @functools.wraps(generated[False])
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return generated[self.training](self, *args, **kwargs)

    cls = type(owner)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    owner.__class__ = type(cls.__name__, (cls,), {"forward": forward, **names})


def _redirected(traced: Graph, sites: list[Site]) -> fx.Graph:
    """A copy of the graph in which the sites' calls go to the new children."""
    graph = copy.deepcopy(traced.graph)
    nodes = list(graph.nodes)
    for site in sites:
        assert site.index is not None
        node = nodes[traced.nodes[site.index]]
        x = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(x, fx.Node)
        with graph.inserting_before(node):
            unit = graph.call_module(site.hole[1], (x,))
        node.replace_all_uses_with(unit)
        if site.call.in_place:  # whoever used the input afterwards saw the output
            x.replace_all_uses_with(unit, delete_user_cb=set(nodes[nodes.index(node) :]).__contains__)
        graph.erase_node(node)
    return graph
