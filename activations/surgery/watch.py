"""Watch a network run: which activations it calls, from where, and which dimension of their inputs holds channels."""

import inspect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from activations.surgery.kinds import (
    CUSTOM_KINDS,
    FUNCTIONS,
    GATE_FUNCTIONS,
    HAND_WRITTEN,
    IS_CONSTANT,
    IS_GATE,
    KERNELS,
    NO_LAYER_BEFORE,
    OUTPUTS,
    RECURRENT,
    Place,
    kind_of,
    one_line,
    outer_modules,
    tensors_in,
    without_data,
)
from activations.surgery.runs import run_in_mode
from activations.surgery.sites import Call, Site
from activations.torch_private import DisableTorchFunction, TorchDispatchMode, has_hooks, tree_map_only

# How a function treats the channels: it puts them first or last, moves them, or mixes their dimension with others.
# All other functions leave them where they are.
CHANNELS_FIRST = re.compile("conv(_transpose)?[123]d|(batch|instance|group)_norm")
CHANNELS_LAST = re.compile("linear|embedding|multi_head_attention_forward|(lstm|gru)(_cell)?")
NORMS = re.compile("layer_norm|rms_norm")  # They leave channels where they are.
MOVES = re.compile(
    "view(_as)?|reshape(_as)?|(un)?flatten|permute|transpose|swap(axes|dims)|move(dim|axis)|(un)?squeeze|t|"
    "select|split|chunk|stack|unbind|expand|__getitem__|__get__|mean|sum|amax"
)
PRODUCTS = re.compile("_*matmul_*|bmm")
# Moves in place are among those that mix, as they leave no input whose shadow could be moved.
MIXES = re.compile("__rmatmul__|baddbmm|einsum|tensordot|(t|transpose|swap(axes|dims)|(un)?squeeze)_")
ADDITIONS = re.compile("_*[ri]?add_*")
ELEMENTWISE = re.compile("_*[ri]?(add|sub|mul|div|true_?div|pow|neg|square)_*")
# An activation is still the network's last operation if only these follow.
JOINS = re.compile("cat|concat|stack")
REARRANGEMENTS = re.compile(
    f"({ELEMENTWISE.pattern})|view|reshape|(un)?flatten|permute|transpose|(un)?squeeze|select|split|chunk|unbind|"
    "__getitem__|contiguous|clone|float|to"
)
FACTORS = re.compile("tanh_?|softplus|relu6|hardtanh_?")  # Other activations are hand-written with them.


class _Origin(NamedTuple):
    """What a tensor is computed from, element by element.

    Attributes:
        multiple_of: tokens of the tensors of which it is a multiple.
        computed_from: tokens of all tensors that it is a function of.
        factors: activations whose result it is up to constants, each with what its input is computed from.
    """

    multiple_of: frozenset[int]
    computed_from: frozenset[int]
    factors: tuple[tuple[Call, frozenset[int]], ...] = ()


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
        self.activation_depth = 0  # What runs inside an activation is not recorded.
        self.conv_stack: tuple[nn.Module, ...] = ()
        self.marks: Any = WeakTensorKeyDictionary()
        self.input_plus_three: Any = WeakTensorKeyDictionary()
        # tensors that are sure not to depend on the input
        self.constants: Any = WeakTensorKeyDictionary()
        self.constants.update(dict.fromkeys([*network.parameters(), *network.buffers()], True))
        self.origins: Any = WeakTensorKeyDictionary()
        # calls whose results a tensor holds, at most rearranged
        self.producers: Any = WeakTensorKeyDictionary()
        self.tokens = itertools.count()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of all modules but those inside activations."""
        if module in self.places:
            if not self.activation_depth:
                why_stays = IS_GATE if kind_of(module) == "gate" else ""
                with DisableTorchFunction():
                    self.record(module, type(module).__name__, self.places[module], args, kwargs, why_stays)
            self.activation_depth += 1
        else:
            self.runs[module] += 1
            with DisableTorchFunction():
                self.stack.append((module, _arguments(module, args, kwargs)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Forward hook of the same modules."""
        if module not in self.places:
            self.stack.pop()
            if not self.stack:
                for call in self._producers_of(tensors_in(out)):
                    relu6 = call.bounds == (0, 6)
                    limits = OUTPUTS.fullmatch(call.name.lower()) is not None and not relu6
                    call.output = limits or call.custom is not None
            return
        self.activation_depth -= 1
        if not self.activation_depth:
            with DisableTorchFunction():
                self.follow("", module, args, kwargs, out)
            self._record_result(out, args, kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.activation_depth or not self.stack:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        activation = FUNCTIONS.fullmatch(name) or GATE_FUNCTIONS.fullmatch(name)
        if activation:
            why_stays = IS_GATE if GATE_FUNCTIONS.fullmatch(name) else ""
            self.record(func, name, self._place_of(func, args, kwargs), args, kwargs, why_stays)
        opaque = bool(activation or RECURRENT.fullmatch(name))
        self.activation_depth += opaque
        try:
            out = func(*args, **kwargs)
        finally:
            self.activation_depth -= opaque
        self.follow(name, func, args, kwargs, out)
        if activation:
            self._record_result(out, args, kwargs)
        return out

    def record(
        self,
        function: Any,
        name: str,
        place: Place | None,
        args: Any,
        kwargs: Any,
        why_stays: str,
        why_not: str = "",
    ) -> None:
        """Record a call, and what stands in the way of a unit."""
        stack = tuple(module for module, _ in self.stack)
        owner, arguments = self.stack[-1]
        x = next(tensors_in((args, kwargs)))
        mark = self.marks.get(x)
        if x.ndim == 2 and (mark is None or (isinstance(mark, Tensor) and (mark == mark[:1]).all())):
            mark = 1
        # A hand-written hard sigmoid is relu6(x + 3) / 6.
        hard_sigmoid = name.lower() in ("relu6", "hardtanh", "hardtanh_") and x in self.input_plus_three
        if x in self.constants:
            why_stays = IS_CONSTANT
        elif hard_sigmoid or x.ndim < 2:
            why_stays = why_stays or IS_GATE
        dim = mark if isinstance(mark, int) and mark > 0 else None
        if isinstance(function, nn.Module) and (len(args) != 1 or kwargs or args[0] is not x):
            why_not = "it is called with something else than one tensor"
        elif isinstance(mark, int) and dim is None:
            why_not = why_not or f"unbatched input: dimension 0 of {tuple(x.shape)} holds the channels"
        elif dim is None:
            why_not = why_not or f"which dimension of {tuple(x.shape)} holds the channels cannot be told"
        custom = CUSTOM_KINDS.get().get(function) if isinstance(function, nn.Module) else None
        if custom and custom.by_rule and dim is None and x not in self.marks:
            why_stays = why_stays or NO_LAYER_BEFORE  # It may well prepare the data.
        kwargs = {key: value for key, value in kwargs.items() if value is not x}
        call = Call(function, name, place, stack, self.runs[owner], arguments, without_data(x), args[1:], kwargs,
                    dim, why_stays, why_not, self.conv_stack, custom)  # fmt: skip
        self.calls.append(call)
        if not why_stays:
            self.conv_stack = ()

    def _place_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place | None:
        """Return where the running module keeps ``func``, if it calls it as it would call a unit."""
        owner = self.stack[-1][0]
        names = [name for name, value in vars(owner).items() if value is func]
        if len(names) != 1 or len(args) != 1:
            return None
        # A function written in Python reports its defaults too.
        known = inspect.signature(func).parameters if inspect.isfunction(func) else {}
        plain = all(key in known and known[key].default == value for key, value in kwargs.items())
        return (owner, names[0]) if plain else None

    def _record_result(self, out: Any, args: Any, kwargs: Any) -> None:
        """Add the result to the last call, that of an activation or a gate."""
        self.calls[-1].in_place = any(out is x for x in tensors_in((args, kwargs)))
        self.producers.update((x, (self.calls[-1],)) for x in tensors_in(out))

    def follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Derive what is known of the outputs of a call from what is known of its operands."""
        results = list(tensors_in(out))
        operands = list(tensors_in((args, kwargs)))
        self._follow_constants(name, operands, results)
        self._follow_producers(name, operands, results)
        factor = FACTORS.fullmatch(name) and (
            not name.startswith("hardtanh") or self.calls[-1].bounds == (0, 1)
        )
        if results and (factor or ELEMENTWISE.fullmatch(name)):
            self._follow_origins(name, operands, results[0], self.calls[-1] if factor else None)
        if CHANNELS_FIRST.fullmatch(name) and name.startswith("conv"):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if max(weight.shape[2:]) > 1:
                self.conv_stack = tuple(module for module, _ in self.stack)
        if ADDITIONS.fullmatch(name) and any(type(x) in (int, float) and x == 3 for x in args):
            self.input_plus_three[out] = True
        for result, mark in zip(results, self._marks_of(name, func, args, kwargs, results), strict=True):
            if mark is None:
                self.marks.pop(result, None)
            else:
                self.marks[result] = mark

    def _follow_constants(self, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        """Results of constants are constant; what is written in place is not."""
        if operands and all(x in self.constants for x in operands):
            self.constants.update(dict.fromkeys(results, True))
            return
        written = [x for x in operands if name == "__setitem__" or any(x is result for result in results)]
        for x in [*written, *(x._base for x in written if x._base is not None)]:
            self.constants.pop(x, None)

    def _follow_producers(self, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        """What only rearranges or joins results of activations still holds them."""
        varying = [x for x in operands if x not in self.constants]
        keeps = JOINS.fullmatch(name) or (REARRANGEMENTS.fullmatch(name) and len(varying) == 1)
        calls = tuple(self._producers_of(varying)) if keeps else ()
        self.producers.update((x, calls) for x in results)

    def _producers_of(self, tensors: Iterable[Tensor]) -> Iterator[Call]:
        for x in tensors:
            yield from self.producers.get(x, ())

    def _follow_origins(self, name: str, operands: list[Tensor], out: Tensor, call: Call | None) -> None:
        """Find factors of a product that are functions of the other factor, as in ``x * softplus(x).tanh()``: no sites.

        ``call`` is the activation that made ``out``, if it is one of ``FACTORS``.
        """
        operands = [x for x in operands if x not in self.constants]
        origins = [self.origins.get(x) or self.origins.setdefault(x, self._new_origin()) for x in operands]
        if "mul" in name:
            for one, other in itertools.permutations(origins, 2):
                for factor, computed_from in other.factors:
                    if one.multiple_of & computed_from:
                        factor.why_stays = factor.why_stays or HAND_WRITTEN
        multiple_of, computed_from, factors = self._new_origin()
        computed_from = computed_from.union(*(origin.computed_from for origin in origins))
        if len(operands) == 1:
            factors = origins[0].factors
        if call and origins:
            factors = (*factors, (call, origins[0].computed_from))
        elif len(operands) == 1:
            multiple_of |= origins[0].multiple_of
        self.origins[out] = _Origin(multiple_of, computed_from, factors)

    def _new_origin(self) -> _Origin:
        """Return the origin of a tensor that is not computed element by element."""
        token = frozenset([next(self.tokens)])
        return _Origin(token, token)

    def _marks_of(self, name: str, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> list[Any]:
        """Return the marks of a call's results; None for a result that has none."""
        marked = [x for x in tensors_in((args, kwargs)) if x in self.marks]
        if CHANNELS_FIRST.fullmatch(name):
            # An unbatched input of a convolution has its channels first.
            return [x.ndim - int(name[-2]) - 1 if name.endswith("d") else 1 for x in results]
        if CHANNELS_LAST.fullmatch(name):
            return [x.ndim - 1 for x in results]
        if NORMS.fullmatch(name) and args[0] not in self.marks:
            shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            return [x.ndim - 1 if len(shape) == 1 else None for x in results]
        if marked and MOVES.fullmatch(name):
            marks = self._moved(Tensor.reshape if name == "view" else func, args, kwargs)
            return marks if len(marks) == len(results) else [None] * len(results)
        if marked and PRODUCTS.fullmatch(name):
            return [self._multiplied(results[0], *args)]
        if marked and not MIXES.fullmatch(name):
            return [self._inherited(x, marked) for x in results]
        return [None] * len(results)

    def _moved(self, func: Any, args: Any, kwargs: Any) -> list[Any]:
        """Return the marks of a move's results; nothing if its input has none, or shadows cannot make it."""
        if not args or not all(x in self.marks for x in tensors_in(args[0])):
            return []
        try:
            out = func(tree_map_only(Tensor, self._shadow, args[0]), *args[1:], **kwargs)
        except (RuntimeError, TypeError, IndexError):
            return []
        return [*map(_mark_of_shadow, tensors_in(out))]

    def _multiplied(self, result: Tensor, a: Tensor, b: Tensor) -> Any:
        """Return a product's mark: that of the factor without channels in the dimension that is summed over."""
        for x, summed in ((b, -2), (a, -1)):
            if x in self.marks and x.ndim == result.ndim:
                shadow = self._shadow(x)
                if (shadow == shadow.narrow(summed, 0, 1)).all():
                    return _mark_of_shadow(shadow.narrow(summed, 0, 1).expand(result.shape))
        return None

    def _inherited(self, result: Tensor, marked: list[Tensor]) -> Any:
        """Return the mark of a result that has its channels where its operands have them."""
        marks = [self.marks[x] for x in marked if x.ndim == result.ndim]
        dims = {mark for mark in marks if isinstance(mark, int)}
        if dims:
            return dims.pop() if len(dims) == 1 else None
        return next((mark for mark in marks if mark.shape == result.shape), None)

    def _shadow(self, x: Tensor) -> Tensor:
        """Return the shadow of a tensor that has a mark."""
        mark = self.marks[x]
        if isinstance(mark, Tensor):
            return mark
        shape = [-1 if dim == mark else 1 for dim in range(x.ndim)]
        return torch.arange(x.shape[mark], device=x.device, dtype=torch.float32).view(shape).expand(x.shape)


class _Kernels(TorchDispatchMode):
    """Records activations that compiled code calls, which never show in Python."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if KERNELS.fullmatch(name) and self.watch.stack and not self.watch.activation_depth:
            self.watch.record(func, name, None, args, kwargs or {}, "", "it is called by compiled code")
        return func(*args, **(kwargs or {}))


def _mark_of_shadow(shadow: Tensor) -> Any:
    """Return the one dimension along which a shadow changes, each channel having one place; else the shadow itself."""
    ends = [slice(None, None, max(n - 1, 1)) for n in shadow.shape]  # The corners tell enough.
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
    """Return the arguments of a module's call by name, defaults included; tensors without their data."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return tree_map_only(Tensor, without_data, dict(bound.arguments))


def run_watched(network: nn.Module, example: Any, training: bool, watch: Watch) -> list[Tensor]:
    """Run the network under ``watch``, and return its output tensors."""
    with ExitStack() as stack:
        for module in {*outer_modules(network), *watch.places}:
            enter = module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
            leave = module.register_forward_hook(watch.leave, with_kwargs=True, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(_Kernels(watch))
        stack.enter_context(watch)
        try:
            return run_in_mode(network, example, training)
        except Exception as error:
            error_when_watched = error
    mode = "training" if training else "evaluation"
    try:
        run_in_mode(network, example, training)
    except Exception as error:
        raise ValueError(f"the network fails on example_input in {mode}: {one_line(error)}") from error
    why = one_line(error_when_watched)
    raise ValueError(
        f"the network runs in {mode}, but not while it is watched: {why}"
    ) from error_when_watched


def make_sites(network: nn.Module, watches: dict[bool, Watch], shared: str) -> list[Site]:
    """Return the sites and gates of both runs, and why they cannot be replaced as far as these tell.

    ``shared``: see ``replace_activations``.
    """
    paths = {module: path for path, module in network.named_modules()}
    repeated = {place for watch in watches.values() for place in _places_for_several_units(watch, shared)}
    sites: dict[Any, Site] = {}
    for training, watch in watches.items():
        numbers: dict[Any, Iterator[int]] = defaultdict(itertools.count)
        for call in watch.calls:
            index = next(numbers[call.owner, call.in_graph, call.owner_run])
            alone = call.place is not None and call.place not in repeated
            key = call.place if alone else (call.owner, call.in_graph, index)
            site = sites.setdefault(key, Site({}, None if alone else index))
            site.times[training] += 1
            first = site.calls.setdefault(training, call)
            site.why_not = site.why_not or call.why_not or _why_not_by_hooks(call.function)
            if call.signature != site.call.signature and first is call:
                site.why_not = "it is not the same in training and in evaluation"
            if call.owner_run > 1 and (shared == "call" or not _one_unit_fits(first, call)):
                owner = f"{type(call.owner).__name__} {paths[call.owner]}".strip()
                why_not = f"its {owner} runs {watch.runs[call.owner]} times in one forward"
                site.why_not = why_not + (
                    ', with the same weights (shared="unit" gives one unit to all of them)'
                    if shared == "call"
                    else ", and not with the same channels"
                )
    _name_sites(sites.values(), paths)
    return list(sites.values())


def _places_for_several_units(watch: Watch, shared: str) -> Iterator[Place]:
    """Yield the places whose activation is called several times in one run of its owner, and needs several units."""
    calls: dict[Place, list[Call]] = defaultdict(list)
    for call in watch.calls:
        if call.owner_run == 1 and call.place is not None:
            calls[call.place].append(call)
    for place, (first, *others) in calls.items():
        if others and (shared == "call" or not all(_one_unit_fits(first, call) for call in others)):
            yield place


def _one_unit_fits(a: Call, b: Call) -> bool:
    """Return whether one unit could serve both calls."""
    parts = [(a.function, b.function), *itertools.zip_longest(a.args, b.args)]
    parts += [(a.kwargs.get(key), b.kwargs.get(key)) for key in {**a.kwargs, **b.kwargs}]
    same = all(x is y or (type(x) is type(y) and not isinstance(x, Tensor) and x == y) for x, y in parts)
    return (
        same
        and a.signature == b.signature
        and (a.channel_dim, a.why_stays, a.in_place) == (b.channel_dim, b.why_stays, b.in_place)
    )


def _why_not_by_hooks(function: Any) -> str:
    has_any = isinstance(function, nn.Module) and has_hooks(function)
    return "it has hooks, which its unit would lose" if has_any else ""


def _name_sites(sites: Collection[Site], paths: dict[nn.Module, str]) -> None:
    """Give every site its path and the attribute for its unit: where it is kept, or a new one of its owner."""
    bases: dict[Site, Place] = {}
    for site in sites:
        name = site.call.name.strip("_")
        site.slot = site.call.place or (site.call.owner, name)
        if site.index is not None:
            kept = site.call.graph_key == site.call.place
            bases[site] = site.call.owner, site.slot[1] if kept else name
    total, numbers = Counter(bases.values()), Counter[Place]()
    for site in sites:
        if site in bases:
            owner, name = base = bases[site]
            numbers[base] += 1
            name += f"_{numbers[base]}" if total[base] > 1 else ""
            while hasattr(owner, name):
                name += "_"
            site.slot = owner, name
        site.path = f"{paths[site.slot[0]]}.{site.slot[1]}".lstrip(".")
