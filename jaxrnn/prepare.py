"""Make token files of a text of any size: `python -m jaxrnn.prepare --data big.txt`.

`python -m jaxrnn.train --data tokens/big` then trains on them without reading the text. Running the
same command again resumes where it was stopped. `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrnn import arguments, console
from jaxrnn.data import sources, token_files
from jaxrnn.data.corpus import entropy_floor
from jaxrnn.data.preparation import Preparation, Screen
from jaxrnn.errors import InputError
from jaxrnn.training import run_directory, signals

PLAIN_EVERY = 10.0  # seconds between plain lines


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Make token files of a text of any size, to train on without reading it into memory."""

    data: tuple[str, ...]
    """The text, in the words of python -m jaxrnn.train: files, folders, "-" (standard input),
    "shakespeare" or "play"."""
    output: Path | None = None
    """The folder of the token files; without it tokens/ and the name of the data."""
    glob: str | None = None
    """Which files of a folder, as in "*.c"; without it "*.txt"."""
    bytes: bool = False
    """Read the text as bytes instead of UTF-8 characters."""
    overwrite: bool = False
    """Throw away the token files that are in the folder."""


class Stopped(BaseException):
    """Asked to stop; the exit status is the argument."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 done, 1 failed, 2 bad input, 128 + n for signal n, 141 for a pipe that lost its reader.
    """
    console.open_streams()
    try:
        config = arguments.parse(PrepareOptions, "python -m jaxrnn.prepare", argv)
        with console.lasting_output(), _Signals():
            run(config)
            return console.PIPE_CLOSED if console.pipe_closed() else 0
    except InputError as error:
        console.error(error)
        return 2
    except OSError as error:
        console.error(error)
        return 1
    except Stopped as stopped:
        return int(stopped.args[0])
    except KeyboardInterrupt:  # before there is anything to resume
        return 128 + signal.SIGINT


def run(config: PrepareOptions) -> None:
    """Prepare as configured, on the screen and in the folder."""
    output = config.output or Path("tokens", sources.name(config.data))
    parts = sources.find(config.data, config.glob)
    _check_data(config, output)
    name, floor = sources.name(config.data), entropy_floor(sources.nats(config.data))
    work = Preparation(parts, config.bytes, name, output, floor, _screen(), config.overwrite)
    _check_folder(output)
    run_directory.make(output, "--output")
    busy = f"another preparation is running in {output}; wait for it or choose another --output"
    with run_directory.locked(output, "--output", busy):
        _check_folder(output)  # again, because another preparation may have begun there meanwhile
        _run(work, output)


def _run(work: Preparation, output: Path) -> None:
    try:
        meta = work.run()
    except Stopped:
        print(_left(work))
        raise
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(f"could not write to {output}: {why}; {_left(work)}") from error
    kind = "bytes" if meta.vocabulary.by_bytes else "characters"
    different = "" if meta.different is None else f", {meta.different} different"
    print(
        f"{console.shown(meta.name)}: {meta.count:,} {kind}{different}, in {console.quoted(output)} "
        f"as {meta.dtype.name}; sha256 of the text {meta.sha256}"
    )
    print(f"done. Now: python -m jaxrnn.train --data {console.quoted_path(output)}")


def _left(work: Preparation) -> str:
    """What can be done about a preparation that ended early."""
    if not work.resumable:
        return "stopped; what was read from a stream cannot be read again: give the command again"
    return f"stopped at {_size(work.noted.size)} of text; the same command resumes from there"


def _check_folder(output: Path) -> None:
    """Raise InputError where the folder holds something other than a preparation."""
    try:
        names = os.listdir(output)
    except (FileNotFoundError, NotADirectoryError):  # `run_directory.make` reports the second
        return
    except OSError as error:
        raise InputError(
            f"cannot read {output}: {error.strerror}; choose another --output"
        ) from None
    others = {name for name in names if not name.startswith(".")}
    if not run_directory.is_foreign_lock(output):
        others.discard(run_directory.LOCK)
    if others and not token_files.is_preparation(output):
        raise InputError(f"{output} holds something else ({min(others)}); choose another --output")


def _check_data(config: PrepareOptions, output: Path) -> None:
    """Raise InputError where the text includes files that the preparation itself writes."""
    for name in (token_files.TOKENS, token_files.META, token_files.PROGRESS, run_directory.LOCK):
        word = sources.word_including(config.data, config.glob, output / name)
        if word is not None:
            raise InputError(
                f"--data {word} takes in {output / name}, which the preparation itself writes: "
                "choose another --output, or other files"
            )


class _Signals:
    """Between enter and exit, the signals that ask to stop raise Stopped; the second one is final."""

    def __enter__(self) -> None:
        self._came = False
        self._before = signals.handle(self._raise)

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise(self, number: int, frame: Any) -> None:
        if self._came:
            os._exit(128 + number)
        self._came = True
        raise Stopped(128 + number)


# --- the screen: a progress bar on a terminal, plain lines elsewhere ---


class _Plain(Screen):
    """Lines for a file or a pipe; a pipe that has lost its reader stops the work."""

    def line(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, what: str, done: int, total: int | None) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._began = self._printed = time.monotonic()

    def reach(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._printed >= PLAIN_EVERY:
            self._print()
        if console.pipe_closed():
            raise Stopped(console.PIPE_CLOSED)

    def end(self) -> None:
        self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        rate = (self._done - self._first) / max(self._printed - self._began, 1e-9)
        of = "" if self._total is None else f" of {_size(self._total)}"
        self.line(f"{self._what}: {_size(self._done)}{of}, {rate / 1e6:,.0f} MB/s")


class _Bar(Screen):
    """A rich progress bar with the speed and the time left."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, done: int, total: int | None) -> None:
        from rich import progress

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task(what, completed=done, total=total)
        self._progress.start()

    def reach(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def end(self) -> None:
        self._progress.stop()


def _screen() -> Screen:
    from rich.console import Console

    console = Console()
    return _Bar(console) if console.is_terminal else _Plain()


def _size(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


if __name__ == "__main__":
    sys.exit(main())
