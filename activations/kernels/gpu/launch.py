"""How an input is cut into tiles, the tiles are dealt to programs, and the programs are launched."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Programs for each multiprocessor, all of them in flight together. Not measured.
PROGRAMS = 4
# Multiprocessors of Triton's interpreter, which has none: two, so that there are sums to add up.
INTERPRETED = 2
# Elements in a tile: the most, and the fewest, however many sums each of them has in registers.
MOST, FEWEST, REGISTERS = 2048, 256, 8192


class Tiles(NamedTuple):
    """A tiling of an input (outer, units, inner), as the kernels take it.

    Where units stand side by side in memory (``by_rows``) a tile is some units of some rows of them, else some elements
    of one unit, from several planes where these are small.
    """

    units: int
    outer: int
    inner: int
    by_rows: bool
    height: int  # of a tile, in rows or planes
    width: int  # of a tile, in units or elements of a plane
    groups: int  # of units: the first dimension of the grid
    across: int  # number of tiles side by side
    count: (
        int  # of tiles for each group; counted here, as sums of sizes near 2^31 leave the 32 bits of a kernel
    )
    programs: int  # for each group: the second dimension

    @property
    def grid(self) -> tuple[int, int]:
        return self.groups, self.programs


@cache
def tiles(outer: int, units: int, inner: int, sums: int, processors: int) -> Tiles:
    """Return a tiling for a kernel that keeps ``sums`` numbers of every element of a tile in registers."""
    size = max(FEWEST, min(MOST, REGISTERS // power(sums + 1)))
    by_rows = inner == 1 and units > 1
    if by_rows:
        width = min(power(units), 64)
        height = max(1, size // width)
        groups, across = -(-units // width), 1
    else:
        width = width_of(inner, size)
        height = min(size // width, power(outer))
        groups, across = units, -(-inner // width)
    count = -(-outer // height) * across
    programs = min(count, max(1, PROGRAMS * processors // groups))
    return Tiles(units, outer, inner, by_rows, height, width, groups, across, count, programs)


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *others: Any, **settings: Any) -> None:
    """Launch ``kernel`` on the GPU of ``x``, its first argument; Triton itself takes the current one."""
    with torch.cuda.device_of(x):
        kernel[grid](x, *others, **settings)


def width_of(inner: int, size: int) -> int:
    """Return the widest power of two that wastes few lanes on the end of a plane, an eighth of them at most if that can be."""
    wasted = {
        width: -(-inner // width) * width - inner for width in (2**k for k in range(5, size.bit_length()))
    }
    return max(wasted, key=lambda width: (-max(wasted[width], inner // 8), width))


def power(number: int) -> int:
    """Return the smallest power of two that is not less than ``number``."""
    return 1 << max(0, number - 1).bit_length()


def processors(x: Tensor) -> int:
    """Return the number of multiprocessors of the device of ``x``."""
    return _processors(x.device) if x.is_cuda else INTERPRETED


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
