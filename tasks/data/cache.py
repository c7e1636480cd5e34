"""A disk cache of arrays under a key that changes when the files they come from change."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tasks.data.hashing import content_hash

Build = Callable[[Path], None]  # writes its arrays into a folder, as <name>.npy

NAMES = "names"  # the file in an entry that lists its arrays, so that a deleted one is noticed


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds of one set of samples.

    Args:
        folder: of the cache.
        key: of the samples; changes whenever they do (``key_of_files``).
    """

    folder: Path
    key: str

    def arrays(self, kind: str, build: Build) -> dict[str, np.ndarray]:
        """Return the arrays called ``kind``; see ``cached``."""
        return cached(self.folder, f"{kind}-{self.key}", build)

    def derived(self, *parts: str | bytes) -> "CacheEntry":
        """Return the entry for what is computed from the samples and ``parts``."""
        return CacheEntry(self.folder, content_hash(self.key, *parts, length=20))


def key_of_files(kind: str, root: Path, paths: Sequence[Path]) -> str:
    """Return a hash of ``kind`` and of every file's name below ``root``, size and times.

    The change time is included, so that copying an older file of the same size over another changes the hash.
    """
    parts: list[str | bytes] = [kind]
    for path in paths:
        status = os.stat(path)
        parts.append(os.fsencode(os.path.relpath(path, root)))  # names need not be UTF-8
        parts.append(f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n")
    return content_hash(*parts, length=20)


def cached(folder: Path, key: str, build: Build) -> dict[str, np.ndarray]:
    """Return the arrays in ``folder/key``, which ``build`` writes if they are not there.

    Stored arrays are mapped, not read: processes share them, and pages are loaded as they are used. They may be
    written to, which changes the copy in memory only.

    Args:
        folder: of all entries; created if it does not exist.
        key: name of the entry.
        build: called with the folder to write to, whose name is temporary: an entry appears as a whole.

    Raises:
        ValueError: the folder cannot be written to.
    """
    place = folder / key
    try:
        if (arrays := _sound(place)) is not None:
            return arrays
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{key}.lock"):  # the cells of a grid wait for the first of them
            if (arrays := _sound(place)) is None:
                _store(place, build)
                arrays = _mapped(place)
        return arrays
    except OSError as error:
        raise _unusable(folder, error) from error


def save(folder: Path, **arrays: Any) -> None:
    """Write ``<name>.npy`` for each of ``arrays``, which may be anything that numpy converts to an array."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _store(place: Path, build: Build) -> None:
    """Build an entry under a temporary name and rename it: readers see all of it or nothing.

    Only the holder of the entry's lock calls this: a folder with the entry's name is damaged, and one with such a
    temporary name was left by a process that was killed.
    """
    for leftover in place.parent.iterdir():
        if leftover.name.startswith(f".{place.name}.") and leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    if place.exists():
        shutil.rmtree(place)
    temporary = place.parent / f".{place.name}.{os.getpid()}"
    temporary.mkdir()
    try:
        build(temporary)
        names = sorted(path.stem for path in temporary.glob("*.npy"))
        (temporary / NAMES).write_text("\n".join(names))
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unusable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"cache={folder}: cannot store decoded data there ({error.strerror})")


def _sound(place: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of an entry; None if it is not there, or damaged by the disk: entries are written as a whole."""
    if not place.is_dir():
        return None
    try:
        return _mapped(place)
    except (ValueError, EOFError, FileNotFoundError):
        return None


def _mapped(place: Path) -> dict[str, np.ndarray]:
    names = (place / NAMES).read_text().split("\n")
    return {name: np.load(place / f"{name}.npy", mmap_mode="c") for name in names}
