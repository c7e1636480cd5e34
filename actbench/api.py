"""The functions of the package ``actbench``; see its docstring."""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.files import RECORD
from results.schema import read_record
from runners.compose import choose, component_names, plain_errors
from runners.grid import trains

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from activations.base import Activation
    from tasks.base import Task

BASELINE = "relu"


def activation_names() -> list[str]:
    """Return the names of the activations, sorted.

    Examples:
        >>> from actbench import activation_names
        >>> activation_names()[:3]
        ['acon_c', 'apl', 'celu']
    """
    return component_names("activation")


def task_names() -> list[str]:
    """Return the names of the tasks, sorted; some need data that must be downloaded.

    Examples:
        >>> from actbench import task_names
        >>> "digits" in task_names()
        True
    """
    return component_names("task")


def network_names() -> list[str]:
    """Return the names of the networks, sorted; ``timm`` and ``torchvision`` stand for all networks of these libraries.

    Examples:
        >>> from actbench import network_names
        >>> "resnet20" in network_names()
        True
    """
    return component_names("network")


def make_act_layer(
    activation: str | Callable[..., "Activation"], **hyper: Any
) -> "Callable[..., Activation]":
    """Make the factory that a network calls once for every site.

    Args:
        activation: a name (``activation_names``), a subclass of ``Activation``, a function that returns one, or the dotted
            path to either.
        hyper: its hyper-parameters. Others have the values of conf/activation/NAME.yaml, or of the signature.

    Returns:
        a callable ``(num_features, *, channel_dim=1)`` that makes a fresh activation at every call.

    Raises:
        ValueError: no such activation or hyper-parameter, or a value outside its range.

    Examples:
        >>> from actbench import make_act_layer
        >>> act_layer = make_act_layer("prelu", init=0.1)
        >>> act_layer(64) is act_layer(64)
        False
    """
    with plain_errors():
        return choose(activation=activation, hyper={"activation": hyper}).act_layer()


def make_activation(
    activation: str | Callable[..., "Activation"], num_features: int, *, channel_dim: int = 1, **hyper: Any
) -> "Activation":
    """Make an activation for one site.

    Args:
        activation, hyper: as for ``make_act_layer``.
        num_features: channels of the site, at least 1.
        channel_dim: the dimension of the input that holds them: 1 for (N, C, ...), -1 for (B, T, C).

    Raises:
        ValueError: no such activation or hyper-parameter, or a value outside its range.

    Examples:
        >>> import torch
        >>> from actbench import make_activation
        >>> pwlu = make_activation("pwlu", 64, segments=8)
        >>> pwlu(torch.randn(2, 64, 4, 4)).shape
        torch.Size([2, 64, 4, 4])
        >>> make_activation("pralu", 64)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: activation=pralu: no such activation; did you mean prelu? Legal: acon_c, ...
    """
    return make_act_layer(activation, **hyper)(num_features, channel_dim=channel_dim)


def make_task(
    task: str | Callable[..., "Task"],
    *overrides: str,
    network: str | Callable[..., "nn.Module"] | None = None,
    **settings: Any,
) -> "Task":
    """Make a task: data, splits, loss, metrics, and the network and recipe that it is trained with.

    Args:
        task: a name (``task_names``), a subclass of ``tasks.base.Task``, or the dotted path to one.
        overrides: as on the command line, such as ``"task.recipe.lr=0.01"``.
        network: a name (``network_names``), a function or class called with ``act_layer, input_shape, num_outputs``, or
            the dotted path to one; None for the task's default.
        settings: of the task, such as ``val_fraction=0.1``.

    Raises:
        ValueError: no such task, network or setting, or a value outside its range.

    Examples:
        >>> from actbench import make_task
        >>> digits = make_task("digits", "task.recipe.epochs=3", val_fraction=0.1)
        >>> digits.input_shape, digits.recipe.epochs, digits.primary_metric
        ((1, 8, 8), 3, 'top1')
        >>> make_task("digits", val_fraction=2)
        Traceback (most recent call last):
        ValueError: task.val_fraction=2: must be a number > 0 and < 1
    """
    with plain_errors():
        return choose(task=task, network=network, overrides=overrides, hyper={"task": settings}).task()


def fit(
    activation: str | Callable[..., "Activation"],
    task: str | Callable[..., "Task"] = "digits",
    seed: int = 0,
    *,
    network: str | Callable[..., "nn.Module"] | None = None,
    runner: str = "train",
    study: str = "main",
    outputs: str | os.PathLike[str] = "outputs",
    force: bool = False,
    overrides: str | Sequence[str] = (),
    **hyper: Any,
) -> dict[str, Any]:
    """Train one cell, activation x task x seed, unless it is finished; resume it if it was interrupted.

    It is the cell that ``python run.py activation=... task=... seed=...`` makes: same folder, same id, same scores. A class
    appears under its class name, as with ``activation._target_=mine.Cubic``. Its code counts as it was when this process
    first read its file, so reload no modules between calls. A class that is in no file, as in a notebook, is identified
    by its bytecode; in a script the whole file is its code.

    Args:
        activation: a name (``activation_names``), a subclass of ``Activation`` or a function that returns one, defined at
            the top level of a module, script or notebook, or the dotted path to either.
        task: a name (``task_names``), a subclass of ``tasks.base.Task``, a ``functools.partial`` of it with its settings, or
            the dotted path to one. A task without a name needs ``network``, too.
        seed: of data order, augmentation and initial weights, >= 0.
        network: a name (``network_names``), a function or class called with ``act_layer, input_shape, num_outputs``, a
            partial of it, or the dotted path to one; None for the task's default.
        runner: ``train``, ``short`` or ``smoke``.
        study: folder under ``outputs``; its cells are compared with each other.
        outputs: folder of all studies.
        force: train again although the cell is finished. Needed after a change of your own task or network.
        overrides: further arguments of the command line, such as ``["task.recipe.lr=0.01", "runner.device=cpu"]``.
        hyper: hyper-parameters of the activation.

    Returns:
        the content of record.json, and ``folder``, the folder of the cell. ``primary`` is the test score at the last
        weights; a cell whose ``status`` is ``diverged`` has none.

    Raises:
        ValueError: a name or value that is not legal, or a finished cell whose activation has changed since.
        runners.cell.CellLockedError: another process is training the same cell.
        KeyboardInterrupt: after the run was saved; the same call resumes it.

    Examples:
        >>> from actbench import fit
        >>> record = fit("prelu", task="digits", seed=3, runner="smoke", init=0.1)
        >>> record["status"], record["primary_metric"], record["activation.init"]
        ('ok', 'top1', 0.1)
    """
    components = {"activation": activation, "task": task, "network": network, "runner": runner}
    settings = {"seed": seed, "study": study, "outputs": os.fspath(outputs), "force": force}
    with plain_errors():
        parts = choose(**components, settings=settings, overrides=overrides, hyper={"activation": hyper})
        if not trains(parts.cfg.runner):
            raise ValueError(f"runner={runner}: trains nothing; must be one of train, short, smoke")
        cell = parts.cell(caller=_call(**components, **settings, overrides=overrides, **hyper))
        written = cell.completed_record()
        if written is None:
            record = cell.run(partial(parts.train, cell))
            if "signal" in record:
                signal.raise_signal(record["signal"])  # has now the effect that it would have had at once
            written = read_record(cell.folder / RECORD)
    assert written is not None
    return written | {"folder": str(cell.folder)}


def _call(activation: Any, **arguments: Any) -> str:
    """Return the call of ``fit`` as a user would type it."""
    shown = [_typed(activation), *(f"{name}={_typed(value)}" for name, value in arguments.items())]
    return f"actbench.fit({', '.join(shown)})"


def _typed(value: Any) -> str:
    return getattr(value, "__qualname__", repr(value))


def load_network(cell: str | os.PathLike[str], *, best: bool = False) -> "nn.Module":
    """Make the network of a finished cell and load its trained weights: those that ``runner.keep=weights`` kept, or
    those of its checkpoint.

    Args:
        cell: the cell's folder, as in ``fit(...)["folder"]``.
        best: whether to load the weights of the best validation epoch instead of the last ones.

    Returns:
        the network on the CPU and in eval mode. It takes the samples of the task: (N, *task.input_shape).

    Raises:
        ValueError: no finished cell in this folder, or one without weights.

    Examples:
        >>> import torch
        >>> from actbench import fit, load_network
        >>> record = fit("prelu", task="digits", runner="smoke", overrides=["runner.keep=weights"])
        >>> load_network(record["folder"])(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    from runners.trained import load_trained

    with plain_errors():
        return load_trained(Path(cell).expanduser(), best=best)[1]


def load_study(path: str | os.PathLike[str]) -> "pd.DataFrame":
    """Read the records of a study, one row per cell, including failed ones.

    ``task_label`` and ``activation_label`` are names that differ wherever settings do: only cells with equal labels are
    seeds of the same comparison. ``folder`` is the folder of the cell. Where settings were tuned (``scripts/tune.py``), ``recipe``
    is ``common`` or ``tuned``, and a cell that counts for both is there twice.

    Args:
        path: the study's folder, ``outputs/STUDY``.

    Raises:
        ValueError: no such folder, or no cells in it.

    Examples:
        >>> from actbench import fit, load_study
        >>> for slope in (0.1, 0.3):
        ...     record = fit("prelu", runner="smoke", study="slopes", init=slope)
        >>> records = load_study("outputs/slopes")
        >>> sorted(records["activation_label"]), set(records["status"])
        (['prelu[init=0.1]', 'prelu[init=0.3]'], {'ok'})
    """
    from results.tuning import read_labelled

    return read_labelled([Path(path).expanduser()]).records


def leaderboard(
    study: "str | os.PathLike[str] | pd.DataFrame", baseline: str = BASELINE, margin: float | None = None
) -> "pd.DataFrame":
    """Compare the activations of a study, one row per task and activation, best first; nothing is written.

    Args:
        study: its folder, or rows of ``load_study``.
        baseline: the activation that others are compared with.
        margin: the largest difference to the baseline that does not matter, in the metric's unit; None for the default
            of the metric.

    Returns:
        the table that ``scripts/report.py`` writes as leaderboard.csv.

    Raises:
        ValueError: no study, or no such baseline in it (relu, the default, may be missing).

    Examples:
        >>> from actbench import fit, leaderboard
        >>> for name in ("relu", "swish"):
        ...     record = fit(name, runner="smoke", study="two")
        >>> sorted(leaderboard("outputs/two", baseline="swish")["activation"])
        ['relu', 'swish']
    """
    import pandas as pd

    from results.leaderboard import leaderboard as make_table

    records = study if isinstance(study, pd.DataFrame) else load_study(study)
    labels = sorted(records["activation_label"].unique())
    if baseline != BASELINE and not any(
        label.partition("[")[0] == baseline or label == baseline for label in labels
    ):
        raise ValueError(f"baseline={baseline}: must be an activation of the study: {', '.join(labels)}")
    return make_table(records, baseline, margin)
