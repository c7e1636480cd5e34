"""Read what the cells of a study wrote, and tell apart what differs between them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from results.escape import counted, shown
from results.files import (
    ADDED,
    CONFIG,
    HEARTBEAT,
    METRICS,
    RECORD,
    ROOT,
    WHERE,
    cell_folders,
    facts_of,
    place_of,
)
from results.packed import read_packed, unpack
from results.schema import FINISHED, IF_THERE, RUNNING, TUNED, UNTESTED, is_missing, read_record
from results.status import state_of

AT_ONCE = 500  # files of metrics in memory
ABSENT = "null"
UNKNOWN = "unknown"
# where and how a cell was computed: said in the report, but seeds may differ in it
INCIDENTAL = (ROOT, *WHERE)
# Where in a network an activation stands, and from which weights the network starts with it, is told with the
# activation: that is what is compared.
WITH_ACTIVATION = ("network.sites", "network.init", "network.omega", "network.first_bias", "network.gain")
# A width belongs to the task, unless a single activation has it beside several that have another: that is a control,
# such as a ReLU network with as many parameters as those of the others.
WIDTHS = ("network.width", "network.widths", "network.hidden")
CONTROL, USUAL = "control.", "usual"  # prefix of widths that are told with the activation; that of no control
# seeds that vary the split as well are never shown as if they did not
FOLDS = "task.data.folds"


def read_records(study: Path) -> pd.DataFrame:
    """One row per cell, whatever became of it; ``folder`` says where it is.

    Names of components may have slashes, so cells lie at any depth. A cell whose record cannot be relied on is a row with
    status ``failed`` and the reason: task, activation and seed are those of its folder's name, its settings those of its
    ``config.yaml``. One that a process is training is ``running``. Every column of ``schema.IF_THERE`` is there.

    Raises:
        ValueError: no such folder, or no cell in it.
    """
    return read_studies([study])


def read_studies(studies: Sequence[Path]) -> pd.DataFrame:
    """Return the cells of several studies as ``read_records`` does those of one.

    Raises:
        ValueError: no such folder, no cell in it, or a cell that is in two of them.
    """
    cells: dict[Path, Path] = {}  # place: study
    rows = []
    for study in studies:
        packed = read_packed(study)
        places = [folder.relative_to(study) for folder in cell_folders(study, packed)]
        if twice := [place for place in places if place in cells]:
            more = f", as are {len(twice) - 1} more" if len(twice) > 1 else ""
            one = twice[0]
            raise ValueError(
                f"{shown(one)}: the cell is in {shown(cells[one])} and in {shown(study)}{more}; which of them counts cannot be told: remove one"
            )
        cells |= dict.fromkeys(places, study)
        rows += [
            _read_cell(study, place)
            if (study / place).is_dir()
            else _row(packed[place.as_posix()], unpack(study) / place)
            for place in places
        ]
    records = pd.DataFrame(rows)
    for column in IF_THERE:
        if column not in records:
            records[column] = None
    unknown = pd.Series([not _settings(row) for row in rows])  # a cell that was killed before it wrote them
    for column, value in ADDED.items():
        if column in records and value is not None:
            records[column] = records[column].astype(object).where(records[column].notna() | unknown, value)
    return records.assign(network=_networks(records))


def _read_cell(study: Path, place: Path) -> dict[str, Any]:
    """A cell's record, or what is known of it without one."""
    folder = study / place
    record: dict[str, Any] | None = None
    try:
        record = read_record(folder / RECORD)
        reason = _misplaced(place, record) if record else "no record"
    except (ValueError, OSError) as error:
        reason = shown(error)
    if reason:
        task, *activation, cell = map(shown, place.parts)
        seed = cell.partition("-")[0]
        settings = _settings(record or {}) or _read_settings(folder)
        record = settings | {
            "activation": "/".join(activation),
            "task": task,
            "status": "failed",
            "reason": reason,
        }
        record["seed"] = int(seed) if seed.isdecimal() else seed
    assert record is not None
    if record["status"] not in FINISHED and _is_running(study, folder):
        record |= {"status": RUNNING, "reason": "not finished yet"}
    return _row(record, folder)


def _row(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row of a record that can be relied on; a cell without a test is no score."""
    if record["status"] == "ok" and record.get("primary") is None:
        record = record | {
            "status": UNTESTED,
            "reason": "its test split was not evaluated (runner.test=false)",
        }
    return record | {"folder": shown(folder)}


def _is_running(study: Path, folder: Path) -> bool:
    try:
        return (folder / HEARTBEAT).exists() and state_of(study, folder).status == RUNNING
    except OSError:  # whoever may not write to a study cannot ask for a cell's lock
        return False


def _misplaced(place: Path, record: Mapping[str, Any]) -> str | None:
    """Why a record cannot be this folder's, or None: a folder that was copied would count as another seed."""
    if record.get("cell") is None:
        return None
    own = place_of(record)
    if own == place.as_posix():
        return None
    return f"its record is that of {own}, so this folder is a copy or was renamed"


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if "." in name}


def _read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a cell's configuration, as a record has them; none if it cannot be read."""
    import yaml

    try:
        with (folder / CONFIG).open(encoding="utf-8") as file:
            return _settings(facts_of(yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _networks(records: pd.DataFrame) -> pd.Series:
    """The networks' names; one that a damaged record does not tell is that of cells with the same settings."""
    columns = [
        column for column in records if column.startswith("network.") and column not in WITH_ACTIVATION
    ]
    keys = [tuple(setting_text(value) for value in row) for row in records[columns].to_numpy(dtype=object)]
    names = [None if is_missing(name) else str(name) for name in records["network"]]
    known = {
        key: [name]
        for key, name in zip(keys, names, strict=True)
        if name is not None and any(value != ABSENT for value in key)
    }
    found = [name or (*known.get(key, ()), UNKNOWN)[0] for key, name in zip(keys, names, strict=True)]
    return pd.Series(found, index=records.index, dtype=object)


def counts(records: pd.DataFrame) -> str:
    """Write how many cells there are, as in ``12 cells, 10 ok, 1 running``."""
    records = records.drop_duplicates("folder")
    of = records["status"].value_counts()
    running = f", {of[RUNNING]:,} running" if RUNNING in of else ""
    return f"{counted(len(records), 'cell')}, {of.get('ok', 0):,} ok{running}"


def read_metrics(folders: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
    """The metrics.csv of several cells below each other, with the cell's ``folder`` in a column.

    Returns:
        the rows, a line for each damaged file, of which there are no rows, and one for all that are missing.
    """
    paths = [*folders]
    frames: list[pd.DataFrame] = []
    missing: list[Path] = []
    damaged: list[str] = []
    for first in range(0, len(paths), AT_ONCE):
        contents = {}
        for folder in paths[first : first + AT_ONCE]:
            try:
                contents[folder] = (Path(folder) / METRICS).read_bytes()
            except FileNotFoundError:
                missing.append(Path(folder) / METRICS)
            except OSError as error:
                damaged.append(_damage(folder, error))
        frames += _parse_all(contents, damaged)
    if missing:  # of a study that was published without its archive, all
        others = f", nor {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        damaged.append(f"{missing[0]}: no such file{others}")
    nothing = pd.DataFrame(columns=["folder", "epoch", "split", "loss"])
    return pd.concat(frames, ignore_index=True) if frames else nothing, damaged


def _parse_all(contents: Mapping[str, bytes], damaged: list[str]) -> Iterator[pd.DataFrame]:
    """Yield the rows of metrics.csv by folder, and add a line to ``damaged`` for each that is."""
    alike: dict[bytes, dict[str, bytes]] = {}  # by header
    for folder, content in contents.items():
        alike.setdefault(content.partition(b"\n")[0], {})[folder] = content
    for group in alike.values():
        try:
            yield _parse_metrics(group)  # at once, which takes a tenth of the time
        except ValueError:  # pandas' own errors among them
            for folder, content in group.items():
                try:
                    yield _parse_metrics({folder: content})
                except ValueError as error:
                    damaged.append(_damage(folder, error))


def _damage(folder: str, error: Exception) -> str:
    return f"{Path(folder) / METRICS}: damaged ({' '.join(str(error).split())})"


def _parse_metrics(contents: Mapping[str, bytes]) -> pd.DataFrame:
    """Return the rows of metrics.csv of several folders, whose contents have the same header.

    Raises:
        ValueError: one of them is damaged.
    """
    header = next(iter(contents.values())).partition(b"\n")[0]
    bodies = [content[len(header) + 1 :] for content in contents.values()]
    frame = pd.read_csv(BytesIO(b"\n".join([header, b"".join(bodies)])))
    lengths = [body.count(b"\n") for body in bodies]
    _check_metrics(frame)
    # else half a number would be taken for one
    if not all(body.endswith(b"\n") for body in bodies):
        raise ValueError("its last line is cut off")
    if sum(lengths) != len(frame):
        raise ValueError(f"{counted(sum(lengths), 'line')}, but {counted(len(frame), 'row')}")
    frame.insert(0, "folder", np.repeat([*contents], lengths))
    return frame


def _check_metrics(frame: pd.DataFrame) -> None:
    """Raise ValueError unless all is there and all but the names of splits and phases are numbers."""
    if missing := [name for name in ("epoch", "split", "loss") if name not in frame]:
        raise ValueError(f"no column {missing[0]}")
    if frame.empty:
        raise ValueError("no rows")
    for name, kind in frame.dtypes.items():
        if kind.kind not in "iuf" and name not in ("split", "phase"):
            values = frame[name]
            wrong = values[pd.to_numeric(values.astype(str), errors="coerce").isna() & values.notna()]
            raise ValueError(f"{name}={wrong.iloc[0]} in row {wrong.index[0] + 1}: a number is needed")


def add_labels(records: pd.DataFrame) -> pd.DataFrame:
    """Add ``task_label`` and ``activation_label``: names that differ wherever configurations differ.

    Only cells with the same two labels may be seeds of one another. An activation that occurs with several
    settings gets those that vary behind its name, as in ``prelu[init=0.1]``, and so does one that stands at other
    sites, starts with other weights or is a control of another width than most activations; so does a task, to which
    all settings of task and runner belong. A task that occurs with several networks is named with each, as in
    ``cifar10 on resnet32``.

    What is no setting and tells cells apart as well is named where it differs: the metric and the data of a task, as in
    ``mytask (data 3f2a)`` or ``mytask (data photos)`` by its folder, and an activation's code, as in
    ``mine[code=81c0]``. A cell that does not say belongs to the others if these are all alike, else it is
    ``unknown``. ``task_settings`` and ``activation_settings`` are the labels without it.

    Finished cells that are the same seed of the same label all become ``failed``: which of them counts cannot be told.
    """
    settings = _with_controls(records)
    prefixes = ("activation.", CONTROL, *WITH_ACTIVATION)
    for incidental in (False, True):
        labelled = records.assign(
            activation_settings=_labels(settings, "activation", prefixes, incidental),
            task_settings=_labels(records, "task", ("task.", "runner."), incidental),
        )
        networks = _labels(settings, "network", ("network.",), incidental)
        known = networks.where(networks != UNKNOWN)
        several = known.groupby(labelled["task_settings"]).transform("nunique") > 1
        labelled.loc[several, "task_settings"] += " on " + networks[several]
        if "recipe" in records:  # see results.tuning.with_tuned
            labelled.loc[labelled["recipe"] == TUNED, "task_settings"] += f" ({TUNED})"
        labelled["task_label"] = labelled["task_settings"]
        for column, word in (("primary_metric", ""), ("data_fingerprint", "data ")):
            differing = _told_apart(labelled, column, ["task_label"])
            labelled["task_label"] = [
                label if value is None else f"{label} ({word}{value})"
                for label, value in zip(labelled["task_label"], differing, strict=True)
            ]
        codes = _told_apart(labelled, "activation_code", ["task_label", "activation_settings"])
        labelled["activation_label"] = [
            label if code is None else _with_setting(label, f"code={code}")
            for label, code in zip(labelled["activation_settings"], codes, strict=True)
        ]
        same = ["task_label", "activation_label", "seed"]
        finished = labelled[labelled["status"].isin(FINISHED)]
        twice = finished[finished.duplicated(same, keep=False)]
        if twice.empty:
            break  # else the same seed was run in several ways: then these matter, too
    for _, cells in twice.groupby(same, sort=False):
        for index, folder in cells["folder"].items():
            others = ", ".join(cells["folder"].drop(index))
            labelled.loc[index, "reason"] = f"the same seed is in {others}; remove {folder} or that"
            labelled.loc[index, "status"] = "failed"
    return labelled


def _told_apart(records: pd.DataFrame, column: str, by: list[str]) -> list[str | None]:
    """For each cell a name of its value in ``column`` if finished cells with the same ``by`` differ in it, else None."""
    found: dict[Any, str] = {}
    for _, cells in records.groupby(by, sort=False):
        finished = cells[cells["status"].isin(FINISHED)]
        values = sorted(map(str, finished[column].dropna().unique()))
        if len(values) < 2:
            continue
        names = _names(cells, column, values)
        for index, value in cells[column].items():
            found[index] = UNKNOWN if is_missing(value) else names.get(str(value), str(value))
        if column == "data_fingerprint" and ROOT in cells:
            # a cell without a score does not say which data it has read, but where
            data_in = cells.dropna(subset=[column]).groupby(ROOT)[column].unique()
            for index, root in cells[ROOT][cells[column].isna() & ~cells.index.isin(finished.index)].items():
                if len(data := data_in.get(root, ())) == 1:
                    found[index] = names.get(data[0], data[0])
    return [found.get(index) for index in records.index]


def _names(cells: pd.DataFrame, column: str, values: list[str]) -> dict[str, str]:
    """Names for ``values``: the folders that the data are in, if each has its own, else the beginnings of the hashes."""
    if column == "primary_metric":
        return {value: value for value in values}
    if column == "data_fingerprint" and ROOT in cells:
        roots = {
            value: {setting_text(root) for root in cells[ROOT][cells[column].astype(str) == value]}
            for value in values
        }
        paths = [Path(*folders) for folders in roots.values() if len(folders) == 1]
        if len(set(paths)) == len(values) and ABSENT not in map(str, paths):
            short = len({path.name for path in paths}) == len(values)
            return {
                value: path.name if short else str(path) for value, path in zip(roots, paths, strict=True)
            }
    hashes = [value.rpartition(":")[2] for value in values]  # without the kind of hash
    if len(set(hashes)) < len(values):
        hashes = values
    length = next(n for n in range(4, 99) if len({value[:n] for value in hashes}) == len(values))
    return {value: digest[:length] for value, digest in zip(values, hashes, strict=True)}


def _with_setting(label: str, setting: str) -> str:
    return f"{label[:-1]} {setting}]" if label.endswith("]") else f"{label}[{setting}]"


def _with_controls(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with the widths of controls among the settings of activations, in columns of their own."""
    moved = records.copy()
    for column in records.columns.intersection(WIDTHS):
        texts = records[column].map(setting_text)
        told = CONTROL + column.partition(".")[2]
        moved[column] = texts.astype(object)
        moved[told] = pd.Series(USUAL, records.index, dtype=object).where(texts != ABSENT)
        for _, cells in records.assign(**{column: texts}).groupby(["task", "network"], sort=False):
            usual, activations = _usual(cells[column], cells["activation"])
            if usual is None or activations.max() < 2:
                continue
            controls = cells.index[cells[column].isin(activations.index[activations == 1])]
            moved.loc[controls, told] = texts[controls]
            moved.loc[controls, column] = usual
    return moved


def _usual(values: pd.Series, activations: pd.Series) -> tuple[str | None, pd.Series]:
    """Return the value that the most activations have, None if there are two such, and the number of them for each value."""
    known = values != ABSENT
    count = activations[known].groupby(values[known]).nunique().sort_values(ascending=False)
    alone = len(count) == 1 or (len(count) > 1 and count.iloc[0] > count.iloc[1])
    return (str(count.index[0]) if alone else None), count


def _labels(records: pd.DataFrame, name: str, prefixes: tuple[str, ...], incidental: bool) -> pd.Series:
    columns = [
        column
        for column in records.columns
        if column.startswith(prefixes)
        and (column not in WITH_ACTIVATION or column in prefixes)
        and column.rpartition(".")[2] != "_partial_"
        and (incidental or column not in INCIDENTAL)
    ]
    texts = {column: [setting_text(value) for value in records[column]] for column in columns}
    settings = pd.DataFrame(texts, index=records.index, dtype=object)
    anywhere = settings[(settings != ABSENT).any(axis=1)]
    # what goes without saying
    activations = records["activation"].loc[anywhere.index]
    unsaid = {c: (_usual(anywhere[c], activations)[0],) for c in columns if c in WITH_ACTIVATION}
    # a network that has no such width has no control of it
    unsaid |= {c: (USUAL, ABSENT) for c in columns if c.startswith(CONTROL)}
    labels = {}
    for value, group in settings.groupby(records[name].astype(str)):
        # a cell without any settings failed before it had them; it tells nothing of what varies
        known = group[(group != ABSENT).any(axis=1)]
        # Sites and initial weights are named where they vary in the study, though they do not for this activation,
        # unless they are those of most activations.
        varying = [c for c in columns if (anywhere if c in WITH_ACTIVATION else known)[c].nunique() > 1]
        for index, row in known.iterrows():
            telling = [
                c
                for c in columns
                if (c in varying and row[c] not in unsaid.get(c, ())) or (c == FOLDS and row[c] != ABSENT)
            ]
            given = [f"{column.partition('.')[2]}={row[column]}" for column in telling]
            labels[index] = f"{value}[{' '.join(given)}]" if given else str(value)
        only = {labels[index] for index in known.index}
        label = only.pop() if len(only) == 1 else str(value)
        labels |= dict.fromkeys(group.index.difference(known.index), label)
    return pd.Series(labels, dtype=object)


def setting_text(value: object) -> str:
    """Return a setting's value in full: two that differ must not look the same, and none is a value as well."""
    if value is None or value != value:
        return ABSENT
    return str(int(value)) if isinstance(value, float) and value.is_integer() else shown(value)
