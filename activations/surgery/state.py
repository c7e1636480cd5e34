"""Remember whatever running or rewriting a network can change, and put it back."""

import collections
import functools
import random
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from activations.torch_private import TENSOR_HOOKS

CONTAINERS = (dict, list, set, collections.deque)
# Containers, objects and closures are followed this far below an attribute of a module. What lies deeper is rarely the
# network's own state: a LightningModule, for one, refers to its trainer.
DEPTH = 4
# Hooks of these packages are not followed: those that watch a run keep what they have recorded.
OURS = "activations.surgery", "activations.swap"


class Snapshot:
    """The state of a network and of the random generators.

    Of every module that can be reached: its class with the class's attributes, its attributes, children, parameters,
    buffers and hooks of all kinds. Of every tensor: its values, shape, gradient, hooks and ``requires_grad``. Lists,
    dicts, sets, plain objects and what functions enclose are followed as well. Of the rest: the states of torch's,
    numpy's and Python's generators, of those that modules hold, whether gradients are enabled, and the hooks that
    hold for all modules. Iterators and files cannot be put back.

    Args:
        values: keep the tensors' values too; without them, only which tensors there are.
    """

    def __init__(self, network: nn.Module, *, values: bool = True) -> None:
        self.values = values
        self.seen: dict[int, Any] = {}  # by id; keeping them alive keeps the ids unique
        self.classes: list[tuple[nn.Module, type]] = []
        self.scripted: list[tuple[nn.Module, bool]] = []
        self.class_attributes: list[tuple[type, dict[str, Any]]] = []
        self.containers: list[tuple[Any, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.tensors: list[_TensorState] = []
        self.generators: list[tuple[Any, Any]] = []
        for name, value in vars(torch_module).items():
            if name.startswith("_global_") and isinstance(value, dict):
                self._remember_items(value)
        self._visit(network)
        self.random_states = random_states()
        self.grad_enabled = torch.is_grad_enabled()

    def restore(self) -> None:
        """Put everything back; what has not changed is not written."""
        torch.set_grad_enabled(self.grad_enabled)
        set_random_states(self.random_states)
        for generator, state in self.generators:
            _set_state(generator, state)
        for module, cls in self.classes:
            if type(module) is not cls:
                module.__class__ = cls
        for module, training in self.scripted:
            module.training = training
        for cls, attributes in self.class_attributes:
            for name in vars(cls).keys() - attributes.keys():
                delattr(cls, name)
            for name, value in attributes.items():
                if vars(cls).get(name) is not value:
                    setattr(cls, name, value)
        for container, content in self.containers:
            refill(container, content)
        for cell, value in self.cells:
            if _contents_of(cell) is not value:
                cell.cell_contents = value
        for tensor in self.tensors:
            tensor.restore()

    def _visit(self, root: Any) -> None:
        pending = [(root, 0)]
        while pending:
            value, depth = pending.pop()
            if id(value) in self.seen or depth > DEPTH or _is_ours(value):
                continue
            self.seen[id(value)] = value
            deeper = 0 if isinstance(value, nn.Module) else depth + 1
            pending.extend((part, deeper) for part in self._parts(value))

    def _parts(self, value: Any) -> Iterable[Any]:
        """Remember the state of one object, and return the objects that it refers to."""
        if isinstance(value, Tensor):
            if not is_lazy(value):
                self.tensors.append(_TensorState(value, self.values))
            self._remember_items(vars(value))
            return vars(value).values()
        if isinstance(value, torch.jit.ScriptModule):
            self.scripted.extend((module, module.training) for module in value.modules())
            return [*value.parameters(), *value.buffers()]
        if isinstance(value, nn.Module):
            self.classes.append((value, type(value)))
            cls = type(value)
            if id(cls) not in self.seen and not cls.__module__.startswith("torch."):
                self.seen[id(cls)] = cls
                self.class_attributes.append((cls, dict(vars(cls))))
            self._remember_items(vars(value))
            return vars(value).values()
        if isinstance(value, dict):
            self._remember_items(value)
            return value.values()
        if isinstance(value, list | set | collections.deque):
            self._remember_items(value)
            return value
        if isinstance(value, tuple):
            return value
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, types.MethodType):
            return [value.__self__]
        if isinstance(value, types.FunctionType):
            cells = value.__closure__ or ()
            self.cells.extend((cell, _contents_of(cell)) for cell in cells)
            return map(_contents_of, cells)
        if (state := _state_of(value)) is not None:
            self.generators.append((value, state))
            return ()
        if isinstance(value, type | types.ModuleType | weakref.ReferenceType) or not hasattr(
            value, "__dict__"
        ):
            return ()
        self._remember_items(vars(value))
        return vars(value).values()

    def _remember_items(self, container: Any) -> None:
        if isinstance(container, CONTAINERS):  # vars() of a class with its own metaclass may be none.
            self.containers.append((container, _items(container)))


class _TensorState:
    """The state of a tensor that can be changed in place."""

    def __init__(self, tensor: Tensor, values: bool) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()  # It shares the memory, and keeps the shape of now.
        self.plain = tensor.layout is torch.strided and not tensor.is_meta
        self.value = self.alias.clone() if values and self.plain else None
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_value = None if self.grad is None or not values else self.grad.detach().clone()
        self.hooks = [
            (name, hooks, None if hooks is None else dict(hooks))
            for name in TENSOR_HOOKS
            if (hooks := getattr(tensor, name, None)) is not None or tensor.is_leaf
        ]

    def restore(self) -> None:
        tensor = self.tensor
        if self.plain and _memory(tensor) != _memory(self.alias):
            tensor.data = self.alias
        if self.value is not None:
            write([(tensor, self.value)])
        if tensor.is_leaf:
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
            if self.grad is not None and self.grad_value is not None:
                write([(self.grad, self.grad_value)])
        for name, hooks, content in self.hooks:
            if getattr(tensor, name) is not hooks:
                setattr(tensor, name, hooks)
            if hooks is not None:
                refill(hooks, content)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put ``network`` and the random generators back, whatever happens to them."""
    snapshot = Snapshot(network)
    try:
        yield
    finally:
        snapshot.restore()


def write(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into the first, unless they are equal already: a copy counts as a change."""
    with torch.no_grad():
        for tensor, value in values:
            if not same_values(tensor, value):
                tensor.copy_(value)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether shapes, dtypes and values are equal; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def refill(container: Any, content: Any) -> None:
    """Give a container the items of another, unless it has these very objects, in this order."""
    if has_items(container, content):
        return
    container.clear()
    if isinstance(container, dict | set):
        container.update(content)
    else:
        container.extend(content)


def has_items(container: Any, content: Any) -> bool:
    """Return whether a container has the very objects of another; the order counts but in sets."""
    if isinstance(container, set):
        return set(map(id, container)) == set(map(id, content))
    return _identities(container) == _identities(content)


def random_states() -> tuple[Any, ...]:
    """Return the states of the global generators of Python, numpy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def set_random_states(states: tuple[Any, ...]) -> None:
    """Undo whatever has been drawn since ``random_states``."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def have_drawn(states: tuple[Any, ...]) -> bool:
    """Return whether a global generator on the CPU has moved since ``random_states``."""
    (python, (_, keys, *rest), cpu, _), (python0, (_, keys0, *rest0), cpu0, _) = random_states(), states
    return python != python0 or rest != rest0 or not np.array_equal(keys, keys0) or not torch.equal(cpu, cpu0)


def _state_of(value: Any) -> Any:
    """Return the state of a random generator; None if ``value`` is none."""
    if isinstance(value, torch.Generator | np.random.RandomState):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return value.getstate() if isinstance(value, random.Random) else None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)


def _is_ours(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return False
    if isinstance(value, types.MethodType | functools.partial):
        value = value.__func__ if isinstance(value, types.MethodType) else value.func
    name = value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__
    return isinstance(name, str) and name.startswith(OURS)


def _contents_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty.
        return None


def _items(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _identities(container: Any) -> Any:
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    return list(map(id, container))


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
