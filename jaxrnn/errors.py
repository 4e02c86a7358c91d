"""The errors that commands report in one line, warnings, and checks of single values."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, cast, get_args

import numpy as np

# The files of the library, and of the decorators that may be between two of its functions.
_PASSED_OVER = (os.path.dirname(__file__) + os.sep, contextlib.__file__, functools.__file__)


class InputError(Exception):
    """Bad input: the message says in one line what is wrong and what to do about it.

    Messages name settings as Python does; the commands print them with flags instead
    (`arguments.in_flags`) and exit with status 2. The class is not a ValueError, because tyro would
    reword a ValueError that is raised while it parses a command line.
    """


class UnknownSymbols(InputError):
    """A text with characters or tokens that a vocabulary does not have; the message lists them."""


class RemoteError(InputError):
    """Bad input that another process reports to the user."""


class Failure(RuntimeError):
    """Work that failed although its input was good: the message says what to do about it, in one line.

    The commands print it and exit with status 1.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened, or the error's type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def warn(line: str) -> None:
    """Issue a RuntimeWarning that points to the line of code which called the library."""
    # Python 3.12 does this itself, with `skip_file_prefixes`.
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        level, frame = level + 1, frame.f_back
    warnings.warn(line, RuntimeWarning, stacklevel=level)


def whole_number(name: str, value: object, least: int | None = None) -> int:
    """Return `value` as an int; it may be of any integer type, those of numpy and JAX included.

    Raises:
      ValueError: for anything else, True and 2.0 included, and for a number below `least`; the
        message begins with `name`.
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


def one_of(choices: Any) -> Callable[[str, object], str]:
    """Return a check that a value is one of the strings of a `Literal`.

    The check is called with the name and the value; it returns the value or raises ValueError.
    """

    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")
        return str(value)

    return check


def truth(name: str, value: object) -> bool:
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
