"""Reading the files of a text, whole or bit by bit: the one place that knows how they are joined.

for chunk in stream(sources.find(["linux"], "*.c")):    # what `sources.read` gives, however large
    ...
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from jaxrnn.errors import InputError

CHUNK = 1 << 20  # bytes that `stream` reads at a time
MARK = "\ufeff"  # the byte order mark


class File(NamedTuple):
    """A file of a text: `sources.find` returns them.

    nth, word: which word of `data` it comes from, and that word as errors call it.
    label: what errors call the file.
    path: where it is; None for the play and for standard input, which are no files.
    """

    nth: int
    word: str
    label: str
    path: str | None


class Place(NamedTuple):
    """How far a text has been read.

    file, offset: the file, by its number, that the last character came from, and the bytes of it that
        are read.
    ended: whether that character was a newline (or there was none).
    """

    file: int = 0
    offset: int = 0
    ended: bool = True


class Chunk(NamedTuple):
    """A part of a text, of whole characters: `stream` yields them.

    raw: the bytes.
    text: the same as characters; "" where bytes were asked for.
    place: how far the text has been read with it.
    """

    raw: bytes
    text: str
    place: Place


def stream(
    files: Sequence[File],
    as_bytes: bool = False,
    start: Place | None = None,
    stop: Place | None = None,
    size: int | None = None,
) -> Iterator[Chunk]:
    """Read a text in chunks that, joined, are what `sources.read` gives.

    Args:
      files: from `sources.find`.
      as_bytes: see `sources.read`.
      start: go on from the place of an earlier chunk.
      stop: end at the place of an earlier chunk.
      size: bytes read at a time, CHUNK if None; -1 reads each file in one piece.

    Raises:
      InputError: as `sources.read`, when the reading comes to it.
    """
    start = start or Place()
    last = len(files) - 1 if stop is None else stop.file
    came, ended = False, start.ended
    for number in range(start.file, last + 1):
        file = files[number]
        offset = start.offset if number == start.file else 0
        end = stop.offset if stop is not None and number == stop.file else None
        same_word = number > 0 and files[number - 1].nth == file.nth
        came = offset > 0 or (came and same_word)  # only a file that gave something is a place
        begins = offset == 0
        pieces = _pieces(file, as_bytes, offset, end, CHUNK if size is None else size)
        for raw, text, offset in pieces:
            if begins and not ended:
                raw, text = b"\n" + raw, text and "\n" + text
            came, begins, ended = True, False, raw.endswith(b"\n")
            yield Chunk(raw, text, Place(number, offset, ended))
        over = number + 1 == len(files) or files[number + 1].nth != file.nth
        if over and end is None and not came:
            raise _empty(file)


def stamps(files: Sequence[File]) -> list[tuple[int, int] | None]:
    """Bytes and time of change (ns) of each file, None for what is no regular file.

    Raises:
      InputError: for what can be told before reading: a file that is not there, a word that is empty.
    """
    found: list[tuple[int, int] | None] = []
    for file in files:
        with _told(file):
            there = None if file.path is None else os.stat(file.path)
        regular = there is not None and stat.S_ISREG(there.st_mode)
        found.append((there.st_size, there.st_mtime_ns) if there and regular else None)
    for nth in {file.nth for file in files}:
        of_word = [i for i, file in enumerate(files) if file.nth == nth]
        if all(found[i] is not None and found[i][0] == 0 for i in of_word):  # type: ignore[index]
            raise _empty(files[of_word[0]])
    return found


def _pieces(
    file: File, as_bytes: bool, offset: int, end: int | None, size: int
) -> Iterator[tuple[bytes, str, int]]:
    """A file from `offset` on, in pieces of whole characters, each with the offset after it."""
    rest = b""
    with _open(file) as opened:
        if offset:
            opened.seek(offset)
        while True:
            raw = opened.read(size if end is None else min(size, end - offset - len(rest)))
            final = not raw or size < 0
            raw = rest + raw
            text, used = ("", len(raw)) if as_bytes else _decode(file.label, raw, offset, final)
            piece, rest = raw[:used], raw[used:]
            if offset == 0 and text.startswith(MARK):
                text, piece = text[1:], piece[len(MARK.encode()) :]
            offset += used
            if piece:
                yield piece, text, offset
            if final:
                return


@contextlib.contextmanager
def _open(file: File) -> Iterator[BinaryIO]:
    """A file to read from; what goes wrong with it, whenever, is an InputError."""
    with _told(file):
        if file.path is not None:
            with open(file.path, "rb") as opened:
                yield opened
        elif file.label == "play":
            from jaxrnn import play

            yield io.BytesIO(play.write().text.encode("ascii"))
        else:
            yield _stdin()


@contextlib.contextmanager
def _told(file: File) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f'no file or folder "{file.path}"; --data takes play, shakespeare, - for standard '
            "input, or a path"
        ) from error
    except OSError as error:
        raise unreadable(file.label, error) from error


def _empty(file: File) -> InputError:
    return InputError(f"{file.word} is empty; give a text to train on")


def unreadable(path: str, error: OSError) -> InputError:
    """What to say of a file or folder that the system does not let us read."""
    return InputError(f"cannot read {path}: {error.strerror}; make it readable or leave it out")


def _stdin() -> Any:
    closed = sys.stdin is None or sys.stdin.closed
    if closed or sys.stdin.isatty():
        raise InputError(
            f"standard input is {'closed' if closed else 'the terminal'}; pipe a text into it, or "
            "name a file in --data"
        )
    return sys.stdin.buffer


def _decode(label: str, raw: bytes, offset: int, final: bool) -> tuple[str, int]:
    """The whole characters that raw, from `offset` of a file, begins with, and how many bytes they are.

    At the end of the file (`final`) that must be all of it.
    """
    try:
        return codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{label} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}; "
            "read it as bytes with --bytes"
        ) from None
