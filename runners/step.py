"""A training step: the loss of a batch, and the update of the parameters by its gradient.

Training and the measurement of its cost take the same steps.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from activations.base import Activation
from tasks.base import Share, Task


class Forward(NamedTuple):
    """The result of a forward pass in training.

    Attributes:
        output: of the network, in float32.
        losses: ``loss`` and, if the activations have one, ``regularization``.
        total: their sum, to be minimized.
    """

    output: Tensor
    losses: dict[str, Tensor]
    total: Tensor

    def values(self, task: Task, share: Share) -> dict[str, Tensor]:
        """Return losses and metrics of the batch; of several processes the parts of them whose sum they are."""
        metrics = task.metrics(self.output.detach(), share.target, training=True)
        if share.weight is None:
            return self.losses | metrics
        parts = {name: value / task.processes.size for name, value in self.losses.items()}
        return parts | {name: value * share.weight for name, value in metrics.items()}


def forward(
    model: nn.Module,
    task: Task,
    units: Iterable[Activation],
    share: Share,
    autocast: AbstractContextManager[object],
) -> Forward:
    """Compute the loss of one batch, the penalties of ``units`` included; only the network itself runs in ``autocast``.

    Where the batch is spread over several processes, the mean of their losses is the loss of the batch.
    """
    with autocast:
        output = model(share.inputs)
    output = output.float()
    loss = task.loss(output, share.target, training=True)
    if share.weight is not None:
        loss = loss * (share.weight * task.processes.size)
    penalty = sum(unit.regularization() for unit in units)
    if isinstance(penalty, Tensor):
        return Forward(output, {"loss": loss, "regularization": penalty}, loss + penalty)
    return Forward(output, {"loss": loss}, loss)


def update(
    total: Tensor,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float | None,
) -> bool:
    """Update the parameters by the gradient of ``total``; return whether any takes part in it.

    The parameters do not tell whether anything is trained: those of a phase may have no part in the output.
    """
    if not total.requires_grad:
        return False
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(total).backward()
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return True
