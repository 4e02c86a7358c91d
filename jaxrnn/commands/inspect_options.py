"""The options of `python -m jaxrnn.inspect`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrnn.arguments import shown_default
from jaxrnn.literals import Accelerator, Newlines, Which


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Show what each unit of a char-RNN does while it reads a text, and which units follow a feature.

    Writes an HTML page that colours the text by the value of any unit, and lists the units that follow
    the position in the line and in the word, the indentation, quotes, brackets, capital letters, and
    the matches of regular expressions. They are chosen on the first half of the text, and their
    correlation r with the feature is measured on the second half.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    text: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[TEXT ...]", help_behavior_hint=""),
    ] = ()
    """Texts, which are joined: files, folders, "-" (standard input), "shakespeare" or "play". Without
    any, the beginning of the validation text of the run."""
    output: Path = Path("inspection.html")
    """HTML page to write. An existing file is replaced."""
    find: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Find units for this regular expression (of Python; ^ and $ match at every line): a feature that is
    1 inside of its matches and 0 outside. Several are given as --find A --find B."""
    unit: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Show this unit in any case, and first: LAYER:UNIT, both counted from 1."""
    record: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Show and search only these values of a unit: cell, hidden, i, f, g or o of an LSTM; hidden, z, r
    or n of a GRU; hidden of a plain RNN. By default all that the cell has."""
    length: int = 20_000
    """Characters to read and to show, from the beginning of the text. A page of many units and
    characters shows the best units only, so that it has about 20 MB at most."""
    glob: Annotated[str | None, shown_default("*.txt")] = None
    """Pattern of the files to read from folders, for example "*.c"."""
    encoding: str = "auto"
    """Encoding of the text, for example utf-16 or windows-1252; auto guesses it for each file."""
    newlines: Newlines = "keep"
    """Line ends: lf reads each CR and CRLF, as Windows writes them, as LF."""
    unknown: Literal["error", "skip"] = "error"
    """Handling of characters that are not in the model's vocabulary: report them as an error, or skip
    them, so that they are neither read nor shown."""
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""
