"""Where the samples of a set live: as one uint8 tensor in memory, or in their files until they are asked for.

Both give the same bytes: in memory is what the files' reader gave once, streamed is what it gives every time.
"""

import errno
import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

from tasks.base import check_choice
from tasks.data.cache import cached, save

# picklable: position -> sample, uint8 (planes, H, W); ValueError names a file that cannot be read
Read = Callable[[int], np.ndarray]

T = TypeVar("T")

CHUNK = 64  # samples that a worker decodes at a time when all of them are read
MAX_WORKERS = 16
# decoded files are kept pixel by pixel: torch resizes such images more than twice as fast
TO_PIXELS, TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

log = logging.getLogger("actbench")


class Store(Protocol):
    """The samples of a set, all of one ``shape`` (planes, H, W), as uint8."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each of ``chunks``, (n,) positions, the samples there: (n, planes, H, W) uint8."""
        ...


class Memory:
    """Samples in a tensor, (N, planes, H, W) uint8, in any memory format; batches have the same."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self.shape = tuple(samples.shape[1:])

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Copies of the samples at each of ``chunks``."""
        # index_select copies whole samples, indexing goes byte by byte: 8 and 55 us for 77 kB
        pixels = self.samples.permute(TO_PIXELS)
        for chunk in chunks:
            if pixels.is_contiguous():
                yield pixels.index_select(0, chunk).permute(TO_PLANES)
            else:
                yield self.samples.index_select(0, chunk)


class Stream:
    """Samples that the workers of a DataLoader read while they are wanted, in order.

    Args:
        read: gives one sample; pickled or forked to the workers.
        count: how many there are.
        shape: of each.
    """

    def __init__(self, read: Read, count: int, shape: Sequence[int]) -> None:
        self.read = read
        self.count = count
        self.shape = tuple(shape)

    def __len__(self) -> int:
        return self.count

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """The samples at each of ``chunks``; workers read ahead by two chunks each.

        Raises:
            ValueError: a sample that cannot be read, in the reader's own words, or a worker that died.
        """
        return in_workers(_Batches(self.read), chunks)


def in_workers(work: Callable[[list[int]], T], chunks: Sequence[Tensor]) -> Iterator[T]:
    """``work(positions)`` for each of ``chunks``, in order, by processes that work ahead by two chunks each.

    Args:
        work: pickled or forked to the workers; tensors among its results come by way of /dev/shm.
        chunks: (n,) positions each.

    Raises:
        ValueError: of ``work``, or because a worker died.
    """
    workers = min(_cores(), MAX_WORKERS, len(chunks))
    loader: DataLoader[Any] = DataLoader(
        _Work(work),  # type: ignore[arg-type]  # it serves whole batches only
        batch_sampler=[chunk.tolist() for chunk in chunks],
        num_workers=workers,
        multiprocessing_context=_start_method() if workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else each pass would draw from torch's global one
    )
    try:
        for result in _without_handler(loader):
            if isinstance(result, ValueError):
                raise result
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(_lost_worker(error)) from None


def _without_handler(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator over ``loader`` that says itself when a worker is gone, a few seconds later.

    DataLoader also sets a handler of SIGCHLD for that, which raises in whatever the main thread does at the moment.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    if before is not None:  # it was set by Python
        signal.signal(signal.SIGCHLD, before)
    return results


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost_worker(error: RuntimeError) -> str:
    """What to do about a worker that died, most often because /dev/shm or the memory was full."""
    said = " ".join(str(error).split())
    shared = Path("/dev/shm")
    free = f"{shared} has {shutil.disk_usage(shared).free / 1e6:,.0f} MB free: " if shared.is_dir() else ""
    return (
        f"task.data: a worker that reads the images failed ({said}); {free}make it larger (a container's --shm-size), "
        "set task.data.in_memory=true, or use fewer workers: there is one for each CPU core that taskset allows"
    )


class _Work:
    """A DataLoader's view of ``work``. Errors travel as values: raised in a worker they become a page of text."""

    def __init__(self, work: Callable[[list[int]], Any]) -> None:
        self.work = work

    def __getitems__(self, positions: list[int]) -> Any:
        try:
            return self.work(positions)
        except ValueError as error:
            return error


@dataclass(frozen=True)
class _Batches:
    """Positions -> the samples there, in memory that the main process shares."""

    read: Read

    def __call__(self, positions: list[int]) -> Tensor:
        pixels = np.stack([self.read(position).transpose(1, 2, 0) for position in positions])
        batch = torch.from_numpy(pixels)
        if get_worker_info() is not None:
            # else it would be done when the result is sent, where an error is lost and the main process waits for ever
            try:
                batch.share_memory_()
            except RuntimeError as error:
                raise ValueError(_lost_worker(error)) from None
        return batch.permute(TO_PLANES)


def _start_method() -> str:
    """How workers start. Said, as in a worker of joblib the default is a method that DataLoader cannot use."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _as_it_is(batch: Any) -> Any:
    return batch


def open_store(
    read: Read, count: int, shape: Sequence[int], *, in_memory: bool | str, cache: Path, key: str
) -> Store:
    """Decode the samples into memory by way of ``cache``, or stream them if they are too many for that.

    Either way every sample has been read once before this returns: one that cannot be read is said at the beginning
    of a training and not in its middle. That streamed samples have been read is kept in ``cache``.

    Args:
        read: gives one sample.
        count: how many there are.
        shape: of each, (planes, H, W).
        in_memory: true, false, or auto, which is true if the decoded set takes at most half of the memory
            that is available.
        cache: folder for decoded sets.
        key: changes whenever what ``read`` gives does (``key_of_files``).

    Raises:
        ValueError: another ``in_memory``, a cache that cannot be written to, or a sample that cannot be read.
    """
    choice = str(in_memory).lower()
    check_choice("task.data.in_memory", choice, ("auto", "true", "false"))
    size, available = count * prod(shape), available_memory()
    in_memory = 2 * size <= available if choice == "auto" else choice == "true"
    log.info(
        "data: %d samples of %s, %.2f GB decoded, %.2f GB available: %s",
        *(count, " x ".join(map(str, shape)), size / 1e9, available / 1e9),
        "kept in memory" if in_memory else "streamed from their files",
    )
    stream = Stream(read, count, shape)
    if not in_memory:
        cached(cache, f"checked-{key}", lambda folder: save(folder, samples=_check(stream)))
        return stream
    arrays = cached(cache, f"pixels-{key}", lambda folder: decode(stream, folder / "pixels.npy"))
    return Memory(torch.from_numpy(arrays["pixels"]).permute(TO_PLANES))


def _check(stream: Stream) -> int:
    """Read all samples once; how many there are."""
    over_all(_Check(stream.read), len(stream), "checking")
    return len(stream)


def decode(stream: Stream, path: Path, *, planar: bool = False) -> None:
    """Read all samples, with all cores, into an array file, of which a few chunks are in memory beside it.

    The workers write to the file themselves: nothing goes through /dev/shm, which in a container is small.

    Args:
        stream: the samples.
        path: of the file.
        planar: (N, planes, H, W) instead of (N, H, W, planes).
    """
    planes, *size = stream.shape
    shape = (len(stream), planes, *size) if planar else (len(stream), *size, planes)
    np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    _reserve(path)
    over_all(_Write(stream.read, path, planar), len(stream), "decoding")


def over_all(work: Callable[[list[int]], Any], count: int, title: str) -> list[Any]:
    """``work`` on the positions 0 to ``count`` - 1, a chunk at a time."""
    chunks = torch.arange(count).split(CHUNK)
    results = []
    with tqdm(total=count, desc=title, unit="img", disable=None) as bar:
        for chunk, result in zip(chunks, in_workers(work, chunks), strict=True):
            results.append(result)
            bar.update(len(chunk))
    return results


@dataclass(frozen=True)
class _Check:
    """Positions -> None, after the samples there have been read."""

    read: Read

    def __call__(self, positions: list[int]) -> None:
        for position in positions:
            self.read(position)


@dataclass(frozen=True)
class _Write:
    """Positions -> None, after the samples there have been written to their places in an array file."""

    read: Read
    path: Path
    planar: bool

    def __call__(self, positions: list[int]) -> None:
        array = np.load(self.path, mmap_mode="r+")
        for position in positions:
            sample = self.read(position)
            array[position] = sample if self.planar else sample.transpose(1, 2, 0)


def _reserve(path: Path) -> None:
    """Give a sparse file its blocks: writing to a map of it where the disk is full would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this kind of disk
                raise


def one_threaded(batches: Iterator[T]) -> Iterator[T]:
    """``batches``, each made with one of torch's threads.

    Making a batch is many small operations, and for those the threads wait for each other longer than they work:
    two of them made less than half of what one makes (docs/log.md).
    """
    while True:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            batch = next(batches, None)
        finally:
            torch.set_num_threads(threads)
        if batch is None:
            return
        yield batch


def available_memory() -> int:
    """Bytes that can be had without swapping: the kernel's estimate, or what a container's limit leaves of it."""
    try:
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except OSError:  # no container, or one of the older kind
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def mean_std(
    store: Store, index: Tensor, planes: int, kept: tuple[Path, str] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1 where it is 0) of each of the first ``planes``, float32.

    Args:
        store: the samples.
        index: (n,) positions, of the training split and of nothing else.
        planes: so many of each sample are images; masks behind them have no mean.
        kept: folder of the cache and key of the samples, as for ``open_store``: the result is kept there, as
            reading many files takes minutes. None computes it anew.
    """
    if kept is None:
        total = _moments(store, index, planes)
    else:
        digest = hashlib.sha256(f"{kept[1]} {planes}".encode())
        digest.update(index.numpy().tobytes())
        key = f"statistics-{digest.hexdigest()[:20]}"
        arrays = cached(kept[0], key, lambda folder: save(folder, moments=_moments(store, index, planes)))
        total = torch.from_numpy(arrays["moments"])
    mean, square = total.double() / (len(index) * prod(store.shape[1:]))
    std = (square - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()


def _moments(store: Store, index: Tensor, planes: int) -> Tensor:
    """Sums of the values and of their squares over all pixels, (2, planes) whole numbers."""
    total = torch.zeros(2, planes, dtype=torch.int64)
    chunks = index.split(CHUNK)
    with tqdm(total=len(index), desc="statistics", unit="img", leave=False, disable=None) as bar:
        for chunk, batch in zip(chunks, store.batches(chunks), strict=True):
            pixels = batch[:, :planes].to(torch.int32)
            sums = [values.sum((0, 2, 3), dtype=torch.int64) for values in (pixels, pixels.square())]
            total += torch.stack(sums)
            bar.update(len(chunk))
    return total
