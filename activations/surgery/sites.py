"""The places where a network calls activations: rows of a report, calls, sites."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from activations.surgery.kinds import FUNCTIONS, Own, Place, kind_of

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
    place: Place | None  # where its owner keeps it, if it does
    stack: tuple[nn.Module, ...]  # from the network down to the module whose forward makes the call
    run: int  # how many times that one has been entered
    arguments: dict[str, Any]  # of that forward, by name; tensors without data
    x: Tensor  # the input, without data
    args: tuple[Any, ...]  # of the call, without the input
    kwargs: dict[str, Any]
    channel: int | None
    gate: str  # why it is no activation, if it is none
    why_not: str
    window: tuple[nn.Module, ...]  # the stack of the convolution wider than 1 since the last activation
    own: Own | None = None  # if it is a class of the network's own
    in_place: bool = False
    output: bool = False  # the last operation of the network, and of a limited range

    @property
    def owner(self) -> nn.Module:
        return self.stack[-1]

    @property
    def bounds(self) -> tuple[Any, ...]:
        """The first two arguments behind the input."""
        return (*self.args, *self.kwargs.values())[:2]

    @property
    def key(self) -> Any:
        """What stands for this call in a traced graph."""
        return self.place if isinstance(self.function, nn.Module) else self.name

    @property
    def features(self) -> tuple[str, int | None, int | None]:
        return self.name, self.channel, None if self.channel is None else self.x.shape[self.channel]

    @property
    def channel_dim(self) -> int | None:
        """-1 for channels that are last, behind other dimensions than the batch."""
        return -1 if self.channel == self.x.ndim - 1 > 1 else self.channel

    @property
    def traced(self) -> bool:
        """Whether a traced graph must show it: a gate only if it looks like an activation there."""
        if isinstance(self.function, nn.Module):
            return kind_of(self.function) == "activation"
        return not self.gate or FUNCTIONS.fullmatch(self.name) is not None


@dataclass(eq=False)
class Site:
    """A place in the network, and the attribute that takes its unit."""

    calls: dict[bool, Call]  # by whether the network is training
    index: int | None  # among the calls of its owner, if that one's forward must be rewritten
    why_not: str = ""
    times: Counter[bool] = field(default_factory=Counter)  # calls in one forward, by the training flag
    path: str = field(init=False)
    hole: Place = field(init=False)

    @property
    def call(self) -> Call:
        return next(iter(self.calls.values()))

    @property
    def auxiliary(self) -> bool:
        """Whether it is called in training alone."""
        return False not in self.calls

    @property
    def output(self) -> bool:
        """Whether it is the last operation of the network, and of a limited range."""
        return not self.call.gate and any(call.output for call in self.calls.values())

    @property
    def can_be_replaced(self) -> bool:
        return not self.call.gate and not self.why_not

    @property
    def num_features(self) -> int | None:
        return self.call.features[-1]

    @property
    def channel_dim(self) -> int | None:
        return self.call.channel_dim

    @property
    def positions(self) -> int:
        """Pixels or tokens; 0 for (N, C), which has none."""
        return math.prod(self.call.x.shape[1:]) // (self.num_features or 1) if self.call.x.ndim > 2 else 0

    def row(self, replaced: bool | None) -> Row:
        """The site's row in a report; ``replaced`` is None if nothing was to be replaced."""
        kind = ("module " if isinstance(self.call.function, nn.Module) else "call ") + self.call.name
        why_not = self.call.gate or self.why_not
        if replaced is False:
            why_not = why_not or (OUTPUT if self.output else "not selected")
        channels = self.num_features, self.channel_dim
        shape, gate, calls = tuple(self.call.x.shape[1:]), bool(self.call.gate), max(self.times.values())
        return Row(
            self.path,
            kind,
            shape,
            *channels,
            gate,
            bool(replaced),
            "" if replaced else why_not,
            self.output,
            calls,
        )


@dataclass(eq=False)
class Graph:
    """A traced forward, and which of its nodes call activations."""

    graph: fx.Graph
    nodes: list[int]


@dataclass(eq=False)
class Found:
    """All that is known of a network."""

    sites: list[Site]  # and gates, in the order of the calls
    graphs: dict[nn.Module, dict[bool, Graph]]  # for owners that must be rewritten, by training flag
    outputs: dict[bool, list[Tensor]]
    sums: dict[bool, list[tuple[nn.Module, list[int]]]]  # over what every module put out, as it ran
