"""Describe where a network calls activations: rows of a report, calls, sites."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from activations.surgery.kinds import FUNCTIONS, CustomKind, Place, kind_of

OUTPUT = "the network's output: only re:PATTERN replaces it"


@dataclass(frozen=True)
class Row:
    """A place where an activation or a gate is called.

    Attributes:
        site: path of the module that is there, or will be.
        kind: "module" with its class, or "call" with the function's name.
        shape: of its input without the batch.
        num_features: number of channels; None if they cannot be determined.
        channel_dim: dimension that holds the channels; None if it cannot be determined.
        gate: whether it is a gate, which is no site and stays.
        replaced: whether it was replaced.
        why_not: why it was not or cannot be replaced; empty otherwise.
        output: whether it limits the network's output: only sites=re:PATTERN replaces it.
        calls: number of calls in one forward; with shared="unit" one unit serves all of them.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    num_features: int | None
    channel_dim: int | None
    gate: bool
    replaced: bool
    why_not: str
    output: bool = False
    calls: int = 1


@dataclass(frozen=True)
class Report:
    """Result of ``replace_activations`` and ``find_sites``: a row per site or gate, in the order of the calls.

    ``str`` makes a table of it.
    """

    rows: tuple[Row, ...]

    @property
    def found(self) -> int:
        """Number of sites, without gates."""
        return sum(not row.gate for row in self.rows)

    @property
    def replaced(self) -> int:
        """Number of sites that were replaced."""
        return sum(row.replaced for row in self.rows)

    def __str__(self) -> str:
        table = [("site", "kind", "channels", "dim", "shape", "")]
        for row in self.rows:
            channels, dim = ("" if n is None else str(n) for n in (row.num_features, row.channel_dim))
            possible = OUTPUT if row.output and not row.replaced else "can be replaced"
            done = "replaced" if row.replaced else possible
            outcome = row.why_not or done + (f" ({row.calls} calls)" if row.calls > 1 else "")
            table.append((row.site, row.kind, channels, dim, "x".join(map(str, row.shape)), outcome))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        able = sum(not row.why_not for row in self.rows)
        done = f"{able} of {self.found} sites " + ("replaced" if self.replaced else "can be replaced")
        return "\n".join([*lines, f"{done}, {len(self.rows) - self.found} gates"])


@dataclass(eq=False)
class Call:
    """One call of an activation or a gate in one run of the network."""

    function: Callable[..., Any]  # the module, or torch's function
    name: str
    place: Place | None  # where its owner keeps the function, if it does
    stack: tuple[nn.Module, ...]  # from the network down to the owner, whose forward makes the call
    owner_run: int  # number of the owner's run in this forward of the network, from 1
    arguments: dict[str, Any]  # of the owner's forward, by name; tensors without data
    x: Tensor  # the input, without data
    args: tuple[Any, ...]  # of the call, without the input
    kwargs: dict[str, Any]
    dim: int | None  # dimension of the channels, counted from the front
    why_stays: str  # why the call is no site; empty if it is one
    why_not: str  # why a unit cannot replace it; empty if one can, as far as is known
    conv_stack: tuple[nn.Module, ...]  # of the convolution wider than 1 since the last activation
    custom: CustomKind | None = None  # of a module of the network's own class
    in_place: bool = False
    output: bool = False  # whether it is the network's last operation, and of a limited range

    @property
    def owner(self) -> nn.Module:
        return self.stack[-1]

    @property
    def bounds(self) -> tuple[Any, ...]:
        """The first two arguments after the input."""
        return (*self.args, *self.kwargs.values())[:2]

    @property
    def graph_key(self) -> Any:
        """The key of the call's node in a traced graph."""
        return self.place if isinstance(self.function, nn.Module) else self.name

    @property
    def num_features(self) -> int | None:
        """The number of channels."""
        return None if self.dim is None else self.x.shape[self.dim]

    @property
    def signature(self) -> tuple[str, int | None, int | None]:
        """Name, dimension and number of channels: equal in all calls that one unit can serve."""
        return self.name, self.dim, self.num_features

    @property
    def channel_dim(self) -> int | None:
        """The dimension of the channels as a unit is told it: -1 if it is the last of three or more."""
        return -1 if self.dim == self.x.ndim - 1 > 1 else self.dim

    @property
    def in_graph(self) -> bool:
        """Whether a traced graph must show the call: a gate only if it looks like an activation there."""
        if isinstance(self.function, nn.Module):
            return kind_of(self.function) == "activation"
        return not self.why_stays or FUNCTIONS.fullmatch(self.name) is not None


@dataclass(eq=False)
class Site:
    """An activation or a gate that a network calls, and the attribute that would take its unit."""

    calls: dict[bool, Call]  # the first call in one forward, by the training flag
    index: int | None  # among the calls of its owner, if the owner's forward must be rewritten
    why_not: str = ""  # as of a call
    # number of calls in one forward, by the training flag
    times: Counter[bool] = field(default_factory=Counter)
    path: str = field(init=False)
    slot: Place = field(init=False)  # the attribute that takes the unit

    @property
    def call(self) -> Call:
        return next(iter(self.calls.values()))

    @property
    def auxiliary(self) -> bool:
        """Whether it is called in training alone."""
        return False not in self.calls

    @property
    def output(self) -> bool:
        """Whether it is the network's last operation, and of a limited range."""
        return not self.call.why_stays and any(call.output for call in self.calls.values())

    @property
    def can_be_replaced(self) -> bool:
        return not self.call.why_stays and not self.why_not

    @property
    def num_features(self) -> int | None:
        return self.call.num_features

    @property
    def channel_dim(self) -> int | None:
        return self.call.channel_dim

    @property
    def positions(self) -> int:
        """The number of pixels or tokens; 0 for (N, C), which has none."""
        return math.prod(self.call.x.shape[1:]) // (self.num_features or 1) if self.call.x.ndim > 2 else 0

    def row(self, replaced: bool | None) -> Row:
        """Return the site's row in a report; ``replaced`` is None if nothing was to be replaced."""
        why_not = self.call.why_stays or self.why_not
        if replaced is False:
            why_not = why_not or (OUTPUT if self.output else "not selected")
        return Row(
            site=self.path,
            kind=("module " if isinstance(self.call.function, nn.Module) else "call ") + self.call.name,
            shape=tuple(self.call.x.shape[1:]),
            num_features=self.num_features,
            channel_dim=self.channel_dim,
            gate=bool(self.call.why_stays),
            replaced=bool(replaced),
            why_not="" if replaced else why_not,
            output=self.output,
            calls=max(self.times.values()),
        )


@dataclass(eq=False)
class TracedForward:
    """A traced forward, and the numbers of those of its nodes that call activations."""

    graph: fx.Graph
    activation_nodes: list[int]


@dataclass(eq=False)
class Analysis:
    """All that two runs of a network, in training and in evaluation, tell of it."""

    sites: list[Site]  # gates included, in the order of the calls
    # of owners that must be rewritten, by the training flag
    graphs: dict[nn.Module, dict[bool, TracedForward]]
    outputs: dict[bool, list[Tensor]]  # of the network, by the training flag
    # of every module's outputs, in the order of the runs
    checksums: dict[bool, list[tuple[nn.Module, list[int]]]]
