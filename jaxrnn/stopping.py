"""Requests to stop a command: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

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
