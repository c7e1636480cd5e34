"""Text for readers: a name may hold what Markdown, HTML or matplotlib would read as markup, and be very long."""

import re
from collections.abc import Iterable, Sequence

MAX_IN_FIGURE = 48  # characters of a name, beside which there is room for the figure
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # behind a line's end it would be an optional argument
    "]": "{]}",
}
# an underscore inside of a word, and brackets that no link follows, are themselves in Markdown
_MARKUP = re.compile(r"[\\`*|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[:]")


def markdown(text: object) -> str:
    """``text`` on one line that Markdown shows as it is, in a table's cell as well."""
    line = " ".join(shown(text).split())
    return _MARKUP.sub(lambda found: f"\\{found[0]}", re.sub("[&<>]", lambda found: _HTML[found[0]], line))


def markdown_table(heads: Sequence[str], align: str, rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table in Markdown; cells must be Markdown already.

    Args:
        align: a letter for each column, ``l`` or ``r``.
    """
    rule = "|" + "".join("---:|" if letter == "r" else "---|" for letter in align)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def latex(text: object) -> str:
    """``text`` on one line that LaTeX sets as it is."""
    line = " ".join(shown(text).split())
    return "".join(_LATEX.get(character, character) for character in line)


def figure_text(text: object) -> str:
    """``text`` that matplotlib draws as it is, without the middle of a long one; between two dollars it would read a formula."""
    return shortened(shown(text), MAX_IN_FIGURE, MAX_IN_FIGURE // 3).replace("$", r"\$")


def counted(number: int, noun: str) -> str:
    """Write a number of things, as in ``1 seed`` or ``1,000 cells``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, length: int, head: int = 0) -> str:
    """Leave out what is between the first ``head`` characters and the end of a text of more than ``length``."""
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


def shown(text: object) -> str:
    """``text`` in UTF-8: what a file's name holds beyond that is written out."""
    return str(text).encode(errors="backslashreplace").decode()
