"""Writing together with a model at a prompt: `python -m jaxrnn.generate RUN --interactive`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jaxrnn import arguments, charlm, console
from jaxrnn.charlm.decoder import checked_length
from jaxrnn.charlm.dialogue import Dialogue
from jaxrnn.charlm.options import SamplingOptions
from jaxrnn.charlm.sampling import default_prime
from jaxrnn.errors import InputError

PROMPT = "> "

HELP = r"""
Type a line: the model reads it and continues the text. An empty line lets it continue alone.
A line is read with its line break. One that ends in \ is read without the \ and without a line break,
and one that ends in \\ with a single \ and a line break. // at the beginning stands for the text /.

/undo               remove the last turn; repeat it to remove more
/reset              begin a new text
/newline            read a line break alone
/save FILE          write the whole text to a new file, in UTF-8
/length N           number of characters that the model adds in a turn, or endless
/OPTION VALUE       change an option of drawing (none switches top-k and top-p off):
                    {options}
/help               show this
/quit or Ctrl-D     end

An option without a value shows the value it has. Ctrl-C ends what the model is writing.
""".strip()

# The commands by the options that they set.
OPTIONS = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(SamplingOptions)}

# Characters of the text that /undo shows.
TAIL = 60


def run(
    params: charlm.Params,
    options: SamplingOptions,
    prime: str | bytes | None,
    length: int | None,
    stop: Sequence[str | bytes],
) -> None:
    """Let the user and a model write a text together, until the input ends.

    Without a terminal, lines are read from standard input in UTF-8, there is no prompt, and standard
    output gets the whole text, with what was read. Messages go to standard error.

    Args:
      params: the model.
      options: how the model draws, until a command changes it.
      prime: how the text begins; by default with what the user writes.
      length: number of tokens that the model adds in a turn, None for endless.
      stop: stop strings, which end a turn.

    Raises:
      InputError: for arguments that cannot be used.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input is closed, and `interactive` reads from it")
    dialogue = Dialogue(params, options, prime)
    # Nothing is drawn yet: this checks the arguments.
    dialogue.write(length, stop)
    session = _Session(dialogue, length, stop, default_prime(params.vocabulary) == "\n")
    with session.handling_ctrl_c():
        session.run()


class _Session:
    """The prompt and its commands. `breaks`: whether the model knows line breaks."""

    def __init__(
        self, dialogue: Dialogue, length: int | None, stop: Sequence[str | bytes], breaks: bool
    ) -> None:
        self._dialogue = dialogue
        self._length = length
        self._stop = stop
        self._breaks = breaks
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._at_line_start = True
        self._reading_line = False
        self._interrupted = False

    def run(self) -> None:
        """Process the lines one after the other."""
        self._show(self._dialogue.text)
        if self._terminal:
            # Python's `input` then edits lines and keeps a history; Windows does not have it.
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")
            self._begin_line()
            console.note("type a line for the model to continue; /help lists the commands")
        going = True
        while going:
            line = self._next_line()
            going = line is not None and self._obey(line)
        if sys.stdout.isatty():
            self._begin_line()

    @contextlib.contextmanager
    def handling_ctrl_c(self) -> Iterator[None]:
        """Let Ctrl-C end the text that is being written, exactly after a piece that was shown."""
        before = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if before is signal.SIG_IGN or not in_main_thread:
            yield
            return
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._reading_line:
            raise KeyboardInterrupt
        self._interrupted = True

    def _next_line(self) -> str | None:
        """Return the next line without its line break, None at the end of the input."""
        while True:
            try:
                self._reading_line = True
                line = self._typed_line() if self._terminal else _piped_line()
                self._reading_line = False
                return line
            except KeyboardInterrupt:
                self._reading_line = False
                if not self._terminal:
                    raise
                print()
                console.note("Ctrl-D or /quit ends; /help lists the commands")

    def _typed_line(self) -> str | None:
        self._begin_line()
        try:
            return input(PROMPT)
        except EOFError:
            self._at_line_start = False  # Ctrl-D leaves the cursor behind the prompt
            return None

    def _obey(self, line: str) -> bool:
        """Run a command of the prompt or add a line to the text, and return whether to continue."""
        try:
            if line[:1] == "/" and line[1:2] not in ("", "/", " "):
                name, _, value = line[1:].partition(" ")
                return self._command(name, value.strip())
            self._take_turn(self._text_of(line))
        except InputError as error:
            console.error(arguments.in_flags(error, SamplingOptions, "/"))
        return True

    def _text_of(self, line: str) -> str:
        """Return the text that a line stands for, as `HELP` says."""
        text = line[1:] if line.startswith("//") else line
        if text.endswith("\\"):
            text = text[:-1]
            if not text.endswith("\\"):
                return text
        return text + "\n" if text and self._breaks else text

    def _take_turn(self, text: str) -> None:
        """Let the model read a text and continue it."""
        self._interrupted = False
        added = self._dialogue.read(text)
        if not (self._terminal and text):  # the terminal shows what is typed
            self._show(added)
        for piece in self._dialogue.write(self._length, self._stop):
            self._show(piece)
            if self._interrupted:
                break

    def _show(self, piece: str | bytes) -> None:
        console.write(piece)
        if piece:
            self._at_line_start = piece[-1:] in ("\n", b"\n")

    def _begin_line(self) -> None:
        """Move to the next line of the terminal, which is not part of the text."""
        if not self._at_line_start:
            console.write("\n")
        self._at_line_start = True

    # --- commands ---

    def _command(self, name: str, value: str) -> bool:
        """Run a command of the prompt and return whether to continue."""
        if value and name in ("undo", "reset", "newline", "help", "quit"):
            raise InputError(f"/{name} takes no value")
        match name:
            case "quit":
                return False
            case "undo":
                self._undo()
            case "reset":
                self._dialogue.reset()
            case "newline":
                self._take_turn("\n")
            case "save":
                self._save(value)
            case "length":
                self._set_length(value)
            case "help":
                self._help()
            case _ if name in OPTIONS:
                self._set(OPTIONS[name], value)
            case _:
                raise InputError(f"unknown command /{name}; /help lists the commands")
        return True

    def _undo(self) -> None:
        if not self._dialogue.undo():
            raise InputError("there is no turn to undo")
        tail = self._dialogue.text[-TAIL:]
        shown = tail.decode(errors="replace") if isinstance(tail, bytes) else tail
        console.note(f'the text now ends in "{shown}"' if shown else "the text is empty again")

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save needs the name of a file")
        text = self._dialogue.text
        _write_new(name, text if isinstance(text, bytes) else text.encode(errors="replace"))
        console.note(f"the text is in {name}")

    def _set_length(self, value: str) -> None:
        if value:
            endless = value in ("endless", "-1")
            self._length = None if endless else checked_length(_parsed(value))
        console.note(f"length is {'endless' if self._length is None else self._length}")

    def _set(self, name: str, value: str) -> None:
        if value:
            changed = SamplingOptions(**vars(self._dialogue.options) | {name: _parsed(value)})
            self._dialogue.change(changed)
        console.note(f"{name.replace('_', '-')} is {_shown(self._dialogue.options, name)}")

    def _help(self) -> None:
        values = [
            f"/{command} {_shown(self._dialogue.options, OPTIONS[command])}" for command in OPTIONS
        ]
        for line in HELP.format(options=", ".join(values)).splitlines():
            console.message(line)


def _piped_line() -> str | None:
    raw = sys.stdin.buffer.readline()
    line = raw.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
    return line if raw else None


def _parsed(word: str) -> Any:
    """Return the number or None that a word stands for, or else the word."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return None if word == "none" else word


def _shown(options: SamplingOptions, name: str) -> str:
    value = getattr(options, name)
    return "none" if value is None else str(value)


def _write_new(name: str, raw: bytes) -> None:
    """Write a file that did not exist before.

    Raises:
      InputError: if it exists or cannot be written. What was written of it is removed.
    """
    path = Path(os.path.expanduser(name))
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError:
        raise InputError(f"{name} exists; choose another name") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write to {name}: {reason}; choose another name") from error
    try:
        with file:
            file.write(raw)
    except OSError as error:
        path.unlink()
        raise InputError(f"could not write to {name}: {error.strerror}") from error
