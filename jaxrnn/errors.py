"""Errors of the user, each reported in one line, and checks of single values."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, cast, get_args

import numpy as np


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


def one_of(choices: Any) -> Callable[[str, Any], str]:
    """Return a check, called with a name and a value, that the value is in a `Literal` of strings."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")
        return str(value)

    return check


def truth(name: str, value: Any) -> bool:
    """Return `value` as a bool. Raises ValueError for anything but True, False and numpy's."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def finite_number(name: str, value: Any) -> float:
    """Return `value` as a float. Raises ValueError for text, bools, infinities and NaN."""
    try:
        number = math.nan if isinstance(value, bool | np.bool_ | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number
