"""Several processes that train one network together: which part of a batch each of them has, and how parts become one again.

``runners.parallel`` starts and ends them; a task that is used by itself is ``ALONE``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """One of ``size`` processes, the one with number ``rank``, which starts at 0.

    Examples:
        >>> [Processes(rank, 3).part(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
    """

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """Return the rows of this process in a batch of ``count``; parts differ by at most one row."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, own: Tensor, count: int) -> Tensor:
        """Return a batch of ``count`` rows, of which every process passes its ``part``."""
        if self.size == 1:
            return own
        largest = -(-count // self.size)
        padded = own.new_zeros(largest, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        sizes = [Processes(rank, self.size).part(count) for rank in range(self.size)]
        return torch.cat([part[: rows.stop - rows.start] for part, rows in zip(parts, sizes, strict=True)])

    def total(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over all processes of named scalars, which have the same names everywhere."""
        if self.size == 1 or not values:
            return dict(values)
        sums = torch.stack(list(values.values()))
        distributed.all_reduce(sums)
        return dict(zip(values, sums.unbind(), strict=True))


ALONE = Processes()
