"""Watch a network run: which activations it calls, from where, and in which dimension their inputs have channels."""

import inspect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from activations.surgery.kinds import (
    BY_HAND,
    FIXED,
    FUNCTIONS,
    GATE,
    GATE_FUNCTIONS,
    KERNELS,
    OUTPUTS,
    OWN,
    RAW,
    RECURRENT,
    Place,
    kind_of,
    one_line,
    outside,
    tensors_in,
    without_data,
)
from activations.surgery.runs import run_in_mode
from activations.surgery.sites import Call, Site
from activations.torch_private import DisableTorchFunction, TorchDispatchMode, has_hooks, tree_map_only

# functions that put channels first or last, or move them; those that do not mix leave them in their dimension
FIRST = re.compile("conv(_transpose)?[123]d|(batch|instance|group)_norm")
LAST = re.compile("linear|embedding|multi_head_attention_forward|(lstm|gru)(_cell)?")
NORMS = re.compile("layer_norm|rms_norm")  # leave channels where they are
MOVES = re.compile(
    "view(_as)?|reshape(_as)?|(un)?flatten|permute|transpose|swap(axes|dims)|move(dim|axis)|(un)?squeeze|t|"
    "select|split|chunk|stack|unbind|expand|__getitem__|__get__|mean|sum|amax"
)
PRODUCTS = re.compile("_*matmul_*|bmm")
# those in place leave no input whose shadow could be moved
MIXES = re.compile("__rmatmul__|baddbmm|einsum|tensordot|(t|transpose|swap(axes|dims)|(un)?squeeze)_")
ELEMENTWISE = re.compile("_*[ri]?(add|sub|mul|div|true_?div|pow|neg|square)_*")
# what leaves an activation the last that a network computes
JOINS = re.compile("cat|concat|stack")
ARRANGES = re.compile(
    f"({ELEMENTWISE.pattern})|view|reshape|(un)?flatten|permute|transpose|(un)?squeeze|select|split|chunk|unbind|"
    "__getitem__|contiguous|clone|float|to"
)
FACTORS = re.compile("tanh_?|softplus|relu6|hardtanh_?")  # of which other activations are made by hand


class Watch(TorchFunctionMode):
    """Records the calls of one run, and follows through it in which dimension every tensor has its channels.

    A tensor's mark is that dimension or, where a move leaves none, a shadow: a tensor of its shape that holds the
    number of each element's channel. Shadows make the same moves, and so show where the channels went.
    """

    def __init__(self, network: nn.Module, places: dict[nn.Module, Place]) -> None:
        super().__init__()
        self.places = places
        self.calls: list[Call] = []
        self.runs: Counter[nn.Module] = Counter()
        self.stack: list[tuple[nn.Module, dict[str, Any]]] = []
        self.inside = 0  # an activation: what it does is its own affair
        self.window: tuple[nn.Module, ...] = ()
        self.marks: Any = WeakTensorKeyDictionary()
        self.plus_three: Any = WeakTensorKeyDictionary()
        # tensors that are sure not to depend on the input
        self.fixed: Any = WeakTensorKeyDictionary()
        self.fixed.update(dict.fromkeys([*network.parameters(), *network.buffers()], True))
        self.origins: Any = WeakTensorKeyDictionary()  # see derive
        self.made_by: Any = (
            WeakTensorKeyDictionary()
        )  # calls whose results a tensor holds, at most rearranged
        self.tokens = itertools.count()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of all modules but those inside activations."""
        if module in self.places:
            if not self.inside:
                gate = GATE if kind_of(module) == "gate" else ""
                with DisableTorchFunction():
                    self.record(module, type(module).__name__, self.places[module], args, kwargs, gate)
            self.inside += 1
        else:
            self.runs[module] += 1
            with DisableTorchFunction():
                self.stack.append((module, _arguments(module, args, kwargs)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Forward hook of the same modules."""
        if module not in self.places:
            self.stack.pop()
            if not self.stack:
                for call in itertools.chain(*(self.made_by.get(x, ()) for x in tensors_in(out))):
                    relu6 = call.bounds == (0, 6)
                    limits = OUTPUTS.fullmatch(call.name.lower()) is not None and not relu6
                    call.output = limits or call.own is not None
            return
        self.inside -= 1
        if not self.inside:
            with DisableTorchFunction():
                self.follow("", module, args, kwargs, out)
            self.finish(out, args, kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside or not self.stack:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        activation = FUNCTIONS.fullmatch(name) or GATE_FUNCTIONS.fullmatch(name)
        if activation:
            gate = GATE if GATE_FUNCTIONS.fullmatch(name) else ""
            self.record(func, name, self.attribute(func, args, kwargs), args, kwargs, gate)
        opaque = bool(activation or RECURRENT.fullmatch(name))
        self.inside += opaque
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside -= opaque
        self.follow(name, func, args, kwargs, out)
        if activation:
            self.finish(out, args, kwargs)
        return out

    def finish(self, out: Any, args: Any, kwargs: Any) -> None:
        """Note what came out of the call of an activation or a gate."""
        self.calls[-1].in_place = any(out is x for x in tensors_in((args, kwargs)))
        self.made_by.update((x, (self.calls[-1],)) for x in tensors_in(out))

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
        gate: str,
        why_not: str = "",
    ) -> None:
        """Note a call, and what stands in the way of a unit."""
        stack = tuple(module for module, _ in self.stack)
        owner, arguments = self.stack[-1]
        x = next(tensors_in((args, kwargs)))
        channel = self.marks.get(x)
        if x.ndim == 2 and (
            channel is None or (isinstance(channel, Tensor) and (channel == channel[:1]).all())
        ):
            channel = 1
        # a hard sigmoid written by hand is relu6(x + 3) / 6
        by_hand = name.lower() in ("relu6", "hardtanh", "hardtanh_") and x in self.plus_three
        gate = FIXED if x in self.fixed else gate or (GATE if by_hand or x.ndim < 2 else "")
        if isinstance(function, nn.Module) and (len(args) != 1 or kwargs or args[0] is not x):
            why_not = "it is called with something else than one tensor"
        elif isinstance(channel, int) and channel == 0:
            why_not = why_not or f"unbatched input: dimension 0 of {tuple(x.shape)} holds the channels"
            channel = None
        elif not isinstance(channel, int):
            why_not = why_not or f"which dimension of {tuple(x.shape)} holds the channels cannot be told"
            channel = None
        own = OWN.get().get(function) if isinstance(function, nn.Module) else None
        if own and own.by_rule and channel is None and x not in self.marks:
            gate = gate or RAW  # it may well prepare the data
        kwargs = {key: value for key, value in kwargs.items() if value is not x}
        call = Call(function, name, place, stack, self.runs[owner], arguments, without_data(x), args[1:], kwargs,
                     channel, gate, why_not, self.window, own=own)  # fmt: skip
        self.calls.append(call)
        if not gate:
            self.window = ()

    def follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Mark the outputs of a call."""
        results = list(tensors_in(out))
        operands = list(tensors_in((args, kwargs)))
        if operands and all(x in self.fixed for x in operands):
            self.fixed.update(dict.fromkeys(results, True))
        else:
            written = [x for x in operands if name == "__setitem__" or any(x is result for result in results)]
            for x in [*written, *(x._base for x in written if x._base is not None)]:
                self.fixed.pop(x, None)
        varying = [x for x in operands if x not in self.fixed]
        rearranged = JOINS.fullmatch(name) or (ARRANGES.fullmatch(name) and len(varying) == 1)
        calls = tuple(itertools.chain(*(self.made_by.get(x, ()) for x in varying))) if rearranged else ()
        self.made_by.update((x, calls) for x in results)
        factor = FACTORS.fullmatch(name) and (
            not name.startswith("hardtanh") or self.calls[-1].bounds == (0, 1)
        )
        if results and (factor or ELEMENTWISE.fullmatch(name)):
            self.derive(name, operands, results[0], self.calls[-1] if factor else None)
        marked = [x for x in operands if x in self.marks]
        marks: list[Any] = [None] * len(results)
        if FIRST.fullmatch(name) and name.startswith("conv"):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if max(weight.shape[2:]) > 1:
                self.window = tuple(module for module, _ in self.stack)
        if re.fullmatch("_*[ri]?add_*", name) and any(type(x) in (int, float) and x == 3 for x in args):
            self.plus_three[out] = True
        if FIRST.fullmatch(name):
            # an unbatched input of a convolution has channels first
            marks = [r.ndim - int(name[-2]) - 1 if name.endswith("d") else 1 for r in results]
        elif LAST.fullmatch(name):
            marks = [result.ndim - 1 for result in results]
        elif NORMS.fullmatch(name) and args[0] not in self.marks:
            shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            marks = [result.ndim - 1 if len(shape) == 1 else None for result in results]
        elif marked and MOVES.fullmatch(name):
            moved = self.moved(Tensor.reshape if name == "view" else func, args, kwargs)
            marks = moved if len(moved) == len(results) else marks
        elif marked and PRODUCTS.fullmatch(name):
            marks = [self.multiplied(results[0], *args)]
        elif marked and not MIXES.fullmatch(name):
            marks = [self.inherited(result, marked) for result in results]
        for result, mark in zip(results, marks, strict=True):
            if mark is None:
                self.marks.pop(result, None)
            else:
                self.marks[result] = mark

    def derive(self, name: str, operands: list[Tensor], out: Tensor, call: Call | None) -> None:
        """Find factors of a product that are functions of the other factor, as in ``x * softplus(x).tanh()``: no sites.

        The origin of a tensor is what it is a multiple of, what it is computed from element by element, and the calls
        whose result it is, up to constants, each with the origin of its input.
        """
        operands = [x for x in operands if x not in self.fixed]
        origins = [self.origins.get(x) or self.origins.setdefault(x, self.origin()) for x in operands]
        if "mul" in name:
            for (multiples, _, _), (_, _, calls) in itertools.permutations(origins, 2):
                for factor, computed_from in calls:
                    if multiples & computed_from:
                        factor.gate = factor.gate or BY_HAND
        multiples, computed_from, calls = self.origin()
        computed_from = computed_from.union(*(origin[1] for origin in origins))
        if len(operands) == 1:
            calls = origins[0][2]
        if call and origins:
            calls = (*calls, (call, origins[0][1]))
        elif len(operands) == 1:
            multiples |= origins[0][0]
        self.origins[out] = multiples, computed_from, calls

    def origin(self) -> tuple[frozenset[int], frozenset[int], tuple[Any, ...]]:
        """That of a tensor which is not computed element by element."""
        token = frozenset([next(self.tokens)])
        return token, token, ()

    def moved(self, func: Any, args: Any, kwargs: Any) -> list[Any]:
        """The marks of what comes out of a move; none if its input has none, or shadows cannot make it."""
        if not args or not all(x in self.marks for x in tensors_in(args[0])):
            return []
        try:
            out = func(tree_map_only(Tensor, self.shadow, args[0]), *args[1:], **kwargs)
        except (RuntimeError, TypeError, IndexError):
            return []
        return [*map(_where, tensors_in(out))]

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

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if KERNELS.fullmatch(name) and self.watch.stack and not self.watch.inside:
            self.watch.record(func, name, None, args, kwargs or {}, "", "it is called by compiled code")
        return func(*args, **(kwargs or {}))


def _where(shadow: Tensor) -> Any:
    """The one dimension along which a shadow changes, each channel having one place; the shadow, if there is none."""
    ends = [slice(None, None, max(n - 1, 1)) for n in shadow.shape]  # to look at the corners is enough
    dims = []
    for dim, n in enumerate(shadow.shape):
        lines = shadow[(*ends[:dim], slice(None), *ends[dim + 1 :])]
        if n > 1 and (lines != lines.narrow(dim, 0, 1)).any():
            dims.append(dim)
    if len(dims) == 1:
        n = shadow.shape[dims[0]]
        if shadow.movedim(dims[0], 0).reshape(n, -1)[:, 0].unique().numel() == n:
            return dims[0]
    return shadow if dims else None


def _arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, defaults included; tensors without their data."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return tree_map_only(Tensor, without_data, dict(bound.arguments))


def watched(network: nn.Module, example: Any, training: bool, watch: Watch) -> list[Tensor]:
    """Run the network under ``watch``."""
    with ExitStack() as stack:
        for module in {*outside(network), *watch.places}:
            enter = module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
            leave = module.register_forward_hook(watch.leave, with_kwargs=True, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(_Kernels(watch))
        stack.enter_context(watch)
        try:
            return run_in_mode(network, example, training)
        except Exception as error:
            own = error
    mode = "training" if training else "evaluation"
    try:
        run_in_mode(network, example, training)
    except Exception as error:
        raise ValueError(f"the network fails on example_input in {mode}: {one_line(error)}") from error
    raise ValueError(f"the network runs in {mode}, but not while it is watched: {one_line(own)}") from own


def make_sites(network: nn.Module, watches: dict[bool, Watch], shared: str) -> list[Site]:
    """The sites and gates of both runs, and why they cannot be replaced as far as these tell.

    ``shared``: see ``replace_activations``.
    """
    paths = {module: path for path, module in network.named_modules()}
    repeated: set[Place | None] = {None}
    for watch in watches.values():
        first_run = [call for call in watch.calls if call.run == 1]
        counts = Counter(call.place for call in first_run)
        for place in [place for place, n in counts.items() if n > 1]:
            calls = [call for call in first_run if call.place == place]
            if shared == "call" or not all(_alike(calls[0], call) for call in calls):
                repeated.add(place)
    sites: dict[Any, Site] = {}
    for training, watch in watches.items():
        numbers: dict[Any, Iterator[int]] = defaultdict(itertools.count)
        for call in watch.calls:
            index = next(numbers[call.owner, call.traced, call.run])
            alone = call.place not in repeated
            key = call.place if alone else (call.owner, call.traced, index)
            site = sites.setdefault(key, Site({}, None if alone else index))
            site.times[training] += 1
            first = site.calls.setdefault(training, call)
            site.why_not = site.why_not or call.why_not or _hooked(call.function)
            if call.features != site.call.features and first is call:
                site.why_not = "it is not the same in training and in evaluation"
            if call.run > 1:
                owner = f"{type(call.owner).__name__} {paths[call.owner]}".strip()
                runs = watch.runs[call.owner]
                if shared == "call":
                    site.why_not = (
                        f"its {owner} runs {runs} times in one forward, with the same weights "
                        '(shared="unit" gives one unit to all of them)'
                    )
                elif not _alike(first, call):
                    site.why_not = (
                        f"its {owner} runs {runs} times in one forward, and not with the same channels"
                    )
    _name(sites.values(), paths)
    return list(sites.values())


def _alike(a: Call, b: Call) -> bool:
    """Whether one unit could serve both calls."""
    parts = [(a.function, b.function), *itertools.zip_longest(a.args, b.args)]
    parts += [(a.kwargs.get(key), b.kwargs.get(key)) for key in {**a.kwargs, **b.kwargs}]
    same = all(x is y or (type(x) is type(y) and not isinstance(x, Tensor) and x == y) for x, y in parts)
    return (
        same
        and a.features == b.features
        and (a.channel_dim, a.gate, a.in_place) == (b.channel_dim, b.gate, b.in_place)
    )


def _hooked(function: Any) -> str:
    hooked = isinstance(function, nn.Module) and has_hooks(function)
    return "it has hooks, which its unit would lose" if hooked else ""


def _name(sites: Collection[Site], paths: dict[nn.Module, str]) -> None:
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
