"""What a record says of where its numbers come from, and the learnt shapes beside it."""

import hashlib
import inspect
import platform
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from activations.base import Activation
from results.files import replacing
from runners.optim import activation_modules

CURVE_POINTS = (-6.0, 6.0, 241)  # first, last, number
ROOT = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Facts that hold for this process."""
    return {
        "git_commit": _git_commit(),
        "machine": platform.node(),
        "cpu": _cpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    """Commit of the code, with ``+changes`` where the tree differs from it; None outside a repository."""

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10, check=True
        )
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def source_hash(cls: type) -> str | None:
    """Hash of the file that a class comes from; None where there is none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def write_curves(path: Path, network: nn.Module, samples: Tensor) -> None:
    """Write what the activations have learnt, and what reaches them when ``network`` evaluates ``samples``.

    Arrays: ``x`` (points,); for each site ``inputs/<site>`` (points + 1,), the share of its inputs that lie below the
    first point, between neighbours, and above the last; ``curve/<site>`` (units, points) where the unit is a scalar
    function; and ``diagnostic/<site>/<name>``.
    """
    grid = np.linspace(*CURVE_POINTS, dtype=np.float32)
    arrays = {"x": grid}
    with torch.no_grad():
        for site, (unit, inputs) in _inputs(network, samples).items():
            values = inputs[inputs.isfinite()].float().cpu().numpy()
            counts = np.bincount(np.searchsorted(grid, values), minlength=len(grid) + 1)
            arrays[f"inputs/{site}"] = (counts / max(1, counts.sum())).astype(np.float32)
            curves = unit.curves(torch.from_numpy(grid).to(inputs.device))
            if curves is not None:
                arrays[f"curve/{site}"] = curves.float().cpu().numpy()
            for name, value in unit.diagnostics(inputs).items():
                arrays[f"diagnostic/{site}/{name}"] = value.float().cpu().numpy()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for options


def _inputs(network: nn.Module, samples: Tensor) -> dict[str, tuple[Activation, Tensor]]:
    """Each activation and its input, by site."""
    seen: dict[str, tuple[Activation, Tensor]] = {}

    def note(site: str, unit: Activation, args: tuple[Tensor, ...]) -> None:
        seen[site] = unit, args[0]

    units = activation_modules(network)
    handles = [unit.register_forward_pre_hook(partial(note, site)) for site, unit in units.items()]
    network.eval()
    try:
        network(samples)
    finally:
        for handle in handles:
            handle.remove()
    return seen
