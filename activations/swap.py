"""Replace the activations of any network: a unit of its own for every place where one is called.

What counts is the **call**, not the module. In torchvision's resnet18 9 modules serve 17 calls, in resnet50 16 of 17
modules serve two channel counts each, and googlenet calls functions alone. So the network is run once in training and
once in evaluation, every call is recorded with the channels that it meets, and every site gets a place for a unit:

* A module that is called once is replaced where it is registered, and so is a function kept as an attribute.
* Where a ``forward`` calls one module several times, or a function, that ``forward`` alone is traced with torch.fx and
  generated anew. The object with its parameters, hooks and children stays and is still of its class; activations that
  nothing uses any more go. It cannot be pickled whole (its ``state_dict`` can), and asserts that those of its
  arguments that are None, flags or words are as in the example.

Before anything stays, every place is filled with the very function that was called there: outputs in both modes must be
the same bits as before. A network is replaced as asked or left as it was.

The file goes from the outside in: what is public, selections, the watched run, sites, tracing, installation, proof.
"""

import copy
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import activation as torch_activations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from activations.base import Activation

SELECTIONS = "all, one_per_block, no_stem_no_last, first:K, last:K, re:PATTERN"

SOFTMAXES = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.GLU, *SOFTMAXES)
TORCH = {getattr(torch_activations, name) for name in torch_activations.__all__} - {
    *GATES,
    nn.MultiheadAttention,
}
# timm's classes, and those that circulate as copies
WELL_KNOWN = re.compile(
    "(h|hard|quick|new|fast|memoryefficient|squared|star)?"
    "(relu6?|p?relu|leakyrelu|[cs]?elu|gelu|silu|swish|mish|tanh|softplus|softsign)"
    "(2|tanh|me|jit|squared|activation)?"
)
FUNCTIONS = re.compile(
    "relu6?_?|hardtanh_?|leaky_relu_?|prelu|rrelu_?|_?threshold_?|[sc]?elu_?|gelu|silu_?|mish|hardswish_?|"
    "softplus|tanh_?|softsign|(tanh|hard|soft)shrink"
)
GATE_FUNCTIONS = re.compile("sigmoid_?|(hard|log)sigmoid|(log_)?softmax|softmin|glu")
# kernels that no call in Python explains come from compiled code
KERNELS = re.compile("(relu|hardtanh|leaky_relu|elu|silu|hardswish)_?|gelu|mish")

# functions that put channels first or last, or move them; those that do not mix leave them in their dimension
FIRST = re.compile("conv(_transpose)?[123]d|(batch|instance|group)_norm")
LAST = re.compile("linear|layer_norm|rms_norm|embedding|multi_head_attention_forward")
MOVES = re.compile(
    "view(_as)?|reshape(_as)?|(un)?flatten|permute|transpose_?|swap(axes|dims)|move(dim|axis)|(un)?squeeze_?|t|"
    "select|split|chunk|stack|unbind|expand|__getitem__|__get__|mean|sum|amax"
)
PRODUCTS = re.compile("_*matmul_*|bmm")
MIXES = re.compile("__rmatmul__|baddbmm|einsum|tensordot")

Place = tuple[nn.Module, str]  # a module and the name of one of its attributes


@dataclass(frozen=True)
class Row:
    """A place where an activation or a gate is called; ``shape`` is that of its input without the batch."""

    site: str
    kind: str
    shape: tuple[int, ...]
    num_features: int | None
    channel_dim: int | None
    gate: bool
    replaced: bool
    why_not: str


@dataclass(frozen=True)
class Report:
    """What was found and what was done, in the order of the calls; ``str`` makes a table of it."""

    rows: tuple[Row, ...]

    @property
    def found(self) -> int:
        """How many sites there are; gates are none."""
        return sum(not row.gate for row in self.rows)

    @property
    def replaced(self) -> int:
        """How many sites got a unit."""
        return sum(row.replaced for row in self.rows)

    def __str__(self) -> str:
        table = [("site", "kind", "channels", "dim", "shape", "")]
        for row in self.rows:
            channels, dim = ("" if n is None else str(n) for n in (row.num_features, row.channel_dim))
            outcome = row.why_not or ("replaced" if row.replaced else "can be replaced")
            table.append((row.site, row.kind, channels, dim, "x".join(map(str, row.shape)), outcome))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        able = sum(not row.why_not for row in self.rows)
        done = f"{able} of {self.found} sites " + ("replaced" if self.replaced else "can be replaced")
        return "\n".join([*lines, f"{done}, {len(self.rows) - self.found} gates"])


def replace_activations(
    network: nn.Module,
    act_layer: Callable[..., nn.Module],
    *,
    sites: str = "all",
    example_input: Tensor | tuple[Any, ...],
) -> Report:
    """Give every chosen site of ``network`` a unit of its own, in place.

    Gates (the sigmoid of a squeeze-and-excitation block, softmax) stay, and so does what a forward writes out in
    arithmetic, such as ``x * x.sigmoid()``. Parameters and buffers outside activations keep their names, so that
    pretrained weights can be loaded before or after. Only ``act_layer`` draws random numbers.

    Args:
        act_layer: called as ``act_layer(num_features, channel_dim=channel_dim)`` for one site after the other, in the
            order of the calls. The unit gets its site's device and training flag and the network's dtype.
        sites: which of them.
            ``all``.
            ``one_per_block``: in each block (residual, inception, transformer, ...) the first activation behind a
            convolution wider than 1, as FReLU's authors advise, else the first; not one on 1x1 maps. None outside
            of blocks, unless there are no blocks: then every site is one.
            ``no_stem_no_last``: without those before the first block, in the last stage (the last blocks, with the
            smallest maps), behind it, and in auxiliary heads.
            ``first:K``, ``last:K``: K in the order of the calls.
            ``re:PATTERN``: those in whose name the regular expression is found.
        example_input: a batch, or a tuple of arguments. One small sample will do, if the stages can be told apart by
            the size of their maps.

    Returns:
        A row for every site and gate.

    Raises:
        ValueError: a network that cannot be run, a site that cannot be replaced, a unit that cannot stand at its site,
            ``sites`` that are no selection or select nothing. ``network`` is then as before.
    """
    found = _discover(network, example_input)
    chosen = _select([site for site in found.sites if not site.call.gate], sites)
    saved = _structure(network)
    try:
        if all(site.can_be_replaced for site in chosen):
            _prove(network, example_input, found, chosen)
        if refused := [site for site in chosen if site.why_not]:
            more = f" (and {len(refused) - 1} more sites)" if len(refused) > 1 else ""
            raise ValueError(f"{refused[0].path}{more} cannot be replaced: {refused[0].why_not}")
        units = {site: _make_unit(network, act_layer, site) for site in chosen}
        _install(found, units)
        _try_units(network, example_input, units)
    except BaseException:
        _restore(saved)
        raise
    replaced = len(set(network.modules()).intersection(units.values()))
    assert replaced == len(chosen), f"{replaced} of {len(chosen)} sites were replaced"
    return Report(tuple(site.row(site in units, site.why_not or "not selected") for site in found.sites))


def find_sites(network: nn.Module, example_input: Tensor | tuple[Any, ...]) -> Report:
    """The report of ``replace_activations`` for a network that stays as it is; obstacles are rows, not errors.

    Raises:
        ValueError: a network that cannot be run.
    """
    found = _discover(network, example_input)
    while not _prove(network, example_input, found, [site for site in found.sites if site.can_be_replaced]):
        pass  # one more has been found that cannot
    return Report(tuple(site.row(False, site.why_not) for site in found.sites))


@dataclass(eq=False)
class _Call:
    """One call of an activation or a gate in one run of the network."""

    function: Callable[..., Any]  # the module, or torch's function
    name: str
    place: Place | None  # where its owner keeps it, if it does
    stack: tuple[nn.Module, ...]  # from the network down to the module whose forward makes the call
    run: int  # how many times that one has been entered
    constants: dict[str, Any]  # its arguments that are None, flags or words
    x: Tensor  # the input, without data
    device: torch.device
    args: tuple[Any, ...]  # of the call, without the input
    kwargs: dict[str, Any]
    channel: int | None
    gate: bool
    why_not: str
    window: tuple[nn.Module, ...]  # the stack of the convolution wider than 1 since the last activation
    in_place: bool = False

    @property
    def owner(self) -> nn.Module:
        return self.stack[-1]

    @property
    def key(self) -> Any:
        """What stands for this call in a traced graph."""
        return self.place if isinstance(self.function, nn.Module) else self.name

    @property
    def features(self) -> tuple[str, int | None, int | None]:
        return self.name, self.channel, None if self.channel is None else self.x.shape[self.channel]

    @property
    def traced(self) -> bool:
        """Whether a traced graph must show it: a gate only if it looks like an activation there."""
        return not self.gate or FUNCTIONS.fullmatch(self.name.lower()) is not None


@dataclass(eq=False)
class _Site:
    """A place in the network, and the attribute that takes its unit."""

    calls: dict[bool, _Call]  # by whether the network is training
    index: int | None  # among the calls of its owner, if that one's forward must be rewritten
    why_not: str = ""
    path: str = field(init=False)
    hole: Place = field(init=False)

    @property
    def call(self) -> _Call:
        return next(iter(self.calls.values()))

    @property
    def auxiliary(self) -> bool:
        """Whether it is called in training alone."""
        return False not in self.calls

    @property
    def can_be_replaced(self) -> bool:
        return not self.call.gate and not self.why_not

    @property
    def num_features(self) -> int | None:
        return self.call.features[-1]

    @property
    def channel_dim(self) -> int | None:
        return -1 if self.call.channel == self.call.x.ndim - 1 > 1 else self.call.channel

    @property
    def positions(self) -> int:
        """Pixels or tokens; 0 for (N, C), which has none."""
        return math.prod(self.call.x.shape[1:]) // (self.num_features or 1) if self.call.x.ndim > 2 else 0

    def row(self, replaced: bool, why_not: str) -> Row:
        kind = ("module " if isinstance(self.call.function, nn.Module) else "call ") + self.call.name
        why_not = "" if replaced else "gate, stays" if self.call.gate else why_not
        channels = self.num_features, self.channel_dim
        return Row(
            self.path, kind, tuple(self.call.x.shape[1:]), *channels, self.call.gate, replaced, why_not
        )


@dataclass(eq=False)
class _Graph:
    """A traced forward, and which of its nodes call activations."""

    graph: fx.Graph
    nodes: list[int]


@dataclass(eq=False)
class _Found:
    """All that is known of a network."""

    sites: list[_Site]  # and gates, in the order of the calls
    graphs: dict[nn.Module, dict[bool, _Graph]]  # for owners that must be rewritten, by training flag
    outputs: dict[bool, list[Tensor]]


def _select(every: list[_Site], sites: str) -> list[_Site]:
    """Those of ``every`` that ``sites`` means."""
    if not every:
        raise ValueError("the network calls no activation: there is nothing to replace")
    kind, _, value = sites.partition(":")
    if sites == "all":
        return every
    if sites == "one_per_block":
        return _one_per_block(every)
    if sites == "no_stem_no_last":
        return _no_stem_no_last(every)
    if kind in ("first", "last") and value.isdecimal() and 1 <= int(value) <= len(every):
        return every[: int(value)] if kind == "first" else every[-int(value) :]
    if kind == "re" and value:
        return _matching(every, value)
    raise ValueError(f"sites={sites}: legal values are {SELECTIONS}; K from 1 to {len(every)} here")


def _matching(every: list[_Site], pattern: str) -> list[_Site]:
    try:
        chosen = [site for site in every if re.search(pattern, site.path)]
    except re.error as error:
        raise ValueError(f"sites=re:{pattern}: no regular expression: {error}") from error
    if not chosen:
        names = ", ".join(site.path for site in every[:5]) + (", ..." if len(every) > 5 else "")
        raise ValueError(f"sites=re:{pattern}: selects nothing; sites are {names}")
    return chosen


def _one_per_block(every: list[_Site]) -> list[_Site]:
    blocks = _blocks(every)
    best: dict[Any, _Site] = {}
    for site, block in blocks.items():
        # a gate's inner activation, on 1x1 maps, only if there is nothing else
        rank = [(s.positions < 2, block not in s.call.window) for s in (site, best.get(block, site))]
        if block not in best or rank[0] < rank[1]:
            best[block] = site
    return [site for site in every if site in best.values()]


def _no_stem_no_last(every: list[_Site]) -> list[_Site]:
    blocks = _blocks(every)
    inside = list(blocks)
    maps: dict[Any, list[int]] = defaultdict(list)
    for site, block in blocks.items():
        maps[block].append(site.positions)
    # gates have 1x1 maps in every stage
    sizes = {block: min([n for n in ns if n > 1], default=min(ns)) for block, ns in maps.items()}
    smallest = min((size for size in sizes.values() if size), default=0)
    end = len(inside)
    while end and sizes[blocks[inside[end - 1]]] <= smallest:
        end -= 1
    if end in (0, len(inside)):
        raise ValueError("sites=no_stem_no_last: no last stage can be told by its smaller maps")
    between = every[every.index(inside[0]) : every.index(inside[end])]
    return [site for site in between if not site.auxiliary]


def _blocks(every: list[_Site]) -> dict[_Site, Any]:
    """The block of every site that is in one; if there is no block at all, every site is its own.

    A block is the outermost module around a site that has several weights, is no container and no stage, and whose
    class occurs several times, or which stands beside such a one, as the modules of an Inception do. Auxiliary heads,
    which run in training alone, have none.
    """
    chains = {}
    for site in every:
        if not site.auxiliary:
            network, *around = site.call.stack
            chains[site] = [network, *filter(_may_be_block, around)]
    classes = Counter(
        type(module) for module in {module for chain in chains.values() for module in chain[1:]}
    )
    pairs = [
        [(p, m) for p, m in itertools.pairwise(chain) if classes[type(m)] > 1] for chain in chains.values()
    ]
    homes = {pair[0][0] for pair in pairs if pair}
    blocks: dict[_Site, Any] = {}
    for site, chain in chains.items():
        for parent, module in itertools.pairwise(chain):
            beside = parent in homes and not re.search("stem|head|embed", type(module).__name__.lower())
            if site not in blocks and (classes[type(module)] > 1 or beside):
                blocks[site] = module
    return blocks or {site: site for site in chains}


def _may_be_block(module: nn.Module) -> bool:
    children = [type(child) for child in module.children()]
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or children == [nn.ModuleList]:
        return False
    weights = sum(parameter.ndim > 1 for parameter in module.parameters())
    return weights > 1 and "stage" not in type(module).__name__.lower()


class _Watch(TorchFunctionMode):
    """Records the calls of one run, and follows through it in which dimension every tensor has its channels.

    A tensor's mark is that dimension or, where a move leaves none, a shadow: a tensor of its shape that holds the
    number of each element's channel. Shadows make the same moves, and so show where the channels went.
    """

    def __init__(self, places: dict[nn.Module, Place]) -> None:
        super().__init__()
        self.places = places
        self.calls: list[_Call] = []
        self.runs: Counter[nn.Module] = Counter()
        self.stack: list[tuple[nn.Module, dict[str, Any]]] = []
        self.inside = 0  # an activation: what it does is its own affair
        self.window: tuple[nn.Module, ...] = ()
        self.marks: Any = WeakTensorKeyDictionary()
        self.plus_three: Any = WeakTensorKeyDictionary()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of all modules but those inside activations."""
        if module in self.places:
            if not self.inside:
                gate = _kind(module) == "gate"
                self.record(module, type(module).__name__, self.places[module], args, kwargs, gate)
            self.inside += 1
        else:
            self.runs[module] += 1
            self.stack.append((module, _constants(module, args, kwargs)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Forward hook of the same modules."""
        if module not in self.places:
            self.stack.pop()
            return
        self.inside -= 1
        if not self.inside:
            self.calls[-1].in_place = any(out is x for x in _tensors((args, kwargs)))
            self.follow("", module, args, kwargs, out)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside or not self.stack:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not FUNCTIONS.fullmatch(name) and not GATE_FUNCTIONS.fullmatch(name):
            out = func(*args, **kwargs)
        else:
            gate = GATE_FUNCTIONS.fullmatch(name) is not None
            self.record(func, name, self.attribute(func, args, kwargs), args, kwargs, gate)
            self.inside += 1
            try:
                out = func(*args, **kwargs)
            finally:
                self.inside -= 1
            self.calls[-1].in_place = any(out is x for x in _tensors((args, kwargs)))
        self.follow(name, func, args, kwargs, out)
        return out

    def attribute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place | None:
        """Where the module under way keeps ``func``, if it calls it as it would call a unit."""
        owner = self.stack[-1][0]
        names = [name for name, value in vars(owner).items() if value is func]
        if len(names) != 1 or len(args) != 1:
            return None
        # a function written in Python reports its defaults too
        known = inspect.signature(func).parameters if inspect.isfunction(func) else {}
        plain = all(key in known and known[key].default == value for key, value in kwargs.items())
        return (owner, names[0]) if plain else None

    def record(
        self,
        function: Any,
        name: str,
        place: Place | None,
        args: Any,
        kwargs: Any,
        gate: bool,
        why_not: str = "",
    ) -> None:
        """Note a call, and what stands in the way of a unit."""
        stack = tuple(module for module, _ in self.stack)
        owner, constants = self.stack[-1]
        x = next(_tensors((args, kwargs)))
        channel = 1 if x.ndim == 2 else self.marks.get(x)
        # a hard sigmoid written by hand is relu6(x + 3) / 6; a function of a parameter is no activation
        by_hand = name.lower() in ("relu6", "hardtanh", "hardtanh_") and x in self.plus_three
        gate = gate or by_hand or x.ndim < 2 or isinstance(x, nn.Parameter)
        if isinstance(function, nn.Module) and (len(args) != 1 or kwargs or args[0] is not x):
            why_not = "it is called with something else than one tensor"
        elif not isinstance(channel, int) or channel == 0:
            why_not = why_not or f"which dimension of {tuple(x.shape)} holds the channels cannot be told"
            channel = None
        kwargs = {key: value for key, value in kwargs.items() if value is not x}
        shape = torch.empty_like(x, device="meta")
        call = _Call(function, name, place, stack, self.runs[owner], constants, shape, x.device, args[1:], kwargs,
                     channel, gate, why_not, self.window)  # fmt: skip
        self.calls.append(call)
        if not gate:
            self.window = ()

    def follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Mark the outputs of a call."""
        results = list(_tensors(out))
        marked = [x for x in _tensors((args, kwargs)) if x in self.marks]
        marks: list[Any] = [None] * len(results)
        if FIRST.fullmatch(name) and name.startswith("conv"):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if max(weight.shape[2:]) > 1:
                self.window = tuple(module for module, _ in self.stack)
        if re.fullmatch("_*[ri]?add_*", name) and any(type(x) in (int, float) and x == 3 for x in args):
            self.plus_three[out] = True
        if FIRST.fullmatch(name):
            marks = [1] * len(results)
        elif LAST.fullmatch(name):
            marks = [result.ndim - 1 for result in results]
        elif marked and MOVES.fullmatch(name):
            marks = self.moved(Tensor.reshape if name == "view" else func, args, kwargs) or marks
        elif marked and PRODUCTS.fullmatch(name):
            marks = [self.multiplied(results[0], *args)]
        elif marked and not MIXES.fullmatch(name):
            marks = [self.inherited(result, marked) for result in results]
        for result, mark in zip(results, marks, strict=True):
            if mark is not None:
                self.marks[result] = mark

    def moved(self, func: Any, args: Any, kwargs: Any) -> list[Any]:
        """The marks of what comes out of a move; none if its input has none, or shadows cannot make it."""
        if not args or not all(x in self.marks for x in _tensors(args[0])):
            return []
        try:
            return [
                *map(_where, _tensors(func(tree_map_only(Tensor, self.shadow, args[0]), *args[1:], **kwargs)))
            ]
        except (RuntimeError, TypeError):
            return []

    def multiplied(self, result: Tensor, a: Tensor, b: Tensor) -> Any:
        """The mark of a product: of the factor that has no channels in the dimension that is summed over."""
        for x, summed in ((b, -2), (a, -1)):
            if x in self.marks and x.ndim == result.ndim:
                shadow = self.shadow(x)
                if (shadow == shadow.narrow(summed, 0, 1)).all():
                    return _where(shadow.narrow(summed, 0, 1).expand(result.shape))
        return None

    def inherited(self, result: Tensor, marked: list[Tensor]) -> Any:
        """The mark of what has the channels where its operands have them."""
        marks = [self.marks[x] for x in marked if x.ndim == result.ndim]
        dims = {mark for mark in marks if isinstance(mark, int)}
        if dims:
            return dims.pop() if len(dims) == 1 else None
        return next((mark for mark in marks if mark.shape == result.shape), None)

    def shadow(self, x: Tensor) -> Tensor:
        """The shadow of a tensor that has a mark."""
        mark = self.marks[x]
        if isinstance(mark, Tensor):
            return mark
        shape = [-1 if dim == mark else 1 for dim in range(x.ndim)]
        return torch.arange(x.shape[mark], device=x.device, dtype=torch.float32).view(shape).expand(x.shape)


class _Kernels(TorchDispatchMode):
    """Finds activations that never show in Python."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if KERNELS.fullmatch(name) and self.watch.stack and not self.watch.inside:
            self.watch.record(func, name, None, args, kwargs or {}, False, "it is called by compiled code")
        return func(*args, **(kwargs or {}))


def _where(shadow: Tensor) -> Any:
    """The one dimension along which a shadow changes, each channel having one place; the shadow, if there is none."""
    ends = [slice(None, None, max(n - 1, 1)) for n in shadow.shape]  # to look at the corners is enough
    dims = []
    for dim, n in enumerate(shadow.shape):
        lines = shadow[(*ends[:dim], slice(None), *ends[dim + 1 :])]
        if n > 1 and (lines != lines.narrow(dim, 0, 1)).any():
            dims.append(dim)
    if (
        len(dims) == 1
        and shadow.movedim(dims[0], 0).flatten(1)[:, 0].unique().numel() == shadow.shape[dims[0]]
    ):
        return dims[0]
    return shadow if dims else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of containers and dataclasses."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf):
            yield from _tensors(vars(leaf))


def _constants(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call that decide which way a forward goes: None, flags, words; lengths of lists."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    constants: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if value is None or isinstance(value, bool | str):
            constants[name] = value
        elif isinstance(value, list):
            constants[name] = len(value)
    return constants


def _kind(module: nn.Module) -> str:
    """``activation``, ``gate`` or nothing."""
    if isinstance(module, GATES):
        return "gate"
    if isinstance(module, (Activation, *TORCH)):
        return "activation"
    if not all(_kind(child) for child in module.children()):
        return ""
    name = type(module).__name__.lower().replace("_", "")
    return "gate" if name.endswith("sigmoid") else "activation" if WELL_KNOWN.fullmatch(name) else ""


def _outside(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """The modules that neither are activations, gates or compiled code nor inside of such."""
    seen = set() if seen is None else seen
    if module not in seen and not _kind(module) and not isinstance(module, torch.jit.ScriptModule):
        seen.add(module)
        yield module
        for child in module.children():
            yield from _outside(child, seen)


def _discover(network: nn.Module, example: Any) -> _Found:
    """Run the network in both modes, make sites of the calls, and trace the forwards that must be rewritten."""
    if network not in _outside(network):
        raise ValueError(f"the network is itself a {type(network).__name__}: there is no place for a unit")
    with _unshared(network) as places:
        watches = {training: _Watch(places) for training in (True, False)}
        outputs = {
            training: _watched(network, example, training, watch) for training, watch in watches.items()
        }
        sites = _sites(network, watches)
        graphs = {}
        for owner in {site.call.owner for site in sites if site.can_be_replaced and site.index is not None}:
            calls = {
                t: [c for c in watch.calls if c.owner is owner and c.traced] for t, watch in watches.items()
            }
            try:
                with _undisturbed(network):
                    graphs[owner] = _trace_both(network, owner, calls, places)
            except Exception as error:
                for site in sites:
                    if site.call.owner is owner and site.index is not None:
                        site.why_not = (
                            f"{type(owner).__name__}.forward cannot be rewritten: {_one_line(error)}"
                        )
    return _Found(sites, graphs, outputs)


def _watched(network: nn.Module, example: Any, training: bool, watch: _Watch) -> list[Tensor]:
    """Run the network under ``watch``."""
    with ExitStack() as stack:
        for module in {*_outside(network), *watch.places}:
            enter = module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
            leave = module.register_forward_hook(watch.leave, with_kwargs=True, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(_Kernels(watch))
        stack.enter_context(watch)
        try:
            return _run(network, example, training)
        except Exception as error:
            mode = "training" if training else "evaluation"
            raise ValueError(f"the network fails on example_input in {mode}: {_one_line(error)}") from error


def _run(network: nn.Module, example: Any, training: bool) -> list[Tensor]:
    """The output tensors in one mode."""
    args = example if isinstance(example, tuple) else (example,)
    with _undisturbed(network), _slow_path():
        _set_mode(network, training)
        return [tensor.detach() for tensor in _tensors(network(*tree_map_only(Tensor, torch.clone, args)))]


def _set_mode(network: nn.Module, training: bool) -> None:
    """As ``network.train(training)``; but norms and units stay in evaluation, so that one sample is enough."""
    network.train(training)
    for module in network.modules():
        if isinstance(module, Activation) or getattr(module, "running_mean", None) is not None:
            module.eval()


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Put back what running a network changes: random states, training flags, buffers."""
    flags = [(module, module.training) for module in network.modules()]
    buffers = [
        (m, n, b, b.clone()) for m in network.modules() for n, b in m._buffers.items() if b is not None
    ]
    state = random.getstate()
    with torch.random.fork_rng({p.device.index for p in network.parameters() if p.device.type == "cuda"}):
        try:
            yield
        finally:
            random.setstate(state)
            for module, training in flags:
                module.training = training
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.detach().copy_(value)


@contextmanager
def _slow_path() -> Iterator[None]:
    """Without the fused forward of nn.TransformerEncoderLayer, in which no activation shows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _unshared(network: nn.Module) -> Iterator[dict[nn.Module, Place]]:
    """Where every activation and gate is registered; one that is registered repeatedly has copies meanwhile."""
    saved = _structure(network)
    places: dict[nn.Module, Place] = {}
    for parent in _outside(network):
        for name, child in parent._modules.items():
            if child is not None and _kind(child):
                if child in places:
                    child = parent._modules[name] = copy.deepcopy(child)
                places[child] = parent, name
    try:
        yield places
    finally:
        _restore(saved)


def _structure(network: nn.Module) -> list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]]:
    """What replacing can change of a network's modules."""
    return [(m, type(m), dict(vars(m)), dict(m._modules)) for m in _outside(network)]


def _restore(saved: list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]]) -> None:
    for module, cls, attributes, children in saved:
        module.__class__ = cls
        _refill(vars(module), attributes)
        _refill(module._modules, children)


def _refill(old: Any, new: Any) -> None:
    """Give a dict or list the items of another."""
    old.clear()
    if isinstance(old, dict):
        old.update(new)
    else:
        old.extend(new)


def _sites(network: nn.Module, watches: dict[bool, _Watch]) -> list[_Site]:
    """The sites and gates of both runs, and why they cannot be replaced as far as these tell."""
    paths = {module: path for path, module in network.named_modules()}
    counts = [Counter(call.place for call in watch.calls if call.run == 1) for watch in watches.values()]
    repeated = {None} | {place for count in counts for place, n in count.items() if n > 1}
    sites: dict[Any, _Site] = {}
    for training, watch in watches.items():
        numbers: dict[Any, Iterator[int]] = defaultdict(itertools.count)
        for call in watch.calls:
            if call.run > 1:
                continue
            index = next(numbers[call.owner, call.traced])
            alone = call.place not in repeated
            key = call.place if alone else (call.owner, call.traced, index)
            site = sites.setdefault(key, _Site({}, None if alone else index))
            site.calls[training] = call
            site.why_not = site.why_not or call.why_not or _hooked(call.function)
            if call.features != site.call.features:
                site.why_not = "it is not the same in training and in evaluation"
            if (runs := watch.runs[call.owner]) > 1:
                owner = f"{type(call.owner).__name__} {paths[call.owner]}"
                site.why_not = f"its {owner} runs {runs} times in one forward, with the same weights"
    _name(sites.values(), paths)
    return list(sites.values())


def _hooked(function: Any) -> str:
    hooked = isinstance(function, nn.Module) and any(
        (
            function._forward_hooks,
            function._forward_pre_hooks,
            function._backward_hooks,
            function._backward_pre_hooks,
        )
    )
    return "it has hooks, which its unit would lose" if hooked else ""


def _name(sites: Collection[_Site], paths: dict[nn.Module, str]) -> None:
    """Give every site its path and the attribute for its unit: where it is kept, or a new one of its owner."""
    bases = {}
    for site in sites:
        site.hole = site.call.place or (site.call.owner, site.call.name.strip("_"))
        if site.index is not None:
            bases[site] = (
                site.call.owner,
                site.hole[1] if site.call.key == site.call.place else site.call.name.strip("_"),
            )
    total, so_far = Counter(bases.values()), Counter[Place]()
    for site in sites:
        if site in bases:
            owner, name = bases[site]
            so_far[owner, name] += 1
            name += f"_{so_far[owner, name]}" if total[owner, name] > 1 else ""
            while hasattr(owner, name):
                name += "_"
            site.hole = owner, name
        site.path = f"{paths[site.hole[0]]}.{site.hole[1]}".lstrip(".")


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
        if m in self.places and _kind(m) == "activation":
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


def _trace_both(
    network: nn.Module, owner: nn.Module, calls: dict[bool, list[_Call]], places: dict[nn.Module, Place]
) -> dict[bool, _Graph]:
    """The forward of ``owner`` in both modes; ValueError if it does not show the calls that were recorded."""
    # an auxiliary head runs in training alone
    calls = {training: recorded or calls[not training] for training, recorded in calls.items()}
    expected, other = ([call.key for call in calls[training]] for training in (True, False))
    if expected != other:
        raise ValueError("it calls other activations in training than in evaluation")
    graphs = {}
    for training, recorded in calls.items():
        _set_mode(network, training)
        graph = _trace(owner, recorded[0].constants, places)
        keys = {i: node.meta["key"] for i, node in enumerate(graph.nodes) if "key" in node.meta}
        if list(keys.values()) != expected:
            raise ValueError("the trace shows other activations than the run")
        graphs[training] = _Graph(graph, list(keys))
    return graphs


def _trace(owner: nn.Module, constants: dict[str, Any], places: dict[nn.Module, Place]) -> fx.Graph:
    """The forward of ``owner``; ValueError if it does what the graph does not show."""
    draws = random.getstate(), torch.get_rng_state().tolist()
    before = _contents(owner)
    try:
        graph = _Tracer(places).trace(owner, constants)
        after = _contents(owner)
    finally:
        for container, content in before:
            _refill(container, content)
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


def _install(found: _Found, units: Mapping[_Site, nn.Module]) -> None:
    """Put units into their places, rewrite the forwards that need it, and drop activations that nothing calls."""
    to_rewrite: dict[nn.Module, list[_Site]] = defaultdict(list)
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


def _rewrite(owner: nn.Module, graphs: dict[bool, _Graph], sites: list[_Site]) -> None:
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


def _redirected(traced: _Graph, sites: list[_Site]) -> fx.Graph:
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


class _Original(nn.Module):
    """Stands at a site for the proof: the very calls that were there, out of place."""

    def __init__(self, site: _Site) -> None:
        super().__init__()
        self.function = site.call.function
        self.calls, self.count = site.calls, 0

    def forward(self, x: Tensor) -> Any:
        self.count += 1
        call = self.calls.get(self.training) or next(iter(self.calls.values()))
        return self.function(x.clone() if call.in_place else x, *call.args, **call.kwargs)


def _prove(network: nn.Module, example: Any, found: _Found, sites: Sequence[_Site]) -> bool:
    """Whether the network computes the same with a new place for each of the sites; notes the first that fails."""
    if _same(network, example, found, sites):
        return True
    if not _same(network, example, found, []):
        raise ValueError("the network's outputs differ between two runs from the same random state")
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _same(network, example, found, sites[:middle]) else (good, middle)
    culprit = sites[bad - 1]
    in_place = "what its in-place call changes is used elsewhere"
    culprit.why_not = (
        in_place if culprit.call.in_place else "the outputs change when it gets a place of its own"
    )
    return False


def _same(network: nn.Module, example: Any, found: _Found, sites: Sequence[_Site]) -> bool:
    """Whether outputs keep their bits with the original calls at the sites' new places, each made where it was."""
    originals = {site: _Original(site) for site in sites}
    saved = _structure(network)
    try:
        _install(found, originals)
        for training, before in found.outputs.items():
            after = _run(network, example, training)
            if len(after) != len(before) or not all(map(_same_bits, after, before)):
                return False
            if any(original.count != (training in site.calls) for site, original in originals.items()):
                return False
            for original in originals.values():
                original.count = 0
    except Exception:  # such as that of a forward that looks into its activation
        return False
    finally:
        _restore(saved)
    return True


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _make_unit(network: nn.Module, act_layer: Callable[..., nn.Module], site: _Site) -> nn.Module:
    """A fresh unit for a site."""
    try:
        unit = act_layer(site.num_features, channel_dim=site.channel_dim)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"act_layer for {site.path}, {site.num_features} channels: {_one_line(error)}"
        ) from error
    if not isinstance(unit, nn.Module):
        raise ValueError(f"act_layer for {site.path} made a {type(unit).__name__}: a module is needed")
    dtypes = [p.dtype for p in network.parameters() if p.is_floating_point()]
    function = site.call.function
    training = function.training if isinstance(function, nn.Module) else site.call.owner.training
    return unit.to(site.call.device, dtypes[0] if dtypes else site.call.x.dtype).train(training)


def _try_units(network: nn.Module, example: Any, units: dict[_Site, nn.Module]) -> None:
    """Run the network and see that every unit takes its input and keeps its shape and dtype."""
    if len(set(units.values())) < len(units):
        raise ValueError("act_layer made the same module for several sites: each needs its own")
    under_way: list[_Site] = []
    calls: Counter[_Site] = Counter()

    def enter(site: _Site, module: nn.Module, args: tuple[Tensor]) -> None:
        under_way.append(site)
        calls[site] += 1

    def leave(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
        x = args[0]
        if not isinstance(output, Tensor) or output.shape != x.shape or output.dtype != x.dtype:
            came = (
                f"{tuple(output.shape)} {output.dtype}"
                if isinstance(output, Tensor)
                else type(output).__name__
            )
            raise ValueError(
                f"{tuple(x.shape)} {x.dtype} goes in and {came} comes out; shape and dtype must be kept"
            )
        under_way.pop()

    modes = {site.auxiliary for site in units}  # one is enough, unless there are auxiliary heads
    with ExitStack() as stack:
        for site, unit in units.items():
            stack.callback(unit.register_forward_pre_hook(functools.partial(enter, site)).remove)
            stack.callback(unit.register_forward_hook(leave).remove)
        try:
            for training in modes:
                _run(network, example, training)
        except Exception as error:
            at = [f"{type(units[site]).__name__} at {site.path}" for site in under_way]
            raise ValueError(
                f"{at[-1] if at else 'the network with its units'}: {_one_line(error)}"
            ) from error
    assert all(calls[site] == len(modes & site.calls.keys()) for site in units), "a unit was not called"


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
