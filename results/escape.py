"""Names as text where they are shown: a name may hold what Markdown, HTML or matplotlib would read as markup."""

import re

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


def latex(text: object) -> str:
    """``text`` on one line that LaTeX sets as it is."""
    line = " ".join(shown(text).split())
    return "".join(_LATEX.get(character, character) for character in line)


def figure_text(text: object) -> str:
    """``text`` that matplotlib draws as it is; between two dollars it would read a formula."""
    return shown(text).replace("$", r"\$")


def shown(text: object) -> str:
    """``text`` in UTF-8: what a file's name holds beyond that is written out."""
    return str(text).encode(errors="backslashreplace").decode()
