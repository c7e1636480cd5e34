"""Which device a cell is trained on: by name, by the number of a process of torchrun, or by that of a grid's worker."""

import multiprocessing
import re

import torch

from runners.parallel import World


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; auto is cuda if there is one, else cpu.

    There is no mps, which lacks the float64 of ``RunningMeans``.

    Raises:
        ValueError: no such device on this machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    legal = ["cuda", *(f"cuda:{i}" for i in range(count)), "cpu"] if count else ["cpu"]
    if name != "auto" and name not in legal:
        why = "" if count or not str(name).startswith("cuda") else f", as {_why_no_gpu()}"
        raise ValueError(f"device={name}: must be one of auto, {', '.join(legal)} on this machine{why}")
    return torch.device(legal[0] if name == "auto" else name)


def own_device(name: str, world: World) -> torch.device:
    """Return the device of this process.

    Where ``name`` leaves open which GPU (auto, cuda), the processes of torchrun take one each, and the workers of a grid
    are dealt to them in turn.

    Raises:
        ValueError: no such device on this machine, or fewer GPUs than processes of torchrun.
    """
    device = find_device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if world.size > 1:
        if device.index is not None:
            raise ValueError(
                f"device={name}: must be auto, cuda or cpu, as torchrun gives each process a GPU"
            )
        if world.local >= count:
            raise ValueError(f"torchrun: more processes on this machine than its {count} GPUs")
        device = torch.device("cuda", world.local)
    elif device.index is None:
        device = torch.device("cuda", dealt(multiprocessing.current_process().name, count))
    torch.cuda.set_device(device)
    return device


def dealt(worker: str, count: int) -> int:
    """Return which of ``count`` GPUs a process of this name uses: workers of a grid end in a number from 1.

    Examples:
        >>> [dealt(name, 2) for name in ("MainProcess", "LokyProcess-1", "LokyProcess-2", "LokyProcess-3")]
        [0, 0, 1, 0]
    """
    number = re.search(r"-(\d+)$", worker)
    return (int(number[1]) - 1) % count if number else 0


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} finds no GPU"
