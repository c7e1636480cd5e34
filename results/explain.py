"""What an activation is, from the files that define it: the head of its configuration and its docstrings."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from results.files import MOVED

ROOT = Path(__file__).resolve().parent.parent
ARXIV = re.compile(r"arXiv[ :]?(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Explanation:
    """Text about an activation; what could not be read is empty.

    Attributes:
        head: the comment above its configuration.
        formula: its class's docstring up to the arguments.
        source: the first paragraph of the module's docstring, as a rule title and authors of the paper.
        links: addresses of the papers named in these.
    """

    head: str = ""
    formula: str = ""
    source: str = ""

    @property
    def links(self) -> list[str]:
        """Addresses of the papers that are named by their arXiv number."""
        numbers = ARXIV.findall(f"{self.head} {self.source} {self.formula}")
        return [f"https://arxiv.org/abs/{number}" for number in dict.fromkeys(numbers)]


@cache
def explain(name: str, target: str | None) -> Explanation:
    """Return what the files say of the activation ``name`` whose class is ``target``, read without importing any."""
    head = " ".join(head_of("activation", name))
    module, _, class_name = MOVED.get(target or "", target or "").rpartition(".")
    parts = module.split(".")
    if not module or not all(map(str.isidentifier, parts)):
        return Explanation(head)
    tree = _parsed(ROOT.joinpath(*parts).with_suffix(".py"))
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            text = re.split(
                r"\n(?:Args|Shape|Raises|Attributes|Examples?):\n", ast.get_docstring(node) or ""
            )[0]
            source = (ast.get_docstring(tree) or "").partition("\n\n")[0] if tree else ""
            return Explanation(head, text.strip().replace("``", ""), " ".join(source.split()))
    return Explanation(head)


def head_of(group: str, name: str) -> list[str]:
    """Return the lines of the comment above ``conf/<group>/<name>.yaml``; none if there is no such file."""
    try:
        text = (ROOT / "conf" / group / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):  # a configuration of another place, or a name that is no path
        return []
    found = re.match(r"(?:#.*\n)+", text)
    return [line.lstrip("# ") for line in found[0].splitlines()] if found else []


@cache
def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
