"""Checks of settings: each raises ValueError with the setting's name, its value and what it must be.

Needs neither torch nor anything else of the project, so that tasks and runners can use it too.

Examples:
    >>> check_int("segments", 16, minimum=1)
    >>> check_number("momentum", 1.0, minimum=0, below=1)
    Traceback (most recent call last):
    ValueError: momentum=1.0: must be a number >= 0 and < 1
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any


def check_int(name: str, value: object, minimum: int | None = None, maximum: int | None = None) -> None:
    """Raise ValueError unless ``value`` is an integer from ``minimum`` to ``maximum``; integers of numpy are."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not _within(number, minimum=minimum, maximum=maximum):
        raise ValueError(f"{name}={value!r}: must be an integer{_range(minimum=minimum, maximum=maximum)}")


def check_number(
    name: str,
    value: object,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> None:
    """Raise ValueError unless ``value`` is a finite number, above ``above`` and so on; bounds of None do not count."""
    bounds = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = number and math.isfinite(value)  # type: ignore[arg-type]
    if not finite or not _within(value, **bounds):  # type: ignore[arg-type]
        kind = "finite number" if number and not finite else "number"
        raise ValueError(f"{name}={value!r}: must be a {kind}{_range(**bounds)}")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is true or false; ``no`` and ``off`` arrive as words, which are true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: must be true or false")


def check_choice(name: str, value: object, legal: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(legal)}")


def check_list(
    name: str, value: object, *, length: int | None = None, integers: bool = False, **bounds: float | None
) -> None:
    """Raise ValueError unless ``value`` is a list of numbers, each of which ``check_number`` or ``check_int`` takes.

    Args:
        length: how many there must be; by default any number of them but none.
        integers: whether they must be integers.
        bounds: those of ``check_number``, or of ``check_int`` for integers.

    Examples:
        >>> check_list("widths", [16, 0], integers=True, minimum=1)
        Traceback (most recent call last):
        ValueError: widths=[16, 0]: must be a non-empty list of integers >= 1
    """
    check: Callable[..., None] = check_int if integers else check_number
    legal = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if legal and length in (None, len(value)):  # type: ignore[arg-type]
        try:
            for number in value:  # type: ignore[attr-defined]
                check(name, number, **bounds)
            return
        except ValueError:
            pass
    size = "non-empty list of" if length is None else f"list of {length}"
    kind = "integers" if integers else "numbers"
    raise ValueError(f"{name}={value!r}: must be a {size} {kind}{_range(**bounds)}")


_COMPARISONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": (">=", operator.ge),
    "above": (">", operator.gt),
    "maximum": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def _within(number: float, **bounds: float | None) -> bool:
    return all(bound is None or _COMPARISONS[name][1](number, bound) for name, bound in bounds.items())


def _range(**bounds: float | None) -> str:
    """Return " >= 0 and < 1" and the like, in the order of ``_COMPARISONS``."""
    words = [
        f"{sign} {bounds[name]}" for name, (sign, _) in _COMPARISONS.items() if bounds.get(name) is not None
    ]
    return f" {' and '.join(words)}" if words else ""
