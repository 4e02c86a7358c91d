"""Where the training text comes from: the embedded play, Tiny Shakespeare, standard input, files.

    source = read()                                    # the play, with each character's exact loss
    source = read(["shakespeare"])                     # downloaded once
    source = read(["notes.txt", "linux"], glob="*.c")  # a file, then every C file in a folder

Text is UTF-8 and comes through as it is: newlines are not translated, nothing is normalised, only a
byte order mark at the start of a file is dropped. Files that are empty, and links in a folder that lead
nowhere, are left out with a note on standard error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import console
from jaxrnn.data import files
from jaxrnn.devices import storage
from jaxrnn.errors import InputError

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"  # 1,115,394 bytes
NAMED = {"play": "play", "shakespeare": "shakespeare", "-": "stdin"}


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
        "play", the embedded grammar (`jaxrnn.data.play`);
        "shakespeare", Tiny Shakespeare, downloaded once into the user's cache folder or the folder
        that the environment variable JAXRNN_CACHE names;
        "-", standard input;
        the path of a file or a folder ("./play" is the one that is called play).
      glob: which files to take from the folders, "*.txt" if None. It is matched against the end of
        each path, at every depth: "*.c" takes a/b/x.c and "src/*.c" takes a/src/x.c. The files come
        sorted by their path inside the folder. Hidden files and folders are left out, and links to
        folders are not followed.
      as_bytes: return the bytes as they are, nothing decoded or dropped.

    Files are joined with nothing in between, or with one newline after a file that ends without.

    Raises:
      InputError: what is named does not exist, cannot be read or downloaded or is not UTF-8; all of it
        is empty, or standard input is; a folder has no file that matches; or `glob` is given without a
        folder.
    """
    words = _words(data)
    found = find(words, glob)
    if words == ["play"]:
        from jaxrnn.data import play

        text, known = play.write()
        return Source(name(words), text.encode("ascii") if as_bytes else text, known)
    chunks = files.stream(found, as_bytes, size=-1)
    if as_bytes:
        return Source(name(words), b"".join(chunk.raw for chunk in chunks), None)
    return Source(name(words), "".join(chunk.text for chunk in chunks), None)


def nats(data: Sequence[str]) -> np.ndarray | None:
    """float64 [N], the exact information of each character of `data`: of the play alone, else None."""
    if _words(data) != ["play"]:
        return None
    from jaxrnn.data import play

    return play.write().nats


def find(data: Sequence[str], glob: str | None = None) -> list[files.File]:
    """The files that a text is made of, in order. Arguments and errors as of `read`; reads nothing."""
    words = _words(data)
    if glob is not None and not any(map(_is_folder, words)):
        raise InputError(f'--glob "{glob}" chooses files from a folder, but --data names no folder')
    found, empty = [], []
    for nth, word in enumerate(words):
        called = "standard input" if word == "-" else word
        for label, path, size in _files(word, "*.txt" if glob is None else glob):
            found.append(files.File(nth, called, label, path))
            if size == 0:
                empty.append(label)
    if len(empty) < len(found):
        _note_left_out(empty, "empty")
    return found


def name(data: Sequence[str]) -> str:
    """A short name for `data`, found without reading it.

    "play", "shakespeare", "stdin", or the stem of the file or folder; of several, the first one's
    and how many more there are: "notes+2".
    """
    first, *more = _words(data)
    # The absolute path, because "." and ".." are called something too; "/" is not.
    short = NAMED.get(first) or Path(os.path.abspath(first)).stem or "root"
    return f"{short}+{len(more)}" if more else short


def word_including(data: Sequence[str], glob: str | None, path: Path) -> str | None:
    """Return the word of `data` by which a file is part of the text, or would be if it were there.

    data, glob: as for `read`.
    """
    for word in _words(data):
        if word in NAMED:
            continue
        if not _is_folder(word):
            if os.path.exists(path) and os.path.exists(word) and os.path.samefile(path, word):
                return word
            continue
        try:
            inside = path.resolve().relative_to(Path(word).resolve())
        except ValueError:
            continue
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and inside.match((glob or "*.txt").removeprefix("**/")):
            return word
    return None


def _words(data: Sequence[str]) -> list[str]:
    words = [data] if isinstance(data, str) else list(data)  # a str is one word, not its letters
    if not words:
        raise InputError("--data names nothing to read; leave it out for the embedded play")
    return words


def _is_folder(word: str) -> bool:
    return word not in NAMED and os.path.isdir(word)


def _note_left_out(labels: Sequence[str], why: str) -> None:
    if labels:
        more = f" (and {len(labels) - 1} more such files)" if len(labels) > 1 else ""
        console.note(f"{labels[0]}{more} is {why} and is left out")


def _files(word: str, pattern: str) -> list[tuple[str, str | None, int | None]]:
    """Return the files that a word of --data names: name in errors, path, and size if it has one."""
    if word == "play":
        return [("play", None, None)]
    if word == "-":
        return [("standard input", None, None)]
    if word == "shakespeare":
        path = _fetch_shakespeare()
        return [(path, path, None)]
    if _is_folder(word):
        return [(path, path, size) for path, size in _find(word, pattern)]
    regular = os.path.isfile(word)
    return [(word, word, os.path.getsize(word) if regular else None)]


def _find(folder: str, pattern: str) -> list[tuple[str, int]]:
    """The files in a folder that match, sorted, with their sizes."""
    end = pattern.removeprefix("**/")  # which holds anyway
    if not PurePosixPath(end).parts or "**" in end:
        raise InputError(
            f'--glob "{pattern}" is no pattern for files; write one such as "*.txt" or "src/*.c", '
            "folders are searched at every depth without **"
        )

    def stop(error: OSError) -> None:  # else os.walk leaves the folder out in silence
        raise error

    found, broken = [], []
    try:
        for place, folders, names in os.walk(folder, onerror=stop):
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            for path in (Path(place, file) for file in names if not file.startswith(".")):
                inside = path.relative_to(folder).as_posix()
                if not PurePosixPath(inside).match(end):
                    continue
                status = _status(path)
                if status is None:
                    broken.append(str(path))
                elif stat.S_ISREG(status.st_mode):
                    found.append((inside, status.st_size))
    except OSError as error:
        raise files.unreadable(error.filename, error) from error
    _note_left_out(sorted(broken), "a link that leads nowhere")
    if not found:
        raise InputError(
            f'no file in {folder} matches "{pattern}"; choose others with --glob "PATTERN"'
        )
    # Sorted as plain strings: the file system's own order differs from machine to machine.
    return [(os.path.join(folder, inside), size) for inside, size in sorted(found)]


def _status(path: Path) -> os.stat_result | None:
    """Return the result of `os.stat`, or None for a broken or circular link."""
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _fetch_shakespeare() -> str:
    """The path of Tiny Shakespeare in the cache folder, downloaded first unless it is there."""
    import pooch  # here, because the library is to import without it

    def download(url: str, output_file: str, pooch_object: Any) -> None:
        console.note("downloading Tiny Shakespeare ...")
        # Not as a stream, which pooch would leave open when the server answers with an error.
        pooch.HTTPDownloader(stream=False)(url, output_file, pooch_object)

    pooch.get_logger().setLevel("WARNING")
    folder = storage.cache_folder()
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
