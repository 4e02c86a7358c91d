"""The options of `python -m jaxrnn.evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrnn.arguments import shown_default
from jaxrnn.charlm.options import DynamicOptions
from jaxrnn.literals import Accelerator, LineFormat, Newlines, Which


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure how well a char-RNN predicts a text, beside gzip, xz and bzip2.

    The table shows the information of the text in nats and bits per character and in bits per byte of
    UTF-8, and the size in bytes that an ideal coder with the model's predictions would reach.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    text: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[TEXT ...]", help_behavior_hint=""),
    ] = ()
    """Texts, which are joined: files, folders, "-" (standard input), "shakespeare" or "play". Without
    any, the validation text of the run, with the loss computed as in training."""
    glob: Annotated[str | None, shown_default("*.txt")] = None
    """Pattern of the files to read from folders, for example "*.c"."""
    encoding: str = "auto"
    """Encoding of the text, for example utf-16 or windows-1252; auto guesses it for each file."""
    newlines: Newlines = "keep"
    """Line ends: lf reads each CR and CRLF, as Windows writes them, as LF."""
    unknown: Literal["error", "skip"] = "error"
    """Handling of characters that are not in the model's vocabulary: report them as an error, or skip
    them, so that they are neither read nor counted."""
    parts: int = 1
    """Read the text in this many parts side by side, which is faster. Each part begins with an empty
    state 256 characters before its own first, so the result is not exact: it is usually wrong by less
    than one in a thousand. For a model of lines no longer than 256 characters it is exact."""
    per_line: Annotated[LineFormat | None, tyro.conf.arg(metavar="{table,json}")] = None
    """Write the score of each line to standard output: a table, or JSON lines and nothing else.
    For a model of lines, empty lines are neither scored nor numbered."""
    sort: bool = False
    """Sort the lines by nats per character, the highest first. All of them are kept in memory."""
    surprisal: Path | None = None
    """Write an HTML page to this file that shows the text coloured by surprisal."""
    dynamic: bool = False
    """Also score the text with dynamic evaluation (Krause et al. 2018): the model learns from each
    segment of the text after it was scored."""
    dynamic_evaluation: tyro.conf.OmitArgPrefixes[DynamicOptions] = dataclasses.field(
        default_factory=DynamicOptions
    )
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""
