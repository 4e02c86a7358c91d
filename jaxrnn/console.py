"""The streams of the commands: terminals, files or pipes of any encoding, which may end at any time.

    console.open_streams()               # first of all: from here on any text can be printed
    with console.lasting_output():       # for commands whose work must survive a failing output
        ...
    console.error("what was wrong; what to do")

A command whose standard output has lost its reader ends with the status PIPE_CLOSED, as SIGPIPE would
end it; `train` and `prepare` save their work first.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# The exit status of a command that SIGPIPE ended.
PIPE_CLOSED = 128 + 13


def open_streams() -> None:
    """Let standard output and standard error accept any text, whatever their encoding.

    Standard output replaces characters that it cannot encode by "?", and standard error escapes them. A
    stream that was closed when the process started is opened to the null device. RuntimeWarnings of the
    library are printed as `note` prints, without the place in the code.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Otherwise the next file to be opened would get this number, and prints would go into it.
            with contextlib.suppress(OSError):
                while os.open(os.devnull, os.O_RDWR) < number:
                    pass
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if category is RuntimeWarning:
        note(str(message))
    else:
        _to_stderr(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


class _Lasting(io.FileIO):
    """A file that ignores errors of writes.

    pipe_closed: whether it was a pipe that has lost its reader.
    """

    pipe_closed = False

    def write(self, data: Any) -> int:
        # A non-blocking terminal that is full returns None.
        with contextlib.suppress(OSError):
            try:
                return super().write(data) or len(data)
            except BrokenPipeError:
                self.pipe_closed = True
        return len(data)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Ignore errors of standard output until the end of the block.

    The terminal may be gone, the disk full, or the pipe without a reader (`pipe_closed`): the work
    continues, or saves and stops.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or type(_raw(stream)) is not io.FileIO:
        yield
        return
    with contextlib.suppress(OSError):
        stream.flush()
    file = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    lasting = io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)
    with contextlib.redirect_stdout(lasting):
        try:
            yield
        finally:
            lasting.flush()


def pipe_closed() -> bool:
    """Return whether standard output is a pipe without a reader; known only in `lasting_output`."""
    raw = _raw(sys.stdout)
    return isinstance(raw, _Lasting) and raw.pipe_closed


def _raw(stream: Any) -> Any:
    """Return the raw file of a stream, which has no buffer in between under `python -u`."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def write(piece: str | bytes) -> None:
    """Write text or bytes to standard output at once.

    Raises:
      OSError: if the output fails. What is left of it is dropped.
    """
    try:
        if isinstance(piece, bytes):
            sys.stdout.buffer.write(piece)
        else:
            sys.stdout.write(piece)
        sys.stdout.flush()
    except OSError:
        abandon_output()
        raise


def abandon_output() -> None:
    """Drop what standard output has buffered, so that the interpreter does not fail to write it."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def error(message: object) -> None:
    """Print an error message as one line to standard error."""
    _to_stderr(f"error: {shown(str(message))}")


def note(message: str) -> None:
    """Print a note for the user as one line to standard error."""
    _to_stderr(f"note: {shown(message)}")


def message(lines: str) -> None:
    """Print lines to standard error as they are."""
    _to_stderr(lines)


def _to_stderr(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """Return a text as one line for a screen, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_lines(text: str) -> str:
    """Return a text of several lines for a screen, with control characters escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else shown(c) for c in text)


def quoted(argument: str | os.PathLike[str]) -> str:
    """Return an argument quoted for a shell. It may hold any character except NUL.

    Characters that this screen cannot show are written as escapes, which bash and zsh understand.
    """
    text = os.fspath(argument)
    if all(map(_can_show, text)):
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def quoted_path(path: str | os.PathLike[str]) -> str:
    """Return a path quoted for a shell; one that begins with - gets ./ in front."""
    text = os.fspath(path)
    return quoted(os.path.join(os.curdir, text) if text.startswith("-") else text)


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if _can_show(character):
        return character
    try:
        raw = os.fsencode(character)
    except UnicodeEncodeError:
        # The encoding of file names cannot express it.
        raw = character.encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _can_show(character: str) -> bool:
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return character.isprintable()
