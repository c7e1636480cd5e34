"""The runner that trains a cell: one loop that can be stopped anywhere and resumed there."""

import logging
import math
import signal
import statistics
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from activations.base import Activation
from activations.kernels import library
from results.files import (
    CHECKPOINT,
    CLASSES,
    CONFUSION,
    CURVES,
    METRICS,
    PICTURES,
    replacing,
    write_csv,
    write_table,
)
from results.schema import PROVENANCE
from runners import cost, seeding
from runners.cell import Cell
from runners.checkpoint import Progress, RunState, fingerprint
from runners.factory import check_network
from runners.optim import activation_modules, activation_parameters, lr_factor, make_optimizer, sites
from runners.record import evolution_epochs, mean_curves, provenance, write_curves
from tasks.base import ActLayer, Means, Task, check_bool, check_choice, check_range, check_whole

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# steps between looks at whether the loss is finite; on an accelerator each look waits for it
CHECK_EVERY = 50
# of the validation split, to show what reaches the activations
CURVE_SAMPLES = 128

log = logging.getLogger("actbench")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a task's network with an activation by the task's recipe, and record what came of it.

    Args:
        epochs: instead of the recipe's, at least 1; None for the recipe's.
        epochs_scale: factor on the recipe's epochs, above 0; at least one epoch is trained.
        limit_batches: at most so many batches per pass, or None; see ``Task.spread``.
        activation_only_epochs: for so many epochs at the beginning only the activations' parameters are
            trained ("freeze, then thaw"). Norms keep updating their running statistics meanwhile.
        device: auto (cuda, then cpu), or a torch device.
        threads: of torch on the CPU; None for torch's choice.
        kernels: auto (the rule of ``activations.kernels.library``) or reference (plain torch operations).
        channels_last: memory format of image batches and networks.
        amp: off, bf16 or fp16 autocast (fp16 with loss scaling).
        compile: off or on (torch.compile).
        pictures: write the task's pictures at the end.

    Raises:
        ValueError: a value outside its range, or a device that is not there.
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
    pictures: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "limit_batches", "threads"):
            if getattr(self, name) is not None:
                check_whole(f"runner.{name}", getattr(self, name), 1)
        check_whole("runner.activation_only_epochs", self.activation_only_epochs, 0)
        check_range("runner.epochs_scale", self.epochs_scale, "above 0", lambda v: v > 0)
        check_choice("runner.kernels", self.kernels, library.MODES)
        check_choice("runner.amp", self.amp, tuple(AMP))
        check_choice("runner.compile", self.compile, ("off", "on"))
        for name in ("channels_last", "pictures"):
            check_bool(f"runner.{name}", getattr(self, name))
        find_device(self.device)

    def __call__(self, act_layer: ActLayer, task: Task, cell: Cell) -> dict[str, Any]:
        """Train ``cell``, or go on with it where it was stopped; returns its record.

        After SIGINT or SIGTERM the run is saved, and the returned record has the number as ``signal``.

        Raises:
            ValueError: a damaged checkpoint, one of other data or code, or an activation that does not fit.
        """
        threads = torch.get_num_threads()
        try:
            # auto leaves the environment's word as it is
            with library.using(self.kernels) if self.kernels != "auto" else nullcontext(), _Stop() as stop:
                record = self._train(act_layer, task, cell, stop)
            return record | ({"signal": int(stop.received)} if stop.received else {})
        finally:
            torch.set_num_threads(threads)  # the next cell of a grid may have other wishes

    def _train(self, act_layer: ActLayer, task: Task, cell: Cell, stop: "_Stop") -> dict[str, Any]:
        # set-up: everything random comes from streams of the seed (see seeding), none of them the activation's
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        task.split_for(cell.seed)
        task.device, task.limit_batches = find_device(self.device), self.limit_batches
        epochs = self.epochs or max(1, round(task.recipe.epochs * self.epochs_scale))
        steps = min(task.steps_per_epoch, self.limit_batches or task.steps_per_epoch)  # per epoch
        network = build_network(act_layer, task, cell.seed)
        network.to(task.device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
            network.register_forward_pre_hook(_to_channels_last)
        model = cast(nn.Module, torch.compile(network)) if self.compile == "on" else network
        check_network(network, task.input_shape, task.output_shape)
        units, own = activation_modules(network).values(), activation_parameters(network)
        outside = [p for p in network.parameters() if p.requires_grad and p not in own]
        facts = self._facts(network, task, epochs, steps) | {"activation_code": cell.activation_code}
        optimizer = make_optimizer(network, task.recipe)
        scaler = torch.amp.GradScaler(task.device.type, enabled=self.amp == "fp16")

        # resume: the checkpoint holds all that determines the rest of the run
        checkpoint, metrics = cell.folder / CHECKPOINT, cell.folder / METRICS
        seeding.seed_everything(cell.seed, "training")
        origin = fingerprint(task.fingerprint, cell.activation_code, cell.harness_code)
        state = RunState(network, optimizer, scaler, origin)
        cell.begin(facts)
        resumed = state.resume(checkpoint)
        run = state.progress
        run.begin_session({name: facts[name] for name in PROVENANCE})
        log.info(
            "%s: %s at epoch %d, step %d", cell, "resumed" if resumed else "started", run.epoch, run.step
        )
        bar = tqdm(
            total=epochs * steps,
            initial=run.epoch * steps + run.step,
            desc=str(cell),
            unit="step",
            leave=False,
            disable=None,  # none where nobody watches
        )

        keep_curves = evolution_epochs(epochs)
        with bar:
            while run.epoch < epochs:
                # an epoch: its data depend on the seed and its number alone
                for parameter in outside:
                    parameter.requires_grad_(run.epoch >= self.activation_only_epochs)
                if run.step == 0:  # an interrupted epoch has been started already
                    if run.epoch in keep_curves:
                        run.evolution[run.epoch] = mean_curves(network)
                    for unit in units:
                        unit.start_epoch(run.epoch, epochs)
                phase = self._phase(units, run)
                data = task.batches("train", seeding.generator(cell.seed, "data", run.epoch))
                means = Means(run.means)
                since = time.perf_counter() - run.seconds
                model.train()

                for input, target in islice(data, run.step, steps):
                    # a step
                    lr = task.recipe.lr * lr_factor(run.epoch * steps + run.step, epochs * steps, task.recipe)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    with self._autocast(task.device):
                        output = model(input)
                    output = output.float()
                    loss = task.loss(output, target)
                    penalty = sum(unit.regularization() for unit in units)
                    total = loss + penalty if isinstance(penalty, Tensor) else loss
                    if total.requires_grad:  # not if all is frozen and the activation has no parameters
                        optimizer.zero_grad(set_to_none=True)
                        scaler.scale(total).backward()
                        if task.recipe.clip_norm is not None:
                            scaler.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(network.parameters(), task.recipe.clip_norm)
                        scaler.step(optimizer)
                        scaler.update()
                    elif run.step == 0:
                        log.warning("epoch %d: nothing is trained, all parameters rest", run.epoch)
                    run.step += 1

                    # what is seen of it
                    extra = {"regularization": penalty} if isinstance(penalty, Tensor) else {}
                    means.add(len(target), loss=loss, **extra, **task.metrics(output.detach(), target))
                    if run.step % CHECK_EVERY == 0 and not means.finite():
                        break
                    if bar.update():
                        shown = {name: f"{value:.4g}" for name, value in means.result().items()}
                        bar.set_postfix({"epoch": f"{run.epoch + 1}/{epochs}"} | shown, refresh=False)
                    if stop.received and run.step < steps:
                        run.means, run.seconds = means.state(), time.perf_counter() - since
                        state.save(checkpoint)
                        return self._interrupted(cell, run, stop.received)

                # the end of an epoch: validate, keep the best weights, save
                seconds = run.add_row("train", means.result(), epoch=run.epoch, since=since)
                run.rows[-1] |= {"lr": lr, "samples_per_s": means.count / seconds} | phase
                if means.finite():
                    self._evaluate(task, model, run, "val", epoch=run.epoch)
                if not math.isfinite(run.rows[-1]["loss"]):
                    write_csv(metrics, run.rows)
                    return self._finish(cell, run, "diverged", reason=f"loss not finite in epoch {run.epoch}")
                run.keep_best(network, task.primary_metric, task.higher_is_better)
                run.epoch, run.step, run.means, run.seconds = run.epoch + 1, 0, None, 0.0
                state.save(checkpoint)
                write_csv(metrics, run.rows)
                if stop.received and run.epoch < epochs:
                    return self._interrupted(cell, run, stop.received)

        return self._test(cell, task, network, model, run)

    def _test(
        self, cell: Cell, task: Task, network: nn.Module, model: nn.Module, run: Progress
    ) -> dict[str, Any]:
        """The one look at the test split: with the last weights, and with those best in validation."""
        val = run.rows[-1][task.primary_metric]
        last = best = self._evaluate(task, model, run, "test", epoch=run.epoch - 1)
        confusion = task.confusion
        samples = next(iter(task.batches("val")))[0][:CURVE_SAMPLES]
        with self._autocast(task.device):
            write_curves(cell.folder / CURVES, network, samples, run.evolution)
        if self.pictures:
            figures = task.pictures(network) | ({"confusion": confusion.figure()} if confusion else {})
            for name, figure in figures.items():
                with replacing(cell.folder / PICTURES / f"{name}.png") as temporary:
                    figure.savefig(temporary, format="png", dpi=150)
        assert run.best is not None
        if run.best["epoch"] != run.epoch - 1:
            network.load_state_dict(run.best["weights"])
            best = self._evaluate(task, model, run, "test", epoch=run.best["epoch"])
        write_csv(cell.folder / METRICS, run.rows)
        looks = {run.epoch - 1: last, run.best["epoch"]: best}
        if classes := [row for epoch, scores in looks.items() for row in _class_rows(scores, epoch)]:
            write_csv(cell.folder / CLASSES, classes)
        if confusion is not None:
            write_table(cell.folder / CONFUSION, confusion.table())
        if not (math.isfinite(last["loss"]) and math.isfinite(best["loss"])):
            return self._finish(cell, run, "diverged", reason="loss not finite in the test")
        scores = {
            "primary": last[task.primary_metric],
            "primary_best": best[task.primary_metric],
            "primary_val": val,
        }
        tests = {f"test_{name}": value for name, value in _of_all(last).items()}
        tests |= {f"test_best_{name}": value for name, value in _of_all(best).items()}
        return self._finish(cell, run, "ok", **scores, best_epoch=run.best["epoch"], **tests)

    def _evaluate(
        self, task: Task, model: nn.Module, run: Progress, split: str, epoch: int
    ) -> dict[str, float]:
        since = time.perf_counter()
        with self._autocast(task.device):
            scores = task.evaluate(model, split)
        run.add_row(split, _of_all(scores), epoch=epoch, since=since)
        return scores

    def _phase(self, units: Iterable[Activation], run: Progress) -> dict[str, str]:
        """What a row of metrics.csv says of the activations' phase; a new one is logged."""
        phase = " ".join(sorted({unit.phase for unit in units} - {""}))
        before = next((row["phase"] for row in reversed(run.rows) if "phase" in row), "")
        if phase != before:
            log.info("epoch %d: the activations' phase is now %s", run.epoch, phase or "over")
        return {"phase": phase} if phase else {}

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = AMP[self.amp]
        return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()

    def _facts(self, network: nn.Module, task: Task, epochs: int, steps: int) -> dict[str, Any]:
        """What the record says of a run from its beginning."""
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
                "kernels": library.described(),
                "data_fingerprint": task.fingerprint,
                "epochs": epochs,
                "steps": epochs * steps,
                "sites": len(sites(network)),
            }
        )

    def _interrupted(self, cell: Cell, run: Progress, by: signal.Signals) -> dict[str, Any]:
        how = "the same command without force=true" if cell.force else "the same command"
        reason = f"{by.name} in epoch {run.epoch}, step {run.step}; {how} goes on"
        return self._finish(cell, run, "interrupted", reason=reason)

    def _finish(self, cell: Cell, run: Progress, status: str, **facts: Any) -> dict[str, Any]:
        """Write the record of a run that has come to an end, whatever the end."""
        seconds = [row["seconds"] for row in run.rows if row["split"] == "train"]
        return cell.write_record(
            status,
            sessions=run.sessions,
            epochs_trained=len(seconds),
            train_seconds=sum(seconds),
            loop_seconds=sum(row["seconds"] for row in run.rows),  # evaluation included
            # the first epoch pays for warming up
            seconds_per_epoch=statistics.median(seconds[1:] or seconds) if seconds else None,
            **facts,
        )


class _Stop:
    """While entered, the first SIGINT or SIGTERM is noted in ``received`` and the second acts as ever."""

    received: signal.Signals | None = None

    def __enter__(self) -> Self:
        # signals reach the main thread only, and only there may handlers be set
        self.old = (
            {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
            if threading.current_thread() is threading.main_thread()
            else {}
        )
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()


def _of_all(scores: dict[str, float]) -> dict[str, float]:
    """The scores that are not one class's own."""
    return {name: value for name, value in scores.items() if "/" not in name}


def _class_rows(scores: dict[str, float], epoch: int) -> list[dict[str, Any]]:
    """A row for each class, of the test with the weights after ``epoch``."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in scores.items():
        metric, of_class, label = name.partition("/")
        if of_class:
            rows.setdefault(label, {"epoch": epoch, "class": label})[metric] = value
    return list(rows.values())


def _to_channels_last(network: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in args)


def find_device(name: str) -> torch.device:
    """The device called ``name``; auto is cuda if there is one, else cpu. (mps lacks the float64 of the means.)

    Raises:
        ValueError: no such device on this machine.
    """
    legal = ["cpu"]
    if torch.cuda.is_available():
        legal = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *legal]
    if name != "auto" and name not in legal:
        raise ValueError(f"runner.device={name}: this machine has auto, {', '.join(legal)}")
    return torch.device(legal[0] if name == "auto" else name)


def build_network(act_layer: ActLayer, task: Task, seed: int) -> nn.Module:
    """The task's network with the initial weights of ``seed``, outside the activations the same for all of them."""
    seeding.seed_everything(seed, "network")
    return task.build_network(seeding.isolated(act_layer, seed))
