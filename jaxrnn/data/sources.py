"""The sources of training text: the embedded play, Tiny Shakespeare, standard input, files.

    source = read()                                    # the play, with its exact information
    source = read(["shakespeare"])                     # downloaded once
    source = read(["notes.txt", "linux"], glob="*.c")  # a file, then every C file in a folder

Compressed files are decompressed, and the encoding of each file is guessed, see `encodings`. The text is
not changed: newlines are not translated unless asked for, and nothing is normalised; only a byte order
mark at the start of a file is dropped. Empty files, and broken links in a folder, are left out with a
note on standard error.
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
from jaxrnn.data.encodings import Reading
from jaxrnn.devices import storage
from jaxrnn.errors import InputError

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# The file has 1,115,394 bytes.
SHAKESPEARE_FILE = "tinyshakespeare.txt"
# The words of `data` that are not paths, and their short names.
NAMED = {"play": "play", "shakespeare": "shakespeare", "-": "stdin"}
# The suffixes of compressed files, which do not count for the name of a text.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class Source(NamedTuple):
    """A training text, as `read` returns it.

    Attributes:
      name: a short name, see `name`.
      content: the text, or its bytes if they were asked for.
      nats: float64 [len(content)], the exact information of each character in nats; None unless the
        text is the play alone.
    """

    name: str
    content: str | bytes
    nats: np.ndarray | None


def read(
    data: Sequence[str] = ("play",),
    glob: str | None = None,
    as_bytes: bool = False,
    reading: Reading | None = None,
) -> Source:
    """Return a training text.

    The files are joined; a newline is inserted after a file that does not end with one.

    Args:
      data: one or more of the following words. The texts are read in this order.
        "play": a play drawn from the embedded grammar, `jaxrnn.data.play`.
        "shakespeare": Tiny Shakespeare, downloaded once to the user's cache folder, or to the folder
        that the environment variable JAXRNN_CACHE names.
        "-": standard input.
        Anything else: the path of a file or a folder. A file called play is "./play".
      glob: pattern of the files to take from folders, "*.txt" if None. It is matched against the end
        of each path, at every depth: "*.c" matches a/b/x.c, "src/*.c" matches a/src/x.c. The files of
        a folder are sorted by their paths inside of it. Hidden files and folders are left out, and
        links to folders are not followed.
      as_bytes: return the bytes of the decompressed content as they are, not decoded and with nothing
        dropped.
      reading: how the bytes are read as text; None to guess the encoding and to keep the newlines.

    Raises:
      InputError: if something named in `data` does not exist, cannot be read or downloaded, is damaged,
        or is not text in the encoding; if all of it or standard input is empty; if a folder has no
        file that matches; or if `glob` is given without a folder.
    """
    words = _words(data)
    reading = reading or Reading()
    if as_bytes:
        reading.check_bytes()
    found = find(words, glob)
    if words == ["play"]:
        from jaxrnn.data import play

        text, information = play.write()
        return Source(name(words), text.encode("ascii") if as_bytes else text, information)
    chunks = files.stream(found, as_bytes, reading, size=-1)
    if as_bytes:
        return Source(name(words), b"".join(chunk.raw for chunk in chunks), None)
    return Source(name(words), "".join(chunk.text for chunk in chunks), None)


def given(
    text: str | bytes,
    glob: str | None = None,
    as_bytes: bool = False,
    reading: Reading | None = None,
) -> Source:
    """Return a training text that is given itself, not by its path.

    Args:
      text: the text, or its bytes.
      glob: as for `read`; it must be None.
      as_bytes: encode a str in UTF-8.
      reading: as for `read`. Of a str, the encoding must be "auto"; of bytes, the newlines must be kept,
        too.

    Raises:
      InputError: for a `glob`, and for a `reading` that the text cannot have.
    """
    reading = reading or Reading()
    if glob is not None:
        raise InputError(
            f'`glob="{glob}"` chooses files from a folder, but the text itself is given'
        )
    if as_bytes or isinstance(text, bytes):
        reading.check_bytes()
        raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        return Source("text", raw, None)
    if reading.encoding != "auto":
        raise InputError(
            f"`encoding={reading.encoding}` decodes files, but the text itself is given; leave it out"
        )
    return Source("text", reading.with_line_ends(text), None)


def nats(data: Sequence[str]) -> np.ndarray | None:
    """Return the exact information of each character of a text in nats, float64 [N].

    The result is None unless the text is the play alone.

    Args:
      data: as for `read`.
    """
    if _words(data) != ["play"]:
        return None
    from jaxrnn.data import play

    return play.write().nats


def find(data: Sequence[str], glob: str | None = None) -> list[files.File]:
    """Return the files of a text in order, without reading them.

    Args:
      data: as for `read`.
      glob: as for `read`.

    Raises:
      InputError: as `read` does for files that are missing.
    """
    words = _words(data)
    if glob is not None and not any(map(_is_folder, words)):
        raise InputError(f'`glob="{glob}"` chooses files from a folder, but no folder is named')
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
    """Return a short name of a text, without reading it.

    It is "play", "shakespeare", "stdin", or the name of the file or folder without its suffix, such as
    "notes" for notes.txt and notes.txt.gz. For several words it is the name of the first and the number
    of others, as in "notes+2".

    Args:
      data: as for `read`.
    """
    first, *more = _words(data)
    # "." and ".." get their names from the absolute path; "/" has none.
    path = Path(os.path.abspath(first))
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    short = NAMED.get(first) or path.stem or "root"
    return f"{short}+{len(more)}" if more else short


def word_including(data: Sequence[str], glob: str | None, path: Path) -> str | None:
    """Return the word of `data` that includes a file, or would include it if the file existed.

    Args:
      data: as for `read`.
      glob: as for `read`.
      path: the path of the file.

    Returns:
      The word, or None if the file is not part of the text.
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
    """Return the words of `data`; a str is one word."""
    words = [data] if isinstance(data, str) else list(data)
    if not words:
        raise InputError("`data` names nothing to read; leave it out for the embedded play")
    return words


def _is_folder(word: str) -> bool:
    """Return whether a word of `data` is the path of a folder."""
    return word not in NAMED and os.path.isdir(word)


def _note_left_out(labels: Sequence[str], why: str) -> None:
    """Write a note that files are left out, and why."""
    if labels:
        more = f" (and {len(labels) - 1} more such files)" if len(labels) > 1 else ""
        console.note(f"{labels[0]}{more} is {why} and is left out")


def _files(word: str, pattern: str) -> list[tuple[str, str | None, int | None]]:
    """Return the name in error messages, the path and the size of each file of a word of `data`.

    Standard input and the play have no path; only regular files have a size.
    """
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
    """Return the matching files in a folder, sorted, with their sizes in bytes."""
    # Every depth is searched anyway.
    end = pattern.removeprefix("**/")
    if not PurePosixPath(end).parts or "**" in end:
        raise InputError(
            f'`glob="{pattern}"` is not a file pattern; write one such as "*.txt" or "src/*.c". '
            "Folders are searched at every depth without **"
        )

    # Without this function os.walk would silently leave out folders that it cannot read.
    def stop(error: OSError) -> None:
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
    _note_left_out(sorted(broken), "a broken link")
    if not found:
        raise InputError(
            f'no file in {folder} matches "{pattern}"; choose others with `glob="PATTERN"`'
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
    """Return the path of Tiny Shakespeare in the cache folder; download it if it is not there.

    Raises:
      InputError: if the download fails or gives a wrong checksum.
    """
    # Imported here because the library does not depend on pooch, only the commands do.
    import pooch

    def download(url: str, output_file: str, pooch_object: Any) -> None:
        console.note("downloading Tiny Shakespeare ...")
        # Not as a stream, because pooch leaves streams open when the server answers with an error.
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
    # An OSError is about the network, the disk or permissions. pooch raises a ValueError for a wrong
    # checksum.
    except (OSError, ValueError) as error:
        why = "wrong checksum" if type(error) is ValueError else type(error).__name__
        damaged = f"{SHAKESPEARE_FILE} in {folder} is damaged, and " if was_there else ""
        raise InputError(
            f"{damaged}Tiny Shakespeare could not be downloaded ({why}); put {SHAKESPEARE_FILE} "
            f"into {folder} by hand, or name another copy: `data=path/to/{SHAKESPEARE_FILE}`"
        ) from error
