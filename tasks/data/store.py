"""Where the samples of a set are: in one uint8 tensor in memory, or in their files, read whenever they are needed.

Both give the same bytes, as both come from the same reader.
"""

import errno
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

from activations.checks import check_choice
from tasks.data.cache import CacheEntry, save

# position -> sample, uint8 (planes, H, W); picklable, and a ValueError names a file that cannot be read
Read = Callable[[int], np.ndarray]

T = TypeVar("T")

CHUNK = 64  # number of samples that a worker decodes at a time when all of them are read
MAX_WORKERS = 16
# decoded files are stored pixel by pixel: torch resizes such images more than twice as fast
TO_PIXELS, TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

log = logging.getLogger("actbench")


class Store(Protocol):
    """The samples of a set, all of one ``shape`` (planes, H, W), as uint8."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the samples at each of ``chunks``, (n,) positions: (n, planes, H, W) uint8."""
        ...


class Memory:
    """Samples in a tensor, (N, planes, H, W) uint8, in any memory format; batches have the same."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self.shape = tuple(samples.shape[1:])
        self._on: dict[torch.device, Memory | None] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def on(self, device: torch.device) -> "Memory | None":
        """Return the same samples on a GPU, copied there once; None if they take more than half of its free memory."""
        if device not in self._on:
            size, free = self.samples.nbytes, _free_memory(device)
            fits = 2 * size <= free
            log.info(
                "data: %.2f GB of samples, %.2f GB free on %s: %s",
                *(size / 1e9, free / 1e9, device),
                "kept there" if fits else "copied batch by batch",
            )
            self._on[device] = Memory(self.samples.to(device)) if fits else None
        return self._on[device]

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield copies of the samples at each of ``chunks``."""
        # index_select copies whole samples, indexing copies single bytes: 8 and 55 us for 77 kB
        pixels = self.samples.permute(TO_PIXELS)
        for chunk in chunks:
            if pixels.is_contiguous():
                yield pixels.index_select(0, chunk).permute(TO_PLANES)
            else:
                yield self.samples.index_select(0, chunk)


class Stream:
    """Samples that the workers of a DataLoader read when they are needed, in order.

    Args:
        read: returns the sample at a position; pickled or forked to the workers.
        count: number of samples.
        shape: of each.
    """

    def __init__(self, read: Read, count: int, shape: Sequence[int]) -> None:
        self.read = read
        self.count = count
        self.shape = tuple(shape)

    def __len__(self) -> int:
        return self.count

    def batches(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the samples at each of ``chunks``; workers read ahead by two chunks each.

        Raises:
            ValueError: a sample that cannot be read, with the reader's message, or a worker that died.
        """
        return in_workers(_Batches(self.read), chunks)


def in_workers(work: Callable[[list[int]], T], chunks: Sequence[Tensor]) -> Iterator[T]:
    """Yield ``work(positions)`` for each of ``chunks``, in order, by processes that work ahead by two chunks each.

    Args:
        work: pickled or forked to the workers; tensors among its results are sent through /dev/shm.
        chunks: (n,) positions each.

    Raises:
        ValueError: what ``work`` raises, or a worker that died.
    """
    workers = min(_cores(), MAX_WORKERS, len(chunks))
    loader: DataLoader[Any] = DataLoader(
        _Work(work),  # type: ignore[arg-type]  # serves whole batches only
        batch_sampler=[chunk.tolist() for chunk in chunks],
        num_workers=workers,
        multiprocessing_context=_start_method() if workers else None,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # without it each pass would draw from torch's global one
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
    """Iterate over ``loader``, which notices a dead worker within seconds, without its handler of SIGCHLD.

    The handler would raise in whatever the main thread is doing at that moment.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    if before is not None:  # the handler was set by Python
        signal.signal(signal.SIGCHLD, before)
    return results


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost_worker(error: RuntimeError) -> str:
    """Return the message for a worker that died, most often because /dev/shm or the memory was full."""
    said = " ".join(str(error).split())
    shared = Path("/dev/shm")
    free = f"{shared} has {shutil.disk_usage(shared).free / 1e6:,.0f} MB free: " if shared.is_dir() else ""
    return (
        f"a worker that reads the images failed ({said}); {free}make it larger (a container's --shm-size), "
        "set in_memory=true of the data, or use fewer workers: there is one for each CPU core that taskset allows"
    )


class _Work:
    """``work`` as a DataLoader's data set. It returns errors: one raised in a worker would become a page of text."""

    def __init__(self, work: Callable[[list[int]], Any]) -> None:
        self.work = work

    def __getitems__(self, positions: list[int]) -> Any:
        try:
            return self.work(positions)
        except ValueError as error:
            return error


@dataclass(frozen=True)
class _Batches:
    """Return the samples at some positions, in memory that the main process shares."""

    read: Read

    def __call__(self, positions: list[int]) -> Tensor:
        pixels = np.stack([self.read(position).transpose(1, 2, 0) for position in positions])
        batch = torch.from_numpy(pixels)
        if get_worker_info() is not None:
            # Otherwise it is done when the result is sent, where an error is lost and the main process waits for ever.
            try:
                batch.share_memory_()
            except RuntimeError as error:
                raise ValueError(_lost_worker(error)) from None
        return batch.permute(TO_PLANES)


def _start_method() -> str:
    """Return how workers start. In a worker of joblib the default is a method that DataLoader cannot use."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _as_it_is(batch: Any) -> Any:
    return batch


def open_store(
    read: Read, count: int, shape: Sequence[int], *, in_memory: bool | str, cache: CacheEntry
) -> Store:
    """Decode the samples into memory through ``cache``, or stream them if they are too large for that.

    Either way every sample is read once before this returns, so that unreadable samples are reported before training
    starts. For streamed samples the cache remembers that this was done.

    Args:
        read: returns the sample at a position.
        count: number of samples.
        shape: of each, (planes, H, W).
        in_memory: true, false, or auto, which is true if the decoded set takes at most half of the available memory.
        cache: entry for the decoded samples; its key changes whenever they do.

    Raises:
        ValueError: another ``in_memory``, a cache that cannot be written to, or a sample that cannot be read.
    """
    choice = str(in_memory).lower()
    check_choice("in_memory", choice, ("auto", "true", "false"))
    size, available = count * math.prod(shape), available_memory()
    in_memory = 2 * size <= available if choice == "auto" else choice == "true"
    log.info(
        "data: %d samples of %s, %.2f GB decoded, %.2f GB available: %s",
        *(count, " x ".join(map(str, shape)), size / 1e9, available / 1e9),
        "kept in memory" if in_memory else "streamed from their files",
    )
    stream = Stream(read, count, shape)
    if not in_memory:
        cache.arrays("checked", lambda folder: save(folder, samples=_check(stream)))
        return stream
    arrays = cache.arrays("pixels", lambda folder: decode(stream, folder / "pixels.npy"))
    return Memory(torch.from_numpy(arrays["pixels"]).permute(TO_PLANES))


def _check(stream: Stream) -> int:
    """Read all samples once, and return their number."""
    over_all(_Check(stream.read), len(stream), "checking")
    return len(stream)


def decode(stream: Stream, path: Path, *, planar: bool = False) -> None:
    """Read all samples, with all cores, into an array file, with a few chunks in memory at a time.

    The workers write to the file themselves: nothing is sent through /dev/shm, which is small in a container.

    Args:
        stream: the samples.
        path: of the file.
        planar: whether the array is (N, planes, H, W) instead of (N, H, W, planes).
    """
    planes, *size = stream.shape
    shape = (len(stream), planes, *size) if planar else (len(stream), *size, planes)
    np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    _reserve(path)
    over_all(_Write(stream.read, path, planar), len(stream), "decoding")


def over_all(work: Callable[[list[int]], Any], count: int, title: str) -> list[Any]:
    """Return the results of ``work`` on the positions 0 to ``count`` - 1, chunk by chunk."""
    chunks = torch.arange(count).split(CHUNK)
    results = []
    with tqdm(total=count, desc=title, unit="img", disable=None) as bar:
        for chunk, result in zip(chunks, in_workers(work, chunks), strict=True):
            results.append(result)
            bar.update(len(chunk))
    return results


@dataclass(frozen=True)
class _Check:
    """Read the samples at some positions, to see whether that is possible."""

    read: Read

    def __call__(self, positions: list[int]) -> None:
        for position in positions:
            self.read(position)


@dataclass(frozen=True)
class _Write:
    """Write the samples at some positions to their places in an array file."""

    read: Read
    path: Path
    planar: bool

    def __call__(self, positions: list[int]) -> None:
        array = np.load(self.path, mmap_mode="r+")
        for position in positions:
            sample = self.read(position)
            array[position] = sample if self.planar else sample.transpose(1, 2, 0)


def _reserve(path: Path) -> None:
    """Allocate the blocks of a sparse file: writing to a map of it while the disk is full would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system does not support it
                raise


def one_threaded(batches: Iterator[T]) -> Iterator[T]:
    """Yield ``batches``, each computed with one of torch's threads.

    A batch takes many small operations, for which threads wait for each other longer than they work: two of them had
    less than half the throughput of one (docs/log.md).
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
    """Return the bytes that can be allocated without swapping: the kernel's estimate, or what a container leaves of it."""
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


def _free_memory(device: torch.device) -> float:
    """Return the bytes that can be allocated on a GPU; there is no limit where one is only pretended."""
    return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else math.inf


def mean_std(
    store: Store, index: Tensor, planes: int, cache: CacheEntry | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1 where it is 0) of each of the first ``planes``, float32.

    Args:
        store: the samples.
        index: (n,) positions, of the training split alone.
        planes: number of planes of a sample that are images; masks after them have no mean.
        cache: entry of the samples, as for ``open_store``: the result is stored there, as reading many files takes
            minutes. None computes it anew.
    """
    if cache is None:
        total = _moments(store, index, planes)
    else:
        entry = cache.derived(f" {planes}", index.numpy().tobytes())
        arrays = entry.arrays(
            "statistics", lambda folder: save(folder, moments=_moments(store, index, planes))
        )
        total = torch.from_numpy(arrays["moments"])
    mean, square = total.double() / (len(index) * math.prod(store.shape[1:]))
    std = (square - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()


def _moments(store: Store, index: Tensor, planes: int) -> Tensor:
    """Return the sums of the values and of their squares over all pixels, (2, planes) int64."""
    total = torch.zeros(2, planes, dtype=torch.int64)
    chunks = index.split(CHUNK)
    with tqdm(total=len(index), desc="statistics", unit="img", leave=False, disable=None) as bar:
        for chunk, batch in zip(chunks, store.batches(chunks), strict=True):
            pixels = batch[:, :planes].to(torch.int32)
            sums = [values.sum((0, 2, 3), dtype=torch.int64) for values in (pixels, pixels.square())]
            total += torch.stack(sums)
            bar.update(len(chunk))
    return total
