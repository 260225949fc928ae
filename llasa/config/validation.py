"""Checks that name the config key, its value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from llasa.errors import UserError


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise a :class:`UserError` that names the config key and its value unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}={value!r} is not valid", remedy=remedy)


def require_choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = sorted(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"{key}={value!r} is not valid", remedy=f"{hint}choose one of {', '.join(choices)}")


def is_positive_range(value: object) -> bool:
    """Two numbers, the second larger."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in value)
        and 0 <= value[0] < value[1]
    )


def is_range(text: str) -> bool:
    """`7`, `0-99` or `2/8`."""
    numbers = re.fullmatch(r"(\d+)(?:([-/])(\d+))?", text, re.ASCII)
    if numbers is None or numbers[2] is None:
        return numbers is not None
    first, last = int(numbers[1]), int(numbers[3])
    return first <= last and (numbers[2] == "-" or first >= 1)
