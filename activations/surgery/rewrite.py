"""Put units into their slots; where a forward must be changed for that, generate it anew from its trace."""

import copy
import functools
import inspect
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from activations.surgery.kinds import FUNCTIONS, Place, kind_of
from activations.surgery.runs import set_mode
from activations.surgery.sites import Analysis, Call, Site, TracedForward
from activations.surgery.state import has_items, have_drawn, random_states, refill, set_random_states
from activations.surgery.values import CannotRewrite, Values, current_line, explain

# functions that make tensors of numbers: a traced forward calls them anew every time
FACTORIES = (
    *(torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace),
    *(torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros),
)


class _Tracer(fx.Tracer):
    """Traces one forward, the children being opaque.

    Where Python needs a value (in ``if``, ``assert``, ``range``, as an index), it gets that of the recorded run, and
    the generated forward asserts that it has not changed. So only what is decided by arguments, sizes and dtypes can be
    traced, not what is decided by the values of tensors or by the size of the batch.
    """

    proxy_buffer_attributes = True

    def __init__(self, places: dict[nn.Module, Place], arguments: dict[str, Any]) -> None:
        super().__init__(autowrap_functions=FACTORIES)
        self._autowrap_search.append(torch)  # Most networks call them there.
        self.places, self.modes, self.arguments = places, _gradient_modes(), arguments

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self.values = Values(root, self.arguments)
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            # Generated code would register a name with a dot, which breaks later traces.
            node.meta.pop("is_wrapped", None)
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        names = inspect.unwrap(root_fn).__code__.co_varnames[1:]
        root_fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, name in zip(placeholders, names, strict=False):
            if not str(node.target).startswith("*"):
                node.target = name  # fx renames arguments that it takes as constants.
        for i, arg in enumerate(args):
            items = self.arguments.get(str(arg.node.target)) if isinstance(arg, fx.Proxy) else None
            if isinstance(items, list):
                length: Any = self.create_proxy("call_function", len, (arg,), {})
                torch._assert(
                    length == len(items), f"{arg.node.target} had {len(items)} items when it was traced"
                )
                args[i] = [
                    self.create_proxy("call_function", operator.getitem, (arg, j), {})
                    for j in range(len(items))
                ]
        return root_fn, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self.submodule_paths is not None
        # A module that was made on the spot has no name that generated code could use.
        if self.values.evaluating or m not in self.submodule_paths:
            return forward(*args, **kwargs)
        proxy = super().call_module(m, forward, args, kwargs)
        if m in self.places and kind_of(m) == "activation":
            proxy.node.meta["key"] = self.places[m]
        return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.values.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _gradient_modes() != self.modes:
            raise CannotRewrite("it switches gradients or autocast on or off")
        node = super().create_node(*args, **kwargs)
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op.startswith("call") and FUNCTIONS.fullmatch(str(name)):
            node.meta["key"] = name
        return node

    def proxy(self, node: fx.Node) -> "_Proxy":
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = bool(self.values.of(obj.node))
        self.require(obj if value else self.create_proxy("call_function", operator.not_, (obj,), {}), value)
        return value

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return map(obj.__getitem__, range(len(obj)))

    def number(self, obj: fx.Proxy) -> Any:
        """Return the value of ``obj``, which the generated forward then requires."""
        value = self.values.of(obj.node)
        self.require(self.create_proxy("call_function", operator.eq, (obj, value), {}), value)
        return value

    def require(self, condition: fx.Proxy, value: Any) -> None:
        """Let the generated forward assert ``condition``; ``value`` is for the message."""
        message = f"{type(self.root).__name__}.forward was rewritten for {value!r} here: {current_line()}"
        self.create_proxy("call_function", torch._assert, (condition, message), {})


class _Proxy(fx.Proxy):
    """A proxy that has a value where Python asks for a number."""

    tracer: _Tracer

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)

    def __index__(self) -> int:
        return operator.index(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __len__(self) -> int:
        return self.tracer.number(self.tracer.create_proxy("call_function", len, (self,), {}))


class _Attribute(_Proxy, fx.proxy.Attribute):
    """An attribute of a ``_Proxy``."""


class _Factories(TorchFunctionMode):
    """Puts calls that make tensors of plain numbers into the graph, which otherwise would hold the tensors themselves."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES and not self.tracer.values.evaluating:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _gradient_modes() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def trace_both(
    network: nn.Module, owner: nn.Module, calls: dict[bool, list[Call]], places: dict[nn.Module, Place]
) -> dict[bool, TracedForward]:
    """Trace the forward of ``owner`` in both modes; ValueError if a trace does not show the calls that were recorded."""
    # An auxiliary head runs in training alone.
    calls = {training: recorded or calls[not training] for training, recorded in calls.items()}
    expected, in_evaluation = ([call.graph_key for call in calls[training]] for training in (True, False))
    if expected != in_evaluation:
        raise CannotRewrite("it calls other activations in training than in evaluation")
    graphs = {}
    for training, recorded in calls.items():
        set_mode(network, training)
        graph = _trace(owner, recorded[0].arguments, places)
        keys = {i: node.meta["key"] for i, node in enumerate(graph.nodes) if "key" in node.meta}
        if list(keys.values()) != expected:
            raise CannotRewrite("the trace shows other activations than the run")
        graphs[training] = TracedForward(graph, list(keys))
    if _activation_inputs(graphs[True]) != _activation_inputs(graphs[False]):
        raise CannotRewrite("it calls its activations in another order in training than in evaluation")
    return graphs


def _activation_inputs(traced: TracedForward) -> list[int]:
    """Return a hash of each activation's input: of the operations back to modules, attributes and arguments.

    Constants and dropout are left out, since they may differ between training and evaluation.
    """
    hashes: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        inputs = tuple(hashes[x] for x in node.all_input_nodes)
        if "drop" in getattr(node.target, "__name__", str(node.target)) and inputs:
            hashes[node] = inputs[0]
        elif node.op == "call_module" and "key" not in node.meta:
            hashes[node] = hash(node.target)
        else:
            hashes[node] = hash((node.target, inputs))
    return [hashes[node] for i, node in enumerate(traced.graph.nodes) if i in traced.activation_nodes]


def _trace(owner: nn.Module, arguments: dict[str, Any], places: dict[nn.Module, Place]) -> fx.Graph:
    """Trace the forward of ``owner``; ValueError if it does what the graph does not show."""
    try:
        return _trace_once(owner, arguments, places, nullcontext)
    except Exception as error:
        try:
            return _trace_once(owner, arguments, places, _Factories)
        except Exception:
            raise ValueError(explain(error)) from error


def _trace_once(
    owner: nn.Module, arguments: dict[str, Any], places: dict[nn.Module, Place], context: Callable[..., Any]
) -> fx.Graph:
    constants = {k: v for k, v in arguments.items() if v is None or isinstance(v, bool | str)}
    tracer = _Tracer(places, arguments)
    states = random_states()
    attributes = vars(owner)
    containers = [attributes, *(value for value in attributes.values() if isinstance(value, dict | list))]
    contents = [copy.copy(container) for container in containers]
    try:
        with context(tracer):
            graph = tracer.trace(owner, constants)
    finally:
        unchanged = all(map(has_items, containers, contents))
        for container, content in zip(containers, contents, strict=True):
            refill(container, content)
        drawn = have_drawn(states)
        set_random_states(states)
    if not unchanged:
        raise CannotRewrite("it makes tensors of its own or sets attributes")
    if drawn:
        raise CannotRewrite("it draws random numbers, which the trace would fix")
    return graph


def install(analysis: Analysis, units: Mapping[Site, nn.Module]) -> None:
    """Put units into their slots, rewrite the forwards that need it, and drop activations that nothing calls."""
    to_rewrite: dict[nn.Module, list[Site]] = defaultdict(list)
    for site, unit in units.items():
        setattr(*site.slot, unit)
        if site.index is not None:
            to_rewrite[site.call.owner].append(site)
        for module in site.call.stack:
            if isinstance(module, nn.TransformerEncoderLayer):
                # Its fused forward would compute the activation that was there.
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # Only fused layers take nested tensors.
    for owner, sites in to_rewrite.items():
        _rewrite(owner, analysis.graphs[owner], sites)
    still_called = {site.call.place for site in analysis.sites if site not in units}
    for place in {site.call.place for site in itertools.chain(*to_rewrite.values())} - still_called:
        if place is not None and place[1] in place[0]._modules:
            delattr(*place)


def _rewrite(owner: nn.Module, graphs: dict[bool, TracedForward], sites: list[Site]) -> None:
    """Give ``owner`` a subclass of its class whose forward calls the units."""
    modules = {
        training: fx.GraphModule(owner, _with_unit_calls(graph, sites)) for training, graph in graphs.items()
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


def _with_unit_calls(traced: TracedForward, sites: list[Site]) -> fx.Graph:
    """Return a copy of the graph in which the sites' calls go to their units."""
    graph = copy.deepcopy(traced.graph)
    nodes = list(graph.nodes)
    for site in sites:
        assert site.index is not None
        node = nodes[traced.activation_nodes[site.index]]
        x = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(x, fx.Node)
        with graph.inserting_before(node):
            unit = graph.call_module(site.slot[1], (x,))
        node.replace_all_uses_with(unit)
        if site.call.in_place:  # Whoever used the input afterwards saw the output.
            x.replace_all_uses_with(unit, delete_user_cb=set(nodes[nodes.index(node) :]).__contains__)
        graph.erase_node(node)
    return graph
