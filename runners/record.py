"""The provenance of a record, and the curves of the learned activations beside it."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from activations.base import Activation
from activations.surgery.state import undisturbed
from results.files import atomic_write
from runners.optim import activation_modules

MAX_EXAMPLES = 100_000  # numbers of 4 bytes; bits are kept of any number of samples
CURVE_POINTS = (-6.0, 6.0, 241)  # first, last, number
EVOLUTION = (0.0, 0.25, 0.5)  # shares of the epochs after which curves are kept, beside those at the end
ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = ("activations", "conf", "tasks", "runners")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Return commit, machine, CPU, platform and versions of this process, as the columns of ``results.schema``."""
    return {
        "git_commit": _git_commit(),
        "machine": platform.node(),
        "cpu": _cpu(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str, as a checkpoint may not hold torch's class
        "numpy": np.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    """Return the commit of the code, with ``+changes`` if the tree differs from it; None outside a repository.

    Of untracked files only those count that are found by their place: components and their settings.
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


def evolution_epochs(epochs: int) -> frozenset[int]:
    """Return the numbers of epochs after which ``mean_curves`` are kept."""
    return frozenset(int(share * epochs) for share in EVOLUTION)


def mean_curves(network: nn.Module) -> dict[str, Tensor]:
    """Return, for each site whose unit is a learned scalar function, its response at the points, the mean of its units.

    Of shape (points,) in float16, small enough to be kept in checkpoints. Network and random generators stay as they are.
    """
    found = {}
    with undisturbed(network), torch.no_grad():
        network.eval()
        for site, unit in activation_modules(network).items():
            parameter = next(unit.parameters(), None)
            if parameter is not None:
                curves = unit.curves(torch.linspace(*CURVE_POINTS, device=parameter.device))
                if curves is not None:
                    found[site] = curves.float().mean(0).half().cpu()
    return found


def write_curves(
    path: Path,
    network: nn.Module,
    samples: Tensor,
    evolution: Mapping[int, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write the curves of the activations, and the distribution of their inputs when ``network`` evaluates ``samples``.

    Arrays: ``x`` (points,); for each site ``inputs/<site>`` (points + 1,), the share of its inputs that lie below the
    first point, between adjacent points, and above the last; ``curve/<site>`` (units, points) where the unit is a scalar
    function; ``diagnostic/<site>/<name>``, and ``role/<site>/<name>``, a word, where the unit declares one.

    Args:
        evolution: ``mean_curves`` by the number of epochs trained, written as ``evolution/<epochs>/<site>`` (points,).
    """
    arrays = {"x": np.linspace(*CURVE_POINTS, dtype=np.float32)}
    active = False  # a unit may call itself to compute its curves

    def enter(site: str, unit: Activation, args: tuple[Tensor, ...]) -> None:
        nonlocal active
        if not active and f"inputs/{site}" not in arrays:
            active = True
            describe(site, unit, args[0])
            active = False

    def describe(site: str, unit: Activation, inputs: Tensor) -> None:
        # in the hook, as the inputs of all sites together may not fit into memory
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

    with undisturbed(network), torch.no_grad():
        for site, unit in activation_modules(network).items():
            unit.register_forward_pre_hook(partial(enter, site))
        network.eval()
        network(samples)
    for epochs, by_site in (evolution or {}).items():
        arrays |= {f"evolution/{epochs}/{site}": curve.numpy() for site, curve in by_site.items()}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for options


def write_examples(path: Path, examples: Mapping[str, Tensor]) -> None:
    """Write the scores of single test samples, from which a report judges the choice of the test set.

    Arrays: ``<metric>`` (samples,) float32, or (ceil(samples / 8),) uint8 of ``np.packbits`` where a sample is right or
    wrong; ``count``, the number of samples. More than 100,000 float32 are not written; without any metric, no file is.
    """
    arrays = {}
    for metric, values in examples.items():
        if values.dtype == torch.bool:
            arrays[metric] = np.packbits(values.cpu().numpy())
        elif len(values) <= MAX_EXAMPLES:
            arrays[metric] = values.float().cpu().numpy()
        else:
            continue
        arrays["count"] = np.array(len(values))
    if arrays:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for options
