"""Finished cells of a study as two files that can be committed: a table of their records, and an archive of the rest."""

import atexit
import csv
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from results.files import CLASSES, CURVES, EXAMPLES, METRICS, RECORD, find_cells, place_of, write_all
from results.schema import FINISHED, check_record, read_record

TABLE, ARCHIVE = "records.csv", "cells.tar.xz"  # in the study's folder
KEPT = (METRICS, CURVES, EXAMPLES, CLASSES)  # of a cell, beside its record, what a report reads
ABSENT = ""  # of a field that a record does not have


def pack(study: Path) -> int:
    """Write ``records.csv`` and ``cells.tar.xz`` in a study's folder, and return the number of cells in them.

    They hold the finished cells below the folder and those that were packed before. A cell that is in both is taken from
    its folder.

    Raises:
        ValueError: no finished cell, or one whose record is damaged or that of another folder.
    """
    packed = read_packed(study)
    files = {(place, name): unpack(study) / place / name for place in packed for name in KEPT}
    for folder in find_cells(study):
        record = read_record(folder / RECORD)
        if record is not None and record["status"] in FINISHED:
            place = folder.relative_to(study).as_posix()
            if record.get("cell") is None or place_of(record) != place:
                raise ValueError(
                    f"{folder}: its record is that of another folder, so this is a copy or was renamed"
                )
            packed[place] = record
            files |= {(place, name): folder / name for name in KEPT}
    if not packed:
        raise ValueError(f"{study}: no finished cell in this folder")
    packed = dict(sorted(packed.items()))
    write_all({study / TABLE: _table(packed), study / ARCHIVE: _archive(files)})
    return len(packed)


def read_packed(study: Path) -> dict[str, dict[str, Any]]:
    """Return the records in a study's ``records.csv`` by place, ``<task>/<activation>/<seed>-<id>``; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = study / TABLE
    try:
        stat = path.stat()
    except OSError:
        return {}
    return dict(_read_table(path, stat.st_mtime_ns, stat.st_size))


def unpack(study: Path) -> Path:
    """Return a temporary folder with the files in a study's ``cells.tar.xz`` by place; it lasts as long as the process.

    Raises:
        ValueError: the archive is damaged.
    """
    path = study / ARCHIVE
    stat = path.stat() if path.exists() else None
    return _unpacked(path, stat and (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _read_table(path: Path, *version: int) -> dict[str, dict[str, Any]]:
    records = {}
    try:
        text = path.read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            record = {name: _value(value) for name, value in row.items() if value != ABSENT}
            check_record(record, path)
            records[place_of(record)] = record
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if not records or not text.endswith("\n"):
        raise ValueError(f"{path}: damaged (its end is missing)")
    return records


@lru_cache(maxsize=8)
def _unpacked(path: Path, version: object) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="actbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if version is not None:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{path}: damaged ({error})") from None
    return folder


def _table(records: Mapping[str, Mapping[str, Any]]) -> bytes:
    columns = [*dict.fromkeys(name for record in records.values() for name in record)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval=ABSENT, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in record.items()} for record in records.values())
    return text.getvalue().encode()


def _archive(files: Mapping[tuple[str, str], Path]) -> bytes:
    """The files that exist, in an order in which like follows like, without times and owners: same files, same bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for place, name in sorted(files, key=lambda key: key[::-1]):
            if files[place, name].exists():
                data = files[place, name].read_bytes()
                entry = tarfile.TarInfo(f"{place}/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _text(value: Any) -> str:
    """JSON, but a string that is none stands as it is."""
    return value if isinstance(value, str) and not _is_json(value) else json.dumps(value)


def _value(text: str) -> Any:
    return json.loads(text) if _is_json(text) else text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return text == ABSENT
    return True
