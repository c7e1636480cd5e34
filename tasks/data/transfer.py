"""Batches on the device that computes, without making the host wait for it.

A copy from ordinary memory to a GPU waits for all work that the GPU has been given. So everything goes through pinned
memory: small tensors in order with the work (``send``), and batches of a set that does not fit on a stream of its own, one
ahead of the batch that is computed (``one_ahead``). A set that fits is copied once (``Memory.on``).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tasks.data.store import Memory, Store


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; nothing waits for a copy to a GPU, not even for its beginning."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return _pinned(tensor).to(device, non_blocking=True)


def deliver(store: Store, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the samples at each of ``chunks``, on a GPU where ``device`` is one, else where the store has them.

    Args:
        store: the samples.
        chunks: (n,) positions each.
        device: that computes.
    """
    if device.type != "cuda":
        return store.batches(chunks)
    resident = store.on(device) if isinstance(store, Memory) else None
    if resident is None:
        return one_ahead(store.batches(chunks), device)
    positions = send(torch.cat(list(chunks)), device)
    return resident.batches(positions.split([len(chunk) for chunk in chunks]))


def one_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield ``batches`` on the GPU ``device``, the next one being copied while the work on one goes on."""
    stream = torch.cuda.Stream(device)

    def begin() -> Tensor | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return send(batch, device)

    coming = begin()
    while coming is not None:
        batch, compute = coming, torch.cuda.current_stream(device)
        compute.wait_stream(stream)  # on the GPU: the host goes on
        batch.record_stream(compute)  # its memory is not used again before that work is done
        coming = begin()
        yield batch


def _pinned(tensor: Tensor) -> Tensor:
    # where cuda is only pretended there is no such memory
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
