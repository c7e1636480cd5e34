"""The overhead of the harness: training step and start-up. (bench_data.py: data pipelines; bench_report.py: reports.)

python scripts/bench_loop.py [step] [start]              # both: about four minutes on 2 CPU cores
python scripts/bench_loop.py --device cuda               # ResNet-20 on a GPU: images/s, and how long the GPU waits

Times of one machine mean nothing elsewhere, so every row is a ratio whose two sides were measured alternately within
one run: the median over the rounds, in brackets the quartiles. Images per second on a GPU come with its name.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _bench import ratio
from _here import ROOT, command_line
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from activations.torch_nn import ReLU
from runners.cell import Cell, CellSpec
from runners.device import find_device
from runners.optim import parameter_groups
from runners.train import AMP, Train, build_network
from tasks.base import Recipe
from tasks.classification import Classification
from tasks.data.augment import CropFlip
from tasks.data.images import digits
from tasks.data.sets import ImageSet
from tasks.data.store import Memory
from tasks.networks.resnet import ResNet
from tasks.networks.small_cnn import SmallCNN

GPU: dict[str, Any] = {"amp": "bf16", "channels_last": True}  # as runner=gpu
GPU_IMAGES = 50_000
PROFILED = 3  # number of the epoch


def main() -> None:
    """Measure the chosen parts and print a row for each."""
    parts: dict[str, Callable[[], Iterator[str]]] = {"step": training_step, "start": start_up}
    parser = command_line(__doc__)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; all of them if none is named")
    parser.add_argument(
        "--device", default="cpu", help="cpu, or a GPU (cuda, cuda:1), which has a part of its own"
    )
    arguments = parser.parse_args()
    try:
        device = find_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    if device.type == "cuda":
        parts = {"step": lambda: gpu_step(device)}
    chosen = arguments.parts or list(parts)
    if unknown := set(chosen) - parts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: must be one of {', '.join(parts)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in chosen:
        for row in parts[name]():
            print(row, flush=True)


def training_step() -> Iterator[str]:
    """Yield the time of the runner's epochs relative to a plain loop with the same network, data and optimizer."""
    tasks = {
        "digits": (digit_task(), Train(epochs=100, pictures=False, cost=0)),
        "ResNet-20, batch 128": (cifar_task(), Train(epochs=10, limit_batches=4, pictures=False, cost=0)),
    }
    for name, (task, runner) in tasks.items():
        bare = BareLoop(task, runner.limit_batches or task.steps_per_epoch)
        ours = epoch_seconds(runner, task, between=bare.epoch)
        yield ratio(f"training step, {name}: runner / bare loop", ours[1:], bare.seconds[1:])


def gpu_step(device: torch.device) -> Iterator[str]:
    """Yield images per second of the runner and of a plain loop on a GPU, and the share of the time in which it waits.

    The plain loop takes its batches from the same task. Of the rounds, one epoch of the runner is profiled, which costs
    some time itself: the GPU waits at most as long as is said.
    """
    task, runner = cifar_task(GPU_IMAGES), Train(epochs=12, device=str(device), pictures=False, cost=0, **GPU)
    bare: BareLoop | None = None
    profiler = profile(activities=[ProfilerActivity.CUDA])

    def between() -> None:
        nonlocal bare
        # The runner has set the task's device by now.
        bare = bare or BareLoop(task, task.steps_per_epoch, **GPU)
        bare.epoch()
        if len(bare.seconds) == PROFILED:
            profiler.start()

    def after_training() -> None:
        if bare and len(bare.seconds) == PROFILED:
            profiler.stop()

    ours = epoch_seconds(runner, task, after_training, between)
    assert bare is not None
    counted = [i for i in range(1, len(ours)) if i != PROFILED]
    ours, theirs = [ours[i] for i in counted], [bare.seconds[i] for i in counted]
    images = task.steps_per_epoch * task.batch_size
    rates = [images / statistics.median(seconds) for seconds in (ours, theirs)]
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    ]
    name = f"ResNet-20, batch {task.batch_size}, bf16, channels_last, {torch.cuda.get_device_name(device)}"
    yield f"{name}: runner {rates[0]:,.0f} images/s, bare loop {rates[1]:,.0f} images/s"
    yield ratio(f"{name}: runner / bare loop", ours, theirs)
    yield f"{name}: the GPU waits {100 * idle_share(spans):.1f} % of the time"


def idle_share(spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time from the first begin to the last end that lies in none of ``spans``.

    Args:
        spans: begin and end of each kernel or copy; those of different streams may overlap.
    """
    busy, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return 1 - busy / (until - min(begin for begin, _ in spans))


def epoch_seconds(
    runner: Train,
    task: Classification,
    after_training: Callable[[], None] = lambda: None,
    between: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train with ReLU, and return the seconds of each epoch's training.

    ``after_training`` is called before each validation, and ``between`` after it.
    """
    evaluate = task.evaluate

    def alternating(network: nn.Module, split: str) -> dict[str, float]:
        if split == "val":
            after_training()
        metrics = evaluate(network, split)
        if split == "val":
            between()
        return metrics

    task.evaluate = alternating  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        cell = Cell(CellSpec("relu", "bench", "bench", seed=0, study_folder=Path(folder)))
        cell.run(partial(runner, ReLU, task, cell))
        metrics = pd.read_csv(cell.folder / "metrics.csv")
    return metrics["seconds"][metrics["split"] == "train"].tolist()


class BareLoop:
    """A plain training loop, without records, checkpoints or metrics, on the task's device.

    Args:
        task: network and batches.
        steps: of an epoch.
        amp, channels_last: as of the runner.
    """

    def __init__(
        self, task: Classification, steps: int, *, amp: str = "off", channels_last: bool = False
    ) -> None:
        self.task, self.steps, self.dtype = task, steps, AMP[amp]
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = build_network(ReLU, task, 0).to(task.device).to(memory_format=self.format)
        groups = parameter_groups(self.network, task.recipe.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, foreach=True)
        self.seconds: list[float] = []
        self.waited: list[float] = []

    def epoch(self) -> None:
        """Train for one epoch, and append its time and the part of it spent waiting for data."""
        start, waited = time.perf_counter(), 0.0
        self.network.train()
        data = self.task.batches("train", torch.Generator().manual_seed(0))
        for _ in range(self.steps):
            requested = time.perf_counter()
            x, y = next(data)
            waited += time.perf_counter() - requested
            x = x.contiguous(memory_format=self.format)
            with torch.autocast(x.device.type, self.dtype) if self.dtype else nullcontext():
                output = self.network(x)
            loss = nn.functional.cross_entropy(output.float(), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        if self.task.device.type == "cuda":
            torch.cuda.synchronize(self.task.device)
        self.seconds.append(time.perf_counter() - start)
        self.waited.append(waited)


def start_up() -> Iterator[str]:
    """Yield the time of a smoke run without its training, relative to importing torch."""
    ours, theirs = [], []
    for _ in range(7):
        theirs.append(timed([sys.executable, "-c", "import torch"]))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "run.py", "activation=relu", "task=digits", "runner=smoke"]
            command.append(f"outputs={folder}")
            seconds = timed(command)
            record = json.loads(next(Path(folder).glob("**/record.json")).read_text())
        ours.append(seconds - record["loop_seconds"])
    yield ratio("start-up: run.py less its training / import torch", ours, theirs)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", f"outputs={folder}", "runner=smoke"]
        single = [timed(command) for _ in range(4)][1:]
        grid = [*command[:2], "-m", *command[2:], "seed=range(40)"]
        timed(grid)
        skipped = [(timed(grid) - t) / 39 for t in single]
    yield f"a finished cell of a grid is skipped in {statistics.median(skipped) * 1000:.0f} ms (report included)"


def timed(command: Sequence[str]) -> float:
    """Return the seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def recipe(batch_size: int) -> Recipe:
    """Return the recipe of both loops."""
    return Recipe(epochs=1, batch_size=batch_size, lr=0.05, weight_decay=5e-4)


def digit_task() -> Classification:
    """Return the task digits."""
    return Classification(recipe=recipe(64), data=digits(), network=SmallCNN)


def cifar_task(size: int = 1200) -> Classification:
    """Return the task cifar10 on random pixels, which take as long as real ones."""
    generator = torch.Generator().manual_seed(0)
    data = ImageSet(
        store=Memory(torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)),
        labels=torch.arange(size) % 10,
        train=torch.arange(size - 100),
        test=torch.arange(size - 100, size),
        classes=tuple("0123456789"),
        fingerprint="random",
    )
    return Classification(recipe=recipe(128), data=data, network=ResNet, augment=CropFlip())


if __name__ == "__main__":
    main()
