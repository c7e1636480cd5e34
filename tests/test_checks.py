"""The checks of settings: what they let through, and that a message names setting, value and range."""

import doctest
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from activations import checks, pieces, torch_nn
from activations.checks import check_bool, check_choice, check_int, check_list, check_number

PASS: list[tuple[Callable[..., None], list[Any], dict[str, Any]]] = [
    (check_int, [0, -3, 10**30, np.int64(4)], {}),
    (check_int, [2, 5], {"minimum": 2, "maximum": 5}),
    (check_number, [0, -1.5, 1e300], {}),
    (check_number, [0, 0.5], {"minimum": 0, "below": 1}),
    (check_number, [1e-300, 1], {"above": 0, "maximum": 1}),
    (check_bool, [True, False], {}),
    (check_choice, ["a", "b"], {"legal": ("a", "b")}),
    (check_list, [[1], (2.5, 3)], {"above": 0}),
    (check_list, [[1, 2]], {"length": 2, "integers": True, "minimum": 1}),
]
REFUSE: list[tuple[Callable[..., None], list[Any], dict[str, Any], str]] = [
    (check_int, [True, 1.0, "1", None, [1]], {}, "must be an integer"),
    (check_int, [1, 6], {"minimum": 2, "maximum": 5}, "must be an integer >= 2 and <= 5"),
    (check_number, [True, "1", None, [1]], {}, "must be a number"),
    (check_number, [float("inf"), float("nan")], {"above": 0}, "must be a finite number > 0"),
    (check_number, [-0.1, 1, 2], {"minimum": 0, "below": 1}, "must be a number >= 0 and < 1"),
    (check_number, [0, 1.5], {"above": 0, "maximum": 1}, "must be a number > 0 and <= 1"),
    (check_bool, ["no", 0, None], {}, "must be true or false"),
    (check_choice, ["c", None, ["a"]], {"legal": ("a", "b")}, "must be one of a, b"),
    (check_list, [[], 3, "12", [1, True], [0]], {"above": 0}, "must be a non-empty list of numbers > 0"),
    (
        check_list,
        [[1], [1, 2, 3], [1, 2.0]],
        {"length": 2, "integers": True, "minimum": 1},
        "must be a list of 2 integers >= 1",
    ),
]


@pytest.mark.parametrize(("check", "values", "legal"), PASS)
def test_legal_values_pass(check: Callable[..., None], values: list[Any], legal: dict[str, Any]) -> None:
    for value in values:
        check("x", value, **legal)


@pytest.mark.parametrize(("check", "values", "legal", "message"), REFUSE)
def test_other_values_are_refused(
    check: Callable[..., None], values: list[Any], legal: dict[str, Any], message: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{re.escape(f'x={value!r}: {message}')}$"):
            check("x", value, **legal)


def test_examples() -> None:
    for module in (checks, pieces, torch_nn):
        assert doctest.testmod(module).failed == 0
