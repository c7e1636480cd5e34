"""The state of a run, saved so that the rest of the run can be repeated bit for bit."""

import io
import pickle
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from results.files import DAMAGED, atomic_write
from runners import seeding

# the parts of a fingerprint in words
ORIGIN = ("the task's data", "the activation's sources", "the sources of runner, task or network")
PARTS = {
    "network": dict,
    "frozen": list,
    "optimizer": dict,
    "scaler": dict,
    "fingerprint": str,
    "progress": dict,
    "random": dict,
}


def fingerprint(data: str, activation: str | None, harness: str | None) -> str:
    """Return what a checkpoint belongs to: the fingerprint of the data and the hashes of the code."""
    return "\n".join((data, f"activation {activation}", f"harness {harness}"))


@dataclass
class Progress:
    """The progress of a run, in plain values and tensors.

    Attributes:
        epoch, step: the next step.
        rows: of metrics.csv.
        best: epoch, value (larger is better) and weights of the best validation so far.
        means, seconds: of an epoch that was interrupted.
        sessions: a flat dict for every process that computed a part of the run: time, provenance, first step.
        evolution: curves of the sites after some numbers of epochs, see ``runners.record.mean_curves``.
    """

    epoch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    means: dict[str, Any] | None = None
    seconds: float = 0.0
    sessions: list[dict[str, Any]] = field(default_factory=list)
    evolution: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def begin_session(self, facts: dict[str, Any]) -> None:
        """Add a session that continues from here, with these ``facts``."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.sessions.append({"started": started, **facts, "epoch": self.epoch, "step": self.step})

    def add_row(self, split: str, metrics: dict[str, float], *, epoch: int, since: float) -> float:
        """Append a row of metrics.csv for work that began at ``since``, and return the seconds that it took."""
        seconds = time.perf_counter() - since
        self.rows.append({"epoch": epoch, "split": split, **metrics, "seconds": seconds})
        return seconds

    def keep_best(self, network: nn.Module, metric: str, higher_is_better: bool) -> None:
        """Keep the weights if the last row is the best so far; if scores are equal the lower loss decides."""
        row = self.rows[-1]
        value = [row[metric] if higher_is_better else -row[metric], -row["loss"]]
        if self.best is None or value > self.best["value"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.best = {"epoch": self.epoch, "value": value, "weights": weights}


@dataclass
class RunState:
    """Everything that determines the rest of a run.

    ``network`` includes the activations' buffers and with them their phase. The data stream needs no state:
    it depends on the seed, the epoch and the step. ``fingerprint`` is what the function of that name returns.
    """

    network: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    fingerprint: str
    progress: Progress = field(default_factory=Progress)

    def save(self, path: Path, random: Sequence[dict[str, Any]] = ()) -> None:
        """Write a checkpoint; a process that is killed leaves the old one or the new one.

        Args:
            random: states of the generators of all processes that train together; none for one that is alone.
        """
        own, *others = random or [seeding.random_states()]
        state = {
            "network": self.network.state_dict(),
            "frozen": [name for name, p in self.network.named_parameters() if not p.requires_grad],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "fingerprint": self.fingerprint,
            "progress": vars(self.progress),
            "random": own,
        } | ({"random_of_others": others} if others else {})
        _write(path, state)

    def resume(self, path: Path, rank: int = 0) -> bool:
        """Restore the state in ``path`` and return True; return False if there is none.

        ``rank`` is the number of this process among those that train together, whose random states differ.

        A checkpoint that cannot be read is renamed, and the error is repeated until the user has decided: to start
        over silently would hide that a run was lost.

        Raises:
            ValueError: the checkpoint is damaged, now or at an earlier start, or belongs to other data or code.
        """
        aside = path.with_name(DAMAGED)
        if path.exists():
            try:
                with zipfile.ZipFile(path) as archive:
                    bad = archive.testzip()  # torch.load does not compare the checksums
                if bad is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {bad}")
                state = torch.load(path, map_location="cpu", weights_only=True)
                _check_parts(state)
            except (
                *(zipfile.BadZipFile, RuntimeError, EOFError, pickle.UnpicklingError, ValueError),
                *(KeyError, TypeError, AttributeError, NotImplementedError),
            ) as error:
                raise _set_aside(path, error) from None
        elif aside.exists():
            raise ValueError(_damaged(path, "found at an earlier start"))
        else:
            return False
        before, now = state["fingerprint"].split("\n"), self.fingerprint.split("\n")
        if before != now:
            parts = zip(ORIGIN, before, now, strict=True) if len(before) == len(now) == len(ORIGIN) else ()
            changed = [part for part, then, today in parts if then != today]
            raise ValueError(
                f"{path}: {' and '.join(changed) or 'data or sources'} have changed since; "
                "force=true trains this cell from the start"
            )
        try:
            self._restore(state, rank)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise _set_aside(path, error) from None
        return True

    def _restore(self, state: dict[str, Any], rank: int) -> None:
        self.network.load_state_dict(state["network"])
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        random = [state["random"], *state.get("random_of_others", ())]
        if rank < len(random):
            seeding.set_random_states(random[rank])


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a plain state_dict on the CPU, for ``network.weights=`` and for whoever has torch."""
    _write(path, {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)  # not to the file, as torch reports a full disk as a failed assertion
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _check_parts(state: Any) -> None:
    """Raise ValueError unless ``state`` has the parts that ``save`` writes."""
    if not isinstance(state, dict):
        raise ValueError(f"contains a {type(state).__name__}, not the state of a run")
    for part, kind in PARTS.items():
        if not isinstance(state.get(part), kind):
            raise ValueError(f"contains no {part}, so it is not the state of a run")
    if not state["progress"].keys() <= {attribute.name for attribute in fields(Progress)}:
        raise ValueError("its progress is not that of a run")


def _set_aside(path: Path, error: Exception) -> ValueError:
    """Rename an unusable checkpoint, and return the error to raise."""
    path.replace(path.with_name(DAMAGED))
    reason = " ".join(str(error).split()).partition(". ")[0]
    return ValueError(_damaged(path, reason or type(error).__name__))


def _damaged(path: Path, reason: str) -> str:
    return f"{path}: damaged checkpoint ({reason}); kept as {DAMAGED}; force=true trains this cell from the start"
