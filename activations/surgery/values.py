"""Values that a forward takes its decisions by, while it is traced; and the lines of its source, for messages."""

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

# what is known of a tensor without looking at its values
METADATA = re.compile(
    "shape|size|ndim|dim|ndimension|numel|nelement|len|stride|element_size|itemsize|is_contiguous|dtype|device|layout|"
    "type|get_device|is_(cuda|cpu|meta|mps|sparse|quantized|floating_point|complex|nested)"
)
NOT_THE_NETWORK = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))


class Refused(ValueError):
    """What stands in the way of rewriting a forward, in words that need no knowledge of torch.fx."""


class Values:
    """Values of nodes of a graph that is being traced, as far as sizes and plain arguments decide them.

    Args:
        root: the module whose forward is traced.
        arguments: of its recorded call, by name; tensors need no data.
    """

    def __init__(self, root: nn.Module, arguments: dict[str, Any]) -> None:
        self.root, self.arguments = root, arguments
        self.busy = False
        self.runs: list[tuple[dict[str, Any], dict[fx.Node, Any]]] = []

    def _make_runs(self) -> None:
        """The recorded call; then the same for other sizes of the batch."""
        first = next(tensors_in(self.arguments), None)
        rows = first.shape[0] if first is not None and first.ndim else 0
        for n in (rows, 2 * rows, 1):
            self.runs.append(
                (tree_map_only(Tensor, functools.partial(_stand_in, rows, n), self.arguments), {})
            )

    def of(self, node: fx.Node) -> Any:
        """The value of ``node``.

        Raises:
            Refused: it depends on the values of a tensor or on the size of the batch.
        """
        states = random_states()
        self.busy = True
        try:
            with torch.no_grad():
                if not self.runs:
                    self._make_runs()
                (arguments, known), *others = self.runs
                value = self._evaluate(node, arguments, known)
                if any(True for _ in tensors_in(value)):
                    raise Refused("it decides by the values of a tensor")
                for arguments, known in others:
                    try:
                        other = self._evaluate(node, arguments, known)
                    except Exception:  # nothing is known of a batch that the network does not take
                        continue
                    if other != value:
                        raise Refused("it decides by the size of the batch")
        finally:
            self.busy = False
            set_random_states(states)
        return value

    def _evaluate(self, node: fx.Node, arguments: dict[str, Any], known: dict[fx.Node, Any]) -> Any:
        needed, pending = [], [node]
        while pending:
            if (last := pending.pop()) not in known:
                needed.append(last)
                pending.extend(last.all_input_nodes)
        for node_needed in sorted(set(needed)):
            known[node_needed] = self._compute(node_needed, arguments, known)
        return known[node]

    def _compute(self, node: fx.Node, arguments: dict[str, Any], known: dict[fx.Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
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
            raise Refused("it decides by the values of a tensor")
        return value


def _stand_in(rows: int, new_rows: int, tensor: Tensor) -> Tensor:
    """Zeros like ``tensor``, with ``new_rows`` instead of ``rows``."""
    shape = (new_rows, *tensor.shape[1:]) if tensor.ndim and tensor.shape[0] == rows else tensor.shape
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)


def in_words(error: BaseException) -> str:
    """What stood in the way, and the line of the network's source at which it did."""
    why = str(error) if isinstance(error, Refused) else "what it does cannot be followed"
    lines = []
    traceback = error.__traceback__
    while traceback is not None:
        lines.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    line = _line(reversed(lines))
    return f"{why}: {line}" if line else why


def line_of() -> str:
    """The line of the network's source that is being executed."""
    frame, lines = sys._getframe(), []
    while frame is not None:
        lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return _line(lines)


def _line(innermost_first: Iterable[tuple[CodeType, int]]) -> str:
    for code, number in innermost_first:
        if code is fx.Tracer.trace.__code__:
            break
        name = code.co_filename
        if not name.startswith(NOT_THE_NETWORK) and (text := linecache.getline(name, number).strip()):
            return f"`{text}` ({os.path.basename(name)}, line {number})"
    return ""
