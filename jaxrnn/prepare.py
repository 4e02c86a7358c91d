"""Make token files of a text of any size: `python -m jaxrnn.prepare --data big.txt`.

`python -m jaxrnn.train --data tokens/big` then trains on them without reading the text. Running the
same command again resumes where it was stopped. `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich import filesize

from jaxrnn import arguments, console, progress, stopping
from jaxrnn.arguments import shown_default
from jaxrnn.commands import running
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import entropy_floor
from jaxrnn.data.encodings import Reading
from jaxrnn.data.preparation import Preparation
from jaxrnn.devices import locks
from jaxrnn.errors import InputError
from jaxrnn.literals import Newlines


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Make token files of a text of any size, to train on without reading it into memory.

    Running the same command again resumes where it was stopped.
    """

    data: tuple[str, ...]
    """Text, as for python -m jaxrnn.train: files, folders, "-" (standard input), "shakespeare" or
    "play"."""
    output: Annotated[Path | None, shown_default("tokens/DATA")] = None
    """Folder for the token files."""
    glob: Annotated[str | None, shown_default("*.txt")] = None
    """Pattern of the files to read from folders, for example "*.c"."""
    bytes: bool = False
    """Read the text as bytes instead of characters."""
    encoding: str = "auto"
    """Encoding of the text, for example utf-16 or windows-1252; auto guesses it for each file."""
    newlines: Newlines = "keep"
    """Line ends: lf reads each CR and CRLF, as Windows writes them, as LF."""
    overwrite: bool = False
    """Replace the token files that are in the folder."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m jaxrnn.prepare") -> int:
    """Run the command and return its exit status, as `running.run` describes it."""

    @running.lasting
    def work(options: PrepareOptions) -> int:
        with stopping.catching(stopping.stop):
            run(options)
        return 0

    parse = functools.partial(arguments.parse, PrepareOptions, prog, argv)
    return running.run(PrepareOptions, parse, work)


def run(options: PrepareOptions) -> None:
    """Prepare as the options say, on the screen and in the folder."""
    name = sources.name(options.data)
    output = options.output or Path("tokens", name)
    reading = Reading(options.encoding, options.newlines)
    parts = sources.find(options.data, options.glob)
    _check_data(options, output)
    floor = entropy_floor(sources.nats(options.data))
    work = Preparation(
        parts, options.bytes, name, output, floor, _display(), options.overwrite, reading
    )
    _check_folder(output)
    locks.make_folder(output, "output")
    busy = f"another preparation is running in {output}; wait for it or choose another --output"
    with locks.lock_folder(output, "output", busy):
        # Another preparation may have begun there since the first check.
        _check_folder(output)
        _run(work, output)


def _run(work: Preparation, output: Path) -> None:
    try:
        meta = work.run()
    except stopping.Stopped:
        print(_how_to_resume(work))
        raise
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(f"could not write to {output}: {why}; {_how_to_resume(work)}") from error
    different = "" if meta.different is None else f", {meta.different} different"
    print(
        f"{console.shown(meta.name)}: {meta.count:,} {meta.vocabulary.unit}s{different}, "
        f"in {console.quoted(output)} as {meta.dtype.name}; sha256 of the text {meta.sha256}"
    )
    print(f"done. Now: python -m jaxrnn.train --data {console.quoted_path(output)}")


def _how_to_resume(work: Preparation) -> str:
    """Return what to do about a preparation that ended early."""
    if not work.resumable:
        return "stopped; a stream cannot be read twice: run the command again from the beginning"
    size = filesize.decimal(work.saved.size)
    return f"stopped at {size} of text; the same command resumes from there"


def _check_folder(output: Path) -> None:
    """Raise InputError if the folder holds something other than a preparation."""
    try:
        names = os.listdir(output)
    except (FileNotFoundError, NotADirectoryError):
        # `make_folder` reports the second.
        return
    except OSError as error:
        raise InputError(
            f"cannot read {output}: {error.strerror}; choose another --output"
        ) from None
    others = {name for name in names if not name.startswith(".")}
    if not locks.is_foreign_lock(output):
        others.discard(locks.LOCK)
    if others and not token_files.is_preparation(output):
        raise InputError(f"{output} holds something else ({min(others)}); choose another --output")


def _check_data(options: PrepareOptions, output: Path) -> None:
    """Raise InputError if the text includes files that the preparation itself writes."""
    for name in (token_files.TOKENS, token_files.META, token_files.PROGRESS, locks.LOCK):
        word = sources.word_including(options.data, options.glob, output / name)
        if word is not None:
            raise InputError(
                f"--data {word} includes {output / name}, which the preparation itself writes: "
                "choose another --output, or other files"
            )


class _Lines(progress.Lines):
    """Plain lines; a pipe that has lost its reader stops the work."""

    def reach(self, done: int, text: str = "", important: bool = False) -> None:
        """Print a line if one is due."""
        super().reach(done, text, important)
        if console.pipe_closed():
            raise stopping.Stopped(console.PIPE_CLOSED)


def _display() -> progress.Display:
    terminal = progress.terminal()
    if terminal is None:
        return _Lines(progress.BYTES)
    return progress.Bar(progress.BYTES, terminal)


if __name__ == "__main__":
    running.start(main)
