"""All commands in one: `jaxrnn train ...` is `python -m jaxrnn.train ...`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import jaxrnn
from jaxrnn import console
from jaxrnn.commands import running


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by its name and return its exit status; it is 2 for an unknown command."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in running.COMMANDS:
        return importlib.import_module(f"jaxrnn.{name}").main(rest, prog=f"jaxrnn {name}")
    console.open_streams()
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"jaxrnn {jaxrnn.__version__}")
        return 0
    unknown = f"unknown command {console.quoted(name)}{_closest(name)}"
    console.error(f"{unknown}; jaxrnn --help lists all commands")
    return 2


def _help() -> str:
    width = max(map(len, running.COMMANDS))
    lines = (f"  {name:{width}}  {summary}" for name, summary in running.COMMANDS.items())
    return "\n".join(
        (
            "usage: jaxrnn COMMAND ...",
            "",
            "Character-level recurrent networks in JAX.",
            "",
            *lines,
            "",
            "jaxrnn COMMAND --help lists the options of a command; jaxrnn --version prints the version.",
        )
    )


def _closest(name: str) -> str:
    """Return a suggestion for a name that is not that of a command, or "" if none is similar."""
    found = difflib.get_close_matches(name, running.COMMANDS, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def start() -> NoReturn:
    """Run as the program `jaxrnn`."""
    running.start(main)


if __name__ == "__main__":
    start()
