"""What makes the host wait for a GPU, counted while tensors go through torch's dispatcher."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Copies(TorchDispatchMode):
    """Counts what is copied between devices, by the pair of their types."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            if source.device.type != out.device.type:
                self.seen[source.device.type, out.device.type] += 1
        return out


class Reads(TorchDispatchMode):
    """Counts what the host must wait for."""

    WAITED_FOR = (
        *(aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default),
        *(aten.equal.default, aten.masked_select.default, aten.bincount.default),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.WAITED_FOR
        return func(*args, **(kwargs or {}))
