"""Reading the files of a text, whole or in chunks, and joining them.

    for chunk in stream(sources.find(["linux"], "*.c")):
        ...

The chunks joined are what `sources.read` returns, but the text may be larger than memory.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from jaxrnn import console
from jaxrnn.data import compression, encodings
from jaxrnn.data.compression import Peekable
from jaxrnn.data.encodings import Notes, Origin, Reading
from jaxrnn.errors import InputError

# Bytes that `stream` reads at a time.
CHUNK = 1 << 20
# Bytes at the start of a file that show whether it is compressed.
HEAD = 16


class File(NamedTuple):
    """A file of a text, as `sources.find` returns it.

    Attributes:
      nth: the position in `data` of the word that it comes from.
      word: that word, as error messages name it.
      label: the file, as error messages name it.
      path: its path; None for the play and for standard input, which are not files.
    """

    nth: int
    word: str
    label: str
    path: str | None


class Place(NamedTuple):
    """The position up to which a text has been read.

    Attributes:
      file: the number of the file that the last character came from.
      offset: the number of bytes of text that came from that file: of UTF-8, whatever the encoding and
        compression of the file, or of its content if the text is read as bytes.
      ended: whether that character was a newline; True if nothing has been read.
    """

    file: int = 0
    offset: int = 0
    ended: bool = True


class Chunk(NamedTuple):
    """A part of a text, made of whole characters, as `stream` yields it.

    Attributes:
      raw: the bytes, in UTF-8 unless the text is read as bytes.
      text: the same as characters; "" if the text is read as bytes.
      place: how far the text has been read after this part.
      taken: number of bytes that have been taken from the files, as they are on the disk.
    """

    raw: bytes
    text: str
    place: Place
    taken: int


class _Part(NamedTuple):
    """A part of a file: its bytes and characters as in `Chunk`, and the bytes taken from the file."""

    raw: bytes
    text: str
    taken: int


def stream(
    files: Sequence[File],
    as_bytes: bool = False,
    reading: Reading | None = None,
    cut: Place | None = None,
    size: int | None = None,
) -> Iterator[Chunk]:
    """Yield a text in chunks that, joined, are what `sources.read` returns.

    Args:
      files: the files, from `sources.find`.
      as_bytes: see `sources.read`.
      reading: see `sources.read`.
      cut: the place of a chunk of an earlier call; a chunk ends there again.
      size: bytes read at a time; None for CHUNK, -1 for each file in as few parts as possible.

    Raises:
      InputError: as in `sources.read`, at the file concerned.
    """
    reading = reading or Reading()
    if as_bytes:
        reading.check_bytes()
    notes = Notes()
    place = Place()
    found_text = False
    taken_before = 0
    for number, file in enumerate(files):
        taken = offset = 0
        end = cut.offset if cut is not None and cut.file == number else None
        for part in _parts(file, as_bytes, reading, CHUNK if size is None else size, notes):
            taken = part.taken
            for raw, text in _cut(part.raw, part.text, None if end is None else end - offset):
                separator = "\n" if offset == 0 and not place.ended else ""
                offset += len(raw)
                place = Place(number, offset, raw.endswith(b"\n"))
                yield Chunk(
                    separator.encode() + raw, text and separator + text, place, taken_before + taken
                )
        found_text = found_text or offset > 0
        taken_before += taken
        # The program on the other side of a pipe may have failed, so an empty pipe is an error.
        if offset == 0 and file.path is None:
            raise _empty([file])
    if not found_text:
        raise _empty(files)
    notes.end()


def _cut(raw: bytes, text: str, end: int | None) -> list[tuple[bytes, str]]:
    """Return a part of a text, cut in two after `end` bytes if it is longer."""
    if end is None or not 0 < end < len(raw):
        return [(raw, text)]
    # A place of another text may be inside of a character.
    characters = len(raw[:end].decode(errors="ignore")) if text else 0
    return [(raw[:end], text[:characters]), (raw[end:], text[characters:])]


def stamps(files: Sequence[File]) -> list[tuple[int, int] | None]:
    """Return the size (bytes) and the modification time (ns) of each file.

    The result has None for anything that is not a regular file.

    Raises:
      InputError: if a file is missing, or all are empty.
    """
    found: list[tuple[int, int] | None] = []
    for file in files:
        with _reported(file):
            status = None if file.path is None else os.stat(file.path)
        if status is not None and stat.S_ISREG(status.st_mode):
            found.append((status.st_size, status.st_mtime_ns))
        else:
            found.append(None)
    if all(stamp is not None and stamp[0] == 0 for stamp in found):
        raise _empty(files)
    return found


def read(path: str, as_bytes: bool = False) -> str | bytes:
    """Return the content of one file, or of standard input for "-", decompressed if necessary.

    Args:
      path: the path of the file, or "-".
      as_bytes: see `sources.read`.

    Raises:
      InputError: if the file cannot be read, is damaged or, unless `as_bytes`, is in an encoding that
        cannot be guessed.
    """
    label = "standard input" if path == "-" else path
    argument = path if path == "-" else console.quoted_path(path)
    try:
        with contextlib.ExitStack() as stack:
            opened = _stdin() if path == "-" else stack.enter_context(open(path, "rb"))
            source, origin = _decompressed(Peekable(opened), Origin(label, argument, False))
            if as_bytes:
                return source.read()
            parts = encodings.decoded(source, Reading(), origin, -1, Notes())
            return "".join(text for _, text in parts)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _parts(
    file: File, as_bytes: bool, reading: Reading, size: int, notes: Notes
) -> Iterator[_Part]:
    """Yield the content of a file in parts.

    Args:
      file: the file.
      as_bytes: whether to leave the characters empty and cut anywhere.
      reading: how the bytes are read as text.
      size: bytes read at a time; -1 for the whole file.
      notes: what is printed about the file.
    """
    with _open(file) as opened:
        on_disk = Peekable(opened)
        source, origin = _decompressed(on_disk, Origin(file.label, _argument(file)))
        if as_bytes:
            while raw := source.read(size):
                yield _Part(raw, "", on_disk.count)
        else:
            for raw, text in encodings.decoded(source, reading, origin, size, notes):
                yield _Part(raw, text, on_disk.count)


def _decompressed(source: Peekable, origin: Origin) -> tuple[Peekable, Origin]:
    """Return the decompressed content of a file that may be compressed, and how messages name it."""
    known = compression.recognise(source.peek(HEAD))
    if known is None:
        return source, origin
    content = compression.decompressed(source, known, origin.label)
    return Peekable(content), origin._replace(command=known.command)


@contextlib.contextmanager
def _open(file: File) -> Iterator[BinaryIO]:
    """Open a file for reading; an error at any time until it is closed becomes an InputError."""
    with _reported(file):
        if file.path is not None:
            with open(file.path, "rb") as opened:
                yield opened
        elif file.label == "play":
            from jaxrnn.data import play

            yield io.BytesIO(play.write().text.encode("ascii"))
        else:
            yield _stdin()


@contextlib.contextmanager
def _reported(file: File) -> Iterator[None]:
    """Turn an OSError about a file into an InputError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f'no file or folder "{file.path}"; name play, shakespeare, - for standard '
            "input, or a path"
        ) from error
    except OSError as error:
        raise unreadable(file.label, error) from error


def _empty(files: Sequence[File]) -> InputError:
    """Return the error for a text without a character."""
    words = list(dict.fromkeys(file.word for file in files))
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    verb = "is" if len(words) == 1 else "are"
    return InputError(f"{', '.join(words[:3])}{more} {verb} empty; give another text")


def unreadable(path: str, error: OSError) -> InputError:
    """Return the error for a file or folder that cannot be read."""
    return InputError(f"cannot read {path}: {error.strerror}; make it readable or leave it out")


def _stdin() -> Any:
    """Return standard input.

    Raises:
      InputError: if it is closed or a terminal.
    """
    closed = sys.stdin is None or sys.stdin.closed
    if closed or sys.stdin.isatty():
        raise InputError(
            f"standard input is {'closed' if closed else 'the terminal'}; pipe a text into it, or "
            "name a file instead"
        )
    return sys.stdin.buffer


def _argument(file: File) -> str:
    """Return the path of a file as an argument of a shell command."""
    return "-" if file.path is None else console.quoted_path(file.path)
