"""Requests to stop: Ctrl-C, SIGTERM and SIGHUP, and an output pipe that has lost its reader."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax

from jaxrnn import console
from jaxrnn.devices import processes

# Sent by Ctrl-C, by `kill`, and when the terminal is closed.
NAMES = "SIGINT", "SIGTERM", "SIGHUP"


def exit_at_once(status: int) -> None:
    """End the process without cleaning up."""
    os._exit(status)


def interrupt(status: int) -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def catching(
    react: Callable[[int], None],
    leave: tuple[str, ...] = (),
    again: Callable[[int], None] = exit_at_once,
) -> Iterator[None]:
    """Call a function when a signal asks the program to stop; a second signal ends it at once.

    A signal that is ignored when the block begins stays ignored: nohup ignores SIGHUP so that a program
    outlives its terminal, and a shell ignores SIGINT in what a script starts in the background. When
    the block ends, the handlers are again those from before. Only the main thread can have handlers;
    in other threads nothing happens.

    Args:
      react: called with the exit status that the signal stands for, 128 + its number. It may raise.
      leave: names of signals to leave alone.
      again: called with the status when there is another signal.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            again(128 + number)
            return
        asked = True
        react(128 + number)

    in_main = threading.current_thread() is threading.main_thread()
    names = [n for n in NAMES if in_main and n not in leave and hasattr(signal, n)]
    numbers = [getattr(signal, name) for name in names]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """The user asked a command to stop; the argument is the exit status."""


def stop(status: int) -> None:
    """Raise Stopped, so that a command ends where it is and cleans up; `catching` takes it."""
    raise Stopped(status)


class Stop:
    """Whether the training was asked to stop.

    Inside `with Stop() as stop`, the first signal is only noted, and the training saves and stops where
    it asks `stop.asked()`. With several processes, SIGTERM is left to JAX, which informs all of them
    (`Checkpoints.preempted`). Standard output that has lost its reader counts as a request, too.

    Args:
      leave: names of signals to leave alone.
      again: called with the exit status when there is another signal.
      quiet: print nothing.
    """

    def __init__(
        self,
        leave: tuple[str, ...] = (),
        again: Callable[[int], None] = exit_at_once,
        quiet: bool = False,
    ) -> None:
        self._status = 0
        self._quiet = quiet
        if jax.process_count() > 1:
            leave = (*leave, "SIGTERM")
        self._catching = catching(self._note, leave, again)

    @property
    def status(self) -> int:
        """The exit status: 128 + the signal's number; SIGTERM's if JAX took the signal."""
        return self._status or 128 + signal.SIGTERM

    def asked(self) -> bool:
        """Return whether this or another process was asked to stop. All processes must call it."""
        if console.pipe_closed():
            self._status = self._status or console.PIPE_CLOSED
        self._status = max(processes.allgather_json(self._status))
        return self._status != 0

    def __enter__(self) -> Stop:
        self._catching.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._catching.__exit__(None, None, None)

    def _note(self, status: int) -> None:
        self._status = self._status or status
        if not self._quiet:
            _print("\nstopping after this device call; repeat the signal to stop at once\n")


def _print(text: str) -> None:
    """Write to standard output from a signal handler."""
    # The pipe may have lost its reader (OSError), or the stream may be closed (ValueError).
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except RuntimeError:
            # The signal interrupted another write to the stream, which cannot be entered twice.
            # This line goes out first, then the rest of the interrupted write.
            os.write(sys.stdout.fileno(), text.encode("ascii"))
