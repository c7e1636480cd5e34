"""The runner that trains a cell: one loop that can be stopped anywhere and resumed there."""

import logging
import math
import multiprocessing
import signal
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from activations.base import Activation
from activations.checks import check_bool, check_choice, check_int, check_list, check_number
from activations.kernels import library
from activations.torch_nn import ReLU
from results.files import (
    BEST_WEIGHTS,
    CHECKPOINT,
    CLASSES,
    CONFUSION,
    CURVES,
    EXAMPLES,
    PICTURES,
    WEIGHTS,
    atomic_write,
    read_json,
    write_csv,
    write_json,
    write_table,
)
from results.schema import PROVENANCE
from runners import cost, parallel, seeding
from runners.batch_norm import share_statistics
from runners.cell import Cell
from runners.checkpoint import Progress, RunState, fingerprint, write_weights
from runners.cost import Measured
from runners.device import find_device, own_device
from runners.errors import format_error
from runners.factory import validate_network
from runners.optim import activation_modules, activation_parameters, lr_factor, make_optimizer, sites
from runners.record import evolution_epochs, mean_curves, provenance, write_curves, write_examples
from runners.step import forward, update
from tasks.base import ActLayer, Batch, RunningMeans, Task
from tasks.confusion import Confusion
from tasks.processes import ALONE

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECK_INTERVAL = 50  # steps between readings of the loss, each of which waits for an accelerator
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last two of batch systems
CURVE_SAMPLES = 128  # validation samples that show the inputs of the activations

log = logging.getLogger("actbench")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a task's network with an activation by the task's recipe, and record the scores.

    Args:
        epochs: number of epochs, >= 1; None for the recipe's.
        epochs_scale: factor on the recipe's epochs, > 0; at least one epoch is trained.
        limit_batches: maximum number of batches per pass, >= 1, or None; see ``Task.spread``.
        activation_only_epochs: number of epochs at the beginning in which only the activations' parameters are
            trained ("freeze, then thaw"), >= 0. Norms keep updating their running statistics meanwhile.
        device: auto (cuda, then cpu), or a torch device.
        threads: number of threads of torch on the CPU, >= 1; None for torch's choice.
        kernels: auto (the rule of ``activations.kernels.library``), reference (plain torch operations) or triton (the
            kernels for a GPU alone).
        channels_last: whether image batches and networks are in the memory format channels_last.
        amp: off, bf16 or fp16 autocast (fp16 with loss scaling).
        compile: off or on (torch.compile).
        sync_batch_norm: of several processes, whether norms use the statistics of the whole batch or those of their part.
        pictures: whether to write the task's pictures at the end, or a list of the seeds whose cells write them. A picture
            takes about half a second.
        cost: seconds for measuring the time of a step against ReLU's, once for all seeds of a study, or 5 % of the
            training if that is more; 0 for not measuring it.
        keep: nothing, or weights: the last weights and those best in validation as state_dicts, in files of their own.
        test: whether to evaluate the test split at the end. The trials of a tuning do not, so that their test scores
            cannot influence the choice; they write no curves and pictures either.

    Raises:
        ValueError: a value outside its range, or a device that this machine does not have.

    Examples:
        >>> Train(epochs_scale=0.0)
        Traceback (most recent call last):
        ValueError: epochs_scale=0.0: must be a number > 0
    """

    epochs: int | None = None
    epochs_scale: float = 1.0
    limit_batches: int | None = None
    activation_only_epochs: int = 0
    device: str = "auto"
    threads: int | None = None
    kernels: str = "auto"
    channels_last: bool = False
    amp: str = "off"
    compile: str = "off"
    sync_batch_norm: bool = True
    pictures: bool | Sequence[int] = True
    cost: float = 2.0
    keep: str = "nothing"
    test: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "limit_batches", "threads"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), minimum=1)
        check_int("activation_only_epochs", self.activation_only_epochs, minimum=0)
        check_number("epochs_scale", self.epochs_scale, above=0)
        check_number("cost", self.cost, minimum=0)
        check_choice("keep", self.keep, ("nothing", "weights"))
        check_choice("kernels", self.kernels, library.MODES)
        check_choice("amp", self.amp, tuple(AMP))
        check_choice("compile", self.compile, ("off", "on"))
        for name in ("channels_last", "sync_batch_norm", "test"):
            check_bool(name, getattr(self, name))
        if not isinstance(self.pictures, bool):
            try:
                check_list("pictures", self.pictures, integers=True, minimum=0)
            except ValueError as error:
                raise ValueError(f"{error}, or true or false") from None
        find_device(self.device)

    def __call__(self, act_layer: ActLayer, task: Task, cell: Cell) -> dict[str, Any]:
        """Train ``cell``, or resume it where it was stopped, and return its record.

        After SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 the run is saved, and the returned record has the signal's number as ``signal``.

        Args:
            act_layer: called once for every site of the network.
            task: data, network and recipe. Its ``device`` and ``limit_batches`` are set here.
            cell: what identifies the run, and where its files go.

        Raises:
            ValueError: a damaged checkpoint, one of other data or code, or an activation that does not fit.
        """
        threads = torch.get_num_threads()
        try:
            # auto: respect ACTBENCH_KERNELS
            using = library.using(self.kernels) if self.kernels != "auto" else nullcontext()
            with using, _Stop() as stop, parallel.current().guarded():
                record = self._train(act_layer, task, cell, stop)
            return record | ({"signal": int(stop.received)} if stop.received else {})
        finally:
            torch.set_num_threads(threads)  # the next cell of a grid may have another setting

    def _train(self, act_layer: ActLayer, task: Task, cell: Cell, stop: "_Stop") -> dict[str, Any]:
        # Set up. All random numbers come from streams of the seed (see seeding), none of which the activation shares.
        seed, world = cell.spec.seed, parallel.current()
        epochs, steps = self.set_up(task, seed)
        network = self._network(act_layer, task, seed)
        if world.size > 1:
            share_statistics(network, synchronized=self.sync_batch_norm)
        model = cast(nn.Module, torch.compile(network)) if self.compile == "on" else network
        validate_network(network, task.input_shape, task.output_shape)
        units, act_params = activation_modules(network).values(), activation_parameters(network)
        other_params = [p for p in network.parameters() if p.requires_grad and p not in act_params]
        facts = self._facts(network, task, epochs, steps) | {"activation_code": cell.activation_code}
        if world.leads:
            facts |= self._cost(act_layer, task, cell, facts)
        optimizer = make_optimizer(network, task.recipe)
        scaler = torch.amp.GradScaler(task.device.type, enabled=self.amp == "fp16")

        # Resume, if there is a checkpoint: it holds everything that determines the rest of the run.
        checkpoint = cell.folder / CHECKPOINT
        # what is drawn in training differs by process, as the samples do
        seeding.seed_everything(seed, "training", *([world.rank] if world.rank else []))
        origin = fingerprint(task.fingerprint, cell.activation_code, cell.harness_code)
        state = RunState(network, optimizer, scaler, origin)
        cell.mark_started(facts)
        with world.leader_first():
            resumed = state.resume(checkpoint, world.rank)
        run, trained = state.progress, world.wrapped(model, task.device)
        run.begin_session({name: facts[name] for name in PROVENANCE})
        cell.heartbeat.progress = _Pace(run, epochs, steps)
        log.info(
            "%s: %s at epoch %d, step %d", cell, "resumed" if resumed else "started", run.epoch, run.step
        )
        if world.leads:
            cell.loggers.begin(cell.spec, run.sessions[0]["started"], run.rows)
        bar = tqdm(
            total=epochs * steps,
            initial=run.epoch * steps + run.step,
            desc=str(cell),
            unit="step",
            leave=False,
            # no bar if stderr is not a terminal; the workers of a grid share one line
            disable=True if multiprocessing.parent_process() or not world.leads else None,
        )
        waits = waits_for(task.device) or world.size > 1

        keep_curves = evolution_epochs(epochs)
        with bar:
            while run.epoch < epochs:
                # Start an epoch; its data depend on the seed and the epoch's number alone.
                for parameter in other_params:
                    parameter.requires_grad_(run.epoch >= self.activation_only_epochs)
                if run.step == 0:  # else the epoch was started before it was interrupted
                    if run.epoch in keep_curves:
                        run.evolution[run.epoch] = mean_curves(network)
                    for unit in units:
                        unit.start_epoch(run.epoch, epochs)
                phase = self._phase(units, run)
                data = task.shares(seeding.generator(seed, "data", run.epoch))
                means = RunningMeans(run.means, task.processes)
                since = time.perf_counter() - run.seconds
                trained.train()
                due = False

                for share in islice(data, run.step, steps):
                    # Update the parameters.
                    lr = task.recipe.lr * lr_factor(run.epoch * steps + run.step, epochs * steps, task.recipe)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    step = forward(trained, task, units, share, self._autocast(task.device))
                    updated = update(step.total, model, optimizer, scaler, task.recipe.clip_norm)
                    if run.step == 0 and not updated:
                        log.warning("epoch %d: nothing is trained, all parameters are frozen", run.epoch)
                    run.step += 1

                    # Metrics and progress bar.
                    means.add(share.samples, **step.values(task, share))
                    reads = run.step % CHECK_INTERVAL == 0
                    if reads and not means.finite():
                        break
                    due |= bool(bar.update())
                    if (reads or not waits) and (due or world.size > 1):
                        shown = {name: f"{value:.4g}" for name, value in means.result().items()}
                        bar.set_postfix({"epoch": f"{run.epoch + 1}/{epochs}"} | shown, refresh=False)
                        due = False
                    if (asked := world.agreed(stop.received)) and run.step < steps:
                        run.means, run.seconds = means.state(), time.perf_counter() - since
                        self._save(state, checkpoint)
                        return self._interrupted(cell, run, stop, asked)

                # End the epoch: validate, keep the best weights, save. ``means.result`` waits for the device, so that
                # the seconds include all of its work.
                seconds = run.add_row("train", means.result(), epoch=run.epoch, since=since)
                if not self.sync_batch_norm:
                    world.adopt_buffers(network)
                run.rows[-1] |= {"lr": lr, "samples_per_s": means.count / seconds} | phase
                if means.finite():
                    self._evaluate(task, model, run, "val", epoch=run.epoch)
                if not math.isfinite(run.rows[-1]["loss"]):
                    cell.write_metrics(run.rows)
                    return self._finish(cell, run, "diverged", reason=f"loss not finite in epoch {run.epoch}")
                run.keep_best(network, task.primary_metric, task.higher_is_better)
                run.epoch, run.step, run.means, run.seconds = run.epoch + 1, 0, None, 0.0
                self._save(state, checkpoint)
                cell.write_metrics(run.rows)
                if (asked := world.agreed(stop.received)) and run.epoch < epochs:
                    return self._interrupted(cell, run, stop, asked)

        return self._end(cell, task, network, model, run)

    def _end(
        self, cell: Cell, task: Task, network: nn.Module, model: nn.Module, run: Progress
    ) -> dict[str, Any]:
        """Evaluate the test split, for the only time: with the last weights, and with the best ones in validation."""
        leads = parallel.current().leads
        assert run.best is not None
        facts = {"primary_val": run.rows[-1][task.primary_metric], "best_epoch": run.best["epoch"]}
        if self.keep == "weights" and leads:
            write_weights(cell.folder / WEIGHTS, network.state_dict())
            write_weights(cell.folder / BEST_WEIGHTS, run.best["weights"])
        if not self.test:
            return self._finish(cell, run, "ok", **facts)
        last = best = self._evaluate(task, model, run, "test", epoch=run.epoch - 1)
        confusion = task.confusion
        if leads:
            self._show(cell, task, network, run, confusion)
        if run.best["epoch"] != run.epoch - 1:
            network.load_state_dict(run.best["weights"])
            best = self._evaluate(task, model, run, "test", epoch=run.best["epoch"])
        cell.write_metrics(run.rows)
        evaluations = {run.epoch - 1: last, run.best["epoch"]: best}
        classes = [row for epoch, scores in evaluations.items() for row in _class_rows(scores, epoch)]
        if leads:
            if classes:
                write_csv(cell.folder / CLASSES, classes)
            if confusion is not None:
                write_table(cell.folder / CONFUSION, confusion.table())
        if not (math.isfinite(last["loss"]) and math.isfinite(best["loss"])):
            return self._finish(cell, run, "diverged", reason="loss not finite in the test")
        facts |= {"primary": last[task.primary_metric], "primary_best": best[task.primary_metric]}
        facts |= {f"test_{name}": value for name, value in _aggregate_scores(last).items()}
        facts |= {f"test_best_{name}": value for name, value in _aggregate_scores(best).items()}
        return self._finish(cell, run, "ok", **facts)

    def _show(
        self, cell: Cell, task: Task, network: nn.Module, run: Progress, confusion: Confusion | None
    ) -> None:
        """Write what the last weights have learned, and scores of single samples, after the test of these weights."""
        processes, task.processes = task.processes, ALONE  # only one is here
        try:
            write_examples(cell.folder / EXAMPLES, task.examples)
            samples = next(iter(task.batches("val")))[0][:CURVE_SAMPLES]
            with self._autocast(task.device):
                write_curves(cell.folder / CURVES, network, samples, run.evolution)
            if self.pictures is True or (self.pictures and cell.spec.seed in self.pictures):
                figures = task.pictures(network) | ({"confusion": confusion.figure()} if confusion else {})
                for name, figure in figures.items():
                    with atomic_write(cell.folder / PICTURES / f"{name}.png") as temporary:
                        figure.savefig(temporary, format="png", dpi=150)
        finally:
            task.processes = processes

    def _evaluate(
        self, task: Task, model: nn.Module, run: Progress, split: str, epoch: int
    ) -> dict[str, float]:
        """Evaluate ``split``, and add a row with the scores and the seconds."""
        since = time.perf_counter()
        with self._autocast(task.device):
            scores = task.evaluate(model, split)
        run.add_row(split, _aggregate_scores(scores), epoch=epoch, since=since)
        return scores

    def _phase(self, units: Iterable[Activation], run: Progress) -> dict[str, str]:
        """Return the column of the activations' phase in metrics.csv; log a change."""
        phase = " ".join(sorted({unit.phase for unit in units} - {""}))
        before = next((row["phase"] for row in reversed(run.rows) if "phase" in row), "")
        if phase != before:
            log.info("epoch %d: the activations' phase is now %s", run.epoch, phase or "over")
        return {"phase": phase} if phase else {}

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = AMP[self.amp]
        return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()

    def _facts(self, network: nn.Module, task: Task, epochs: int, steps: int) -> dict[str, Any]:
        """Return the facts of the record that hold from the beginning of a run."""
        cuda = task.device.type == "cuda"
        return (
            provenance()
            | cost.parameters(network)
            | cost.flops(network, task.input_shape)
            | {
                "primary_metric": task.primary_metric,
                "higher_is_better": task.higher_is_better,
                "device": torch.cuda.get_device_name(task.device) if cuda else str(task.device),
                "num_threads": torch.get_num_threads(),
                "num_processes": size if (size := parallel.current().size) > 1 else None,
                "kernels": library.described(task.device.type),
                "data_fingerprint": task.fingerprint,
                "epochs": epochs,
                "steps": epochs * steps,
                "sites": len(sites(network)),
            }
        )

    def _network(self, act_layer: ActLayer, task: Task, seed: int) -> nn.Module:
        """The task's network as it is trained, on its device."""
        network = build_network(act_layer, task, seed)
        network.to(task.device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
            network.register_forward_pre_hook(_to_channels_last)
        return network

    def measured(self, act_layer: ActLayer, task: Task, batch: Batch, seed: int, epochs: int) -> Measured:
        """A fresh network of ``task`` whose steps can be measured as this runner makes them; draws random numbers."""
        network = self._network(act_layer, task, seed)
        share_statistics(network, synchronized=False)  # one process measures
        return Measured(
            network, task, batch, epochs, lambda: self._autocast(task.device), scaled=self.amp == "fp16"
        )

    def set_up(self, task: Task, seed: int) -> tuple[int, int]:
        """Prepare ``task`` for a run; returns epochs, and steps in each."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        task.split_for(seed)
        world = parallel.current()
        task.device, task.limit_batches = own_device(self.device, world), self.limit_batches
        task.processes = world.processes
        epochs = self.epochs or max(1, round(task.recipe.epochs * self.epochs_scale))
        return epochs, min(task.steps_per_epoch, self.limit_batches or task.steps_per_epoch)

    def _cost(self, act_layer: ActLayer, task: Task, cell: Cell, facts: dict[str, Any]) -> dict[str, Any]:
        """What training with this activation costs, measured on networks of its own or known from another seed.

        Whatever goes wrong here is left for the training itself to say, and is no reason to do without that.
        """
        if not self.cost or self.compile == "on":  # compiling two networks more takes minutes
            return {}
        # all that the cost may depend on, less the seed
        depends = {name: value for name, value in cell.spec.facts.items() if name != "seed"} | {
            name: value for name, value in facts.items() if name in PROVENANCE or name == "activation_code"
        }
        path = cell.cost_file(depends | {"harness": cell.harness_code})
        if not cell.force and (known := _known_cost(path)):
            return known
        states = seeding.random_states()
        try:
            batch = next(iter(task.batches("train", seeding.generator(cell.spec.seed, "data", 0))))
            unit, relu = (
                self.measured(layer, task, batch, cell.spec.seed, facts["epochs"])
                for layer in (act_layer, ReLU)
            )
            found = cost.against_relu(unit, relu, seconds=self.cost, steps=facts["steps"])
        except Exception as error:
            log.warning("%s: its cost was not measured (%s)", cell, format_error(error))
            log.debug("traceback", exc_info=True)
            return {}
        finally:
            seeding.set_random_states(states)
        write_json(path, found)
        return found

    def _save(self, state: RunState, path: Path) -> None:
        """Write a checkpoint, with what all processes know."""
        world = parallel.current()
        random = world.gather_objects(seeding.random_states())
        if world.leads:
            state.save(path, random)

    def _interrupted(self, cell: Cell, run: Progress, stop: "_Stop", by: signal.Signals) -> dict[str, Any]:
        stop.received = by  # another process may have received it
        how = "the same command without force=true" if cell.force else "the same command"
        reason = f"{by.name} in epoch {run.epoch}, step {run.step}; {how} resumes it"
        return self._finish(cell, run, "interrupted", reason=reason)

    def _finish(self, cell: Cell, run: Progress, status: str, **facts: Any) -> dict[str, Any]:
        """Write the record of a run that has ended, with the seconds that it took."""
        seconds = [row["seconds"] for row in run.rows if row["split"] == "train"]
        return cell.write_record(
            status,
            sessions=run.sessions,
            epochs_trained=len(seconds),
            train_seconds=sum(seconds),
            loop_seconds=sum(row["seconds"] for row in run.rows),  # evaluation included
            # without the first epoch, which includes warming up
            seconds_per_epoch=statistics.median(seconds[1:] or seconds) if seconds else None,
            **facts,
        )


def waits_for(device: torch.device) -> bool:
    """Return whether reading a value makes the host wait for the work that it has given to ``device``."""
    return device.type != "cpu"


def _known_cost(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except ValueError:  # damaged
        return None


class _Pace:
    """What a heartbeat says of a run: where it is, and steps per second in this session, evaluation included."""

    def __init__(self, run: Progress, epochs: int, steps: int) -> None:
        self.run, self.epochs, self.steps = run, epochs, steps
        self.before, self.since = self._done(), time.monotonic()

    def _done(self) -> int:
        return self.run.epoch * self.steps + self.run.step

    def __call__(self) -> dict[str, Any]:
        rate = (self._done() - self.before) / (time.monotonic() - self.since)
        return {
            "epoch": self.run.epoch,
            "epochs": self.epochs,
            "step": self.run.step,
            "steps": self.steps,
            "rate": rate,
        }


class _Stop:
    """While entered, the first signal that stops a run sets ``received``; the second of a kind has its former effect."""

    received: signal.Signals | None = None

    def __enter__(self) -> Self:
        # Signals reach the main thread only, and only there can handlers be set.
        self.old = (
            {number: signal.signal(number, self._note) for number in STOPPING}
            if threading.current_thread() is threading.main_thread()
            else {}
        )
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self.old[self.received])


def _aggregate_scores(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores without a class name."""
    return {name: value for name, value in scores.items() if "/" not in name}


def _class_rows(scores: dict[str, float], epoch: int) -> list[dict[str, Any]]:
    """Return a row of classes.csv for each class, for the weights after ``epoch``."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in scores.items():
        metric, slash, label = name.partition("/")
        if slash:
            rows.setdefault(label, {"epoch": epoch, "class": label})[metric] = value
    return list(rows.values())


def _to_channels_last(network: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in args)


def build_network(act_layer: ActLayer, task: Task, seed: int) -> nn.Module:
    """Build the task's network with the initial weights of ``seed``.

    Outside the activations these are the same for all activations.

    Args:
        act_layer: called once for every site, with a random stream of its own.
        task: whose network is built.
        seed: of the weights.

    Raises:
        ValueError: a hyper-parameter of the network that it does not accept, or a task that it does not suit.
    """
    seeding.seed_everything(seed, "network")
    return task.build_network(seeding.isolated(act_layer, seed))
