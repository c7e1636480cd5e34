"""Arrays from files that nobody has to trust: what they claim is compared with what they hold."""

import math
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

MAX_HEADER = 10_000  # bytes
MAX_DEFLATED = 1032  # bytes that zlib can pack into one
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, each read at once.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        ValueError: it is damaged. An array that claims to be larger than what the file holds of it is found before memory
            is asked for.
    """
    try:
        return _arrays(path)
    except (TypeError, EOFError, BadZipFile, zlib.error, RuntimeError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in READ_HEADER:
                    raise ValueError(f"{entry.filename} is in format {version}")
                digits = 2 if version == (1, 0) else 4  # bytes of the header's length
                length = file.read(digits)
                text = file.read(min(int.from_bytes(length, "little"), MAX_HEADER))
                shape, fortran, dtype = _header(version, length + text)
                size = math.prod(shape) * dtype.itemsize
                before = 8 + digits + len(text)
                if before + size != entry.file_size or before + size > MAX_DEFLATED * max(
                    1, entry.compress_size
                ):
                    raise ValueError(
                        f"{entry.filename} is declared as {dtype}{list(shape)}, which the file does not hold"
                    )
                if dtype.hasobject:
                    raise ValueError(f"{entry.filename} holds objects")
                values = np.frombuffer(file.read(), dtype)
                arrays[entry.filename.removesuffix(".npy")] = values.reshape(
                    shape, order="F" if fortran else "C"
                )
    return arrays


@lru_cache(maxsize=1024)
def _header(version: tuple[int, int], content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type; the arrays of cells have few different headers, and parsing one takes longer than its data."""
    return READ_HEADER[version](BytesIO(content))
