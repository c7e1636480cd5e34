"""Compile csrc/ for this machine's kind of processor: ``python activations/kernels/build.py``, or pip while it installs.

The compiler is clang from the package ``ziglang``, which pip brings along for the build alone; none is needed on
the machine. The result includes neither torch nor Python and links to the C library alone, so that one file serves all
their versions. Both variants of one processor take about half a minute.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = "-O3 -s -shared -fno-exceptions -fno-rtti -fno-math-errno -ffp-contract=off -Wno-psabi"
X86 = {"avx2": "x86_64_v3", "avx512": "x86_64_v4"}
SYSTEMS = {"Linux": "linux-gnu.2.17", "Darwin": "macos"}


def variants(machine: str, system: str) -> dict[str, list[str]]:
    """The compiler's words for what can be built for a kind of machine, by the name of the variant."""
    if system not in SYSTEMS:
        return {}
    if machine.lower() in ("arm64", "aarch64"):
        return {"neon": ["-target", f"aarch64-{SYSTEMS[system]}"]}
    if machine.lower() == "x86_64":
        target = f"x86_64-{SYSTEMS[system]}"
        return {name: ["-target", target, f"-mcpu={cpu}"] for name, cpu in X86.items()}
    return {}


def build(folder: Path, machine: str = platform.machine(), system: str = platform.system()) -> list[Path]:
    """Compile every variant to ``folder`` that is older than its sources; returns the files of all.

    Raises:
        OSError, subprocess.CalledProcessError: the compiler is missing or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in sorted((HERE / "csrc").glob("*.cpp"))]
    changed = max(path.stat().st_mtime for path in [Path(__file__), *(HERE / "csrc").iterdir()])
    outputs, running = [], {}
    cache = tempfile.TemporaryDirectory()  # the compiler's own cannot be shared by builds at the same time
    environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": cache.name, "ZIG_GLOBAL_CACHE_DIR": cache.name}
    for name, words in variants(machine, system).items():
        output = folder / f"fused_{name}.so"
        outputs.append(output)
        if output.exists() and output.stat().st_mtime > changed:
            continue
        # a process that has the old file loaded keeps it, and another build has a name of its own
        half = output.with_suffix(f".{os.getpid()}.tmp")
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS.split(), *words, "-o", str(half), *sources]
        running[output] = half, subprocess.Popen(command, env=environment)
    failed = [process for _, process in running.values() if process.wait()]
    cache.cleanup()
    for process in failed:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    for output, (half, _) in running.items():
        half.replace(output)
    return outputs


if __name__ == "__main__":
    for path in build(HERE):
        print(path)
