"""Errors of the user, each reported in one line, and the check of whole numbers."""

from __future__ import annotations

import operator
from typing import Any, cast


class InputError(Exception):
    """Bad input: the message says what was wrong and what to do. The commands print it and stop.

    It is no ValueError, because tyro reports the ValueErrors that are raised while it parses a
    command line in its own words.
    """


def whole_number(name: str, value: object, least: int | None = None) -> int:
    """Return `value` as an int; it may be of any integer type, numpy's and JAX's included.

    Raises:
      ValueError: for anything else (True and 2.0 too), and for a number below `least`; the message
        begins with `name`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(cast(Any, value))
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number
