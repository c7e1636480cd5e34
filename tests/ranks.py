"""What the processes of the tests of torch.distributed run; imported by each of them, and so without the test suite."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from activations.pwlu import PWLU

EPOCHS, STEPS, PARTS = 4, 3, (5, 9)  # rows that each process has of a batch


def small_network(per_channel: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), PWLU(4, per_channel=per_channel, segments=5), nn.Linear(4, 1))


def fit(network: nn.Sequential, loss_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The state after epochs in both phases; ``loss_of`` takes the batch of all processes."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for epoch in range(EPOCHS):
        network[1].start_epoch(epoch, EPOCHS)
        for _ in range(STEPS):
            x = 3 + 2 * torch.randn(sum(PARTS), 3, generator=generator)
            optimizer.zero_grad()
            loss_of(x).backward()
            optimizer.step()
    return network.state_dict()


def alone(per_channel: bool) -> dict[str, Tensor]:
    """One process that sees what all see; the mean over processes is DistributedDataParallel's."""
    network = small_network(per_channel)
    return fit(network, lambda x: sum(part.square().mean() for part in network(x).split(PARTS)) / len(PARTS))


def train_together(rank: int, folder: str) -> None:
    """One of the processes; leaves its states, by ``per_channel`` and ``find_unused_parameters``, in ``folder``."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=len(PARTS), timeout=timedelta(seconds=60)
    )
    states = {}
    for per_channel in (False, True):
        for find_unused in (False, True):
            network = small_network(per_channel)
            parallel = DistributedDataParallel(network, find_unused_parameters=find_unused)
            states[per_channel, find_unused] = fit(
                network, lambda x, parallel=parallel: parallel(x.split(PARTS)[rank]).square().mean()
            )
    torch.save(states, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
