"""Reading the files of a text, whole or in chunks, and joining them.

    for chunk in stream(sources.find(["linux"], "*.c")):
        ...

The chunks joined are what `sources.read` returns, but the text may be larger than memory.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxrnn import console
from jaxrnn.errors import InputError

# Bytes that `stream` reads at a time.
CHUNK = 1 << 20
# The byte order mark.
MARK = "\ufeff"
NEWLINE = b"\n"
# Bytes at the start of a file from which its format is guessed.
HEAD = 1 << 15
# The first bytes of formats other than UTF-8 text, their description, and a command that converts them.
FORMATS = (
    (b"\xff\xfe\0\0", "looks like UTF-32", "iconv -f utf-32 -t utf-8 {}"),
    (b"\0\0\xfe\xff", "looks like UTF-32", "iconv -f utf-32 -t utf-8 {}"),
    (b"\xff\xfe", "looks like UTF-16", "iconv -f utf-16 -t utf-8 {}"),
    (b"\xfe\xff", "looks like UTF-16", "iconv -f utf-16 -t utf-8 {}"),
    (b"\x1f\x8b", "is compressed by gzip", "zcat {}"),
    (b"\x1f\x9d", "is compressed by compress", "zcat {}"),
    (b"BZh", "is compressed by bzip2", "bzcat {}"),
    (b"\xfd7zXZ\0", "is compressed by xz", "xzcat {}"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "zstdcat {}"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "lz4cat {}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "7z x -so {}"),
    (b"PK\x03\x04", "is a zip archive (as .docx, .odt and .epub files are)", "unzip -p {}"),
    (b"%PDF-", "is a PDF", "pdftotext {} -"),
)


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
      offset: the number of bytes of that file that have been read.
      ended: whether that character was a newline; True if nothing has been read.
    """

    file: int = 0
    offset: int = 0
    ended: bool = True


class Chunk(NamedTuple):
    """A part of a text, made of whole characters, as `stream` yields it.

    Attributes:
      raw: the bytes.
      text: the same as characters; "" if the text is read as bytes.
      place: how far the text has been read after this part.
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
    """Yield a text in chunks that, joined, are what `sources.read` returns.

    Args:
      files: the files, from `sources.find`.
      as_bytes: see `sources.read`.
      start: resume at the place of an earlier chunk.
      stop: end at the place of an earlier chunk.
      size: bytes read at a time; None for CHUNK, -1 for each file in one piece.

    Raises:
      InputError: as in `sources.read`, at the file concerned.
    """
    start = start or Place()
    last = len(files) - 1 if stop is None else stop.file
    # Only a file that is not empty can be a place, so an offset means that there was text.
    found_text = start.offset > 0
    ended = start.ended
    for number in range(start.file, last + 1):
        file = files[number]
        offset = start.offset if number == start.file else 0
        end = stop.offset if stop is not None and number == stop.file else None
        at_start = offset == 0
        is_empty = at_start
        pieces = _pieces(file, as_bytes, offset, end, CHUNK if size is None else size)
        for raw, text, offset in pieces:
            if at_start and not ended:
                raw = b"\n" + raw
                text = text and "\n" + text
            found_text = True
            at_start = is_empty = False
            ended = raw.endswith(b"\n")
            yield Chunk(raw, text, Place(number, offset, ended))
        # The program on the other side of a pipe may have failed, so an empty pipe is an error.
        if is_empty and file.path is None:
            raise _empty([file])
    if not found_text:
        raise _empty(files)


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
    """Return the content of one file, or of standard input for "-".

    Args:
      path: the path of the file, or "-".
      as_bytes: see `sources.read`.

    Raises:
      InputError: if the file cannot be read or, unless `as_bytes`, is not UTF-8.
    """
    try:
        raw = _stdin().read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if as_bytes:
        return raw
    label = "standard input" if path == "-" else path
    where = path if path == "-" else console.quoted_path(path)
    head = raw[:HEAD]
    if _unmarked(head):
        raise _not_utf8(label, where, head, bytes_too=False)
    try:
        return raw.decode().removeprefix(MARK)
    except UnicodeDecodeError as error:
        found = _place(raw, error)
        raise _not_utf8(label, where, head, found, error.start, bytes_too=False) from None


def _pieces(
    file: File, as_bytes: bool, offset: int, end: int | None, size: int
) -> Iterator[tuple[bytes, str, int]]:
    """Yield the bytes, the characters and the offset after them, for each piece of a file.

    Args:
      file: the file.
      as_bytes: whether to leave the characters empty and cut anywhere.
      offset: the offset in bytes to start from.
      end: the offset to stop at; None for the end of the file.
      size: bytes read at a time; -1 for the whole file.
    """
    rest = b""
    line = 1 if offset == 0 else None
    with _open(file) as opened:
        head = _head(file, opened, offset)
        while True:
            raw = opened.read(size if end is None else min(size, end - offset - len(rest)))
            final = not raw or size < 0
            raw = rest + raw
            head = head or raw[:HEAD]
            if offset == 0 and not as_bytes and _unmarked(head):
                raise _not_utf8(file.label, _where(file), head)
            if as_bytes:
                text, used = "", len(raw)
            else:
                try:
                    text, used = codecs.utf_8_decode(raw, "strict", final)
                except UnicodeDecodeError as error:
                    found = _place(raw, error, offset, line)
                    good = offset + error.start
                    raise _not_utf8(file.label, _where(file), head, found, good) from None
            piece = raw[:used]
            rest = raw[used:]
            if offset == 0 and text.startswith(MARK):
                text = text[1:]
                piece = piece[len(MARK.encode()) :]
            offset += used
            line = line and line + piece.count(b"\n")
            if piece:
                yield piece, text, offset
            if final:
                return


def _head(file: File, opened: Any, offset: int) -> bytes:
    """Return the first bytes of an open file, and continue at `offset`.

    The result is empty if the file can be read only once.
    """
    if file.path is None or not opened.seekable():
        return b""
    head = opened.read(HEAD)
    opened.seek(offset)
    return head


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
            f'no file or folder "{file.path}"; `data` takes play, shakespeare, - for standard '
            "input, or a path"
        ) from error
    except OSError as error:
        raise unreadable(file.label, error) from error


def _empty(files: Sequence[File]) -> InputError:
    """Return the error for a text without a character."""
    words = list(dict.fromkeys(file.word for file in files))
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    verb = "is" if len(words) == 1 else "are"
    return InputError(f"{', '.join(words[:3])}{more} {verb} empty; give a text to train on")


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


# --- files that are not UTF-8 ---


def _where(file: File) -> str:
    """Return the path of a file as an argument of a shell command."""
    return "-" if file.path is None else console.quoted_path(file.path)


def _not_utf8(
    label: str,
    where: str,
    head: bytes,
    found: str = "",
    good: int | None = None,
    bytes_too: bool = True,
) -> InputError:
    """Return the error for a file that is not UTF-8; it names the command that converts the file.

    Args:
      label: the file, as error messages name it.
      where: the file, as commands name it.
      head: its first bytes.
      found: the wrong byte and its place, if any.
      good: number of bytes before the wrong one; None if no byte is wrong.
      bytes_too: whether the caller can read it as bytes instead.
    """
    what, command, is_text = _kind(head, good)
    convert = f": convert it with {command.format(where)} > NEW.txt" if command else ""
    instead = "; `as_bytes` reads it as it is" if bytes_too and is_text else ""
    return InputError(f"{label} is not UTF-8{found and ': ' + found}; it {what}{convert}{instead}")


def _kind(head: bytes, good: int | None) -> tuple[str, str, bool]:
    """Return the likely format of a file, the command that makes it UTF-8, and whether it is text."""
    for start, what, command in FORMATS:
        if head.startswith(start):
            return what, command, False
    if unmarked := _unmarked(head):
        return f"looks like {unmarked.upper()}", f"iconv -f {unmarked} -t utf-8 {{}}", False
    if b"\0" in head:
        return "has NUL bytes and is not text", "", True
    if not head[:good].isascii():
        what = "is UTF-8 except for some bytes, which can be left out"
        return what, "iconv -c -f utf-8 -t utf-8 {}", True
    if 3 * sum(byte >= 0x80 for byte in head) < len(head):
        what = "may be Windows-1252, as Western European text often is"
        return what, "iconv -f windows-1252 -t utf-8 {}", True
    return "has another encoding, written ENCODING here", "iconv -f ENCODING -t utf-8 {}", True


def _unmarked(head: bytes) -> str | None:
    """Return the variant of UTF-16 or UTF-32 that a file without a byte order mark seems to be."""
    columns = [head[at : len(head) // 4 * 4 : 4] for at in range(4)]
    zeros = [8 * column.count(0) > 7 * len(column) for column in columns]
    forms = {
        (False, True, True, True): "utf-32le",
        (True, True, True, False): "utf-32be",
        (False, True, False, True): "utf-16le",
        (True, False, True, False): "utf-16be",
    }
    return forms.get(tuple(zeros)) if len(head) >= 32 else None  # type: ignore[arg-type]


def _place(raw: bytes, error: UnicodeDecodeError, offset: int = 0, line: int | None = 1) -> str:
    """Return a description of the invalid byte and its place in the file.

    Args:
      raw: a part of the file.
      error: the error, whose `start` counts from the start of that part.
      offset: the offset of that part in the file.
      line: the line that the part begins in; None if unknown.
    """
    found = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
    if line is not None:
        found += f" (line {line + raw.count(NEWLINE, 0, error.start)})"
    return found
