"""Where the training text comes from: the embedded play, Tiny Shakespeare, standard input, files.

    source = read()                                    # the play, with each character's exact loss
    source = read(["shakespeare"])                     # downloaded once
    source = read(["notes.txt", "linux"], glob="*.c")  # a file, then every C file in a folder

    for chunk in stream(find(["linux"], "*.c")):        # the same text, however large, bit by bit
        ...

Text is UTF-8 and comes through as it is: newlines are not translated, nothing is normalised, only a
byte order mark at the start of a file is dropped.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxrnn.errors import InputError

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"  # 1,115,394 bytes
NAMED = {"play": "play", "shakespeare": "shakespeare", "-": "stdin"}
CHUNK = 1 << 20  # bytes that `stream` reads at a time
MARK = "\ufeff"  # the byte order mark


class Source(NamedTuple):
    """A training text: `read` returns one.

    name: a short name for it, see `name`.
    content: the text, or its raw bytes where `as_bytes` was asked for.
    nats: float64 [len(content)], the exact information of each character where it is known (the
        play on its own), else None.
    """

    name: str
    content: str | bytes
    nats: np.ndarray | None


def read(
    data: Sequence[str] = ("play",), glob: str | None = None, as_bytes: bool = False
) -> Source:
    """Read a training text.

    Args:
      data: one or more of these, read in the order given:
        "play", the embedded grammar (`jaxrnn.play`);
        "shakespeare", Tiny Shakespeare, downloaded once into the user's cache folder or the folder
        that the environment variable JAXRNN_CACHE names;
        "-", standard input;
        the path of a file or a folder ("./play" is the one that is called play).
      glob: which files to take from the folders, "*.txt" if None. It is matched against the end of
        each path, at every depth: "*.c" takes a/b/x.c and "src/*.c" takes a/src/x.c. The files come
        sorted by their path inside the folder. Hidden files and folders are left out, and links to
        folders are not followed.
      as_bytes: give the bytes as they are, nothing decoded or dropped.

    Files are joined with nothing in between, or with one newline after a file that ends without.

    Raises:
      InputError: what is named does not exist, cannot be read or downloaded, is empty or is not
        UTF-8; a folder has no file that matches; or `glob` is given without a folder.
    """
    words = _words(data)
    files = find(words, glob)
    if words == ["play"]:
        from jaxrnn import play

        text, known = play.write()
        return Source(name(words), text.encode("ascii") if as_bytes else text, known)
    chunks = stream(files, as_bytes, size=-1)
    if as_bytes:
        return Source(name(words), b"".join(chunk.raw for chunk in chunks), None)
    return Source(name(words), "".join(chunk.text for chunk in chunks), None)


def nats(data: Sequence[str]) -> np.ndarray | None:
    """float64 [N], the exact information of each character of `data`: of the play alone, else None."""
    if _words(data) != ["play"]:
        return None
    from jaxrnn import play

    return play.write().nats


class File(NamedTuple):
    """A file of a text: `find` returns them.

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


def find(data: Sequence[str], glob: str | None = None) -> list[File]:
    """The files that a text is made of, in order. Arguments and errors as of `read`; reads nothing."""
    words = _words(data)
    if glob is not None and not any(map(_is_folder, words)):
        raise InputError(f'--glob "{glob}" chooses files from a folder, but --data names no folder')
    return [
        File(nth, "standard input" if word == "-" else word, label, path)
        for nth, word in enumerate(words)
        for label, path in _files(word, "*.txt" if glob is None else glob)
    ]


def stream(
    files: Sequence[File],
    as_bytes: bool = False,
    start: Place | None = None,
    stop: Place | None = None,
    size: int | None = None,
) -> Iterator[Chunk]:
    """Read a text in chunks that, joined, are what `read` gives.

    Args:
      files: from `find`.
      as_bytes: see `read`.
      start: go on from the place of an earlier chunk.
      stop: end at the place of an earlier chunk.
      size: bytes read at a time, CHUNK if None; -1 reads each file in one piece.

    Raises:
      InputError: as `read`, when the reading comes to it.
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


def cache_folder() -> Path:
    """The user's folder for what is kept from run to run: JAXRNN_CACHE, or the system's own."""
    import pooch  # here, because the library is to import without it

    return Path(os.environ.get("JAXRNN_CACHE") or pooch.os_cache("jaxrnn")).expanduser().resolve()


def name(data: Sequence[str]) -> str:
    """A short name for `data`, found without reading it.

    "play", "shakespeare", "stdin", or the stem of the file or folder; of several, the first one's
    and how many more there are: "notes+2".
    """
    first, *more = _words(data)
    # The absolute path, because "." and ".." are called something too; "/" is not.
    short = NAMED.get(first) or Path(os.path.abspath(first)).stem or "root"
    return f"{short}+{len(more)}" if more else short


def _words(data: Sequence[str]) -> list[str]:
    words = [data] if isinstance(data, str) else list(data)  # a str is one word, not its letters
    if not words:
        raise InputError("--data names nothing to read; leave it out for the embedded play")
    return words


def _is_folder(word: str) -> bool:
    return word not in NAMED and os.path.isdir(word)


def _files(word: str, pattern: str) -> list[tuple[str, str | None]]:
    """What is behind a word: each file's name, for the errors, and its path."""
    if word == "play":
        return [("play", None)]
    if word == "-":
        return [("standard input", None)]
    if word == "shakespeare":
        paths = [_fetch_shakespeare()]
    else:
        paths = _find(word, pattern) if _is_folder(word) else [word]
    return [(path, path) for path in paths]


def _find(folder: str, pattern: str) -> list[str]:
    end = pattern.removeprefix("**/")  # which holds anyway
    if not PurePosixPath(end).parts or "**" in end:
        raise InputError(
            f'--glob "{pattern}" is no pattern for files; write one such as "*.txt" or "src/*.c", '
            "folders are searched at every depth without **"
        )

    def stop(error: OSError) -> None:  # else os.walk leaves the folder out in silence
        raise error

    found = []
    try:
        for place, folders, files in os.walk(folder, onerror=stop):
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            for path in (Path(place, file) for file in files if not file.startswith(".")):
                inside = path.relative_to(folder).as_posix()
                if PurePosixPath(inside).match(end) and stat.S_ISREG(path.stat().st_mode):
                    found.append(inside)
    except OSError as error:
        raise _unreadable(error.filename, error) from error
    if not found:
        raise InputError(
            f'no file in {folder} matches "{pattern}"; choose others with --glob "PATTERN"'
        )
    # Sorted as plain strings: the file system's own order differs from machine to machine.
    return [os.path.join(folder, inside) for inside in sorted(found)]


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
        raise _unreadable(file.label, error) from error


def _empty(file: File) -> InputError:
    return InputError(f"{file.word} is empty; give a text to train on")


def _unreadable(path: str, error: OSError) -> InputError:
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


def _fetch_shakespeare() -> str:
    """The path of Tiny Shakespeare in the cache folder, downloaded first unless it is there."""
    import pooch  # here, because the library is to import without it

    def download(url: str, output_file: str, pooch_object: Any) -> None:
        print("downloading Tiny Shakespeare ...", file=sys.stderr)
        # Not as a stream, which pooch would leave open when the server answers with an error.
        pooch.HTTPDownloader(stream=False)(url, output_file, pooch_object)

    pooch.get_logger().setLevel("WARNING")
    folder = cache_folder()
    was_there = os.path.exists(folder / SHAKESPEARE_FILE)
    try:
        return pooch.retrieve(
            SHAKESPEARE_URL,
            known_hash=f"sha256:{SHAKESPEARE_SHA256}",
            fname=SHAKESPEARE_FILE,
            path=folder,
            downloader=download,
        )
    except (OSError, ValueError) as error:  # network, disk or permission; pooch: a wrong checksum
        why = "wrong checksum" if type(error) is ValueError else type(error).__name__
        damaged = f"{SHAKESPEARE_FILE} in {folder} is damaged, and " if was_there else ""
        raise InputError(
            f"{damaged}Tiny Shakespeare could not be downloaded ({why}); put {SHAKESPEARE_FILE} "
            f"into {folder} by hand, or use it from anywhere: --data path/to/{SHAKESPEARE_FILE}"
        ) from error
