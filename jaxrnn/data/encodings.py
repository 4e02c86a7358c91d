"""The encoding of a text: guessed from its bytes or given by name, and its line ends.

A text that is not UTF-8 is guessed to be UTF-16, UTF-32, Windows-1252 or Latin-1. All of ASCII is the
same in UTF-8, Windows-1252 and Latin-1, so between these the first megabyte with another character
decides.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from jaxrnn import console
from jaxrnn.data.compression import Peekable
from jaxrnn.errors import InputError

Newlines = Literal["keep", "lf"]
# Bytes from which the encoding is guessed.
BLOCK = 1 << 20
# The byte order mark as a character.
MARK = "\ufeff"
# The marks that show an encoding. UTF-32's first, because UTF-16's are their beginning.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
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
# The first bytes of formats that are not text, their description, and a command that converts them.
OTHER_FORMATS = (
    (b"\x1f\x9d", "is compressed by compress", "zcat {}"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "lz4cat {}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "7z x -so {}"),
    (b"PK\x03\x04", "is a zip archive (as .docx, .odt and .epub files are)", "unzip -p {}"),
    (b"%PDF-", "is a PDF", "pdftotext {} -"),
)
# The place of the letters "ustar" in the header of a tar archive.
TAR = slice(257, 262)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How bytes are read as text.

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


def texts(
    source: Peekable, reading: Reading, origin: Origin, size: int, notes: Notes
) -> Iterator[str]:
    """Yield the characters of a file in parts that are not empty. A mark at its start is left out.

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
        if reading.newlines == "keep" and "\r\n" in text:
            notes.crlf(origin)
        if text:
            yield text


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
            # A few codecs let surrogates pass, which are not characters.
            if not text.isascii():
                text.encode()
        except UnicodeDecodeError as error:
            raise self._error(error, state, raw) from None
        except UnicodeError as error:
            raise InputError(
                f"{self._origin.label} is not a text in {self._guess.encoding}: {error}"
            ) from None
        self._read += len(raw)
        self._line += text.count("\n")
        return text, not raw

    def _examine(self) -> None:
        """Guess the encoding from the next bytes, which follow ASCII."""
        block = self._source.peek(BLOCK)
        guess, examined = _guess(block, self._examined, len(block) < BLOCK, self._origin)
        self._examined += examined
        if guess is not None:
            self._decided = True
            self._guess = guess
            self._decoder = codecs.getincrementaldecoder(guess.encoding)()
            self._notes.encoding(self._origin, guess.encoding)

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


# --- guessing ---


class Guess(NamedTuple):
    """The encoding that a file seems to have.

    Attributes:
      encoding: its name in Python.
      what: what to say about the file if it cannot be decoded.
      command: the command that converts it; "" if there is none.
      is_text: whether the file is a text that could be read as bytes.
    """

    encoding: str
    what: str = "is UTF-8 except for some bytes, which can be left out"
    command: str = "iconv -c -f utf-8 -t utf-8 {}"
    is_text: bool = True


def _not_text(origin: Origin, guess: Guess, found: str) -> InputError:
    """Return the error for a file that is not UTF-8 and not in an encoding that can be guessed."""
    convert = f": {origin.conversion(guess.command)}" if guess.command else ""
    instead = "; `as_bytes` reads it as it is" if origin.has_options and guess.is_text else ""
    return InputError(f"{origin.label} is not UTF-8{found}; it {guess.what}{convert}{instead}")


def _guess(block: bytes, before: int, at_end: bool, origin: Origin) -> tuple[Guess | None, int]:
    """Return the encoding of a file, or None if the bytes are ASCII, and the number of bytes examined.

    Args:
      block: a part of the file.
      before: number of bytes before it, which are ASCII.
      at_end: whether the file ends with it.
      origin: the file, for messages.

    Raises:
      InputError: if the file is a tar archive.
    """
    if before == 0:
        if block[TAR] == b"ustar":
            archive = Guess("utf-8", "is a tar archive; extract it with tar", "", False)
            raise _not_text(origin, archive, "")
        for mark, name in MARKS:
            if block.startswith(mark):
                return Guess(name), len(block)
        if wide := _unmarked(block):
            return Guess(wide), len(block)
    try:
        text, used = codecs.utf_8_decode(block, "strict", at_end)
    except UnicodeDecodeError:
        return _guess_invalid(block, min(before, BLOCK)), len(block)
    if text.isascii():
        return None, used
    return Guess("utf-8"), len(block)


def _guess_invalid(block: bytes, before: int) -> Guess:
    """Return the encoding of a file that is not UTF-8; if unknown, "utf-8" and what to do.

    Args:
      block: a part of the file that is not valid UTF-8.
      before: number of bytes before it that count as evidence; they are ASCII.
    """
    for start, what, command in OTHER_FORMATS:
        if block.startswith(start):
            return Guess("utf-8", what, command, False)
    if b"\0" in block:
        return Guess("utf-8", "has NUL bytes and is not text", "")
    high = len(block.translate(None, bytes(range(0x80))))
    decoded = block.decode(errors="surrogateescape")
    invalid = len(re.findall("[\udc80-\udcff]", decoded))
    valid = len(decoded) - (len(block) - high) - invalid
    if valid >= invalid:
        return Guess("utf-8")
    if 3 * high >= before + len(block):
        what = "has another encoding, written ENCODING here"
        return Guess("utf-8", what, "iconv -f ENCODING -t utf-8 {}")
    try:
        block.decode("windows-1252")
        return Guess("windows-1252")
    except UnicodeDecodeError:
        return Guess("latin-1")


def _unmarked(block: bytes) -> str | None:
    """Return the variant of UTF-16 or UTF-32 that a file without a mark seems to be."""
    # Long enough to be sure, and a whole number of characters.
    sample = block[: min(len(block), 1 << 12) // 4 * 4]
    if len(sample) < 32 or b"\0" not in sample:
        return None
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        # A pair of surrogates may be cut at the end.
        decoder = codecs.getincrementaldecoder(name)()
        try:
            text = decoder.decode(sample)
        except UnicodeDecodeError:
            continue
        printable = sum(map(str.isprintable, text)) + len(re.findall(r"[\t\n\f\r]", text))
        common = len(re.findall(r"[\t\n\r -~]", text))
        if printable >= 0.95 * len(text) and common >= 0.05 * len(text):
            return name
    return None
