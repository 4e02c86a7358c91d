"""The arguments of the commands: command line to dataclass by tyro, and back in error messages."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import typing
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, Union

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxrnn.errors import InputError

T = TypeVar("T")

# Types whose values may be any words.
TEXTS = (str, Path, str | None, Path | None, tuple[str, ...])

# Arguments of the library that the options call something else.
_SYNONYMS = {"as_bytes": "bytes", "pattern": "tokens"}

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


def shown_default(text: str) -> object:
    """Return an annotation of a field whose default is None: what `--help` shows as the default."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def parse(
    kind: type[T],
    prog: str,
    argv: Sequence[str] | None = None,
    default: T | None = None,
    markers: tuple[Any, ...] = (),
) -> T:
    """Read a dataclass from a command line. `--help` and bad flags exit as tyro does.

    Args:
      kind: the dataclass.
      prog: the command, for the help text.
      argv: the arguments; None for those of this process.
      default: the values of flags that are not given; None for the defaults of the dataclass.
      markers: markers of `tyro.conf`.

    Raises:
      InputError: for a flag followed by a value that begins with "-", which looks like another flag.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    texts = _text_flags(kind)
    for flag, value in pairwise(argv):
        if flag.replace("_", "-") in texts and value.startswith("-") and value != "-":
            raise InputError(f"{flag} needs a value; write one that begins with - as {flag}=VALUE")
    more = {} if default is None else {"default": default}
    _join_help(kind)
    with _registry:
        return tyro.cli(kind, prog=prog, args=argv, config=markers, **more)  # type: ignore[call-overload]


def completion(prog: str, kinds: dict[str, type[Any]], shell: str) -> str:
    """Return the script with which a shell completes a program with subcommands.

    Args:
      prog: the program.
      kinds: the dataclass of each subcommand's options by its name.
      shell: "bash" or "zsh".
    """
    for kind in kinds.values():
        _join_help(kind)
    subcommands = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items()]
    args = ["--tyro-print-completion", shell]
    # tyro prints the script and exits.
    with (
        _registry,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(Union[*subcommands], prog=prog, args=args, config=(tyro.conf.OmitArgPrefixes,))  # type: ignore[call-overload]
    return printed.getvalue()


def _join_help(kind: Any) -> None:
    """Make the docstring of each field one line, and put it where tyro looks first for help.

    tyro itself breaks the line wherever a docstring of several lines does, because these are indented.
    """
    described = docstring_parser.parse_from_object(kind).params
    texts = {item.arg_name: " ".join((item.description or "").split()) for item in described}
    for field, hint in typed_fields(kind):
        if dataclasses.is_dataclass(hint):
            _join_help(hint)
        elif field.name in texts:
            field.metadata = MappingProxyType({**field.metadata, "help": texts[field.name]})


def _text_flags(kind: type[Any]) -> set[str]:
    """Return the flags whose value may be any word, those of nested dataclasses included."""
    return {_flag(name) for name, hint in fields_of(kind).items() if hint in TEXTS}


def prime(flag: str, typed: str, by_bytes: bool) -> str | bytes:
    """Return the prime that a flag gave: text, or for a model of bytes the bytes as they were typed.

    Args:
      flag: the flag, for the message.
      typed: its value, as Python decoded it from the command line.
      by_bytes: whether the tokens of the model are bytes.

    Raises:
      InputError: if the model needs characters and the bytes are not UTF-8.
    """
    try:
        raw = os.fsencode(typed)
    except UnicodeEncodeError:
        # No command line of this system can hold it, so the caller is Python code.
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
            "this model was trained on characters, not on bytes"
        ) from None


def in_flags(message: object, kind: type[Any], mark: str = "--") -> str:
    """Return an error message of the library with the names of settings replaced by flags.

    The library does not know the command line, so its messages name settings as Python does. These
    forms are replaced, where NAME is a field of the options or of a dataclass in there:

        NAME must be ...      (at the start of the message)  --NAME must be ...
        `NAME`                                               --NAME
        `NAME=VALUE`                                         --NAME VALUE
        NAME="VALUE"                                         --NAME VALUE

    Args:
      message: the message, or the error that has it.
      kind: the dataclass of the command's options.
      mark: what a flag begins with.
    """
    names = "|".join(sorted({*fields_of(kind), *_SYNONYMS}, key=len, reverse=True))

    def flag(found: re.Match[str]) -> str:
        name, *value = found.groups()
        return " ".join([_flag(_SYNONYMS.get(name, name), mark), *filter(None, value)])

    text = re.sub(rf"^({names})(?= must )", flag, str(message))
    text = re.sub(rf"`({names})(?:=([^`]*))?`", flag, text)
    return re.sub(rf'\b({names})="([\w-]+)"', flag, text)


def _flag(name: str, mark: str = "--") -> str:
    return mark + name.replace("_", "-")


def fields_of(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, those of nested dataclasses included."""
    found: dict[str, Any] = {}
    for field, hint in typed_fields(kind):
        found |= fields_of(hint) if dataclasses.is_dataclass(hint) else {field.name: hint}
    return found


def typed_fields(kind: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields of a dataclass with their types."""
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]
