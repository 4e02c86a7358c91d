"""Code that all commands share: the list of commands, error messages and exit status."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from jaxrnn import arguments, console, stopping
from jaxrnn.errors import (
    Failure,
    InputError,
    RemoteError,
    UnknownSymbols,
    first_line,
    is_out_of_memory,
)
from jaxrnn.training import orbax_messages

T = TypeVar("T")

# Each command NAME is a module of the package, imported when it is needed. It has `main(argv, prog)` and
# the dataclass of its options, `NameOptions`, and neither imports JAX.
COMMANDS = {
    "train": "Train a char-RNN on a text.",
    "generate": "Generate text with a trained model.",
    "prepare": "Make token files of a text of any size, to train on.",
    "evaluate": "Measure how well a trained model predicts a text.",
    "inspect": "Show what the units of a trained model do while it reads a text.",
    "export": "Write a trained model to files for other programs.",
    "completion": "Print a script that completes commands and flags in a shell.",
}


def run(
    kind: type[T],
    parse: Callable[[], T],
    work: Callable[[T], int],
    explain: Callable[[Exception], str | None] = lambda error: None,
) -> int:
    """Run a command and return its exit status.

    The status is that of the work, or 1 after a failure, 2 after bad input, 128 + n after signal n, and
    141 if standard output was a pipe that lost its reader. Errors are printed as one line each.

    Args:
      kind: the dataclass of the options, which says what its flags are called.
      parse: returns the options.
      work: does the work and returns its exit status.
      explain: returns a line about an error other than those of `jaxrnn.errors` and OSError; None for
        one that it does not know, which is raised again.
    """
    console.open_streams()
    try:
        return work(parse())
    except RemoteError:
        # The process that met the error reports it.
        return 2
    except InputError as error:
        _print_error(error, kind)
        return 2
    except BrokenPipeError:
        return console.PIPE_CLOSED
    except (OSError, Failure) as error:
        _print_error(error, kind)
        return 1
    except stopping.Stopped as stopped:
        return int(stopped.args[0])
    except KeyboardInterrupt:
        # The last line on the screen may be incomplete.
        with contextlib.suppress(OSError):
            if sys.stdout.isatty():
                print()
        return 128 + signal.SIGINT
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        _print_error(line, kind)
        return 1


def out_of_memory(advice: str = "") -> Callable[[Exception], str | None]:
    """Return an `explain` for `run` that knows the errors of a memory that ran out.

    Args:
      advice: what to do about them; nothing is advised if it is empty.
    """

    def explain(error: Exception) -> str | None:
        if not is_out_of_memory(error):
            return None
        line = f"the memory ran out ({first_line(error)})"
        return f"{line}; {advice}" if advice else line

    return explain


@contextlib.contextmanager
def reading_text() -> Iterator[None]:
    """Change the advice in errors about an unreadable text to options that these commands have.

    Raises:
      InputError: if the text has characters that the model does not know, or is not text.
    """
    try:
        yield
    except UnknownSymbols as error:
        raise InputError(f"{error}; `unknown=skip` leaves them out") from None
    except InputError as error:
        # The model decides whether the text is read as bytes.
        raise InputError(str(error).replace("; `as_bytes` reads it as it is", "")) from None


def _print_error(error: object, kind: type[Any]) -> None:
    console.error(arguments.in_flags(error, kind))


def lasting(work: Callable[[T], int]) -> Callable[[T], int]:
    """Return the work of a command whose result is more than what it prints.

    It continues, or saves and stops, when standard output fails.
    """

    @functools.wraps(work)
    def run_lasting(options: T) -> int:
        with console.lasting_output():
            status = work(options)
            return console.PIPE_CLOSED if status == 0 and console.pipe_closed() else status

    return run_lasting


def start(main: Callable[[], int]) -> NoReturn:
    """Run a command as the program of this process."""
    orbax_messages.quieten()
    leave(main())


def leave(status: int) -> NoReturn:
    """End the process, at once if the status is 1.

    After a failed write, threads of orbax may never end, and after the loss of a process, JAX would wait
    for it.
    """
    if status == 1:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
