"""What every activation costs on a GPU, in microseconds and as a share of the card's own bandwidth.

python scripts/bench_activations.py --device cuda                                # all of it
python scripts/bench_activations.py --device cuda --units 'pwlu*,ditac' --layouts contiguous     # some of it

- ``fused`` are our kernels, ``reference`` plain torch operations, ``compiled`` torch.compile of these; ``relu`` is nn.ReLU.
- Forward and backward are timed apart, by the card's own events, the median over the rounds with the quartiles. The card is
  busy with something else while the host asks for them, so that this is the card's time, as in a training loop whose host
  is ahead. What the host takes is measured beside it (``host_us``): where that is more, as for small tensors, a call costs that.
- What a forward must move is its input and its output, what a backward must move both gradients and the input: ``share`` is
  that many bytes in the card's time, relative to the bytes per second of a copy of the same tensor.
- Every call has another input and output gradient, in turns, so that together they are four times as large as the card's
  cache: a result that lies in the cache would look faster than the memory is.
- Parameters are in float32; inputs in half precision come under autocast, which some references need.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from _bench import LAYOUTS, Row, markdown_by_unit, rounded, shown
from torch import Tensor, nn

from activations.kernels import library
from runners.errors import format_error
from tasks.base import ActLayer

# Sizes and dtypes: two that a card's memory bounds, and one that launches bound.
SIZES = (
    ((128, 64, 56, 56), torch.float32),
    ((256, 64, 112, 112), torch.bfloat16),
    ((32, 64, 32, 32), torch.float32),
)
PATHS = ("fused", "reference", "compiled")
WARM = 3  # calls before the first that counts
# Times the cache that the buffers of all turns take.
ROTATED = 4
# What the card does before a call, some milliseconds, longer than the host takes for the call: fill so many bytes, so often.
AHEAD = (2**28, 40)

Call = Callable[[], object]


class Card:
    """A GPU, and its clock."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU")
        properties = torch.cuda.get_device_properties(0)
        self.device = torch.device("cuda", 0)
        self.name, self.cache = properties.name, properties.L2_cache_size
        self.filled = torch.empty(AHEAD[0], dtype=torch.uint8, device=self.device)

    def seconds(self, call: Call) -> tuple[float, float]:
        """Return the seconds that the card takes for ``call``, and those that the host takes to ask for it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        for _ in range(AHEAD[1]):  # else the card's time would be that of the host's launches
            self.filled.zero_()
        start.record()
        since = time.perf_counter()
        call()
        host = time.perf_counter() - since
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000, host


class Processor(Card):
    """The CPU in the place of a card, for tests."""

    def __init__(self) -> None:
        self.device, self.name, self.cache = torch.device("cpu"), "cpu", 2**16

    def seconds(self, call: Call) -> tuple[float, float]:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        return seconds, seconds


def measure(options: argparse.Namespace, factories: dict[str, ActLayer], card: Card) -> Iterator[list[Row]]:
    """Yield the rows of every size and layout."""
    for size, dtype in options.sizes:
        for layout in options.layouts if len(size) == 4 else ("contiguous",):
            start = time.perf_counter()
            facts = {"size": shown(size), "dtype": str(dtype).removeprefix("torch."), "layout": layout}
            yield [row | facts for row in measured(options, factories, card, size, dtype, layout)]
            print(f"{shown(size)} {layout}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def measured(
    options: argparse.Namespace,
    factories: dict[str, ActLayer],
    card: Card,
    size: Sequence[int],
    dtype: torch.dtype,
    layout: str,
) -> list[Row]:
    """Return a row for each unit and path; one that fails costs its own row."""
    pairs = buffers(card, size, dtype, layout)
    x = pairs[0][0]
    room = torch.empty_like(x)
    sources = itertools.cycle(x for x, _ in pairs)

    def copy() -> object:
        return room.copy_(next(sources).detach())

    copied = 2 * x.nbytes / statistics.median(card.seconds(copy)[0] for _ in range(WARM + options.rounds))
    rows: list[Row] = []
    base: dict[str, Any] = {"relu": lambda channels: nn.ReLU()}
    for name, act_layer in (base | factories).items():
        for path in ("torch",) if name == "relu" else PATHS:
            row: Row = {"kind": "gpu", "unit": name, "path": path, "copy_gb_per_s": rounded(copied / 1e9)}
            try:
                torch.manual_seed(0)
                unit = act_layer(size[1]).to(card.device)
                with library.using("auto" if path == "fused" else "reference"):
                    model = compiled(unit) if path == "compiled" else unit
                    forward, backward = timed(card, model, pairs, options.rounds)
            except Exception as error:  # such as a unit of images at (98, 50)
                rows.append(row | {"note": format_error(error)})
                continue
            for key, moved, turns in (("fwd", 2, forward), ("bwd", 3, backward)):
                seconds, host = zip(*turns, strict=True)
                low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
                row |= {f"{key}_host_us": rounded(1e6 * statistics.median(host))}
                row |= {f"{key}_us": rounded(1e6 * middle), f"{key}_us_low": rounded(1e6 * low)}
                row |= {f"{key}_us_high": rounded(1e6 * high)}
                row |= {f"{key}_gb_per_s": rounded(moved * x.nbytes / middle / 1e9)}
                row |= {f"{key}_share": rounded(moved * x.nbytes / middle / copied)}
            rows.append(row)
    return rows


def compiled(unit: nn.Module) -> Any:
    """Return ``unit`` by torch.compile."""
    # Units have the code of a base class in common, which is compiled anew for a few of them; the next would run as it is.
    torch.compiler.reset()
    return torch.compile(unit)


def buffers(card: Card, size: Sequence[int], dtype: torch.dtype, layout: str) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and output gradients for all turns."""
    torch.manual_seed(0)

    def draw() -> Tensor:
        drawn = torch.randn(*size, device=card.device, dtype=dtype)
        return drawn.contiguous(memory_format=LAYOUTS[layout])

    first = draw()
    count = max(2, -(-ROTATED * card.cache // (2 * first.nbytes)))
    return [(draw().requires_grad_(), draw()) for _ in range(count)]


def timed(
    card: Card, model: Any, pairs: Sequence[tuple[Tensor, Tensor]], rounds: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return the seconds of every round's forward, and of its backward, of card and host each."""
    forward, backward = [], []
    outputs: list[Tensor] = []
    dtype = pairs[0][0].dtype

    def call(x: Tensor) -> None:
        with torch.autocast(card.device.type, dtype, enabled=dtype is not torch.float32):
            outputs.append(model(x))

    for turn in range(WARM + rounds):
        x, g = pairs[turn % len(pairs)]
        x.grad = None
        model.zero_grad(set_to_none=True)
        outputs.clear()
        seconds = card.seconds(partial(call, x))
        then = card.seconds(partial(outputs[0].backward, g))
        if turn >= WARM:
            forward.append(seconds)
            backward.append(then)
    return forward, backward


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table for each size and layout: microseconds of forward and backward.

    In brackets stands the share of a copy, or what the host takes if that is more.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["dtype"], row["layout"]), []).append(row)
    for (size, dtype, layout), group in groups.items():
        cells = []
        for row in group:
            text = row.get("note") or " / ".join(_time(row, key) for key in ("fwd", "bwd"))
            cells.append((row["unit"], row["path"], text))
        copied = f"{group[0]['copy_gb_per_s']:g} GB/s"
        title = (
            f"{size} {dtype} {layout}: forward / backward in us (share of a copy, {copied}; or the host's us)"
        )
        yield markdown_by_unit(title, cells)


def _time(row: Row, key: str) -> str:
    card, host = row[f"{key}_us"], row[f"{key}_host_us"]
    return f"{card:g} (host {host:g})" if host > card else f"{card:g} ({row[f'{key}_share']:.0%})"
