"""A hash of the source files that a result depends on; nothing is imported to find them.

Importing an activation brings torch with it, and a finished cell is skipped in less time than that takes.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

# version of the scheme: hashes of two schemes cannot be compared
SCHEME = "2:"
ACTIVATIONS = ("activations",)
HARNESS = ("runners", "tasks", "activations")
CONTRACT = "activations.base.Activation"
# published libraries, which a record identifies by their versions
LIBRARIES = ("torch", "torchvision", "timm")
# the C++ sources of what this module loads count with it
COMPILED = "activations.kernels.library"

PLAIN = (type(None), bool, int, float, complex, str, bytes)
# attributes of a class that are not its code
NO_CODE = ("__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__")

_STATEMENT = re.compile(r"^[ \t]*((?:from|import)[ \t]+(?:\\\n|[^(\\\n])*(?:\([^)]*\))?)", re.MULTILINE)
_LINE_ENDS = re.compile(r"[ \t]*(?:#|\n|\Z)")
# strings are matched, too, as they may contain what looks like a comment
_COMMENT_OR_STRING = {
    ".py": re.compile(
        r"""#[^\n]*|(?:\b[rRuU])?(?P<quotes>\"{3}|'{3})(?:\\[\s\S]|(?!(?P=quotes))[\s\S])*(?P=quotes)"""
        r"""|"(?:\\[\s\S]|[^"\\\n])*"|'(?:\\[\s\S]|[^'\\\n])*'"""
    ),
    "": re.compile(r"""//[^\n]*|/\*[\s\S]*?\*/|"(?:\\[\s\S]|[^"\\\n])*"|'(?:\\[\s\S]|[^'\\\n])*'"""),  # C++
}


def targets_of(config: Any) -> tuple[str, ...]:
    """Return every ``_target_`` in a configuration, sorted."""
    targets: set[str] = set()
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(target := value.get("_target_"), str):
                targets.add(target)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return tuple(sorted(targets))


def file_of(target: str) -> Path | None:
    """Return the file of the module that holds ``target``, a dotted path; None if there is none."""
    module = _module_of(target)
    return _find(module)[0] if module else None


@cache
def code_hash(targets: tuple[str, ...], packages: tuple[str, ...], *, compiled: bool = True) -> str | None:
    """Return a hash of the files that hold ``targets`` and of all that they import; None if one of them is missing.

    Comments, docstrings and blank lines do not count. A file counts as it was when this process first read it, which is
    about when it imports it.

    Args:
        targets: dotted paths of classes and functions.
        packages: into which imports are followed.
        compiled: whether the C++ sources count with the module that loads them.
    """
    modules = code_files(targets, packages)
    if not modules:
        return None
    digest = hashlib.sha256()
    for module, path in sorted(modules.items()):
        digest.update(f"{module}\0{_source(path, module)[0]}\n".encode())
        if compiled and module == COMPILED:
            for source in sorted(path.with_name("csrc").glob("*.*")):
                digest.update(f"{source.name}\0{_source(source, '')[0]}\n".encode())
    return SCHEME + digest.hexdigest()[:16]


def code_files(targets: Sequence[str], packages: Sequence[str]) -> dict[str, Path] | None:
    """Return the files that ``code_hash`` covers, by module, without csrc/; None if a target cannot be found.

    Imports are followed into ``packages``, into a target's own package and, if it is a file without a package, into
    files beside it.
    """
    modules: dict[str, Path] = {}
    waiting: list[tuple[str, set[str]]] = []
    for target in targets:
        module = _module_of(target)
        if module is None:
            return None
        waiting.append((module, {*packages, module.partition(".")[0]}))
    while waiting:
        module, followed = waiting.pop()
        path, _ = _find(module)
        if module in modules or path is None or module.partition(".")[0] in LIBRARIES:
            continue
        modules[module] = path
        for imported in _source(path, module)[1]:
            top = imported.partition(".")[0]
            if top in followed or ("." not in module and _is_beside(path, top)):
                waiting.append((imported, followed | {top}))
    return modules


def is_importable(thing: Any) -> bool:
    """Return whether the ``__module__`` of a class or function has a file, and this very object in it."""
    value: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        value = getattr(value, name, None)
    return value is thing and file_of(f"{thing.__module__}.{thing.__qualname__}") is not None


def compiled_hash(thing: Any) -> str:
    """Return a hash of the bytecode of a class or function that is in no file, such as one of a notebook.

    It includes the classes, functions and plain values of the same module that it names, and of what it imports the
    contract alone. It differs between versions of Python.
    """
    digest = hashlib.sha256(str(code_hash((CONTRACT,), ACTIVATIONS)).encode())
    seen: dict[int, Any] = {}  # visited once each; referenced, so that no id is used again
    waiting = [thing]
    while waiting:
        value = waiting.pop()
        digest.update(f"{type(value).__name__}\n".encode())
        if isinstance(value, PLAIN):
            digest.update(f"{value!r}\n".encode())
        elif isinstance(value, frozenset):  # a constant whose order differs between processes
            waiting += sorted(value, key=repr)
        elif id(value) not in seen:
            seen[id(value)] = value
            waiting += _parts(value, thing.__module__)
    return SCHEME + digest.hexdigest()[:16]


def _parts(value: Any, module: str) -> list[Any]:
    """Return what the behavior of ``value`` depends on, if it is a container or of ``module``."""
    if isinstance(value, tuple | list):
        return [*value]
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset]
    if getattr(value, "__module__", None) != module:
        return []
    if isinstance(value, type):
        members = {name: member for name, member in vars(value).items() if name not in NO_CODE}
        return [*value.__bases__, dict(sorted(members.items()))]
    if not isinstance(value, FunctionType):
        return []
    parts: list[Any] = [value.__defaults__, value.__kwdefaults__]
    parts += [cell.cell_contents for cell in value.__closure__ or ()]
    for code in _codes(value.__code__):
        parts += [code.co_code, code.co_names, code.co_varnames]
        parts += [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
        parts += [value.__globals__[name] for name in code.co_names if name in value.__globals__]
    return parts


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of all functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _module_of(target: str) -> str | None:
    """Return the longest beginning of a dotted path that is a module with a file."""
    parts = target.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
    return next((name for name in names if _find(name)[0] is not None), None)


def _find(module: str) -> tuple[Path | None, list[str] | None]:
    """Return the source file of a module and, if it is a package, the folders of its modules."""
    if module == "__main__":  # a script, which is not the module of that name on sys.path
        path = getattr(sys.modules["__main__"], "__file__", None)
        return (Path(path) if path and path.endswith(".py") else None), None
    parent = module.rpartition(".")[0]
    places = _find(parent)[1] if parent else None
    if parent and places is None:
        return None, None
    for finder in sys.meta_path:
        spec = finder.find_spec(module, places) if hasattr(finder, "find_spec") else None
        if spec is not None:
            path = Path(spec.origin) if spec.has_location and spec.origin else None
            locations = spec.submodule_search_locations
            source = path if path is not None and path.suffix == ".py" else None
            return source, None if locations is None else list(locations)
    return None, None


def _is_beside(path: Path, top: str) -> bool:
    return path.parent.name not in ("site-packages", "dist-packages") and path.with_name(f"{top}.py").exists()


@cache
def _source(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Return a hash of a file, and the names of all modules that it may import."""
    text = path.read_bytes().decode(errors="surrogateescape").replace("\r\n", "\n")
    pattern = _COMMENT_OR_STRING.get(path.suffix, _COMMENT_OR_STRING[""])
    lines = (line.rstrip() for line in pattern.sub(_without_words, text).split("\n"))
    essence = "\n".join(filter(None, lines)).encode(errors="surrogateescape")
    digest = hashlib.sha256(essence).hexdigest()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return digest, tuple(dict.fromkeys(_imports(text, package))) if path.suffix == ".py" else ()


def _without_words(match: re.Match[str]) -> str:
    """Return nothing for a comment and for a long string on lines of its own, a docstring; else the text itself."""
    if match[0][0] in "#/":
        return ""
    text, (start, end) = match.string, match.span()
    before = text[text.rfind("\n", 0, start) + 1 : start]
    is_long = match.groupdict().get("quotes") is not None
    docstring = is_long and not before.strip() and _LINE_ENDS.match(text, end)
    return "" if docstring else match[0]


def _imports(text: str, package: str) -> Iterator[str]:
    """Yield the modules that a source imports anywhere, and their packages; for ``from a import b`` both a and a.b."""
    for match in _STATEMENT.finditer(text):
        try:
            statements = ast.parse(match[1]).body
        except SyntaxError:  # a line of a docstring
            continue
        for statement in statements:
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) + 1 - statement.level]
                base = ".".join([*above, *filter(None, [statement.module])] if statement.level else [])
                base = base or statement.module or ""
                names = [base, *(f"{base}.{alias.name}" for alias in statement.names)]
            else:
                continue
            for name in names:
                parts = name.split(".")
                yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
