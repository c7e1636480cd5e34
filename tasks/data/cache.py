"""A disk cache of arrays under a key that changes when the files they come from change."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

Build = Callable[[Path], None]  # writes its arrays into the folder given, as <name>.npy


def key_of_files(kind: str, root: Path, paths: Sequence[Path]) -> str:
    """Hash of ``kind`` and of every file's name below ``root``, size and times.

    The change time is part of it: copying an older file of the same size over another changes it, too.
    """
    digest = hashlib.sha256(kind.encode())
    for path in paths:
        status = os.stat(path)
        name = os.path.relpath(path, root)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n".encode())
    return digest.hexdigest()[:20]


def cached(folder: Path, key: str, build: Build) -> dict[str, np.ndarray]:
    """The arrays that ``build`` writes, from ``folder/key`` if they are there, else made and stored.

    Stored arrays are mapped, not read: processes share them, and pages are loaded as they are used. They may be
    written to, which changes the copy in memory only.

    Args:
        folder: of all entries; made if it is not there.
        key: the entry's name.
        build: called with the folder to write to, whose name is temporary: an entry appears as a whole.

    Raises:
        ValueError: the folder cannot be written to.
    """
    place = folder / key
    if place.is_dir():
        try:
            return _mapped(place)
        except (ValueError, EOFError, OSError):  # the disk's fault, as entries appear whole
            shutil.rmtree(place, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{key}.lock")
        lock.acquire()
    except OSError as error:
        raise _unusable(folder, error) from error
    with lock:  # the cells of a grid wait for the first of them
        if not place.is_dir():
            _store(place, build)
    return _mapped(place)


def save(folder: Path, **arrays: Any) -> None:
    """Write ``<name>.npy`` for each of ``arrays``, or what numpy makes an array of."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _store(place: Path, build: Build) -> None:
    """Let an entry be written under a temporary name and rename it: readers see all of it or nothing."""
    folder = place.parent
    try:
        temporary = folder / f".{place.name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            build(temporary)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"task.data.cache={folder}: cannot store decoded data there ({error.strerror})")


def _mapped(place: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="c") for path in sorted(place.glob("*.npy"))}
