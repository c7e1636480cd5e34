"""A sign of life in the folder of a cell that runs, for whoever watches the study from another process or machine."""

import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from results.files import HEARTBEAT, write_json

EVERY = 5.0  # seconds


class Heartbeat:
    """While entered, ``heartbeat.json`` is written again every few seconds, by a thread; at the end it is removed.

    Holds ``host``, ``pid``, ``started`` and ``written`` (seconds since 1970), and what ``progress`` returns.

    Args:
        folder: the cell's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HEARTBEAT
        self.progress: Callable[[], dict[str, Any]] = dict
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.facts = {"host": platform.node(), "pid": os.getpid(), "started": time.time()}
        self._ended.clear()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Remove the file, if it is there, and do not write it again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with suppress(OSError):
                self.path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with suppress(OSError):  # a full disk is told of by files that matter
            write_json(self.path, self.facts | {"written": time.time()} | self.progress())
