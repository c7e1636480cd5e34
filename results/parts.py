"""What the page is made of: sections of paragraphs, tables, figures and entries, for which page.html has one rule each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from results.schema import is_missing


@dataclass(frozen=True)
class Text:
    """Paragraphs; what is no Markup is escaped."""

    paragraphs: Sequence[str]
    css: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]
    css: str = ""
    kind: str = "items"


@dataclass(frozen=True)
class Heading:
    """The title of what follows in a section; ``id`` is its address."""

    title: str
    id: str = ""
    kind: str = "heading"


@dataclass(frozen=True)
class Value:
    """A table's cell: the text, and by what the column is sorted (the text itself if None)."""

    text: str | Markup
    sort: float | str | None = None
    css: str = ""


@dataclass(frozen=True)
class Column:
    """A column's head; ``about`` explains it, and one that is not ``shown`` can be switched on."""

    title: str
    about: str = ""
    number: bool = False
    shown: bool = True


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    head: int | None = None  # the column that names the row
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """An SVG element with its caption."""

    svg: Markup
    caption: str
    kind: str = "figure"


@dataclass(frozen=True)
class Grid:
    """Small charts side by side, each with a line of text above it and one below."""

    charts: Sequence[tuple[str, Markup, str]]
    caption: str = ""
    kind: str = "grid"


@dataclass(frozen=True)
class Entry:
    """Parts that are shown when the entry is opened; those of a section can be searched by name and by ``words``."""

    title: str | Markup
    parts: Sequence[Any]
    words: str = ""
    open: bool = False
    kind: str = "entry"


@dataclass(frozen=True)
class Section:
    """A titled part of the page; ``id`` is its address within it."""

    id: str
    title: str
    parts: Sequence[Any] = field(default_factory=list)
    search: bool = False  # offer a search over the entries


def value_of(value: Any, digits: int = 4, sign: str = "") -> Value:
    """Return a value as a table shows it; numbers are sorted by their value and what is missing last."""
    if is_missing(value) or value is pd.NA:
        return Value("", math.inf)
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        return Value(str(value))
    number = float(value)
    if number.is_integer() and abs(number) < 1e15:
        return Value(f"{number:{sign},.0f}", number)
    return Value(f"{number:{sign}.{digits}g}", number)


def verdict_value(verdict: str) -> Value:
    """Return a verdict with a sign, so that color does not matter."""
    sign = {"better": "▲ ", "worse": "▼ ", "equal": "= ", "undecided": "? "}.get(verdict, "")
    return Value(f"{sign}{verdict}", verdict, verdict if sign else "")


def formatted(value: float, form: str) -> Value:
    """Return a number in a format such as ``.2f``."""
    return Value("", math.inf) if math.isnan(value) else Value(f"{value:{form}}", float(value))
