"""What a record says of where its numbers come from, and the learnt shapes beside it."""

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
COMPONENTS = ("activations", "conf", "tasks", "runners")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Facts that hold for this process."""
    return {
        "git_commit": _git_commit(),
        "machine": platform.node(),
        "cpu": _cpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # not of a class of its own, which a checkpoint may not hold
        "numpy": np.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    """Commit of the code, with ``+changes`` where the tree differs from it; None outside a repository.

    Of files that git does not know only those count that are found by their place: components and their settings.
    """

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10, check=True
        )
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None
        changed = git("status", "--porcelain", "-uno") or git(
            "status", "--porcelain", "-uall", "--", *COMPONENTS
        )
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write_curves(path: Path, network: nn.Module, samples: Tensor) -> None:
    """Write what the activations have learnt, and what reaches them when ``network`` evaluates ``samples``.

    Arrays: ``x`` (points,); for each site ``inputs/<site>`` (points + 1,), the share of its inputs that lie below the
    first point, between neighbours, and above the last; ``curve/<site>`` (units, points) where the unit is a scalar
    function; ``diagnostic/<site>/<name>``; and ``role/<site>/<name>``, text, where the unit declares one.
    """
    arrays = {"x": np.linspace(*CURVE_POINTS, dtype=np.float32)}
    noting = False  # a unit may call itself for its curves

    def note(site: str, unit: Activation, args: tuple[Tensor, ...]) -> None:
        # at once: the inputs of all sites together may not fit into memory
        nonlocal noting
        if not noting and f"inputs/{site}" not in arrays:
            noting = True
            note_at_once(site, unit, args[0])
            noting = False

    def note_at_once(site: str, unit: Activation, inputs: Tensor) -> None:
        values = inputs[inputs.isfinite()].float().cpu().numpy()
        counts = np.bincount(np.searchsorted(arrays["x"], values), minlength=len(arrays["x"]) + 1)
        arrays[f"inputs/{site}"] = (counts / max(1, counts.sum())).astype(np.float32)
        curves = unit.curves(torch.from_numpy(arrays["x"]).to(inputs.device))
        if curves is not None:
            arrays[f"curve/{site}"] = curves.float().cpu().numpy()
        for name, value in unit.diagnostics(inputs).items():
            arrays[f"diagnostic/{site}/{name}"] = value.float().cpu().numpy()
            if name in unit.diagnostic_roles:
                arrays[f"role/{site}/{name}"] = np.array(unit.diagnostic_roles[name])

    units = activation_modules(network)
    handles = [unit.register_forward_pre_hook(partial(note, site)) for site, unit in units.items()]
    network.eval()
    try:
        with torch.no_grad():
            network(samples)
    finally:
        for handle in handles:
            handle.remove()
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for options
