"""What every activation costs beside nn.ReLU on the CPU: time, memory, and a whole training step of ResNet-20.

python scripts/bench_activations.py                                     # all of it: about half an hour on 2 CPU cores
python scripts/bench_activations.py --units 'pwlu*,ditac' --sizes 98x50 --no-step     # some of it
python scripts/bench_activations.py --step                              # the training step alone
python scripts/bench_activations.py --avx2                              # torch and kernels as on a processor without AVX-512
python scripts/bench_activations.py --tables                            # tables and bars again, of what was measured so far
python scripts/bench_activations.py --device cuda                       # on a GPU, in microseconds; see bench_gpu.py

Times of one machine mean nothing elsewhere, so all are ratios to nn.ReLU, measured right before in the same process.
In every round each unit has its turn, in a shuffled order; the table says the median over the rounds, in brackets the
quartiles. Slow units sit out some of the rounds, but no unit has fewer than five. The calls that warm up do not count.

- Input and output gradient are normal numbers, in float32, in the same layout; the unit is in train mode, and in the
  phase that it is in when nobody tells it of epochs. ``forward`` records what backward needs. ``fwd+bwd`` includes all
  parameter gradients; gradients are set to None before, so that none is added to another.
- ``fused`` follows the rule of activations/kernels/library.py, ``reference`` is plain torch operations, left out at sizes
  where they take seconds; a unit that has no fused kernel takes the same way twice. ``torch`` are the modules of
  torch.nn, beside them.
- ``copies``: the time of fwd+bwd in copies of the input into memory that is there, of the same round.
- ``peak``: the most memory beyond input, output gradient and parameters during fwd+bwd, in sizes of the input, by
  torch's profiler. It sees what torch allocates: not the scratch of the C kernels, nor that inside oneDNN.
- ``saved``: what the graph holds for backward, distinct storages without parameters, in sizes of the input, which counts
  itself. It sees what is saved as a tensor, not what a function may hide in its context.
- A copy's GB/s count what is read and what is written.
"""

import argparse
import itertools
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import bench_gpu
import torch
from _bench import LAYOUTS, MAIN, PATHS, Parser, Row, chart, read_rows, rounded, shown, tables
from _here import ROOT, one_line_errors
from bench_loop import cifar_task
from torch import Tensor, nn

from activations.kernels import library
from results.files import write_csv
from runners.compose import choose, component_names
from runners.cost import no_collection, peak_bytes, saved_bytes
from runners.errors import format_error
from runners.optim import make_optimizer, sites
from runners.record import provenance
from runners.train import build_network
from tasks.base import ActLayer

SIZES = (MAIN, (128, 16, 32, 32), (8, 256, 64, 64), (98, 50))
TORCH: dict[str, Any] = {"nn.PReLU": nn.PReLU}  # the modules of torch.nn, as factories for so many channels
for cls in (nn.SiLU, nn.GELU, nn.Mish, nn.LeakyReLU):
    TORCH[f"nn.{cls.__name__}"] = lambda channels, cls=cls: cls()
STEP = ("pwlu", "pwlu_channel", "ditac", "prelu", "dyrelu", "gct", "frelu")
BATCH = 128  # of a step
CAPABILITY = "ATEN_CPU_CAPABILITY"  # torch's own switch, which our kernels follow

LEAST = 5  # rounds
BUDGET = 0.35  # seconds for a unit at a size in a layout; at MAIN three times as many
LONG = 0.002  # seconds that a measurement takes at least
SLOW = 0.03  # seconds from which a call is not warmed up by another one


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parsed(arguments)
    if options.avx2 and os.environ.get(CAPABILITY) != "avx2":
        # torch reads it while it is imported, which is over
        again = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        os.execve(sys.executable, again, os.environ | {CAPABILITY: "avx2"})
    with one_line_errors():
        if options.tables:
            print_tables(read_rows(options.output / "results.csv"), options.output)
        elif options.device == "cuda":
            on_card(options, bench_gpu.Card())
        else:
            on_cpu(options)


def on_cpu(options: argparse.Namespace) -> None:
    """Measure on the CPU, and write results.csv and the bars."""
    factories = {} if options.step else act_layers(options.units, [*component_names("activation"), *TORCH])
    of_step = [] if options.no_step else [name for name in STEP if match(name, options.units)]
    if options.step and not of_step:
        raise ValueError(f"--units {','.join(options.units)}: of a step there are {', '.join(STEP)}")
    options.output.mkdir(parents=True, exist_ok=True)  # fails before the work, if it does
    print(head(options.threads), flush=True)
    rows: list[Row] = []
    for measured_rows in itertools.chain(units(options, factories), steps(options, of_step)):
        rows += [row | machine() for row in measured_rows]
        write_csv(options.output / "results.csv", rows)  # so far, for --tables, should the rest fail
    print_tables(rows, options.output)


def print_tables(rows: Sequence[Row], folder: Path) -> None:
    """Print the tables of what was measured, and write the bars."""
    for table in tables(rows):
        print(f"\n{table}", flush=True)
    if any(row["kind"] == "unit" for row in rows):
        print(f"\n{chart(rows, folder)}")


def on_card(options: argparse.Namespace, card: bench_gpu.Card) -> None:
    """Measure on a GPU, and write gpu.csv."""
    options.output.mkdir(parents=True, exist_ok=True)  # fails before the work, if it does
    where = machine(card.device.type) | {"card": card.name}
    print("torch {torch}, {card}, {kernels}".format(**where), flush=True)
    rows: list[Row] = []
    factories = act_layers(options.units, component_names("activation"))
    for measured_rows in bench_gpu.measure(options, factories, card):
        rows += [row | where for row in measured_rows]
        write_csv(options.output / "gpu.csv", rows)
    for table in bench_gpu.tables(rows):
        print(f"\n{table}", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line, checked."""

    def words(text: str) -> list[str]:
        return [word.strip() for word in text.split(",")]

    def numbers(text: str) -> list[int]:
        values = [int(word) for word in words(text)]
        if min(values) < 1:
            raise ValueError
        return values

    def sizes(text: str) -> list[tuple[int, ...]]:
        values = [tuple(numbers(word.replace("x", ","))) for word in words(text)]
        if min(map(len, values)) < 2:
            raise ValueError
        return values

    parser = Parser(usage=__doc__)
    parser.add_argument("--units", type=words, default=["*"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=sizes)
    parser.add_argument("--layouts", type=words)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "bench_activations")
    parser.add_argument("--avx2", action="store_true")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--step", action="store_true")
    only.add_argument("--no-step", action="store_true")
    only.add_argument("--tables", action="store_true")
    options = parser.parse_args(arguments)
    options.step_layouts = options.layouts or ["contiguous"]  # a step takes one, unless more are asked for
    options.layouts = options.layouts or list(LAYOUTS)
    if unknown := set(options.layouts) - LAYOUTS.keys():
        parser.error(f"--layouts {', '.join(sorted(unknown))}: legal are {', '.join(LAYOUTS)}")
    if options.device == "cuda":
        options.sizes = (
            [(size, torch.float32) for size in options.sizes] if options.sizes else bench_gpu.SIZES
        )
    options.sizes = options.sizes or SIZES
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds}: at least 2 are needed for quartiles")
    return options


def act_layers(patterns: Sequence[str], names: Sequence[str]) -> dict[str, ActLayer]:
    """Return the factories of those of ``names`` that match, some of which are torch's."""
    chosen = [name for name in names if match(name, patterns)]
    if not chosen:
        raise ValueError(f"--units {','.join(patterns)}: none fits; there are {', '.join(names)}")
    return {name: TORCH.get(name) or choose(activation=name).act_layer() for name in chosen}


def match(name: str, patterns: Sequence[str]) -> bool:
    """Return whether any of the patterns fits ``name``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Timed:
    """A call that says how long it takes: repeated while it is short, warmed up by as many unless it is slow."""

    def __init__(self, call: Callable[[], object], mode: str = "auto") -> None:
        self.call, self.mode = call, mode
        self.repeats, self.warm = 1, 0
        once = min(self() for _ in range(3))  # the first call pays for what is made once
        self.repeats = max(1, round(LONG / once))
        self.warm = self.repeats if once < SLOW else 0
        self.cost = once * (self.repeats + self.warm)

    def __call__(self) -> float:
        """Seconds per call."""
        with library.using(self.mode):
            for _ in range(self.warm):
                self.call()
            start = time.perf_counter()
            for _ in range(self.repeats):
                self.call()
            return (time.perf_counter() - start) / self.repeats


@dataclass
class Candidate:
    """Something timed beside ReLU: its calls, the same calls of ReLU, and what its turns brought."""

    row: Row
    calls: dict[str, Timed]
    base: dict[str, Timed]
    copy: Timed | None = None
    seconds: list[dict[str, float]] = field(default_factory=list)

    def turn(self) -> None:
        """Measure once; ReLU's call and the unit's stand side by side, every other time the other way round."""
        seconds = {}
        for name, call in self.calls.items():
            pair = [(name, call), (f"relu_{name}", self.base[name])]
            for key, timed in reversed(pair) if len(self.seconds) % 2 else pair:
                seconds[key] = timed()
        if self.copy:
            seconds["copy"] = self.copy()
        self.seconds.append(seconds)

    def cost(self) -> float:
        """Seconds that a turn takes."""
        return sum(timed.cost for timed in (*self.calls.values(), *self.base.values()))

    def result(self) -> Row:
        """Medians and quartiles."""
        values: Row = {"rounds": len(self.seconds)}
        for name in self.calls:
            ratios = [turn[name] / turn[f"relu_{name}"] for turn in self.seconds]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            values |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        if self.copy:
            values["copies"] = statistics.median(turn["fwd_bwd"] / turn["copy"] for turn in self.seconds)
        for name in self.seconds[0]:
            values[f"{name}_us"] = 1e6 * statistics.median(turn[name] for turn in self.seconds)
        return self.row | {name: rounded(value) for name, value in values.items()}


def in_turns(candidates: Sequence[Candidate], rounds: int, budget: float) -> None:
    """Let every candidate have its turn in every round, slow ones in some of them spread evenly."""
    turns = [max(min(LEAST, rounds), int(min(rounds, budget / c.cost()))) for c in candidates]
    order = list(zip(candidates, turns, strict=True))
    shuffle = random.Random(0).shuffle
    with no_collection():
        for number in range(rounds):
            shuffle(order)
            for candidate, count in order:
                if (number + 1) * count // rounds > number * count // rounds:
                    candidate.turn()


def units(options: argparse.Namespace, factories: dict[str, ActLayer]) -> Iterator[list[Row]]:
    """Yield the rows of every size, layout and number of threads."""
    for threads in options.threads if factories else ():
        for size in options.sizes:
            for layout in options.layouts if len(size) == 4 else ("contiguous",):
                start = time.perf_counter()
                torch.set_num_threads(threads)
                rows = [
                    row | {"size": shown(size), "layout": layout, "threads": threads}
                    for row in measured(options, factories, size, layout)
                ]
                seconds = time.perf_counter() - start
                print(f"{shown(size)} {layout}, {threads} threads: {seconds:.0f} s", file=sys.stderr)
                yield rows


def measured(
    options: argparse.Namespace, factories: dict[str, ActLayer], size: tuple[int, ...], layout: str
) -> list[Row]:
    """Return a row for each unit and path at one size; a unit that fails costs its own row."""
    generator = torch.Generator().manual_seed(0)
    x, g = (
        torch.randn(size, generator=generator).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
    )
    room = torch.empty_like(x)
    copy = Timed(partial(room.copy_, x))
    x.requires_grad_()
    base = {name: Timed(call) for name, call in calls(nn.ReLU(), x, g).items()}
    candidates, failed = [], []
    paths = [path for path in PATHS if path == "fused" or x.numel() <= math.prod(MAIN)]
    for name, act_layer in factories.items():
        torch.manual_seed(0)
        for path in ("torch",) if name in TORCH else paths:
            mode = PATHS.get(path, "auto")
            row: Row = {"kind": "unit", "unit": name, "path": path}
            try:
                unit = act_layer(size[1])
                timed = {key: Timed(call, mode) for key, call in calls(unit, x, g).items()}
                with library.using(mode):
                    row |= {"saved": saved(unit, x), "peak": peak(unit, x, g)}
                candidates.append(Candidate(row, timed, base, copy))
            except Exception as error:  # such as a unit of images at (98, 50)
                failed.append(row | {"note": format_error(error)})
    in_turns(candidates, options.rounds, BUDGET * (3 if size == MAIN else 1))
    gb_per_s = {"copy_gb_per_s": rounded(copied(x, copy()))}
    return [candidate.result() | gb_per_s for candidate in candidates] + failed


def calls(unit: nn.Module, x: Tensor, g: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    receiving = [x, *unit.parameters()]

    def forward_backward() -> None:
        for tensor in receiving:
            tensor.grad = None
        unit(x).backward(g)

    return {"fwd": partial(unit, x), "fwd_bwd": forward_backward}


def saved(unit: nn.Module, x: Tensor) -> float:
    """Return what the graph holds for backward, in sizes of ``x``."""
    return round(saved_bytes(lambda: unit(x), unit) / x.untyped_storage().nbytes(), 3)


def peak(unit: nn.Module, x: Tensor, g: Tensor) -> float:
    """Return the most memory during forward and backward beyond what there was before, in sizes of ``x``."""
    x.grad = None
    unit.zero_grad(set_to_none=True)
    return round(peak_bytes(lambda: unit(x).backward(g)) / x.untyped_storage().nbytes(), 3)


def steps(options: argparse.Namespace, names: Sequence[str]) -> Iterator[list[Row]]:
    """Yield rows of whole training steps of ResNet-20 on random pixels, optimizer and regularization included."""
    for threads in options.threads if names else ():
        for layout in options.step_layouts:
            torch.set_num_threads(threads)
            base, *timed = (
                {"step": Timed(training_step(choose(activation=name).act_layer(), layout))}
                for name in ("relu", *names)
            )
            row: Row = {"kind": "step", "path": "fused", "size": f"{BATCH}x3x32x32"}
            row |= {"layout": layout, "threads": threads}
            candidates = [
                Candidate({**row, "unit": name}, calls, base)
                for name, calls in zip(names, timed, strict=True)
            ]
            in_turns(candidates, options.rounds, float("inf"))
            yield [candidate.result() for candidate in candidates]


def training_step(act_layer: ActLayer, layout: str) -> Callable[[], None]:
    """Return a step as the runner does it, without data and metrics."""
    task = cifar_task()
    network = build_network(act_layer, task, 0).to(memory_format=LAYOUTS[layout]).train()
    optimizer, active = make_optimizer(network, task.recipe), list(sites(network).values())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=LAYOUTS[layout])
    y = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> None:
        loss = task.loss(network(x), y, training=True) + sum(unit.regularization() for unit in active)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def machine(device: str = "cpu") -> Row:
    """Return the columns that say where a row was measured."""
    with library.using("auto"):
        kernels = library.described(device)
    facts = provenance()
    return {"cpu": facts["cpu"], "cores": os.cpu_count(), "torch": facts["torch"], "kernels": kernels}


def head(threads: Sequence[int]) -> str:
    """Return what the numbers were measured on."""
    lines = ["torch {torch}, {cpu}, {cores} cores, {kernels}".format(**machine())]
    large = torch.zeros(64 * 2**20)  # 256 MB
    room = torch.zeros_like(large)
    for number in threads:
        torch.set_num_threads(number)
        seconds = statistics.median(Timed(partial(room.copy_, large))() for _ in range(5))
        lines.append(
            f"threads: {number}, a copy of 256 MB reads and writes {copied(large, seconds):.1f} GB/s"
        )
    return "\n".join(lines)


def copied(x: Tensor, seconds: float) -> float:
    """Return the GB/s of a copy, what is read and what is written."""
    return 2e-9 * x.untyped_storage().nbytes() / seconds


if __name__ == "__main__":
    main()
