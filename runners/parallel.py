"""One cell on several processes, as torchrun starts them: who writes, what they agree on, and what is said if one is lost.

Rank 0 leads: it holds the lock of the cell, decides whether there is anything to train, and writes all files. The others
do the same on their parts of every batch, and write nothing. Nothing here imports torch before there are several.
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from inspect import signature
from typing import TYPE_CHECKING, Any

from runners.cell import Cell, ProcessLostError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tasks.processes import Processes

ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets
# A process that ends is noticed at once; this is for what rank 0 does alone, such as pictures.
PATIENCE = timedelta(hours=6)
LOST = re.compile(r"gloo|connection (?:closed|reset)|broken pipe|nccl", re.IGNORECASE)
LEAD = 2.0  # seconds by which rank 0 tells of an error before the others
SAID, MESSAGE = "said", "message"  # keys of the store


class World:
    """The processes of this run, seen from one of them.

    Args:
        rank, size: number of this process, from 0, and of all.
        local: number of this process on its machine.
        store: of torch, which outlives a process; None for a process that is alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store
        # a group of its own, as training uses the default one from other threads as well
        self.control: Any = None
        self._votes: tuple[Any, torch.Tensor] | None = None
        self._told = False

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def processes(self) -> "Processes":
        """What a task needs to know."""
        from tasks.processes import Processes

        return Processes(self.rank, self.size)

    def tell(self, go: bool) -> bool:
        """Return what rank 0 passes as ``go``: whether there is a cell to train. Each process calls this once."""
        if self.size == 1 or self._told:
            return go
        self._told = True
        import torch

        flag = torch.tensor([int(go)])
        with self.guarded():
            torch.distributed.broadcast(flag, 0, group=self.control)
        return bool(flag.item())

    def agreed(self, received: signal.Signals | None) -> signal.Signals | None:
        """Return the signal by which all processes stop: one that any of them had received at the last call.

        All of them call this equally often, and get the same answer. What they say travels meanwhile, so that none waits
        for another, nor for a GPU.
        """
        if self.size == 1:
            return received
        import torch

        answer = 0
        if self._votes is not None:
            work, flag = self._votes
            work.wait()
            answer = int(flag.item())
        flag = torch.tensor([int(received or 0)])
        work = torch.distributed.all_reduce(
            flag, torch.distributed.ReduceOp.MAX, group=self.control, async_op=True
        )
        self._votes = work, flag
        return signal.Signals(answer) if answer else None

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let rank 0 go through a block before the others do."""
        if self.size == 1:
            yield
            return
        import torch

        if not self.leads:
            torch.distributed.barrier(self.control)
        yield
        if self.leads:
            torch.distributed.barrier(self.control)

    def end_together(self) -> None:
        """Wait for the other processes, lest torchrun ends those that still write when the first has ended by a signal."""
        if self.size > 1:
            import torch

            with self.guarded():
                torch.distributed.barrier(self.control)

    def gather_objects(self, own: Any) -> list[Any]:
        """Return what each process passes, in the order of their ranks."""
        if self.size == 1:
            return [own]
        import torch

        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, own, group=self.control)
        return found

    def adopt_buffers(self, network: "nn.Module") -> None:
        """Give ``network`` the buffers that it has on rank 0: batch norm's statistics where each has its own."""
        if self.size > 1:
            import torch

            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def wrapped(self, model: "nn.Module", device: "torch.device") -> "nn.Module":
        """Return ``model``, or the one that takes the mean of the gradients of all processes."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # Buffers are equal, or rank 0's are taken at the end of an epoch: none are sent at every step.
        names = ("forward_sync_buffers", "broadcast_buffers")  # since torch 2.14, and before
        name = next(name for name in names if name in signature(DistributedDataParallel).parameters)
        # It never looks again at a parameter that is frozen now, which a later phase may train.
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,  # a phase of an activation may leave some out
            **{name: False},  # type: ignore[arg-type]
        )
        for parameter in frozen:
            parameter.requires_grad_(False)
        return wrapped

    def follow(self, cell: Cell) -> Cell:
        """Return ``cell`` as a process that does not write it sees it."""
        return cell if self.leads else _Follower(cell.spec, force=cell.force)

    def complain(self, message: str) -> None:
        """Print an error by which this process ends, unless another one of them has printed its own before."""
        if self.store is not None:
            message = f"process {self.rank} of {self.size}: {message}" if self.rank else message
            # of an error that all of them have rank 0 tells
            if not self.leads and self._message(timeout=LEAD) is not None:
                return
            with suppress(Exception):  # torchrun's own process is gone, and the store with it
                if self.store.add(SAID, 1) > 1:
                    return
                self.store.set(MESSAGE, message)
        print(f"actbench: {message}", file=sys.stderr, flush=True)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the error that the loss of another process causes here into ``ProcessLostError``."""
        try:
            yield
        except Exception as error:
            if self.size == 1 or not _is_loss(error):
                raise
            raise ProcessLostError(self.size, self._message()) from error

    def _message(self, timeout: float = 0.5) -> str | None:
        """What a process said that ended by an error of its own; None if none has within so many seconds."""
        if self.store is None:
            return None
        with suppress(Exception):
            self.store.wait([MESSAGE], timedelta(seconds=timeout))
            return str(self.store.get(MESSAGE).decode())
        return None


class _Follower(Cell):
    """A cell that rank 0 writes, as the other processes see it: nothing is written."""

    def mark_started(self, facts: Mapping[str, Any]) -> None:
        """Note the facts."""
        self.write_record("interrupted", **facts)

    def write_record(self, status: str, **facts: Any) -> dict[str, Any]:
        """Return what the record would say of ``status`` and ``facts``."""
        self._record |= {"status": status} | facts
        return self._record

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing."""


_world = World()


def current() -> World:
    """Return the processes of this run; one that is alone if ``joined`` was not entered, or torchrun did not start this."""
    return _world


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun has started, if it has started several.

    Raises:
        ValueError: torch was built without torch.distributed.
    """
    global _world
    if not all(name in os.environ for name in ENVIRONMENT) or int(os.environ["WORLD_SIZE"]) < 2:
        yield _world
        return
    # else torch would remark, on every rank, that no parameter was unused so far
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        raise ValueError(
            f"torchrun: torch {torch.__version__} was built without gloo, by which processes talk"
        )
    cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
    _world = World(rank, size, int(os.environ["LOCAL_RANK"]), distributed.PrefixStore("actbench", store))
    with _world.guarded():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=distributed.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        _world.control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    if not _world.leads:
        logging.getLogger("actbench").addHandler(logging.NullHandler())  # rank 0 warns of the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    yield _world
    # Not after an error: a group that has lost a member need not come to an end.
    with _world.guarded():
        _world.tell(False)
        _world.agreed(None)
        _world.agreed(None)
    distributed.destroy_process_group()


def _is_loss(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is what torch says when another process has ended."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
    )
