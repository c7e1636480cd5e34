"""Compute the values by which a forward decides while it is traced; name the lines of its source in messages."""

import functools
import linecache
import operator
import os
import re
import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from activations.surgery.kinds import tensors_in
from activations.surgery.state import random_states, set_random_states
from activations.torch_private import tree_map_only

# attributes and methods of a tensor that do not depend on its values
METADATA = re.compile(
    "shape|size|ndim|dim|ndimension|numel|nelement|len|stride|element_size|itemsize|is_contiguous|dtype|device|layout|"
    "type|get_device|is_(cuda|cpu|meta|mps|sparse|quantized|floating_point|complex|nested)"
)
NOT_THE_NETWORK = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))


class CannotRewrite(ValueError):
    """A forward cannot be rewritten; the message needs no knowledge of torch.fx."""


class Values:
    """Evaluator of nodes of a graph that is being traced, as far as sizes and plain arguments decide their values.

    Args:
        root: the module whose forward is traced.
        arguments: of its recorded call, by name; tensors need no data.

    Attributes:
        evaluating: whether a value is being computed, in which nothing is to be traced.
    """

    def __init__(self, root: nn.Module, arguments: dict[str, Any]) -> None:
        self.root, self.arguments = root, arguments
        self.evaluating = False
        self.runs: list[tuple[dict[str, Any], dict[fx.Node, Any]]] = []  # arguments, and values so far

    def _make_runs(self) -> None:
        """Prepare runs for the recorded size of the batch, and for two others."""
        first = next(tensors_in(self.arguments), None)
        rows = first.shape[0] if first is not None and first.ndim else 0
        for new_rows in (rows, 2 * rows, 1):
            zeros = functools.partial(_zeros_like, rows, new_rows)
            self.runs.append((tree_map_only(Tensor, zeros, self.arguments), {}))

    def of(self, node: fx.Node) -> Any:
        """Return the value of ``node``.

        Raises:
            CannotRewrite: it depends on the values of a tensor or on the size of the batch.
        """
        states = random_states()
        self.evaluating = True
        try:
            with torch.no_grad():
                if not self.runs:
                    self._make_runs()
                (arguments, values), *others = self.runs
                value = self._evaluate(node, arguments, values)
                if any(True for _ in tensors_in(value)):
                    raise CannotRewrite("it decides by the values of a tensor")
                for arguments, values in others:
                    try:
                        other = self._evaluate(node, arguments, values)
                    except Exception:  # A batch that the network does not take tells nothing.
                        continue
                    if other != value:
                        raise CannotRewrite("it decides by the size of the batch")
        finally:
            self.evaluating = False
            set_random_states(states)
        return value

    def _evaluate(self, node: fx.Node, arguments: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
        needed, pending = [], [node]
        while pending:
            if (last := pending.pop()) not in values:
                needed.append(last)
                pending.extend(last.all_input_nodes)
        for node_needed in sorted(set(needed)):
            values[node_needed] = self._compute(node_needed, arguments, values)
        return values[node]

    def _compute(self, node: fx.Node, arguments: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        target: Any = node.target
        name: Any = ""
        if node.op == "placeholder":
            return arguments[target.lstrip("*")]
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_module":
            value = self.root.get_submodule(target)(*args, **kwargs)
        elif node.op == "call_method":
            name, value = target, getattr(args[0], target)(*args[1:], **kwargs)
        else:
            name = args[1] if target is getattr else getattr(target, "__name__", "")
            value = target(*args, **kwargs)
        of_tensors = any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))
        if of_tensors and not METADATA.fullmatch(name) and not any(True for _ in tensors_in(value)):
            raise CannotRewrite("it decides by the values of a tensor")
        return value


def _zeros_like(rows: int, new_rows: int, tensor: Tensor) -> Tensor:
    """Return zeros like ``tensor``, with ``new_rows`` instead of ``rows``."""
    shape = (new_rows, *tensor.shape[1:]) if tensor.ndim and tensor.shape[0] == rows else tensor.shape
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)


def explain(error: BaseException) -> str:
    """Return why a forward cannot be rewritten, with the line of the network's source that stands in the way."""
    why = str(error) if isinstance(error, CannotRewrite) else "what it does cannot be followed"
    lines = []
    traceback = error.__traceback__
    while traceback is not None:
        lines.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    line = _first_network_line(reversed(lines))
    return f"{why}: {line}" if line else why


def current_line() -> str:
    """Return the line of the network's source that is being executed."""
    frame, lines = sys._getframe(), []
    while frame is not None:
        lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return _first_network_line(lines)


def _first_network_line(innermost_first: Iterable[tuple[CodeType, int]]) -> str:
    for code, number in innermost_first:
        if code is fx.Tracer.trace.__code__:
            break
        name = code.co_filename
        if not name.startswith(NOT_THE_NETWORK) and (text := linecache.getline(name, number).strip()):
            return f"`{text}` ({os.path.basename(name)}, line {number})"
    return ""
