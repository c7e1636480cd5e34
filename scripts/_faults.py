"""Command lines of this project in forked processes, each of which may meet a fault at an exact place in its writing.

Python tells an audit hook of every file that is opened, renamed or removed, so the code under test has no hook of its own.
"""

import os
import re
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import _here  # noqa: F401  # before the code that it finds

from results.files import CHECKPOINT

# Where in the writing of a file: before it is opened, among its bytes, before and after it is renamed.
POINTS = ("opening", "halfway", "renaming", "renamed")
REMOVING = "removing"  # before a file that was written is removed
FULL = "full"  # the disk is full from the moment the file is opened
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)

_TEMPORARY = re.compile(r"\.(.*)\.\d+@.*\.tmp")  # results.files.TEMPORARY


@dataclass(frozen=True)
class Fault:
    """What happens to a process in one of its writes.

    Args:
        kind: pattern of the name of the file that is written, such as ``record.json`` or ``*.png``.
        point: one of ``POINTS``, ``REMOVING`` or ``FULL``.
        nth: which of the process's writes of that kind, from 1.
        size: bytes after which ``halfway`` kills, or that a file may have when the disk is full without ``filler``.
        filler: a file that takes the rest of its disk, which makes it full; None to limit the size of files instead.
    """

    kind: str
    point: str
    nth: int = 1
    size: int = 0
    filler: Path | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.point}"


class Process:
    """``python *arguments`` in a forked process, which shares what this one has imported.

    Args:
        arguments: of the command line, the script first.
        output: the file that gets stdout and, with ``.err`` behind its name, stderr.
        cwd: the working folder.
        env: changes to the environment; None takes a name out.
        fault: what happens to it, if anything does.
        journal: a file that gets a line for every rename of a checkpoint: ``+`` before it, ``=`` after it.
        prepare: is called in the new process first.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        output: Path,
        cwd: Path,
        env: dict[str, str | None] | None = None,
        fault: Fault | None = None,
        journal: Path | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.output, self.fault = output, fault
        self.returncode: int | None = None
        self.memory = 0  # most resident bytes, once it has ended
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, output, cwd, env or {}, fault, journal, prepare)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode, self.memory = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """Wait for the end, and return the exit status.

        Raises:
            TimeoutError: it took longer, and was killed.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.output}: still running after {timeout:.0f} s")
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has printed to stdout."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it has printed to stderr."""
        return _errors(self.output).read_text(encoding="utf-8", errors="replace")


def _errors(output: Path) -> Path:
    return output.with_name(f"{output.name}.err")


def _run(
    arguments: list[str],
    output: Path,
    cwd: Path,
    env: dict[str, str | None],
    fault: Fault | None,
    journal: Path | None,
    prepare: Callable[[], None] | None,
) -> NoReturn:
    """Be ``python *arguments``."""
    status: Any = 1
    try:
        for path, stream in ((output, sys.stdout), (_errors(output), sys.stderr)):
            file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(file, stream.fileno())
            os.close(file)
        for name, value in env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        time.tzset()
        os.chdir(cwd)
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        if prepare is not None:
            prepare()
        _install(fault, journal)
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status or 0))


def _install(fault: Fault | None, journal: Path | None) -> None:
    """Add the audit hook that this process needs."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if fault is not None and fault.point == "halfway":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and the write would be an error
    lines = os.open(journal, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644) if journal else None
    count = 0

    def note(mark: str, path: str) -> None:
        if lines is not None:
            os.write(lines, f"{mark}{path}\n".encode())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove"):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        folder, base = os.path.split(os.fspath(path))
        temporary = _TEMPORARY.fullmatch(base)
        name = temporary[1] if temporary else base
        point = {"open": "opening", "os.rename": "renaming", "os.remove": REMOVING}[event]
        if temporary and point == REMOVING:
            if os.path.lexists(path):  # an error in writing
                return
            point = "renamed"
        elif temporary is None and point != REMOVING:
            return
        if name == CHECKPOINT and point in ("renaming", "renamed"):
            note("=" if point == "renamed" else "+", os.fspath(folder))
        if fault is None or not fnmatchcase(name, fault.kind):
            return
        count += point == (REMOVING if fault.point == REMOVING else POINTS[0])
        if count != fault.nth:
            return
        if point == "opening" and fault.point in ("halfway", FULL):
            _limit(fault)
        elif point == "renaming" and fault.point == "halfway":  # the file was too small for it
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        elif point == fault.point:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # until the signal comes

    sys.addaudithook(hook)


def _limit(fault: Fault) -> None:
    """Let the kernel end a write in its middle: kill the process after so many bytes, or have no room for more."""
    if fault.filler is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, resource.RLIM_INFINITY))
        return
    with fault.filler.open("ab", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:  # no space left
            return
