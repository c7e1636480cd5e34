"""Scripts as processes of their own that need not import torch and its like again: forked from a server that has."""

import multiprocessing.process
import os
import runpy
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

# Libraries alone: a process imports the code under test itself, as on a command line.
LIBRARIES = [
    "torch.utils.data",
    "torchvision.models",
    "hydra.main",
    "hydra._internal.hydra",
    "pandas",
    "scipy.stats",
    "sklearn.datasets",
    "tqdm",
]
SITE = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)


class Script:
    """``python *arguments`` in a process, as ``subprocess.Popen`` with its output captured as text.

    What an interpreter reads when it starts, such as PYTHONIOENCODING, counts as it is for the tests; and imports cannot
    be observed.
    """

    def __init__(self, arguments: list[Any], *, cwd: Path | str, env: dict[str, str]) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.folder = tempfile.TemporaryDirectory()
        self.process = CONTEXT.Process(target=_run, args=(self.arguments, self.folder.name, str(cwd), env))
        self.process.start()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, number)

    def poll(self) -> int | None:
        return self.process.exitcode

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        with self.folder:
            said = [Path(self.folder.name, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *said)


def run(arguments: list[Any], *, cwd: Path | str, env: dict[str, str]) -> subprocess.CompletedProcess:
    """``subprocess.run([sys.executable, *arguments], ...)``."""
    return Script(arguments, cwd=cwd, env=env).finish()


def _run(arguments: list[str], folder: str, cwd: str, env: dict[str, str]) -> None:
    for name in ("stdout", "stderr"):
        file = os.open(Path(folder, name), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, getattr(sys, name).fileno())
        os.close(file)
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]  # a grid ends with its parent
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv[:] = arguments
    path = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [str(Path(arguments[0]).resolve().parent), *path, *SITE]
    runpy.run_path(arguments[0], run_name="__main__")
