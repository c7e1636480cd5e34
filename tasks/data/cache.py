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

NAMES = "names"  # the file in an entry that lists its arrays: one that has gone is missed


def key_of_files(kind: str, root: Path, paths: Sequence[Path]) -> str:
    """Hash of ``kind`` and of every file's name below ``root``, size and times.

    The change time is part of it: copying an older file of the same size over another changes it, too.
    """
    digest = hashlib.sha256(kind.encode())
    for path in paths:
        status = os.stat(path)
        digest.update(os.fsencode(os.path.relpath(path, root)))  # names need not be UTF-8
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n".encode())
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
    """Write ``<name>.npy`` for each of ``arrays``, or what numpy makes an array of."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _store(place: Path, build: Build) -> None:
    """Let an entry be written under a temporary name and rename it: readers see all of it or nothing.

    Only the holder of the entry's lock may: what lies there under the entry's name is damaged, and what has such a
    temporary name was left by a process that was killed.
    """
    for left in place.parent.iterdir():
        if left.name.startswith(f".{place.name}.") and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
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
    return ValueError(f"task.data.cache={folder}: cannot store decoded data there ({error.strerror})")


def _sound(place: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an entry; None if it is not there or damaged, which is the disk's fault: entries appear whole."""
    if not place.is_dir():
        return None
    try:
        return _mapped(place)
    except (ValueError, EOFError, FileNotFoundError):
        return None


def _mapped(place: Path) -> dict[str, np.ndarray]:
    names = (place / NAMES).read_text().split("\n")
    return {name: np.load(place / f"{name}.npy", mmap_mode="c") for name in names}
