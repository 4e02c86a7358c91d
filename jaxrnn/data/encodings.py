"""The encoding of a text: guessed from its bytes or given by name, and its line ends."""

from __future__ import annotations

import codecs
import dataclasses
import io
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from jaxrnn import console
from jaxrnn.data import encoding_guess
from jaxrnn.data.compression import Peekable
from jaxrnn.data.encoding_guess import Guess
from jaxrnn.errors import InputError
from jaxrnn.literals import Newlines

# The byte order mark as a character.
MARK = "\ufeff"
# Codecs of Python that leave out the mark themselves.
MARK_REMOVED = ("utf-8-sig", "utf-16", "utf-32")
# Codecs of Python that are no encodings of texts, or cannot decode a text in parts.
NOT_TEXT = ("idna", "punycode", "undefined")
# How messages name the encodings.
SHOWN = {
    "utf-8": "UTF-8",
    "utf-16-le": "UTF-16 (little-endian)",
    "utf-16-be": "UTF-16 (big-endian)",
    "utf-32-le": "UTF-32 (little-endian)",
    "utf-32-be": "UTF-32 (big-endian)",
    "windows-1252": "Windows-1252",
    "latin-1": "Latin-1",
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Settings for decoding bytes as text.

    Attributes:
      encoding: a text encoding that Python knows, or "auto" to guess it.
      newlines: "keep", or "lf" to read each CR and CRLF as LF.

    Raises:
      InputError: for an unknown encoding or another value of newlines.
    """

    encoding: str = "auto"
    newlines: Newlines = "keep"

    def __post_init__(self) -> None:
        if self.newlines not in get_args(Newlines):
            raise InputError(f'`newlines` must be "keep" or "lf", not {self.newlines!r}')
        if self.encoding == "auto":
            return
        wrong = f"`encoding={self.encoding}` is not an encoding of text that Python knows"
        try:
            name = codecs.lookup(self.encoding).name
            codecs.getincrementaldecoder(self.encoding)
            # A codec from bytes to bytes is a LookupError here. An error about the byte is not.
            b" ".decode(self.encoding)
        except UnicodeDecodeError:
            pass
        except (LookupError, ValueError):
            name = NOT_TEXT[0]
        if name in NOT_TEXT:
            raise InputError(f"{wrong}; write one such as utf-16 or latin-1, or auto to guess it")

    def with_line_ends(self, text: str) -> str:
        """Return a text with its line ends as `newlines` says."""
        if self.newlines == "keep":
            return text
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def check_bytes(self) -> None:
        """Raise InputError if the text is to be decoded. The caller reads it as bytes."""
        for name, value, default in (
            ("encoding", self.encoding, "auto"),
            ("newlines", self.newlines, "keep"),
        ):
            if value != default:
                raise InputError(f"`{name}={value}` is for characters; bytes are read as they are")


class Origin(NamedTuple):
    """The file that a text comes from, for messages.

    Attributes:
      label: the file, as error messages name it.
      argument: the file as an argument of a shell command.
      has_options: whether the caller can set `Reading` and read bytes.
      command: the command that decompresses the file; None if it is not compressed.
    """

    label: str
    argument: str
    has_options: bool = True
    command: str | None = None

    def conversion(self, command: str) -> str:
        """Return the shell command that converts the file; "{}" in `command` stands for the file."""
        if self.command is not None:
            command = f"{self.command} {self.argument} | {command.replace(' {}', '')}"
        return f"convert it with {command.replace('{}', self.argument)} > NEW.txt"


class Notes:
    """The notes about the files of one text: each kind of note is printed once."""

    def __init__(self) -> None:
        self._more: dict[str, int] = {}
        self._has_crlf = False

    def encoding(self, origin: Origin, name: str) -> None:
        """Note in which encoding a file is read, unless it is UTF-8."""
        if name == "utf-8":
            return
        if name in self._more:
            self._more[name] += 1
            return
        self._more[name] = 0
        hint = "; set the encoding if that is wrong" if origin.has_options else ""
        console.note(f"{origin.label} is {SHOWN[name]} and is read as such{hint}")

    def crlf(self, origin: Origin) -> None:
        """Note that a file has line ends of Windows, which are kept."""
        if not self._has_crlf and origin.has_options:
            console.note(
                f"{origin.label} has line ends of Windows (CRLF), which are kept; set newlines to lf "
                "to read them as LF"
            )
        self._has_crlf = True

    def end(self) -> None:
        """Note how many more files were in another encoding than UTF-8."""
        for name, count in self._more.items():
            if count:
                files = "file is" if count == 1 else "files are"
                console.note(f"{count} more {files} {SHOWN[name]} and read as such")


def decoded(
    source: Peekable, reading: Reading, origin: Origin, size: int, notes: Notes
) -> Iterator[tuple[bytes, str]]:
    """Yield a file in parts that are not empty, as UTF-8 and as characters, without a mark at its start.

    Args:
      source: the bytes of the file, not compressed.
      reading: how they are read.
      origin: the file, for messages.
      size: bytes read at a time; -1 for as many as possible.
      notes: what is printed about the file.

    Raises:
      InputError: if the bytes are not text in the encoding, or the guess is that they are not text.
    """
    decoding = _Decoding(source, reading, origin, notes)
    newlines = io.IncrementalNewlineDecoder(None, translate=reading.newlines == "lf")
    at_start = not decoding.removes_mark
    final = False
    while not final:
        text, final = decoding.read(size)
        if at_start and text:
            text = text.removeprefix(MARK)
            at_start = False
        # A CR at the end is kept back, as LF may follow.
        text = newlines.decode(text, final)
        # The second search is slow, the first one is not.
        if reading.newlines == "keep" and "\r" in text and "\r\n" in text:
            notes.crlf(origin)
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            # A few codecs let surrogates pass, which are not characters.
            raise InputError(
                f"{origin.label} is not a text in {reading.encoding}: {error}"
            ) from None
        if raw:
            yield raw, text


class _Decoding:
    """The decoding of a file from its beginning to its end."""

    def __init__(self, source: Peekable, reading: Reading, origin: Origin, notes: Notes) -> None:
        self._source = source
        self._origin = origin
        self._notes = notes
        self._given = reading.encoding != "auto"
        self._guess = Guess(reading.encoding if self._given else "utf-8")
        # Whether the encoding is known. As long as it is not, the text is ASCII.
        self._decided = self._given
        self._decoder = codecs.getincrementaldecoder(self._guess.encoding)()
        # Bytes that have been examined for a guess, and that have been read.
        self._examined = 0
        self._read = 0
        self._line = 1
        self.removes_mark = codecs.lookup(self._guess.encoding).name in MARK_REMOVED

    def read(self, size: int) -> tuple[str, bool]:
        """Return the characters of the next `size` bytes, and whether the end has been reached."""
        if not self._decided:
            if self._read == self._examined:
                self._examine()
            if not self._decided:
                rest = self._examined - self._read
                size = rest if size < 0 else min(size, rest)
        raw = self._source.read(size)
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(raw, not raw)
        except UnicodeDecodeError as error:
            raise self._error(error, state, raw) from None
        self._read += len(raw)
        self._line += text.count("\n")
        return text, not raw

    def _examine(self) -> None:
        """Guess the encoding from the next bytes, which follow ASCII."""
        most = encoding_guess.BLOCK
        block = self._source.peek(most)
        found, examined = encoding_guess.guess(block, self._examined, len(block) < most)
        self._examined += examined
        if found is None:
            return
        if not found.encoding:
            raise _not_text(self._origin, found, "")
        self._decided = True
        self._guess = found
        self._decoder = codecs.getincrementaldecoder(found.encoding)()
        # A file of nothing but a mark counts as empty.
        if block not in encoding_guess.MARKS:
            self._notes.encoding(self._origin, found.encoding)

    def _error(self, error: UnicodeDecodeError, state: Any, raw: bytes) -> InputError:
        """Return the error for bytes that are not text.

        Args:
          error: the decoder's error.
          state: the state of the decoder before these bytes.
          raw: the bytes.
        """
        # The decoder's object begins with the bytes that it has kept back.
        start = len(raw) - len(error.object) + error.start
        line = self._line
        if start > 0:
            self._decoder.setstate(state)
            line += self._decoder.decode(raw[:start]).count("\n")
        byte = error.object[error.start]
        found = f"byte 0x{byte:02x} at offset {self._read + start} (line {line})"
        label = self._origin.label
        name = self._guess.encoding
        if self._given:
            return InputError(
                f"{label} is not {name}: {found}: {error.reason}; choose another `encoding`"
            )
        if name == "utf-8":
            return _not_text(self._origin, self._guess, f": {found}")
        choose = "; choose another `encoding`" if self._origin.has_options else ""
        return InputError(
            f"{label} is not {SHOWN[name]}, although it begins so: {found}: {error.reason}{choose}"
        )


def _not_text(origin: Origin, guess: Guess, found: str) -> InputError:
    """Return the error for a file that is not UTF-8 and not in an encoding that can be guessed."""
    convert = f": {origin.conversion(guess.command)}" if guess.command else ""
    instead = "; `as_bytes` reads it as it is" if origin.has_options and guess.is_text else ""
    return InputError(f"{origin.label} is not UTF-8{found}; it {guess.what}{convert}{instead}")
