"""Complete commands and flags in a shell: `jaxrnn completion bash`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Literal

import tyro

from jaxrnn import arguments
from jaxrnn.commands import running


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Print a script that completes the commands and flags of jaxrnn in a shell.

    bash reads it from ~/.local/share/bash-completion/completions/jaxrnn, and zsh from a file named
    _jaxrnn in a folder of its fpath.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Shell that runs the script."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.completion") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""
    parse = functools.partial(arguments.parse, CompletionOptions, prog, argv)
    return running.run(CompletionOptions, parse, run)


def run(options: CompletionOptions) -> int:
    """Print the script and return the exit status."""
    print(arguments.completion("jaxrnn", _options_of_commands(), options.shell))
    if options.shell == "bash":
        print(_FILES_IN_BASH)
    return 0


# Where tyro's function knows no word, it offers an empty one. bash then completes files instead.
_FILES_IN_BASH = """
_jaxrnn() {
  _tyro_jaxrnn
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o default -F _jaxrnn jaxrnn"""


def _options_of_commands() -> dict[str, type]:
    """Return the dataclass of each command's options by the name of the command."""
    return {
        name: getattr(importlib.import_module(f"jaxrnn.{name}"), f"{name.capitalize()}Options")
        for name in running.COMMANDS
    }


if __name__ == "__main__":
    running.start(main)
