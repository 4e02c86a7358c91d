"""The commands' arguments: a dataclass read from a command line by tyro."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxrnn.errors import InputError

T = TypeVar("T")

TEXTS = (str, Path, str | None, Path | None, tuple[str, ...])  # types whose values are any words

_registry = ConstructorRegistry()


@_registry.primitive_rule
def _optional_text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read the word None as text; tyro's own rule would read it as no value."""
    if info.type not in (str | None, Path | None):
        return None
    kind: Any = str if info.type == str | None else Path
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR" if kind is str else "PATH",
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    kind: type[T],
    prog: str,
    argv: Sequence[str] | None = None,
    default: T | None = None,
    markers: tuple[Any, ...] = (),
) -> T:
    """Read a dataclass from a command line. Exits as tyro does for `--help` and for bad flags.

    Args:
      kind: the dataclass.
      prog: the command, for the help text.
      argv: its arguments; None for those of this process.
      default: the values of flags that are not given; None for the dataclass' own.
      markers: of tyro.

    Raises:
      InputError: for a flag whose value begins with "-", which looks like another flag.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    texts = _text_flags(kind)
    for flag, value in pairwise(argv):
        if flag.replace("_", "-") in texts and value.startswith("-") and value != "-":
            raise InputError(
                f"{flag} needs a value; one that begins with - follows an equals sign: {flag}=VALUE"
            )
    more = {} if default is None else {"default": default}
    with _registry:
        return tyro.cli(kind, prog=prog, args=argv, config=markers, **more)  # type: ignore[call-overload]


def _text_flags(kind: Any) -> set[str]:
    """Return the flags whose value may be any word, those of nested dataclasses included."""
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
    found = set()
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            found |= _text_flags(hint)
        elif hint in TEXTS:
            found.add("--" + name.replace("_", "-"))
    return found


def prime(flag: str, typed: str, by_bytes: bool) -> str | bytes:
    """Return the prime given by a flag: text, or for a model of bytes the bytes as they were typed.

    Raises:
      InputError: for bytes that are not UTF-8 where characters are needed.
    """
    try:
        raw = os.fsencode(typed)
    except UnicodeEncodeError:  # no command line of this system can hold it
        return typed
    if by_bytes:
        return raw
    if not any("\udc80" <= character <= "\udcff" for character in typed):
        return typed
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{flag} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            "the model's text is made of characters, not of bytes"
        ) from None


def in_flags(message: str, kind: Any) -> str:
    """Return an error message of the library with the names of arguments replaced by flags."""
    names = "|".join(field.name for field in dataclasses.fields(kind))
    message = re.sub(
        rf"^({names})(?= must )", lambda found: "--" + found[1].replace("_", "-"), message
    )
    return re.sub(rf'\b({names})="([\w-]+)"', r"--\1 \2", message)
