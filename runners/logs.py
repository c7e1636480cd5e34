"""Where the messages of the logger ``actbench`` go while a cell runs; outside of it the logger stays as the user set it up."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

log = logging.getLogger("actbench")


@contextmanager
def only_to(*handlers: logging.Handler, level: int) -> Iterator[None]:
    """Send the messages from ``level`` on to ``handlers`` and to no other, and undo that at the end."""
    before = log.level, log.propagate
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            with suppress(OSError):
                handler.close()
        log.setLevel(before[0])
        log.propagate = before[1]


@contextmanager
def cell_log(path: Path, *, to_caller: bool) -> Iterator[None]:
    """Write all messages to ``path``, and pass them on to the caller's logging, or warnings to the terminal."""
    file = _LogFile(path, delay=True, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    with only_to(file, _Caller(log.getEffectiveLevel()) if to_caller else _Terminal(), level=logging.DEBUG):
        yield


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the messages in a list instead of logging them."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    with only_to(handler, level=logging.INFO):
        yield messages


class _LogFile(logging.FileHandler):
    """Ignore write errors in log.txt; a full disk is reported when a result file is written."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # raised when the file is opened
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore an error of writing."""


class _Terminal(logging.StreamHandler):
    """Print each warning to stderr once: the cells of a grid share their data and repeat the same warnings."""

    printed: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("actbench: %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self.printed
        self.printed.add(message)
        return is_new


class _Caller(logging.Handler):
    """Pass messages on to the parent of the logger, as if the logger's level had not changed."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.parent is not None:
            log.parent.handle(record)
