"""Settings as keyword arguments of Python: checked by name and by type.

replaced(TrainOptions(), {"hidden_size": 512, "steps": 1000})
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxrnn import arguments
from jaxrnn.errors import InputError, finite_number, one_of, truth, whole_number

T = TypeVar("T")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for a name that is not known; the message has the most similar known one."""
    names = sorted(known)
    for name in given:
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=1)
            others = (
                f"did you mean `{similar[0]}`?"
                if similar
                else f"the settings are {', '.join(names)}"
            )
            raise InputError(f"unknown setting `{name}`; {others}")


def replaced(config: T, settings: Mapping[str, Any]) -> T:
    """Return a dataclass with other values for some fields, those of nested dataclasses included.

    Args:
      config: the dataclass.
      settings: the values by name. Names that are not fields are ignored.

    Raises:
      InputError: for a value of the wrong type, and as the dataclasses do.
    """
    changes: dict[str, Any] = {}
    for field, hint in arguments.typed_fields(type(config)):
        if dataclasses.is_dataclass(hint):
            changes[field.name] = replaced(getattr(config, field.name), settings)
        elif field.name in settings:
            changes[field.name] = _checked(field.name, settings[field.name], hint)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as Python's own type. Raises InputError if it is not of the type of a setting."""
    kinds = typing.get_args(hint)
    if type(None) in kinds:
        if value is None:
            return None
        hint = next(kind for kind in kinds if kind is not type(None))
    try:
        return _converted(name, value, hint)
    except ValueError as error:
        raise InputError(str(error)) from None


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a value as Python's own type. Raises ValueError if it is of another type."""
    # `jaxrnn.register_cell` adds to the names of cells, and `ModelConfig` checks them.
    if typing.get_origin(hint) is Literal and name != "cell":
        return one_of(hint)(name, value)
    if hint in _CHECKS:
        return _CHECKS[hint](name, value)
    return _text(name, value)


def _text(name: str, value: Any) -> str:
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, not {value!r}")
    return text


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str | os.PathLike):
        value = (value,)
    if not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a str or a list of them, not {value!r}")
    return tuple(_text(name, each) for each in value)


_CHECKS: dict[Any, Any] = {
    bool: truth,
    int: whole_number,
    float: finite_number,
    Path: lambda name, value: Path(_text(name, value)),
    tuple[str, ...]: _texts,
}
