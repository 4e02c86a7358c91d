"""The options of `python -m jaxrnn.generate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrnn.arguments import shown_default
from jaxrnn.charlm.options import LINE_LENGTH, SamplingOptions
from jaxrnn.literals import Accelerator, Which


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Generate text with a trained char-RNN and write it as it is drawn.

    The output is exactly the prime and its continuation; a line break follows on a terminal only. A
    model of bytes (trained with --bytes) writes bytes. A model of lines (trained with --lines) writes
    --count whole lines and nothing else; how many of them are new goes to standard error.
    """

    run: tyro.conf.Positional[Path]
    """Run directory, as written by python -m jaxrnn.train, or safetensors file."""
    prime: str | None = None
    """Beginning of the text, which the model continues. By default a line break. For a model of
    lines, the beginning of every line; empty by default."""
    prime_file: str | None = None
    """Read the prime from this file, or from standard input if -. The file is decoded as a
    training text is; for a model of bytes it may be any file."""
    length: Annotated[
        int | Literal["endless"] | None, shown_default(f"500, for lines {LINE_LENGTH}")
    ] = None
    """Number of characters to add (of bytes for a model of bytes, of tokens for one that was trained
    with --tokens). endless or -1 continues until it is interrupted. For a model of lines, the most
    characters to add to a line; longer lines are cut."""
    count: int = 1
    """Number of texts, or of lines. If there are several texts, each gets a heading."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End the text with the first occurrence of this string in what was added; the string is included.
    Several strings are given as --stop A --stop B."""
    stop_at_line: bool = False
    """End the text with the first line break that was added."""
    interactive: bool = False
    """Write a text together: the model continues each line that is typed, or read from standard input.
    --length, --stop and --stop-at-line then end a turn. /help at the prompt lists the commands."""
    output: str | None = None
    """Write to this file, in UTF-8. By default, or if -, to standard output."""
    which: Which = "best"
    """Checkpoint of a run to load: the one with the lowest validation loss (best) or the latest."""
    accelerator: Accelerator = "auto"
    """Device to use; auto takes the fastest that JAX finds."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = dataclasses.field(
        default_factory=SamplingOptions
    )

    @property
    def to_screen(self) -> bool:
        """Whether the text goes to standard output."""
        return self.output in (None, "-")
